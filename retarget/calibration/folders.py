"""Folders with one file a sample: their order, and the labels that folders or a table give them."""

from __future__ import annotations

import csv
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retarget.errors import RetargetError, did_you_mean
from retarget.preprocess import SUFFIXES, shown_below

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from retarget.preprocess import Classes, Media

FOLDER = "folder"
"""``labels: folder``: the class is the name of the folder below the set's own."""
COLUMNS = ("file", "label")


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts ``9`` before ``10``."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part)


def media_files(path: Path, media: Media) -> list[Path]:
    """The files of ``path``, in natural order, its folders taking turns.

    So the first samples of a folder a class are of all classes, not of the first one alone.
    """
    turns: dict[Path, list[Path]] = {}
    files = (file for file in shown_below(path) if file.suffix.lower() in SUFFIXES[media])
    for file in sorted(files, key=lambda file: tuple(natural(part) for part in file.relative_to(path).parts)):
        turns.setdefault(file.parent, []).append(file)
    return [file for turn in itertools.zip_longest(*turns.values()) for file in turn if file is not None]


@dataclass(frozen=True)
class Labels:
    """The number of each file's class."""

    numbers: list[int]
    counted: int | None
    """How many classes there are, where their numbers were counted from the names that the set happens to have."""


def read_labels(path: Path, files: Sequence[Path], labels: str, classes: Classes | None) -> Labels:
    """The number of the class of each of ``files``: ``labels`` is ``folder``, or the name of a .csv in ``path``.

    ``classes`` are the classes' names in order; ``numbers``: names are numbers; ``sorted``: names count in the order
    of their text; None: one of the two, where they mean the same. Raises ``RetargetError`` for a file without a label
    and for a name that is no class.
    """
    if labels == FOLDER:
        names = [_folder_of(path, file) for file in files]
    elif labels.endswith(".csv"):
        names = _table(path, files, path / labels)
    else:
        raise RetargetError(
            f"{path}: '{labels}' says no labels of files",
            "write `labels: folder` for a folder a class, or `labels: labels.csv` for a table among the files",
        )
    known = classes if isinstance(classes, tuple) else _class_names(path, sorted(set(names)), labels, classes)
    numbers = {name: number for number, name in enumerate(known)} if known is not None else None
    found = []
    for file, name in zip(files, names, strict=True):
        if numbers is None:
            found.append(int(name))
        elif name in numbers:
            found.append(numbers[name])
        else:
            raise RetargetError(f"{file}: '{name}' is none of the classes", did_you_mean(name, numbers))
    return Labels(found, None if numbers is None or isinstance(classes, tuple) else len(numbers))


def _folder_of(path: Path, file: Path) -> str:
    parts = file.relative_to(path).parts
    if len(parts) < 2:
        raise RetargetError(f"{file}: is in no folder, and labels are the folders' names", f"move it to {path}/<class>")
    return parts[0]


def _table(path: Path, files: Iterable[Path], table: Path) -> list[str]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                found = ", ".join(reader.fieldnames or ("nothing",))
                raise RetargetError(f"{table}: the first line is {found}", f"it names the columns: {','.join(COLUMNS)}")
            rows = {row["file"]: (row["label"] or "").strip() for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RetargetError(f"{table}: not a readable table ({error})", "write lines such as a/0001.png,3") from error
    names = []
    for file in files:
        name = rows.get(file.relative_to(path).as_posix(), "")
        if not name:
            raise RetargetError(f"{table}: no label for {file.relative_to(path).as_posix()}", "each file needs a line")
        names.append(name)
    return names


def _class_names(path: Path, names: Sequence[str], labels: str, classes: str | None) -> Sequence[str] | None:
    """The classes in order; None where their names are their numbers."""
    numeric = all(name.isdecimal() for name in names)
    if classes == "numbers":
        if not numeric:
            odd = next(name for name in names if not name.isdecimal())
            raise RetargetError(f"{path}: class '{odd}' is not a number", "leave `classes: numbers` out, or rename it")
        return None
    if classes == "sorted" or not numeric:
        return names
    if labels != FOLDER or [int(name) for name in names] == list(range(len(names))):
        return None
    raise RetargetError(
        f"{path}: the class folders are numbers, but not 0, 1, 2 … in the order of their text",
        "write `classes: numbers` where a folder's name is the class's number, or `classes: sorted` where training "
        "counted the folders as sorted text, as torchvision's ImageFolder does",
    )

"""The source framework's own outputs, recorded once by the convert step: ``reference.npz``.

Keys are ``feeds/<case>/<input>`` and ``outputs/<case>/<output>``. A case above ``LIMIT`` has a file of its own,
``reference-<case>.npz``, so that no reader holds more than one large case in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np

from retarget.errors import RetargetError

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds, Outputs

LIMIT = 256 << 20
NAME = "reference.npz"


@dataclass(frozen=True)
class Recorded:
    """Feeds and the source framework's outputs of one parity case."""

    case: str
    feeds: Feeds
    outputs: Outputs


class ReferenceWriter:
    """Writes cases one by one; ``close`` writes what is still held."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._small: dict[str, Array] = {}

    def add(self, case: str, feeds: Feeds, outputs: Outputs) -> None:
        """Record one case; feeds and outputs are written as they are."""
        arrays = {f"feeds/{case}/{name}": array for name, array in feeds.items()}
        arrays |= {f"outputs/{case}/{name}": array for name, array in outputs.items()}
        if sum(array.nbytes for array in arrays.values()) > LIMIT:
            _save(self._folder / f"reference-{case}.npz", arrays)
        else:
            self._small |= arrays

    def close(self) -> None:
        """Write ``reference.npz``."""
        _save(self._folder / NAME, self._small)


def read(folder: Path) -> Iterator[Recorded]:
    """The recorded cases of ``folder``, one in memory at a time. Raises ``RetargetError`` on a damaged file."""
    for path in (folder / NAME, *sorted(folder.glob("reference-*.npz"))):
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                keys = list(file.files)
                for case in dict.fromkeys(key.split("/")[1] for key in keys):
                    yield Recorded(case, _part(file, keys, "feeds", case), _part(file, keys, "outputs", case))
        except (OSError, EOFError, ValueError, BadZipFile, IndexError) as error:
            raise RetargetError(f"{path}: not a readable reference ({error})", "build again") from error


def _part(file: Mapping[str, Array], keys: list[str], part: str, case: str) -> dict[str, Array]:
    prefix = f"{part}/{case}/"
    return {key.removeprefix(prefix): file[key] for key in keys if key.startswith(prefix)}


def _save(path: Path, arrays: Mapping[str, Array]) -> None:
    # Through a file object: np.savez takes keyword arguments, and an input may be called `file`.
    with ZipFile(path, "w", ZIP_STORED, allowZip64=True) as archive:
        for key, array in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

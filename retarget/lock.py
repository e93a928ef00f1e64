"""``recipe.lock``: what a build was made from, so that ``--locked`` can refuse anything else.

It holds the resolved recipe, the digest of every input file and the version of every distribution that shaped an
artifact. Paths are relative to the model's folder, so the file may stand anywhere and a repository can be moved.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from retarget import __version__, recipe_write
from retarget.errors import RetargetError
from retarget.recipe import Recipe

NAME = "recipe.lock"


class LockMismatch(RetargetError):
    """An input or a version is not what the lock says."""

    exit_code = 4


class Lock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: int
    retarget: str
    recipe: str
    inputs: dict[str, str]
    """Path to the sha256 of the file or folder."""
    versions: dict[str, str]
    """Distribution to version."""


def make(wanted: Recipe, inputs: Mapping[Path, str], versions: Mapping[str, str]) -> Lock:
    """The lock of a build of ``wanted``."""
    root = wanted.model.path.parent
    relative = {Path(os.path.relpath(path, root)).as_posix(): digest for path, digest in inputs.items()}
    return Lock(
        schema=1,
        retarget=__version__,
        recipe=recipe_write.dump(wanted, relative_to=root),
        inputs=dict(sorted(relative.items())),
        versions=dict(sorted(versions.items())),
    )


def dump(lock: Lock) -> str:
    """As indented JSON, which is YAML too."""
    return msgspec.json.format(msgspec.json.encode(lock), indent=2).decode() + "\n"


def check(path: Path, current: Lock) -> None:
    """Raise ``LockMismatch`` that lists every input and version that differs from the lock file ``path``.

    Only what ``current`` uses is compared: ``--only`` builds a part of what was locked.
    """
    try:
        locked = msgspec.json.decode(path.read_bytes(), type=Lock)
    except FileNotFoundError:
        raise RetargetError(f"{path}: no such file", "`--locked` needs the lock of an earlier build") from None
    except msgspec.MsgspecError as error:
        raise RetargetError(f"{path}: not a lock file ({error})", "build once without --locked") from error
    differences = ["  the recipe is another one"] if locked.recipe != current.recipe else []
    differences += [
        f"  {what}: locked {was or 'absent'}, found {now}"
        for what, was, now in (
            *_differences("retarget", {"": locked.retarget}, {"": current.retarget}),
            *_differences("version of ", locked.versions, current.versions),
            *_differences("input ", locked.inputs, current.inputs),
        )
    ]
    if differences:
        raise LockMismatch(
            "\n".join([f"{path}: not what was locked:", *differences]),
            f"install the locked versions and restore the locked files, or build without --locked to renew {path.name}",
        )


def _differences(
    label: str, locked: Mapping[str, str], current: Mapping[str, str]
) -> list[tuple[str, str | None, str]]:
    return [
        (f"{label}{name}", locked.get(name), current[name])
        for name in sorted(current)
        if locked.get(name) != current[name]
    ]

"""The folder that a build leaves: each artifact is swapped in by a rename, so a reader never sees half of one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from retarget.errors import RetargetError
from retarget.protocols import Artifact
from retarget.store import LOG

MARKER = ".retarget"
"""Says that retarget made the folder: a folder without it is somebody's own, and nothing in it is replaced."""

REPRODUCE = """\
#!/bin/sh
# Makes this artifact again from its inputs, in ./reproduced unless -o says otherwise.
# Refuses if an input or a version is not what it was.
exec retarget build "$(dirname "$0")/{up}/recipe.yaml" --locked --only {only} -o reproduced "$@"
"""


class OutputFolder:
    """An output folder of retarget's own. Raises ``RetargetError`` for a folder that it did not make."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise RetargetError(f"{path}: is a file", "give another folder with -o")
        if path.is_dir() and any(path.iterdir()) and not (path / MARKER).is_file():
            raise RetargetError(
                f"{path}: this folder has files that retarget did not make", "give an empty or a new folder with -o"
            )
        with _disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            if not (path / MARKER).exists():
                self.write(MARKER, "This folder is written by `retarget build`; the next one replaces its artifacts.\n")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this is open, no other build changes the folder: what is in it is of one build."""
        with ExitStack() as owned:
            with _disk_errors(self.path):
                held = os.open(self.path / MARKER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                owned.callback(os.close, held)
                fcntl.flock(held, fcntl.LOCK_EX)
            for left_by_the_dead in (".new-*", ".old-*"):
                self.remove(left_by_the_dead)
            yield

    def place(self, artifact: Artifact, name: str) -> None:
        """Put a copy of ``artifact`` at ``<target>/<variant>``, unless it is there already."""
        destination = self.path / name
        if _key(destination) == artifact.key and _same_sizes(artifact.path, destination):
            return
        with _disk_errors(destination), self._staged() as staged:
            for source in sorted(artifact.path.rglob("*")):
                if source == artifact.path / LOG:
                    continue  # of the machine that built it, and not among what the manifest vouches for
                copy = staged / source.relative_to(artifact.path)
                if source.is_dir():
                    copy.mkdir()
                else:
                    clone_file(source, copy)
            up = "/".join(".." for _ in Path(name).parts)
            script = staged / "REPRODUCE.sh"
            script.write_text(REPRODUCE.format(up=up, only=name))
            script.chmod(0o755)
            destination.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".old-", dir=self.path) as old:
                if destination.exists():
                    destination.rename(Path(old) / "artifact")
                staged.rename(destination)

    def place_file(self, source: Path, name: str) -> None:
        """Put a copy of one file at ``name``."""
        destination = self.path / name
        with _disk_errors(destination), self._staged() as staged:
            clone_file(source, staged / destination.name)
            destination.parent.mkdir(parents=True, exist_ok=True)
            (staged / destination.name).replace(destination)

    def write(self, name: str, text: str) -> None:
        """Write one text file whole or not at all."""
        with _disk_errors(self.path / name), self._staged() as staged:
            (staged / name).write_text(text, encoding="utf-8")
            (staged / name).replace(self.path / name)

    def remove(self, pattern: str) -> None:
        """Take away what an earlier build left at ``pattern``: it would pass for the work of this one."""
        with _disk_errors(self.path):
            for path in self.path.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        staged = Path(tempfile.mkdtemp(prefix=".new-", dir=self.path))
        staged.chmod(0o755)
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def clone_file(source: Path, copy: Path) -> None:
    """A writable copy of ``source`` that shares its blocks where the file system can (a reflink)."""
    with source.open("rb") as reader, copy.open("wb") as writer:
        if not _reflink(reader.fileno(), writer.fileno()):
            shutil.copyfileobj(reader, writer, 1 << 20)


def _reflink(source: int, copy: int) -> bool:
    if sys.platform != "linux":
        return False
    ficlone = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
    try:
        fcntl.ioctl(copy, ficlone, source)
    except OSError:
        return False  # this file system has no reflinks, or the two files are on different ones
    return True


def _key(folder: Path) -> str | None:
    try:
        key = json.loads((folder / "manifest.json").read_text()).get("key")
    except (OSError, ValueError):
        return None
    return key if isinstance(key, str) else None


def _same_sizes(one: Path, other: Path) -> bool:
    return all(
        (other / file.relative_to(one)).is_file()
        and (other / file.relative_to(one)).stat().st_size == file.stat().st_size
        for file in one.rglob("*")
        if file.is_file() and file != one / LOG
    )


@contextmanager
def _disk_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        raise RetargetError(
            f"{place}: cannot be written: {what}", "give another folder with -o, or free some space"
        ) from error

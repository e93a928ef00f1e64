"""The folder that a build leaves: each artifact is swapped in by a rename, so a reader never sees half of one."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
            self.write(
                MARKER, "This folder is written by `retarget build`; its artifacts are replaced by the next one.\n"
            )

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
        with _disk_errors(self.path / name), self._staged() as staged:
            clone_file(source, staged / name)
            (staged / name).replace(self.path / name)

    def write(self, name: str, text: str) -> None:
        """Write one text file whole or not at all."""
        with _disk_errors(self.path / name), self._staged() as staged:
            (staged / name).write_text(text, encoding="utf-8")
            (staged / name).replace(self.path / name)

    def remove(self, name: str) -> None:
        """Take away an artifact of an earlier build that this build could not make: it would pass for a new one."""
        destination = self.path / name
        if destination.is_dir():
            shutil.rmtree(destination)

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
    import fcntl

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

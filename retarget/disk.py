"""Files and folders as the store needs them: locked by who uses them, and on the disk before they have their name."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def hold(path: Path) -> int:
    """Open and lock ``path``. Nobody else can have it: it is new, or the caller holds the store's lock alone."""
    held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
    except OSError:
        os.close(held)
        raise
    return held


def try_hold(path: Path) -> int | None:
    """Open and lock ``path``; None if its owner lives, or it is gone."""
    try:
        held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    return held


def plain_files(folder: Path) -> Iterator[Path]:
    """All files below ``folder``. Raises ``ValueError`` for a link or anything else that is not a plain file."""
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            mode = Path(parent, name).lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ValueError(f"{PurePosixPath(parent, name)}: not a plain file")
        yield from (Path(parent, name) for name in names)


def remove(path: Path) -> None:
    """Remove a file or folder, which a process that was killed in ours may be removing too."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(held)
    finally:
        os.close(held)


def ends_of(log: Path, limit: int) -> bytes:
    """The content of ``log``; of a longer one its first and its last half of ``limit`` bytes; nothing if it is not."""
    try:
        with log.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= limit:
                return file.read()
            head = file.read(limit // 2)
            file.seek(-(limit // 2), os.SEEK_END)
            return head + f"\n[{size - limit} bytes left out]\n".encode() + file.read()
    except FileNotFoundError:
        return b""

"""The files of a folder, for all who digest or read one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def files_below(folder: Path, *, leave_out: Callable[[str], bool]) -> Iterator[Path]:
    """All files below ``folder``, linked folders included, each folder once; not below what ``leave_out`` names."""
    visited = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not leave_out(name))
        yield from (Path(parent, name) for name in files)

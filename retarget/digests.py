"""SHA-256 of files and folders, remembered by what ``stat`` says of them."""

from __future__ import annotations

import hashlib
import sqlite3
import stat
import threading
import time
from pathlib import Path
from typing import TypeAlias

from retarget.errors import RetargetError
from retarget.walk import files_below

Fingerprint: TypeAlias = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime in ns."""

RACY_NS = 2_000_000_000
"""A file changed so recently may change again within one tick of its file system's clock, unseen by ``stat``."""

COMPILED = "__pycache__"
"""What Python compiles out of the files of a folder: it says nothing that they do not."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS digests (
    device INTEGER, inode INTEGER, size INTEGER, mtime INTEGER, ctime INTEGER, sha256 TEXT NOT NULL,
    PRIMARY KEY (device, inode)
) WITHOUT ROWID
"""


def file_digest(path: Path) -> str:
    """SHA-256 of the content of ``path``, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """A memo of digests in the database file ``path``, shared by processes and threads.

    ctime is part of the memory, so that content changed under a restored mtime is seen.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def digest(self, path: Path) -> str:
        """SHA-256 of a file's content, or of a folder's sorted ``digest  relative/path`` lines.

        Raises ``RetargetError`` where there is nothing that can be read.
        """
        try:
            if not path.is_dir():
                return self._files([path])[0]
            below = files_below(path, leave_out=lambda name: name == COMPILED)
            files = sorted(below, key=lambda file: file.as_posix())
            lines = [
                f"{digest}  {file.relative_to(path).as_posix()}\n"
                for file, digest in zip(files, self._files(files), strict=True)
            ]
        except FileNotFoundError as error:
            raise RetargetError(f"{error.filename}: no such file or folder") from error
        except PermissionError as error:
            raise RetargetError(f"{error.filename}: may not be read") from error
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _files(self, paths: list[Path]) -> list[str]:
        digests = []
        learned: list[tuple[int | str, ...]] = []
        for path in paths:
            seen = _fingerprint(path)
            digest = self._recall(seen)
            while digest is None:
                digest = file_digest(path)
                # Written to while it was read: what was hashed is neither the old content nor the new.
                if (after := _fingerprint(path)) != seen:
                    seen, digest = after, None
                elif time.time_ns() - max(seen[3:]) > RACY_NS:
                    learned.append((*seen, digest))
            digests.append(digest)
        if learned:
            with self._lock:
                self._execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)", learned)
        return digests

    def _recall(self, seen: Fingerprint) -> str | None:
        query = "SELECT sha256 FROM digests WHERE device=? AND inode=? AND size=? AND mtime=? AND ctime=?"
        with self._lock:
            row = self._execute(query, [seen])
        return None if row is None else str(row[0])

    def _execute(self, statement: str, rows: list[tuple[int | str, ...]] | list[Fingerprint]) -> tuple[str] | None:
        """Run ``statement`` for each row, in one transaction; the last result. A broken memo starts anew."""
        for attempt in range(2):
            try:
                if self._connection is None:
                    self._connection = sqlite3.connect(self._path, timeout=60, check_same_thread=False)
                    self._connection.execute(_SCHEMA)
                with self._connection:
                    for row in rows:
                        result: tuple[str] | None = self._connection.execute(statement, row).fetchone()
                return result
            except sqlite3.OperationalError as error:
                raise RetargetError(
                    f"{self._path}: {error}", "free some space, or choose another place with --store DIR"
                ) from error
            except sqlite3.DatabaseError:
                # Damaged: it is only a memory of what can be computed again.
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                if attempt:
                    raise
                self._path.unlink(missing_ok=True)
        raise AssertionError("unreachable")


def _fingerprint(path: Path) -> Fingerprint:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise RetargetError(f"{path}: neither a file nor a folder")
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

"""The store: key → artifact, on disk, shared by any number of builds.

```
objects/ab/abcd…/    an artifact: the step's files, manifest.json, log.txt
staging/             folders being written; each is locked by the process that owns it
scratch/<key>/       what a step that failed or was killed goes on from; locked by the build that runs it
leases/              what running builds use; each file is locked by its build
logs/<key>.txt       output of the last failed run of a step
digests.sqlite       memo of the digests of the user's files
lock                 held shared while something is given its own lock, alone while the dead are looked for
```

An artifact appears by one rename, after all of it is on the disk, so a process may be killed at any moment. Who is
alive is told by file locks, which the kernel drops with their process: neither a reused process id nor another
container on the same volume can deceive them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from retarget.digests import Digests, file_digest
from retarget.disk import ends_of, hold, plain_files, remove, sync, try_hold
from retarget.errors import RetargetError
from retarget.facts import Fact
from retarget.protocols import Artifact, Step

MANIFEST = "manifest.json"
LOG = "log.txt"
LOG_BYTES = 1 << 20
"""A longer log keeps its first and its last half of this."""
LOG_DAYS = 30
"""`gc` removes logs of failed steps that are older."""

SPACE_BYTES = 1 << 16
"""With less than this free, a failure is taken to come of a full disk."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY}

F = TypeVar("F", bound=Fact)


class StoreError(RetargetError):
    """The store's disk is full, read only or broken: nothing can be built until that is mended."""


class Damaged(RetargetError):
    """An artifact that is not what its manifest says."""

    def __init__(self, message: str, hint: str | None = "build it again: `retarget build` replaces it") -> None:
        super().__init__(message, hint)


# ---- manifests


class FileEntry(msgspec.Struct, frozen=True):
    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``manifest.json``: what an artifact is."""

    schema: int
    key: str
    kind: str
    id: str
    versions: dict[str, str]
    """Distribution to version, of all that the step imported."""
    files: dict[str, FileEntry]
    """Relative path to what it must be. The log is not among them."""
    facts: dict[str, object]
    log: str | None = None
    code: dict[str, str] = {}
    """The user's own files that the step imported, with digests; relative to the step's ``code_root``, or absolute."""
    sha256: str = ""
    """Of this manifest without this field, as compact JSON."""

    def facts_as(self, kind: type[F]) -> F:
        """The facts as ``kind``. JSON has no NaN and no infinity: ``nan``, ``inf`` and ``-inf`` are strings."""
        return msgspec.convert(self.facts, kind, strict=False)

    def sealed(self) -> Manifest:
        """The same with its ``sha256`` filled in."""
        unsealed = msgspec.structs.replace(self, sha256="")
        return msgspec.structs.replace(self, sha256=hashlib.sha256(msgspec.json.encode(unsealed)).hexdigest())

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self.files.values())


def read_manifest(folder: Path) -> Manifest:
    """The manifest in an artifact's folder, in the store or in a build folder. Raises ``Damaged``."""
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{folder}: no {MANIFEST}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{folder / MANIFEST}: {error}") from error
    if manifest.sealed() != manifest:
        raise Damaged(f"{folder / MANIFEST}: was changed after it was written")
    return manifest


def check_files(folder: Path, manifest: Manifest, *, digests: bool) -> None:
    """Hold the files in ``folder`` against ``manifest``: that they are there, their sizes, and on demand their digests.

    Raises ``Damaged``.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Damaged(f"{path}: is missing") from error
        if size != entry.bytes:
            raise Damaged(f"{path}: has {size} bytes, not {entry.bytes}")
        if digests and file_digest(path) != entry.sha256:
            raise Damaged(f"{path}: its content was changed")
    if digests:
        known = {MANIFEST, manifest.log, *manifest.files}
        for path in plain_files(folder):
            if path.relative_to(folder).as_posix() not in known:
                raise Damaged(f"{path}: does not belong there")


# ---- the store


@dataclass(frozen=True)
class Staging:
    """A folder in the store where a step works; it vanishes if it is not committed."""

    folder: Path

    @property
    def out(self) -> Path:
        """Where the step writes its files."""
        return self.folder / "out"

    @property
    def temporary(self) -> Path:
        """Where its temporary files go: they end with the folder, however the step ends."""
        return self.folder / "tmp"

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder / LOG


@dataclass(frozen=True)
class Entry:
    """An artifact as `cache ls` shows it. ``used``: seconds since the epoch."""

    key: str
    kind: str
    id: str
    bytes: int
    used: float
    leased: bool


@dataclass(frozen=True)
class Damage:
    """An artifact that ``verify`` removed, and what was wrong with it."""

    key: str
    reason: str


class Store:
    """Artifacts by key below the folder ``root``. Every method raises ``StoreError`` when the disk fails."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self._objects = self.root / "objects"
        self._staging = self.root / "staging"
        self._scratch = self.root / "scratch"
        self._leases = self.root / "leases"
        self._logs = self.root / "logs"
        with self._disk():
            for folder in (self._objects, self._staging, self._scratch, self._leases, self._logs):
                folder.mkdir(parents=True, exist_ok=True)
        self._digests = Digests(self.root / "digests.sqlite")

    def digest(self, path: Path) -> str:
        """SHA-256 of the user's file or folder ``path``, remembered while ``stat`` says that it is the same."""
        return self._digests.digest(path)

    def close(self) -> None:
        """Close the memo of digests. Artifacts need no closing."""
        self._digests.close()

    # -- reading

    def get(self, key: str) -> Artifact | None:
        """The artifact of ``key`` if it is there; cheap: its manifest and the sizes of its files are looked at."""
        return None if self._manifest(key) is None else Artifact(key, self._path(key))

    def verified(self, key: str) -> Artifact:
        """The artifact of ``key``, all digests checked. A damaged one is removed, and ``Damaged`` raised."""
        path = self._path(key)
        with self._disk():
            try:
                identity = path.stat().st_ino
            except FileNotFoundError as error:
                raise Damaged(f"{path}: is missing") from error
            try:
                check_files(path, read_manifest(path), digests=True)
            except Damaged:
                self._discard(path, identity)
                raise
        return Artifact(key, path)

    def resolve(self, key: str, code_root: Path) -> str:
        """The key of a step that imports the user's own code, from its key without that code.

        Which files it imports is known only after it ran, and stands in its artifact's manifest. So an artifact counts
        for as long as those files are what they were; when they are not, their present digests make the next key,
        whose artifact is looked at in turn.
        """
        while True:
            manifest = self._manifest(key)
            code = {} if manifest is None else manifest.code
            now = {name: self._code_digest(code_root / name) for name in code}
            if now == code:
                return key
            key = hashlib.sha256(json.dumps([key, now], sort_keys=True).encode()).hexdigest()

    def _manifest(self, key: str) -> Manifest | None:
        """The manifest of an artifact that has all its files."""
        path = self._path(key)
        with self._disk():
            try:
                manifest = read_manifest(path)
                check_files(path, manifest, digests=False)
            except Damaged:
                # As good as absent: `commit` puts a whole one in its place.
                return None
        return manifest

    def entries(self) -> tuple[Entry, ...]:
        """All artifacts, the one that was used longest ago first. Damaged ones are left to ``verify``."""
        with self._disk(), self._lock(fcntl.LOCK_EX):
            leased = self._leased()
        found = []
        for path in self._artifacts():
            try:
                manifest = read_manifest(path)
                used = path.stat().st_mtime
            except (Damaged, FileNotFoundError):
                continue
            found.append(Entry(path.name, manifest.kind, manifest.id, manifest.bytes, used, path.name in leased))
        return tuple(sorted(found, key=lambda entry: entry.used))

    # -- writing

    @contextlib.contextmanager
    def stage(self) -> Iterator[Staging]:
        """A folder to work in, on the file system of the artifacts; removed at the end."""
        with contextlib.ExitStack() as owned:
            with self._disk():
                with self._lock(fcntl.LOCK_SH):
                    folder = self._staging / f"{os.getpid()}-{secrets.token_hex(6)}"
                    folder.mkdir()
                    owned.callback(os.close, hold(folder))
                    owned.callback(remove, folder)
                staging = Staging(folder)
                staging.out.mkdir()
                staging.temporary.mkdir()
            yield staging

    @contextlib.contextmanager
    def scratch(self, key: str) -> Iterator[Path | None]:
        """A folder that stays when the step of ``key`` fails or is killed, until its artifact is there or ``gc`` runs.

        None when another build is at the same step: it has the folder.
        """
        folder = self._scratch / key
        with self._disk(), self._lock(fcntl.LOCK_SH):
            folder.mkdir(exist_ok=True)
            held = try_hold(folder)
        if held is None:
            yield None
            return
        with contextlib.ExitStack() as owned:
            owned.callback(os.close, held)
            yield folder
            if self.get(key) is not None:
                remove(folder)
            else:
                # Most steps leave nothing in it, and then it goes.
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def commit(
        self,
        staging: Staging,
        step: Step,
        *,
        facts: Mapping[str, object],
        versions: Mapping[str, str],
        code: Mapping[str, str],
    ) -> Artifact:
        """Make what is in ``staging.out`` the artifact of ``step``; when another build was faster, its artifact stands.

        Everything is on the disk before the artifact has its name. Files become read-only.
        """
        out = staging.out
        with self._disk():
            files = {}
            for path in sorted(plain_files(out)):
                name = path.relative_to(out).as_posix()
                if name in (MANIFEST, LOG):
                    raise ValueError(f"step '{step.id}' wrote {name}, which the store writes itself")
                files[name] = FileEntry(file_digest(path), path.stat().st_size)
            log = ends_of(staging.log, LOG_BYTES)
            if log:
                (out / LOG).write_bytes(log)
            manifest = Manifest(
                schema=1,
                key=step.key,
                kind=step.kind,
                id=step.id,
                versions=dict(sorted(versions.items())),
                files=files,
                facts=dict(facts),
                log=LOG if log else None,
                code=dict(sorted(code.items())),
            ).sealed()
            (out / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
            for path in plain_files(out):
                path.chmod(0o444)
                sync(path)
            for parent, _, _ in os.walk(out):
                sync(Path(parent))
            self._publish(out, step.key)
            (self._logs / f"{step.key}.txt").unlink(missing_ok=True)
        return Artifact(step.key, self._path(step.key))

    def keep_log(self, staging: Staging, key: str) -> Path:
        """Keep a failed step's log where a person finds it."""
        path = self._logs / f"{key}.txt"
        with self._disk():
            temporary = staging.folder / "kept.txt"
            temporary.write_bytes(ends_of(staging.log, LOG_BYTES))
            temporary.replace(path)
        return path

    def check_space(self, symptom: str) -> None:
        """Raise ``StoreError`` if the disk is full, which libraries report as ``symptom`` or die of."""
        with self._disk():
            if shutil.disk_usage(self.root).free < SPACE_BYTES:
                raise StoreError(*_full(self.root, f"{os.strerror(errno.ENOSPC)} ({symptom})"))

    # -- leases and collection

    @contextlib.contextmanager
    def lease(self, keys: Iterable[str]) -> Iterator[None]:
        """While this is open, ``gc`` leaves the artifacts of ``keys`` alone. They count as used now."""
        wanted = sorted(set(keys))
        with contextlib.ExitStack() as owned:
            with self._disk():
                self.sweep()
                with self._lock(fcntl.LOCK_SH):
                    path = self._leases / f"{os.getpid()}-{secrets.token_hex(6)}.json"
                    path.touch(exist_ok=False)
                    owned.callback(os.close, hold(path))
                    owned.callback(remove, path)
                    path.write_text(json.dumps({"pid": os.getpid(), "since": time.time(), "keys": wanted}))
                    for key in wanted:
                        with contextlib.suppress(FileNotFoundError):
                            os.utime(self._path(key))
            yield

    def gc(self, max_bytes: int) -> tuple[Entry, ...]:
        """Remove artifacts, longest unused first, until all take at most ``max_bytes``. Leased ones stay.

        Returns the removed. Those without a readable manifest go in any case, and the scratch of steps that do not run.
        """
        with self._disk():
            self.sweep()
            self._clear_scratch()
            oldest = time.time() - LOG_DAYS * 86400
            for log in self._logs.iterdir():
                if log.stat().st_mtime < oldest:
                    log.unlink()
            for path in self._artifacts():
                try:
                    read_manifest(path)
                except Damaged:
                    self._discard(path, unleased=True)
        entries = self.entries()
        total = sum(entry.bytes for entry in entries)
        removed = []
        for entry in entries:
            if total <= max_bytes:
                break
            with self._disk():
                gone = self._discard(self._path(entry.key), unleased=True)
            if gone:
                total -= entry.bytes
                removed.append(entry)
        return tuple(removed)

    def verify(self) -> tuple[Damage, ...]:
        """Check every digest in the store. Damaged artifacts are removed, so that the next build makes them again."""
        damage = []
        for path in self._artifacts():
            try:
                self.verified(path.name)
            except Damaged as error:
                damage.append(Damage(path.name, error.message))
        return tuple(damage)

    def sweep(self) -> None:
        """Remove what killed processes left behind."""
        dead: list[tuple[Path, int]] = []
        with self._disk():
            with self._lock(fcntl.LOCK_EX):
                for path in (*self._staging.iterdir(), *self._leases.iterdir()):
                    held = try_hold(path)
                    if held is not None:
                        dead.append((path, held))
            for path, held in dead:
                remove(path)
                os.close(held)

    # -- inside

    def _path(self, key: str) -> Path:
        return self._objects / key[:2] / key

    def _artifacts(self) -> list[Path]:
        with self._disk():
            return sorted(path for path in self._objects.glob("*/*") if path.is_dir())

    def _code_digest(self, path: Path) -> str:
        try:
            return self.digest(path)
        except RetargetError:
            return "missing"

    def _publish(self, out: Path, key: str) -> None:
        path = self._path(key)
        if not path.parent.exists():
            path.parent.mkdir(exist_ok=True)
            sync(self._objects)
        while True:
            try:
                out.rename(path)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                if self.get(key) is not None:
                    return
                with contextlib.suppress(FileNotFoundError):
                    self._discard(path, path.stat().st_ino)
            else:
                sync(path.parent)
                return

    def _clear_scratch(self) -> None:
        with self._lock(fcntl.LOCK_EX):
            leased = self._leased()
            for folder in self._scratch.iterdir():
                if folder.name not in leased and (held := try_hold(folder)) is not None:
                    remove(folder)
                    os.close(held)

    def _discard(self, path: Path, identity: int | None = None, *, unleased: bool = False) -> bool:
        """Remove an artifact at once for all readers, unless it is no longer the folder with inode ``identity``."""
        with self._lock(fcntl.LOCK_EX):
            if unleased and path.name in self._leased():
                return False
            try:
                held = hold(path)
            except FileNotFoundError:
                return False
            if identity is not None and os.fstat(held).st_ino != identity:
                os.close(held)
                return False
            grave = self._staging / f"{os.getpid()}-{secrets.token_hex(6)}"
            path.rename(grave)
        remove(grave)
        os.close(held)
        return True

    def _leased(self) -> set[str]:
        """Keys that running builds use. The caller holds the store's lock alone."""
        keys: set[str] = set()
        for path in self._leases.iterdir():
            held = try_hold(path)
            if held is None:
                # Gone, or not whole because the disk is full: then its build does not begin.
                with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                    keys.update(json.loads(path.read_text())["keys"])
            else:
                os.close(held)
        return keys

    @contextlib.contextmanager
    def _lock(self, mode: int) -> Iterator[None]:
        held = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(held, mode)
            yield
        finally:
            os.close(held)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk_error(self.root, error) from error


def disk_error(root: Path, error: OSError) -> StoreError:
    """What to tell a person of an ``error`` in the store at ``root``."""
    if error.errno in _FULL:
        return StoreError(*_full(root, os.strerror(error.errno or 0)))
    if error.errno in _FORBIDDEN:
        return StoreError(
            f"store {root}: cannot be written: {os.strerror(error.errno or 0)}", "choose another place with --store DIR"
        )
    return StoreError(f"store {root}: {error}", "choose another place with --store DIR")


def _full(root: Path, what: str) -> tuple[str, str]:
    return f"store {root}: {what}", "free some with `retarget cache gc`, or choose another place with --store DIR"


def default_root(option: Path | None, configured: Path | None) -> Path:
    """Where the store is: ``option``, else what the user ``configured``, else the platform's cache folder."""
    import platformdirs

    return option or configured or platformdirs.user_cache_path("retarget")

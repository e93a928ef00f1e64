"""Arrays where they lie: members of an ``.npz``, ``.npy`` files, what a function yields. Read a slice at a time."""

from __future__ import annotations

import math
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from retarget.calibration.folders import natural
from retarget.errors import RetargetError
from retarget.user_code import blame, load_function

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from retarget.protocols import Array

    Item: TypeAlias = dict[str, Array]
    """Name to array of one sample."""

_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_LOCAL_HEADER = 30


class ArrayFile(Protocol):
    """An array on disk."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    def read(self, start: int, stop: int) -> Array:
        """A copy of rows ``start`` to ``stop`` of the first axis."""

    def read_all(self) -> Array:
        """All of it."""


def open_npz(path: Path) -> dict[str, ArrayFile]:
    """The arrays of an ``.npz`` by name. Raises ``RetargetError`` for a damaged file and for Python objects."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            return {
                member.filename.removesuffix(".npy"): _member(path, archive, file, member)
                for member in archive.infolist()
                if member.filename.endswith(".npy")
            }
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _member(path: Path, archive: zipfile.ZipFile, file: IO[bytes], member: zipfile.ZipInfo) -> ArrayFile:
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as stream:
        shape, fortran, dtype = _header(stream)
        offset = stream.tell()
    if dtype.hasobject:
        raise RetargetError(
            f"{path}: array '{name}' holds Python objects, which run code when they are loaded",
            "save it with a numeric dtype",
        )
    size = math.prod(shape) * dtype.itemsize
    if member.compress_type == zipfile.ZIP_STORED and size:
        # The local header's name and extra field may differ in length from those of the central directory.
        file.seek(member.header_offset)
        local = file.read(_LOCAL_HEADER)
        start = member.header_offset + _LOCAL_HEADER + int.from_bytes(local[26:28], "little")
        start += int.from_bytes(local[28:30], "little") + offset
        if start + size > path.stat().st_size:
            raise RetargetError(f"{path}: array '{name}' is cut short", "copy the file again")
        return _Mapped(path, start, shape, dtype, fortran)
    return _Streamed(path, member.filename, shape, dtype, fortran)


class _Mapped:
    def __init__(
        self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[np.generic], fortran: bool
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._path, self._offset, self._fortran = path, offset, fortran

    def read(self, start: int, stop: int) -> Array:
        return np.array(self._map()[start:stop])

    def read_all(self) -> Array:
        return np.array(self._map()).reshape(self.shape)

    def _map(self) -> Array:
        # Mapped anew each time: pages of a lasting mapping would pile up in the process's resident memory.
        order: Literal["F", "C"] = "F" if self._fortran else "C"
        return np.memmap(
            self._path, dtype=self.dtype, mode="r", offset=self._offset, shape=self.shape or (1,), order=order
        )


class _Streamed:
    """A compressed member: rows are decompressed in order, and again from the start when they are asked for twice."""

    def __init__(
        self, path: Path, member: str, shape: tuple[int, ...], dtype: np.dtype[np.generic], fortran: bool
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._path, self._member, self._fortran = path, member, fortran
        self._stream: IO[bytes] | None = None
        self._row = 0

    def read(self, start: int, stop: int) -> Array:
        if self._fortran:
            # Its first axis is the fastest one: a row is spread over the whole member.
            return self.read_all()[start:stop].copy()
        try:
            return self._rows(start, stop)
        except _DAMAGED as error:
            raise _damaged(self._path, error) from error

    def _rows(self, start: int, stop: int) -> Array:
        if self._stream is None or start < self._row:
            self._close()
            self._stream = self._open()
            self._row = 0
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        while self._row < start:
            rows = min(start - self._row, max(1, (1 << 20) // max(row, 1)))
            self._exactly(rows * row)
            self._row += rows
        data = self._exactly((stop - start) * row)
        self._row = stop
        if stop == self.shape[0]:
            # Reading the end lets zipfile hold the checksum against the data.
            self._stream.read()
            self._close()
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:]).copy()

    def read_all(self) -> Array:
        try:
            with self._open() as stream:
                data = np.frombuffer(stream.read(), self.dtype)
                return data.reshape(self.shape, order="F" if self._fortran else "C").copy()
        except _DAMAGED as error:
            raise _damaged(self._path, error) from error

    def _open(self) -> IO[bytes]:
        with zipfile.ZipFile(self._path) as archive:
            # A member keeps the archive's file open by itself.
            stream = archive.open(self._member)
        _header(stream)
        return stream

    def _exactly(self, size: int) -> bytes:
        assert self._stream is not None
        data = self._stream.read(size)
        if len(data) != size:
            raise EOFError(f"array '{self._member.removesuffix('.npy')}' is cut short")
        return data

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __del__(self) -> None:
        self._close()


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape: tuple[int, ...]
    shape, fortran, dtype = read(stream)
    return shape, fortran, dtype


def _damaged(path: Path, error: Exception) -> RetargetError:
    return RetargetError(f"{path}: not a readable array file ({' '.join(str(error).split())})", "write it again")


# ---- one file or one dict a sample


def folder_names(path: Path, names: Sequence[str]) -> list[str]:
    """The samples of a folder, in the order of their numbers: names of the files that each of ``names`` must have."""
    stems: list[str] | None = None
    for name in names:
        folder = path / name
        if not folder.is_dir():
            raise RetargetError(f"{path}: no folder '{name}'", f"save its samples as {folder}/0000.npy, 0001.npy …")
        found = sorted((file.stem for file in folder.glob("*.npy")), key=natural)
        if not found:
            raise RetargetError(f"{folder}: no .npy files", "save each sample as 0000.npy, 0001.npy …")
        if stems is not None and stems != found:
            odd = sorted(set(stems) ^ set(found), key=natural)[0]
            raise RetargetError(f"{path}: sample '{odd}.npy' is not there for all of {', '.join(names)}")
        stems = found
    return stems or []


def folder_items(path: Path, names: Sequence[str], stems: Sequence[str]) -> Iterator[Item]:
    """Each sample of a folder."""
    for stem in stems:
        yield {name: _load(path / name / f"{stem}.npy") for name in names}


def function_items(path: Path, function: str, names: Sequence[str], extra: Sequence[str]) -> Iterator[Item]:
    """What ``function`` of file ``path`` yields. Raises ``RetargetError`` with its place when it raises."""
    call = load_function(path, function)
    try:
        samples = iter(call())  # type: ignore[call-overload]
    except Exception as error:
        raise blame(path, f"{function}()", error) from error
    wanted = (*names, *extra)
    for index in range(1 << 62):
        try:
            sample = next(samples)
        except StopIteration:
            return
        except Exception as error:
            raise blame(path, f"{function}(), sample {index},", error) from error
        yield _item(f"{path}: {function}(), sample {index}", sample, wanted)


def _item(place: str, sample: Mapping[str, Array] | object, wanted: Sequence[str]) -> Item:
    if not isinstance(sample, dict):
        raise RetargetError(
            f"{place} is a {type(sample).__name__}", f"yield dicts from name to array: {', '.join(wanted)}"
        )
    missing = [name for name in wanted if name not in sample]
    if missing:
        found = ", ".join(map(str, sample)) or "nothing"
        raise RetargetError(f"{place} has no '{missing[0]}', only {found}")
    arrays = {name: np.asarray(sample[name]) for name in wanted}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise RetargetError(f"{place}: '{name}' is not a numeric array")
    return arrays


def _load(path: Path) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    return array

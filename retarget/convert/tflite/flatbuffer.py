"""A reader of flatbuffers that believes nothing: every offset is held against the file before it is followed.

The generated classes of TensorFlow, tf2onnx and the interpreter follow any offset, and the interpreter reads memory
that is not the file's. ``Table`` raises ``RetargetError`` instead. Syntax and library of Python 3.8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import mmap
from typing import Union

from retarget.errors import DAMAGED, RetargetError

Content = Union[bytes, mmap]


class Buffer:
    """The bytes of a flatbuffer. ``place`` names it in errors."""

    def __init__(self, data: Content, place: str) -> None:
        self.data = data
        self.place = place
        # Many offsets may lead to the same string or vector: without a bound, a small file is as large as one likes.
        self._budget = 8 * len(data) + 4096

    def root(self) -> Table:
        """The table that the file begins with."""
        return Table(self, self.number("<I", 0))

    def number(self, kind: str, at: int) -> int:
        """The number at byte ``at``, of a ``struct`` format. Raises ``RetargetError`` outside of the file."""
        self.hold(at, struct.calcsize(kind))
        return int(struct.unpack_from(kind, self.data, at)[0])

    def hold(self, at: int, size: int) -> None:
        """Raise ``RetargetError`` where the ``size`` bytes at ``at`` are not all in the file."""
        if at < 0 or size < 0 or at + size > len(self.data):
            raise self.damaged(f"refers to bytes {at} to {at + size} of {len(self.data)}")

    def spend(self, size: int) -> None:
        """Count ``size`` bytes that are read. Raises ``RetargetError`` when it is far more than the file has."""
        self._budget -= size
        if self._budget < 0:
            raise self.damaged("refers to the same bytes again and again")

    def damaged(self, what: str) -> RetargetError:
        """The error that says ``what`` is wrong with the file."""
        return RetargetError(f"{self.place}: not a readable TFLite model: it {what}", DAMAGED)


class Table:
    """A table of a flatbuffer; fields are asked for by their number in the schema."""

    def __init__(self, buffer: Buffer, at: int) -> None:
        self._buffer = buffer
        self._at = at
        buffer.spend(4)
        self._fields = at - buffer.number("<i", at)
        self._fields_size = buffer.number("<H", self._fields)
        buffer.hold(self._fields, self._fields_size)
        self._size = buffer.number("<H", self._fields + 2)
        buffer.hold(at, self._size)
        for entry in range(4, self._fields_size - 1, 2):
            if buffer.number("<H", self._fields + entry) >= max(self._size, 1):
                raise buffer.damaged(f"has a table at byte {at} with a field beyond its end")

    def number(self, field: int, kind: str, default: int = 0) -> int:
        """A scalar field."""
        at = self._where(field)
        return default if at is None else self._buffer.number(kind, at)

    def table(self, field: int) -> Table | None:
        """A field that is a table."""
        at = self._where(field)
        return None if at is None else Table(self._buffer, at + self._buffer.number("<I", at))

    def tables(self, field: int) -> Iterator[Table]:
        """The tables of a vector of them."""
        start, count = self._vector(field, 4)
        for at in range(start, start + 4 * count, 4):
            yield Table(self._buffer, at + self._buffer.number("<I", at))

    def numbers(self, field: int, kind: str) -> tuple[int, ...]:
        """The numbers of a vector, of a ``struct`` format such as ``<i``."""
        size = struct.calcsize(kind)
        start, count = self._vector(field, size)
        self._buffer.spend(size * count)
        return struct.unpack_from(f"<{count}{kind[-1]}", self._buffer.data, start)

    def text(self, field: int) -> str:
        """A string; empty where the field is absent."""
        start, count = self._vector(field, 1)
        self._buffer.spend(count)
        if count and self._buffer.number("<B", start + count):
            raise self._buffer.damaged(f"has a string at byte {start} without an end")
        return self._buffer.data[start : start + count].decode("utf-8", "replace")

    def length(self, field: int, size: int) -> int | None:
        """How many elements of ``size`` bytes a vector has, all of them in the file; None where it is absent."""
        return None if self._where(field) is None else self._vector(field, size)[1]

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        at = self._where(field)
        if at is None:
            return 0, 0
        start = at + self._buffer.number("<I", at)
        count = self._buffer.number("<I", start)
        self._buffer.hold(start + 4, count * size)
        return start + 4, count

    def _where(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry + 2 > self._fields_size:
            return None
        offset = self._buffer.number("<H", self._fields + entry)
        return self._at + offset if offset else None

"""Protobuf's wire format without a schema: for a look at a file's head, and for reading all of it.

Standard library alone, Python 3.8: this serves in the user's own interpreter too (`retarget.worker_remote`).
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Union

Buffer = Union[bytes, mmap.mmap]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """What stands at a place of the file is not the wire format."""


class Field(NamedTuple):
    """A field that lies in the buffer from ``start`` to ``end``, its tag and length aside."""

    number: int
    wire: int
    start: int
    end: int
    value: int
    """Of a varint; 0 for others."""


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[Buffer]:
    """The content of ``path``, of which only what is looked at is read."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            yield b""
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                yield content


def fields(buffer: Buffer, start: int, end: int, *, cut: bool = False) -> Iterator[Field]:
    """The fields of the message between ``start`` and ``end``.

    Raises ``WireError`` where one would not fit in; with ``cut`` the last one may reach beyond ``end``, as in a file
    that was cut short.
    """
    at = start
    while at < end:
        tag, content = varint(buffer, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise WireError(f"a field of number 0 at byte {at:,}")
        value = 0
        if wire == VARINT:
            value, stop = varint(buffer, content, end)
        elif wire == LENGTH:
            length, content = varint(buffer, content, end)
            stop = content + length
        elif wire in (FIXED32, FIXED64):
            stop = content + (4 if wire == FIXED32 else 8)
        else:
            raise WireError(f"a field of unknown wire type {wire} at byte {at:,}")
        if stop > end and not cut:
            raise WireError(
                f"field {number} at byte {at:,} says {stop - content:,} bytes, and {end - content:,} follow"
            )
        yield Field(number, wire, content, stop, value)
        at = stop


def varint(buffer: Buffer, at: int, end: int) -> tuple[int, int]:
    """The number at ``at``, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise WireError(f"the data ends within a number at byte {at:,}")
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise WireError(f"a number of more than 10 bytes before byte {at:,}")


def signed(value: int) -> int:
    """An int64 as a varint carries it."""
    return value - (1 << 64) if value >> 63 else value

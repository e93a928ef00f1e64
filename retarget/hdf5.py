"""HDF5 without a library: whether a file is one, and what lies at its root."""

from __future__ import annotations

import struct
from pathlib import Path

from retarget.protobuf import mapped

MAGIC = b"\x89HDF\r\n\x1a\n"

_END = 1
"""Of the list of what is free among the names."""
_CACHED_TABLE = 1
"""In the entry of the root: the places of its table and of its names follow."""


def root_names(path: Path) -> frozenset[str]:
    """The names in the root group, as the oldest and usual layout of files keeps them; empty for other layouts."""
    with mapped(path) as content:
        if content[:9] != MAGIC + b"\0" or content[13:15] != b"\x08\x08":
            return frozenset()
        try:
            (kind,) = struct.unpack_from("<I", content, 72)
            (heap,) = struct.unpack_from("<Q", content, 88)
            if kind != _CACHED_TABLE or content[heap : heap + 4] != b"HEAP":
                return frozenset()
            size, free, start = struct.unpack_from("<QQQ", content, heap + 8)
            names = bytearray(content[start : start + size])
            for _ in range(size):
                if free == _END or free + 16 > size:
                    break
                after, length = struct.unpack_from("<QQ", names, free)
                names[free : free + length] = bytes(min(length, size - free))
                free = after
        except struct.error:
            return frozenset()
    return frozenset(name.decode("utf-8", "replace") for name in names.split(b"\0") if name)

"""The frontend of ONNX files: opset 7 to 23 and beyond, with or without external data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

requires: tuple[str, ...] = ()
extra: str | None = None
layout: Literal["nchw", "nhwc"] | None = None
suffixes: Mapping[str, str] = {".onnx": "ONNX"}
takes_weights = False


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX files need no options."""


_LENGTH, _FIXED64, _FIXED32 = 2, 1, 5
_IR_VERSION, _GRAPH = 1, 7
_NEWEST_IR = 99


def matches(path: Path) -> str | None:
    """``ONNX`` for a file whose first fields are those of a ``ModelProto``."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return "ONNX" if _is_model(file) else None


def parts(path: Path) -> Mapping[str, Path]:  # noqa: ARG001
    """None: the reader itself finds external data, whose names stand in the file."""
    return {}


def _is_model(file: BinaryIO) -> bool:
    """Walk over the top-level fields up to the graph, skipping their contents."""
    first = True
    while (tag := _varint(file)) is not None:
        field, wire = tag >> 3, tag & 7
        if first and (field != _IR_VERSION or wire != 0):
            return False
        if field == _GRAPH:
            return wire == _LENGTH
        size = _varint(file) if wire in (0, _LENGTH) else {_FIXED64: 8, _FIXED32: 4}.get(wire)
        if size is None or (first and not 1 <= size <= _NEWEST_IR):
            return False
        if wire != 0:
            file.seek(size, 1)
        first = False
    return False


def _varint(file: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return None

"""The frontend of ONNX files: opset 7 to 23 and beyond, with or without external data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from retarget.protobuf import LENGTH, VARINT, Buffer, WireError, fields, mapped

requires: tuple[str, ...] = ()
extra: str | None = None
layout: Literal["nchw", "nhwc"] | None = None
suffixes: Mapping[str, str] = {".onnx": "ONNX"}
takes_weights = False


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX files need no options."""


_IR_VERSION, _GRAPH = 1, 7
_NEWEST_IR = 99


def matches(path: Path) -> str | None:
    """``ONNX`` for a file whose first fields are those of a ``ModelProto``."""
    if not path.is_file():
        return None
    with mapped(path) as content:
        return "ONNX" if _is_model(content) else None


def parts(path: Path) -> Mapping[str, Path]:  # noqa: ARG001
    """None: the reader itself finds external data, whose names stand in the file."""
    return {}


def _is_model(content: Buffer) -> bool:
    """Whether the top-level fields up to the graph are those of a model, which may be cut short within the graph."""
    first = True
    try:
        for field in fields(content, 0, len(content), cut=True):
            if first and not (field.number == _IR_VERSION and field.wire == VARINT and 1 <= field.value <= _NEWEST_IR):
                return False
            if field.number == _GRAPH:
                return field.wire == LENGTH
            first = False
    except WireError:
        return False
    return False

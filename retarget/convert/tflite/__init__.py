"""The frontend of TensorFlow Lite (LiteRT) files: float, float16, dynamic-range and int8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

requires: tuple[str, ...] = ("tensorflow", "tf2onnx", "ai-edge-litert")
extra: str | None = "tflite-source"
layout: Literal["nchw", "nhwc"] = "nhwc"
suffixes: Mapping[str, str] = {".tflite": "TFLite", ".lite": "TFLite"}
takes_weights = False

_IDENTIFIER = b"TFL3"
"""At bytes 4 to 8 of the flatbuffer: `schema.fbs` declares it as `file_identifier`."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a TFLite file."""

    kernels: Literal["builtin", "reference", "xnnpack"] = "builtin"
    """What the interpreter computes the source's own outputs with. ``builtin`` are its optimized kernels, whose int8
    arithmetic is that of the specification; ``reference`` its plain, slow ones; ``xnnpack`` is what runs by default on
    many devices."""


def matches(path: Path) -> str | None:
    """``TFLite`` for a file that bears the identifier."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return "TFLite" if file.read(8)[4:] == _IDENTIFIER else None


def parts(path: Path) -> Mapping[str, Path]:  # noqa: ARG001
    """None: a TFLite file is whole."""
    return {}

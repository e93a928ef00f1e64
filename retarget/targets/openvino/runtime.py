"""The one place that imports openvino, and its types in our words."""

from __future__ import annotations

import sys
from functools import cache

# Importing openvino sends an event to a server on the web. Without this package it uses its own stub, which does not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as openvino  # noqa: E402

from retarget.errors import ToolchainFailure  # noqa: E402

_DTYPES = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "boolean": "bool"} | {
    f"{short}{bits}": f"{name}{bits}" for short, name in (("i", "int"), ("u", "uint")) for bits in (4, 8, 16, 32, 64)
}


@cache
def core() -> openvino.Core:
    """One core a process: making it loads and looks for device plugins."""
    return openvino.Core()


def dtype_name(short: str) -> str:
    """The name that specs use for OpenVINO's own: ``float32`` for ``f32``."""
    return _DTYPES.get(short, short)


def failure(what: str, error: Exception) -> ToolchainFailure:
    """OpenVINO's own words in one line, without the C++ files and the checks that they went through."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(_NOISE)]
    return ToolchainFailure(f"{what}: {' '.join(told) or type(error).__name__}")


_NOISE = ("Exception from ", "Check '", "FrontEnd API failed", "Model wasn't fully converted", "Summary:")

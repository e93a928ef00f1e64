"""TensorRT: ``model.engine`` for the GPU of the machine that builds it.

``tensorrt`` and ``tensorrt_rtx`` are two targets on one code: this package holds it, and ``tensorrt_rtx`` names
its own library, options and capabilities. Networks are strongly typed, so precision is in the ONNX model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from retarget.schemes import TENSORRT as SCHEME
from retarget.schemes import QuantScheme
from retarget.targets.tensorrt import gpu
from retarget.targets.tensorrt.flavour import TENSORRT

requires: tuple[str, ...] = (TENSORRT.module,)
extra: str | None = TENSORRT.extra
precisions = frozenset({"fp32", "fp16", "int8", "int8_weights", "int4_weights"})
fp16: Literal["graph", "weights"] = "graph"
schemes: Mapping[str, QuantScheme] = {"int8": SCHEME}
integer_io = False
compresses: frozenset[str] = frozenset()
lower: tuple[str, ...] = ()
interpreted: str | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    builder_optimization_level: Literal[0, 1, 2, 3, 4, 5] | None = None
    """How long the builder may search for faster kernels; None is the library's default."""
    hardware_compatibility: Literal["none", "ampere_plus"] = "none"
    """``ampere_plus``: the engine runs on any GPU from Ampere on, at some cost in speed."""
    tf32: bool = False
    """Let float32 products round their inputs to TF32, 10 bits of mantissa. Faster, and no longer float32."""
    workspace_mib: int | None = None
    """Most scratch memory that a kernel may use, in MiB; None is all of the GPU's memory."""


def objection(precision: str, block: int | None, options: msgspec.Struct) -> tuple[str, str] | None:
    del precision, block, options
    return None


def fingerprint() -> Mapping[str, str]:
    return {TENSORRT.module: TENSORRT.version() or "not installed", "gpu": ", ".join(gpu.models()) or "none"}


def unavailable() -> tuple[str, str] | None:
    return TENSORRT.unavailable()


def not_executable() -> str | None:
    return TENSORRT.not_executable()

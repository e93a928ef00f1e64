"""TensorRT-RTX: ``model.engine`` for NVIDIA RTX GPUs, built with or without a GPU.

The engine is portable between the compute capabilities that it was built for, and the GPU's kernels are compiled
where it is loaded. It does not load in TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from retarget.schemes import TENSORRT as SCHEME
from retarget.schemes import QuantScheme
from retarget.targets.tensorrt.flavour import TENSORRT_RTX

requires: tuple[str, ...] = (TENSORRT_RTX.module,)
extra: str | None = TENSORRT_RTX.extra
precisions = frozenset({"fp32", "fp16", "int8", "int8_weights", "int4_weights"})
fp16: Literal["graph", "weights"] = "graph"
schemes: Mapping[str, QuantScheme] = {"int8": SCHEME}
integer_io = False
compresses: frozenset[str] = frozenset()
lower: tuple[str, ...] = ()
interpreted: str | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    compute_capability: tuple[str, ...] = ()
    """GPUs to build for, such as ``["8.9", "12.0"]``; empty: every one that the library can, from Ampere on."""
    tf32: bool = False
    """Let float32 products round their inputs to TF32, 10 bits of mantissa. Faster, and no longer float32."""
    workspace_mib: int | None = None
    """Most scratch memory that a kernel may use, in MiB; None is all of the GPU's memory."""


def objection(precision: str, block: int | None, options: msgspec.Struct) -> tuple[str, str] | None:
    del precision, block, options
    return None


def fingerprint() -> Mapping[str, str]:
    return {TENSORRT_RTX.module: TENSORRT_RTX.version() or "not installed"}


def unavailable() -> tuple[str, str] | None:
    return TENSORRT_RTX.unavailable()


def not_executable() -> str | None:
    return TENSORRT_RTX.not_executable()

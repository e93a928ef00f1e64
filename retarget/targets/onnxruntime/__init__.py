"""ONNX Runtime: ``model.onnx`` in the normal form's opset, executed on the CPU."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Literal

import msgspec

from retarget.schemes import U8S8, QuantScheme
from retarget.targets import machine

requires: tuple[str, ...] = ()
"""onnxruntime itself comes with retarget: it is also the reference of the pass check and of calibration."""
extra: str | None = None
precisions = frozenset({"fp32", "fp16", "int8", "int8_weights", "int4_weights"})
fp16: Literal["graph", "weights"] = "graph"
schemes: Mapping[str, QuantScheme] = {"int8": U8S8}
integer_io = False
compresses: frozenset[str] = frozenset()
lower: tuple[str, ...] = ("delay_transposes", "pick_codes", "unsigned_activations")
interpreted: str | None = None
"""No fusion: what ONNX Runtime fuses it fuses when it loads, for the machine that it loads on."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options yet."""


def objection(precision: str, block: int | None, options: msgspec.Struct) -> tuple[str, str] | None:
    del precision, block, options
    return None


def fingerprint() -> Mapping[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("onnxruntime", "onnx", "onnx-ir")}
    return {**versions, "cpu": machine.cpu()}


def unavailable() -> tuple[str, str] | None:
    return None


def not_executable() -> str | None:
    return None

"""TFLite: ``model.tflite``, written without TensorFlow and executed by LiteRT on the CPU."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from retarget.distributions import version_of
from retarget.interface import Layout
from retarget.schemes import TFLITE, TFLITE_16X8, QuantScheme
from retarget.targets import machine

requires: tuple[str, ...] = ("ai-edge-litert", "networkx")
extra: str | None = "tflite"
precisions = frozenset({"fp32", "fp16", "int8", "int16x8", "int8_dynamic"})
fp16: Literal["graph", "weights"] = "weights"
"""Weights are stored as float16 and widened where the model is loaded; kernels compute in float32."""
schemes: Mapping[str, QuantScheme] = {"int8": TFLITE, "int16x8": TFLITE_16X8}
integer_io = True
compresses: frozenset[str] = frozenset()
lower: tuple[str, ...] = ("unify_scales",)
interpreted: str | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What shapes the file, and how it is executed."""

    io_layout: Annotated[
        Layout | None,
        Meta(description="Layout of the inputs and outputs of 4 axes in the file; the model's own if absent."),
    ] = None
    kernels: Annotated[
        Literal["xnnpack", "builtin", "reference"],
        Meta(description="Which of LiteRT's kernels execute it here; parity holds for those."),
    ] = "xnnpack"
    unroll: Annotated[
        int, Meta(ge=1, description="The most steps of a recurrence that are written one after the other.")
    ] = 64
    custom_ops: Annotated[
        tuple[str, ...],
        Meta(description="ONNX operators that may become custom operators, which the user's runtime must bring."),
    ] = ()


def objection(precision: str, block: int | None, options: msgspec.Struct) -> tuple[str, str] | None:
    del precision, block, options
    return None


def fingerprint() -> Mapping[str, str]:
    versions = {name: version_of(name) or "not installed" for name in requires}
    return {**versions, "onnx-ir": importlib.metadata.version("onnx-ir"), "cpu": machine.cpu()}


def unavailable() -> tuple[str, str] | None:
    for name in requires:
        if version_of(name) is None:
            return f"{name} is not installed", "pip install 'retarget[tflite]'"
    return None


def not_executable() -> str | None:
    reason = unavailable()
    return None if reason is None else reason[0]

"""OpenVINO: ``model.xml`` and ``model.bin``, executed on the CPU."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Literal

import msgspec

from retarget.distributions import version_of
from retarget.schemes import OPENVINO, QuantScheme
from retarget.targets import machine

requires: tuple[str, ...] = ("openvino",)
extra: str | None = "openvino"
precisions = frozenset({"fp32", "fp16", "int8", "int8_weights", "int4_weights"})
fp16: Literal["graph", "weights"] = "weights"
"""The IR stores float16 weights; what the plugin computes in is chosen where it runs."""
schemes: Mapping[str, QuantScheme] = {"int8": OPENVINO}
integer_io = False
compresses: frozenset[str] = frozenset()
lower: tuple[str, ...] = ("keep_reduced_axes",)
interpreted: str | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No options yet."""


def objection(precision: str, block: int | None, options: msgspec.Struct) -> tuple[str, str] | None:
    del precision, block, options
    return None


def fingerprint() -> Mapping[str, str]:
    versions = {"openvino": version_of("openvino") or "not installed", "onnx-ir": importlib.metadata.version("onnx-ir")}
    return {**versions, "cpu": machine.cpu()}


def unavailable() -> tuple[str, str] | None:
    if version_of("openvino") is None:
        return "openvino is not installed", "pip install 'retarget[openvino]'"
    return None


def not_executable() -> str | None:
    reason = unavailable()
    return None if reason is None else reason[0]

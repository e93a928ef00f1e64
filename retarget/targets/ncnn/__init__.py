"""ncnn: ``model.ncnn.param`` and ``model.ncnn.bin``, written without pnnx and executed by ncnn."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from retarget.distributions import version_of
from retarget.schemes import NCNN, QuantScheme
from retarget.targets import machine

requires: tuple[str, ...] = ("ncnn",)
extra: str | None = "ncnn"
precisions = frozenset({"fp32", "fp16", "int8"})
fp16: Literal["graph", "weights"] = "weights"
"""Weights are stored as float16; in what a layer computes with them is the affair of ncnn's options and of the CPU."""
schemes: Mapping[str, QuantScheme] = {"int8": NCNN}
integer_io = False
compresses: frozenset[str] = frozenset()
lower: tuple[str, ...] = ()
interpreted: str | None = None

VULKAN = "vulkan"
"""Of the settings: ``on`` where the recipe asks for the GPU."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What shapes the files, and how they are executed."""

    emit_cpp: Annotated[
        bool, Meta(description="Write `model.ncnn.cpp` beside the files: a program that loads and executes them.")
    ] = False
    vulkan: Annotated[bool, Meta(description="Execute on the GPU with Vulkan here, also for parity.")] = False


def objection(precision: str, block: int | None, options: msgspec.Struct) -> tuple[str, str] | None:
    del precision, block, options
    return None


def fingerprint() -> Mapping[str, str]:
    versions = {name: version_of(name) or "not installed" for name in requires}
    return {**versions, "onnx-ir": importlib.metadata.version("onnx-ir"), "cpu": machine.cpu()}


def unavailable() -> tuple[str, str] | None:
    for name in requires:
        if version_of(name) is None:
            return f"{name} is not installed", "pip install 'retarget[ncnn]'"
    return None


def not_executable() -> str | None:
    reason = unavailable()
    return None if reason is None else reason[0]

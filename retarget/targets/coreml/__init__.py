"""Core ML: ``model.mlpackage``, an ML Program written on any machine, interpreted there and executed on a Mac."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from retarget.schemes import COREML, QuantScheme

requires: tuple[str, ...] = ("coremltools", "scipy")
extra: str | None = "coreml"
precisions = frozenset({"fp32", "fp16", "int8", "int8_weights", "int4_weights"})
fp16: Literal["graph", "weights"] = "graph"
schemes: Mapping[str, QuantScheme] = {"int8": COREML}
integer_io = False
lower: tuple[str, ...] = ()
interpreted: str | None = None if sys.platform == "darwin" else "Core ML runs on macOS alone"

DeploymentTarget: TypeAlias = Literal["iOS15", "iOS16", "iOS17", "iOS18"]
"""The oldest system that is to run the model; macOS 12 to 15 stand for iOS 15 to 18."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What shapes the package."""

    minimum_deployment_target: Annotated[
        DeploymentTarget,
        Meta(description="The oldest system that is to run the model; macOS 12 to 15 stand for iOS 15 to 18."),
    ] = "iOS17"
    flexible_shapes: Annotated[
        Literal["ranges", "enumerated"],
        Meta(
            description="Open dimensions as ranges from min to max, or as the sizes min, opt and max alone, for which"
            " Core ML can prepare (the Neural Engine among them)."
        ),
    ] = "ranges"


def fingerprint() -> Mapping[str, str]:
    versions = {name: _version(name) or "not installed" for name in requires}
    return {**versions, "onnx-ir": importlib.metadata.version("onnx-ir"), "system": sys.platform}


def unavailable() -> tuple[str, str] | None:
    for name in requires:
        if _version(name) is None:
            return f"{name} is not installed", "pip install 'retarget[coreml]'"
    return None


def not_executable() -> str | None:
    reason = unavailable()
    return None if reason is None else reason[0]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

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
precisions = frozenset({"fp32", "fp16", "int8", "int8_weights", "int4_weights", "palette6"})
fp16: Literal["graph", "weights"] = "graph"
schemes: Mapping[str, QuantScheme] = {"int8": COREML}
integer_io = False
compresses: frozenset[str] = frozenset({"int8_weights", "int4_weights", "palette6"})
lower: tuple[str, ...] = ()
interpreted: str | None = None if sys.platform == "darwin" else "Core ML runs on macOS alone"

DeploymentTarget: TypeAlias = Literal["iOS15", "iOS16", "iOS17", "iOS18"]
"""The oldest system that is to run the model; macOS 12 to 15 stand for iOS 15 to 18."""


OLDEST: Mapping[str, DeploymentTarget] = {
    "fp16": "iOS15",
    "int8": "iOS17",
    "int8_weights": "iOS16",
    "int4_weights": "iOS18",
    "palette6": "iOS16",
}
"""The first deployment target that has what a precision is stored as."""


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


def objection(precision: str, block: int | None, options: msgspec.Struct) -> tuple[str, str] | None:
    """What a deployment target cannot hold, with the oldest that can."""
    assert isinstance(options, Options)
    needed = "iOS18" if precision == "int8_weights" and block is not None else OLDEST.get(precision, "iOS15")
    if options.minimum_deployment_target >= needed:
        return None
    what = "weights in blocks need" if precision == "int8_weights" and block is not None else f"{precision} needs"
    hint = f"set `coreml: {{minimum_deployment_target: {needed}}}`, or leave the variant out of the target's `variants`"
    return f"{what} minimum_deployment_target {needed}, not {options.minimum_deployment_target}", hint


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

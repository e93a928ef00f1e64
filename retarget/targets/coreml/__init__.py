"""Core ML: ``model.mlpackage``, an ML Program written on any machine, interpreted there and executed on a Mac."""

from __future__ import annotations

import importlib.metadata
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from retarget.distributions import version_of
from retarget.errors import RetargetError
from retarget.preprocess import Numbers, as_factor, per_channel
from retarget.recipe_yaml import TextFile
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


class Image(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input that apps feed with an image. Of a pixel p, 0 to 255, the model gets scale · p + bias."""

    color_layout: Annotated[
        Literal["RGB", "BGR", "GRAYSCALE", "GRAYSCALE_FLOAT16"],
        Meta(description="What the model's channels are; Core ML converts what it is given."),
    ] = "RGB"
    scale: Annotated[
        float | Annotated[str, Meta(pattern=r"^\d+(\.\d+)?/\d+(\.\d+)?$")],
        Meta(description="Factor on the pixels; may be written 1/255."),
    ] = 1.0
    bias: Annotated[
        Numbers,
        Meta(description="Added to the scaled pixels: one number, or one for each channel, as the model has them."),
    ] = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.bias, tuple) and len(self.bias) != self.channels:
            raise RetargetError(
                f"bias has {len(self.bias)} numbers, and {self.color_layout} {self.channels} channels",
                "give one number for all channels, or one for each",
            )
        if not self.factor:
            raise RetargetError(
                f"scale is {self.scale}, which would make all pixels 0", "give the factor on the pixels, such as 1/255"
            )

    @property
    def channels(self) -> int:
        return 3 if self.color_layout in ("RGB", "BGR") else 1

    @property
    def factor(self) -> float:
        """``scale`` as a number."""
        return as_factor(self.scale)

    @property
    def biases(self) -> tuple[float, ...]:
        """``bias`` for each channel."""
        return per_channel(self.bias, self.channels)


class Classifier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes a classifier of the package: apps then get the best label, and a dictionary of all labels."""

    labels: Annotated[
        tuple[str, ...] | TextFile, Meta(description="Of the classes in order: a list, or a text file with one a line.")
    ]
    predicted_feature_name: Annotated[
        str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Name of the output that is the best label.")
    ] = "classLabel"
    probabilities: Annotated[
        str | None, Meta(description="The model's output that the dictionary is made of; its only one if absent.")
    ] = None

    def __post_init__(self) -> None:
        if isinstance(self.labels, TextFile):
            return
        twice = [label for label, count in Counter(self.labels).items() if count > 1]
        if twice:
            hint = "labels are the keys of a dictionary: make them differ"
            raise RetargetError(f"the label '{twice[0]}' stands there {self.labels.count(twice[0])} times", hint)


class Metadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What Xcode shows of the model."""

    author: Annotated[str, Meta(description="Who made it.")] = ""
    license: Annotated[str, Meta(description="Its license.")] = ""
    version: Annotated[str, Meta(description="Its version.")] = ""
    description: Annotated[str, Meta(description="What it does.")] = ""
    inputs: Annotated[dict[str, str], Meta(description="What each input is, by the model's own names.")] = (
        msgspec.field(default_factory=dict)
    )
    outputs: Annotated[dict[str, str], Meta(description="What each output is, by the model's own names.")] = (
        msgspec.field(default_factory=dict)
    )


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
    images: Annotated[
        dict[str, Image],
        Meta(description="Inputs that are images, by name, each with `color_layout`, `scale` and `bias`."),
    ] = msgspec.field(default_factory=dict)
    classifier: Annotated[
        Classifier | None,
        Meta(
            description="Make a classifier of it: `labels` (a list, or a text file), `predicted_feature_name` and"
            " `probabilities`, the output that they belong to."
        ),
    ] = None
    metadata: Annotated[
        Metadata | None,
        Meta(
            description="What Xcode shows: `author`, `license`, `version`, `description`, and `inputs` and `outputs`"
            " with a text by name."
        ),
    ] = None

    def __post_init__(self) -> None:
        for name, image in self.images.items():
            if image.color_layout == "GRAYSCALE_FLOAT16" and self.minimum_deployment_target == "iOS15":
                raise RetargetError(
                    f"images.{name}: GRAYSCALE_FLOAT16 needs minimum_deployment_target iOS16, not iOS15",
                    "take a newer one, or GRAYSCALE",
                )


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
    versions = {name: version_of(name) or "not installed" for name in requires}
    return {**versions, "onnx-ir": importlib.metadata.version("onnx-ir"), "system": sys.platform}


def unavailable() -> tuple[str, str] | None:
    for name in requires:
        if version_of(name) is None:
            return f"{name} is not installed", "pip install 'retarget[coreml]'"
    return None


def not_executable() -> str | None:
    reason = unavailable()
    return None if reason is None else reason[0]

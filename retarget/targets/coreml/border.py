"""The border of the package as Core ML is to show it: sizes that are open, images, labels, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from retarget.errors import RetargetError, did_you_mean
from retarget.protocols import EmitJob
from retarget.spec import TensorSpec
from retarget.targets.coreml import Classifier, Image, Options
from retarget.targets.coreml.library import ct, proto

if TYPE_CHECKING:
    from retarget.protocols import Array

_TYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float32}

_LAYOUTS = {
    "RGB": ct.colorlayout.RGB,
    "BGR": ct.colorlayout.BGR,
    "GRAYSCALE": ct.colorlayout.GRAYSCALE,
    "GRAYSCALE_FLOAT16": ct.colorlayout.GRAYSCALE_FLOAT16,
}

TO_CHANNELS_FIRST = (0, 3, 1, 2)
"""Images are so in a package. ``FROM_CHANNELS_FIRST`` is the way back."""
FROM_CHANNELS_FIRST = (0, 2, 3, 1)


class Classes(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a package in place of an output of the model."""

    output: str
    """Its name in the package, if it were there."""
    shape: tuple[int, ...]
    labels: tuple[str, ...]
    feature: str
    """The output that is the best label."""

    @property
    def scores(self) -> str:
        """The output that is the dictionary: so coremltools calls it."""
        return f"{self.feature}_probs"


class Border(msgspec.Struct, frozen=True, kw_only=True):
    """What of the model's inputs and outputs is another thing in the package, by names in the package."""

    images: dict[str, Image] = {}
    classes: Classes | None = None


@dataclass(frozen=True)
class Names:
    """The model's inputs and outputs → their names in the package."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def options(job: EmitJob) -> Options:
    assert isinstance(job.options, Options)
    return job.options


# ---- what is asked for, held against the model


def one_at_a_time(job: EmitJob) -> dict[str, str]:
    """The symbolic dimensions that must be 1 as Core ML takes one image, and classifies one thing, with the reason.

    Raises ``RetargetError`` for images, labels and descriptions that do not fit the model.
    """
    asked = options(job)
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (job.inputs, job.outputs))
    found: dict[str, str] = {}
    for name, image in asked.images.items():
        place = f"coreml.images.{name}"
        _known(place, "input", name, inputs)
        found |= _one(place, _image(place, inputs[name], image, job), job, "an image is taken at a time")
    if asked.classifier is not None:
        spec = classified(job, asked.classifier)
        found |= _one("coreml.classifier", _scores(spec, asked.classifier), job, "one thing is classified at a time")
    if asked.metadata is not None:
        for name in asked.metadata.inputs:
            _known(f"coreml.metadata.inputs.{name}", "input", name, inputs)
        for name in asked.metadata.outputs:
            _known(f"coreml.metadata.outputs.{name}", "output", name, outputs)
    return found


def classified(job: EmitJob, classifier: Classifier) -> TensorSpec:
    """The output that labels are for."""
    known = {spec.name: spec for spec in job.outputs}
    if classifier.probabilities is not None:
        _known("coreml.classifier.probabilities", "output", classifier.probabilities, known)
        return known[classifier.probabilities]
    if len(known) > 1:
        raise RetargetError(
            f"coreml.classifier: the model has {len(known)} outputs",
            f"say which the labels are for, as in `probabilities: {next(iter(known))}`",
        )
    return job.outputs[0]


def is_turned(name: str, job: EmitJob) -> bool:
    """Whether an input is an image whose channels are last in the model."""
    return name in options(job).images and job.layouts.get(name) == "nhwc"


def _known(place: str, what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise RetargetError(f"{place}: the model has no {what} '{name}'", did_you_mean(name, known))


def _image(place: str, spec: TensorSpec, image: Image, job: EmitJob) -> int | str:
    """The batch of an image input."""
    if len(spec.shape) != 4 or not spec.dtype.startswith("float"):
        raise RetargetError(f"{place}: {spec.type} is no image", "an image input has 4 axes, and is of floats")
    channels = spec.shape[-1 if is_turned(spec.name, job) else 1]
    if channels != image.channels:
        raise RetargetError(
            f"{place}: {image.color_layout} has {image.channels} channel{'s' if image.channels > 1 else ''}, and"
            f" {spec.type} has {channels}",
            "take the color_layout of the model; `io_layout` of the model says which axis the channels are",
        )
    return spec.shape[0]


def _scores(spec: TensorSpec, classifier: Classifier) -> int | str:
    """The batch of an output that labels are for: all that is in front of its last axis."""
    assert isinstance(classifier.labels, tuple)
    place, count = "coreml.classifier.labels", len(classifier.labels)
    if not spec.shape or not spec.dtype.startswith("float"):
        raise RetargetError(f"{place}: '{spec.name}' is {spec.type}", "labels are for probabilities: a list of floats")
    classes, around = spec.shape[-1], [dim for dim in spec.shape[:-1] if dim != 1]
    if classes != count or len(around) > 1:
        raise RetargetError(
            f"{place}: there are {count} labels, and '{spec.name}' is {spec.type}", "give one for each place of it"
        )
    return around[0] if around else 1


def _one(place: str, dim: int | str, job: EmitJob, why: str) -> dict[str, str]:
    if dim == 1:
        return {}
    if isinstance(dim, int) or job.shapes[dim].min > 1:
        size = dim if isinstance(dim, int) else job.shapes[dim]
        raise RetargetError(f"{place}: {why}, and the model takes {size}", "let its batch be 1, or begin at 1")
    return {dim: f"{place}: {why}"}


# ---- what coremltools is told


def input_types(job: EmitJob, names: Mapping[str, str], sizes: Mapping[str, int]) -> list[ct.TensorType | ct.ImageType]:
    """One for each input, by its name in the program. ``sizes``: the symbolic dimensions that are fixed.

    Raises ``RetargetError`` for several inputs of enumerated shapes where Core ML has one at most.
    """
    asked = options(job)
    free = [spec.name for spec in job.inputs if set(spec.symbols) - set(sizes)]
    if asked.flexible_shapes == "enumerated" and len(free) > 1 and asked.minimum_deployment_target < "iOS18":
        raise RetargetError(
            f"coreml.flexible_shapes: {', '.join(free)} have open dimensions, and {asked.minimum_deployment_target} has"
            " enumerated shapes for one input alone",
            "take `flexible_shapes: ranges`, minimum_deployment_target iOS18, or fix dimensions in `model.shapes`",
        )
    return [_input_type(spec, names[spec.name], job, sizes) for spec in job.inputs]


def _input_type(spec: TensorSpec, name: str, job: EmitJob, sizes: Mapping[str, int]) -> ct.TensorType | ct.ImageType:
    image = options(job).images.get(spec.name)
    if image is None:
        shape = _shape(spec.shape, job, sizes)
        return ct.TensorType(name=name, shape=shape, dtype=_TYPES.get(spec.dtype, np.int32))
    turned = TO_CHANNELS_FIRST if is_turned(spec.name, job) else range(4)
    return ct.ImageType(
        name=name,
        shape=_shape([spec.shape[axis] for axis in turned], job, sizes),
        scale=image.factor,
        bias=list(image.biases) if image.channels > 1 else image.biases[0],
        color_layout=_LAYOUTS[image.color_layout],
        channel_first=True,
    )


def _shape(given: Iterable[int | str], job: EmitJob, sizes: Mapping[str, int]) -> object:
    dims = [dim if isinstance(dim, int) else sizes.get(dim, dim) for dim in given] or [1]
    if not any(isinstance(dim, str) for dim in dims):
        return ct.Shape(dims)
    if options(job).flexible_shapes == "enumerated":
        shapes = [
            tuple(getattr(job.shapes[dim], which) if isinstance(dim, str) else dim for dim in dims)
            for which in ("opt", "min", "max")
        ]
        return ct.EnumeratedShapes([ct.Shape(shape) for shape in dict.fromkeys(shapes)], default=shapes[0])
    return ct.Shape([_range(dim, job) if isinstance(dim, str) else dim for dim in dims])


def _range(symbol: str, job: EmitJob) -> ct.RangeDim:
    extent = job.shapes[symbol]
    return ct.RangeDim(lower_bound=extent.min, upper_bound=extent.max, default=extent.opt)


def classifier_config(border: Border) -> ct.ClassifierConfig | None:
    classes = border.classes
    if classes is None:
        return None
    return ct.ClassifierConfig(list(classes.labels), classes.feature, classes.output)


def describe(spec: proto.Model_pb2.Model, job: EmitJob, shown: Border, names: Names) -> None:
    """Write the metadata into ``spec``."""
    told = options(job).metadata
    if told is None:
        return
    metadata = spec.description.metadata
    metadata.author, metadata.license = told.author, told.license
    metadata.versionString, metadata.shortDescription = told.version, told.description
    texts = {names.inputs[name]: text for name, text in told.inputs.items()}
    texts |= {names.outputs[name]: text for name, text in told.outputs.items()}
    if shown.classes is not None and shown.classes.output in texts:
        texts[shown.classes.scores] = texts[shown.classes.output]
    for feature in (*spec.description.input, *spec.description.output):
        if feature.name in texts:
            feature.shortDescription = texts[feature.name]


# ---- what the runner does


def border(job: EmitJob, names: Names, sizes: Mapping[str, int]) -> Border:
    """What the runner must know."""
    asked = options(job)
    images = {names.inputs[name]: image for name, image in asked.images.items()}
    if asked.classifier is None:
        return Border(images=images)
    spec = classified(job, asked.classifier)
    assert isinstance(asked.classifier.labels, tuple)
    classes = Classes(
        output=names.outputs[spec.name],
        shape=tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape),
        labels=asked.classifier.labels,
        feature=asked.classifier.predicted_feature_name,
    )
    return Border(images=images, classes=classes)


def pixels(values: Array, image: Image) -> Array:
    """What must be fed for the model to get ``values``, the channels second: the inverse of scale and bias."""
    bias = np.array(image.biases, np.float64).reshape(-1, 1, 1)
    return np.asarray((values.astype(np.float64) - bias) / image.factor).astype(np.float32)

"""What a net that was written for training computes once it is deployed.

Data layers become inputs. What needs labels (losses, accuracies, layers on labels alone) is left out, except that a
loss that first applies a softmax or a sigmoid leaves that behind, as deploy files of the same nets have it. A net
without such layers comes out as it went in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retarget.convert.caffe import blobs
from retarget.convert.caffe.net import Layer, Message
from retarget.errors import RetargetError

_PREDICTING = {"SoftmaxWithLoss": ("Softmax", "softmax_param"), "SigmoidCrossEntropyLoss": ("Sigmoid", "sigmoid_param")}
"""Loss to the layer that it applies to its first bottom, and that layer's parameters."""
_SINKS = frozenset({"Silence", "HDF5Output"})
# fmt: off
_SAME_CHANNELS = frozenset({
    "AbsVal", "BN", "BNLL", "BatchNorm", "Bias", "Clip", "Dropout", "ELU", "Exp", "LRN", "Log", "MVN", "PReLU",
    "Pooling", "Power", "ReLU", "Scale", "Sigmoid", "Split", "TanH",
})
# fmt: on
"""Types that leave the number of channels as it is."""

MAX_AXES, MAX_COUNT = 32, 2**31 - 1
"""Caffe's own limits of a blob."""
MAX_TOPS = 100
"""Of all data layers: each is followed through the net."""
_SHOWN = 8
"""Layers that a note lists."""


@dataclass(frozen=True)
class Deployed:
    """A net with inputs in place of data layers."""

    inputs: Mapping[str, tuple[int, ...] | str]
    """Shape; a ``str`` says what is missing where the file has none."""
    layers: Sequence[Layer]
    unwanted: frozenset[str]
    """Blobs that are no outputs though nothing takes them."""
    transform: Message | None
    notes: Sequence[str]


def deploy(layers: Sequence[Layer], left_out: Sequence[Layer], given: Mapping[str, Sequence[int]]) -> Deployed:
    """``layers``, those of the test phase with their weights, without what is for training only.

    ``left_out`` are the layers of other phases: where the data layer is among them, it says what the inputs are.
    ``given`` are shapes of inputs, for those of which the file has none.
    """
    inputs = _inputs(layers)
    constants = _constants(layers)
    fixed = {id(layer) for layer in constants}
    computing = [layer for layer in layers if layer.type != "Input" and (id(layer) in fixed or not _brings_data(layer))]
    consumers = _consumers(computing)
    notes: list[str] = []
    targets: set[str] = set()
    transform = None
    sources = _sources(layers, left_out, computing)
    if sum(len(source.tops) for source in sources) > MAX_TOPS:
        raise RetargetError(f"{sources[0].place}: data layers make more than {MAX_TOPS} blobs", "is the file damaged?")
    for source in sources:
        if id(source) in fixed:
            continue
        tops = [top for top in source.tops if not _is_target(top, consumers)]
        if not tops and not inputs:
            tops = list(source.tops[:1])
        targets.update(set(source.tops).difference(tops))
        for top in tops:
            shape = tuple(given[top]) if top in given else _shape(source, top, computing)
            inputs[top] = shape
            size = "" if isinstance(shape, str) else f" of shape {list(shape)}"
            notes.append(f"'{top}' of data layer '{source.name}' ({source.message.place}) became an input{size}")
        if tops and transform is None and "transform_param" in source.message:
            transform = source.message.message("transform_param")
    cut = _cut(computing, targets)
    unwanted = cut.unwanted.union(*(layer.tops for layer in constants))
    return Deployed(inputs, cut.layers, frozenset(unwanted), transform, [*notes, *cut.notes])


# ---- inputs


def _inputs(layers: Sequence[Layer]) -> dict[str, tuple[int, ...] | str]:
    """The tops of ``Input`` layers, whose shapes are one for all or one for each."""
    inputs: dict[str, tuple[int, ...] | str] = {}
    for layer in layers:
        if layer.type != "Input":
            continue
        shapes = [shape.integers("dim") for shape in layer.message.message("input_param").messages("shape")]
        if len(shapes) not in (0, 1, len(layer.tops)):
            raise RetargetError(
                f"{layer.place}: {len(shapes)} shapes for {len(layer.tops)} tops", "give one for all, or one for each"
            )
        for index, top in enumerate(layer.tops):
            if top in inputs:
                raise RetargetError(f"{layer.place}: makes '{top}', which is an input already", "name it differently")
            shape = shapes[index % len(shapes)] if shapes else ()
            inputs[top] = _checked(layer, top, shape) or f"{layer.place}: the file says no shape of '{top}'"
    return inputs


def _brings_data(layer: Layer) -> bool:
    """Whether a layer takes its tops from elsewhere: of Caffe's own types, of a fork's or of the user's in Python."""
    return not layer.bottoms and (layer.type.endswith("Data") or layer.type == "Python")


def _constants(layers: Sequence[Layer]) -> list[Layer]:
    """``DummyData`` that stands for numbers that do not change, and not for data that a net without other has."""
    if all(layer.type == "DummyData" or not (layer.type == "Input" or _brings_data(layer)) for layer in layers):
        return []
    return [
        layer
        for layer in layers
        if layer.type == "DummyData"
        and all(
            filler.word("type", "constant") == "constant"
            for filler in layer.message.message("dummy_data_param").messages("data_filler")
        )
    ]


def _sources(layers: Sequence[Layer], left_out: Sequence[Layer], computing: Sequence[Layer]) -> list[Layer]:
    """The data layers, and those of other phases that alone make what the net takes."""
    sources = [layer for layer in layers if _brings_data(layer)]
    made = {top for layer in layers for top in layer.tops}
    missing = {bottom for layer in computing for bottom in layer.bottoms} - made
    for layer in left_out:
        if _brings_data(layer) and missing.intersection(layer.tops):
            sources.append(layer)
            missing.difference_update(layer.tops)
    return sources


def _consumers(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    consumers: dict[str, list[Layer]] = {}
    for layer in layers:
        for bottom in layer.bottoms:
            consumers.setdefault(bottom, []).append(layer)
    return consumers


def _is_target(top: str, consumers: Mapping[str, Sequence[Layer]]) -> bool:
    """Whether a blob of a data layer is what the net is trained towards: no way from it leads to a layer with weights.

    Where a layer also takes other blobs, as one that masks an image does, only the name tells a label.
    """
    reached, ahead, taking = {top}, [top], []
    while ahead:
        for layer in consumers.get(ahead.pop(), ()):
            if _judges(layer) or layer.type in _SINKS:
                continue
            if blobs.expected(layer):
                return False
            taking.append(layer)
            fresh = set(layer.tops) - reached
            reached |= fresh
            ahead += fresh
    return "label" in top or all(reached.issuperset(layer.bottoms) for layer in taking)


def _shape(source: Layer, top: str, layers: Sequence[Layer]) -> tuple[int, ...] | str:
    """What ``source`` says of ``top``, one image a time; or what it does not say."""
    message = source.message
    index = source.tops.index(top)
    if source.type == "DummyData":
        return _dummy_shape(source, index)
    if source.type == "MemoryData" and index == 0:
        own = message.message("memory_data_param")
        return _checked(source, top, (1, *(own.integer(name) for name in ("channels", "height", "width"))))
    transform, images = message.message("transform_param"), message.message("image_data_param")
    resized = transform.message("resize_param")
    sizes = [
        (transform.integer("crop_size"), transform.integer("crop_size")),
        (transform.integer("crop_h"), transform.integer("crop_w")),
        (resized.integer("height"), resized.integer("width")),
        (images.integer("new_height"), images.integer("new_width")),
    ]
    height, width = next((size for size in sizes if min(size) > 0), (0, 0))
    channels = _channels(top, layers, height * width)
    if not height:
        known = "" if channels is None else f"; by the weights it has {channels} channel{'s' if channels != 1 else ''}"
        return f"{source.place}: the size of '{top}' stands in its data, not in the file{known}"
    if channels is None and transform.flag("force_gray"):
        channels = 1
    if channels is None and (transform.flag("force_color") or len(transform.numbers("mean_value")) == 3):
        channels = 3
    if channels is None and source.type == "ImageData":
        channels = 3 if images.flag("is_color", True) else 1
    if channels is None:
        return f"{source.place}: neither the file nor the weights say how many channels '{top}' has"
    return _checked(source, top, (1, channels, height, width))


def _dummy_shape(source: Layer, index: int) -> tuple[int, ...] | str:
    own = source.message.message("dummy_data_param")
    shapes = [shape.integers("dim") for shape in own.messages("shape")]
    if not shapes:
        columns = [own.integers(name) for name in ("num", "channels", "height", "width")]
        if not all(columns):
            return f"{source.place}: the file says no shape of '{source.tops[index]}'"
        shapes = [tuple(column[index if index < len(column) else 0] for column in columns)]
    return _checked(source, source.tops[index], shapes[index if index < len(shapes) else 0])


def _checked(layer: Layer, top: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) > MAX_AXES or min(shape, default=1) < 1 or math.prod(shape) > MAX_COUNT:
        raise RetargetError(
            f"{layer.place}: '{top}' has the shape {list(shape[:MAX_AXES])}",
            f"Caffe takes {MAX_AXES} dimensions at most, each 1 or more, and no more than {MAX_COUNT:,} numbers",
        )
    return shape


def _channels(top: str, layers: Sequence[Layer], area: int) -> int | None:
    """How many channels ``top`` has by the weights of the first layer that tells, past those that keep their number.

    ``area`` is height times width, 0 where it is not known.
    """
    reached = {top}
    for layer in layers:
        if not reached.intersection(layer.bottoms):
            continue
        told = _channels_taken(layer, area) if layer.blobs else None
        if told is not None:
            return told
        if layer.type in _SAME_CHANNELS:
            reached.update(layer.tops)
            area = 0 if layer.type == "Pooling" else area
    return None


def _channels_taken(layer: Layer, area: int) -> int | None:
    """How many channels the bottom of ``layer`` has by its weights; None if they do not tell."""
    weight, message = layer.blobs[0], layer.message
    if layer.type in ("BN", "BatchNorm", "PReLU", "Scale", "Bias") and weight.size > 1:
        return int(weight.size)
    if layer.type == "Convolution" and weight.ndim > 2:
        return int(weight.shape[1]) * message.message("convolution_param").integer("group", 1)
    if layer.type in ("ConvolutionDepthwise", "DepthwiseConvolution") and weight.ndim > 2:
        return int(weight.shape[0])
    outputs = message.message("inner_product_param").integer("num_output")
    if layer.type == "InnerProduct" and area and outputs > 0 and weight.size % (outputs * area) == 0:
        return int(weight.size) // (outputs * area)
    return None


# ---- what is for training only


@dataclass(frozen=True)
class _Cut:
    layers: Sequence[Layer]
    unwanted: set[str]
    notes: Sequence[str]


def _judges(layer: Layer) -> bool:
    """Whether a layer compares what the net says with what it should say."""
    return layer.type.endswith("Loss") or "Accuracy" in layer.type or layer.type == "DetectionEvaluate"


def _cut(layers: Sequence[Layer], targets: set[str]) -> _Cut:
    """``layers`` without those that judge or that need ``targets``; with a softmax or sigmoid in place of its loss."""
    kept: list[Layer] = []
    unwanted: set[str] = set()
    notes: list[str] = []
    lost = set(targets)
    auxiliary = _auxiliary(layers)
    made = {(layer.type, *layer.bottoms) for layer in layers}
    names = {name for layer in layers for name in (layer.name, *layer.tops, *layer.bottoms)}
    several = sum(layer.type in _PREDICTING for layer in layers) - len(auxiliary) > 1
    numbers: Counter[str] = Counter()
    dropped: list[str] = []
    for index, layer in enumerate(layers):
        if layer.type in _SINKS:
            if layer.type == "Silence":
                unwanted.update(layer.bottoms)
            dropped.append(_called(layer))
        elif index in auxiliary:
            unwanted.update(layer.bottoms)
            lost.update(layer.tops)
            notes.append(f"the head of {_called(layer)} was left out: it weighs less than another of the same labels")
        elif layer.type in _PREDICTING and len(layer.tops) < 2 and _left_behind(layer) in made:
            lost.update(layer.tops)
            dropped.append(_called(layer))
        elif layer.type in _PREDICTING and layer.bottoms and layer.bottoms[0] not in lost:
            predicted = _prediction(layer, names, numbers, several)
            kept.append(predicted)
            names.update((predicted.name, *predicted.tops))
            lost.update(layer.tops[:1])
            notes.append(f"{_called(layer)} became a {predicted.type} that makes '{predicted.tops[0]}'")
        elif _judges(layer) or lost.intersection(layer.bottoms):
            lost.update(layer.tops)
            dropped.append(_called(layer))
        else:
            kept.append(layer)
    if dropped:
        shown = dropped if len(dropped) <= _SHOWN else [*dropped[:_SHOWN], f"{len(dropped) - _SHOWN} more"]
        notes.append(f"left out, as only training needs them: {', '.join(shown)}")
    return _Cut(kept, unwanted, notes)


def _auxiliary(layers: Sequence[Layer]) -> set[int]:
    """Indices of losses of the same type and labels as another that weighs more: heads that only help to train."""
    groups: dict[tuple[str, ...], dict[int, float]] = {}
    for index, layer in enumerate(layers):
        if layer.type in _PREDICTING and len(layer.bottoms) > 1:
            weight = layer.message.numbers("loss_weight")
            groups.setdefault((layer.type, *layer.bottoms[1:]), {})[index] = weight[0] if weight else 1.0
    most = {key: max(group.values()) for key, group in groups.items()}
    return {index for key, group in groups.items() for index, weight in group.items() if weight < most[key]}


def _left_behind(loss: Layer) -> tuple[str, ...]:
    """Type and bottom of the layer that stands in a loss."""
    return _PREDICTING[loss.type][0], *loss.bottoms[:1]


def _prediction(loss: Layer, names: set[str], numbers: Counter[str], several: bool) -> Layer:
    """The layer whose output ``loss`` compares with the labels. ``numbers``: how often each name was tried."""
    kind, bottom = _left_behind(loss)
    parameters = _PREDICTING[loss.type][1]
    name = start = loss.tops[1] if len(loss.tops) > 1 else f"{bottom}_prob" if several else "prob"
    while len(loss.tops) < 2 and name in names:
        numbers[start] += 1
        name = f"{start}_{numbers[start] + 1}"
    message = Message(
        loss.message.place,
        {
            "name": [name],
            "type": [kind],
            "bottom": [bottom],
            "top": [name],
            **({parameters: loss.message.fields[parameters]} if parameters in loss.message else {}),
        },
    )
    return Layer(name, kind, (bottom,), (name,), message)


def _called(layer: Layer) -> str:
    return f"'{layer.name}' ({layer.type})"

"""Layers that move, cut and join blobs without computing, and those that bring constants."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from retarget.convert.caffe.build import (
    Builder,
    Dimension,
    Lowering,
    Shape,
    Value,
    alike,
    canonical_axis,
    exactly,
    only,
    product,
    refuse,
    show,
    static,
    wrong,
)
from retarget.convert.caffe.net import Layer, Message


def concat(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Concat along ``axis``, in old nets ``concat_dim``."""
    if not inputs:
        raise wrong(layer, "has no bottom")
    parameters = layer.message.message("concat_param")
    axis = _axis(layer, parameters, "concat_dim", inputs[0].rank)
    alike(layer, *(bottom.shape for bottom in inputs), but=axis)
    if len(inputs) == 1:
        return inputs
    shape: Shape = (*inputs[0].shape[:axis], _sum([each.shape[axis] for each in inputs]), *inputs[0].shape[axis + 1 :])
    return [build.op("Concat", inputs, shape, axis=axis)]


def slice_(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Split along ``axis``, in old nets ``slice_dim``, at each ``slice_point`` or into equal parts."""
    bottom = only(layer, inputs)
    parameters = layer.message.message("slice_param")
    axis = _axis(layer, parameters, "slice_dim", bottom.rank)
    (size,) = static(layer, bottom, [axis])
    points, parts = parameters.integers("slice_point"), len(layer.tops)
    if points:
        if len(points) != parts - 1:
            raise wrong(layer, f"has {len(points)} slice_point for {parts} tops")
        edges = [0, *points, size]
    else:
        if parts == 0 or size % parts:
            raise wrong(layer, f"{size} elements do not divide into {parts} equal parts")
        edges = [size // parts * index for index in range(parts + 1)]
    sizes = [end - start for start, end in itertools.pairwise(edges)]
    if min(sizes) < 1:
        raise wrong(layer, f"cuts {size} elements at {', '.join(map(str, points))}")
    if parts == 1:
        return [bottom]
    shapes = [(*bottom.shape[:axis], part, *bottom.shape[axis + 1 :]) for part in sizes]
    return build.ops("Split", [bottom, build.integers(*sizes)], shapes, axis=axis)


def split(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:  # noqa: ARG001
    """Nothing: one blob under several names."""
    return [only(layer, inputs)] * len(layer.tops)


def silence(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:  # noqa: ARG001
    """Nothing: it takes blobs so that they are not outputs."""
    return []


def flatten(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Reshape of the axes from ``axis`` to ``end_axis`` to one."""
    bottom = only(layer, inputs)
    parameters = layer.message.message("flatten_param")
    start = canonical_axis(layer, parameters.integer("axis", 1), bottom.rank)
    end = canonical_axis(layer, parameters.integer("end_axis", -1), bottom.rank)
    if end < start:
        raise wrong(layer, f"end_axis {end} is before axis {start}")
    shape = (*bottom.shape[:start], product(bottom.shape[start : end + 1]), *bottom.shape[end + 1 :])
    return [build.reshape(bottom, shape)]


def reshape(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Reshape of ``num_axes`` axes from ``axis``; 0 copies a dimension, -1 is what is left."""
    bottom = only(layer, inputs)
    parameters = layer.message.message("reshape_param")
    given = parameters.message("shape").integers("dim")
    axis, axes = parameters.integer("axis"), parameters.integer("num_axes", -1)
    start = axis if axis >= 0 else bottom.rank + axis + 1
    end = bottom.rank if axes == -1 else start + axes
    if not 0 <= start <= end <= bottom.rank or axes < -1:
        raise wrong(layer, f"axis {axis} and num_axes {axes} of {show(bottom.shape)}")
    middle: list[Dimension] = []
    for index, dim in enumerate(given):
        if dim < -1 or (dim == 0 and start + index >= bottom.rank):
            raise wrong(layer, f"dim {dim} at {index} for {show(bottom.shape)}")
        middle.append(bottom.shape[start + index] if dim == 0 else dim)
    shape = [*bottom.shape[:start], *middle, *bottom.shape[end:]]
    if shape.count(-1) > 1:
        raise wrong(layer, "more than one dim is -1")
    known = [dim for dim in shape if dim != -1]
    rest = _divide(bottom.shape, known)
    if rest is None or (-1 not in shape and rest != 1):
        raise wrong(layer, f"{show(bottom.shape)} does not reshape to {show(shape)}")
    return [build.reshape(bottom, tuple(rest if dim == -1 else dim for dim in shape))]


def permute(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Transpose; axes that ``order`` leaves out keep their order behind the others. Of SSD."""
    bottom = only(layer, inputs)
    order = list(layer.message.message("permute_param").integers("order"))
    if len(set(order)) != len(order) or any(not 0 <= axis < bottom.rank for axis in order):
        raise wrong(layer, f"order is {', '.join(map(str, order))}, of {bottom.rank} axes")
    order += [axis for axis in range(bottom.rank) if axis not in order]
    if order == list(range(bottom.rank)):
        return [bottom]
    return [build.op("Transpose", [bottom], tuple(bottom.shape[axis] for axis in order), perm=order)]


def crop(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Slice of the axes from ``axis`` to the sizes of the second bottom, from ``offset``."""
    bottom, like = exactly(layer, inputs, 2)
    parameters = layer.message.message("crop_param")
    axis = canonical_axis(layer, parameters.integer("axis", 2), bottom.rank)
    if like.rank != bottom.rank:
        raise wrong(layer, f"its bottoms are {show(bottom.shape)} and {show(like.shape)}")
    cropped = range(axis, bottom.rank)
    offsets = parameters.integers("offset") or (0,)
    if len(offsets) == 1:
        offsets *= len(cropped)
    if len(offsets) != len(cropped) or min(offsets) < 0:
        raise wrong(layer, f"offset is {', '.join(map(str, offsets))} for {len(cropped)} axes")
    for index, offset in zip(cropped, offsets, strict=True):
        whole, part = bottom.shape[index], like.shape[index]
        if isinstance(whole, int) and isinstance(part, int) and offset + part > whole:
            raise wrong(layer, f"crops axis {index}, of {whole}, to {part} from {offset}")
    shape = (*bottom.shape[:axis], *like.shape[axis:])
    if shape == bottom.shape and not any(offsets):
        return [bottom]
    starts, axes = build.integers(*offsets), build.integers(*cropped)
    if any(isinstance(dim, str) for dim in like.shape[axis:]):
        sizes = build.op("Shape", [like], (len(cropped),), ir.DataType.INT64, start=axis)
        ends = build.op("Add", [sizes, starts], dtype=ir.DataType.INT64) if any(offsets) else sizes
    else:
        sizes_known = static(layer, like, cropped)
        ends = build.integers(*(offset + size for offset, size in zip(offsets, sizes_known, strict=True)))
    return [build.op("Slice", [bottom, starts, ends, axes], shape)]


def tile(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Tile: ``tiles`` copies along ``axis``."""
    bottom = only(layer, inputs)
    parameters = layer.message.message("tile_param")
    axis, tiles = canonical_axis(layer, parameters.integer("axis", 1), bottom.rank), parameters.integer("tiles")
    if tiles < 1:
        raise wrong(layer, f"tiles is {tiles}")
    repeats = [tiles if index == axis else 1 for index in range(bottom.rank)]
    shape = (*bottom.shape[:axis], product([bottom.shape[axis], tiles]), *bottom.shape[axis + 1 :])
    return [build.op("Tile", [bottom, build.integers(*repeats)], shape)]


def batch_reindex(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Gather of the batch's elements that the second bottom numbers."""
    bottom, numbers = exactly(layer, inputs, 2)
    if numbers.rank != 1:
        raise wrong(layer, f"its second bottom is {show(numbers.shape)}, not a list of numbers")
    whole = build.op("Cast", [numbers], dtype=ir.DataType.INT64, to=ir.DataType.INT64)
    return [build.op("Gather", [bottom, whole], (numbers.shape[0], *bottom.shape[1:]), axis=0)]


def shuffle_channel(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Reshape to groups, Transpose, Reshape back. Of ShuffleNet."""
    bottom = only(layer, inputs)
    if bottom.rank < 2:
        raise wrong(layer, f"needs a bottom of 2 or more dimensions, has one of {bottom.rank}")
    groups = layer.message.message("shuffle_channel_param").integer("group", 1)
    (channels,) = static(layer, bottom, [1])
    if groups < 1 or channels % groups:
        raise wrong(layer, f"group is {groups}, for {channels} channels")
    rest = product(bottom.shape[2:])
    grouped = build.reshape(bottom, (bottom.shape[0], groups, channels // groups, rest))
    turned = build.op("Transpose", [grouped], (bottom.shape[0], channels // groups, groups, rest), perm=[0, 2, 1, 3])
    return [build.reshape(turned, bottom.shape)]


def parameter(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """A constant: its weights."""
    exactly(layer, inputs, 0)
    if not layer.blobs:
        raise wrong(layer, "has no weights", "give the caffemodel that belongs to this prototxt")
    return [build.constant(layer.blobs[0])]


def dummy_data(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """A constant, where ``data_filler`` is one."""
    exactly(layer, inputs, 0)
    parameters = layer.message.message("dummy_data_param")
    shapes = [tuple(shape.integers("dim")) for shape in parameters.messages("shape")]
    if not shapes:
        sizes = [parameters.integers(name) for name in ("num", "channels", "height", "width")]
        shapes = list(zip(*sizes, strict=False))
    fillers = parameters.messages("data_filler") or (Message(parameters.place),)
    if len(shapes) not in (1, len(layer.tops)) or len(fillers) not in (1, len(layer.tops)):
        raise wrong(layer, f"has {len(shapes)} shapes and {len(fillers)} fillers for {len(layer.tops)} tops")
    values = []
    for index in range(len(layer.tops)):
        shape, filler = shapes[index % len(shapes)], fillers[index % len(fillers)]
        if filler.word("type", "constant") != "constant":
            raise refuse(layer, f"fills with random numbers ({filler.word('type')})", "make it an Input layer")
        value = ir.tensor(np.array([filler.number("value")], np.float32))
        values.append(
            build.op("ConstantOfShape", [build.integers(*shape)], shape, value=ir.serde.serialize_tensor(value))
        )
    return values


def _axis(layer: Layer, parameters: Message, old: str, rank: int) -> int:
    """``axis``, or what it was called before."""
    if old in parameters and "axis" in parameters:
        raise wrong(layer, f"has both axis and {old}")
    return canonical_axis(layer, parameters.integer(old if old in parameters else "axis", 1), rank)


def _sum(dims: Sequence[Dimension]) -> Dimension:
    total = sum(dim for dim in dims if isinstance(dim, int))
    symbols = [dim for dim in dims if isinstance(dim, str)]
    return " + ".join([*symbols, *([str(total)] if total else [])]) if symbols else total


def _divide(dims: Sequence[Dimension], by: Sequence[Dimension]) -> Dimension | None:
    """The product of ``dims`` through that of ``by``; None where it is not a whole number or not known to be one."""
    left = [dim for dim in dims if isinstance(dim, str)]
    for dim in by:
        if isinstance(dim, str):
            if dim not in left:
                return None
            left.remove(dim)
    above = product(dim for dim in dims if isinstance(dim, int))
    below = product(dim for dim in by if isinstance(dim, int))
    assert isinstance(above, int)
    assert isinstance(below, int)
    if below < 1:
        return None
    if above % below == 0:
        return product([*left, above // below])
    return f"{product([*left, above])}//{below}" if left else None


LAYERS: dict[str, Lowering] = {
    "BatchReindex": batch_reindex,
    "Concat": concat,
    "Crop": crop,
    "DummyData": dummy_data,
    "Flatten": flatten,
    "Parameter": parameter,
    "Permute": permute,
    "Reshape": reshape,
    "ShuffleChannel": shuffle_channel,
    "Silence": silence,
    "Slice": slice_,
    "Split": split,
    "Tile": tile,
}

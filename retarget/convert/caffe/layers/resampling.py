"""Layers that move elements to other places, or interpolate between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from retarget.convert.caffe.build import (
    Builder,
    Lowering,
    Value,
    canonical_axis,
    of_rank,
    only,
    product,
    refuse,
    show,
    static,
    wrong,
)
from retarget.convert.caffe.layers.pooling import pooling
from retarget.convert.caffe.layers.windows import count, per_axis
from retarget.convert.caffe.net import Layer, Message

INT64 = ir.DataType.INT64
_MOST_PICKED = 1024
"""Elements of a window of Im2col: their kernels have as many numbers each, so a million in all."""


def interp(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Bilinear, corners on corners. Formula: ``interp_layer`` of DeepLab's and PSPNet's Caffe.

    The size is as said, or that of a second bottom; a negative pad crops before.
    """
    parameters = layer.message.message("interp_param")
    bottom = of_rank(layer, inputs[0] if len(inputs) == 2 else only(layer, inputs), 4)
    begin, end = (parameters.integer(f"pad_{side}") for side in ("beg", "end"))
    if begin > 0 or end > 0:
        raise wrong(layer, f"pad_beg and pad_end are {begin} and {end}, must not be positive")
    if begin or end:
        dims = static(layer, bottom, (2, 3))
        ends = [dim + end for dim in dims]
        sides = [build.integers(*each) for each in ((-begin, -begin), ends, (2, 3))]
        bottom = build.op("Slice", [bottom, *sides], (*bottom.shape[:2], *(last + begin for last in ends)))
    height, width = _interpolated(layer, parameters, [bottom, *inputs[1:]])
    if bottom.shape[2:] == (height, width):
        return [build.op("Identity", [bottom])]
    sizes = _dims(build, bottom, height, width)
    resized = build.op(
        "Resize",
        [bottom, None, None, sizes],
        (*bottom.shape[:2], height, width),
        mode="linear",
        coordinate_transformation_mode="align_corners",
    )
    return [resized]


def _interpolated(layer: Layer, parameters: Message, inputs: Sequence[Value]) -> tuple[int, int]:
    """The height and width to interpolate to. One factor comes before height and width, both only after them."""
    shrinks, zooms = "shrink_factor" in parameters, "zoom_factor" in parameters
    if shrinks == zooms and "height" in parameters and "width" in parameters:
        sizes = [parameters.integer("height"), parameters.integer("width")]
    elif shrinks or zooms:
        shrink, zoom = parameters.integer("shrink_factor", 1), parameters.integer("zoom_factor", 1)
        if shrink < 1 or zoom < 1:
            raise wrong(layer, f"shrink_factor and zoom_factor are {shrink} and {zoom}, must be positive")
        sizes = [(size - 1) // shrink * zoom + 1 for size in static(layer, inputs[0], (2, 3))]
    elif len(inputs) == 2:
        sizes = list(static(layer, inputs[1], (2, 3)))
    else:
        raise wrong(layer, "says no size", "interp_param has height and width, zoom_factor, shrink_factor")
    if min(sizes) < 1:
        raise wrong(layer, f"height and width would be {sizes[0]} and {sizes[1]}")
    return sizes[0], sizes[1]


def upsample(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """One bottom: each element repeated, as YOLO's Caffe does. Two: SegNet's, see ``_unpool``."""
    if len(inputs) == 2:
        return [_unpool(layer, inputs, build)]
    parameters = layer.message.message("upsample_param")
    bottom = of_rank(layer, only(layer, inputs), 4)
    scale = parameters.integer("scale", 1)
    factors = parameters.integer("scale_h", scale), parameters.integer("scale_w", scale)
    if min(factors) < 1 or "upsample_h" in parameters or "upsample_w" in parameters:
        raise wrong(layer, "needs a scale, 1 or more, where it has no mask")
    scales = build.constant(np.array([1, 1, *factors], np.float32))
    shape = (*bottom.shape[:2], *(product(each) for each in zip(bottom.shape[2:], factors, strict=True)))
    resized = build.op(
        "Resize",
        [bottom, None, scales],
        shape,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    return [resized]


def _unpool(layer: Layer, inputs: Sequence[Value], build: Builder) -> Value:
    """Each element to where the mask, the second top of a max pooling, says that it came from; the rest is 0."""
    parameters = layer.message.message("upsample_param")
    bottom, mask = inputs
    if bottom.rank != 4 or mask.shape != bottom.shape:
        raise wrong(
            layer, f"needs a mask of the shape of its bottom, {show(bottom.shape)}, has one of {show(mask.shape)}"
        )
    height, width = _unpooled(layer, parameters, bottom)
    shape = (*bottom.shape[:2], height * width)
    flat = (*bottom.shape[:2], product(bottom.shape[2:]))
    blank = build.op("Expand", [build.number(0), _dims(build, bottom, height * width)], shape)
    places = build.op("Cast", [build.reshape(mask, flat)], dtype=INT64, to=INT64.value)
    spread = build.op("ScatterElements", [blank, places, build.reshape(bottom, flat)], axis=2)
    return build.reshape(spread, (*bottom.shape[:2], height, width))


def _unpooled(layer: Layer, parameters: Message, bottom: Value) -> tuple[int, int]:
    if "upsample_h" in parameters and "upsample_w" in parameters:
        return parameters.integer("upsample_h"), parameters.integer("upsample_w")
    height, width = static(layer, bottom, (2, 3))
    scale = parameters.integer("scale", 2)
    scale_h, scale_w = parameters.integer("scale_h", scale), parameters.integer("scale_w", scale)
    return height * scale_h - parameters.flag("pad_out_h"), width * scale_w - parameters.flag("pad_out_w")


def reorg(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """YOLOv2's passthrough: ``[N,C,H,W]`` to ``[N,C*s*s,H/s,W/s]``, or back with ``reverse``.

    Darknet's formula, which reads its input as ``[N,C/s/s,H*s,W*s]``, whatever it is, and writes ``[N,C,H,W]``; its
    nets were trained on that. It is no inverse of ``reverse``, which moves blocks of channels as DepthToSpace does.
    """
    parameters = layer.message.message("reorg_param")
    bottom = of_rank(layer, only(layer, inputs), 4)
    stride = parameters.integer("stride")
    images = bottom.shape[0]
    channels, height, width = static(layer, bottom, (1, 2, 3))
    if stride < 1 or channels % stride**2:
        raise wrong(layer, f"stride {stride} does not divide {channels} channels into its square")
    inner = channels // stride**2
    if parameters.flag("reverse"):
        shape = (images, inner, height * stride, width * stride)
        return [build.op("DepthToSpace", [bottom], shape, blocksize=stride, mode="DCR")]
    if height % stride or width % stride:
        raise wrong(layer, f"stride {stride} does not divide the size, {height}x{width}")
    blocks = build.reshape(bottom, (images, inner, height, stride, width, stride))
    moved = build.op("Transpose", [blocks], (images, stride, stride, inner, height, width), perm=[0, 3, 5, 1, 2, 4])
    return [build.reshape(moved, (images, channels * stride**2, height // stride, width // stride))]


def im2col(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Each window's elements as channels: a convolution whose kernels each pick one element."""
    parameters = layer.message.message("convolution_param")
    bottom = only(layer, inputs)
    axis = canonical_axis(layer, parameters.integer("axis", 1), bottom.rank)
    spatial = bottom.shape[axis + 1 :]
    if not spatial:
        raise wrong(layer, f"axis {axis} is the last, no spatial one follows")
    (channels,) = static(layer, bottom, (axis,))
    kernel = per_axis(layer, parameters, "kernel_size", len(spatial), None)
    stride = per_axis(layer, parameters, "stride", len(spatial), 1)
    pad = per_axis(layer, parameters, "pad", len(spatial), 0, smallest=0)
    dilation = per_axis(layer, parameters, "dilation", len(spatial), 1)
    elements = math.prod(kernel)
    if elements > _MOST_PICKED:
        raise refuse(layer, f"windows of {elements} elements, more than {_MOST_PICKED}: each would need a kernel")
    picks = np.tile(np.eye(elements, dtype=np.float32), (channels, 1)).reshape(-1, 1, *kernel)
    windows = tuple(
        count(size, (taps - 1) * gap + 1, step, 2 * padding)
        for size, taps, gap, step, padding in zip(spatial, kernel, dilation, stride, pad, strict=True)
    )
    flat = build.reshape(bottom, (product(bottom.shape[:axis]), channels, *spatial))
    picked = build.op(
        "Conv",
        [flat, build.constant(picks)],
        (flat.shape[0], channels * elements, *windows),
        kernel_shape=kernel,
        strides=stride,
        pads=[*pad, *pad],
        dilations=dilation,
        group=channels,
    )
    return [build.reshape(picked, (*bottom.shape[:axis], channels * elements, *windows))]


def spp(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """Pyramid pooling: poolings of 1, 2, 4 ... bins a side, as Caffe builds it, flattened and joined."""
    parameters = layer.message.message("spp_param")
    bottom = only(layer, inputs)
    levels = parameters.integer("pyramid_height")
    if levels < 1:
        raise wrong(layer, f"pyramid_height is {levels}, must be positive")
    sizes = static(layer, bottom, (2, 3))
    pooled: list[Value] = []
    for level in range(levels):
        made = Message(layer.message.place, {"pooling_param": (_bins(parameters, sizes, 2**level),)})
        pooled += pooling(replace(layer, message=made, tops=layer.tops[:1]), [bottom], build)
    if levels == 1:
        return pooled
    flat = [build.reshape(each, (each.shape[0], product(each.shape[1:]))) for each in pooled]
    width = sum(static(layer, each, (1,))[0] for each in flat)
    return [build.op("Concat", flat, (bottom.shape[0], width), axis=1)]


def _bins(parameters: Message, sizes: Sequence[int], bins: int) -> Message:
    """The pooling of ``bins`` a side: what is missing to a multiple of them is padded, half of it before."""
    fields: dict[str, Sequence[str | int]] = {"pool": (parameters.word("pool", "MAX"),)}
    for side, size in zip("hw", sizes, strict=True):
        kernel = -(-size // bins)
        fields[f"kernel_{side}"] = fields[f"stride_{side}"] = (kernel,)
        fields[f"pad_{side}"] = ((kernel * bins - size + 1) // 2,)
    return Message(parameters.place, fields)


def _dims(build: Builder, bottom: Value, *rest: int) -> Value:
    """int64: the first two sizes of ``bottom``, then ``rest``."""
    first = bottom.shape[:2]
    known = [dim for dim in first if isinstance(dim, int)]
    if len(known) == len(first):
        return build.integers(*known, *rest)
    shape = build.op("Shape", [bottom], (2,), INT64, start=0, end=2)
    return build.op("Concat", [shape, build.integers(*rest)], (2 + len(rest),), INT64, axis=0)


LAYERS: dict[str, Lowering] = {
    "Im2col": im2col,
    "Interp": interp,
    "Reorg": reorg,
    "SPP": spp,
    "Upsample": upsample,
}

"""GridSample and DeformConv by ncnn's layers; AffineGrid and RoiAlign by products of matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets import affine
from retarget.targets.ncnn.call import Call, Op
from retarget.targets.ncnn.ops.comparison import above, opposite
from retarget.targets.ncnn.ops.convolution import (
    BIAS,
    COUNT,
    DYNAMIC,
    GROUPS,
    OUTPUTS,
    constant_bias,
    window_params,
    with_bias,
)
from retarget.targets.ncnn.ops.elementwise import (
    ABS,
    ADD,
    DIV,
    FLOOR,
    FROM,
    MAX,
    MIN,
    MUL,
    NEG,
    ROUND,
    SUB,
    by_number,
    function,
    joined,
)
from retarget.targets.ncnn.ops.places import MOST_PLACES
from retarget.targets.ncnn.ops.reduction import MEAN, reduced
from retarget.targets.ncnn.ops.slices import cut
from retarget.targets.ncnn.ops.windows import Windows, windows
from retarget.targets.ncnn.program import MASK, NO_HALF, Blob, Param, Weight
from retarget.targets.ncnn.values import Refusal, Value

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.ncnn.values import Result

SAMPLE, PADDING, CORNERS = 0, 1, 2
"""Keys of GridSample."""

LINEAR, NEAREST, CUBIC = 1, 2, 3
MODES = {"nearest": NEAREST, "linear": LINEAR, "bilinear": LINEAR, "cubic": CUBIC, "bicubic": CUBIC}
"""``SAMPLE``."""

ZEROS, BORDER, REFLECTION = 1, 2, 3
PADDINGS = {"zeros": ZEROS, "border": BORDER, "reflection": REFLECTION}
"""``PADDING``. ncnn throws back what lies outside once, and no more."""

IMAGE, VOLUME = 4, 5
"""Axes of what is sampled."""


# ---- GridSample


def grid_sample(call: Call) -> Result:
    x, sizes = call.spread(0), call.shape(0)[2:]
    asked = call.attributes.get_string("mode") or "linear"
    mode = MODES[asked]
    kind = PADDINGS[call.attributes.get_string("padding_mode") or "zeros"]
    corners = call.attributes.get_int("align_corners", 0) != 0
    if call.rank(0) not in (IMAGE, VOLUME) or (mode == CUBIC and call.rank(0) != IMAGE):
        raise Refusal(f"mode={asked} along {len(sizes)} axes: ncnn samples images, and volumes but not cubic")
    if mode == CUBIC and kind == REFLECTION and min(sizes) < CUBIC:
        raise Refusal(f"cubic, of {list(sizes)}: what is thrown back at one end reaches the other")
    if math.prod(sizes) > MOST_PLACES:
        raise Refusal(f"it samples {math.prod(sizes)} elements, and GridSample tells {MOST_PLACES} apart")
    grid = call.spread(1)
    places = call.view(grid, grid.shape[1:])
    if mode == NEAREST:
        places, kind = _rounded(call, places, sizes, kind, corners=corners), ZEROS if kind == ZEROS else BORDER
        corners = False
    elif kind == REFLECTION:
        places = _reflected(call, places)
        # Between the outermost elements and half an element further it is the outermost.
        kind = kind if mode == CUBIC else BORDER
    made = _sampled(call, call.view(x, x.shape[1:]), places, mode, kind, corners=corners)
    return call.made(made, (x.shape[0], *made.dims))


def _sampled(call: Call, x: Blob, places: Blob, mode: int, kind: int, *, corners: bool) -> Blob:
    # Places in halves would be those of other elements.
    params: dict[int, Param] = {SAMPLE: mode, PADDING: kind, CORNERS: int(corners), MASK: NO_HALF}
    return call.add("GridSample", (x, places), (x.dims[0], *places.dims[:-1]), params)


def _reflected(call: Call, places: Blob) -> Blob:
    """Places thrown back at -1 and 1, as often as it takes."""
    far = by_number(call, ADD, places, 1.0)
    turns = function(call, FLOOR, by_number(call, MUL, far, 0.25))
    rest = joined(call, SUB, far, by_number(call, MUL, turns, 4.0))
    return by_number(call, FROM, function(call, ABS, by_number(call, SUB, rest, 2.0)), 1.0)


def _rounded(call: Call, places: Blob, sizes: Sequence[int], kind: int, *, corners: bool) -> Blob:
    """Places from -1 to 1 as those of the middles of the elements next to them, for ncnn without ``CORNERS``.

    Of two that are as near ONNX takes the even one, and ncnn the later.
    """
    size = np.array(sizes[::-1], np.float32)  # the last axis is the first number of a place
    if corners:
        number = _each(call, MUL, by_number(call, ADD, places, 1.0), (size - 1) / 2)
    else:
        number = by_number(
            call, MUL, by_number(call, SUB, _each(call, MUL, by_number(call, ADD, places, 1.0), size), 1.0), 0.5
        )
    number = function(call, ROUND, number)
    if kind == REFLECTION:
        low, span = (0.0, size - 1) if corners else (-0.5, size)
        if not span.all():
            raise Refusal("reflection of one element, with align_corners=1: there is nothing to throw back at")
        far = by_number(call, SUB, number, low)
        turns = function(call, FLOOR, _each(call, DIV, far, 2 * span))
        rest = joined(call, SUB, far, _each(call, MUL, turns, 2 * span))
        back = function(call, ABS, _each(call, SUB, rest, span))
        number = _each(call, FROM, back, low + span)
    return _each(call, ADD, _each(call, MUL, number, 2 / size), 1 / size - 1)


def _each(call: Call, op: int, blob: Blob, numbers: Array) -> Blob:
    """``op`` on ``blob`` and a number for each element of its last axis."""
    return joined(call, op, blob, _constant(call, numbers, [1] * (len(blob.dims) - 1) + [-1]))


def _constant(call: Call, array: Array, shape: Sequence[int]) -> Blob:
    held = np.ascontiguousarray(array, np.float32).reshape(shape)
    return call.lowering.memory(held, held.shape)


# ---- products


def affine_grid(call: Call) -> Result:
    """The places of all results, a constant, times the matrices."""
    matrices = call.spread(0)
    sizes = call.numbers(1, "the size")[2:]
    base = _constant(call, affine.places(call.node, sizes), (-1, len(sizes) + 1))
    other = call.view(matrices, matrices.shape[1:])
    made = call.add("MatMul", (base, other), (base.dims[0], len(sizes)), {0: 1})  # the second one turned over
    return call.made(made, (matrices.shape[0], *sizes, len(sizes)))


def roi_align(call: Call) -> Result:
    """Averages of samples between elements: of each box a matrix for the rows, the image, and one for the columns.

    ncnn's ROIAlign reads behind the image for a sample that lies just at its end.
    """
    attributes, shape, boxes = call.attributes, call.shape(0), call.spread(1)
    mode, samples = attributes.get_string("mode") or "avg", attributes.get_int("sampling_ratio", 0)
    if mode != "avg":
        raise Refusal(f"mode={mode}: it is composed for averages")
    if samples < 1:
        raise Refusal(f"sampling_ratio={samples}: how many samples there are hangs on the size of each box")
    if shape[0] != 1:
        raise Refusal(f"{shape[0]} images: which one a box is of is computed")
    image = call.view(call.whole(0), shape[1:])
    outs = attributes.get_int("output_height", 1), attributes.get_int("output_width", 1)
    down, across = (
        _box_weights(call, boxes, axis, size, out, samples)
        for axis, size, out in ((1, shape[2], outs[0]), (0, shape[3], outs[1]))
    )
    rows = call.add("MatMul", (down, image), (shape[1], outs[0], shape[3]))
    made = call.add("MatMul", (rows, across), (shape[1], *outs), {0: 1})
    return call.made(made, (boxes.shape[0], shape[1], *outs))


def _box_weights(call: Call, boxes: Value, axis: int, size: int, out: int, samples: int) -> Blob:
    """(1, out, size) of each box: how much of each element along an axis each result has."""
    scale = call.attributes.get_float("spatial_scale", 1.0)
    half = (call.attributes.get_string("coordinate_transformation_mode") or "half_pixel") == "half_pixel"
    start, end = (
        by_number(call, MUL, call.view(cut(call, boxes, {1: (at, at + 1)}), (1, 1)), scale) for at in (axis, axis + 2)
    )
    extent = joined(call, SUB, end, start)
    if half:
        start = by_number(call, SUB, start, 0.5)
    else:
        extent = by_number(call, MAX, extent, 1.0)
    steps = _constant(call, (np.arange(out * samples) + 0.5) / (out * samples), (-1, 1))
    at = joined(call, ADD, start, joined(call, MUL, extent, steps))
    place = by_number(call, MIN, by_number(call, MAX, at, 0.0), float(size - 1))
    elements = _constant(call, np.arange(size), (1, -1))
    distance = function(call, ABS, joined(call, SUB, place, elements))
    near = by_number(call, MAX, by_number(call, FROM, distance, 1.0), 0.0)
    # A sample further out than an element counts, and is 0.
    for beyond in (above(call, at, float(size)), above(call, function(call, NEG, at), 1.0)):
        near = joined(call, MUL, near, opposite(call, beyond))
    weights = call.lowering.reshaped(near, (out, samples, size), call.node.name or "")
    mean = reduced(call, MEAN, weights, [1], keeps=False)
    return call.lowering.reshaped(mean, (1, out, size), call.node.name or "")


# ---- DeformConv


def deform_conv(call: Call) -> Result:
    """A DeformableConv2D for the channels that have weights and offsets in common."""
    if call.rank(0) != IMAGE:
        raise Refusal(f"{call.rank(0) - 2} spatial axes: ncnn has it of images")
    found = windows(call, call.shape(1)[2:])
    groups, parts = call.attributes.get_int("group", 1), call.attributes.get_int("offset_group", 1)
    (count, channels, *_), outputs = call.shape(0), call.shape(1)[0]
    if not call.is_constant(1):
        columns = _columns(call, found, parts)
        weight = call.whole(1)
        kernel = call.view(weight, (outputs, columns.dims[0] // groups, 1, 1))
        made = call.add(
            "Convolution" if groups == 1 else "ConvolutionDepthWise",
            (columns, kernel),
            (outputs, *found.outs),
            {OUTPUTS: outputs, 1: 1, **({GROUPS: groups} if groups > 1 else {}), DYNAMIC: 1},
        )
        return call.made(with_bias(call, made, 3), (count, outputs, *found.outs))
    weights = call.array(1, "the weights")
    step = channels // math.lcm(groups, parts)  # channels that are of one group, and of one of the offsets
    bias = constant_bias(call, 3)
    sums: list[Blob] = []
    for group in range(groups):
        own = slice(group * outputs // groups, (group + 1) * outputs // groups)
        total: Blob | None = None
        for first in range(group * channels // groups, (group + 1) * channels // groups, step):
            part, inside = first * parts // channels, first - group * channels // groups
            held = [Weight(np.ascontiguousarray(weights[own, inside : inside + step]))]
            if bias and total is None:
                held.append(Weight(np.ascontiguousarray(bias[0].array[own]), tagged=False))
            made = _deformed(call, found, first, step, part, held)
            total = made if total is None else joined(call, ADD, total, made)
        assert total is not None
        sums.append(total)
    made = sums[0] if groups == 1 else call.add("Concat", sums, (outputs, *found.outs), {0: 0})
    made = made if bias else with_bias(call, made, 3)
    return call.made(made, (count, *made.dims))


def _columns(call: Call, found: Windows, parts: int) -> Blob:
    """What each tap of each channel sees, as channels."""
    step, taps = call.shape(0)[1] // parts, math.prod(found.kernel)
    every = Weight(np.eye(step * taps, dtype=np.float32).reshape(step * taps, step, *found.kernel))
    seen = [_deformed(call, found, step * part, step, part, [every]) for part in range(parts)]
    return seen[0] if parts == 1 else call.add("Concat", seen, (step * taps * parts, *found.outs), {0: 0})


def _deformed(call: Call, found: Windows, first: int, step: int, part: int, weights: Sequence[Weight]) -> Blob:
    """The layer on ``step`` channels from ``first`` on, whose offsets are the ``part``-th."""
    taps, outputs = math.prod(found.kernel), weights[0].array.shape[0]
    bottoms = [
        _channels(call, call.spread(index), start, count)
        for index, start, count in ((0, first, step), (2, 2 * taps * part, 2 * taps), (4, taps * part, taps))
        if call.has(index)
    ]
    params = {**window_params(found), OUTPUTS: outputs, COUNT: weights[0].array.size, BIAS: len(weights) - 1}
    return call.add("DeformableConv2D", bottoms, (outputs, *found.outs), dict(sorted(params.items())), weights)


def _channels(call: Call, value: Value, first: int, count: int) -> Blob:
    """Some channels of an image."""
    part = cut(call, value, {1: (first, first + count)})
    return call.view(part, part.shape[1:])


OPS: Mapping[str, Op] = {
    "AffineGrid": Op(affine_grid),
    "DeformConv": Op(deform_conv),
    "GridSample": Op(grid_sample),
    "RoiAlign": Op(roi_align),
}

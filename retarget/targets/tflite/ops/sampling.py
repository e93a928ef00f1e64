"""GridSample, AffineGrid and DeformConv, of gathers and arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retarget.targets import affine
from retarget.targets.tflite.call import FUSING, Call, Op
from retarget.targets.tflite.layout import Layout, Way, stored
from retarget.targets.tflite.ops.convolution import IMAGE
from retarget.targets.tflite.ops.weights import bias_tensor
from retarget.targets.tflite.ops.windows import Window, windows
from retarget.targets.tflite.program import Constant, Options
from retarget.targets.tflite.values import Refusal, Value

EXACT = 1 << 24
"""Integers up to it are exact as float32."""

CUBIC = -0.75
"""The coefficient that ONNX's GridSample has."""


@dataclass(frozen=True)
class Sampling:
    """How results are made of elements, and what lies outside."""

    mode: str
    padding: str
    corners: bool
    """Whether -1 and 1 are the first and the last element, rather than the ends of the axis."""


@dataclass(frozen=True)
class Tap:
    """One element along an axis that results are made of: its number, as a float, and its weight; None for 1."""

    index: Value
    weight: Value | None


def grid_sample(call: Call) -> Value:
    """Each result is a sum of elements of the operand, which are rows [batch, element, channel] for the kernels."""
    source, grid = call.value(0), call.value(1)
    batch, channels, *sizes = source.shape
    outs = grid.shape[1:-1]
    elements, points = math.prod(sizes), math.prod(outs)
    if elements >= EXACT:
        raise Refusal(f"{elements} elements: their numbers are not exact as floats")
    attributes = call.attributes
    how = Sampling(
        attributes.get_string("mode") or "linear",
        attributes.get_string("padding_mode") or "zeros",
        attributes.get_int("align_corners", 0) != 0,
    )
    rows = _rows(call, source, (batch, elements, channels))
    places = call.reshape(grid, (batch, points, len(sizes)), layout=Layout.FIRST)
    # The last number of a place is that along the first axis.
    axes = [
        _taps(call, _spread(call, _column(call, places, len(sizes) - 1 - axis), size, how), size, how)
        for axis, size in enumerate(sizes)
    ]
    return _image(call, _sampled(call, rows, axes, sizes), (batch, channels, *outs))


def affine_grid(call: Call) -> Value:
    """The places of all results, a constant, times the matrices."""
    matrices = call.value(0)
    sizes = call.numbers(1, "the size")[2:]
    base = affine.places(call.node, sizes).astype(np.float32)
    left = call.lowering.constant(Constant.of(base[None]))
    shape = (matrices.shape[0], base.shape[0], len(sizes))
    options = Options("BatchMatMulOptions", {"adjY": True})
    made = call.emit("BATCH_MATMUL", [left, matrices], shape, np.float32, options)
    return call.reshape(made, (matrices.shape[0], *sizes, len(sizes)))


def deform_conv(call: Call) -> Value:
    """Each tap of the kernel sees the image at a place of its own, and between elements; then a product sums them."""
    source, weight, offsets = call.value(0), call.operand(1), call.value(2)
    if source.rank != IMAGE:
        raise Refusal(f"{source.rank - 2} spatial axes: it is composed for two")
    if (groups := call.attributes.get_int("group", 1)) != 1:
        raise Refusal(f"group={groups}: it is composed for one")
    batch, channels, *sizes = source.shape
    found = windows(call, sizes, weight.shape[2:])
    parts = call.attributes.get_int("offset_group", 1)
    taps, points = math.prod(weight.shape[2:]), math.prod(window.out for window in found)
    if math.prod(sizes) >= EXACT:
        raise Refusal(f"{math.prod(sizes)} elements: their numbers are not exact as floats")
    rows = _rows(call, source, (batch, math.prod(sizes), channels))
    moved = call.reshape(offsets, (batch, parts * taps, 2, points), layout=Layout.FIRST)
    mask = call.value(4) if call.has(4) else None
    if mask is not None:
        mask = call.reshape(mask, (batch, parts * taps, 1, points), layout=Layout.FIRST)
    each = channels // parts
    seen = [
        _deformed(call, _cut(call, rows, (0, 0, part * each), (batch, rows.shape[1], each)), moved, mask, part, found)
        for part in range(parts)
    ]
    whole = seen[0]
    if parts > 1:
        options = Options("ConcatenationOptions", {"axis": 2})
        shape = (batch, taps * points, channels)
        whole = call.emit("CONCATENATION", seen, shape, options=options, layout=Layout.FIRST)
    apart = call.reshape(whole, (batch, taps, points, channels), layout=Layout.FIRST)
    columns = _transposed(call, apart, (0, 2, 1, 3))
    columns = call.reshape(columns, (batch, points, taps * channels), layout=Layout.FIRST)
    count = weight.shape[0]
    if isinstance(weight, Constant):
        matrix: Value | Constant = weight.transposed((0, 2, 3, 1)).reshaped((count, taps * channels))
    else:
        matrix = call.reshape(_transposed(call, weight, (0, 2, 3, 1)), (count, taps * channels), layout=Layout.FIRST)
    inputs = [call.tensor(each, layout=Layout.FIRST) for each in (columns, matrix)]
    inputs.append(bias_tensor(call, call.operand(3) if call.has(3) else None, count))
    shape = (batch, points, count)
    options = Options("FullyConnectedOptions", {"keepNumDims": True})
    made = call.emit("FULLY_CONNECTED", inputs, shape, np.float32, options, layout=Layout.FIRST)
    return _image(call, made, (batch, count, *(window.out for window in found)))


def _deformed(call: Call, rows: Value, moved: Value, mask: Value | None, part: int, found: Sequence[Window]) -> Value:
    """What all taps see of ``rows``: [batch, tap * point, channel]. ``moved``: how far from where a Conv looks."""
    batch, _, _, points = moved.shape
    kernel = [window.kernel for window in found]
    taps = math.prod(kernel)
    shape = (batch, taps * points, 1)
    axes = []
    for axis, window in enumerate(found):
        starts = np.arange(window.out) * window.stride - window.begin
        lines = np.arange(window.kernel)[:, None] * window.dilation + starts
        # [tap, tap, result, result] of the two axes
        grid = lines.reshape([window.kernel, 1, window.out, 1] if axis == 0 else [1, window.kernel, 1, window.out])
        places = np.broadcast_to(grid, (*kernel, *(each.out for each in found))).reshape(1, taps * points, 1)
        by = _cut(call, moved, (0, part * taps, axis, 0), (batch, taps, 1, points))
        by = call.reshape(by, shape, layout=Layout.FIRST)
        at = call.emit(
            "ADD", [by, places.astype(np.float32)], shape, options=Options("AddOptions"), layout=Layout.FIRST
        )
        axes.append(_taps(call, at, window.size, Sampling("linear", "zeros", corners=False)))
    made = _sampled(call, rows, axes, [window.size for window in found])
    if mask is None:
        return made
    own = _cut(call, mask, (0, part * taps, 0, 0), (batch, taps, 1, points))
    return _math(call, "MUL", made, call.reshape(own, shape, layout=Layout.FIRST))


def _cut(call: Call, value: Value, starts: Sequence[int], sizes: tuple[int, ...]) -> Value:
    if sizes == value.shape:
        return value
    bounds = [call.ints(starts), call.ints(sizes)]
    return call.emit("SLICE", [value, *bounds], sizes, options=Options("SliceOptions"), layout=Layout.FIRST)


def _transposed(call: Call, value: Value, perm: Sequence[int]) -> Value:
    shape = [value.shape[axis] for axis in perm]
    options = Options("TransposeOptions")
    return call.emit("TRANSPOSE", [value, call.ints(perm)], shape, options=options, layout=Layout.FIRST)


def _rows(call: Call, source: Value, shape: tuple[int, int, int]) -> Value:
    """``source``, which is stored with the channels last, as [batch, element, channel]."""
    rows = call.lowering.new(shape, source.dtype, Layout.FIRST)
    (made,) = rows.forms.values()
    tensor = call.lowering.form(source, Layout.LAST)
    call.lowering.add("RESHAPE", (tensor, call.ints(shape)), made, Options("ReshapeOptions"), call.node.name or "")
    return rows


def _column(call: Call, places: Value, number: int) -> Value:
    return _cut(call, places, (0, 0, number), (*places.shape[:2], 1))


def _sampled(call: Call, rows: Value, axes: Sequence[Sequence[Tap]], sizes: Sequence[int]) -> Value:
    """The sums of the elements that one tap of each axis names."""
    total: Value | None = None
    for taps in itertools.product(*axes):
        part = _gathered(call, rows, taps, sizes)
        total = part if total is None else _math(call, "ADD", total, part)
    assert total is not None
    return total


def _image(call: Call, rows: Value, shape: tuple[int, ...]) -> Value:
    """Rows [batch, point, channel] as the result of ``shape``, stored with the channels last."""
    result = call.lowering.new(shape, rows.dtype, Layout.LAST)
    (made,) = result.forms.values()
    sizes = call.ints(stored(shape, Layout.LAST))
    tensor = call.lowering.form(rows, Layout.FIRST)
    call.lowering.add("RESHAPE", (tensor, sizes), made, Options("ReshapeOptions"), call.node.name or "")
    return result


def _spread(call: Call, place: Value, size: int, how: Sampling) -> Value:
    """``place``, from -1 to 1, as a number of an element along an axis of ``size``."""
    if how.corners:
        return _math(call, "MUL", _math(call, "DIV", _math(call, "ADD", place, 1.0), 2.0), float(size - 1))
    wide = _math(call, "MUL", _math(call, "ADD", place, 1.0), float(size))
    return _math(call, "DIV", _math(call, "SUB", wide, 1.0), 2.0)


def _taps(call: Call, at: Value, size: int, how: Sampling) -> list[Tap]:
    """What results at the elements ``at``, and between them, are made of along an axis of ``size``."""
    if how.mode == "nearest":
        return [_tap(call, _single(call, "ROUND", at), None, size, how)]
    first = _single(call, "FLOOR", at)
    after = _math(call, "SUB", at, first)
    if how.mode in ("linear", "bilinear"):
        return [
            _tap(call, first, _math(call, "SUB", 1.0, after), size, how),
            _tap(call, _math(call, "ADD", first, 1.0), after, size, how),
        ]
    distances = [_math(call, "ADD", after, 1.0), after, _math(call, "SUB", 1.0, after), _math(call, "SUB", 2.0, after)]
    return [
        _tap(call, _math(call, "ADD", first, float(number - 1)), _cubic(call, each, far=number in (0, 3)), size, how)
        for number, each in enumerate(distances)
    ]


def _cubic(call: Call, x: Value, *, far: bool) -> Value:
    """The weight of an element at the distance ``x``: up to 1, or ``far`` from 1 to 2."""
    a = CUBIC
    factors = [a, -5 * a, 8 * a, -4 * a] if far else [a + 2, -(a + 3), 0.0, 1.0]
    made = _math(call, "MUL", x, factors[0])
    for factor in factors[1:-1]:
        made = _math(call, "MUL", _math(call, "ADD", made, factor), x)
    return _math(call, "ADD", made, factors[-1])


def _tap(call: Call, index: Value, weight: Value | None, size: int, how: Sampling) -> Tap:
    """``index``, which may lie outside, as the padding takes it: what lies outside is another element, or weighs 0."""
    if how.padding == "reflection" and size > 1:
        index = _reflected(call, index, size, how)
    inside = _math(call, "MINIMUM", _math(call, "MAXIMUM", index, 0.0), float(size - 1))
    if how.padding != "zeros":
        return Tap(inside, weight)
    equal = call.emit("EQUAL", [inside, index], index.shape, np.bool_, Options("EqualOptions"), layout=Layout.FIRST)
    mask = call.emit("CAST", [equal], index.shape, np.float32, Options("CastOptions"), layout=Layout.FIRST)
    return Tap(inside, mask if weight is None else _math(call, "MUL", weight, mask))


def _reflected(call: Call, index: Value, size: int, how: Sampling) -> Value:
    """``index`` thrown back at both ends, as often as it takes: the ends are elements, or half an element further."""
    low, length = (0.0, size - 1.0) if how.corners else (-0.5, float(size))
    far = _single(call, "ABS", _math(call, "SUB", index, low))
    turns = _single(call, "FLOOR", _math(call, "DIV", far, 2 * length))
    rest = _math(call, "SUB", far, _math(call, "MUL", turns, 2 * length))
    back = _single(call, "ABS", _math(call, "SUB", rest, length))
    return _math(call, "SUB", low + length, back)


def _gathered(call: Call, rows: Value, taps: Sequence[Tap], sizes: Sequence[int]) -> Value:
    """The elements that ``taps`` name, one along each axis, times their weights."""
    index, weight = taps[0].index, taps[0].weight
    for tap, size in zip(taps[1:], sizes[1:], strict=True):
        index = _math(call, "ADD", _math(call, "MUL", index, float(size)), tap.index)
        if tap.weight is not None:
            weight = tap.weight if weight is None else _math(call, "MUL", weight, tap.weight)
    batch, points, _ = index.shape
    flat = call.reshape(index, (batch, points), layout=Layout.FIRST)
    number = call.emit("CAST", [flat], flat.shape, np.int32, Options("CastOptions"), layout=Layout.FIRST)
    shape = (batch, points, rows.shape[2])
    options = Options("GatherOptions", {"axis": 1, "batchDims": 1})
    part = call.emit("GATHER", [rows, number], shape, options=options, layout=Layout.FIRST)
    return part if weight is None else _math(call, "MUL", part, weight)


def _single(call: Call, code: str, value: Value) -> Value:
    return call.emit(code, [value], value.shape, layout=Layout.FIRST)


def _math(call: Call, code: str, left: Value | float, right: Value | float) -> Value:
    shape = np.broadcast_shapes(*(each.shape for each in (left, right) if isinstance(each, Value)))
    table = FUSING.get(code, "MaximumMinimumOptions")
    return call.emit(code, [left, right], shape, np.float32, Options(table), layout=Layout.FIRST)


OPS: Mapping[str, Op] = {
    "AffineGrid": Op(affine_grid),
    "DeformConv": Op(deform_conv, Way.LAST, operands=(0,)),
    "GridSample": Op(grid_sample, Way.LAST, operands=(0,)),
}

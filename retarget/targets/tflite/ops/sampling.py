"""GridSample and AffineGrid, of gathers and arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retarget.targets.tflite.layout import Layout, Way, stored
from retarget.targets.tflite.lowering import FUSING, Call, Op, Refusal, Value
from retarget.targets.tflite.program import Constant, Options

EXACT = 1 << 24
"""Integers up to it are exact as float32."""

CUBIC = -0.75
"""The coefficient that ONNX's GridSample has."""


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
    rows = _rows(call, source, (batch, elements, channels))
    places = call.reshape(grid, (batch, points, len(sizes)), layout=Layout.FIRST)
    # The last number of a place is that along the first axis.
    axes = [_taps(call, _column(call, places, len(sizes) - 1 - axis), size) for axis, size in enumerate(sizes)]
    total: Value | None = None
    for taps in itertools.product(*axes):
        part = _gathered(call, rows, taps, sizes)
        total = part if total is None else _math(call, "ADD", total, part)
    assert total is not None
    result = call.lowering.new((batch, channels, *outs), total.dtype, Layout.LAST)
    (made,) = result.forms.values()
    shape = call.ints(stored(result.shape, Layout.LAST))
    tensor = call.lowering.form(total, Layout.FIRST)
    call.lowering.add("RESHAPE", (tensor, shape), made, Options("ReshapeOptions"), call.node.name or "")
    return result


def affine_grid(call: Call) -> Value:
    """The places of all results, a constant, times the matrices."""
    matrices = call.value(0)
    sizes = call.numbers(1, "the size")[2:]
    corners = bool(call.attributes.get_int("align_corners", 0))
    if corners and 1 in sizes:
        raise Refusal("align_corners=1 along an axis of one element: ONNX does not say where it lies")
    axes = [np.linspace(-1, 1, size) if corners else (2 * np.arange(size) + 1) / size - 1 for size in sizes]
    # The last axis is the first number of a place.
    places = [each.reshape(-1) for each in np.meshgrid(*axes, indexing="ij")][::-1]
    base = np.stack([*places, np.ones(math.prod(sizes))], axis=1).astype(np.float32)
    left = call.lowering.constant(Constant.of(base[None]))
    shape = (matrices.shape[0], base.shape[0], len(sizes))
    options = Options("BatchMatMulOptions", {"adjY": True})
    made = call.emit("BATCH_MATMUL", [left, matrices], shape, np.float32, options)
    return call.reshape(made, (matrices.shape[0], *sizes, len(sizes)))


def _rows(call: Call, source: Value, shape: tuple[int, int, int]) -> Value:
    """``source``, which is stored with the channels last, as [batch, element, channel]."""
    rows = call.lowering.new(shape, source.dtype, Layout.FIRST)
    (made,) = rows.forms.values()
    tensor = call.lowering.form(source, Layout.LAST)
    call.lowering.add("RESHAPE", (tensor, call.ints(shape)), made, Options("ReshapeOptions"), call.node.name or "")
    return rows


def _column(call: Call, places: Value, number: int) -> Value:
    batch, points, _ = places.shape
    bounds = [call.ints([0, 0, number]), call.ints([batch, points, 1])]
    return call.emit(
        "SLICE", [places, *bounds], (batch, points, 1), options=Options("SliceOptions"), layout=Layout.FIRST
    )


def _taps(call: Call, place: Value, size: int) -> list[Tap]:
    """What results at ``place``, from -1 to 1, are made of along an axis of ``size``."""
    if call.attributes.get_int("align_corners", 0):
        at = _math(call, "MUL", _math(call, "DIV", _math(call, "ADD", place, 1.0), 2.0), float(size - 1))
    else:
        wide = _math(call, "MUL", _math(call, "ADD", place, 1.0), float(size))
        at = _math(call, "DIV", _math(call, "SUB", wide, 1.0), 2.0)
    mode = call.attributes.get_string("mode") or "linear"
    if mode == "nearest":
        return [_tap(call, _single(call, "ROUND", at), None, size)]
    first = _single(call, "FLOOR", at)
    after = _math(call, "SUB", at, first)
    if mode in ("linear", "bilinear"):
        return [
            _tap(call, first, _math(call, "SUB", 1.0, after), size),
            _tap(call, _math(call, "ADD", first, 1.0), after, size),
        ]
    distances = [_math(call, "ADD", after, 1.0), after, _math(call, "SUB", 1.0, after), _math(call, "SUB", 2.0, after)]
    return [
        _tap(call, _math(call, "ADD", first, float(number - 1)), _cubic(call, each, far=number in (0, 3)), size)
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


def _tap(call: Call, index: Value, weight: Value | None, size: int) -> Tap:
    """``index``, which may lie outside, as the padding takes it: what lies outside is another element, or weighs 0."""
    padding = call.attributes.get_string("padding_mode") or "zeros"
    if padding == "reflection" and size > 1:
        index = _reflected(call, index, size)
    inside = _math(call, "MINIMUM", _math(call, "MAXIMUM", index, 0.0), float(size - 1))
    if padding != "zeros":
        return Tap(inside, weight)
    equal = call.emit("EQUAL", [inside, index], index.shape, np.bool_, Options("EqualOptions"), layout=Layout.FIRST)
    mask = call.emit("CAST", [equal], index.shape, np.float32, Options("CastOptions"), layout=Layout.FIRST)
    return Tap(inside, mask if weight is None else _math(call, "MUL", weight, mask))


def _reflected(call: Call, index: Value, size: int) -> Value:
    """``index`` thrown back at both ends, as often as it takes: the ends are elements, or half an element further."""
    low, length = (0.0, size - 1.0) if call.attributes.get_int("align_corners", 0) else (-0.5, float(size))
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
    "GridSample": Op(grid_sample, Way.LAST, operands=(0,)),
}

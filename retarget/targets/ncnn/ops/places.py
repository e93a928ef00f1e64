"""Elements taken from known or computed places: of parts, or by GridSample, which copies what is nearest.

GridSample takes coordinates from -1 to 1, the first and the last element of an axis. Computed from a place, one is off
by no more than a few roundings of float32: of an axis of up to `MOST_PLACES` that is far less than half an element, so
that what is copied is exact, infinities and NaN included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.call import Call, Lower, in_float32
from retarget.targets.ncnn.ops.elementwise import ADD, DIV, MAX, MUL, by_number, joined
from retarget.targets.ncnn.ops.reduction import LARGEST, reduced
from retarget.targets.ncnn.ops.shape import held, in_shape, permuted
from retarget.targets.ncnn.ops.slices import concatenated, cut, flipped, strided, whole_along
from retarget.targets.ncnn.program import MASK, NO_HALF, Blob, Param
from retarget.targets.ncnn.values import Refusal, Value

if TYPE_CHECKING:
    from retarget.protocols import Array

MOST_PLACES = 1 << 20
"""Of the elements that GridSample chooses from. It counts them in float32, sixteen channels at a time."""

MOST_PARTS = 6
"""Parts that are cut and joined; more are sampled."""

MOST_PAIRS = 1 << 22
"""Of elements that are compared to one another: 16 MB of floats."""

NOWHERE = -9.0
"""A coordinate outside: GridSample puts a zero there."""

NEAREST, ZEROS, ALIGNED, SPLIT = {0: 2}, {1: 1}, {2: 1}, {3: 1}
"""Params of GridSample: how, what is outside, -1 and 1 are the outer elements, x and y are channels of the grid."""


def sampled(call: Call, image: Blob, grid: Blob) -> Blob:
    """Of ``image`` [c, h, w] what is at ``grid`` [2, rows, columns], x and y: [c, rows, columns]."""
    _, height, width = image.dims
    if height * width > MOST_PLACES:
        raise Refusal(f"it takes elements out of {height * width}, and GridSample tells {MOST_PLACES} apart")
    params: dict[int, Param] = {**NEAREST, **ZEROS, **ALIGNED, **SPLIT, MASK: NO_HALF}
    return call.add("GridSample", (image, grid), (image.dims[0], *grid.dims[1:]), params)


def coordinates(places: Array, size: int) -> Array:
    """Of places along an axis of ``size``; of those below zero: nowhere."""
    found = places.astype(np.float64) * (2 / max(size - 1, 1)) - 1
    return np.where(np.less(places, 0), NOWHERE, found).astype(np.float32)


def grid_of(call: Call, x: Array, y: Array) -> Blob:
    """The constant grid of coordinates [rows, columns]."""
    grid = np.stack(np.broadcast_arrays(x, y)).astype(np.float32)
    return call.lowering.memory(grid, grid.shape)


def unrounded(lower: Lower, index: int = 1) -> Lower:
    """``lower`` in float32 where operand ``index`` is computed: float16 does not hold all places from 2048 on."""
    return in_float32(lower, lambda call: not call.is_constant(index))


def last_place(call: Call, size: int) -> Blob:
    """The number of the last place along an axis of ``size``, also where it is open: the largest of a constant that is
    cut to its size."""
    places = call.lowering.memory(np.arange(size, dtype=np.float32), (size,))
    return reduced(call, LARGEST, places, [0])


def computed(call: Call, places: Blob, size: int, *, is_open: bool) -> Blob:
    """The coordinates of computed places, which are not negative, along an axis of ``size``."""
    if is_open:
        last = by_number(call, MAX, last_place(call, size), 1.0)
        scaled = joined(call, DIV, by_number(call, MUL, places, 2.0), last)
    else:
        scaled = by_number(call, MUL, places, 2 / max(size - 1, 1))
    return by_number(call, ADD, scaled, -1.0)


def picked(call: Call, data: Blob, dims: tuple[int, int, int], places: Blob, *, is_open: bool) -> Blob:
    """Of ``data`` [outer, size, inner], which are ``dims``, those at computed ``places``: [outer, places, inner].

    ``is_open``: whether ``size`` is. Rows of the two belong together, or one of them has none.
    """
    outer, size, inner = dims
    image = call.lowering.reshaped(_swapped(call, data, dims), (outer * inner, 1, size), call.node.name or "")
    return of_image(call, image, (outer, inner), places, is_open=is_open)


def of_image(call: Call, image: Blob, around: tuple[int, int], places: Blob, *, is_open: bool) -> Blob:
    """`picked` of ``image`` [outer x inner, 1, size], ``around`` whose places outer and inner are."""
    flat = call.lowering.reshaped(places, (1, 1, places.size), call.node.name or "")
    x = computed(call, flat, image.dims[-1], is_open=is_open)
    # There is one row in the image, wherever y is.
    grid = call.add("Concat", (x, x), (2, *x.dims[1:]), {0: 0})
    return _swapped(call, sampled(call, image, grid), (*around, places.size))


def _of_columns(call: Call, data: Blob, dims: tuple[int, int, int], grid: Blob) -> Blob:
    outer, size, inner = dims
    count = grid.dims[-1]
    last = _swapped(call, data, (outer, size, inner))
    image = call.lowering.reshaped(last, (outer * inner, 1, size), call.node.name or "")
    return _swapped(call, sampled(call, image, grid), (outer, inner, count))


def _swapped(call: Call, blob: Blob, dims: tuple[int, int, int]) -> Blob:
    """``blob``, of ``dims``, with the last two the other way around, in any dims."""
    outer, *pair = dims
    if 1 in pair:
        return blob
    wanted, order = (dims, (0, 2, 1)) if outer > 1 else (tuple(pair), (1, 0))
    return permuted(call, call.lowering.reshaped(blob, wanted, call.node.name or ""), order)


def along_last(call: Call, last: Value, places: Blob, *, is_open: bool) -> Blob:
    """Of the last axis of ``last`` those at computed ``places`` [1, outer, count], each of its own: [1, outer, count].

    ``is_open``: whether the sizes of ``last`` are. Rows of the two belong together, or one of them has none.
    """
    _, outer, count = places.dims
    size = last.shape[-1]
    rows = call.lowering.memory(np.arange(outer, dtype=np.float32), (1, outer, 1))
    y = call.add("Tile", (computed(call, rows, outer, is_open=is_open),), (1, outer, count), {2: [1, 1, count]})
    x = computed(call, places, size, is_open=is_open)
    grid = call.add("Concat", (x, y), (2, outer, count), {0: 0})
    return sampled(call, call.view(last, (1, outer, size)), grid)


def taken(call: Call, value: Value, axis: int, places: Sequence[int]) -> Value:
    """The elements of ``axis`` at known ``places``, none of which is negative."""
    size = value.shape[axis]
    if list(places) == list(range(size)):
        return value
    value = whole_along(call, value, [axis])
    runs = runs_of(places)
    if len(runs) > MOST_PARTS:
        row, shape = value.row, list(value.shape)
        dims = math.prod(row[:axis]), size, math.prod(row[axis + 1 :])
        x = coordinates(np.array([places]), size)
        shape[axis] = len(places)
        return held(value, _of_columns(call, call.blob(value), dims, grid_of(call, x, np.zeros(1))), shape)
    return concatenated(call, [_run(call, value, axis, run) for run in runs], axis)


def _run(call: Call, value: Value, axis: int, run: range) -> Value:
    forwards = run if run.step > 0 else run[::-1]
    found = strided(call, cut(call, value, {axis: (forwards[0], forwards[-1] + 1)}), axis, forwards.step)
    return found if run.step > 0 else flipped(call, found, [axis])


def runs_of(places: Sequence[int]) -> list[range]:
    """``places`` as runs of one step each, of which only the first may be alone where two follow each other."""
    runs: list[range] = []
    at = 0
    while at < len(places):
        end = at + 1
        step = places[end] - places[at] if end < len(places) else 1
        while step and end < len(places) and places[end] - places[end - 1] == step:
            end += 1
        if step != 1 and end - at < 3:
            # Two that are far from each other are two parts, the second of which may begin a run.
            end, step = at + 1, 1
        runs.append(range(places[at], places[at] + (end - at) * step, step))
        at = end
    return runs


def rearranged(call: Call, values: Sequence[Value], block: int, which: Array, shape: Sequence[int]) -> Value:
    """A value of ``shape`` out of blocks of so many elements: ``which`` of those of ``values``, counted through.

    The rows stay where each row of the result is made of the same places of its own.
    """
    counts = [math.prod(value.shape) // block for value in values]
    rows = max(value.rows for value in values)
    own = _of_each_row(which, counts, rows) if rows > 1 and shape and shape[0] % rows == 0 else None
    if own is None:
        rows, own = 1, which
    each = [count // rows for count in counts]
    together = _side_by_side(own, each)
    flat = [
        in_shape(call, call.with_rows(value, rows), (rows, count // together, block * together))
        for value, count in zip(values, each, strict=True)
    ]
    joined_values = concatenated(call, flat, 1)
    return in_shape(call, taken(call, joined_values, 1, [int(place) for place in own[::together] // together]), shape)


def _side_by_side(which: Array, counts: Sequence[int]) -> int:
    """How many of ``which`` always follow each other, and so can be taken as one."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(which) != 1) + 1])
    return math.gcd(which.size, *counts, *map(int, np.unique(starts)), *map(int, np.unique(which[starts])))


def _of_each_row(which: Array, counts: Sequence[int], rows: int) -> Array | None:
    """``which`` of one row, if that of the others is the same in their own part of each value."""
    if which.size % rows or any(count % rows for count in counts):
        return None
    starts = np.cumsum([0, *counts[:-1]])
    each = np.array(counts) // rows
    of = np.searchsorted(starts, which, side="right") - 1
    row, place = np.divmod(which - starts[of], each[of])
    inside = (np.cumsum([0, *each[:-1]])[of] + place).reshape(rows, -1)
    if (row.reshape(rows, -1) != np.arange(rows)[:, None]).any() or (inside != inside[0]).any():
        return None
    return np.asarray(inside[0])

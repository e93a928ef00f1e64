"""Writing at indices: each element of the result is taken from what is there, or from the updates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.call import ANY, Call, Op
from retarget.targets.ncnn.ops.elementwise import (
    ABS,
    ADD,
    FROM,
    MAX,
    MIN,
    MUL,
    NEG,
    SUB,
    binary,
    by_number,
    function,
    joined,
    mapped,
    with_number,
)
from retarget.targets.ncnn.ops.indexing import flat_places, from_front, joined_places
from retarget.targets.ncnn.ops.places import MOST_PAIRS, last_place, picked, rearranged, unrounded
from retarget.targets.ncnn.ops.reduction import LARGEST, reduced
from retarget.targets.ncnn.ops.shape import held, in_shape, is_open
from retarget.targets.ncnn.ops.slices import concatenated, cut
from retarget.targets.ncnn.program import Blob
from retarget.targets.ncnn.rows import aligned
from retarget.targets.ncnn.values import WHOLE, Refusal, Value, plain_dims

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.ncnn.values import Result

REDUCTIONS = {"add": ADD, "mul": MUL, "max": MAX, "min": MIN}
"""ONNX's reductions → ``0`` of BinaryOp."""


def scatter_nd(call: Call) -> Result:
    shape, depth = call.shape(0), call.shape(1)[-1]
    block = math.prod(shape[depth:])
    if call.is_constant(1):
        return _scattered(call, flat_places(call.array(1, "the indices"), shape), block)
    return _where_compared(
        call, joined_places(call, 1, call.whole(1), shape[:depth], is_open=is_open(call, 0, range(depth))), block
    )


def scatter_elements(call: Call) -> Result:
    shape, wanted, axis = call.shape(0), call.shape(1), call.axis(0)
    places = np.indices(wanted)
    if call.is_constant(1):
        places[axis] = np.mod(call.array(1, "the indices"), shape[axis])
        return _scattered(call, np.ravel_multi_index(tuple(places), shape).reshape(-1), 1)
    places[axis] = 0
    others = np.ravel_multi_index(tuple(places), shape).astype(np.float32)
    indices = from_front(call, 1, call.whole(1), shape[axis], is_open=is_open(call, 0, [axis]))
    scaled = with_number(call, MUL, indices, math.prod(shape[axis + 1 :]))
    dims = plain_dims(wanted)
    beside = call.lowering.reshaped(scaled, dims, call.node.name or ""), call.lowering.memory(others, dims)
    return _where_compared(call, held(indices, joined(call, ADD, *beside), wanted), 1)


def _where_compared(call: Call, indices: Value, block: int) -> Result:
    """Updates, in blocks of so many elements, at computed ``indices``, each of which is held against every place."""
    value, updates = call.whole(0), call.whole(2)
    total, count = math.prod(value.shape) // block, math.prod(indices.shape)
    reduction = call.attributes.get_string("reduction", "none")
    if total * count * (1 if reduction == "none" else block) > MOST_PAIRS:
        raise Refusal(f"its {count} computed indices would be compared to {total} places, which is too much")
    there = call.lowering.memory(np.arange(total, dtype=np.float32), (total, 1))
    distance = function(call, ABS, joined(call, SUB, call.view(indices, (1, count)), there))
    is_here = mapped(call, "ReLU", by_number(call, FROM, distance, 1.0))
    if reduction == "none":
        return replace(_last(call, value, updates, is_here, there), largest=max(value.largest, updates.largest))
    largest = math.inf if reduction == "mul" else call.largest(0) + count * call.largest(2)
    _check_integers(value, largest)
    return replace(_reduced(call, reduction, value, updates, is_here), largest=largest)


def _last(call: Call, value: Value, updates: Value, is_here: Blob, there: Blob) -> Value:
    """What comes to a place, the last update for it or what is there, taken from both as they are. ``is_here``
    [places, updates], ``there`` [places, 1]: their numbers."""
    total, count = is_here.dims
    block = math.prod(value.shape) // total
    numbers = call.lowering.memory(np.arange(1, count + 1, dtype=np.float32), (1, count))
    last = reduced(call, LARGEST, joined(call, MUL, is_here, numbers), [1])
    is_written = mapped(call, "Threshold", last, {0: 0.0})
    # From a place to the update that comes there: those stand behind all places.
    is_any = is_open(call, 0, range(call.rank(0))) or is_open(call, 1, range(call.rank(1)))
    behind = joined(call, ADD, last, last_place(call, total)) if is_any else by_number(call, ADD, last, total - 1.0)
    further = joined(call, SUB, behind, there)
    source = joined(call, ADD, there, joined(call, MUL, is_written, further))
    both = concatenated(call, [in_shape(call, value, (total, block)), in_shape(call, updates, (count, block))], 0)
    return held(value, picked(call, call.blob(both), (1, total + count, block), source, is_open=is_any), value.shape)


def _reduced(call: Call, reduction: str, value: Value, updates: Value, is_here: Blob) -> Value:
    """At each place the updates for it, and in place of the others what changes nothing, reduced into what is there."""
    total, count = is_here.dims
    block, op = math.prod(value.shape) // total, REDUCTIONS[reduction]
    data = call.view(value, (total, 1, block))
    infinity = call.lowering.memory(_INFINITY, (1,))
    # Infinity at the updates of a place, minus infinity at others: no product of either may be one of 0.
    flat = call.lowering.reshaped(is_here, (total, count, 1), call.node.name or "")
    bound = joined(call, MUL, by_number(call, SUB, flat, 0.5), infinity)
    ours = joined(call, MIN, call.view(updates, (1, count, block)), bound)
    other = function(call, NEG, bound)
    neutral = {"add": 0.0, "mul": 1.0}.get(reduction)
    theirs = joined(call, MIN, data, other) if neutral is None else by_number(call, MIN, other, neutral)
    each = held(value, joined(call, MAX, ours, theirs), (total, count, block))
    return held(value, joined(call, op, data, _folded(call, op, each)), value.shape)


_INFINITY = np.full(1, np.inf, np.float32)


def _folded(call: Call, op: int, each: Value) -> Blob:
    """[places, updates, block] over the updates, half of them into the other: Reduction has no infinite extremes."""
    total, count, block = each.shape
    while count > 1:
        half = count // 2
        one, other = (cut(call, each, {1: (start, start + half)}) for start in (0, half))
        dims = (total, half, block)
        made = held(each, joined(call, op, call.view(one, dims), call.view(other, dims)), dims)
        rest = [cut(call, each, {1: (count - 1, count)})] if count % 2 else []
        each, count = concatenated(call, [made, *rest], 1), half + len(rest)
    return call.view(each, (total, 1, block))


def _check_integers(value: Value, largest: float) -> None:
    if value.dtype.kind in "iu" and largest > min(WHOLE, np.iinfo(value.dtype.name).max):
        raise Refusal("its integers may be larger than floats hold, or wrap around")


def _scattered(call: Call, places: Array, block: int) -> Result:
    """Updates, in blocks of so many elements, at ``places`` of what is there."""
    reduction = call.attributes.get_string("reduction", "none")
    value, updates = call.value(0), call.value(2)
    if reduction == "none":
        return _written(call, value, updates, places, np.arange(places.size), block)
    # The first update of each place, then the second …: one at a time as ONNX says, all at once where they differ.
    left = np.arange(places.size)
    while left.size:
        at, first = np.unique(places[left], return_index=True)
        now = left[first]
        count = (at.size, block)
        there, added = aligned(
            call, [rearranged(call, [value], block, at, count), rearranged(call, [updates], block, now, count)]
        )
        made = held(there, binary(call, REDUCTIONS[reduction], there, added)[0], count)
        value = _written(call, value, made, at, np.arange(at.size), block)
        left = np.setdiff1d(left, now)
    largest = math.inf if reduction == "mul" else call.largest(0) + places.size * call.largest(2)
    _check_integers(value, largest)
    return replace(value, largest=largest)


def _written(call: Call, value: Value, updates: Value, places: Array, which: Array, block: int) -> Value:
    """``updates`` number ``which`` over ``value`` at ``places``; of two at one place the later one."""
    total = math.prod(value.shape) // block
    chosen = np.arange(total)
    chosen[places] = total + which
    return rearranged(call, [value, updates], block, chosen, value.shape)


OPS: Mapping[str, Op] = {
    "Scatter": Op(unrounded(scatter_elements), ANY),
    "ScatterElements": Op(unrounded(scatter_elements), ANY),
    "ScatterND": Op(unrounded(scatter_nd), ANY),
}

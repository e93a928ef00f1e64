"""Writing at indices that are known: each element of the result comes from what is there or from the updates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.call import ANY, Call, Op
from retarget.targets.ncnn.ops.elementwise import ADD, MAX, MIN, MUL, binary
from retarget.targets.ncnn.ops.indexing import flat_places
from retarget.targets.ncnn.ops.places import rearranged
from retarget.targets.ncnn.ops.shape import held
from retarget.targets.ncnn.values import WHOLE, Refusal, Value

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.ncnn.values import Result

REDUCTIONS = {"add": ADD, "mul": MUL, "max": MAX, "min": MIN}
"""ONNX's reductions → ``0`` of BinaryOp."""


def scatter_nd(call: Call) -> Result:
    indices, shape = _indices(call), call.shape(0)
    depth = indices.shape[-1]
    return _scattered(call, flat_places(indices, shape), math.prod(shape[depth:]))


def scatter_elements(call: Call) -> Result:
    indices, shape, axis = _indices(call), call.shape(0), call.axis(0)
    places = np.indices(indices.shape)
    places[axis] = np.mod(indices, shape[axis])
    return _scattered(call, np.ravel_multi_index(tuple(places), shape).reshape(-1), 1)


def _indices(call: Call) -> Array:
    if not call.is_constant(1):
        raise Refusal("its indices are computed, and ncnn has no layer that writes at them")
    return call.array(1, "the indices")


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
        there = rearranged(call, [value], block, at, count)
        added = rearranged(call, [updates], block, now, count)
        made = held(there, binary(call, REDUCTIONS[reduction], there, added)[0], count)
        value = _written(call, value, made, at, np.arange(at.size), block)
        left = np.setdiff1d(left, now)
    largest = math.inf if reduction == "mul" else call.largest(0) + places.size * call.largest(2)
    if value.dtype.kind in "iu" and largest > min(WHOLE, np.iinfo(value.dtype.name).max):
        raise Refusal("its integers may be larger than floats hold, or wrap around")
    return value


def _written(call: Call, value: Value, updates: Value, places: Array, which: Array, block: int) -> Value:
    """``updates`` number ``which`` over ``value`` at ``places``; of two at one place the later one."""
    total = math.prod(value.shape) // block
    chosen = np.arange(total)
    for place, update in zip(places, which, strict=True):
        chosen[place] = total + update
    return rearranged(call, [value, updates], block, chosen, value.shape)


OPS: Mapping[str, Op] = {
    "Scatter": Op(scatter_elements, ANY),
    "ScatterElements": Op(scatter_elements, ANY),
    "ScatterND": Op(scatter_nd, ANY),
}

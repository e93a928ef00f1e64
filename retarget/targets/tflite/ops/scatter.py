"""Elements written over others, or reduced into them, where indices say.

SCATTER_ND sums what comes to one place, from 0 on; UNSORTED_SEGMENT_MAX, _MIN and _PROD do so with their function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.ops.indexing import flat_places, from_front, joined_places, narrow_dtype
from retarget.targets.tflite.ops.shape import reshaped
from retarget.targets.tflite.program import Constant, Options, Shape
from retarget.targets.tflite.values import Operand, Refusal, Value


def scatter_nd(call: Call) -> Operand:
    data, updates = call.operand(0), call.operand(2)
    count = call.operand(1).shape[-1]
    if 0 in data.shape or 0 in call.operand(1).shape:
        return data
    indices = from_front(call, 1, data.shape[:count])
    reduction = call.attributes.get_string("reduction", "none")
    if len(indices.shape) == 1:
        indices, updates = reshaped(call, indices, (1, count)), reshaped(call, updates, (1, *updates.shape))
    if reduction in _SEGMENTS:
        places = joined_places(call, indices, data.shape[:count])
        indices = reshaped(call, places, (math.prod(places.shape), 1))
        flat = reshaped(call, data, (math.prod(data.shape[:count]), *data.shape[count:]))
        rows = reshaped(call, updates, (indices.shape[0], *data.shape[count:]))
        return reshaped(call, _reduced(call, flat, indices, rows, reduction), data.shape)
    return _written(call, data, indices, updates, reduction)


def scatter_elements(call: Call) -> Operand:
    data, updates = call.operand(0), call.operand(2)
    axis = call.attributes.get_int("axis", 0) % max(len(data.shape), 1)
    if 0 in data.shape or 0 in updates.shape:
        return data
    places = flat_places(call, from_front(call, 1, data.shape[axis]), data.shape, axis)
    indices = reshaped(call, places, (math.prod(places.shape), 1))
    flat, row = reshaped(call, data, (math.prod(data.shape),)), reshaped(call, updates, (math.prod(places.shape),))
    reduction = call.attributes.get_string("reduction", "none")
    write = _reduced if reduction in _SEGMENTS else _written
    return reshaped(call, write(call, flat, indices, row, reduction), data.shape)


def _written(call: Call, data: Operand, indices: Operand, updates: Operand, reduction: str) -> Value:
    """``updates`` [places, ...] over ``data``, or added to it. Indices are [places, axes]."""
    scattered = _scattered(call, indices, updates, data.shape)
    if reduction == "add":
        return call.binary("ADD", data, scattered)
    count = indices.shape[-1]
    mask = _reached(call, indices, data.shape[:count])
    mask = reshaped(call, mask, (*mask.shape, *[1] * (len(data.shape) - count)))
    return call.emit("SELECT_V2", [mask, scattered, data], data.shape, scattered.dtype, Options("SelectV2Options"))


def _scattered(call: Call, indices: Operand, updates: Operand, shape: Shape) -> Value:
    inputs = [call.tensor(indices), call.tensor(updates), call.ints(shape)]
    return call.emit("SCATTER_ND", inputs, shape, narrow_dtype(updates), Options("ScatterNdOptions"))


def _reached(call: Call, indices: Operand, shape: Shape) -> Operand:
    """Which places of ``shape`` the indices name."""
    if isinstance(indices, Constant):
        mask = np.zeros(shape, np.bool_)
        mask[tuple(np.moveaxis(indices.array(), -1, 0))] = True
        return Constant.of(mask)
    return _scattered(call, indices, Constant.of(np.ones(indices.shape[:-1], np.bool_)), shape)


_SEGMENTS = {
    "max": ("UNSORTED_SEGMENT_MAX", "UnsortedSegmentMaxOptions"),
    "min": ("UNSORTED_SEGMENT_MIN", "UnsortedSegmentMinOptions"),
    "mul": ("UNSORTED_SEGMENT_PROD", "UnsortedSegmentProdOptions"),
}


def _reduced(call: Call, data: Operand, indices: Operand, updates: Operand, reduction: str) -> Value:
    """``updates`` [n, ...] reduced into the rows of ``data`` [rows, ...] that ``indices`` [n, 1] name."""
    dtype = narrow_dtype(data)
    if dtype.name not in ("float32", "int32"):
        raise Refusal(f"reduction={reduction}: the kernels reduce float32 and int32, not {dtype.name}")
    code, table = _SEGMENTS[reduction]
    rows = call.lowering.constant(Constant.of(data.shape[0], "int32"))
    inputs = [call.tensor(updates), call.tensor(reshaped(call, indices, indices.shape[:1])), rows]
    reached = call.emit(code, inputs, data.shape, dtype, Options(table))
    if reduction == "mul":
        return call.binary("MUL", data, reached)
    is_max = reduction == "max"
    reduced = call.binary("MAXIMUM" if is_max else "MINIMUM", data, reached)
    if dtype != np.float32:
        return reduced
    # What nothing came to has the last finite number, and data may be infinite.
    last = float(np.finfo(np.float32).min if is_max else np.finfo(np.float32).max)
    changed = call.binary("GREATER" if is_max else "LESS", reached, Constant.of(last, "float32"), np.bool_)
    return call.emit("SELECT_V2", [changed, reduced, data], data.shape, dtype, Options("SelectV2Options"))


_MOVED = frozenset({"float32", "int32", "bool"})

OPS: Mapping[str, Op] = {
    "Scatter": Op(scatter_elements, dtypes=_MOVED),
    "ScatterElements": Op(scatter_elements, dtypes=_MOVED),
    "ScatterND": Op(scatter_nd, dtypes=_MOVED),
}

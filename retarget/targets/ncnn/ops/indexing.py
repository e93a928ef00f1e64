"""Elements picked by index, known or computed, and triangles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.indices import is_never_negative
from retarget.targets.ncnn.call import ANY, NUMBERS, Call, Op
from retarget.targets.ncnn.ops.elementwise import (
    ABS,
    ADD,
    FROM,
    MUL,
    SUB,
    TRUNC,
    binary,
    by_number,
    function,
    joined,
    mapped,
    with_number,
)
from retarget.targets.ncnn.ops.places import (
    NOWHERE,
    along_last,
    coordinates,
    grid_of,
    last_place,
    of_image,
    picked,
    rearranged,
    sampled,
    taken,
    unrounded,
)
from retarget.targets.ncnn.ops.shape import held, in_shape, is_open, moving, transposed
from retarget.targets.ncnn.ops.slices import cut
from retarget.targets.ncnn.program import Blob, Param, Weight
from retarget.targets.ncnn.values import Refusal, Shape, Value

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.ncnn.values import Result


def from_front(call: Call, index: int, value: Value, size: int, *, is_open: bool = False) -> Value:
    """``value``, indices of operand ``index`` along an axis of ``size``, with those from the end counted from the
    front. ``is_open``: whether that size is."""
    operand = call.node.inputs[index]
    if operand is not None and is_never_negative(operand):
        return value
    blob = call.blob(value)
    below = mapped(call, "Clip", by_number(call, MUL, blob, -1.0), {0: 0.0, 1: 1.0})
    if is_open:
        added = joined(call, MUL, below, by_number(call, ADD, last_place(call, size), 1.0))
    else:
        added = by_number(call, MUL, below, size)
    return held(value, joined(call, ADD, blob, added), value.shape)


# ---- Gather


def gather(call: Call) -> Result:
    axis, size = call.axis(0), call.shape(0)[call.axis(0)]
    own, wanted = call.shape(0), call.shape(1)
    shape = (*own[:axis], *wanted, *own[axis + 1 :])
    if call.is_constant(1):
        indices = call.array(1, "the indices")
        if indices.size == 1 and (place := int(indices.reshape(()))) < 0:
            # Counted from the end, so that it is right where the size is open.
            return in_shape(call, cut(call, call.value(0), {axis: (place, place + 1 or None)}), shape)
        known = np.mod(indices, size).reshape(-1)
        return in_shape(call, taken(call, call.value(0), axis, [int(place) for place in known]), shape)
    if call.is_constant(0) and axis == 0 and (ids := _fed(call, 1)) is not None:
        return in_shape(call, looked_up(call, call.array(0, "the table"), ids), shape)
    at, is_any = call.value(1), is_open(call, 0, [axis])
    if axis != 0:
        at = call.with_rows(at, 1)
    places = call.blob(from_front(call, 1, at, size, is_open=is_any))
    if call.is_constant(0):
        table = np.moveaxis(call.array(0, "the table"), axis, -1).reshape(-1, 1, size)
        image = call.lowering.memory(np.ascontiguousarray(table), table.shape)
        made = of_image(call, image, (math.prod(own[:axis]), math.prod(own[axis + 1 :])), places, is_open=is_any)
        return call.made(made, shape, largest=call.largest(0), picks=True)
    data = call.whole(0) if axis == 0 else call.value(0)
    dims = math.prod(data.row[:axis]), size, math.prod(data.row[axis + 1 :])
    return held(data, picked(call, call.blob(data), dims, places, is_open=is_any), shape)


_RESHAPES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


def _fed(call: Call, index: int) -> Value | None:
    """The model's input that operand ``index`` is in another shape, if it is that."""
    value = call.node.inputs[index]
    while value is not None:
        found = call.lowering.env.get(value)
        if isinstance(found, Value) and found.source is not None:
            return found if found.dtype.kind in "iu" else None
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in _RESHAPES else None
    return None


def looked_up(call: Call, table: Array, indices: Value) -> Value:
    """Embed, for which an index outside of the table is the nearest inside.

    ONNX counts negative ones from the end. What the user feeds cannot be known here: ids, of which none is negative.
    """
    rows, width = table.shape[0], math.prod(table.shape[1:])
    blob = call.lowering.fed(indices, "index")
    params: dict[int, Param] = {0: width, 1: rows, 3: table.size}
    # As int8 they would be read for codes.
    held_in = table.astype(np.int16) if table.dtype == np.int8 else table
    made = call.add("Embed", (blob,), (blob.size, width), params, [Weight(held_in.reshape(rows, width))])
    return call.made(made, (*indices.shape, *table.shape[1:]), largest=call.largest(0), picks=True)


def gather_elements(call: Call) -> Result:
    axis = call.axis(0)
    own, wanted = call.shape(0), call.shape(1)
    if call.is_constant(1):
        places = np.indices(wanted)
        places[axis] = np.mod(call.array(1, "the indices"), own[axis])
        which = np.ravel_multi_index(tuple(places), own).reshape(-1)
        return rearranged(call, [call.value(0)], 1, which, wanted)
    # Along the other axes only as much is read as there are indices.
    data, indices = call.value(0), call.value(1)
    data = cut(call, data, {other: (0, size) for other, size in enumerate(wanted) if other != axis})
    if axis == 0 or data.rows != indices.rows:
        data, indices = call.with_rows(data, 1), call.with_rows(indices, 1)
    order = [*(other for other in range(len(own)) if other != axis), axis]
    back = [order.index(other) for other in range(len(own))]
    is_any = is_open(call, 0, range(len(own)))
    at = transposed(call, from_front(call, 1, indices, own[axis], is_open=is_any), order)
    last = transposed(call, data, order)
    dims = 1, math.prod(last.row[:-1]), wanted[axis]
    made = along_last(call, last, call.view(at, dims), is_open=is_any)
    return transposed(call, held(last, made, at.shape), back)


def gather_nd(call: Call) -> Result:
    batch = call.attributes.get_int("batch_dims", 0)
    own, wanted = call.shape(0), call.shape(1)
    depth = wanted[-1]
    sizes, inner = own[batch : batch + depth], own[batch + depth :]
    shape = (*wanted[:-1], *inner)
    if call.is_constant(1):
        which = flat_places(call.array(1, "the indices"), own, batch)
        return rearranged(call, [call.value(0)], math.prod(inner), which, shape)
    data, indices = (call.value(0), call.value(1)) if batch else (call.whole(0), call.value(1))
    if batch and data.rows != indices.rows:
        data, indices = call.with_rows(data, 1), call.with_rows(indices, 1)
    is_any = is_open(call, 0, range(batch + depth))
    found = joined_places(call, 1, indices, sizes, is_open=is_any)
    groups, total = math.prod(data.row[:batch]), math.prod(sizes)
    at = call.view(found, (groups, math.prod(found.row) // groups))
    if groups > 1:
        starts = (np.arange(groups) * total).astype(np.float32).reshape(groups, 1)
        at = call.add("BinaryOp", (at, call.lowering.memory(starts, (groups, 1))), at.dims, {0: ADD})
    made = picked(call, call.blob(data), (1, groups * total, math.prod(inner)), at, is_open=is_any)
    return held(data, made, shape)


def joined_places(call: Call, index: int, indices: Value, sizes: Shape, *, is_open: bool) -> Value:
    """Computed indices [.., axes] of operand ``index``, of axes of ``sizes``, as one [.., 1] of all these together."""
    last = indices.rank - 1
    found: Value | None = None
    for place, size in enumerate(sizes):
        part = from_front(call, index, cut(call, indices, {last: (place, place + 1)}), size, is_open=is_open)
        stride = math.prod(sizes[place + 1 :])
        if stride > 1:
            part = held(part, with_number(call, MUL, part, stride), part.shape)
        found = part if found is None else held(part, binary(call, ADD, found, part)[0], part.shape)
    assert found is not None
    return found


def flat_places(indices: Array, shape: Shape, batch: int = 0) -> Array:
    """Of indices [.., axes] of a value of ``shape``, whose first ``batch`` axes both have: where they are among all
    places of these axes and those of the batch."""
    depth = indices.shape[-1]
    axes = shape[: batch + depth]
    named = np.moveaxis(np.mod(indices, shape[batch : batch + depth]), -1, 0)
    before = np.indices(indices.shape[:-1])[:batch]
    return np.asarray(np.ravel_multi_index((*before, *named), axes).reshape(-1))


# ---- made of indices


def one_hot(call: Call) -> Result:
    """1 less how far a place is from the index, no less than 0: of integers that is 1 or 0."""
    depth = call.numbers(1, "the depth")[0]
    off, on = (float(each) for each in call.array(2, "what stands where").reshape(-1))
    if not (math.isfinite(off) and math.isfinite(on)):
        raise Refusal("of values that are not finite")
    value = call.value(0)
    axis = call.attributes.get_int("axis", -1) % (value.rank + 1)
    if call.is_float(0):
        value = held(value, function(call, TRUNC, call.blob(value)), value.shape)
    if axis == 0:
        value = call.with_rows(value, 1)
    value = from_front(call, 0, value, depth)
    row = value.row
    outer, inner = math.prod(row[:axis]), math.prod(row[axis:])
    places = call.lowering.memory(np.arange(depth, dtype=np.float32).reshape(depth, 1), (1, depth, 1))
    distance = function(call, ABS, joined(call, SUB, call.view(value, (outer, 1, inner)), places))
    made = mapped(call, "ReLU", by_number(call, FROM, distance, 1.0))
    shape = (*value.shape[:axis], depth, *value.shape[axis:])
    return call.made(_of_two(call, made, off, on), shape, largest=max(abs(off), abs(on)))


def _of_two(call: Call, blob: Blob, off: float, on: float) -> Blob:
    """``on`` where ``blob`` is 1, ``off`` where it is 0."""
    if (off, on) == (0, 1):
        return blob
    if off == 0:
        return by_number(call, MUL, blob, on)
    left = by_number(call, MUL, blob, on)
    right = by_number(call, MUL, by_number(call, FROM, blob, 1.0), off)
    return joined(call, ADD, left, right)


def trilu(call: Call) -> Result:
    """A copy with zeros where GridSample is sent outside: what is not taken may be infinite, and no product of it."""
    value = call.value(0)
    offset = call.numbers(1, "the diagonal")[0] if call.has(1) else 0
    height, width = value.shape[-2:]
    value = call.with_rows(value, 1) if value.rank == 2 else value
    keep = np.tri(height, width, offset, dtype=bool)
    if call.attributes.get_int("upper", 1):
        keep = ~np.tri(height, width, offset - 1, dtype=bool)
    if keep.all():
        return value
    if not keep.any():
        return np.zeros(value.shape, value.dtype)
    x, y = coordinates(np.arange(width), width), coordinates(np.arange(height), height)
    grid = grid_of(call, np.where(keep, x, NOWHERE), np.where(keep, y[:, None], NOWHERE))
    image = call.view(value, (math.prod(value.row[:-2]), height, width))
    return held(value, sampled(call, image, grid), value.shape)


def reverse_sequence(call: Call) -> Result:
    shape, value = call.shape(0), call.value(0)
    time, batch = call.attributes.get_int("time_axis", 0), call.attributes.get_int("batch_axis", 1)
    if call.is_constant(1):
        places = np.indices(shape[:2])
        of = call.array(1, "the lengths")[places[batch]]
        places[time] = np.where(places[time] < of, of - 1 - places[time], places[time])
        which = np.ravel_multi_index(tuple(places), shape[:2]).reshape(-1)
        return rearranged(call, [value], math.prod(shape[2:]), which, shape)
    lengths = call.value(1)
    if time == 0 or value.rows != lengths.rows:
        value, lengths = call.with_rows(value, 1), call.with_rows(lengths, 1)
    made = _turned(call, call.blob(lengths), value.row[:2], time)
    inner = math.prod(shape[2:])
    dims = 1, math.prod(value.row[:2]), inner
    return held(value, picked(call, call.blob(value), dims, made, is_open=is_open(call, 0, [0, 1])), shape)


def _turned(call: Call, lengths: Blob, sizes: Shape, time: int) -> Blob:
    """Of elements of two axes of ``sizes`` those that come to each place, counted through, where the axis ``time`` is
    turned around as far as ``lengths`` say along the other."""

    def counted(axis: int, first: int = 0, step: int = 1) -> Blob:
        numbers = np.arange(first, first + sizes[axis], dtype=np.float32) * step
        return call.lowering.memory(numbers, _alone(sizes, axis))

    ends = call.lowering.reshaped(lengths, _alone(sizes, 1 - time), call.node.name or "")
    left = joined(call, SUB, ends, counted(time))
    is_inside = mapped(call, "Clip", left, {0: 0.0, 1: 1.0})
    further = joined(call, MUL, is_inside, joined(call, SUB, left, counted(time, 1)))
    place = joined(call, ADD, further, counted(time))
    strides = (sizes[1], 1)
    scaled = by_number(call, MUL, place, strides[time])
    return joined(call, ADD, scaled, counted(1 - time, step=strides[1 - time]))


def _alone(sizes: Shape, axis: int) -> Shape:
    return (sizes[0], 1) if axis == 0 else (1, sizes[1])


OPS: Mapping[str, Op] = {
    "Gather": Op(moving(unrounded(gather)), ANY),
    "GatherElements": Op(moving(unrounded(gather_elements)), ANY),
    "GatherND": Op(moving(unrounded(gather_nd)), ANY),
    "OneHot": Op(unrounded(one_hot, 0), NUMBERS),
    "ReverseSequence": Op(moving(unrounded(reverse_sequence)), ANY),
    "Trilu": Op(moving(trilu), ANY),
}

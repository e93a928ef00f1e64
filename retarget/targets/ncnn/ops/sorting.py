"""What is largest; and what is left out or taken by a condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.call import ANY, NUMBERS, Call, Op
from retarget.targets.ncnn.ops.places import taken
from retarget.targets.ncnn.ops.shape import held, in_shape, moving, transposed
from retarget.targets.ncnn.ops.slices import cut, flipped
from retarget.targets.ncnn.values import Refusal, Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retarget.targets.ncnn.values import Result


def best(call: Call, value: Value, axis: int, count: int, *, is_largest: bool) -> tuple[Value, Value]:
    """The ``count`` largest along ``axis`` in falling order (smallest, rising), and where they are: floats both.

    ArgMax sorts all elements of a row, and of equal ones has the last first: so they come to it from behind.
    """
    order = [*(other for other in range(value.rank) if other != axis), axis]
    last = transposed(call, value, order)
    size, others = last.shape[-1], math.prod(last.shape[:-1])
    alone = call.with_rows(in_shape(call, last, (others, size)), others)
    blob = call.blob(flipped(call, alone, [1]))
    blob = call.lowering.reshaped(blob, (size,), call.node.name or "")
    if not is_largest:
        blob = call.add("UnaryOp", (blob,), blob.dims, {0: 1})
    both = call.add("ArgMax", (blob,), (2, count), {0: 1, 1: count})
    pair = held(alone, both, (others, 2, count))
    found, places = (cut(call, pair, {1: (at, at + 1)}) for at in (0, 1))
    if not is_largest:
        turned = call.blob(found)
        found = held(found, call.add("UnaryOp", (turned,), turned.dims, {0: 1}), found.shape)
    at = call.blob(places)
    # 7: the number less it
    places = held(places, call.add("BinaryOp", (at,), at.dims, {0: 7, 1: 1, 2: float(size - 1)}), places.shape)
    shape = (*last.shape[:-1], count)
    back = [order.index(other) for other in range(value.rank)]
    first, second = (
        transposed(call, in_shape(call, call.with_rows(each, value.rows), shape), back) for each in (found, places)
    )
    return first, second


def top_k(call: Call) -> Sequence[Result]:
    count = call.numbers(1, "how many are taken")[0]
    if not count:
        raise Refusal("its result is empty, and ncnn has no empty blobs")
    axis, value = call.axis(-1), call.value(0)
    is_largest = bool(call.attributes.get_int("largest", 1))
    found, places = best(call, value, axis, count, is_largest=is_largest)
    return [
        call.made(call.blob(found), found.shape, 0, value.largest),
        call.made(call.blob(places), places.shape, 1, value.shape[axis]),
    ]


def compress(call: Call) -> Result:
    """Of a condition that is known."""
    if not call.is_constant(1):
        raise Refusal("how large its result is depends on the data, and the sizes of blobs do not")
    value = call.value(0)
    axis = call.axis(0)
    if "axis" not in call.attributes:
        value, axis = in_shape(call, value, (math.prod(value.shape),)), 0
    places = [int(place) for place in np.flatnonzero(call.array(1, "the condition"))]
    if not places:
        raise Refusal("its result is empty, and ncnn has no empty blobs")
    return taken(call, value, axis, places)


OPS: Mapping[str, Op] = {
    "Compress": Op(moving(compress), ANY),
    "TopK": Op(top_k, NUMBERS),
}

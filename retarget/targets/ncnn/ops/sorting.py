"""What is largest; and what is left out or taken by a condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.call import ANY, NUMBERS, Call, Op
from retarget.targets.ncnn.ops.elementwise import ABS, ADD, FROM, MUL, SUB, by_number, function, joined, mapped
from retarget.targets.ncnn.ops.places import MOST_PAIRS, along_last, taken, unrounded
from retarget.targets.ncnn.ops.reduction import SUM, reduced
from retarget.targets.ncnn.ops.shape import held, in_shape, is_open, moving, transposed
from retarget.targets.ncnn.ops.slices import whole_along
from retarget.targets.ncnn.program import Blob
from retarget.targets.ncnn.values import Refusal, Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retarget.targets.ncnn.values import Result


def top_k(call: Call) -> Sequence[Result]:
    """How many stand before an element, compared to each of the others, is the place that it gets.

    Of equal ones that of the lower index comes first. (ncnn's ArgMax sorts, and is not compiled into its releases.)
    """
    count, axis, value = call.numbers(1, "how many are taken")[0], call.axis(-1), call.value(0)
    if not count:
        raise Refusal("its result is empty, and ncnn has no empty blobs")
    order = [*(other for other in range(value.rank) if other != axis), axis]
    last = transposed(call, whole_along(call, value, [axis]), order)
    outer, size = math.prod(last.row[:-1]), last.shape[-1]
    if outer * size**2 > MOST_PAIRS:
        raise Refusal(f"it sorts {outer} times {size} elements by comparing all pairs, up to {MOST_PAIRS} of them")
    places = _places(call, last, count, is_largest=bool(call.attributes.get_int("largest", 1)))
    found = along_last(call, last, places, is_open=is_open(call, 0, range(value.rank)))
    back = [order.index(other) for other in range(value.rank)]
    shape = (*last.shape[:-1], count)
    first, second = (transposed(call, held(last, blob, shape), back) for blob in (found, places))
    return [
        call.made(call.blob(first), first.shape, 0, value.largest, picks=True),
        call.made(call.blob(second), second.shape, 1, size),
    ]


def _places(call: Call, last: Value, count: int, *, is_largest: bool) -> Blob:
    """Of [outer, size] the places of the first ``count`` in order: [1, outer, count]."""
    outer, size = math.prod(last.row[:-1]), last.shape[-1]
    counted = np.arange(size, dtype=np.float32)
    down, across = (call.lowering.memory(counted, dims) for dims in ((1, size, 1), (1, 1, size)))
    own, others = call.view(last, (outer, size, 1)), call.view(last, (outer, 1, size))
    apart = joined(call, SUB, others, own) if is_largest else joined(call, SUB, own, others)
    better = mapped(call, "Threshold", apart, {0: 0.0})
    same = by_number(call, FROM, mapped(call, "Threshold", function(call, ABS, apart), {0: 0.0}), 1.0)
    earlier = mapped(call, "Threshold", joined(call, SUB, down, across), {0: 0.0})
    before = joined(call, ADD, better, joined(call, MUL, same, earlier))
    rank = reduced(call, SUM, before, [2])
    wanted = call.lowering.memory(np.arange(count, dtype=np.float32), (1, 1, count))
    distance = function(call, ABS, joined(call, SUB, rank, wanted))
    is_there = mapped(call, "ReLU", by_number(call, FROM, distance, 1.0))
    found = reduced(call, SUM, joined(call, MUL, is_there, down), [1])
    return call.lowering.reshaped(found, (1, outer, count), call.node.name or "")


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
    "TopK": Op(unrounded(top_k, 0), NUMBERS),
}

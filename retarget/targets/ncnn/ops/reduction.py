"""Sums, extremes and their positions over axes, and running sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from retarget.targets.ncnn.call import ANY, NUMBERS, Call, Op, in_float32
from retarget.targets.ncnn.ops.axes import along, around
from retarget.targets.ncnn.ops.elementwise import (
    ABS,
    ADD,
    FROM,
    MAX,
    MUL,
    NEG,
    SIGN,
    SQUARE,
    SUB,
    by_number,
    function,
    joined,
    mapped,
    shares,
)
from retarget.targets.ncnn.ops.shape import transposed
from retarget.targets.ncnn.program import MOST, MOST_DIMS, Blob, Param
from retarget.targets.ncnn.values import BEYOND_WHOLE, WHOLE, Refusal, Result, Value

SUM, SUM_OF_SIZES, SUM_OF_SQUARES, MEAN, LARGEST, SMALLEST, PRODUCT, LENGTH = 0, 1, 2, 3, 4, 5, 6, 8
"""``0`` of Reduction."""
AVERAGE_OF_ALL: Mapping[int, Param] = {0: 1, 4: 1}
"""Of Pooling: the kind, and that it is of each channel's whole image."""


def reduced(call: Call, operation: int, blob: Blob, places: Sequence[int], *, keeps: bool = True) -> Blob:
    """``blob`` reduced over some of its dims, which stay with size 1 or vanish."""
    dims = [1 if place in places else dim for place, dim in enumerate(blob.dims)]
    if not keeps:
        dims = [dim for place, dim in enumerate(blob.dims) if place not in places] or [1]
    params: dict[int, Param] = {0: operation, 1: 0, 3: list(places), 4: int(keeps), 5: 1}
    return call.add("Reduction", (blob,), dims, params)


def reduction(
    operation: int,
    alone: Callable[[Call, Blob], Blob] = lambda _, blob: blob,
    bound: Callable[[float, int], float] = lambda largest, _: largest,
) -> Callable[[Call], Result]:
    """The op function that reduces by a layer. ``alone``: what the reduction of each element for itself is.
    ``bound``: of the largest magnitude of integers and their count, that of the result."""

    def lower(call: Call) -> Result:
        axes = reduced_axes(call)
        blob, places = _laid(call, axes)
        made = reduced(call, operation, blob, places, keeps=keeps(call)) if places else alone(call, blob)
        count = math.prod(call.shape(0)[axis] for axis in axes)
        return call.made(made, shape_of(call, axes), largest=bound(call.largest(0), count))

    return lower


def extreme(operation: int) -> Callable[[Call], Result]:
    """The op function of the largest or the smallest; the layer's is finite where there are but infinities of one
    sign, and is then lowered (or raised) by one more."""

    def lower(call: Call) -> Result:
        axes = reduced_axes(call)
        blob, places = _laid(call, axes)
        if places:
            blob = reduced(call, operation, blob, places, keeps=keeps(call))
        if places and call.is_float(0):
            is_largest = operation == LARGEST
            inside = mapped(call, "Threshold", blob if is_largest else function(call, NEG, blob), {0: -MOST})
            blob = joined(call, ADD if is_largest else SUB, blob, mapped(call, "Log", inside))
        return call.made(blob, shape_of(call, axes), largest=call.largest(0), picks=True)

    return lower


def reduced_axes(call: Call) -> list[int]:
    """Those that are reduced, counted from the front; none where nothing is to be done."""
    numbers, rank = call.numbers(1, "which axes it reduces") if call.has(1) else [], call.rank(0)
    if not numbers and not call.attributes.get_int("noop_with_empty_axes", 0):
        return list(range(rank))
    return sorted({number % rank for number in numbers})


def over(call: Call, axes: Sequence[int]) -> Value:
    """Operand 0, its rows in its dims where they are reduced."""
    return call.whole(0) if 0 in axes else call.value(0)


def _laid(call: Call, axes: Sequence[int]) -> tuple[Blob, tuple[int, ...]]:
    """Operand 0 in dims that can be reduced, and those of ``axes``; these behind the others where they alternate."""
    value = over(call, axes)
    looks = [axis in axes for axis, size in enumerate(value.row) if size != 1]
    if 1 + sum(one != other for one, other in pairwise(looks)) > MOST_DIMS:
        kept = [axis for axis in range(value.rank) if axis not in axes]
        value, axes = transposed(call, value, [*kept, *axes]), range(len(kept), value.rank)
    return along(call, value, axes)


def keeps(call: Call) -> bool:
    return bool(call.attributes.get_int("keepdims", 1))


def shape_of(call: Call, axes: Sequence[int]) -> tuple[int, ...]:
    """Of the result."""
    shape = call.shape(0)
    if keeps(call):
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _absolute(call: Call, blob: Blob) -> Blob:
    return function(call, ABS, blob)


def reduce_mean(call: Call) -> Result:
    """Of integers: the sum divided by the count, towards zero. Of images as a pool, which takes channels in packs as
    the layers around it do."""
    axes = reduced_axes(call)
    blob, places = _laid(call, axes)
    if call.is_float(0):
        if len(blob.dims) == 3 and places == (1, 2) and not keeps(call):
            blob = call.add("Pooling", (blob,), blob.dims[:1], AVERAGE_OF_ALL)
        elif places:
            blob = reduced(call, MEAN, blob, places, keeps=keeps(call))
        return call.made(blob, shape_of(call, axes))
    count = math.prod(call.shape(0)[axis] for axis in axes)
    if call.largest(0) * count > WHOLE:
        raise Refusal(f"the sum of its integers {BEYOND_WHOLE}")
    if places:
        total = reduced(call, SUM, blob, places, keeps=keeps(call))
        divisor = call.lowering.memory(np.full(1, count, np.float32), (1,))
        blob = joined(call, MUL, shares(call, function(call, ABS, total), divisor), function(call, SIGN, total))
    return call.made(blob, shape_of(call, axes), largest=call.largest(0))


def reduce_log_sum_exp(call: Call) -> Result:
    """``log(sum(exp(x - m))) + m`` of the largest ``m``, which no power overflows; the layer's own does not lower."""
    axes = reduced_axes(call)
    blob, places = _laid(call, axes)
    if places:
        # Infinity less infinity is no number; as float16 the largest float is infinite again.
        most = mapped(call, "Clip", reduced(call, LARGEST, blob, places), {0: -MOST, 1: MOST})
        total = reduced(call, SUM, mapped(call, "Exp", joined(call, SUB, blob, most)), places)
        blob = joined(call, ADD, mapped(call, "Log", total), most)
    return call.made(blob, shape_of(call, axes))


def reduce_log_sum(call: Call) -> Result:
    axes = reduced_axes(call)
    blob, places = _laid(call, axes)
    if places:
        blob = reduced(call, SUM, blob, places)
    return call.made(mapped(call, "Log", blob), shape_of(call, axes))


# ---- positions


def _best(call: Call, blob: Blob, place: int) -> tuple[Blob, Blob]:
    """One where the largest elements along a dim are, zero elsewhere, and how many of them stand up to each place."""
    # Reduction's largest is finite.
    finite = by_number(call, MAX, blob, -MOST)
    below = joined(call, SUB, reduced(call, LARGEST, finite, [place]), finite)
    is_best = _not(call, mapped(call, "Threshold", below, {0: 0.0}))
    return is_best, call.add("CumulativeSum", (is_best,), blob.dims, {0: place})


def _not(call: Call, blob: Blob) -> Blob:
    return by_number(call, FROM, blob, 1.0)


def first_of(call: Call, blob: Blob, place: int) -> Blob:
    """One where the first of the largest elements along a dim is, zero elsewhere."""
    is_best, count = _best(call, blob, place)
    return joined(call, MUL, is_best, _not(call, mapped(call, "Threshold", count, {0: 1.0})))


def position(*, negated: bool) -> Callable[[Call], Result]:
    """The op function of the place of the first of the largest elements, or of the last: how many are before it."""

    def lower(call: Call) -> Result:
        if not call.rank(0):
            raise Refusal("its operand has no axes")
        axis, last = call.axis(0), bool(call.attributes.get_int("select_last_index", 0))
        value = over(call, [axis])
        blob, place = around(call, value, axis)
        _, count = _best(call, function(call, NEG, blob) if negated else blob, place)
        if last:
            after = joined(call, SUB, reduced(call, LARGEST, count, [place]), count)
            before = mapped(call, "Threshold", after, {0: 0.0})
        else:
            before = _not(call, mapped(call, "Threshold", count, {0: 0.0}))
        made = reduced(call, SUM, before, [place], keeps=keeps(call))
        return call.made(made, shape_of(call, [axis]), largest=float(value.shape[axis]))

    return lower


# ---- sums on the way


def cum_sum(call: Call) -> Result:
    value = call.value(0)
    if not value.rank:
        return value
    axis = call.numbers(1, "the axis")[0] % value.rank
    if not axis:
        value = call.whole(0)
    exclusive, reverse = (bool(call.attributes.get_int(name, 0)) for name in ("exclusive", "reverse"))
    size = value.shape[axis]
    if exclusive and size == 1:
        return np.zeros(value.shape, value.dtype)
    blob, place = _between(call, value, axis) if exclusive else around(call, value, axis)
    if reverse:
        blob = call.add("Flip", (blob,), blob.dims, {0: [place]})
    if exclusive:
        # In this order, as of one element nothing is left without the last.
        outer, _, inner = blob.dims
        blob = call.add("Padding", (blob,), (outer, size + 1, inner), {0: 1})
        blob = call.add("Crop", (blob,), (outer, size, inner), {9: [0], 10: [-1], 11: [place]})
    blob = call.add("CumulativeSum", (blob,), blob.dims, {0: place})
    if reverse:
        blob = call.add("Flip", (blob,), blob.dims, {0: [place]})
    return call.made(blob, value.shape, largest=call.largest(0) * size)


def _between(call: Call, value: Value, axis: int) -> tuple[Blob, int]:
    """One row of ``value`` in three dims, the axis the one between."""
    row = value.row
    return call.view(value, (math.prod(row[:axis]), row[axis], math.prod(row[axis + 1 :]))), 1


def _product(largest: float, count: int) -> float:
    # 2 to the power of 40 is refused already, and Python's floats do not hold all that is larger.
    return largest ** min(count, 40) if largest > 1 else largest


OPS: Mapping[str, Op] = {
    "ArgMax": Op(position(negated=False), NUMBERS),
    "ArgMin": Op(position(negated=True), NUMBERS),
    "CumSum": Op(cum_sum, NUMBERS),
    "ReduceL1": Op(reduction(SUM_OF_SIZES, _absolute, lambda largest, count: largest * count), NUMBERS),
    "ReduceL2": Op(reduction(LENGTH, _absolute)),
    "ReduceLogSum": Op(reduce_log_sum),
    "ReduceLogSumExp": Op(in_float32(reduce_log_sum_exp)),
    "ReduceMax": Op(extreme(LARGEST), ANY),
    "ReduceMean": Op(reduce_mean, NUMBERS),
    "ReduceMin": Op(extreme(SMALLEST), ANY),
    "ReduceProd": Op(reduction(PRODUCT, bound=_product), NUMBERS),
    "ReduceSum": Op(reduction(SUM, bound=lambda largest, count: largest * count), NUMBERS),
    "ReduceSumSquare": Op(
        reduction(
            SUM_OF_SQUARES,
            lambda call, blob: function(call, SQUARE, blob),
            lambda largest, count: largest * largest * count,
        ),
        NUMBERS,
    ),
}

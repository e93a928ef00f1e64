"""Comparisons, truth values and choices between two operands.

There is one layer that compares: Threshold, 1 where its operand is above a number and 0 elsewhere, also where that is
NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from retarget.targets.ncnn import rows
from retarget.targets.ncnn.call import ANY, Call, Op
from retarget.targets.ncnn.ops.axes import beside
from retarget.targets.ncnn.ops.elementwise import (
    ABS,
    ADD,
    FROM,
    MAX,
    MIN,
    MUL,
    NEG,
    SUB,
    by_number,
    function,
    joined,
    mapped,
    number_beside,
)
from retarget.targets.ncnn.program import MOST, Blob
from retarget.targets.ncnn.values import Refusal, Result, Value, plain_dims

BOOL = frozenset({"bool"})

LEAST = float(np.finfo(np.float32).tiny)
"""Smaller ones may be taken for 0."""


# ---- blobs of 0 and 1


def above(call: Call, blob: Blob, number: float) -> Blob:
    return mapped(call, "Threshold", blob, {0: number})


def opposite(call: Call, blob: Blob) -> Blob:
    return by_number(call, FROM, blob, 1.0)


def is_number(call: Call, *blobs: Blob) -> Blob:
    """Where none of them is NaN."""
    sizes = [function(call, ABS, blob) for blob in blobs]
    total = sizes[0]
    for size in sizes[1:]:
        total = joined(call, ADD, total, size)
    return above(call, total, -1.0)


def _before(number: float) -> float:
    """The next smaller float32: what is above it, is at least ``number``."""
    if number == 0.0:
        return -LEAST
    return float(np.nextafter(np.float32(number), np.float32(-np.inf)))


# ---- comparisons


def _compared(call: Call, *, swapped: bool, or_equal: bool) -> Result:
    """Whether operand 0 is above operand 1, or ``swapped`` below."""
    for index, other in ((1, 0), (0, 1)):
        number = number_beside(call, index, other)
        if number is None or abs(number) == MOST:
            continue
        value = call.value(other)
        blob = call.blob(value)
        if swapped == (index == 1):
            blob, number = function(call, NEG, blob), -number
        return call.made(above(call, blob, _before(number) if or_equal else number), value.shape)
    left, right = beside(call, call.aligned(*((1, 0) if swapped else (0, 1))))
    shape = np.broadcast_shapes(call.shape(0), call.shape(1))
    if not or_equal:
        return call.made(above(call, joined(call, SUB, left, right), 0.0), shape)
    made = opposite(call, above(call, joined(call, SUB, right, left), 0.0))
    if call.is_float(0):
        made = joined(call, MUL, made, is_number(call, left, right))
    return call.made(made, shape)


def greater(call: Call) -> Result:
    return _compared(call, swapped=False, or_equal=False)


def greater_or_equal(call: Call) -> Result:
    return _compared(call, swapped=False, or_equal=True)


def less(call: Call) -> Result:
    return _compared(call, swapped=True, or_equal=False)


def less_or_equal(call: Call) -> Result:
    return _compared(call, swapped=True, or_equal=True)


def equal(call: Call) -> Result:
    for index, other in ((1, 0), (0, 1)):
        number = number_beside(call, index, other)
        if number is not None and abs(number) != MOST:
            value = call.value(other)
            return call.made(equals(call, call.blob(value), number), value.shape)
    left, right = beside(call, call.aligned(0, 1))
    shape = np.broadcast_shapes(call.shape(0), call.shape(1))
    differ = above(call, function(call, ABS, joined(call, SUB, left, right)), 0.0)
    made = opposite(call, differ)
    if call.is_float(0):
        made = joined(call, MUL, made, is_number(call, left, right))
    return call.made(made, shape)


def equals(call: Call, blob: Blob, number: float) -> Blob:
    return joined(call, SUB, above(call, blob, _before(number)), above(call, blob, number))


# ---- truth values


def truths(op: int) -> Callable[[Call], Result]:
    def lower(call: Call) -> Result:
        left, right = beside(call, call.aligned(0, 1))
        return call.made(joined(call, op, left, right), np.broadcast_shapes(call.shape(0), call.shape(1)))

    return lower


def xor(call: Call) -> Result:
    left, right = beside(call, call.aligned(0, 1))
    differ = function(call, ABS, joined(call, SUB, left, right))
    return call.made(differ, np.broadcast_shapes(call.shape(0), call.shape(1)))


def not_(call: Call) -> Result:
    value = call.value(0)
    return call.made(opposite(call, call.blob(value)), value.shape)


def is_nan(call: Call) -> Result:
    value = call.value(0)
    return call.made(opposite(call, is_number(call, call.blob(value))), value.shape)


def is_inf(call: Call) -> Result:
    value = call.value(0)
    blob = call.blob(value)
    negative = call.attributes.get_int("detect_negative", 1)
    positive = call.attributes.get_int("detect_positive", 1)
    if negative and positive:
        blob = function(call, ABS, blob)
    elif negative:
        blob = function(call, NEG, blob)
    elif not positive:
        return np.zeros(value.shape, np.bool_)
    return call.made(above(call, blob, MOST), value.shape)


# ---- choices


def where(call: Call) -> Result:
    """``max(min(x, m), min(y, -m))`` of ``m``, which is infinity where the condition holds, and minus infinity else.

    So what is not chosen may be infinite. It may be NaN too: Shrink makes 0 of that, also where it is chosen.
    """
    shape = np.broadcast_shapes(*(call.shape(index) for index in range(3)))
    largest = max(call.largest(1), call.largest(2))
    if (guarded := _guarded(call)) is not None:
        return call.made(guarded, shape)
    if (between := _between_numbers(call)) is not None:
        return call.made(between, shape, largest=largest, picks=True)
    condition, x, y = call.aligned(0, 1, 2)
    if call.is_constant(0):
        truth = call.array(0, "the condition")
        bounds = [np.where(truth == chosen, np.float32(np.inf), np.float32(-np.inf)) for chosen in (True, False)]
        ours, theirs = (_constant(call, bound) for bound in bounds)
    else:
        held = call.blob(condition)
        infinity = call.lowering.memory(_INFINITY, (1,))
        bound = joined(call, MUL, by_number(call, SUB, held, 0.5), infinity)
        ours = Value(condition.shape, np.dtype(np.float32), bound, bound.rows)
        theirs = Value(condition.shape, np.dtype(np.float32), function(call, NEG, bound), bound.rows)
    first, second = _bounded(call, 1, x, ours), _bounded(call, 2, y, theirs)
    if _is_lowest(call, 2) and first.shape == shape:
        return call.made(call.blob(first), shape)
    if _is_lowest(call, 1) and second.shape == shape:
        return call.made(call.blob(second), shape)
    made = joined(call, MAX, *beside(call, rows.aligned(call, [first, second])))
    return call.made(made, shape, largest=largest, picks=True)


_INFINITY = np.full(1, np.inf, np.float32)


def _guarded(call: Call) -> Blob | None:
    """The choice of 0 where a value is NaN, and else of the value, which Shrink makes."""
    condition, _, y = call.node.inputs[:3]
    maker = None if condition is None else condition.producer()
    if maker is None or maker.op_type != "IsNaN" or maker.inputs[0] is not y or not call.is_constant(1):
        return None
    if call.array(1, "it").any() or call.rank(1) > call.rank(2) or call.array(1, "it").size != 1:
        return None
    return mapped(call, "Shrink", call.blob(call.value(2)), {0: 0.0, 1: 0.0})


def _between_numbers(call: Call) -> Blob | None:
    """The choice between two numbers, where their difference and it are exact: times that, plus the second."""
    x, y = number_beside(call, 1, 0), number_beside(call, 2, 0)
    if x is None or y is None:
        return None
    step = np.float32(x) - np.float32(y) if abs(x) < MOST / 2 or abs(y) < MOST / 2 else np.float32(np.inf)
    if not np.isfinite(step) or step + np.float32(y) != np.float32(x):
        return None
    blob = call.blob(call.value(0))
    if step != 1:
        blob = by_number(call, MUL, blob, float(step))
    return by_number(call, ADD, blob, y) if y else blob


def _is_lowest(call: Call, index: int) -> bool:
    """Whether operand ``index`` is minus infinity everywhere."""
    return call.is_constant(index) and bool(np.isneginf(call.array(index, "it").astype(np.float64)).all())


def _constant(call: Call, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Value:
    return Value(array.shape, array.dtype, call.lowering.memory(array, plain_dims(array.shape)))


def _bounded(call: Call, index: int, value: Value, bound: Value) -> Value:
    """Operand ``index``, which is ``value``, where ``bound`` is infinity, and minus infinity where it is that."""
    if call.is_constant(index):
        if call.is_float(index) and np.isnan(call.array(index, "it")).any():
            raise Refusal("a constant is NaN, which the smaller and the larger of two are not the same of everywhere")
    elif call.is_float(index):
        blob = mapped(call, "Shrink", call.blob(value), {0: 0.0, 1: 0.0})
        value = Value(value.shape, value.dtype, blob, value.rows)
    made = joined(call, MIN, *beside(call, rows.aligned(call, [value, bound])))
    return Value(np.broadcast_shapes(value.shape, bound.shape), value.dtype, made, made.rows)


OPS: Mapping[str, Op] = {
    "And": Op(truths(MUL), BOOL),
    "Equal": Op(equal, ANY),
    "Greater": Op(greater, ANY),
    "GreaterOrEqual": Op(greater_or_equal, ANY),
    "IsInf": Op(is_inf),
    "IsNaN": Op(is_nan),
    "Less": Op(less, ANY),
    "LessOrEqual": Op(less_or_equal, ANY),
    "Not": Op(not_, BOOL),
    "Or": Op(truths(MAX), BOOL),
    "Where": Op(where, BOOL),
    "Xor": Op(xor, BOOL),
}

"""Arithmetic of two operands and more, with ONNX's broadcasting, and functions of one.

ncnn is compiled with ``-ffast-math``: where an operand is NaN, what its layers give differs between processors, and so
does what a division by 0 or by infinity gives (on AVX-512 NaN). Where ONNX's result of these is a number, it is made of
layers that the C library computes, which are right: ``Power``, ``Exp`` and ``Log``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np

from retarget.targets.ncnn import rows
from retarget.targets.ncnn.call import NUMBERS, Call, Op, in_float32
from retarget.targets.ncnn.ops.axes import beside
from retarget.targets.ncnn.program import LARGEST_HALF, MASK, MOST, NO_HALF, Blob, Param
from retarget.targets.ncnn.values import Refusal, Result, Shape, Value

ADD, SUB, MUL, DIV, MAX, MIN, FROM, INTO = 0, 1, 2, 3, 4, 5, 7, 8
"""``0`` of BinaryOp. FROM and INTO: the second operand less the first, and divided by it."""

WITH_NUMBER, NUMBER = 1, 2
"""Keys of BinaryOp: whether its second operand is one number, and the number."""

ABS, NEG, FLOOR, CEIL, SQUARE, SQRT, EXP, ROUND, TRUNC, SIGN = 0, 1, 2, 3, 4, 5, 7, 18, 19, 20
"""``0`` of UnaryOp. EXP is right of numbers up to 88."""

_SWAPPED = {ADD: ADD, SUB: FROM, MUL: MUL, DIV: INTO, MAX: MAX, MIN: MIN}
"""The same of operands in the other order."""


# ---- layers


def binary(call: Call, op: int, left: Value, right: Value) -> tuple[Blob, Shape]:
    """A BinaryOp on two values, whose rows are aligned; the blob, and ONNX's shape of the result."""
    one, other = beside(call, [left, right])
    return joined(call, op, one, other), tuple(np.broadcast_shapes(left.shape, right.shape))


def joined(call: Call, op: int, one: Blob, other: Blob) -> Blob:
    """A BinaryOp on two blobs of one rank, or of one element."""
    return call.add("BinaryOp", (one, other), np.broadcast_shapes(one.dims, other.dims), {0: op})


def by_number(call: Call, op: int, blob: Blob, number: float) -> Blob:
    """A BinaryOp on a blob and a finite number."""
    params: dict[int, Param] = {0: op, WITH_NUMBER: 1, NUMBER: float(number)}
    if op not in (MAX, MIN) and abs(number) > LARGEST_HALF:
        # As float16 it is infinite, and neither 0 times that nor that less itself is a number.
        params[MASK] = NO_HALF
    return call.add("BinaryOp", (blob,), blob.dims, params)


def with_number(call: Call, op: int, value: Value, number: float) -> Blob:
    """A BinaryOp on a value and a finite number."""
    return by_number(call, op, call.blob(value), number)


def mapped(call: Call, layer: str, blob: Blob, params: Mapping[int, float] | None = None) -> Blob:
    """A layer of one operand, element by element."""
    return call.add(layer, (blob,), blob.dims, params)


def function(call: Call, op: int, blob: Blob) -> Blob:
    """A UnaryOp."""
    return mapped(call, "UnaryOp", blob, {0: op})


def raised(call: Call, blob: Blob, exponent: float, shift: float = 0.0) -> Blob:
    """``(blob + shift) ** exponent`` as the C library computes it, zeros and infinities included."""
    return mapped(call, "Power", blob, {0: float(exponent), 1: 1.0, 2: float(shift)})


def number_of(call: Call, index: int) -> float | None:
    """The one number that operand ``index`` is, if it is a constant of one element that a param file can hold.

    An integer that float32 does not hold is rounded away from 0: no computed one reaches it, before as behind.
    """
    if not call.is_constant(index):
        return None
    array = call.array(index, "it")
    if array.size != 1 or not np.isfinite(array.astype(np.float32)).all():
        return None
    number = array.astype(np.float32).reshape(())
    if array.dtype.kind in "iu" and abs(int(number)) < abs(int(array.item())):
        number = np.nextafter(number, np.copysign(np.float32(np.inf), number))
    return float(number)


def number_beside(call: Call, index: int, other: int) -> float | None:
    """`number_of` operand ``index``, where the result has the shape of operand ``other``."""
    return number_of(call, index) if call.rank(index) <= call.rank(other) else None


def paired(call: Call, op: int) -> tuple[Blob, Shape]:
    """A BinaryOp on the operands; the blob, and ONNX's shape of the result."""
    for index, other, code in ((1, 0, op), (0, 1, _SWAPPED[op])):
        number = number_beside(call, index, other)
        if number is not None:
            return with_number(call, code, call.value(other), number), call.shape(other)
    return binary(call, op, *call.aligned(0, 1))


# ---- two operands


def add(call: Call) -> Result:
    blob, shape = paired(call, ADD)
    return call.made(blob, shape, largest=call.largest(0) + call.largest(1))


def sub(call: Call) -> Result:
    """Of unsigned integers the result may wrap around, and is refused."""
    if call.dtype(0).kind == "u":
        raise Refusal(f"{call.dtype(0).name} may wrap around in it, and floats do not")
    blob, shape = paired(call, SUB)
    return call.made(blob, shape, largest=call.largest(0) + call.largest(1))


def mul(call: Call) -> Result:
    blob, shape = paired(call, MUL)
    return call.made(blob, shape, largest=call.largest(0) * call.largest(1))


def div(call: Call) -> Result:
    """By what may be 0 or infinite: times its reciprocal. Of integers: towards zero."""
    if call.dtype(0).kind in "iu":
        return _integer_quotient(call)
    number = number_beside(call, 1, 0)
    if number:
        return call.made(with_number(call, DIV, call.value(0), number), call.shape(0))
    if call.is_constant(1):
        divisors = call.array(1, "the divisor")
        if np.isfinite(divisors).all() and divisors.all():
            return call.made(*binary(call, DIV, *call.aligned(0, 1)))
    divisor = call.value(1)
    numerator = number_beside(call, 0, 1)
    inverse = raised(call, call.blob(divisor), -1.0)
    if numerator is not None:
        return call.made(inverse if numerator == 1.0 else by_number(call, MUL, inverse, numerator), divisor.shape)
    inverted = Value(divisor.shape, divisor.dtype, inverse, divisor.rows)
    return call.made(*binary(call, MUL, *rows.aligned(call, [call.value(0), inverted])))


def _integer_quotient(call: Call) -> Result:
    left, right = beside(call, call.aligned(0, 1))
    shape = np.broadcast_shapes(call.shape(0), call.shape(1))
    signs = joined(call, MUL, function(call, SIGN, left), function(call, SIGN, right))
    made = joined(call, MUL, shares(call, function(call, ABS, left), function(call, ABS, right)), signs)
    return _wrapped(call, made, shape)


def _wrapped(call: Call, blob: Blob, shape: Shape) -> Result:
    """Integers that are no larger than those of operand 0, in magnitude: of a signed type the lowest has no opposite,
    and becomes itself."""
    limits, largest = np.iinfo(call.dtype(0).name), call.largest(0)
    if largest > limits.max:
        beyond = mapped(call, "Threshold", blob, {0: float(limits.max)})
        blob = joined(call, SUB, blob, by_number(call, MUL, beyond, 2.0 * largest))
    return call.made(blob, shape, largest=largest, picks=True)


def shares(call: Call, whole: Blob, part: Blob) -> Blob:
    """How often ``part`` goes into ``whole``, of integers that are not negative.

    A quotient that is an integer may be computed as a little less, or be rounded to one: what is left over, or less
    than nothing, says so.
    """
    count = function(call, FLOOR, joined(call, DIV, whole, part))
    left_over = joined(call, SUB, whole, joined(call, MUL, count, part))
    more = mapped(call, "Threshold", joined(call, SUB, left_over, part), {0: -0.5})
    less = mapped(call, "Threshold", function(call, NEG, left_over), {0: 0.5})
    return joined(call, ADD, count, joined(call, SUB, more, less))


def mod(call: Call) -> Result:
    """Of integers. ``fmod=0``: the sign of the divisor. ``fmod=1``: that of the dividend, as C has it."""
    if call.is_float(0):
        return _float_remainder(call)
    left, right = beside(call, call.aligned(0, 1))
    shape = np.broadcast_shapes(call.shape(0), call.shape(1))
    whole, part = function(call, ABS, left), function(call, ABS, right)
    rest = joined(call, SUB, whole, joined(call, MUL, shares(call, whole, part), part))
    made = joined(call, MUL, rest, function(call, SIGN, left))
    if not call.attributes.get_int("fmod", 0):
        # One divisor more where the signs differ and something is left.
        signs = joined(call, MUL, made, function(call, SIGN, right))
        differ = mapped(call, "Threshold", function(call, NEG, signs), {0: 0.0})
        made = joined(call, ADD, made, joined(call, MUL, differ, right))
    return call.made(
        made, shape, largest=min(call.largest(0), call.largest(1)) if call.dtype(0).kind == "u" else call.largest(1),
        picks=True,
    )  # fmt: skip


def _float_remainder(call: Call) -> Result:
    """Of a power of 2, by which a division and a product are exact."""
    number = number_beside(call, 1, 0)
    if not number or abs(math.frexp(number)[0]) != 0.5:
        raise Refusal("of floats the quotient is rounded, and where it is large the remainder is wrong with it")
    value = call.value(0)
    blob = call.blob(value)
    count = function(call, TRUNC, by_number(call, MUL, blob, 1 / number))
    return call.made(joined(call, SUB, blob, by_number(call, MUL, count, number)), value.shape)


def pow_(call: Call) -> Result | Sequence[Result]:
    """A constant exponent, a constant base, or both computed."""
    exponent = number_beside(call, 1, 0)
    if exponent is not None:
        return _power(call, call.value(0), exponent)
    if call.dtype(0).kind in "iu":
        raise Refusal("integers to the power of what is not one constant are rounded as floats are")
    base = number_beside(call, 0, 1)
    if base is not None and base > 0:
        return call.made(mapped(call, "Exp", call.blob(call.value(1)), {0: base}), call.shape(1))
    return _any_power(call)


def _of_both(call: Call) -> Result:
    left, right = beside(call, call.aligned(0, 1))
    return call.made(_raised_to(call, left, right), np.broadcast_shapes(call.shape(0), call.shape(1)))


_any_power = in_float32(_of_both)
"""As float16 the finite number that stands for the logarithm of 0 would be infinite."""


def _raised_to(call: Call, base: Blob, exponent: Blob) -> Blob:
    """``exp(y * log(|x|))``, its sign as ``y`` is odd where ``x`` is negative; no number there if ``y`` is a fraction.

    BinaryOp's own is wrong of all bases that are not positive. The logarithm of 0 is taken as a finite number, for the
    exponent 0.
    """
    log = mapped(call, "Log", function(call, ABS, base))
    finite = mapped(call, "Clip", log, {0: -MOST, 1: MOST})
    size = mapped(call, "Exp", joined(call, MUL, exponent, finite))
    negative = mapped(call, "Threshold", function(call, NEG, base), {0: 0.0})
    below = function(call, FLOOR, exponent)
    pairs = by_number(call, MUL, function(call, FLOOR, by_number(call, MUL, below, 0.5)), 2.0)
    odd = joined(call, SUB, below, pairs)
    sign = by_number(call, FROM, by_number(call, MUL, joined(call, MUL, odd, negative), 2.0), 1.0)
    fraction = mapped(call, "Threshold", joined(call, SUB, exponent, below), {0: 0.0})
    undefined = function(call, SQRT, function(call, NEG, joined(call, MUL, fraction, negative)))
    return joined(call, ADD, joined(call, MUL, size, sign), undefined)


def _power(call: Call, value: Value, exponent: float) -> Result:
    blob = call.blob(value)
    if call.dtype(0).kind in "iu":
        if exponent < 0 or not exponent.is_integer():
            raise Refusal(f"integers to the power of {exponent:g} are rounded as floats are")
        if exponent not in (1.0, 2.0, 3.0):
            raise Refusal(f"integers to the power of {exponent:g} are not exact in floats")
        largest = call.largest(0) ** exponent
    else:
        largest = math.inf
    if exponent == 1.0:
        made = blob
    elif exponent == 2.0:
        made = function(call, SQUARE, blob)
    elif exponent == 3.0:
        made = joined(call, MUL, function(call, SQUARE, blob), blob)
    elif exponent == 0.5:
        made = function(call, SQRT, blob)
    else:
        made = raised(call, blob, exponent)
    return call.made(made, value.shape, largest=largest)


# ---- any number of operands


def folded(op: int) -> Callable[[Call], Result]:
    """An operator of any number of operands: Max and Min, and Sum, which ONNX has of floats alone."""

    def lower(call: Call) -> Result:
        largest = max(call.largest(index) for index in range(call.count))
        if call.count == 2:
            return call.made(*paired(call, op), largest=largest, picks=True)
        total = reduce(lambda left, right: _both(call, op, left, right), call.aligned(*range(call.count)))
        return call.made(call.blob(total), total.shape, largest=largest, picks=True)

    return lower


def _both(call: Call, op: int, left: Value, right: Value) -> Value:
    blob, shape = binary(call, op, left, right)
    return Value(shape, left.dtype, blob, blob.rows)


def mean(call: Call) -> Result:
    """The mean of operands, not of elements."""
    total = reduce(lambda left, right: _both(call, ADD, left, right), call.aligned(*range(call.count)))
    if call.count == 1:
        return call.made(call.blob(total), total.shape)
    return call.made(with_number(call, MUL, total, 1 / call.count), total.shape)


# ---- one operand


def unary(op: int) -> Callable[[Call], Result]:
    """An operator that UnaryOp has under ``op``; of integers Abs and Neg."""

    def lower(call: Call) -> Result:
        value = call.value(0)
        made = function(call, op, call.blob(value))
        return _wrapped(call, made, value.shape) if call.dtype(0).kind in "iu" else call.made(made, value.shape)

    return lower


def layer(name: str, params: Mapping[int, float] | None = None) -> Callable[[Call], Result]:
    """An operator that is ncnn's layer ``name``."""

    def lower(call: Call) -> Result:
        value = call.value(0)
        return call.made(mapped(call, name, call.blob(value), params), value.shape)

    return lower


def reciprocal(call: Call) -> Result:
    value = call.value(0)
    return call.made(raised(call, call.blob(value), -1.0), value.shape)


def sign(call: Call) -> Result:
    value = call.value(0)
    return call.made(function(call, SIGN, call.blob(value)), value.shape, largest=1.0)


def clip(call: Call) -> Result:
    """Bounds may be absent, and computed. Where the lower one is above the other, the other holds."""
    value = call.value(0)
    low, high = (number_of(call, index) if call.has(index) else end for index, end in ((1, -MOST), (2, MOST)))
    largest = max([call.largest(0), *(call.largest(index) for index in (1, 2) if call.has(index))])
    if low is not None and high is not None and call.dtype(0).kind in "iu":
        # Bounds may be the ends of the type, beyond all that is there.
        largest = max(abs(min(max(end, low), high)) for end in (-call.largest(0), call.largest(0)))
    blob = call.blob(value)
    if low is not None and high is not None and low <= high:
        return call.made(mapped(call, "Clip", blob, {0: low, 1: high}), value.shape, largest=largest, picks=True)
    for index, op, bound in ((1, MAX, low), (2, MIN, high)):
        if bound is not None:
            blob = by_number(call, op, blob, bound)
        else:
            held = Value(value.shape, value.dtype, blob, value.rows)
            blob, _ = binary(call, op, held, call.with_rows(call.value(index), 1))
    return call.made(blob, value.shape, largest=largest, picks=True)


def dropout(call: Call) -> tuple[Result, Result]:
    """Nothing, when it does not train. The mask is then true everywhere."""
    trains = call.has(2) and bool(call.array(2, "training_mode").item())
    if trains and (not call.has(1) or float(call.array(1, "the ratio").item()) != 0.0):
        raise Refusal("training_mode=1: what it drops is random")
    if len(call.outputs) < 2 or not call.outputs[1]:
        return call.operand(0), None
    return call.operand(0), np.ones(call.shape(0), np.bool_)


OPS: Mapping[str, Op] = {
    "Abs": Op(unary(ABS), NUMBERS),
    "Add": Op(add, NUMBERS),
    "Ceil": Op(unary(CEIL)),
    "Clip": Op(clip, NUMBERS),
    "Div": Op(div, NUMBERS),
    "Dropout": Op(dropout),
    "Exp": Op(layer("Exp")),
    "Floor": Op(unary(FLOOR)),
    "Log": Op(layer("Log")),
    "Max": Op(folded(MAX), NUMBERS),
    "Mean": Op(mean),
    "Min": Op(folded(MIN), NUMBERS),
    "Mul": Op(mul, NUMBERS),
    "Mod": Op(mod, NUMBERS),
    "Neg": Op(unary(NEG), NUMBERS),
    "Pow": Op(pow_, NUMBERS),
    "Reciprocal": Op(reciprocal),
    "Round": Op(unary(ROUND)),
    "Sign": Op(sign, NUMBERS),
    "Sqrt": Op(unary(SQRT)),
    "Sub": Op(sub, NUMBERS),
    "Sum": Op(folded(ADD)),
}

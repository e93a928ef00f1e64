"""Trigonometric and hyperbolic functions and Erf, within 1e-6 of the result, and near 0 of 1."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.ncnn.call import Call, Op, in_float32
from retarget.targets.ncnn.ops.elementwise import (
    ABS,
    ADD,
    MUL,
    SIGN,
    SQRT,
    SUB,
    by_number,
    function,
    joined,
    layer,
    mapped,
    unary,
)
from retarget.targets.ncnn.program import MOST, Blob
from retarget.targets.ncnn.values import Result

SIN, COS, TAN, ASIN, ACOS, ATAN, ASINH = 9, 10, 11, 12, 13, 14, 23
"""``0`` of UnaryOp. Its SINH and COSH are wrong of what is large, its ACOSH and ATANH at the ends of their domains."""


def atan(call: Call) -> Result:
    """Of the largest float where it is infinite, of which UnaryOp's is NaN; as float16 that is infinite again."""
    value = call.value(0)
    finite = mapped(call, "Clip", call.blob(value), {0: -MOST, 1: MOST})
    return call.made(function(call, ATAN, finite), value.shape)


def cosh(call: Call) -> Result:
    value = call.value(0)
    rising, falling = _halves(call, call.blob(value))
    return call.made(joined(call, ADD, rising, falling), value.shape)


def sinh(call: Call) -> Result:
    value = call.value(0)
    blob = call.blob(value)
    rising, falling = _halves(call, blob)
    size = joined(call, SUB, rising, falling)
    return call.made(joined(call, MUL, size, function(call, SIGN, blob)), value.shape)


def _halves(call: Call, blob: Blob) -> tuple[Blob, Blob]:
    """``exp(|x|) / 2``, as two factors so that it overflows no sooner than the sum of both, and ``exp(-|x|) / 2``."""
    size = function(call, ABS, blob)
    root = mapped(call, "Exp", size, {0: -1.0, 1: 0.5})
    falling = mapped(call, "Exp", size, {0: -1.0, 1: -1.0})
    return joined(call, MUL, by_number(call, MUL, root, 0.5), root), by_number(call, MUL, falling, 0.5)


def acosh(call: Call) -> Result:
    """``log(x + sqrt(x - 1) * sqrt(x + 1))``, which no square overflows."""
    value = call.value(0)
    blob = call.blob(value)
    roots = [function(call, SQRT, by_number(call, ADD, blob, shift)) for shift in (-1.0, 1.0)]
    total = joined(call, ADD, blob, joined(call, MUL, *roots))
    return call.made(mapped(call, "Log", total), value.shape)


def atanh(call: Call) -> Result:
    """``(log(1 + x) - log(1 - x)) / 2``."""
    value = call.value(0)
    blob = call.blob(value)
    above, below = (mapped(call, "Log", blob, {0: -1.0, 1: scale, 2: 1.0}) for scale in (1.0, -1.0))
    return call.made(by_number(call, MUL, joined(call, SUB, above, below), 0.5), value.shape)


OPS: Mapping[str, Op] = {
    "Acos": Op(unary(ACOS)),
    "Acosh": Op(acosh),
    "Asin": Op(unary(ASIN)),
    "Asinh": Op(unary(ASINH)),
    "Atan": Op(in_float32(atan)),
    "Atanh": Op(atanh),
    "Cos": Op(unary(COS)),
    "Cosh": Op(cosh),
    "Erf": Op(layer("Erf")),
    "Sin": Op(unary(SIN)),
    "Sinh": Op(sinh),
    "Tan": Op(unary(TAN)),
}

"""Trigonometric and hyperbolic functions and Erf: most are composed, as accurate as float32 is.

XNNPACK's SIN and COS are accurate to 4e-7 up to 1e5, and lose all digits for arguments above 1e9. Its LOG is off by up
to 1.2e-7 near 1: what needs ``log1p`` is a series near 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.layout import Way
from retarget.targets.tflite.ops.elementwise import unary
from retarget.targets.tflite.values import Operand, Value

NEAR = 0.25
"""Below it the series of asinh and atanh are accurate to 1e-7 of the result, with the terms that are written here."""


def tan(call: Call) -> Value:
    data = call.operand(0)
    return call.binary("DIV", call.unary("SIN", data), call.unary("COS", data))


def asin(call: Call) -> Value:
    """``atan2(x, sqrt(1 - x**2))``."""
    data = call.operand(0)
    return call.binary("ATAN2", data, _opposite(call, data))


def acos(call: Call) -> Value:
    """``atan2(sqrt(1 - x**2), x)``."""
    data = call.operand(0)
    return call.binary("ATAN2", _opposite(call, data), data)


def _opposite(call: Call, data: Operand) -> Value:
    """``sqrt(1 - x**2)``, without cancellation near 1."""
    product = call.binary("MUL", call.binary("SUB", 1.0, data), call.binary("ADD", 1.0, data))
    return call.unary("SQRT", product)


def atan(call: Call) -> Value:
    data = call.operand(0)
    # ATAN2 takes two operands of one shape, which is known when the model is loaded: cos(0 * x) would not hold for inf.
    ones = call.cast(call.binary("EQUAL", data, data, np.bool_), "float32")
    return call.binary("ATAN2", data, ones)


def sinh(call: Call) -> Value:
    """``sign(x) * exp(a) * (1 - exp(-2 * a)) / 2`` of ``a = |x|``. ELU(-a) is ``exp(-a) - 1`` without cancellation."""
    data = call.operand(0)
    size = call.unary("ABS", data)
    less = call.unary("ELU", call.unary("NEG", size))
    share = call.binary("MUL", less, call.binary("ADD", less, 2.0))
    half = call.binary("MUL", call.unary("SIGN", data), -0.5)
    return call.binary("MUL", call.binary("MUL", call.unary("EXP", size), share), half)


def cosh(call: Call) -> Value:
    data = call.operand(0)
    both = call.binary("ADD", call.unary("EXP", data), call.unary("EXP", call.unary("NEG", data)))
    return call.binary("MUL", both, 0.5)


def asinh(call: Call) -> Value:
    """``sign(x) * log(a + sqrt(a**2 + 1))`` of ``a = |x|``."""
    data = call.operand(0)
    size = call.unary("ABS", data)
    root = call.unary("SQRT", call.binary("ADD", call.binary("MUL", size, size), 1.0))
    far = call.binary("MUL", call.unary("SIGN", data), call.unary("LOG", call.binary("ADD", size, root)))
    return _near_zero(call, data, size, (1.0, -1 / 6, 3 / 40, -15 / 336, 105 / 3456, -945 / 42240), far)


def acosh(call: Call) -> Value:
    """``log(x + sqrt(x - 1) * sqrt(x + 1))``."""
    data = call.operand(0)
    less, more = (call.unary("SQRT", call.binary(code, data, 1.0)) for code in ("SUB", "ADD"))
    return call.unary("LOG", call.binary("ADD", data, call.binary("MUL", less, more)))


def atanh(call: Call) -> Value:
    """``log((1 + x) / (1 - x)) / 2``."""
    data = call.operand(0)
    quotient = call.binary("DIV", call.binary("ADD", 1.0, data), call.binary("SUB", 1.0, data))
    far = call.binary("MUL", call.unary("LOG", quotient), 0.5)
    series = tuple(1 / (2 * term + 1) for term in range(7))
    return _near_zero(call, data, call.unary("ABS", data), series, far)


def _near_zero(call: Call, data: Operand, size: Value, series: Sequence[float], far: Value) -> Value:
    """The odd ``series`` of ``data`` where its ``size`` is below NEAR, else ``far``."""
    near = call.binary("MUL", data, _polynomial(call, call.binary("MUL", data, data), series))
    return call.emit("SELECT_V2", [call.binary("LESS", size, NEAR, np.bool_), near, far], data.shape, np.float32)


def _polynomial(call: Call, data: Value, coefficients: Sequence[float]) -> Value:
    """By Horner's rule, the constant first."""
    *lower, highest = coefficients
    result = call.binary("MUL", data, highest)
    for coefficient in reversed(lower[1:]):
        result = call.binary("MUL", call.binary("ADD", result, coefficient), data)
    return call.binary("ADD", result, lower[0])


def erf(call: Call) -> Value:
    """The quotient of polynomials that Eigen and XLA have for float32: off by 5e-7 of the result at most.

    There is no builtin. What fuses to GELU was fused before.
    """
    data = call.operand(0)
    bounded = call.binary("MINIMUM", call.binary("MAXIMUM", data, -4.0), 4.0)
    square = call.binary("MUL", bounded, bounded)
    numerator = call.binary("MUL", bounded, _polynomial(call, square, _ERF_NUMERATOR))
    return call.binary("DIV", numerator, _polynomial(call, square, _ERF_DENOMINATOR))


_ERF_NUMERATOR = (
    -1.60960333262415e-02,
    -2.95459980854025e-03,
    -7.34990630326855e-04,
    -5.69250639462346e-05,
    -2.10102402082508e-06,
    2.77068142495902e-08,
    -2.72614225801306e-10,
)
_ERF_DENOMINATOR = (
    -1.42647390514189e-02,
    -7.37332916720468e-03,
    -1.68282697438203e-03,
    -2.13374055278905e-04,
    -1.45660718464996e-05,
)

OPS: Mapping[str, Op] = {
    "Acos": Op(acos, Way.EITHER),
    "Acosh": Op(acosh, Way.EITHER),
    "Asin": Op(asin, Way.EITHER),
    "Asinh": Op(asinh, Way.EITHER),
    "Atan": Op(atan, Way.EITHER),
    "Atanh": Op(atanh, Way.EITHER),
    "Cos": Op(unary("COS"), Way.EITHER),
    "Cosh": Op(cosh, Way.EITHER),
    "Erf": Op(erf, Way.EITHER),
    "Sin": Op(unary("SIN"), Way.EITHER),
    "Sinh": Op(sinh, Way.EITHER),
    "Tan": Op(tan, Way.EITHER),
}

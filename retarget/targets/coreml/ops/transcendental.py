"""Trigonometric and hyperbolic functions and Erf. The two that MIL lacks are composed, as accurate as floats are."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.coreml.call import FLOATS, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.elementwise import unary


def asinh(call: Call) -> Var:
    """``atanh(x / sqrt(1 + x**2))`` near 0, else ``sign(x) * (log(a) + log(1 + sqrt(1 + 1 / a**2)))`` of ``a = |x|``:
    nothing cancels near 0, and no square overflows far from it."""
    mil, x = call.mil, call.var(0)
    size = mil.abs(x=x)
    root = mil.sqrt(x=mil.add(x=mil.mul(x=x, y=x), y=1.0))
    near = mil.atanh(x=mil.real_div(x=x, y=root))
    part = mil.inverse(x=size, epsilon=0.0)
    rest = mil.add(x=mil.sqrt(x=mil.add(x=mil.mul(x=part, y=part), y=1.0)), y=1.0)
    far = mil.mul(x=mil.sign(x=x), y=mil.add(x=mil.log(x=size, epsilon=0.0), y=mil.log(x=rest, epsilon=0.0)))
    return mil.select(cond=mil.less(x=size, y=0.5), a=near, b=far)


def acosh(call: Call) -> Var:
    """``atanh(sqrt(x - 1) * sqrt(x + 1) / x)`` near 1, else ``log(x) + log(1 + sqrt((1 - 1 / x) * (1 + 1 / x)))``."""
    mil, x = call.mil, call.var(0)
    less = mil.mul(x=mil.sqrt(x=mil.sub(x=x, y=1.0)), y=mil.sqrt(x=mil.add(x=x, y=1.0)))
    near = mil.atanh(x=mil.real_div(x=less, y=x))
    part = mil.inverse(x=x, epsilon=0.0)
    share = mil.mul(x=mil.sub(x=1.0, y=part), y=mil.add(x=part, y=1.0))
    rest = mil.add(x=mil.sqrt(x=share), y=1.0)
    far = mil.add(x=mil.log(x=x, epsilon=0.0), y=mil.log(x=rest, epsilon=0.0))
    return mil.select(cond=mil.less(x=x, y=1.5), a=near, b=far)


OPS: Mapping[str, Op] = {
    "Acos": Op(unary("acos"), FLOATS),
    "Acosh": Op(acosh, FLOATS),
    "Asin": Op(unary("asin"), FLOATS),
    "Asinh": Op(asinh, FLOATS),
    "Atan": Op(unary("atan"), FLOATS),
    "Atanh": Op(unary("atanh"), FLOATS),
    "Cos": Op(unary("cos"), FLOATS),
    "Cosh": Op(unary("cosh"), FLOATS),
    "Erf": Op(unary("erf"), FLOATS),
    "Sin": Op(unary("sin"), FLOATS),
    "Sinh": Op(unary("sinh"), FLOATS),
    "Tan": Op(unary("tan"), FLOATS),
}

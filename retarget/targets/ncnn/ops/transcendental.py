"""Trigonometric and hyperbolic functions and Erf."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.ncnn.call import Op
from retarget.targets.ncnn.ops.elementwise import layer, unary

SIN, COS, TAN, ASIN, ACOS, ATAN, SINH, ASINH, COSH, ACOSH, ATANH = 9, 10, 11, 12, 13, 14, 22, 23, 24, 25, 26
"""``0`` of UnaryOp."""

OPS: Mapping[str, Op] = {
    "Acos": Op(unary(ACOS)),
    "Asin": Op(unary(ASIN)),
    "Asinh": Op(unary(ASINH)),
    "Atan": Op(unary(ATAN)),
    "Cos": Op(unary(COS)),
    "Erf": Op(layer("Erf")),
    "Sin": Op(unary(SIN)),
    "Tan": Op(unary(TAN)),
}

"""Arithmetic, comparisons and logic, element by element."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retarget.targets.tflite.layout import Way
from retarget.targets.tflite.lowering import FUSING, Call, Op, Value
from retarget.targets.tflite.program import Options


def add(call: Call) -> Value:
    return _arithmetic(call, "ADD")


def sub(call: Call) -> Value:
    return _arithmetic(call, "SUB")


def mul(call: Call) -> Value:
    return _arithmetic(call, "MUL")


def div(call: Call) -> Value:
    return _arithmetic(call, "DIV")


def _arithmetic(call: Call, code: str) -> Value:
    left, right = call.operand(0), call.operand(1)
    options = Options(FUSING[code], {"fusedActivationFunction": call.activation})
    return call.emit(code, [left, right], np.broadcast_shapes(left.shape, right.shape), options=options)


_NUMBERS = frozenset({"float32", "int32"})

OPS: Mapping[str, Op] = {
    "Add": Op(add, Way.EITHER, dtypes=_NUMBERS, fuses=True, int8="computes"),
    # Int8 DIV is wrong in all of LiteRT's kernels.
    "Div": Op(div, Way.EITHER, dtypes=_NUMBERS, fuses=True),
    "Mul": Op(mul, Way.EITHER, dtypes=_NUMBERS, fuses=True, int8="computes"),
    "Sub": Op(sub, Way.EITHER, dtypes=_NUMBERS, fuses=True, int8="computes"),
}

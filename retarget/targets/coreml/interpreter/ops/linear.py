"""Products of matrices."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, OpFunction, Tensor


def linear(call: Call) -> Tensor:
    result = call.array("x") @ call.array("weight").T
    bias = call.optional("bias")
    return result if bias is None else result + bias


def matmul(call: Call) -> Tensor:
    x, y = call.array("x"), call.array("y")
    if call.flag("transpose_x", False) and x.ndim > 1:
        x = x.swapaxes(-1, -2)
    if call.flag("transpose_y", False) and y.ndim > 1:
        y = y.swapaxes(-1, -2)
    return np.asarray(x @ y)


def einsum(call: Call) -> Tensor:
    """The one form that MIL has: matrices on the third last and the last axis, all others batches."""
    values, equation = call.arrays("values"), call.text("equation")
    if len(values) != 2:
        raise ToolchainFailure(f"'{equation}' of {len(values)} tensors, 2 are expected")
    inputs, _, output = equation.replace(" ", "").partition("->")
    x, _, y = inputs.partition(",")
    if len(x) == 3:
        x, y, output = "." + x, "." + y, "." + output
    fits = len(x) == len(y) == 4 and len({*x, y[3]}) == 5 and y[:3] == x[0] + x[3] + x[2] and output == x[:3] + y[3]
    if not fits:
        raise NotInterpreted(f"einsum '{equation}' is not of the form 'bchw,bwhu->bchu'")
    left, right = (value.swapaxes(-2, -3) for value in values)
    return (left @ right).swapaxes(-2, -3)


OPS: Mapping[str, OpFunction] = {"linear": linear, "matmul": matmul, "einsum": einsum}

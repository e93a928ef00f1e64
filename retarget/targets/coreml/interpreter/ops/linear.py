"""Products of matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, OpFunction

if TYPE_CHECKING:
    from retarget.protocols import Array


def linear(call: Call) -> Array:
    result = call.array("x") @ call.array("weight").T
    bias = call.optional("bias")
    return result if bias is None else result + bias


def matmul(call: Call) -> Array:
    x, y = call.array("x"), call.array("y")
    if call.flag("transpose_x", False) and x.ndim > 1:
        x = x.swapaxes(-1, -2)
    if call.flag("transpose_y", False) and y.ndim > 1:
        y = y.swapaxes(-1, -2)
    return np.asarray(x @ y)


def einsum(call: Call) -> Array:
    """The one form that MIL has: matrices on the third last and the last axis, all others batches."""
    values, equation = call.arrays("values"), call.text("equation")
    if len(values) != 2:
        raise ToolchainFailure(f"'{equation}' of {len(values)} tensors, 2 are expected")
    inputs, _, output = equation.replace(" ", "").partition("->")
    x, _, y = inputs.partition(",")
    if len(x) == 3:
        x, y, output = "." + x, "." + y, "." + output
    if not len(x) == len(y) == len(output) == 4 or [y[1], *y[::2], output] != [x[3], *x[::2], x[:3] + y[3]]:
        raise NotInterpreted(f"einsum '{equation}' is not of the form 'bchw,bwhu->bchu'")
    left, right = (value.swapaxes(-2, -3) for value in values)
    return (left @ right).swapaxes(-2, -3)


OPS: Mapping[str, OpFunction] = {"linear": linear, "matmul": matmul, "einsum": einsum}

"""Matrix products: `linear` with a constant matrix, `matmul` of two others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.coreml.call import FLOATS, NUMBERS, Call, Op
from retarget.targets.coreml.compressed import expanded, stored
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.values import Codes, Joined, Operand, Result

if TYPE_CHECKING:
    from retarget.protocols import Array

_LINEAR_AXES = 3
"""The most axes that `linear` takes."""


def mat_mul(call: Call) -> Result:
    left, right = call.operand(0), call.operand(1)
    if isinstance(right, np.ndarray | Codes) and len(right.shape) == 2:
        if call.dtype(0) == np.int32:
            return product(call, call.var(0), call.var(1))  # `linear` of integers fails when it runs
        if isinstance(left, Joined):
            rows = call.mil.reshape(x=left.held, shape=[-1, right.shape[0]])
            return Joined(linear(call, rows, _turned(right)), (*left.shape[:-1], right.shape[1]))
        if isinstance(left, Var) and 1 < left.rank <= _LINEAR_AXES:
            return linear(call, left, _turned(right))
    return product(call, call.var(0), call.var(1))


def gemm(call: Call) -> Var:
    attributes = call.attributes
    alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    turned_left, turned_right = (bool(attributes.get_int(name, 0)) for name in ("transA", "transB"))
    right = call.operand(1)
    bias = call.operand(2) if call.has(2) and beta else None
    if isinstance(right, np.ndarray | Codes) and isinstance(call.operand(0), Var):
        left = call.mil.transpose(x=call.var(0), perm=[1, 0]) if turned_left else call.var(0)
        weight = _scaled(right if turned_right else _turned(right), alpha)
        row = _row(bias, weight.shape[0], beta)
        made = linear(call, left, weight, row)
        bias = bias if row is None else None
    else:
        made = call.mil.matmul(x=call.var(0), y=call.var(1), transpose_x=turned_left, transpose_y=turned_right)
        made = made if alpha == 1 else call.mil.mul(x=made, y=alpha)
    if bias is None:
        return made
    added = call.var(2)
    return call.mil.add(x=made, y=added if beta == 1 else call.mil.mul(x=added, y=beta))


def mat_mul_integer(call: Call) -> Var:
    left, right = call.var(0), call.var(1)
    if call.has(2):
        zero = call.var(2)
        if 0 < zero.rank < left.rank:  # each row of the left matrix has its own
            zero = call.mil.expand_dims(x=zero, axes=[-1])
        left = call.mil.sub(x=left, y=zero)
    if call.has(3):
        right = call.mil.sub(x=right, y=call.var(3))
    return product(call, left, right)


def linear(call: Call, x: Var, weight: Array | Codes, bias: Array | None = None) -> Var:
    """``x`` [..., inputs] times the constant ``weight`` [outputs, inputs], plus ``bias`` [outputs]."""
    held = stored(weight, call.lowering.target, call.mil) if isinstance(weight, Codes) else weight
    return call.mil.linear(x=x, weight=held, bias=bias)


def layer(call: Call, x: Var, matrix: Array) -> Var:
    """``x`` [..., inputs] times the constant ``matrix`` [inputs, outputs]."""
    if 1 < x.rank <= _LINEAR_AXES:
        return linear(call, x, _turned(matrix))
    return product(call, x, call.mil.const(val=matrix))


def product(call: Call, x: Var, y: Var) -> Var:
    """As ONNX's MatMul has it: axes in front of the last two broadcast, vectors lose theirs.

    A vector is made a matrix here: MIL's own inference fails for one on the right.
    """
    left = x if x.rank > 1 else call.mil.expand_dims(x=x, axes=[0])
    right = y if y.rank > 1 else call.mil.expand_dims(x=y, axes=[1])
    made = call.mil.matmul(x=left, y=right)
    gone = [axis for axis, of in ((-2, x), (-1, y)) if of.rank == 1]
    return call.mil.squeeze(x=made, axes=gone) if gone else made


def _turned(matrix: Array | Codes) -> Array | Codes:
    return matrix.transposed((1, 0)) if isinstance(matrix, Codes) else np.ascontiguousarray(matrix.T)


def _scaled(weight: Array | Codes, factor: float) -> Array | Codes:
    if factor == 1:
        return weight
    if isinstance(weight, Codes):
        return replace(weight, scale=_times(weight.scale, factor))
    return _times(weight, factor)


def _times(array: Array, factor: float) -> Array:
    return (array.astype(np.float32) * np.float32(factor)).astype(array.dtype)


def _row(bias: Operand | None, count: int, factor: float) -> Array | None:
    """``bias`` as ``count`` numbers, the same for all rows of the product; None where it is not that."""
    if isinstance(bias, Codes):
        bias = expanded(bias)
    if not isinstance(bias, np.ndarray) or bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1):
        return None
    return _times(np.broadcast_to(bias.reshape(-1), (count,)), factor)


OPS: Mapping[str, Op] = {
    "Gemm": Op(gemm, FLOATS),
    "MatMul": Op(mat_mul, NUMBERS),
    "MatMulInteger": Op(mat_mul_integer, frozenset({"int32"}), small=True),
}

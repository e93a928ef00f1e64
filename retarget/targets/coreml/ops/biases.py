"""Add and Sub: of a constant for each channel of what a convolution or a product gives alone, its bias.

coremltools has passes for that. They are not used, as of 9.0 they change what is computed: they negate a constant that
others read too, forget which side of a Sub the product is on and along which axis the constant lies, and drop axes that
the constant adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget.targets.coreml.call import NUMBERS, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.values import dtype_of, is_known

if TYPE_CHECKING:
    from retarget.protocols import Array

_CHANNELS = {"conv": 1, "conv_transpose": 1, "linear": -1}
"""MIL's operators with a bias, and along which axis of the result it lies."""

_MADE = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def add(call: Call) -> Var:
    for index, other in ((0, 1), (1, 0)):
        operand = call.operand(other)
        if isinstance(operand, np.ndarray) and (biased := _biased(call, index, operand)) is not None:
            return biased
    return call.mil.add(x=call.var(0), y=call.var(1))


def sub(call: Call) -> Var:
    operand = call.operand(1)
    if isinstance(operand, np.ndarray) and call.dtype(1).kind == "f":
        biased = _biased(call, 0, np.negative(operand))
        if biased is not None:
            return biased
    return call.mil.sub(x=call.var(0), y=call.var(1))


def _biased(call: Call, index: int, added: Array) -> Var | None:
    """Operand ``index`` made anew with ``added`` in its bias; None where it is not read here alone, or has none."""
    made, value = call.operand(index), call.node.inputs[index]
    if not isinstance(made, Var) or made.op is None or made.op.op_type not in _CHANNELS or not _is_own(value):
        return None
    axis, bias = _CHANNELS[made.op.op_type] % made.rank, made.op.inputs.get("bias")
    count = made.shape[axis]
    sizes = [1] * (made.rank - added.ndim) + list(added.shape)
    if not is_known(count) or (bias is not None and bias.val is None) or len(sizes) != made.rank:
        return None
    if sizes[axis] not in (1, count) or any(size != 1 for at, size in enumerate(sizes) if at != axis):
        return None
    kind = dtype_of(made)
    numbers = np.broadcast_to(added.reshape(-1), (count,)).astype(kind)
    whole = numbers if bias is None else np.add(bias.val, numbers)
    operands = {name: var for name, var in made.op.inputs.items() if name != "bias"}
    # The first one is read no more, and coremltools leaves it out.
    return getattr(call.mil, made.op.op_type)(**operands, bias=np.ascontiguousarray(whole, kind))


def _is_own(value: ir.Value | None) -> bool:
    """Whether a convolution or product gives ``value``, and one node alone reads it."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type not in _MADE:
        return False
    return len(value.uses()) == 1 and not value.is_graph_output()


OPS: Mapping[str, Op] = {
    "Add": Op(add, NUMBERS),
    "Sub": Op(sub, NUMBERS),
}

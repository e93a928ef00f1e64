"""Fold Transpose, Reshape, Cast and the like of weights, without loading them.

Given::   MatMul(x, Transpose(weight))
Result::  MatMul(x, weight_folded)          # a lazy tensor: transposed when it is read, not kept

``fold_constants`` computes results at once and so leaves large weights alone; here they are made anew at each reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from retarget.passes.rewriting import (
    SMALL,
    Array,
    Rewriting,
    Rule,
    Verdict,
    computed,
    constant,
    dims,
    forward,
    initializer,
    is_constant,
)

_Make = Callable[[Array], Array]


class FoldWeights(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return dict.fromkeys(("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Cast", "Identity"), _fold)


def _fold(node: ir.Node) -> Verdict:
    weight, out = node.inputs[0], node.outputs[0]
    if weight is None or not is_constant(weight) or weight.const_value is None:
        return False
    if out.is_graph_output():
        return "a graph output is not replaced by a constant"
    if weight.const_value.nbytes > SMALL and any(user.op_type != node.op_type for user, _ in weight.uses()):
        return "the weight is read in its own form too, and would have to be kept twice"
    if weight.dtype == ir.DataType.STRING:
        return "text"
    if len(node.inputs) > 1 and node.inputs[1] is not None and constant(node.inputs[1]) is None:
        return False
    before = [int(size) for size in weight.const_value.shape.numpy()]
    dtype: ir.DataType | None = weight.dtype
    if node.op_type == "Transpose":
        perm = tuple(node.attributes.get_ints("perm", tuple(reversed(range(len(before))))))
        shape, make = [before[axis] for axis in perm], _transposed(perm)
    elif node.op_type == "Cast":
        dtype = ir.DataType(node.attributes.get_int("to", 0))
        if not (weight.dtype and weight.dtype.is_floating_point() and dtype in _WIDER.get(weight.dtype, ())):
            return "a Cast that loses something or depends on rounding"
        shape, make = before, _cast(dtype)
    else:
        sizes = dims(out)
        if sizes is None or not all(isinstance(size, int) for size in sizes):
            return "the shape that it makes is not known"
        shape = [size for size in sizes if isinstance(size, int)]
        make = _reshaped(shape)
    value = initializer(node, f"{weight.name}_folded", computed(weight, make, shape, dtype))
    return forward(node, value)


_WIDER = {
    ir.DataType.FLOAT16: (ir.DataType.FLOAT, ir.DataType.DOUBLE),
    ir.DataType.BFLOAT16: (ir.DataType.FLOAT, ir.DataType.DOUBLE),
    ir.DataType.FLOAT: (ir.DataType.DOUBLE,),
}


def _transposed(perm: tuple[int, ...]) -> _Make:
    return lambda array: np.transpose(array, perm)


def _reshaped(shape: list[int]) -> _Make:
    return lambda array: array.reshape(shape)


def _cast(dtype: ir.DataType) -> _Make:
    return lambda array: array.astype(dtype.numpy())

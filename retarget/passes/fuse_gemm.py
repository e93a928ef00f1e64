"""MatMul and the addition of a bias → Gemm, where the tensors are matrices or can be.

1. Given::   Add(MatMul(a, b), c)        a: [m, k], b: [k, n], c: constant that widens to [m, n]
   Result::  Gemm(a, b, c)
2. Between Reshapes, whose shapes are free to choose, a tensor of any rank is a matrix of its last axis
   Given::   Reshape(Add(MatMul(Reshape(a, [128, 49, 32]), b), c), [128, 49, 2, 16])
   Result::  Reshape(Gemm(Reshape(a, [-1, 32]), b, c), [128, 49, 2, 16])
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from retarget.passes.fold_shapes import as_constant
from retarget.passes.rewriting import (
    Rewriting,
    Rule,
    Verdict,
    dims,
    initializer,
    insert,
    is_constant,
    is_float,
    node,
    own,
    producer,
    rank,
    replace,
    rewire,
)


class FuseGemm(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return {"Add": _fuse}


def _fuse(add: ir.Node) -> Verdict:
    for at in (1, 0):
        product, bias = producer(add.inputs[1 - at], "MatMul"), add.inputs[at]
        if product is None or not is_constant(bias):
            continue
        left, right = product.inputs
        if left is None or rank(right) != 2:
            return "not matrices"
        if not is_float(left):
            return "not known to be float"
        if not own(add, product):
            return "the product is read elsewhere too"
        columns, shape = (dims(right) or (None, None))[1], dims(bias)
        if shape is None or len(shape) > 2 or (shape and shape[-1] not in (1, columns)) or shape[:-1] not in ((), (1,)):
            return "the constant is not a row"
        if rank(left) == 2:
            replace(add, node("Gemm", [left, right, bias], like=product))
            return True
        return _between_reshapes(add, product, bias)
    return False


def _between_reshapes(add: ir.Node, product: ir.Node, bias: ir.Value | None) -> Verdict:
    left, right = product.inputs
    before = producer(left, "Reshape")
    if left is None or before is None or left.is_graph_output() or before.graph is not add.graph:
        return "not matrices, nor reshaped"
    if not all(user.op_type == "MatMul" and is_constant(user.inputs[1]) for user, _ in left.uses()):
        return "the reshaped tensor is read by other than layers"
    rows, columns = dims(right) or (None, None)
    out = add.outputs[0]
    after = [user for user, _ in out.uses()]
    targets = [as_constant(dims(user.outputs[0]) or (None, None), (None, columns)) for user in after]
    if out.is_graph_output() or not after or not isinstance(rows, int):
        return "not matrices, nor reshaped"
    if any(
        user.op_type != "Reshape" or user.domain or target is None for user, target in zip(after, targets, strict=True)
    ):
        return "not matrices, nor reshaped by a constant"
    flat = initializer(add, f"{left.name}_rows", np.array([-1, rows], np.int64))
    matrix = insert(product, node("Reshape", [before.inputs[0], flat], like=before))
    matrix.type, matrix.shape = left.type, ir.Shape([None, rows])
    gemm = node("Gemm", [matrix, right, bias], like=product)
    replace(add, gemm)
    gemm.outputs[0].shape = ir.Shape([None, columns])
    for user, target in zip(after, targets, strict=True):
        rewire(user, 1, initializer(user, f"{user.outputs[0].name}_shape", np.array(target, np.int64)))
    return True

"""MatMul and the addition of a bias → Gemm, where the tensors are matrices.

Given::   Add(MatMul(a, b), c)        a: [m, k], b: [k, n], c: constant that widens to [m, n]
Result::  Gemm(a, b, c)
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from retarget.passes.rewriting import (
    Rewriting,
    Rule,
    Verdict,
    dims,
    is_constant,
    is_float,
    node,
    own,
    producer,
    rank,
    replace,
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
        if rank(left) != 2 or rank(right) != 2:
            return "not matrices"
        if not is_float(left):
            return "not known to be float"
        if not own(add, product):
            return "the product is read elsewhere too"
        columns, shape = (dims(right) or (None, None))[1], dims(bias)
        if shape is None or len(shape) > 2 or (shape and shape[-1] not in (1, columns)) or shape[:-1] not in ((), (1,)):
            return "the constant is not a row"
        replace(add, node("Gemm", [left, right, bias], like=product))
        return True
    return False

"""Transpose in front of a float16 MatMul with a matrix → behind it, where the last axis keeps its place.

Given::   MatMul(Transpose(x, [1, 0, 2]), w)        w of rank 2
Result::  Transpose(MatMul(x, w), [1, 0, 2])

For ONNX Runtime: its fusion of the first form is right in float32, but in float16 the library dies of a null pointer
while it loads the model (1.31.1, CPU, all optimizations on). Recurrent models have it in front of their heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from retarget.passes.rewriting import Rewriting, Rule, Verdict, insert, node, producer, rank, replace


class DelayTransposes(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return {"MatMul": _delay}


def _delay(product: ir.Node) -> Verdict:
    turned, matrix = product.inputs
    before = producer(turned, "Transpose")
    if before is None or rank(matrix) != 2 or product.outputs[0].dtype != ir.DataType.FLOAT16:
        return False
    perm = before.attributes.get_ints("perm", ())
    if len(perm) < 3:
        return False
    if perm[-1] != len(perm) - 1:
        return "the axis that is summed over moves too"
    made = ir.node("MatMul", inputs=[before.inputs[0], matrix], name=f"{product.name}_before_{before.name}")
    summed = insert(product, made)
    out = product.outputs[0]
    summed.name, summed.type = f"{out.name}_not_turned", out.type
    if out.shape is not None:
        dims = list(out.shape.dims)
        summed.shape = ir.Shape([dims[perm.index(axis)] for axis in range(len(perm))])
    replace(product, node("Transpose", [summed], {"perm": perm}, like=product))
    return True

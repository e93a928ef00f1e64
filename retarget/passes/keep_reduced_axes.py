"""Rounded reductions over the channels' axis → the same with the reduced axes kept, squeezed behind.

Given::   QuantizeLinear(ReduceMean<keepdims=0>(x, [1]))              # x: [N, T, C]
Result::  QuantizeLinear(Squeeze(ReduceMean<keepdims=1>(x, [1]), [1]))

OpenVINO 2026.4 runs such a QuantizeLinear inside the reduction, with the scales of the int8 product in front, one for
each of C. It looks for C at axis 1 of x, where T is, and gives wrong numbers without a word. Reductions of later axes,
as those of images, leave the channels where they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from retarget.passes.rewriting import Rewriting, Rule, Verdict, insert, ints, node, rank, replace

_FIRST_OF_SPACE = 2


class KeepReducedAxes(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _keep)


def _keep(reduction: ir.Node) -> Verdict:
    out = reduction.outputs[0]
    if reduction.attributes.get_int("keepdims", 1) or all(user.op_type != "QuantizeLinear" for user, _ in out.uses()):
        return False
    x, size = reduction.inputs[0], rank(reduction.inputs[0])
    axes = ints(reduction.inputs[1]) if len(reduction.inputs) > 1 else None
    if x is None or x.shape is None or size is None or not axes:
        return False
    reduced = {axis % size for axis in axes}
    if min(reduced) >= _FIRST_OF_SPACE:
        return False
    made = node(reduction.op_type, reduction.inputs, {"keepdims": 1}, like=reduction)
    kept = insert(reduction, made)
    kept.type = out.type
    kept.shape = ir.Shape([1 if axis in reduced else dim for axis, dim in enumerate(x.shape)])
    replace(reduction, node("Squeeze", [kept, reduction.inputs[1]], like=reduction))
    return True

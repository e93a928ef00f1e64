"""Remove the guard that exporters put behind Softmax.

Given::   s = Softmax(z);  y = Where(IsNaN(s), 0, s)
Result::  y = Softmax(z)

Softmax gives NaN only for a row that is -inf throughout, or that holds NaN or +inf. So the guard does nothing when
every row has a finite element and none is NaN or +inf, which holds when z is

* the scores themselves: a product of finite tensors, or
* scores + mask, or Where(condition, scores, number), whose mask holds finite numbers only. Exporters write the smallest
  float (-3.4e38) rather than -inf for exactly this reason.

With a mask that is -inf, or that is an input, a row may be masked throughout: the guard then turns NaN into 0, and
stays, unless ``every_row_sees_something`` promises that no row is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from retarget.passes.remove_noops import uniform
from retarget.passes.rewriting import Rewriting, Rule, Verdict, constant, forward, producer

DEPTH = 16
"""Nodes that are looked through for what a value can hold."""

_KEEPS = frozenset(
    {"Expand", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice", "Gather", "Concat", "Identity", "Tile", "Split"}
)
"""Operators that only move elements."""


class RemoveSoftmaxGuards(Rewriting):
    """See the module."""

    def __init__(self, every_row_sees_something: bool = False) -> None:
        super().__init__()
        self.every_row_sees_something = every_row_sees_something

    def rules(self) -> Mapping[str, Rule]:
        return {"Where": self._guard}

    def _guard(self, where: ir.Node) -> Verdict:
        softmax = producer(where.inputs[2], "Softmax")
        test = producer(where.inputs[0], "IsNaN")
        if softmax is None or test is None or test.inputs[0] is not softmax.outputs[0]:
            return False
        if uniform(where.inputs[1]) != 0:
            return "NaN is not replaced by 0"
        if not self.every_row_sees_something:
            reason = _may_be_empty(softmax.inputs[0])
            if reason is not None:
                return reason
        return forward(where, softmax.outputs[0]) or "it is a graph output"


def _may_be_empty(scores: ir.Value | None) -> str | None:
    """Why a row of ``scores`` could be -inf throughout; None if none can."""
    added = producer(scores, "Add")
    if added is not None:
        if any(_is_product(one) and _finite(other) for one, other in (added.inputs, added.inputs[::-1])):
            return None
        return "the mask may be -inf for a whole row"
    chosen = producer(scores, "Where")
    if chosen is not None:
        if all(_is_product(branch) or _finite(branch) for branch in chosen.inputs[1:]):
            return None
        return "the mask may be -inf for a whole row"
    return None if _is_product(scores) else "the scores are not a product of finite tensors"


def _is_product(value: ir.Value | None) -> bool:
    """Whether ``value`` is a MatMul, scaled by finite numbers or masked by them."""
    for _ in range(DEPTH):
        node = producer(value, "MatMul", "Mul", "Div", "Add", "Reshape", "Transpose", "Where")
        if node is None:
            return False
        if node.op_type == "MatMul":
            return True
        if node.op_type in ("Reshape", "Transpose"):
            value = node.inputs[0]
        elif node.op_type == "Where":
            return all(_is_product(branch) or _finite(branch) for branch in node.inputs[1:])
        elif node.op_type != "Div" and _finite(node.inputs[0]):
            value = node.inputs[1]
        elif _finite(node.inputs[1]) and (node.op_type != "Div" or uniform(node.inputs[1]) not in (0, None)):
            value = node.inputs[0]
        else:
            return False
    return False


def _finite(value: ir.Value | None, depth: int = DEPTH) -> bool:
    """Whether ``value`` surely holds finite numbers only."""
    array = constant(value, 1 << 22)
    if array is not None:
        return array.dtype.kind != "f" or bool(np.isfinite(array).all())
    number = uniform(value)
    if number is not None:
        return math.isfinite(number)
    node = None if value is None else value.producer()
    if node is None or node.domain or depth == 0:
        return False
    if node.op_type == "Where":
        return all(_finite(branch, depth - 1) for branch in node.inputs[1:])
    if node.op_type in _KEEPS:
        moved = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        return all(_finite(operand, depth - 1) for operand in moved)
    if node.op_type == "Cast":
        source = None if node.inputs[0] is None else node.inputs[0].dtype
        return source == ir.DataType.BOOL or _finite(node.inputs[0], depth - 1)
    return False

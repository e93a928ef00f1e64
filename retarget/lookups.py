"""Numbers of rows as exporters write them in front of a lookup.

Keras 3 adds the table's size to negative numbers, which Gather does itself: ``Where(i < 0, i + size, i)``. tf2onnx
writes that choice of integers as ``i * Cast(Not(i < 0)) + (i + size) * Cast(i < 0)``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def counted_from_the_end(numbers: ir.Value | None, size: int) -> ir.Value | None:
    """The ``i`` that ``numbers`` is, with ``size`` added where it is negative; None where ``numbers`` is not that."""
    chosen = _where(numbers) or _sum_of_products(numbers)
    if chosen is None:
        return None
    condition, moved, kept = chosen
    less, shift = _producer(condition, "Less"), _producer(moved, "Add")
    if kept is None or less is None or shift is None or not _is(less.inputs[1], 0):
        return None
    compared = less.inputs[0]
    cast = _producer(compared, "Cast")
    if kept is not compared and (cast is None or kept is not cast.inputs[0]):
        return None
    return kept if any(x is kept and _is(y, size) for x, y in (shift.inputs, shift.inputs[::-1])) else None


def _where(value: ir.Value | None) -> tuple[ir.Value | None, ...] | None:
    where = _producer(value, "Where")
    return None if where is None else tuple(where.inputs)


def _sum_of_products(value: ir.Value | None) -> tuple[ir.Value | None, ...] | None:
    """As the inputs of Where: the condition, what is taken where it holds, and what is where it does not."""
    total = _producer(value, "Add")
    factors: dict[bool, ir.Value | None] = {}
    conditions: list[ir.Value | None] = []
    for product in () if total is None else [_producer(summand, "Mul") for summand in total.inputs]:
        for factor, mask in () if product is None else (product.inputs, product.inputs[::-1]):
            cast = _producer(mask, "Cast")
            condition = None if cast is None else cast.inputs[0]
            negated = _producer(condition, "Not")
            condition = condition if negated is None else negated.inputs[0]
            if _producer(condition, "Less") is not None:
                factors[negated is None] = factor
                conditions.append(condition)
    if len(factors) != 2 or len(conditions) != 2 or conditions[0] is not conditions[1]:
        return None
    return conditions[0], factors[True], factors[False]


def _producer(value: ir.Value | None, op: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op and not node.domain else None


def _is(value: ir.Value | None, number: int) -> bool:
    tensor = None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.size == 1 and bool(np.asarray(tensor.numpy()).item() == number)

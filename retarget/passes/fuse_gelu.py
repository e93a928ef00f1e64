"""The two formulas of GELU → ``Gelu`` of the standard domain (opset 20).

Given (exact)::       x * 0.5 * (1 + Erf(x / √2))
Given (tanh)::        x * 0.5 * (1 + Tanh(√(2/π) * (x + 0.044715 x³)))
Result::              Gelu(x, approximate="none" | "tanh")

Exporters write the product in any order and the cube as Pow or as two products, so the factors are collected from the
product and compared as a set rather than matched as one fixed tree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from retarget.passes.rewriting import Rewriting, Rule, Verdict, is_close, is_float, node, own, producer, replace, scalar


class FuseGelu(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return {"Mul": _gelu}


def _gelu(last: ir.Node) -> Verdict:
    factors = _factors(last)
    if factors is None:
        return False
    number, values = factors
    if len(values) != 2 or not math.isclose(number, 0.5, rel_tol=1e-5):
        return False
    for x, gate in (values, values[::-1]):
        kind = _gate(last, gate, x)
        if kind is None:
            continue
        if not is_float(x):
            return "x is not known to be a float tensor"
        # The gate's inside must not be an output or be read by others: else fusing would compute it twice.
        if not _private(gate, x):
            return "a value inside the formula is read elsewhere too"
        replace(last, node("Gelu", [x], {"approximate": kind}, like=last))
        return True
    return False


def _factors(last: ir.Node) -> tuple[float, list[ir.Value]] | None:
    """The product that ends in ``last`` as (product of its numbers, its other factors); None if there are over two."""
    number, values, pending = 1.0, list[ir.Value](), [last]
    while pending:
        product = pending.pop()
        for factor in product.inputs:
            value = scalar(factor)
            inner = producer(factor, "Mul")
            if value is not None:
                number *= value
            elif inner is not None and own(last, inner) and _has_scalar_or_sum(inner):
                pending.append(inner)
            elif factor is not None:
                values.append(factor)
        if len(values) > 2:
            return None
    return number, values


def _has_scalar_or_sum(product: ir.Node) -> bool:
    """Only products with 0.5 or with the gate (1 + …) belong to the formula: x itself may be a product too."""
    return any(scalar(value) is not None or producer(value, "Add") is not None for value in product.inputs)


def _gate(last: ir.Node, gate: ir.Value, x: ir.Value) -> str | None:
    """``none`` for 1 + Erf(x / √2), ``tanh`` for 1 + Tanh(√(2/π) (x + 0.044715 x³)), None for anything else."""
    total = producer(gate, "Add")
    if total is None or total.graph is not last.graph:
        return None
    inner = _other(total, 1.0)
    erf, tanh = producer(inner, "Erf"), producer(inner, "Tanh")
    if erf is not None and _is_scaled(erf.inputs[0], x, 1 / math.sqrt(2)):
        return "none"
    if tanh is not None and _is_tanh_argument(tanh.inputs[0], x):
        return "tanh"
    return None


def _is_tanh_argument(value: ir.Value | None, x: ir.Value) -> bool:
    product = producer(value, "Mul")
    if product is None:
        return False
    total = producer(_other(product, math.sqrt(2 / math.pi)), "Add")
    if total is None or x not in total.inputs:
        return False
    cubic = producer(total.inputs[1] if total.inputs[0] is x else total.inputs[0], "Mul")
    return cubic is not None and _is_cube(_other(cubic, 0.044715), x)


def _is_cube(value: ir.Value | None, x: ir.Value) -> bool:
    power = producer(value, "Pow")
    if power is not None:
        return power.inputs[0] is x and is_close(power.inputs[1], 3)
    product = producer(value, "Mul")
    if product is None or x not in product.inputs:
        return False
    square = producer(product.inputs[1] if product.inputs[0] is x else product.inputs[0], "Mul", "Pow")
    if square is None or square.inputs[0] is not x:
        return False
    return square.inputs[1] is x if square.op_type == "Mul" else is_close(square.inputs[1], 2)


def _is_scaled(value: ir.Value | None, x: ir.Value, factor: float) -> bool:
    """Whether ``value`` is x * factor, or x / (1 / factor)."""
    division = producer(value, "Div")
    if division is not None:
        return division.inputs[0] is x and is_close(division.inputs[1], 1 / factor)
    product = producer(value, "Mul")
    return product is not None and _other(product, factor) is x


def _other(binary: ir.Node, number: float) -> ir.Value | None:
    """The input of ``binary`` beside the constant ``number``; None if that constant is not there."""
    first, second = binary.inputs
    if is_close(second, number):
        return first
    return second if is_close(first, number) else None


def _private(gate: ir.Value, x: ir.Value) -> bool:
    """Whether all values between ``x`` and ``gate`` are read only inside the formula."""
    inside, pending = set[ir.Node](), [gate]
    while pending:
        value = pending.pop()
        maker = value.producer()
        if value is x or maker is None or maker in inside:
            continue
        inside.add(maker)
        pending.extend(source for source in maker.inputs if source is not None)
    return (
        all(
            not out.is_graph_output() and (out is gate or all(user in inside for user, _ in out.uses()))
            for maker in inside
            for out in maker.outputs
        )
        and len(gate.uses()) == 1
    )

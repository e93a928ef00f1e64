"""One way to write each piece of arithmetic, so that later passes and emitters meet one form.

1. x / c → x * (1/c), for a float constant c whose inverse is finite;  x - c → x + (-c)
2. x * Reciprocal(y) → x / y
3. x ** 2 → x * x;  x ** 0.5 → Sqrt(x);  x ** -1 → Reciprocal(x)
4. the constant of a sum or product is the second input
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from retarget.passes.rewriting import (
    Rewriting,
    Rule,
    Verdict,
    constant,
    initializer,
    is_constant,
    is_float,
    node,
    own,
    producer,
    rank,
    replace,
    scalar,
)


class CanonicalArithmetic(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return {"Div": _division, "Sub": _subtraction, "Mul": _product, "Add": _constant_second, "Pow": _power}


def _division(at: ir.Node) -> Verdict:
    divisor = constant(at.inputs[1])
    if divisor is None or divisor.dtype.kind != "f" or is_constant(at.inputs[0]):
        return False
    with np.errstate(all="ignore"):
        inverse = (1 / divisor.astype(np.float64)).astype(divisor.dtype)
    if not np.isfinite(inverse).all() or not inverse.all():
        return "the inverse is not finite"
    value = initializer(at, f"{at.outputs[0].name}_factor", inverse)
    replace(at, node("Mul", [at.inputs[0], value], like=at))
    return True


def _subtraction(at: ir.Node) -> Verdict:
    minus = constant(at.inputs[1])
    if minus is None or minus.dtype.kind not in "fi" or is_constant(at.inputs[0]):
        return False
    value = initializer(at, f"{at.outputs[0].name}_summand", np.negative(minus))
    replace(at, node("Add", [at.inputs[0], value], like=at))
    return True


def _product(at: ir.Node) -> Verdict:
    for which in (1, 0):
        inverse = producer(at.inputs[which], "Reciprocal")
        if inverse is not None and own(at, inverse):
            replace(at, node("Div", [at.inputs[1 - which], inverse.inputs[0]], like=at))
            return True
    return _constant_second(at)


def _constant_second(at: ir.Node) -> Verdict:
    if not is_constant(at.inputs[0]) or is_constant(at.inputs[1]):
        return False
    replace(at, node(at.op_type, [at.inputs[1], at.inputs[0]], like=at))
    return True


def _power(at: ir.Node) -> Verdict:
    x, exponent = at.inputs[0], scalar(at.inputs[1])
    if x is None or not is_float(x) or (rank(at.inputs[1]) or 0) > (rank(x) or 0):
        return False
    if exponent == 2:
        replace(at, node("Mul", [x, x], like=at))
    elif exponent in (0.5, -1):
        replace(at, node("Sqrt" if exponent == 0.5 else "Reciprocal", [x], like=at))
    else:
        return False
    return True

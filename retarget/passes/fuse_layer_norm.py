"""The formula of layer normalization → ``LayerNormalization`` (opset 17).

Given::

    d = x - ReduceMean(x, axes);  v = ReduceMean(d * d, axes)
    y = d / √(v + ε) * scale + bias             # scale and bias may be absent

Result::

    y = LayerNormalization(x, scale, bias, axis, ε)

Two more forms: d ** 2 for the square, and d * Reciprocal(√…) for the quotient. The axes must be the last ones, scale
and bias vectors over exactly them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from retarget.passes.rewriting import (
    Rewriting,
    Rule,
    Verdict,
    dims,
    initializer,
    ints,
    is_close,
    is_constant,
    node,
    only_user,
    own,
    producer,
    rank,
    replace,
    scalar,
)

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


class FuseLayerNorm(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return {"Div": _normalize, "Mul": _normalize}


def _normalize(quotient: ir.Node) -> Verdict:
    found = _formula(quotient)
    if found is None:
        return False
    x, axes, epsilon, inside = found
    size, shape = rank(x), dims(x)
    if size is None or shape is None or x.dtype not in FLOATS:
        return "x is not known to be a float tensor of known rank"
    axis = size - len(axes)
    if sorted(axis % size for axis in axes) != list(range(axis, size)):
        return "the axes are not the last ones"
    width = shape[axis:]
    if not all(isinstance(length, int) for length in width):
        return "the normalized axes have no fixed size"
    if any(value.is_graph_output() for value in inside):
        return "a value inside the formula is a graph output"
    last, scale = _follow(quotient, "Mul", width)
    last, bias = _follow(last, "Add", width)
    if scale is None:
        ones = np.ones([length for length in width if isinstance(length, int)])
        scale = initializer(quotient, f"{quotient.outputs[0].name}_scale", ones.astype(x.dtype.numpy()))
    inputs = [x, scale] if bias is None else [x, scale, bias]
    replace(last, node("LayerNormalization", inputs, {"axis": axis - size, "epsilon": epsilon}, like=last))
    return True


def _formula(quotient: ir.Node) -> tuple[ir.Value, list[int], float, list[ir.Value]] | None:
    """(x, axes, ε, the values inside) when ``quotient`` is (x - mean) / √(variance + ε)."""
    for deviation, root in _operands(quotient):
        centered = producer(deviation, "Sub")
        deeper = producer(root, "Sqrt")
        total = producer(deeper.inputs[0], "Add") if deeper is not None else None
        if centered is None or deeper is None or total is None or not own(quotient, deeper):
            continue
        epsilon, variance = scalar(total.inputs[1]), producer(total.inputs[0], "ReduceMean")
        if epsilon is None:
            epsilon, variance = scalar(total.inputs[0]), producer(total.inputs[1], "ReduceMean")
        mean = producer(centered.inputs[1], "ReduceMean")
        x = centered.inputs[0]
        if epsilon is None or variance is None or mean is None or x is None or mean.inputs[0] is not x:
            continue
        square = producer(variance.inputs[0], "Mul", "Pow")
        if square is None or not _is_square(square, centered.outputs[0]):
            continue
        axes = _axes(mean)
        if axes is None or axes != _axes(variance) or not (own(quotient, total) and own(quotient, variance)):
            continue
        readers = {user for user, _ in centered.outputs[0].uses()}
        if not own(quotient, square) or not readers <= {quotient, square} or mean.graph is not quotient.graph:
            continue
        return x, axes, epsilon, [centered.outputs[0], mean.outputs[0]]
    return None


def _operands(quotient: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """(numerator, denominator) of a Div, or of a Mul by a Reciprocal."""
    first, second = quotient.inputs
    if quotient.op_type == "Div":
        return [(first, second)]
    pairs = ((first, producer(second, "Reciprocal")), (second, producer(first, "Reciprocal")))
    return [(top, inverse.inputs[0]) for top, inverse in pairs if inverse is not None and own(quotient, inverse)]


def _is_square(square: ir.Node, value: ir.Value) -> bool:
    if square.op_type == "Pow":
        return square.inputs[0] is value and is_close(square.inputs[1], 2, 0)
    return square.inputs[0] is value and square.inputs[1] is value


def _axes(reduce: ir.Node) -> list[int] | None:
    if not reduce.attributes.get_int("keepdims", 1) or len(reduce.inputs) < 2:
        return None
    size, axes = rank(reduce.inputs[0]), ints(reduce.inputs[1])
    return None if size is None or not axes else sorted(axis % size for axis in axes)


def _follow(before: ir.Node, op: str, width: tuple[int | str | None, ...]) -> tuple[ir.Node, ir.Value | None]:
    """The node after ``before`` and its constant vector over the normalized axes; else (``before``, None)."""
    after = only_user(before.outputs[0], op)
    if after is not None:
        for at in (1, 0):
            vector = after.inputs[at]
            if vector is not None and is_constant(vector) and dims(vector) == width:
                return after, vector
    return before, None

"""Move multiplication and addition by constants into the weights that they follow.

1. (x * a) * b → x * (a b);  (x + a) + b → x + (a + b)
2. a number over a linear layer → into its weights, also when Transpose and Reshape stand between: attention scales q
   and k by 1/√√d, each layer over its two largest tensors

Given::   Mul(Transpose(Reshape(Add(MatMul(x, w), b))), 0.354)
Result::  Transpose(Reshape(Add(MatMul(x, 0.354 w), 0.354 b)))
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
    node,
    own,
    producer,
    rank,
    replace,
    rewire,
    scalar,
)


class FoldScales(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return {"Mul": _scale, "Add": _merge}


def _scale(last: ir.Node) -> Verdict:
    merged = _merge(last)
    if merged is True:
        return True
    found = _with_scalar(last)
    if found is None:
        return merged
    value, number = found
    linear = _linear(last, value)
    if linear is None:
        return merged
    if not np.isfinite(number) or number == 0:
        return "a factor of 0 or that is not finite"
    if any(_is_shared(operand) for part in linear for operand in part.inputs):
        return "the weight is read elsewhere too"
    _multiply(linear, number)
    return forward(last, value) or "it is a graph output of a constant"


def _merge(last: ir.Node) -> Verdict:
    """Two constants in a row."""
    outer, at = _small(last)
    if outer is None:
        return False
    inner = producer(last.inputs[1 - at], last.op_type)
    if inner is None or not own(last, inner):
        return False
    before, place = _small(inner)
    if before is None or before.dtype != outer.dtype or before.dtype.kind not in "fiu":
        return False
    x = inner.inputs[1 - place]
    if max(before.ndim, outer.ndim) > (rank(x) or 0) and before.ndim != outer.ndim:
        return "the constants may widen the shape differently"
    with np.errstate(all="ignore"):
        both: Array = np.multiply(before, outer) if last.op_type == "Mul" else np.add(before, outer)
    if both.nbytes > SMALL or (both.dtype.kind == "f" and not np.isfinite(both).all()):
        return "the merged constant is too large"
    value = initializer(last, f"{last.outputs[0].name}_constant", both)
    replace(last, node(last.op_type, [x, value], like=last))
    return True


def _small(binary: ir.Node) -> tuple[Array | None, int]:
    """The small constant of ``binary`` and which input it is."""
    for at in (1, 0):
        array = constant(binary.inputs[at])
        if array is not None and array.dtype.kind in "fiu":
            return array, at
    return None, 0


def _with_scalar(product: ir.Node) -> tuple[ir.Value, float] | None:
    for at in (1, 0):
        number, value = scalar(product.inputs[at]), product.inputs[1 - at]
        size = rank(product.inputs[at])
        if number is not None and value is not None and size is not None and size <= (rank(value) or 0):
            return value, number
    return None


def _linear(last: ir.Node, value: ir.Value) -> list[ir.Node] | None:
    """[the bias's Add if there is one, the MatMul, Gemm or convolution] that ``value`` comes from alone."""
    current = value.producer()
    while current is not None and current.op_type in ("Transpose", "Reshape") and own(last, current):
        current = None if current.inputs[0] is None else current.inputs[0].producer()
    if current is None or current.domain or not own(last, current):
        return None
    if current.op_type == "Add":
        bias_at = 1 if is_constant(current.inputs[1]) else 0
        product = producer(current.inputs[1 - bias_at], "MatMul")
        if not is_constant(current.inputs[bias_at]) or product is None or not own(last, product):
            return None
        chain = [current, product]
    else:
        chain = [current]
    weights = chain[-1].inputs[1:]
    if chain[-1].op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose") or not all(map(is_constant, weights)):
        return None
    return chain


def _is_shared(operand: ir.Value | None) -> bool:
    """Whether a large constant would have to be kept twice."""
    tensor = operand.const_value if operand is not None and is_constant(operand) else None
    return tensor is not None and operand is not None and tensor.nbytes > SMALL and len(operand.uses()) > 1


def _times(number: float) -> Callable[[Array], Array]:
    def apply(array: Array) -> Array:
        product: Array = np.multiply(array, np.asarray(number, array.dtype))
        return product.astype(array.dtype)

    return apply


def _multiply(linear: list[ir.Node], number: float) -> None:
    for part in linear:
        for at, operand in enumerate(part.inputs):
            if operand is None or not is_constant(operand):
                continue
            shape = [size for size in dims(operand) or () if isinstance(size, int)]
            tensor = computed(operand, _times(number), shape)
            rewire(part, at, initializer(part, f"{operand.name}_scaled", tensor))

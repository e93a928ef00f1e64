"""Transpose in front of a MatMul, with a cast between → another order of both, which ONNX Runtime survives.

Given::   MatMul(Transpose(x, perm), w)         float16, w of rank 1 or 2, on either side
Result::  Transpose(MatMul(x, w), after)        where the summed axis is x's last
Or::      Transpose(MatMul(Transpose(x, [.. 2, 1, 0]), w), after)    where it is x's first

Given::   MatMul(Cast(Transpose(x, perm)), w)   any types
Result::  MatMul(Transpose(Cast(x), perm), w)

For ONNX Runtime: where it fuses Transpose, Cast and MatMul it dies of a null pointer while it loads the model (1.31.1,
CPU, all optimizations on), for the permutations that bring the first axis behind all others, or behind all but the
last: [1, 0, 2], [1, 2, 0], [1, 2, 0, 3], [1, 2, 3, 0] …  A float16 MatMul counts as one with a cast, which ONNX Runtime
puts in. Recurrent models have it in front of their heads. Left out: float16 with a w of higher rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from retarget.passes.rewriting import Rewriting, Rule, Verdict, insert, node, producer, rank, replace, rewire


class DelayTransposes(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return {"MatMul": _delay}


def deadly(perm: Sequence[int]) -> bool:
    """Whether ``perm`` keeps all axes in order but the first, which comes last or last but one (3 axes or more)."""
    last = len(perm) - 1
    return last > 1 and list(perm[:-2]) == list(range(1, last)) and set(perm[-2:]) == {0, last}


def _delay(product: ir.Node) -> Verdict:
    verdict: Verdict = False
    for at in (0, 1):
        cast = producer(product.inputs[at], "Cast")
        turning = producer(product.inputs[at] if cast is None else cast.inputs[0], "Transpose")
        if turning is None or not deadly(turning.attributes.get_ints("perm", ())):
            continue
        if cast is not None:
            _cast_first(product, at, cast, turning)
            verdict = True
        elif product.outputs[0].dtype == ir.DataType.FLOAT16:
            if rank(product.inputs[1 - at]) in (1, 2):
                _turn_after(product, at, turning)
                return True
            verdict = verdict or "the other factor is a stack of matrices"
    return verdict


def _cast_first(product: ir.Node, at: int, cast: ir.Node, turning: ir.Node) -> None:
    """MatMul(Cast(Transpose(x)), w) → MatMul(Transpose(Cast(x)), w)."""
    source, name = turning.inputs[0], f"{product.outputs[0].name}_factor{at}"
    assert source is not None
    early = insert(product, ir.node("Cast", inputs=[source], attributes=cast.attributes, name=f"{name}_cast"))
    early.name, early.type, early.shape = f"{name}_cast", cast.outputs[0].type, source.shape
    late = ir.node("Transpose", inputs=[early], attributes=turning.attributes, name=f"{name}_turned")
    turned = insert(product, late, like=cast.outputs[0])
    turned.name = f"{name}_turned"
    rewire(product, at, turned)


def _turn_after(product: ir.Node, at: int, turning: ir.Node) -> None:
    """Let the product run over x's last axis, and bring the axes of what comes out into their order."""
    source, other = turning.inputs[0], product.inputs[1 - at]
    assert source is not None
    perm = list(turning.attributes.get_ints("perm", ()))
    last = len(perm) - 1
    vector = rank(other) == 1
    summed = perm[-1 if at == 0 else -2]
    order = list(range(last + 1)) if summed == last else list(range(last, -1, -1))
    if order != sorted(order):
        source = _transpose(product, source, order)
    if at == 1 and not vector:
        other = _transpose(product, other, [1, 0])
    # The new axis stands where the summed one stood; a vector leaves none.
    after = [order.index(axis) for axis in perm if not (vector and axis == summed)]
    made = insert(product, ir.node("MatMul", inputs=[source, other], name=f"{product.name}_not_turned"))
    out = product.outputs[0]
    made.name, made.type = f"{out.name}_not_turned", out.type
    if out.shape is not None:
        made.shape = ir.Shape([out.shape[after.index(axis)] for axis in range(len(after))])
    replace(product, node("Transpose", [made], {"perm": after}, like=product))


def _transpose(product: ir.Node, value: ir.Value | None, perm: Sequence[int]) -> ir.Value:
    assert value is not None
    turned = insert(product, ir.node("Transpose", inputs=[value], attributes={"perm": perm}))
    turned.name, turned.type = f"{value.name}_for_{product.outputs[0].name}", value.type
    if value.shape is not None:
        turned.shape = ir.Shape([value.shape[axis] for axis in perm])
    return turned

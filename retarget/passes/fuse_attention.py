"""Scaled dot-product attention as primitives → ``Attention`` of the standard domain (opset 23).

Given::   MatMul(Softmax(Add(MatMul(q, Transpose(k)), mask)), v)       # q: [N, heads, L, E], k, v: [N, heads, S, E]
Result::  Attention(q, k, v, mask, scale=1)

For targets that name it in `lower`; the normal form keeps the primitives, which calibration can look into and every
target can build. Scales that stand in front (√scale on q and on k) stay there: they are in the weights by now.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from retarget.passes.rewriting import (
    Rewriting,
    Rule,
    Verdict,
    dims,
    insert,
    is_float,
    node,
    own,
    producer,
    rank,
    replace,
    scalar,
)


class FuseAttention(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return {"MatMul": _fuse}


def _fuse(last: ir.Node) -> Verdict:
    softmax = producer(last.inputs[0], "Softmax")
    if softmax is None or softmax.inputs[0] is None or rank(last.inputs[1]) != 4:
        return False
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return "Softmax over another axis"
    if not own(last, softmax):
        return "the weights of attention are read elsewhere too"
    scores, mask, scale = _scores(last, softmax.inputs[0])
    if scores is None or not own(last, scores):
        return "the scores are not a product of queries and keys"
    query, turned, value = scores.inputs[0], scores.inputs[1], last.inputs[1]
    if query is None or turned is None or value is None or not is_float(query):
        return "not known to be float"
    if rank(query) != 4 or rank(turned) != 4:
        return "not of rank 4"
    heads = {shape[1] for shape in map(dims, (query, turned, value)) if shape is not None}
    if len(heads) != 1 or None in heads:
        return "queries, keys and values differ in heads"
    if mask is not None and (rank(mask) not in (2, 3, 4) or not _widens(mask, query, turned)):
        return "the mask does not widen to the scores"
    inputs = [query, _keys(last, turned), value, *([mask] if mask is not None else [])]
    replace(last, node("Attention", inputs, {"scale": scale}, like=last))
    return True


def _scores(last: ir.Node, value: ir.Value) -> tuple[ir.Node | None, ir.Value | None, float]:
    """(the product of queries and keys, what is added to it, its factor)."""
    mask: ir.Value | None = None
    added = producer(value, "Add")
    if added is not None and own(last, added):
        for at in (0, 1):
            if producer(added.inputs[at], "MatMul", "Mul") is not None:
                value, mask = added.inputs[at] or value, added.inputs[1 - at]
                break
    scale = 1.0
    scaled = producer(value, "Mul")
    if scaled is not None and own(last, scaled) and scaled.inputs[0] is not None:
        factor = scalar(scaled.inputs[1])
        if factor is not None and factor > 0:
            value, scale = scaled.inputs[0], factor
    return producer(value, "MatMul"), mask, scale


def _widens(mask: ir.Value, query: ir.Value, turned: ir.Value) -> bool:
    """Whether ``mask`` widens to [N, heads, L, S]: ONNX Runtime wants its last two axes in full."""
    shape, left, right = dims(mask), dims(query), dims(turned)
    if shape is None or left is None or right is None:
        return False
    wanted = (*left[:3], right[3])[4 - len(shape) :]
    return shape[-2:] == wanted[-2:] and all(one in (1, other) for one, other in zip(shape, wanted, strict=True))


def _keys(last: ir.Node, turned: ir.Value) -> ir.Value:
    """Keys as [N, heads, S, E], from [N, heads, E, S]."""
    transpose = producer(turned, "Transpose")
    perm = [0, 1, 3, 2]
    if transpose is not None and transpose.inputs[0] is not None:
        given = transpose.attributes.get_ints("perm", (3, 2, 1, 0))
        perm = [given[0], given[1], given[3], given[2]]
        if perm == [0, 1, 2, 3]:
            return transpose.inputs[0]
        turned_from = transpose.inputs[0]
    else:
        turned_from = turned
    keys = insert(last, ir.node("Transpose", inputs=[turned_from], attributes={"perm": perm}))
    keys.type = turned.type
    if turned.shape is not None:
        keys.shape = ir.Shape([turned.shape[axis] for axis in (0, 1, 3, 2)])
    return keys

"""Remove nodes that give back their input: the debris of exporters.

1. Identity, Dropout at inference; Cast to the type that is there; And with true, Or with false
2. Transpose by the identity permutation; Reshape, Expand, Squeeze, Unsqueeze, Flatten, Tile, Pad, Slice that leave the
   shape as it is
3. x + 0, x - 0, x * 1, x / 1, x ** 1, where the constant does not widen x's shape
4. Relu and Clip in front of a QuantizeLinear whose codes end where they clip
5. Concat, Sum, Mean, Max, Min of one input; Gather of all rows in their order; Where on a constant condition
6. what makes i + size of each negative number i that a Gather takes, which does that itself: each Embedding of Keras 3
   has it, as a Where or, through tf2onnx, as a sum of products

A number may come through Expand, Where and the like: a mask that can only be zero adds nothing (``uniform``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from retarget.lookups import counted_from_the_end
from retarget.passes.rewriting import (
    Rewriting,
    Rule,
    Verdict,
    constant,
    dims,
    forward,
    ints,
    is_constant,
    producer,
    rank,
    rewire,
    same_shape,
    scalar,
)

_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1, "And": True, "Or": False}
_COMMUTES = frozenset({"Add", "Mul", "And", "Or"})
_SPREADS = frozenset({"Expand", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Tile", "Slice"})
"""Operators whose output holds only numbers of their first input."""
_MASK_BYTES = 1 << 26
"""Constants up to this size are looked at for being one number: an attention mask has one for every two places."""


class RemoveNoops(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        table: dict[str, Rule] = dict.fromkeys(_NEUTRAL, _neutral)
        table |= dict.fromkeys(("Reshape", "Expand", "Squeeze", "Unsqueeze", "Flatten"), _same_shape)
        table |= dict.fromkeys(("Concat", "Sum", "Mean", "Max", "Min"), _single_input)
        return table | {
            "Identity": lambda node: _forward(node, node.inputs[0]),
            "Dropout": _dropout,
            "Cast": _cast,
            "Transpose": _transpose,
            "Pad": _pad,
            "Tile": _tile,
            "Slice": _slice,
            "Gather": _gather,
            "Where": _where,
            "QuantizeLinear": _saturated,
        }


def uniform(value: ir.Value | None, depth: int = 8) -> float | None:
    """The number that all elements of ``value`` are; None if they differ or that is not known.

    ``depth`` bounds how many nodes are looked through.
    """
    array = constant(value, _MASK_BYTES)
    if array is not None:
        ends = array.ravel()[[0, -1]] if array.size and array.dtype.kind in "fiub" else None
        # Weights end otherwise than they begin, and are not read throughout.
        return float(ends[0]) if ends is not None and ends[0] == ends[1] and (array == ends[0]).all() else None
    node = None if value is None or is_constant(value) else value.producer()
    if node is None or node.domain or depth == 0:
        return None
    if node.op_type in _SPREADS:
        return uniform(node.inputs[0], depth - 1)
    if node.op_type == "Where":
        condition = uniform(node.inputs[0], depth - 1)
        if condition is not None:
            return uniform(node.inputs[1 if condition else 2], depth - 1)
    return None


def _saturated(quantize: ir.Node) -> Verdict:
    """The clipping in front that the smallest and largest code do anyway: rounding keeps the order of numbers."""
    clip = producer(quantize.inputs[0], "Relu", "Clip")
    scale = constant(quantize.inputs[1])
    zero = constant(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    if clip is None or scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
        return False
    bounds: list[float | None] = [0.0, None]
    if clip.op_type == "Clip":
        given = [*clip.inputs[1:], None, None][:2]
        bounds = [scalar(value) for value in given]
        if any(value is not None and bound is None for value, bound in zip(given, bounds, strict=True)):
            return "its bounds are not constant"
    limits = np.iinfo(zero.dtype.name)
    codes = [None if bound is None else np.rint(np.float32(bound) / scale.item()) + zero.item() for bound in bounds]
    if (codes[0] is not None and codes[0] > limits.min) or (codes[1] is not None and codes[1] < limits.max):
        return "it clips what is quantized"
    rewire(quantize, 0, clip.inputs[0])
    return True


def _forward(node: ir.Node, value: ir.Value | None) -> Verdict:
    if value is None:
        return False
    return forward(node, value) or "it stands between a graph input or constant and a graph output"


def _neutral(node: ir.Node) -> Verdict:
    for at in (1, 0) if node.op_type in _COMMUTES else (1,):
        kept = node.inputs[1 - at]
        if uniform(node.inputs[at]) != float(_NEUTRAL[node.op_type]):
            continue
        if not _keeps_shape(kept, node.inputs[at], node.outputs[0]):
            return "the constant may widen the shape"
        return _forward(node, kept)
    return False


def _keeps_shape(kept: ir.Value | None, other: ir.Value | None, out: ir.Value) -> bool:
    """Whether broadcasting ``kept`` with ``other`` surely leaves ``kept``'s shape."""
    left, right = dims(kept), dims(other)
    if right is not None and all(size == 1 for size in right) and (not right or len(right) <= (rank(kept) or 0)):
        return True
    if left is None or right is None or len(right) > len(left):
        return same_shape(kept, out)
    aligned = zip(left[len(left) - len(right) :], right, strict=True)
    return all(size == 1 or (size is not None and size == there) for there, size in aligned)


def _same_shape(node: ir.Node) -> Verdict:
    if not same_shape(node.inputs[0], node.outputs[0]):
        return False
    return _forward(node, node.inputs[0])


def _single_input(node: ir.Node) -> Verdict:
    return _forward(node, node.inputs[0]) if len(node.inputs) == 1 else False


def _dropout(node: ir.Node) -> Verdict:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None and uniform(training) != 0:
        return "training mode is not known to be off"
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return "its mask is read"
    return _forward(node, node.inputs[0])


def _cast(node: ir.Node) -> Verdict:
    value = node.inputs[0]
    if value is None or value.dtype is None or value.dtype != node.attributes.get_int("to", 0):
        return False
    return _forward(node, value)


def _transpose(node: ir.Node) -> Verdict:
    permutation = node.attributes.get_ints("perm", ())
    if list(permutation) == list(range(len(permutation))) and (permutation or rank(node.inputs[0]) in (0, 1)):
        return _forward(node, node.inputs[0])
    return False


def _pad(node: ir.Node) -> Verdict:
    pads = ints(node.inputs[1])
    return _forward(node, node.inputs[0]) if pads is not None and not any(pads) else False


def _tile(node: ir.Node) -> Verdict:
    repeats = ints(node.inputs[1])
    return _forward(node, node.inputs[0]) if repeats is not None and set(repeats) <= {1} else False


def _slice(node: ir.Node) -> Verdict:
    steps = ints(node.inputs[4]) if len(node.inputs) > 4 else [1]
    if steps is None or any(step != 1 for step in steps):
        return False
    starts, ends = ints(node.inputs[1]), ints(node.inputs[2])
    everything = starts is not None and ends is not None and not any(starts) and all(e >= 2**31 - 1 for e in ends)
    return _forward(node, node.inputs[0]) if everything or same_shape(node.inputs[0], node.outputs[0]) else False


def _gather(node: ir.Node) -> Verdict:
    shape, indices = dims(node.inputs[0]), constant(node.inputs[1])
    if not shape:
        return False
    size = shape[node.attributes.get_int("axis", 0)]
    if indices is None:
        return _count_from_the_end(node, size)
    if indices.ndim != 1:
        return False
    return _forward(node, node.inputs[0]) if size == indices.size and (indices == np.arange(size)).all() else False


def _count_from_the_end(gather: ir.Node, size: int | str | None) -> Verdict:
    numbers = counted_from_the_end(gather.inputs[1], size) if isinstance(size, int) else None
    if numbers is None or not same_shape(numbers, gather.inputs[1]):
        return False
    rewire(gather, 1, numbers)
    return True


def _where(node: ir.Node) -> Verdict:
    condition = uniform(node.inputs[0])
    if condition is None:
        return False
    chosen = node.inputs[1 if condition else 2]
    if not same_shape(chosen, node.outputs[0]):
        return "what is chosen is widened"
    return _forward(node, chosen)

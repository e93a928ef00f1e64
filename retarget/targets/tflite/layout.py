"""Channels first or last, for every node at once.

A node works with the channels first or last, and some nodes can do either. A value that is made in one layout and read
in the other is transposed, once, however many read it so. Which nodes are to be which, so that the fewest values are
transposed, and of those the smallest, is a minimum cut between what can only be first and what can only be last
(`cut`).

Nodes that are about the order of axes have a layout of their operand and one of their result, and what they cost is a
table of the two: a Transpose to channels last is nothing at all where it reads the channels last and writes what it has
in the order that ONNX has, and a Reshape can keep the channels last where it leaves the first two axes alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import onnx_ir as ir

from retarget import graph
from retarget.targets.tflite.cut import Costs, Cut

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


def flattens(operand: Sequence[int], result: Sequence[int]) -> bool:
    """Whether a Reshape makes a row of each image, in which the channels can also be last."""
    is_row = len(operand) >= FIRST_AXES and len(result) == 2 and operand[0] == result[0]
    return is_row and not stays(operand, order(Layout.LAST, len(operand)))


def arrange(
    graph: ir.Graph,
    wish: Callable[[ir.Node], Wish | None],
    sizes: Mapping[str, int],
    border: Mapping[str, Layout],
) -> dict[ir.Node, Arranged]:
    """The layouts of each node, so that as few values as possible, and small ones, are needed in both.

    ``wish`` is None for nodes that cannot be written. ``sizes``: of symbolic dimensions. ``border``: inputs and outputs
    that are stored otherwise than FIRST.
    """
    return _Arrangement(graph, wish, sizes, border).solved()


_TRANSPOSE = 1 << 40
"""What a transposition costs before its bytes: more than all bytes together."""

_NEVER = 1 << 60
"""What cannot be."""

_FIRST, _LAST = 0, 1
_LAYOUTS = (Layout.FIRST, Layout.LAST)


@dataclass
class _Arrangement:
    graph: ir.Graph
    wish: Callable[[ir.Node], Wish | None]
    sizes: Mapping[str, int]
    border: Mapping[str, Layout]
    cut: Cut = field(default_factory=Cut)
    nodes: dict[ir.Node, tuple[int, int]] = field(default_factory=dict)
    """The variables of what each node reads and writes: 1 where that is LAST."""
    made: dict[ir.Value, int] = field(default_factory=dict)
    read: dict[ir.Value, list[int]] = field(default_factory=lambda: defaultdict(list))
    images: set[ir.Value] = field(default_factory=set)
    """Rows that can be flattened with the channels last, see `Value.image`."""
    constants: set[ir.Value] = field(default_factory=set)

    def solved(self) -> dict[ir.Node, Arranged]:
        self.constants.update(value for value in self.graph.initializers.values() if value.const_value is not None)
        for value in self.graph.inputs:
            self._make(value, self._at_border(value))
        for node in self.graph:
            if self._is_constant(node):
                self.constants.update(node.outputs)
            else:
                self._node(node)
        for value in self.graph.outputs:
            self._read(value, self._at_border(value))
        for value, one in self.made.items():
            if any(use.node.graph is not self.graph for use in value.uses()):
                self._read(value, _FIRST)
            if self.read[value]:
                self.cut.agree(one, self.read[value], self._weight(value))
        values = self.cut.solve()
        return {node: Arranged(_LAYOUTS[values[one]], _LAYOUTS[values[two]]) for node, (one, two) in self.nodes.items()}

    def _is_constant(self, node: ir.Node) -> bool:
        """Whether its results are known when the file is written."""
        if node.op_type == "Constant" or node.op_type in _OF_SHAPES:
            return True
        return bool(node.inputs) and all(value is None or value in self.constants for value in node.inputs)

    def _at_border(self, value: ir.Value) -> int:
        return _LAYOUTS.index(self.border.get(value.name or "", Layout.FIRST))

    # ---- nodes

    def _node(self, node: ir.Node) -> None:
        wish = self.wish(node)
        if wish is None:
            self._fixed(node, Way.FIRST, None)
        elif node.op_type == "Transpose":
            self._pair(node, self._transposed(node))
        elif node.op_type in _RESHAPES and (costs := self._reshaped(node)) is not None:
            self._pair(node, costs)
        elif self._takes_rows(node):
            self._fixed(node, Way.ENDS, (0,), rows=True)
        elif self._keeps_rows(node):
            self.images.add(node.outputs[0])
            self._fixed(node, Way.EITHER, (0,), rows=True)
        else:
            self._fixed(node, wish.way, wish.operands)

    def _fixed(self, node: ir.Node, way: Way, operands: tuple[int, ...] | None, *, rows: bool = False) -> None:
        """A node that works as one of the ways says. ``rows``: also on such as are flattened with the channels last."""
        match way:
            case Way.FIRST:
                reads = writes = _FIRST
            case Way.LAST:
                reads = writes = _LAST
            case Way.EITHER:
                reads = writes = self.cut.variable()
            case Way.ENDS:
                reads, writes = self.cut.variable(), _FIRST
        self.nodes[node] = reads, writes
        rank = _rank(node.outputs[0])
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if (operands is not None and index not in operands) or (value in self.images and not rows):
                self._read(value, _FIRST)
            elif way is not Way.ENDS and 1 <= _rank(value) < rank:
                # Axes are put in front of it, and then it is transposed.
                self._read(value, _FIRST)
                if value not in self.constants:
                    self.cut.pair(reads, _FIRST, ((0, 0), (self._aligned(value, rank),) * 2))
            else:
                self._read(value, reads)
        for value in node.outputs:
            self._make(value, writes)

    def _pair(self, node: ir.Node, costs: Costs) -> None:
        """A node with a layout of its operand and one of its result."""
        operand, result = node.inputs[0], node.outputs[0]
        assert operand is not None
        reads, writes = (
            self.cut.variable() if self._is_chosen(each) else _FIRST
            for each in (operand if operand not in self.images else None, result)
        )
        self.nodes[node] = reads, writes
        self.cut.pair(reads, writes, costs)
        self._read(operand, reads)
        for value in node.inputs[1:]:
            if value is not None:
                self._read(value, _FIRST)
        self._make(result, writes)

    def _transposed(self, node: ir.Node) -> Costs:
        shape = self._shape(node.inputs[0])
        perm = tuple(node.attributes.get_ints("perm", ())) or tuple(reversed(range(_rank(node.inputs[0]))))

        def cost(read: Layout, written: Layout) -> int:
            steps = between(perm, read, written)
            if steps == tuple(range(len(perm))):
                return 0
            return self._moves(node.inputs[0], None if shape is None else stored(shape, read), steps)

        return _table(cost)

    def _reshaped(self, node: ir.Node) -> Costs | None:
        """None where nothing is known of the shapes."""
        operand, result = node.inputs[0], node.outputs[0]
        before, after = self._shape(operand), self._shape(result)
        if before is None or after is None:
            return None
        if flattens(before, after):
            self.images.add(result)

        def cost(read: Layout, written: Layout) -> int:
            if result in self.images and written is Layout.LAST:
                return 0 if read is Layout.LAST else _NEVER
            return 0 if rejoins(before, read, after, written) else _NEVER

        return _table(cost)

    def _takes_rows(self, node: ir.Node) -> bool:
        """Whether it can read its first operand however it was flattened: its weight's rows are moved instead."""
        if node.op_type not in ("Gemm", "MatMul") or node.inputs[0] not in self.images:
            return False
        return node.inputs[1] in self.constants and not node.attributes.get_int("transA", 0)

    def _keeps_rows(self, node: ir.Node) -> bool:
        """Whether it does the same to all elements of its only computed operand, which can be flattened either way."""
        wish, operand = self.wish(node), node.inputs[0] if node.inputs else None
        if wish is None or wish.way is not Way.EITHER or operand not in self.images or len(node.outputs) != 1:
            return False
        others = [each for each in node.inputs[1:] if each is not None]
        return all(each in self.constants and graph.numel(each, self.sizes) == 1 for each in others)

    # ---- values

    def _make(self, value: ir.Value, variable: int) -> None:
        if self._is_chosen(value):
            self.made[value] = variable

    def _read(self, value: ir.Value, variable: int) -> None:
        if value in self.made:
            self.read[value].append(variable)

    def _is_chosen(self, value: ir.Value | None) -> bool:
        """Whether there is a choice of its layout."""
        return value not in self.constants and (_rank(value) >= FIRST_AXES or value in self.images)

    def _shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        return graph.static_shape(value, self.sizes)

    def _weight(self, value: ir.Value) -> int:
        """What it costs to have the value in both layouts."""
        if value in self.images:
            return self._moves(value, None, ())
        return self._moves(value, self._shape(value), order(Layout.LAST, _rank(value)))

    def _aligned(self, value: ir.Value, rank: int) -> int:
        """What it costs to have a value of fewer axes, next to others of ``rank`` axes, with the channels last."""
        shape = self._shape(value)
        if shape is None:
            return self._moves(value, None, ())
        return self._moves(value, (1,) * (rank - len(shape)) + shape, order(Layout.LAST, rank))

    def _moves(self, value: ir.Value | None, shape: Sequence[int] | None, perm: Sequence[int]) -> int:
        size = 4 if value is None or value.dtype is None else math.ceil(value.dtype.itemsize)
        if shape is None:
            return _TRANSPOSE + size * (graph.numel(value, self.sizes) or 0)
        return (0 if stays(shape, perm) else _TRANSPOSE) + size * math.prod(shape)


_OF_SHAPES = frozenset({"Shape", "Size", "EyeLike"})
"""What is known by the shape of the operand alone."""

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def _rank(value: ir.Value | None) -> int:
    """How many axes it has; 0 where that is unknown."""
    return 0 if value is None or value.shape is None else len(value.shape)


def _table(cost: Callable[[Layout, Layout], int]) -> Costs:
    first, last = _LAYOUTS
    return (cost(first, first), cost(first, last)), (cost(last, first), cost(last, last))

"""Channels first or last, for every node at once.

A node works with the channels first or last, and some nodes can do either. A value that is made in one layout and read
in the other is transposed, once, however many read it so. Which nodes are to be which, so that the fewest values are
transposed, and of those the smallest, is a minimum cut between what can only be first and what can only be last
(`cut`).

Reshapes and Transposes have a layout of their operand and one of their result, and what they cost is a table of the
two: a Transpose to channels last is nothing at all where it reads the channels last and writes what it has in the order
that ONNX has. A chain of them is one such node (`movement`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from retarget import graph
from retarget.targets.tflite.cut import Cut
from retarget.targets.tflite.layout import FIRST_AXES, Arranged, Layout, Way, Wish, order, stays
from retarget.targets.tflite.movement import MOST_AXES, Movement, Step


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
    chains: dict[ir.Node, tuple[ir.Node, ...]] = field(default_factory=dict)
    """Of Reshapes and Transposes that are written as one: by the last of them."""
    passed: set[ir.Node] = field(default_factory=set)

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
        return {
            node: Arranged(_LAYOUTS[values[one]], _LAYOUTS[values[two]], self.chains.get(node, ()))
            for node, (one, two) in self.nodes.items()
        }

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
        elif node in self.passed or (node.op_type in MOVING and self._moves_axes(node)):
            return
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

    def _moves_axes(self, node: ir.Node) -> bool:
        """Take the longest chain of Reshapes and Transposes from ``node`` on that can be written as one, if any can."""
        nodes = [node]
        while (behind := _alone_behind(nodes[-1])) is not None and behind.graph is self.graph:
            nodes.append(behind)
        while nodes and (movement := self._movement(nodes)) is None:
            nodes.pop()
        if not nodes or movement is None:
            return False
        operand, result = node.inputs[0], nodes[-1].outputs[0]
        if movement.image is not None:
            self.images.add(result)
        reads = self.cut.variable() if self._is_chosen(operand) and operand not in self.images else _FIRST
        writes = self.cut.variable() if self._is_chosen(result) else _FIRST
        size = self._bytes(operand)
        first, last = (
            tuple(_TRANSPOSE + size if movement.route(read, written) else 0 for written in _LAYOUTS)
            for read in _LAYOUTS
        )
        self.cut.pair(reads, writes, ((first[0], first[1]), (last[0], last[1])))
        self.nodes[nodes[-1]] = reads, writes
        self.chains[nodes[-1]] = tuple(nodes)
        self.passed.update(nodes)
        for each in nodes:
            for value in each.inputs:
                if value is not None:
                    self._read(value, reads if value is operand else _FIRST)
        self._make(result, writes)
        return True

    def _movement(self, nodes: Sequence[ir.Node]) -> Movement | None:
        """None where too little is known of the shapes, or more than a TRANSPOSE is needed."""
        operand, taken = nodes[0].inputs[0], steps(nodes, self.sizes)
        shape = self._shape(operand)
        if shape is None and all(node.op_type == "Transpose" for node in nodes):
            shape = (2,) * _rank(operand)
        movement = None if shape is None or taken is None else Movement.of(shape, taken)
        if movement is None:
            return None
        routes = [movement.route(read, written) for read in _LAYOUTS for written in _LAYOUTS]
        return movement if all(route is None or len(route[1]) <= MOST_AXES for route in routes) else None

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
        return (0 if shape is not None and stays(shape, perm) else _TRANSPOSE) + self._bytes(value)

    def _bytes(self, value: ir.Value | None) -> int:
        size = 4 if value is None or value.dtype is None else math.ceil(value.dtype.itemsize)
        return size * (graph.numel(value, self.sizes) or 0)


_OF_SHAPES = frozenset({"Shape", "Size", "EyeLike"})
"""What is known by the shape of the operand alone."""

MOVING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


def steps(nodes: Sequence[ir.Node], sizes: Mapping[str, int]) -> list[Step] | None:
    """What each of ``MOVING`` nodes does; None where the shape that it gives is not known."""
    found: list[Step] = []
    for node in nodes:
        if node.op_type == "Transpose":
            perm = tuple(node.attributes.get_ints("perm", ())) or tuple(reversed(range(_rank(node.inputs[0]))))
            found.append(("transpose", perm))
        elif (shape := graph.static_shape(node.outputs[0], sizes)) is not None:
            found.append(("reshape", shape))
        else:
            return None
    return found


def _alone_behind(node: ir.Node) -> ir.Node | None:
    """The node of ``MOVING`` that alone reads the result of ``node``."""
    (out,) = node.outputs
    uses = tuple(out.uses())
    if len(uses) != 1 or uses[0].idx != 0 or out.is_graph_output():
        return None
    return uses[0].node if uses[0].node.op_type in MOVING else None


def _rank(value: ir.Value | None) -> int:
    """How many axes it has; 0 where that is unknown."""
    return 0 if value is None or value.shape is None else len(value.shape)

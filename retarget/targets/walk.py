"""What every target that is written node by node does alike: walk a graph, and see the operands of a node."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import onnx_ir as ir

from retarget.targets import legal
from retarget.targets.folding import folded, is_foldable

if TYPE_CHECKING:
    from retarget.protocols import Array

OperandT = TypeVar("OperandT")


class Refusal(Exception):
    """Why a node cannot be taken."""


class OneNode(Generic[OperandT]):
    """A node and what is known of its operands; op functions get what a target makes of it."""

    node: ir.Node
    operands: tuple[OperandT | None, ...]

    @property
    def attributes(self) -> ir._graph_containers.Attributes:
        return self.node.attributes

    @property
    def count(self) -> int:
        """How many operands there are, those left out among them."""
        return len(self.operands)

    def has(self, index: int) -> bool:
        """Whether operand ``index`` is given."""
        return index < len(self.operands) and self.operands[index] is not None

    def operand(self, index: int) -> OperandT:
        operand = self.operands[index] if index < len(self.operands) else None
        if operand is None:
            raise Refusal(f"operand {index} is missing")
        return operand

    @property
    def outputs(self) -> tuple[bool, ...]:
        """Of each output, whether anything uses it."""
        return tuple(bool(value.uses()) or value.is_graph_output() for value in self.node.outputs)


class Walk(ABC, Generic[OperandT]):
    """A walk over a graph. What could not be taken stands in ``refusals``."""

    env: dict[ir.Value, OperandT | None]
    """What each value is; None: of a node that was refused, and so unknown."""
    ops: Mapping[str, object]
    """The operators that the target has."""
    refusals: list[legal.Refusal]

    def walk(self, nodes: ir.Graph) -> list[OperandT | None]:
        """Write a graph's nodes here. Its outputs are None where they hang on what was refused."""
        for value in nodes.initializers.values():
            if value.const_value is not None:
                self.env[value] = self.operand_of(value.const_value)
        for node in nodes:
            self.visit(node)
        return [self.env.get(value) for value in nodes.outputs]

    def visit(self, node: ir.Node) -> None:
        """Write one node, or note why it cannot be taken."""
        name = legal.operator(node)
        if name == "Constant" and (tensor := ir.convenience.get_const_tensor(node.outputs[0])) is not None:
            self.env[node.outputs[0]] = self.operand_of(tensor)
            return
        if not self.has_operator(name):
            self.refuse(node, "there is no such operator in the target")
            return
        operands = [None if value is None else self.env[value] for value in node.inputs]
        if any(value is not None and operand is None for value, operand in zip(node.inputs, operands, strict=True)):
            # What it needs was refused: nothing can be said of it.
            self.forget(node)
            return
        try:
            self.write(node, operands)
        except Refusal as refusal:
            self.refuse(node, str(refusal))

    def has_operator(self, name: str) -> bool:
        """Whether the target has an operator of ONNX."""
        return name in self.ops

    def refuse(self, node: ir.Node, reason: str) -> None:
        self.refusals.append(legal.refusal(node, reason))
        self.forget(node)

    @abstractmethod
    def operand_of(self, tensor: ir.TensorProtocol) -> OperandT:
        """What a constant is as an operand."""

    @abstractmethod
    def write(self, node: ir.Node, operands: Sequence[OperandT | None]) -> None:
        """Write one node, whose operator is among ``ops`` and whose operands are known. Raises ``Refusal``."""

    @abstractmethod
    def forget(self, node: ir.Node) -> None:
        """Take for the outputs of ``node`` what ONNX says of them, so that what follows is judged too."""


def folded_arrays(node: ir.Node, operands: Sequence[object]) -> list[Array] | None:
    """The results of a node of constants, which are arrays; None where it has computed operands, or is not folded."""
    known = {
        value.name or "": operand
        for value, operand in zip(node.inputs, operands, strict=True)
        if value is not None and isinstance(operand, np.ndarray)
    }
    if len(known) < len({value.name for value in node.inputs if value is not None}) or not is_foldable(node):
        return None
    return folded(node, known)

"""What a target takes, as data, and the answer with all offending nodes that design.md asks of every target.

Two sources, asked in this order: a table ``LEGAL`` of what we know (also of what a runtime takes and computes wrongly),
then, for a runtime that says no without saying where, a trial of each suspect node on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from retarget import graph

Refusal: TypeAlias = tuple[str, str, str]
"""Node name, operator, reason: what ``errors.unsupported`` lists."""

UNROLL = "unroll it before the export (in Keras `unroll=True`, or no mask), or use the recurrent operators"
"""What to do about a loop."""

SMALL = 1 << 20
"""Constants above this many bytes become inputs of a trial model."""


@dataclass(frozen=True)
class Rule:
    """What a target takes of one operator. ``dtypes`` bounds the types of its first input and first output."""

    dtypes: frozenset[str] | None = None
    when: Callable[[ir.Node], str | None] | None = None
    """Why this node cannot be taken, None if it can."""

    def refuses(self, node: ir.Node) -> str | None:
        """The reason, None if the node is legal. A type that the graph does not say is not held against the node."""
        if self.dtypes is not None:
            for value in (*node.inputs[:1], *node.outputs[:1]):
                if value is not None and value.dtype is not None and graph.dtype_name(value.dtype) not in self.dtypes:
                    return f"{graph.dtype_name(value.dtype)} is not among {', '.join(sorted(self.dtypes))}"
        return None if self.when is None else self.when(node)


def refused(model: ir.Model, legal: Mapping[str, Rule], *, closed: bool) -> list[Refusal]:
    """Every node that the table refuses. ``closed``: an operator that the table lacks is refused too."""
    found: list[Refusal] = []
    for node in graph.all_nodes(model):
        rule = legal.get(operator(node))
        if rule is not None:
            reason = rule.refuses(node)
        else:
            reason = "there is no such operator in the target" if closed else None
        if reason is not None:
            found.append(refusal(node, reason))
    return found


def tried(model: ir.Model, trial: Callable[[ir.Model], str | None]) -> list[Refusal]:
    """Every node that ``trial`` refuses when it is a model of its own; nodes that look alike are tried once.

    ``trial`` gives the reason, None if it takes the model. A node with a subgraph is judged by the nodes inside.
    """
    answers: dict[str, str | None] = {}
    found: list[Refusal] = []
    for node in graph.all_nodes(model):
        if any(attribute.type in _GRAPHS for attribute in node.attributes.values()):
            continue
        alone = isolated(node, model.opset_imports)
        if alone is None:
            continue
        look = _look(node)
        if look not in answers:
            answers[look] = trial(alone)
        if (reason := answers[look]) is not None:
            found.append(refusal(node, reason))
    return found


def refused_or_tried(
    model: ir.Model, legal: Mapping[str, Rule], trial: Callable[[ir.Model], str | None]
) -> list[Refusal]:
    """What the table refuses, and of the rest what ``trial`` refuses."""
    found = refused(model, legal, closed=False)
    known = {(name, op) for name, op, _ in found}
    return found + [entry for entry in tried(model, trial) if entry[:2] not in known]


def isolated(node: ir.Node, opset_imports: Mapping[str, int]) -> ir.Model | None:
    """A model of ``node`` alone: its small constants kept, every other operand an input. None if a type is unknown."""
    operands: dict[str, ir.Value] = {}
    for value in node.inputs:
        if value is None or value.name in operands:
            continue
        constant = ir.convenience.get_const_tensor(value)
        if value.dtype is None and constant is None:
            return None
        operand = ir.Value(name=value.name, type=value.type, shape=value.shape)
        if constant is not None and constant.nbytes <= SMALL:
            operand.const_value = constant
            operand.dtype = constant.dtype
            operand.shape = ir.Shape(constant.numpy().shape)
        operands[value.name or ""] = operand
    outputs = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs]
    alone = ir.Node(
        node.domain,
        node.op_type,
        inputs=[None if value is None else operands[value.name or ""] for value in node.inputs],
        attributes=node.attributes.values(),
        overload=node.overload,
        outputs=outputs,
        name=node.name,
    )
    return ir.Model(
        ir.Graph(
            inputs=[value for value in operands.values() if value.const_value is None],
            outputs=[value for value in outputs if value.name],
            nodes=[alone],
            initializers=[value for value in operands.values() if value.const_value is not None],
            opset_imports=dict(opset_imports),
            name="alone",
        ),
        ir_version=10,
    )


def operator(node: ir.Node) -> str:
    """``Relu``, or ``domain::Name`` outside the default domain."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def refusal(node: ir.Node, reason: str) -> Refusal:
    """The entry for ``node``; a node without a name is called after its first output."""
    return node.name or _first(value.name for value in node.outputs), operator(node), reason


def _look(node: ir.Node) -> str:
    operands = [None if value is None else (value.dtype, value.shape, value.is_initializer()) for value in node.inputs]
    return repr((operator(node), node.overload, list(node.attributes.values()), operands, len(node.outputs)))


def _first(names: Iterable[str | None]) -> str:
    return next((name for name in names if name), "?")


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)

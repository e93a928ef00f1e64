"""What our own passes share: one walk over the nodes, questions about values, and replacement of nodes.

A pass maps operators to rules. The walk hands each node once to the rule of its operator, so a pass costs one
visit a node however many rules there are. A rule answers with a ``Verdict`` and changes the graph only through
``replace``, ``forward`` and ``initializer``, which keep names, types and the user's outputs.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.generic]
Verdict: TypeAlias = bool | str
"""True: rewritten. False: not this rule's pattern. A text: the pattern is there, and why it was refused."""
Rule: TypeAlias = Callable[[ir.Node], Verdict]

SMALL = 1 << 14
"""Bytes up to which a constant is read, folded and kept in memory; beyond it is made anew on each reading."""

_HALVES = (np.float16, ml_dtypes.bfloat16)

logger = logging.getLogger(__name__)


class Rewriting(ir.passes.InPlacePass):
    """A pass that is a table of rules. ``refused`` holds (node name, reason) of the last run."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[tuple[str, str]] = []

    @abstractmethod
    def rules(self) -> Mapping[str, Rule]:
        """Operator of the default domain to the rule for the node where its pattern *ends*."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rules = self.rules()
        self.refused = []
        modified = False
        for graph in graphs(model):
            for node in graph:
                rule = rules.get(node.op_type)
                if rule is None or node.domain:
                    continue
                verdict = rule(node)
                if isinstance(verdict, str):
                    self.refused.append((node.name or "", verdict))
                    logger.debug("%s: %s (%s): %s", type(self).__name__, node.name, node.op_type, verdict)
                else:
                    modified |= verdict
        return ir.passes.PassResult(model, modified)


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The graph and its subgraphs, outer ones first."""
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph:
            if node.attributes:
                for attribute in node.attributes.values():
                    pending.extend(subgraphs(attribute))


def subgraphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """The graphs in an attribute: of Loop, If and the like."""
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()


# ---- questions


def is_constant(value: ir.Value | None) -> bool:
    """Whether ``value`` is an initializer that no feed can override."""
    return value is not None and value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def constant(value: ir.Value | None, limit: int = SMALL) -> Array | None:
    """The array of a constant of at most ``limit`` bytes; None for all other values."""
    if value is None or not is_constant(value):
        return None
    tensor = value.const_value
    assert tensor is not None
    return tensor.numpy() if tensor.nbytes <= limit else None


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element and at most rank 1; None for all other values."""
    array = constant(value)
    return float(array.item()) if array is not None and array.size == 1 and array.ndim <= 1 else None


def ints(value: ir.Value | None) -> list[int] | None:
    """The numbers of a small integer constant."""
    array = constant(value)
    return [int(x) for x in array.ravel()] if array is not None and array.dtype.kind in "iu" else None


def is_close(value: ir.Value | None, expected: float, relative: float = 1e-5) -> bool:
    """Whether ``value`` is a constant within ``relative`` of ``expected`` (exporters round π and √2 differently), or
    what a model in 16 bits holds for it or for its inverse."""
    number = scalar(value)
    if number is None:
        return False
    held = (times for dtype in _HALVES for times in (float(dtype(expected)), 1 / float(dtype(1 / expected))))
    return any(abs(number - each) <= relative * abs(each) for each in (expected, *held))


def producer(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The node that makes ``value`` as its first output, if it is one of ``ops`` of the default domain."""
    node = None if value is None else value.producer()
    if node is None or node.domain or node.op_type not in ops or value is not node.outputs[0]:
        return None
    return node


def sole_use(value: ir.Value) -> bool:
    """Whether one input of one node is all that reads ``value``."""
    return not value.is_graph_output() and len(value.uses()) == 1


def only_user(value: ir.Value, op: str) -> ir.Node | None:
    """The one node that reads ``value``, if it is an ``op`` of the default domain in the same graph."""
    if not sole_use(value):
        return None
    user, _ = next(iter(value.uses()))
    return user if user.op_type == op and not user.domain and user.graph is value.graph else None


def own(node: ir.Node, inner: ir.Node | None) -> bool:
    """Whether ``inner`` is in ``node``'s graph and only one node reads it: so a pattern may swallow it."""
    return inner is not None and inner.graph is node.graph and sole_use(inner.outputs[0])


def rank(value: ir.Value | None) -> int | None:
    """How many dimensions ``value`` has; None if that is unknown."""
    if value is None:
        return None
    shape = value.shape if value.shape is not None or value.const_value is None else value.const_value.shape
    return None if shape is None else len(shape)


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The dimensions of ``value``: numbers, names of symbols, None where nothing is known."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape.dims)


def same_shape(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether both shapes are known and equal, symbols by name."""
    one, other = dims(left), dims(right)
    return one is not None and None not in one and one == other


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


# ---- changes


def node(
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
    *,
    like: ir.Node,
) -> ir.Node:
    """A node of the default domain with one output that bears the name and metadata of ``like``."""
    made = ir.node(op, inputs=list(inputs), attributes=dict(attributes or {}), name=like.name)
    made.metadata_props.update(like.metadata_props)
    return made


def replace(old: ir.Node, new: ir.Node) -> None:
    """Put ``new`` in ``old``'s place: its output takes name, type and users. Nodes that nothing reads now go too."""
    before, after = old.outputs[0], new.outputs[0]
    after.name, after.type, after.shape = before.name, before.type, before.shape
    after.metadata_props.update(before.metadata_props)
    graph = graph_of(old)
    graph.insert_before(old, new)
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    remove(old)


def insert(before: ir.Node, new: ir.Node, like: ir.Value | None = None) -> ir.Value:
    """Insert ``new`` and give back its output, of ``like``'s type and shape."""
    graph_of(before).insert_before(before, new)
    out = new.outputs[0]
    if like is not None:
        out.type, out.shape = like.type, like.shape
    return out


def forward(old: ir.Node, value: ir.Value) -> bool:
    """Let all that reads ``old`` read ``value`` instead and remove ``old``; False where the graph forbids it.

    A graph output keeps its name: ``value`` takes it over, which a graph input, a constant, another graph output or
    a value of an outer graph cannot do.
    """
    out = old.outputs[0]
    if out.is_graph_output():
        if value.producer() is None or value.is_graph_output() or value.graph is not old.graph:
            return False
        value.name, value.shape, value.type = out.name, out.shape, out.type
    elif value.shape is None:
        value.shape = out.shape
    out.replace_all_uses_with(value, replace_graph_outputs=True)
    remove(old)
    return True


def remove(old: ir.Node) -> None:
    """Remove a node that nothing reads, then all those before it that only it had read, and their constants."""
    pending = [old]
    while pending:
        dead = pending.pop()
        graph = dead.graph
        if graph is None or any(out.uses() or out.is_graph_output() for out in dead.outputs):
            continue
        inputs = [value for value in dict.fromkeys(dead.inputs) if value is not None]
        graph.remove(dead, safe=True)
        for value in inputs:
            maker = value.producer()
            if maker is not None:
                pending.append(maker)
            elif not value.uses():
                _drop(value)


def rewire(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Let input ``index`` of ``node`` be ``value``, and drop what nothing reads now."""
    before = node.inputs[index]
    node.replace_input_with(index, value)
    if before is None or before.uses():
        return
    maker = before.producer()
    if maker is not None:
        remove(maker)
    else:
        _drop(before)


def initializer(near: ir.Node, name: str, tensor: ir.TensorProtocol | Array) -> ir.Value:
    """A new constant in ``near``'s graph, called ``name`` or, if that is taken, ``name_1``, ``name_2`` …"""
    graph = graph_of(near)
    free, count = name, 0
    while free in graph.initializers:
        count += 1
        free = f"{name}_{count}"
    # Arithmetic on arrays of rank 0 gives numpy scalars.
    held = ir.Tensor(np.asarray(tensor), name=free) if isinstance(tensor, np.ndarray | np.generic) else tensor
    value = ir.Value(name=free, type=ir.TensorType(held.dtype), shape=ir.Shape(held.shape.numpy()), const_value=held)
    graph.register_initializer(value)
    return value


def computed(
    value: ir.Value, make: Callable[[Array], Array], shape: Sequence[int], dtype: ir.DataType | None = None
) -> ir.TensorProtocol:
    """``make`` of a constant, at once when it is small; else a lazy tensor, so that mapped weights stay mapped.

    A lazy tensor is made anew at each reading (by a session, by ``save``), one at a time, and never kept.
    """
    source = value.const_value
    assert source is not None
    result = dtype or source.dtype
    assert result is not None

    def evaluate() -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(make(source.numpy()), order="C"), dtype=result)

    if source.nbytes <= SMALL:
        return evaluate()
    return ir.LazyTensor(evaluate, dtype=result, shape=ir.Shape(list(shape)))


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that ``node`` is in."""
    graph = node.graph
    assert isinstance(graph, ir.Graph), "functions are inlined and the node is not removed"
    return graph


def _drop(value: ir.Value) -> None:
    """Forget a constant that nothing reads."""
    if value.is_initializer() and not value.is_graph_input() and not value.is_graph_output():
        graph = value.graph
        assert graph is not None
        assert value.name is not None
        graph.initializers.pop(value.name, None)

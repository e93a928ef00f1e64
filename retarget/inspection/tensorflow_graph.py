"""What stands in a ``GraphDef``, a ``MetaGraphDef`` and a ``SavedModel``, by the numbers of their fields."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from retarget.convert.tensorflow.names import Border
from retarget.protobuf import LENGTH, Buffer, Field, WireError, fields, signed

# fmt: off
_TYPES = (
    "float32", "float64", "int32", "uint8", "int16", "int8", "string", "complex64", "int64", "bool", "qint8",
    "quint8", "qint32", "bfloat16", "qint16", "quint16", "uint16", "complex128", "float16", "resource", "variant",
    "uint32", "uint64",
)
"""``DataType``, from 1 on; 100 more is a reference to one."""
# fmt: on

VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
CONSTANTS = VARIABLES | {"Const", "Placeholder", "NoOp", "ReadVariableOp"}
"""What is no work of the model: where its numbers come from."""
_NOT_OUTPUTS = re.compile(
    r"NoOp|Assert|\w*Summary\w*|Save\w*|Restore\w*|\w*Assign\w*|Resource(Apply|Scatter)\w*|Apply\w*|Print\w*|\w*Enqueue\w*"
)
_MOST_NODES = 10_000_000
_DEEPEST = 100
_UNKNOWN_SCALARS = 24
"""Before this version of graphs a placeholder of unknown shape was written as one without dimensions."""


@dataclass(frozen=True)
class Node:
    name: str
    op: str
    inputs: tuple[str, ...]
    """Names of nodes, those that only come before it left out."""
    calls: tuple[str, ...]
    """Functions of the graph's library."""
    dtype: str | None
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Graph:
    nodes: dict[str, Node]
    functions: dict[str, tuple[Node, ...]]
    version: int

    def reached(self, names: Iterable[str]) -> list[Node]:
        """The nodes ``names`` and what they depend on."""
        waiting, found = list(names), dict[str, Node]()
        while waiting:
            name = waiting.pop()
            if name in self.nodes and name not in found:
                found[name] = self.nodes[name]
                waiting += self.nodes[name].inputs
        return list(found.values())

    def ops(self, nodes: Iterable[Node]) -> Counter[str]:
        """Operator to its count in ``nodes``; those of a function count wherever it is called."""
        found, known = Counter[str](), dict[str, Counter[str]]()
        for node in nodes:
            found += self._of(node, known)
        return found

    def _of(self, node: Node, known: dict[str, Counter[str]], depth: int = 0) -> Counter[str]:
        found = Counter[str]() if node.op.endswith("PartitionedCall") else Counter({node.op: 1})
        for name in self._calls(node):
            if name not in known:
                known[name] = Counter()  # one that calls itself ends here
                for inner in self.functions.get(name, ()):
                    known[name] += self._of(inner, known, depth + 1)
            found += known[name]
            if found.total() > _MOST_NODES or depth > _DEEPEST:
                raise WireError("its functions call each other without an end")
        return found

    def _calls(self, node: Node) -> tuple[str, ...]:
        # Older graphs call a function as an operator of its name.
        return node.calls or ((node.op,) if node.op in self.functions else ())

    def ends(self) -> list[str]:
        """The nodes that depend on a placeholder and give what no other takes."""
        takers = self._takers()
        reached = [node.name for node in self.nodes.values() if node.op == "Placeholder" and takers.get(node.name)]
        seen = set(reached)
        for name in reached:
            reached += [taker for taker in takers.get(name, ()) if taker not in seen]
            seen.update(takers.get(name, ()))
        return [
            node.name
            for node in self.nodes.values()
            if node.name in seen and not takers.get(node.name) and not _NOT_OUTPUTS.fullmatch(node.op)
        ]

    def placeholders(self) -> tuple[Border, ...]:
        """The placeholders that `ends` depend on, in the order of the graph."""
        reached = {node.name for node in self.reached(self.ends())}
        return tuple(
            Border(node.name, node.dtype or "float32", self._shape(node))
            for node in self.nodes.values()
            if node.op == "Placeholder" and node.name in reached
        )

    def weights(self, nodes: Sequence[Node]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Type and shape of each constant and variable of ``nodes`` and what they call, where the shape is known."""
        waiting = [list(nodes)]
        seen = set[str]()
        while waiting:
            for node in waiting.pop():
                called = set(self._calls(node)) - seen
                seen |= called
                waiting += [list(self.functions.get(name, ())) for name in called]
                if node.op in VARIABLES or node.op == "Const":
                    shape = tuple(dim for dim in node.shape or () if dim is not None)
                    if node.dtype and node.shape is not None and len(shape) == len(node.shape):
                        yield node.dtype, shape

    def _takers(self) -> dict[str, list[str]]:
        takers: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for name in node.inputs:
                takers.setdefault(name, []).append(node.name)
        return takers

    def _shape(self, node: Node) -> tuple[int | None, ...] | None:
        return None if node.shape == () and self.version < _UNKNOWN_SCALARS else node.shape


@dataclass(frozen=True)
class Signature:
    inputs: tuple[Border, ...]
    outputs: tuple[Border, ...]
    tensors: tuple[str, ...]
    """Of the graph: what is given."""

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.inputs))} → {', '.join(map(str, self.outputs))}"


@dataclass
class Meta:
    """A ``MetaGraphDef``."""

    graph: Graph = field(default_factory=lambda: Graph({}, {}, 0))
    tags: list[str] = field(default_factory=list)
    version: str = ""
    """Of the TensorFlow that wrote it."""
    signatures: dict[str, Signature] = field(default_factory=dict)
    objects: bool = False
    """Whether it is of TensorFlow 2, which keeps the objects that own variables and functions."""


def saved(content: Buffer) -> list[Meta]:
    """The graphs of a ``SavedModel``. Raises ``WireError``."""
    return [_meta(content, each) for each in _messages(content, _whole(content)) if each.number == 2]


def meta(content: Buffer) -> Meta:
    """The graph in the ``.meta`` file of a checkpoint. Raises ``WireError``."""
    return _meta(content, _whole(content))


def frozen(content: Buffer) -> Graph:
    """A ``GraphDef``. Raises ``WireError``."""
    return _graph(content, _whole(content))


# ---- messages


def _meta(content: Buffer, place: Field) -> Meta:
    found = Meta()
    for each in _messages(content, place):
        if each.number == 1:
            for inner in _messages(content, each):
                if inner.number == 4:
                    found.tags.append(_text(content, inner))
                elif inner.number == 5:
                    found.version = _text(content, inner)
        elif each.number == 2:
            found.graph = _graph(content, each)
        elif each.number == 5:
            name, value = _entry(content, each)
            if value is not None:
                found.signatures[name] = _signature(content, value)
        found.objects |= each.number == 7
    return found


def _signature(content: Buffer, place: Field) -> Signature:
    borders: dict[int, dict[str, Border]] = {1: {}, 2: {}}
    tensors = []
    for each in _messages(content, place):
        if each.number in borders:
            name, value = _entry(content, each)
            if value is None:
                continue
            tensor, dtype, shape = _tensor_info(content, value)
            borders[each.number][name] = Border(name, dtype or "unknown", shape)
            if each.number == 2:
                tensors.append(tensor)
    # By their names, as TensorFlow takes and gives them.
    inputs, outputs = (tuple(each[name] for name in sorted(each)) for each in (borders[1], borders[2]))
    return Signature(inputs, outputs, tuple(tensors))


def _tensor_info(content: Buffer, place: Field) -> tuple[str, str | None, tuple[int | None, ...] | None]:
    name, dtype, shape = "", None, None
    for each in fields(content, place.start, place.end):
        if each.number == 1 and each.wire == LENGTH:
            name = _text(content, each)
        elif each.number == 2:
            dtype = _type(each)
        elif each.number == 3 and each.wire == LENGTH:
            shape = _shape(content, each)
    return name, dtype, shape


def _graph(content: Buffer, place: Field) -> Graph:
    nodes: dict[str, Node] = {}
    functions: dict[str, tuple[Node, ...]] = {}
    version = 0
    for each in _messages(content, place):
        if each.number == 1:
            node = _node(content, each)
            nodes[node.name] = node
        elif each.number == 2:
            functions |= dict(_function(content, inner) for inner in _messages(content, each) if inner.number == 1)
        elif each.number == 4:
            version = next((inner.value for inner in fields(content, each.start, each.end) if inner.number == 1), 0)
    return Graph(nodes, functions, version)


def _function(content: Buffer, place: Field) -> tuple[str, tuple[Node, ...]]:
    name, nodes = "", []
    for each in _messages(content, place):
        if each.number == 1:
            name = next((_text(content, inner) for inner in _messages(content, each) if inner.number == 1), "")
        elif each.number == 3:
            nodes.append(_node(content, each))
    return name, tuple(nodes)


def _node(content: Buffer, place: Field) -> Node:
    texts = {1: "", 2: ""}
    inputs: list[str] = []
    calls: list[str] = []
    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None
    for each in _messages(content, place):
        if each.number in texts:
            texts[each.number] = _text(content, each)
        elif each.number == 3:
            name = _text(content, each)
            if not name.startswith("^"):
                inputs.append(name.partition(":")[0])
        elif each.number == 5:
            name, value = _entry(content, each)
            for inner in fields(content, value.start, value.end) if value else ():
                if inner.number == 6 and name == "dtype":
                    dtype = _type(inner)
                elif inner.number == 7 and name == "shape":
                    shape = _shape(content, inner)
                elif inner.number == 8 and name == "value":
                    shape = next((_shape(content, dims) for dims in _messages(content, inner) if dims.number == 2), ())
                elif inner.number in (1, 10) and inner.wire == LENGTH:
                    calls += _calls(content, inner)
    return Node(texts[1], texts[2], tuple(inputs), tuple(calls), dtype, shape)


def _calls(content: Buffer, place: Field) -> Iterator[str]:
    """The functions that a ``NameAttrList``, or a list of them, names."""
    lists = [each for each in _messages(content, place) if each.number == 9] if place.number == 1 else [place]
    for each in lists:
        yield from (_text(content, inner) for inner in _messages(content, each) if inner.number == 1)


def _shape(content: Buffer, place: Field) -> tuple[int | None, ...] | None:
    """A ``TensorShapeProto``; None where it says that nothing is known."""
    dims: list[int | None] = []
    for each in fields(content, place.start, place.end):
        if each.number == 3 and each.value:
            return None
        if each.number == 2 and each.wire == LENGTH:
            sizes = [signed(inner.value) for inner in fields(content, each.start, each.end) if inner.number == 1]
            size = sizes[-1] if sizes else 0
            dims.append(None if size < 0 else size)
    return tuple(dims)


def _type(place: Field) -> str | None:
    number = place.value % 100
    return _TYPES[number - 1] if 0 < number <= len(_TYPES) else None


def _entry(content: Buffer, place: Field) -> tuple[str, Field | None]:
    """Key and value of a map's entry."""
    key, value = "", None
    for each in _messages(content, place):
        if each.number == 1:
            key = _text(content, each)
        elif each.number == 2:
            value = each
    return key, value


def _messages(content: Buffer, place: Field) -> Iterator[Field]:
    return (each for each in fields(content, place.start, place.end) if each.wire == LENGTH)


def _text(content: Buffer, place: Field) -> str:
    return content[place.start : place.end].decode("utf-8", "replace")


def _whole(content: Buffer) -> Field:
    return Field(0, LENGTH, 0, len(content), 0)

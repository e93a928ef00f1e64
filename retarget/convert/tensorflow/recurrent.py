"""Loops of a recurrent layer → the operator of ONNX for it: GRU, RNN or LSTM.

tf2onnx does so for an LSTM of Keras and for some GRUs; the rest it leaves as loops, which many runtimes refuse, and
others run slowly. A loop is replaced where everything about it is proven: that it takes each step of one sequence once
and in order, that nothing but the states goes from step to step, and that a step is such a cell (see ``cells``).
A loop with a mask stays: ONNX has lengths, and nothing says that a mask is one. So does one with a hard sigmoid: ONNX
has such operators, and OpenVINO takes the loop alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Union

import numpy as np
import onnx
from onnx import numpy_helper

from retarget.convert.tensorflow import cells
from retarget.convert.tensorflow.cells import Cell, Source, UnknownCell

if TYPE_CHECKING:
    from typing import TypeAlias

    from onnx import GraphProto, ModelProto, NodeProto

    Array: TypeAlias = np.ndarray
    Length: TypeAlias = "tuple[str, int] | int"
    """A tensor and its axis, or a number."""

_SMALL = 1000
"""Bytes: what is larger is no shape, and not looked at for shapes."""

_FUNCTIONS = ("Sigmoid", "Tanh", "Relu")

_SAME_SIZES = ("Identity", "Cast", "ReverseSequence")

_TURNED = (-1, np.iinfo(np.int64).min, -1)
"""Start, end and step of a Slice that reverses an axis: see ``reverse``."""


def use_recurrent_operators(model: ModelProto) -> None:
    """Replace each loop of ``model`` that is a recurrent layer; all others stay as they are."""
    graph = model.graph
    replaced = False
    for loop in [node for node in graph.node if node.op_type == "Loop"]:
        outer = _Outer(model)
        try:
            nodes, weights = _Layer(loop, outer).operator()
        except UnknownCell:
            continue
        at = next(index for index, node in enumerate(graph.node) if node is loop or node.name == loop.name)
        before, after = list(graph.node)[:at], list(graph.node)[at + 1 :]
        del graph.node[:]
        graph.node.extend([*before, *nodes, *after])
        graph.initializer.extend(weights)
        replaced = True
    if replaced:
        _remove_unused(graph)


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _used(graph: GraphProto) -> set[str]:
    """Every name that is read in ``graph``, and in the graphs within."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for body in _bodies(node):
            names |= _used(body)
    return names


def _remove_unused(graph: GraphProto) -> None:
    """Nodes that counted steps, and weights that are in an operator now."""
    size = -1
    while size != len(graph.node):
        size, used = len(graph.node), _used(graph)
        kept = [node for node in graph.node if used.intersection(node.output)]
        del graph.node[:]
        graph.node.extend(kept)
    used = _used(graph)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]


def _attributes(node: NodeProto) -> dict[str, object]:
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


# ---- around the loop


@dataclass
class _Outer:
    """The graph that a loop stands in."""

    model: ModelProto
    constants: dict[str, onnx.TensorProto] = field(init=False)
    makers: dict[str, NodeProto] = field(init=False)
    sizes: Mapping[str, Sequence[int | None]] | None = None

    def __post_init__(self) -> None:
        self.constants = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.makers = {name: node for node in self.model.graph.node for name in node.output if name}

    def constant(self, name: str) -> Array | None:
        """The numbers called ``name``, where they are constant."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def axis(self, name: str, axis: int) -> Length:
        """What decides the size of ``name`` along ``axis``."""
        node = self.makers.get(name)
        if node is not None and node.op_type == "Transpose":
            return self.axis(node.input[0], list(_attributes(node)["perm"])[axis])  # type: ignore[call-overload]
        if node is not None and (node.op_type in _SAME_SIZES or self._reverses(node)):
            return self.axis(node.input[0], axis)
        return name, axis

    def length(self, name: str) -> Length:
        """What decides the number called ``name``. Raises ``UnknownCell``."""
        number = self.constant(name)
        if number is not None:
            if number.size != 1 or float(number.item()) != int(number.item()):
                raise UnknownCell
            return int(number.item())
        node = self.makers.get(name)
        if node is None:
            raise UnknownCell
        if node.op_type in ("Cast", "Squeeze", "Unsqueeze", "Identity"):
            return self.length(node.input[0])
        picked = {"Slice": 1, "Gather": 1}.get(node.op_type)
        at = None if picked is None else self.constant(node.input[picked])
        shape = self.makers.get(node.input[0])
        while shape is not None and shape.op_type in ("Cast", "Identity"):
            shape = self.makers.get(shape.input[0])
        if at is None or at.size != 1 or at.item() < 0 or shape is None or shape.op_type != "Shape" or shape.attribute:
            raise UnknownCell
        if node.op_type == "Slice" and not self._one(node, int(at.item())):
            raise UnknownCell
        return self.axis(shape.input[0], int(at.item()))

    def _reverses(self, node: NodeProto) -> bool:
        if node.op_type != "Slice" or len(node.input) != 5:
            return False
        given = (self.constant(node.input[at]) for at in (1, 2, 4))
        return all(value is not None and (value == turned).all() for value, turned in zip(given, _TURNED))

    def _one(self, node: NodeProto, start: int) -> bool:
        """Whether the Slice takes the one element at ``start``."""
        ends = self.constant(node.input[2])
        steps = self.constant(node.input[4]) if len(node.input) > 4 else np.ones(1)
        return ends is not None and steps is not None and ends.tolist() == [start + 1] and steps.tolist() == [1]

    def same(self, length: Length, other: Length) -> bool:
        """Whether two lengths are one."""
        return length == other or self._number(length) == self._number(other) is not None

    def _number(self, length: Length) -> int | None:
        if isinstance(length, int):
            return length
        if self.sizes is None:
            self.sizes = _sizes(self.model)
        sizes = self.sizes.get(length[0], ())
        return sizes[length[1]] if len(sizes) > length[1] else None


def _sizes(model: ModelProto) -> dict[str, list[int | None]]:
    """The sizes of tensors, as far as ONNX infers them, from a model without its weights."""
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.name = "sizes"
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < _SMALL:
            bare.graph.initializer.append(tensor)
        else:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            bare.graph.input.append(value)
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.input, *inferred.value_info)
    }


# ---- the loop

_COUNTER = "the number of the step"
_NEXT = "the number of the next step"
_Value = Union[cells.Vector, "Array"]


@dataclass
class _Layer:
    """A loop that may be a recurrent layer."""

    loop: NodeProto
    outer: _Outer

    def __post_init__(self) -> None:
        self.body = next(_bodies(self.loop))
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.body.initializer}
        self.makers = {name: node for node in self.body.node for name in node.output if name}
        self.values: dict[str, _Value] = {}
        self.sequence: str | None = None
        self.x = Source("x")
        takes = [value.name for value in self.body.input]
        gives = [value.name for value in self.body.output]
        count = len(takes) - 2
        if count < 0 or len(self.loop.input) != count + 2 or self.loop.input[0] == self.loop.input[1] == "":
            raise UnknownCell
        self.initial = dict(zip(takes[2:], self.loop.input[2:]))
        self.counters, self.kept, states = {takes[0]}, {}, []
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in self.body.input}
        for at, (name, result) in enumerate(zip(takes[2:], gives[1:])):
            if self._root(result) == name:
                self.kept[name] = self.initial[name]
            elif self._counts(name, result):
                self.counters.add(name)
            elif ranks[name] == 2:
                states.append((at, name, result))
            else:
                raise UnknownCell
        self.states = states
        self.takes_condition, self.condition = takes[1], gives[0]
        self.scans = list(enumerate(gives[1 + count :], count))

    def operator(self) -> tuple[list[NodeProto], list[onnx.TensorProto]]:
        """The nodes that stand for the loop, and their weights. Raises ``UnknownCell``."""
        sources = [Source(name) for _, name, _ in self.states]
        self.values.update((source.name, source) for source in sources)
        results = []
        for _, _, result in self.states:
            value = self._value(result)
            if isinstance(value, np.ndarray):
                raise UnknownCell
            results.append(value)
        cell, order = cells.find_cell(self.x, sources, results)
        self._check_steps()
        names = self._results(order)
        return self._nodes(cell, [self.initial[self.states[at][1]] for at in order], names)

    def _results(self, order: Sequence[int]) -> list[tuple[int, str]]:
        """Which output of the operator each output of the loop is that anything reads, and its name."""
        read = _used(self.outer.model.graph)
        hidden = self._root(self.states[order[0]][2])
        found = []
        for index, name in enumerate(self.loop.output):
            if name not in read:
                continue
            state = [place for place, at in enumerate(order) if self.states[at][0] == index]
            if state:
                found.append((1 + state[0], name))
            elif any(at == index and self._root(scan) == hidden for at, scan in self.scans):
                found.append((0, name))
            else:
                raise UnknownCell
        return found

    def _nodes(
        self, cell: Cell, initial: Sequence[str], results: Sequence[tuple[int, str]]
    ) -> tuple[list[NodeProto], list[onnx.TensorProto]]:
        name, hidden = self.loop.name, cell.hidden
        assert self.sequence is not None
        dtype = next(value.dtype for value in self.constants_used() if value.dtype.kind == "f" and value.ndim == 2)

        def weight(role: str, value: Array) -> onnx.TensorProto:
            return numpy_helper.from_array(np.ascontiguousarray(value), f"{name}_{role}")

        def flat(biases: Sequence[Array]) -> Array:
            return np.concatenate([np.broadcast_to(bias, (hidden,)) for bias in biases])

        biases = np.concatenate([flat(cell.input_biases), flat(cell.state_biases)])
        weights = [
            weight("W", np.concatenate([gate.T for gate in cell.inputs])[None].astype(dtype)),
            weight("R", np.concatenate([gate.T for gate in cell.states])[None].astype(dtype)),
            weight("B", biases[None].astype(dtype)),
            weight("first", np.array([0], np.int64)),
            weight("second", np.array([1], np.int64)),
        ]
        first, second = weights[3].name, weights[4].name
        given = [f"{name}_{role}" for role in ("h0", "c0")[: len(initial)]]
        nodes = [
            onnx.helper.make_node("Unsqueeze", [value, first], [made], made) for value, made in zip(initial, given)
        ]
        made = {index: f"{name}_Y{index}" for index, _ in results}
        operator = onnx.helper.make_node(
            cell.operator,
            [self.sequence, *(tensor.name for tensor in weights[:3]), "", *given],
            [made.get(index, "") for index in range(max(made, default=0) + 1)],
            f"{name}_{cell.operator}",
        )
        attributes: dict[str, int | list[str]] = {"hidden_size": hidden, "activations": list(cell.activations)}
        if cell.operator == "GRU":
            attributes["linear_before_reset"] = int(cell.reset_after)
        operator.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in attributes.items())
        nodes.append(operator)
        for at, (index, result) in enumerate(results):
            axis = first if index else second
            nodes.append(onnx.helper.make_node("Squeeze", [made[index], axis], [result], f"{name}_result_{at}"))
        return nodes, weights

    def constants_used(self) -> Iterator[Array]:
        """Matrices that the step multiplies with."""
        return (value for value in self.values.values() if isinstance(value, np.ndarray))

    # ---- how often it runs, and on what

    def _check_steps(self) -> None:
        """Raise ``UnknownCell`` unless the loop takes each step of the sequence."""
        if self.sequence is None:
            raise UnknownCell
        length = self.outer.axis(self.sequence, 0)
        most = self.loop.input[0]
        if most and not self.outer.same(self.outer.length(most), length):
            raise UnknownCell
        ends = [self._compared(node, length) for node in self._conjuncts(self.condition)]
        # The number of the step alone is less than all of them for one step too many.
        if not most and _NEXT not in ends:
            raise UnknownCell
        start = self.loop.input[1]
        if start:
            self._check_start(start, length)
        elif not most:
            raise UnknownCell

    def _check_start(self, name: str, length: Length) -> None:
        """The loop starts where there is a step."""
        constant = self.outer.constant(name)
        node = self.outer.makers.get(name)
        if constant is not None and constant.all():
            return
        if node is None or node.op_type not in ("And", "Less", "Identity"):
            raise UnknownCell
        if node.op_type != "Less":
            for value in node.input:
                self._check_start(value, length)
            return
        if self.outer.length(node.input[0]) != 0 or not self.outer.same(self.outer.length(node.input[1]), length):
            raise UnknownCell

    def _conjuncts(self, name: str) -> Iterator[NodeProto]:
        """What has to be true for the next step."""
        if name == self.takes_condition:
            return
        node = self.makers.get(name)
        if node is None:
            constant = self.constants.get(name)
            if constant is None or not constant.all():
                raise UnknownCell
        elif node.op_type in ("And", "Identity"):
            for value in node.input:
                yield from self._conjuncts(value)
        else:
            yield node

    def _compared(self, node: NodeProto, length: Length) -> str:
        """Which number is less than the ``length``."""
        if node.op_type != "Less" or not self.outer.same(self._length(node.input[1]), length):
            raise UnknownCell
        number = self._number(node.input[0])
        if number is None:
            raise UnknownCell
        return number

    def _length(self, name: str) -> Length:
        while name in self.makers and self.makers[name].op_type in ("Cast", "Identity"):
            name = self.makers[name].input[0]
        constant = self.constants.get(name)
        if constant is not None and constant.size == 1 and float(constant.item()) == int(constant.item()):
            return int(constant.item())
        if name in self.makers or name in self.counters:
            raise UnknownCell
        return self.outer.length(self.kept.get(name, name))

    def _number(self, name: str) -> str | None:
        """Whether ``name`` is the number of this step, or of the next one."""
        node = self.makers.get(name)
        while node is not None and node.op_type in ("Cast", "Identity"):
            name = node.input[0]
            node = self.makers.get(name)
        if name in self.counters:
            return _COUNTER
        if node is None or node.op_type != "Add":
            return None
        other = [value for value in node.input if self._number(value) != _COUNTER]
        one = self._constant(other[0]) if len(other) == 1 else None
        return _NEXT if one is not None and one.size == 1 and one.item() == 1 else None

    def _counts(self, name: str, result: str) -> bool:
        """Whether the state ``name`` is 0 at first, and then one more each time."""
        start = self.outer.constant(self.initial[name])
        if start is None or start.size != 1 or start.item() != 0 or start.dtype.kind not in "iu":
            return False
        node = self.makers.get(self._root(result))
        if node is None or node.op_type != "Add" or name not in node.input:
            return False
        one = self._constant(next((value for value in node.input if value != name), ""))
        return one is not None and one.size == 1 and one.item() == 1

    def _root(self, name: str) -> str:
        while name in self.makers and self.makers[name].op_type == "Identity":
            name = self.makers[name].input[0]
        return name

    def _constant(self, name: str) -> Array | None:
        found = self.constants.get(name)
        return found if found is not None else self.outer.constant(self.kept.get(name, name))

    # ---- what a step computes

    def _value(self, name: str) -> _Value:
        """What ``name`` is. Raises ``UnknownCell``."""
        if name not in self.values:
            node = self.makers.get(name)
            if node is None:
                constant = None if name in self.counters else self._constant(name)
                if constant is None:
                    raise UnknownCell
                self.values[name] = constant
            else:
                self._compute(node)
        return self.values[name]

    def _compute(self, node: NodeProto) -> None:
        if node.op_type == "Gather":
            self.values[node.output[0]] = self._step(node)
        elif node.op_type in ("Split", "Slice"):
            value = self._value(node.input[0])
            pieces = self._slices(node, value)
            for name, piece in zip(node.output, pieces):
                if isinstance(value, np.ndarray):
                    self.values[name] = value[piece]
                elif len(piece) != 2 or piece[0] != slice(None):
                    raise UnknownCell
                else:
                    self.values[name] = cells.columns(value, piece[1])
        else:
            arguments = [self._value(name) for name in node.input if name]
            if not arguments or len(node.output) != 1:
                raise UnknownCell
            self.values[node.output[0]] = _result(node, arguments)

    def _step(self, gather: NodeProto) -> Source:
        """One step of the sequence, which is the only one."""
        sequence = self.kept.get(gather.input[0], gather.input[0])
        inner = sequence in self.makers or sequence in self.initial
        if inner or _attributes(gather).get("axis", 0) != 0 or self._number(gather.input[1]) != _COUNTER:
            raise UnknownCell
        if self.sequence not in (None, sequence):
            raise UnknownCell
        self.sequence = sequence
        return self.x

    def _slices(self, node: NodeProto, value: _Value) -> list[tuple[slice, ...]]:
        """What each output of a Split or a Slice takes of ``value``. Raises ``UnknownCell``."""
        rank = value.ndim if isinstance(value, np.ndarray) else 2
        given = [self._constant(name) if name else None for name in node.input[1:]]
        if node.op_type == "Slice":
            if len(given) < 3 or any(each is None for each in given):
                raise UnknownCell
            cut = [slice(None)] * rank
            lists = [each.tolist() for each in given if each is not None]
            for start, end, axis, step in zip(lists[0], lists[1], lists[2], (lists[3:] or [[1] * rank])[0]):
                if start < 0 or end < 0 or step != 1:
                    raise UnknownCell
                whole = start == 0 and end >= np.iinfo(np.int32).max
                cut[axis] = slice(None) if whole else slice(start, end)
            return [tuple(cut)]
        axis = int(_attributes(node).get("axis", 0)) % rank  # type: ignore[call-overload]
        if given and given[0] is not None:
            sizes = given[0].tolist()
        else:
            total = value.shape[axis] if isinstance(value, np.ndarray) else cells.width(value)
            if total % len(node.output):
                raise UnknownCell
            sizes = [total // len(node.output)] * len(node.output)
        ends = np.cumsum(sizes).tolist()
        before = (slice(None),) * axis
        after = (slice(None),) * (rank - axis - 1)
        return [(*before, slice(end - size, end), *after) for size, end in zip(sizes, ends)]


def _result(node: NodeProto, arguments: Sequence[_Value]) -> _Value:
    """What ``node`` makes of ``arguments``, a vector for each sequence or constants. Raises ``UnknownCell``."""
    first, operator = arguments[0], node.op_type
    if operator == "Identity":
        return first
    if all(isinstance(value, np.ndarray) for value in arguments):
        return _constant_result(operator, [value for value in arguments if isinstance(value, np.ndarray)])
    if operator in _FUNCTIONS and not isinstance(first, np.ndarray):
        return cells.Activation(operator, first)
    if operator in ("Add", "Sub") and len(arguments) == 2:
        terms = [cells.constant(value) if isinstance(value, np.ndarray) else value for value in arguments]
        return cells.add(terms[0], terms[1] if operator == "Add" else cells.scale(terms[1], -1.0))
    if operator == "Mul" and len(arguments) == 2:
        return _product(arguments[0], arguments[1])
    if operator in ("MatMul", "Gemm") and not isinstance(first, np.ndarray):
        return _matrix_product(node, first, arguments[1:])
    raise UnknownCell


def _constant_result(operator: str, arguments: Sequence[Array]) -> Array:
    if operator == "Squeeze" and len(arguments) == 2:
        return np.squeeze(arguments[0], tuple(arguments[1].tolist()))
    raise UnknownCell


def _product(first: _Value, second: _Value) -> cells.Vector:
    if isinstance(first, np.ndarray):
        first, second = second, first
    if isinstance(first, np.ndarray):
        raise UnknownCell
    if isinstance(second, np.ndarray):
        if second.size != 1:
            raise UnknownCell
        return cells.scale(first, float(second.item()))
    return cells.Product((first, second))


def _matrix_product(node: NodeProto, vector: cells.Vector, others: Sequence[_Value]) -> cells.Vector:
    if not isinstance(others[0], np.ndarray):
        raise UnknownCell
    attributes = _attributes(node)
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
        raise UnknownCell
    result: cells.Vector = cells.multiply(vector, others[0].T if attributes.get("transB", 0) else others[0])
    for bias in others[1:]:
        result = cells.add(result, cells.constant(bias) if isinstance(bias, np.ndarray) else bias)
    return result

"""LSTM and RNN as the fused sequence kernels, GRU step by step.

The fused kernels keep their state from one call of the model to the next, in variables that they alone write: a model
that is called twice would go on where it ended, unless the user resets its variables. Here an operator in front of the
kernel writes the initial state into the variable, so every call begins anew. LiteRT 2.3 takes that with all of its
kernels where the operator is a CAST; what others write into a variable may be taken for constant, and then be written
once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets import tflite
from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.layout import Layout
from retarget.targets.tflite.program import Constant, Options, Tensor
from retarget.targets.tflite.values import Operand, Refusal, Value

if TYPE_CHECKING:
    from retarget.protocols import Array

FLOAT = np.dtype(np.float32)
FUSED = {"Tanh": "TANH", "Relu": "RELU"}
"""Activation functions of the RNN kernel."""


@dataclass(frozen=True)
class Layer:
    """One direction of a layer. Shapes are those of ONNX, without the axis of the directions."""

    call: Call
    index: int
    is_reversed: bool

    @property
    def batch_first(self) -> bool:
        return bool(self.call.attributes.get_int("layout", 0))

    @property
    def time(self) -> int:
        """The axis of the steps."""
        return 1 if self.batch_first else 0

    @property
    def size(self) -> int:
        return self.call.fixed(2, "the recurrence weight").shape[2]

    def source(self) -> Value:
        """The sequence in the order in which this direction reads it."""
        source = self.call.value(0)
        return self._turned(source) if self.is_reversed else source

    def result(self, sequence: Value) -> Value:
        """What the kernel gives, in the order of the steps."""
        return self._turned(sequence) if self.is_reversed else sequence

    def _turned(self, value: Value) -> Value:
        axes = self.call.ints([self.time])
        return self.call.emit("REVERSE_V2", [value, axes], value.shape, options=Options("ReverseV2Options"))

    def weight(self, operand: int, gate: int, gates: int) -> Tensor:
        """One gate's matrix of W or R."""
        whole = self.call.fixed(operand, "a weight")
        size, index = whole.shape[1] // gates, self.index

        def part(array: Array) -> Array:
            return np.ascontiguousarray(array[index, gate * size : (gate + 1) * size])

        made = whole.then(("gate", index, gate, gates), part, (size, whole.shape[2]))
        return self.call.lowering.constant(made)

    def biases(self, gates: int) -> tuple[Array, Array]:
        """Those of W and of R, each [gates, size]; zeros where there are none."""
        if not self.call.has(3):
            return (np.zeros((gates, self.size), np.float32),) * 2
        both = self.call.array(3, "the bias")[self.index].reshape(2, gates, self.size)
        return both[0], both[1]

    def constant(self, array: Array) -> Tensor:
        return self.call.lowering.constant(Constant.of(np.ascontiguousarray(array)))

    def initial(self, operand: int) -> Value:
        """The initial state, [batch, size]."""
        call = self.call
        if call.has(operand):
            return self._of_direction(call.value(operand))
        # Zeros for as many rows as the input has: no comparison of a number with itself is "less".
        source = call.value(0)
        one = [source.shape[0], 1, 1] if self.batch_first else [1, source.shape[1], 1]
        first = call.emit("SLICE", [source, call.ints([0, 0, 0]), call.ints(one)], one)
        rows = call.cast(call.emit("LESS", [first, first], one, np.bool_), "float32")
        column = call.reshape(rows, (max(one), 1) if 0 not in one else (0, 1))
        return call.binary("ADD", column, Constant.of(np.zeros((1, self.size), np.float32)))

    def _of_direction(self, state: Value) -> Value:
        call, axis = self.call, 1 if self.batch_first else 0
        shape = [*state.shape]
        shape[axis] = 1
        begin = [0, 0, 0]
        begin[axis] = self.index
        part = state
        if state.shape[axis] > 1:
            part = call.emit("SLICE", [state, call.ints(begin), call.ints(shape)], shape)
        return call.reshape(part, (state.shape[1 - axis], self.size))

    def variable(self, operand: int) -> Tensor:
        """State that begins as ``operand`` whenever the model is called."""
        begin = self.initial(operand)
        state = Tensor(begin.shape, FLOAT, is_variable=True)
        source = self.call.tensor(begin, layout=Layout.FIRST)
        self.call.lowering.add("CAST", (source,), state, Options("CastOptions"), self.call.node.name or "")
        return state

    def last(self, sequence: Value) -> Value:
        """The step that the kernel computed last, [batch, size]."""
        call = self.call
        begin = [0, 0, 0]
        begin[self.time] = sequence.shape[self.time] - 1
        shape = [*sequence.shape]
        shape[self.time] = 1
        step = call.emit("SLICE", [sequence, call.ints(begin), call.ints(shape)], shape)
        return call.reshape(step, (sequence.shape[1 - self.time], self.size))


def lstm(call: Call) -> list[Value | None]:
    _check(call, ["Sigmoid", "Tanh", "Tanh"])
    if call.attributes.get_int("input_forget", 0):
        raise Refusal("input_forget=1: the kernel has a forget gate of its own")
    layers = _layers(call)
    made = [_lstm(layer) for layer in layers]
    states = [_states(call, [each[index] for each in made]) if _is_used(call, index) else None for index in (1, 2)]
    return [_joined(call, layers, [each[0] for each in made]), *states]


def _lstm(layer: Layer) -> tuple[Value, Value, Value]:
    call, size = layer.call, layer.size
    source = layer.source()
    # ONNX has the gates in the order input, output, forget, cell; the kernel input, forget, cell, output.
    gates = (0, 2, 3, 1)
    bias = np.add(*layer.biases(4))
    peepholes: list[Tensor | None] = [None, None, None]
    if call.has(7):
        held = call.array(7, "the peephole weight")[layer.index].reshape(3, size)
        peepholes = [layer.constant(held[gate]) for gate in (0, 2, 1)]
    hidden, cell = layer.variable(5), layer.variable(6)
    inputs = [
        source,
        *(layer.weight(1, gate, 4) for gate in gates),
        *(layer.weight(2, gate, 4) for gate in gates),
        *peepholes,
        *(layer.constant(bias[gate]) for gate in gates),
        *(None, None),
        *(hidden, cell),
    ]
    options = Options(
        "UnidirectionalSequenceLSTMOptions",
        {"fusedActivationFunction": "TANH", "timeMajor": not layer.batch_first},
    )
    sequence = call.emit("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, (*source.shape[:2], size), options=options)
    last = layer.last(sequence)
    return layer.result(sequence), last, _after(call, cell, last)


def _after(call: Call, state: Tensor, last: Value) -> Value:
    """What ``state`` holds once ``last`` is computed: read next to it, or it might be read before."""
    shape = (last.shape[0], 2 * last.shape[1])
    both = call.emit("CONCATENATION", [state, last], shape, FLOAT, Options("ConcatenationOptions", {"axis": 1}))
    return call.emit("SLICE", [both, call.ints([0, 0]), call.ints(last.shape)], last.shape)


def rnn(call: Call) -> list[Value | None]:
    activations = call.attributes.get_strings("activations", ("Tanh",) * len(_directions(call)))
    for name in activations:
        if name not in FUSED:
            raise Refusal(f"activations={name}: the kernel has {', '.join(FUSED)}")
    _check(call, None)
    layers = _layers(call)
    made = []
    for layer, name in zip(layers, activations, strict=True):
        source, hidden = layer.source(), layer.variable(5)
        bias = layer.constant(np.add(*layer.biases(1))[0])
        options = Options(
            "SequenceRNNOptions", {"fusedActivationFunction": FUSED[name], "timeMajor": not layer.batch_first}
        )
        sequence = call.emit(
            "UNIDIRECTIONAL_SEQUENCE_RNN",
            [source, layer.weight(1, 0, 1), layer.weight(2, 0, 1), bias, hidden],
            (*source.shape[:2], layer.size),
            options=options,
        )
        made.append((layer.result(sequence), layer.last(sequence)))
    results: list[Value | None] = [_joined(call, layers, [each[0] for each in made])]
    results.append(_states(call, [each[1] for each in made]) if _is_used(call, 1) else None)
    return results


def gru(call: Call) -> list[Value | None]:
    """Step by step: there is no kernel. The products with the input are one for all steps."""
    _check(call, ["Sigmoid", "Tanh"])
    layers = _layers(call)
    steps = call.operand(0).shape[layers[0].time]
    options = call.lowering.job.options
    assert isinstance(options, tflite.Options)
    if steps > options.unroll:
        raise Refusal(
            f"{steps} steps: there is no kernel for it, and `unroll` lets {options.unroll} steps be written one by one"
        )
    made = [_gru(layer, steps) for layer in layers]
    results: list[Value | None] = [_joined(call, layers, [each[0] for each in made])]
    results.append(_states(call, [each[1] for each in made]) if _is_used(call, 1) else None)
    return results


def _gru(layer: Layer, steps: int) -> tuple[Value, Value]:
    call, size = layer.call, layer.size
    source = call.value(0)
    batch = source.shape[1 - layer.time]
    from_input, from_state = layer.biases(3)
    is_linear = bool(call.attributes.get_int("linear_before_reset", 0))
    # What is added outside of the reset gate's product is added once for all steps.
    early = np.add(from_input, np.multiply(from_state, np.array([[1], [1], [0 if is_linear else 1]], np.float32)))
    products = [
        _product(call, source, layer.weight(1, gate, 3), layer.constant(early[gate]), size) for gate in range(3)
    ]
    state = layer.initial(5)
    results: list[Value] = []
    for step in range(steps - 1, -1, -1) if layer.is_reversed else range(steps):
        update, reset, hidden = (_step(layer, product, step, (batch, size)) for product in products)
        update = call.unary("LOGISTIC", call.binary("ADD", update, _recurrent(layer, state, 0)))
        reset = call.unary("LOGISTIC", call.binary("ADD", reset, _recurrent(layer, state, 1)))
        if is_linear:
            turned = call.binary("MUL", reset, _recurrent(layer, state, 2, from_state[2]))
        else:
            turned = _recurrent(layer, call.binary("MUL", reset, state), 2)
        candidate = call.unary("TANH", call.binary("ADD", hidden, turned))
        # h' = (1 - z) * n + z * h = n + z * (h - n)
        state = call.binary("ADD", candidate, call.binary("MUL", update, call.binary("SUB", state, candidate)))
        results.append(call.reshape(state, (batch, 1, size) if layer.batch_first else (1, batch, size)))
    if layer.is_reversed:
        results.reverse()
    return _concatenated(call, results, layer.time), state


def _recurrent(layer: Layer, state: Value, gate: int, bias: Array | None = None) -> Value:
    added = None if bias is None else layer.constant(bias)
    return _product(layer.call, state, layer.weight(2, gate, 3), added, layer.size)


def _product(call: Call, left: Value, matrix: Tensor, bias: Tensor | None, size: int) -> Value:
    options = Options("FullyConnectedOptions", {"keepNumDims": left.rank != 2})
    return call.emit("FULLY_CONNECTED", [left, matrix, bias], (*left.shape[:-1], size), options=options)


def _step(layer: Layer, product: Value, step: int, shape: tuple[int, int]) -> Value:
    call = layer.call
    begin, sizes = [0, 0, 0], [*product.shape]
    begin[layer.time], sizes[layer.time] = step, 1
    return call.reshape(call.emit("SLICE", [product, call.ints(begin), call.ints(sizes)], sizes), shape)


def _directions(call: Call) -> tuple[bool, ...]:
    """Whether each direction reads from the end."""
    return {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[
        call.attributes.get_string("direction", "forward")
    ]


def _layers(call: Call) -> list[Layer]:
    return [Layer(call, index, is_reversed) for index, is_reversed in enumerate(_directions(call))]


def _check(call: Call, activations: Sequence[str] | None) -> None:
    """Raise ``Refusal`` for what neither a kernel nor the steps written here have."""
    attributes = call.attributes
    if "clip" in attributes:
        raise Refusal("clip: ONNX clips what goes into the gates, TFLite the cell")
    if activations is not None:
        given = list(attributes.get_strings("activations", ()))
        if given and given != [*activations] * len(_directions(call)):
            raise Refusal(f"activations={', '.join(given)}: it is written with {', '.join(activations)} alone")
    for name in ("activation_alpha", "activation_beta"):
        if attributes.get_floats(name, ()):
            raise Refusal(f"{name}: the functions have no such parameter here")
    if call.has(4):
        source = call.operand(0)
        steps = source.shape[1 if attributes.get_int("layout", 0) else 0]
        if any(length != steps for length in call.numbers(4, "the lengths of the sequences")):
            raise Refusal("sequences of several lengths: the kernels read all of them to the end")


def _is_used(call: Call, index: int) -> bool:
    outputs = call.node.outputs
    return index < len(outputs) and bool(outputs[index].name)


def _joined(call: Call, layers: Sequence[Layer], sequences: Sequence[Value]) -> Value | None:
    """Y of all directions."""
    if not _is_used(call, 0):
        return None
    axis = 2 if layers[0].batch_first else 1
    parts = [call.reshape(each, (*each.shape[:axis], 1, *each.shape[axis:])) for each in sequences]
    return _concatenated(call, parts, axis)


def _states(call: Call, states: Sequence[Value]) -> Value:
    """Y_h or Y_c of all directions."""
    axis = 1 if call.attributes.get_int("layout", 0) else 0
    parts = [call.reshape(each, (*each.shape[:axis], 1, *each.shape[axis:])) for each in states]
    return _concatenated(call, parts, axis)


def _concatenated(call: Call, parts: Sequence[Operand], axis: int) -> Value:
    if len(parts) == 1 and isinstance(parts[0], Value):
        return parts[0]
    shape = [*parts[0].shape]
    shape[axis] = sum(each.shape[axis] for each in parts)
    return call.emit("CONCATENATION", parts, shape, options=Options("ConcatenationOptions", {"axis": axis}))


OPS: Mapping[str, Op] = {
    "GRU": Op(gru),
    "LSTM": Op(lstm),
    "RNN": Op(rnn),
}

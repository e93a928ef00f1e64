"""LSTM, GRU and RNN: ncnn's layers where these compute just that, else step by step.

The layers see one sample, [steps, size]: the batch is rows. They have the activation functions that ONNX has by
default, no clip, no peepholes, whole sequences, and a GRU that resets behind the product (`linear_before_reset`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.targets.activations import numbers_of
from retarget.targets.ncnn.call import FLOATS, Call, Op
from retarget.targets.ncnn.ops.activation import clipped_line
from retarget.targets.ncnn.ops.elementwise import ABS, ADD, DIV, FROM, MUL, by_number, function, joined, mapped
from retarget.targets.ncnn.ops.matmul import linear
from retarget.targets.ncnn.ops.shape import transposed
from retarget.targets.ncnn.program import Blob, Weight
from retarget.targets.ncnn.values import Refusal, Result, Value

if TYPE_CHECKING:
    from retarget.protocols import Array

SIZE, WEIGHTS, DIRECTION, HIDDEN = 0, 1, 2, 3
"""Keys of the layers. HIDDEN is of an LSTM alone."""

_DIRECTIONS = {"forward": (0, (False,)), "reverse": (1, (True,)), "bidirectional": (2, (False, True))}
"""``DIRECTION`` of the layer, and of each direction whether it reads from the end."""

MOST_STEPS = 256
"""Steps that are written one by one: each is about a dozen layers."""

Step: TypeAlias = "Callable[[Blob, Sequence[Blob]], Sequence[Blob]]"
"""(what the input adds to the gates, state) -> the next state, what is shown first in it."""


@dataclass(frozen=True)
class _Recurrent:
    """One node. ``functions``: those of one direction where the node names none."""

    call: Call
    gates: int
    functions: Sequence[str]
    states: int

    @property
    def batch_first(self) -> bool:
        return bool(self.call.attributes.get_int("layout", 0))

    @property
    def direction(self) -> int:
        return _DIRECTIONS[self._named_direction][0]

    @property
    def reversals(self) -> tuple[bool, ...]:
        return _DIRECTIONS[self._named_direction][1]

    @property
    def _named_direction(self) -> str:
        return self.call.attributes.get_string("direction", "forward")

    @property
    def size(self) -> int:
        return self.call.shape(2)[2]

    @property
    def batch(self) -> int:
        return self.call.shape(0)[0 if self.batch_first else 1]

    @property
    def steps(self) -> int:
        return self.call.shape(0)[1 if self.batch_first else 0]

    @cached_property
    def source(self) -> Value:
        """[batch, steps, inputs], the batch as rows."""
        return self._by_sample(0)

    def _by_sample(self, operand: int) -> Value:
        value = self.call.value(operand)
        value = value if self.batch_first else transposed(self.call, value, (1, 0, 2))
        return self.call.with_rows(value, self.batch)

    def weight(self, operand: int, gates: Sequence[int]) -> Array:
        """W or R, [directions, gates * size, …], with the gates in the order in which ``gates`` names them."""
        array = self.call.array(operand, "a weight")
        count, _, width = array.shape
        return array.reshape(count, -1, self.size, width)[:, list(gates)].reshape(count, -1, width)

    def biases(self) -> tuple[Array, Array]:
        """Those of W and of R, each [directions, gates, size]; zeros where there are none."""
        shape = (len(self.reversals), 2, self.gates, self.size)
        array = self.call.array(3, "the bias").reshape(shape) if self.call.has(3) else np.zeros(shape, np.float32)
        return array[:, 0], array[:, 1]

    def state(self, operand: int) -> Blob | None:
        """An initial state, [directions, size] in each row; None where it is 0."""
        call = self.call
        if not call.has(operand) or (call.is_constant(operand) and not call.array(operand, "it").any()):
            return None
        return call.view(self._by_sample(operand), (len(self.reversals), self.size))

    def zeros(self) -> Blob:
        shape = (len(self.reversals), self.size)
        return self.call.lowering.memory(np.zeros(shape, np.float32), shape)

    # ---- what it is like

    @cached_property
    def lengths(self) -> list[int] | None:
        """How many steps of each sequence are read, if not all."""
        if not self.call.has(4):
            return None
        found = self.call.numbers(4, "how many steps of each sequence are read")
        return None if all(length == self.steps for length in found) else found

    @cached_property
    def named(self) -> list[tuple[str, Mapping[str, float]]]:
        """The functions of all directions and their parameters: numbers are given only for those that take some."""
        call = self.call
        names = list(call.attributes.get_strings("activations", ())) or list(self.functions) * len(self.reversals)
        if len(names) != len(self.functions) * len(self.reversals):
            count = len(self.functions) * len(self.reversals)
            raise Refusal(f"activations: there are {len(names)}, and {count} are needed")
        return [(name.lower(), numbers) for name, numbers in zip(names, numbers_of(call.node, names), strict=True)]

    @property
    def clip(self) -> float:
        return self.call.attributes.get_float("clip", 0.0)

    @property
    def is_plain(self) -> bool:
        """Whether ncnn's layer has its functions, and it reads all of every sequence."""
        names = [name.lower() for name in self.functions] * len(self.reversals)
        return [name for name, _ in self.named] == names and self.clip <= 0 and self.lengths is None

    # ---- results

    def results(self, sequence: Blob, states: Sequence[Blob]) -> list[Result]:
        """Y from [steps, directions * size] in each row, and the last states from [directions, size]."""
        batch, count = self.batch, len(self.reversals)
        whole = self._value(sequence, (batch, self.steps, count, self.size))
        made: list[Result] = [whole if self.batch_first else transposed(self.call, whole, (1, 2, 0, 3))]
        for blob, is_used in zip(states, self.call.outputs[1:], strict=False):
            value = self._value(blob, (batch, count, self.size))
            made.append(value if self.batch_first or not is_used else transposed(self.call, value, (1, 0, 2)))
        outputs = self.call.outputs
        return [each if outputs[index] else None for index, each in enumerate(made[: len(outputs)])]

    def _value(self, blob: Blob, shape: tuple[int, ...]) -> Value:
        return Value(shape, self.call.dtype(0), blob, blob.rows)

    # ---- in one

    def layer(self, kind: str, order: Sequence[int], bias: Array) -> list[Result]:
        """ncnn's layer ``kind`` with its gates as ``order`` has them of ONNX's, and its ``bias``."""
        call, count, size = self.call, len(self.reversals), self.size
        by_input, by_state = self.weight(1, order), self.weight(2, order)
        params = {SIZE: size, WEIGHTS: by_input.size, DIRECTION: self.direction}
        if kind == "LSTM":
            params[HIDDEN] = size
        bottoms = [call.view(self.source, (self.steps, call.shape(0)[2]))]
        initial = [self.state(operand) for operand in (5, 6)[: self.states]]
        if any(blob is not None for blob in initial):
            bottoms += [self.zeros() if blob is None else blob for blob in initial]
        dims = [(self.steps, count * size), *([(count, size)] * self.states if any(call.outputs[1:]) else [])]
        sequence, *states = call.add_many(kind, bottoms, dims, params, list(map(Weight, (by_input, bias, by_state))))
        return self.results(sequence, states)

    # ---- step by step

    def unrolled(self, make: Callable[[_Direction], Step], bias: Array) -> list[Result]:
        """``make``: of a direction, what one step does. ``bias``: what is added for each gate in front of it."""
        if self.steps > MOST_STEPS:
            raise Refusal(f"it has {self.steps} steps, and at most {MOST_STEPS} are written one by one")
        call, count, size = self.call, len(self.reversals), self.size
        weights = self.weight(1, range(self.gates))
        initial = [self.state(operand) or self.zeros() for operand in (5, 6)[: self.states]]
        begins = [self.parted(blob, [size] * count) for blob in initial]
        sequences, lasts = [], []
        for index, is_reversed in enumerate(self.reversals):
            products = linear(call, self.source, weights[index], bias[index].reshape(-1))
            steps = self.parted(
                call.view(products, (self.steps * self.gates * size,)), [self.gates * size] * self.steps
            )
            step = make(_Direction(self, index))
            shown, last = self._looped(steps, step, [begin[index] for begin in begins], is_reversed=is_reversed)
            sequences.append(call.lowering.reshaped(shown, (self.steps, size), call.node.name or ""))
            lasts.append(last)
        whole = self.side_by_side(sequences)
        return self.results(whole, [self.side_by_side(list(state)) for state in zip(*lasts, strict=True)])

    def _looped(
        self, products: Sequence[Blob], step: Step, begin: Sequence[Blob], *, is_reversed: bool
    ) -> tuple[Blob, Sequence[Blob]]:
        """What is shown at all steps, [steps * size], and the last state."""
        call = self.call
        shown: dict[int, Blob] = {}
        state = begin
        for at in reversed(range(self.steps)) if is_reversed else range(self.steps):
            after = step(products[at], state)
            shown[at] = after[0]
            if self.lengths is not None and any(length <= at for length in self.lengths):
                is_read = self._per_row([float(at < length) for length in self.lengths])
                is_over = by_number(call, FROM, is_read, 1.0)
                shown[at] = joined(call, MUL, after[0], is_read)
                after = [
                    joined(call, ADD, joined(call, MUL, new, is_read), joined(call, MUL, old, is_over))
                    for new, old in zip(after, state, strict=True)
                ]
            state = after
        if self.lengths is not None and not all(self.lengths):
            # Of a sequence of no step ONNX Runtime gives zeros, not what it would begin with.
            is_any = self._per_row([float(length > 0) for length in self.lengths])
            state = [joined(call, MUL, last, is_any) for last in state]
        rows = max(blob.rows for blob in shown.values())
        assert rows == self.batch, "what a step shows hangs on the input"
        parts = [shown[at] for at in range(self.steps)]
        return self.side_by_side(parts), state

    def _per_row(self, numbers: Sequence[float]) -> Blob:
        """A number for each sample."""
        call = self.call
        array = np.array(numbers, np.float32).reshape(-1, 1)
        blob = call.lowering.memory(array, (len(numbers), 1))
        value = Value((len(numbers), 1), array.dtype, blob)
        return call.view(call.with_rows(value, self.batch), (1,))

    def parted(self, blob: Blob, sizes: Sequence[int]) -> list[Blob]:
        """``blob`` in its order as vectors of ``sizes``."""
        flat = self.call.lowering.reshaped(blob, (sum(sizes),), self.call.node.name or "")
        if len(sizes) == 1:
            return [flat]
        return self.call.add_many("Slice", [flat], [(size,) for size in sizes], {0: list(sizes), 1: 0})

    def side_by_side(self, parts: Sequence[Blob]) -> Blob:
        """``parts`` along the last axis."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0].dims
        return self.call.add("Concat", parts, (*first[:-1], len(parts) * first[-1]), {0: len(first) - 1})


@dataclass(frozen=True)
class _Direction:
    """One direction of a node that is written step by step."""

    node: _Recurrent
    index: int

    @property
    def call(self) -> Call:
        return self.node.call

    def recurrent(self, state: Blob, gates: Sequence[int], bias: Array | None = None) -> Blob:
        """``state`` times R of ``gates``."""
        weight = self.node.weight(2, gates)[self.index]
        value = Value((state.rows, state.size), self.call.dtype(0), state, state.rows)
        return self.call.blob(linear(self.call, value, weight, None if bias is None else bias.reshape(-1)))

    def parted(self, blob: Blob) -> list[Blob]:
        return self.node.parted(blob, [self.node.size] * (blob.size // self.node.size))

    def activation(self, index: int) -> Callable[[Blob], Blob]:
        name, parameters = self.node.named[self.index * len(self.node.functions) + index]
        return lambda blob: activated(self.call, name, parameters, blob)

    def clipped(self, blob: Blob) -> Blob:
        bound = self.node.clip
        return mapped(self.call, "Clip", blob, {0: -bound, 1: bound}) if bound > 0 else blob

    def add(self, one: Blob, other: Blob) -> Blob:
        return joined(self.call, ADD, one, other)

    def mul(self, one: Blob, other: Blob) -> Blob:
        return joined(self.call, MUL, one, other)


def activated(call: Call, name: str, parameters: Mapping[str, float], blob: Blob) -> Blob:
    """The activation function ``name`` of `activations.DEFAULTS`."""
    alpha, beta = parameters.get("alpha", 0.0), parameters.get("beta", 0.0)
    if name == "affine":
        return by_number(call, ADD, by_number(call, MUL, blob, alpha), beta)
    if name == "scaledtanh":
        return by_number(call, MUL, mapped(call, "TanH", by_number(call, MUL, blob, beta)), alpha)
    if name == "softsign":
        return joined(call, DIV, blob, by_number(call, ADD, function(call, ABS, blob), 1.0))
    if name == "hardsigmoid":
        return clipped_line(call, blob, alpha, beta)
    layer, params = {
        "elu": ("ELU", {0: alpha}),
        "leakyrelu": ("ReLU", {0: alpha}),
        "relu": ("ReLU", {}),
        "sigmoid": ("Sigmoid", {}),
        "softplus": ("Softplus", {}),
        "tanh": ("TanH", {}),
    }[name]
    return mapped(call, layer, blob, params)


def lstm(call: Call) -> list[Result]:
    node = _Recurrent(call, 4, ["Sigmoid", "Tanh", "Tanh"], 2)
    by_input, by_state = node.biases()
    bias = np.add(by_input, by_state)
    is_bound = bool(call.attributes.get_int("input_forget", 0))
    if node.is_plain and not is_bound and not call.has(7):
        # ONNX has the gates in the order input, output, forget, cell; ncnn input, forget, output, cell.
        order = [0, 2, 1, 3]
        return node.layer("LSTM", order, bias[:, order])
    peepholes = call.array(7, "the peepholes").reshape(len(node.reversals), 3, node.size) if call.has(7) else None

    def make(of: _Direction) -> Step:
        gate, squash, show = (of.activation(index) for index in range(3))

        def seen(blob: Blob, memory: Blob, index: int) -> Blob:
            if peepholes is None:
                return of.clipped(blob)
            weight = call.lowering.memory(peepholes[of.index, index], (node.size,))
            return of.clipped(of.add(blob, of.mul(memory, weight)))

        def step(product: Blob, state: Sequence[Blob]) -> Sequence[Blob]:
            shown, memory = state
            parts = of.parted(of.add(product, of.recurrent(shown, range(4))))
            to_input, to_output, to_forget, to_cell = parts
            entry = gate(seen(to_input, memory, 0))
            kept = by_number(call, FROM, entry, 1.0) if is_bound else gate(seen(to_forget, memory, 2))
            after = of.add(of.mul(kept, memory), of.mul(entry, squash(of.clipped(to_cell))))
            return [of.mul(gate(seen(to_output, after, 1)), show(after)), after]

        return step

    return node.unrolled(make, bias)


def gru(call: Call) -> list[Result]:
    node = _Recurrent(call, 3, ["Sigmoid", "Tanh"], 1)
    by_input, by_state = node.biases()
    is_linear = bool(call.attributes.get_int("linear_before_reset", 0))
    if node.is_plain and is_linear:
        # ONNX has the gates in the order update, reset, new; ncnn reset, update, new, and its last bias is reset.
        both = np.add(by_input, by_state)
        return node.layer("GRU", [1, 0, 2], np.stack([both[:, 1], both[:, 0], by_input[:, 2], by_state[:, 2]], 1))
    # What is added outside of the reset gate's product is added once for all steps.
    is_late = np.array([[False], [False], [is_linear]])
    early, late = (
        np.where(is_late, by_input, np.add(by_input, by_state)),
        np.where(is_late, by_state, 0).astype(np.float32),
    )

    def make(of: _Direction) -> Step:
        gate, squash = of.activation(0), of.activation(1)

        def step(product: Blob, state: Sequence[Blob]) -> Sequence[Blob]:
            (shown,) = state
            update, reset, new = of.parted(product)
            if is_linear:
                to_update, to_reset, to_new = of.parted(of.recurrent(shown, range(3), late[of.index]))
            else:
                to_update, to_reset = of.parted(of.recurrent(shown, range(2)))
            update = gate(of.clipped(of.add(update, to_update)))
            reset = gate(of.clipped(of.add(reset, to_reset)))
            turned = of.mul(reset, to_new) if is_linear else of.recurrent(of.mul(reset, shown), [2])
            candidate = squash(of.clipped(of.add(new, turned)))
            # h' = (1 - z) * n + z * h
            kept = of.mul(by_number(call, FROM, update, 1.0), candidate)
            return [of.add(kept, of.mul(update, shown))]

        return step

    return node.unrolled(make, early)


def rnn(call: Call) -> list[Result]:
    node = _Recurrent(call, 1, ["Tanh"], 1)
    bias = np.add(*node.biases())
    if node.is_plain:
        return node.layer("RNN", [0], bias)

    def make(of: _Direction) -> Step:
        squash = of.activation(0)
        return lambda product, state: [squash(of.clipped(of.add(product, of.recurrent(state[0], [0]))))]

    return node.unrolled(make, bias)


OPS: Mapping[str, Op] = {
    "GRU": Op(gru, FLOATS),
    "LSTM": Op(lstm, FLOATS),
    "RNN": Op(rnn, FLOATS),
}

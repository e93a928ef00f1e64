"""LSTM and RNN as MIL's operators where these compute just that, else a loop over the steps; GRU is always a loop.

MIL's own `gru` resets before the product with the weights, where exporters write the other order, and coremltools'
tests say that it is wrong from the second of a batch on; coremltools' PyTorch frontend writes a loop like this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.targets.activations import numbers_of
from retarget.targets.coreml.call import FLOATS, Call, Op
from retarget.targets.coreml.compressed import expanded
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.parts import concatenated, known, part, transposed, unknown
from retarget.targets.coreml.values import Codes, Refusal, Result

if TYPE_CHECKING:
    from retarget.protocols import Array

Activation: TypeAlias = "Callable[[Var], Var]"

Cell: TypeAlias = "Callable[[Var, Sequence[Var]], Sequence[Var]]"
"""(what the input adds to the gates [batch, gates * size], state) -> the next state, what is shown first in it."""

_FUNCTIONS: Mapping[str, str] = {
    "affine": "linear_activation",
    "elu": "elu",
    "hardsigmoid": "sigmoid_hard",
    "leakyrelu": "leaky_relu",
    "relu": "relu",
    "scaledtanh": "scaled_tanh",
    "sigmoid": "sigmoid",
    "softplus": "softplus",
    "softsign": "softsign",
    "tanh": "tanh",
}
"""ONNX's functions → MIL's."""

_FUSED_SINCE = 17
"""The first iOS whose operators take float16."""


@dataclass(frozen=True)
class _Layer:
    """One direction of a layer. Shapes have the steps in front, and no axis of the directions."""

    call: Call
    index: int
    is_reversed: bool
    functions: Sequence[str]
    """Its activation functions, as MIL has them with their parameters: see ``activation``."""
    parameters: Sequence[Mapping[str, float]]

    @cached_property
    def source(self) -> Var:
        """[steps, batch, inputs]"""
        source = self.call.var(0)
        return transposed(self.call, source, (1, 0, 2)) if _is_batch_first(self.call) else source

    @cached_property
    def size(self) -> int:
        return self.call.sizes(2, [2])[0]

    @property
    def batch(self) -> int | None:
        """None: it is open."""
        return known(self.source.shape[1])

    def weight(self, operand: int) -> Array:
        """This direction's rows of W, R, B or P."""
        whole = self.call.operand(operand)
        array = expanded(whole) if isinstance(whole, Codes) else self.call.array(operand, "a weight")
        return np.ascontiguousarray(array[self.index])

    def biases(self, gates: int) -> tuple[Array, Array]:
        """Those of W and of R, each [gates, size]; zeros where there are none."""
        if not self.call.has(3):
            return (np.zeros((gates, self.size), self.call.dtype(0)),) * 2
        both = self.weight(3).reshape(2, gates, self.size)
        return both[0], both[1]

    def initial(self, operand: int) -> Var:
        """The initial state, [batch, size]."""
        call = self.call
        if call.has(operand):
            axis = 1 if _is_batch_first(call) else 0
            mine = part(call, call.var(operand), axis, slice(self.index, self.index + 1))
            return call.mil.squeeze(x=mine, axes=[axis])
        if self.batch is not None:
            return call.mil.const(val=np.zeros((self.batch, self.size), call.dtype(0)))
        rows = call.mil.slice_by_index(x=call.mil.shape(x=self.source), begin=[1], end=[2])
        return call.mil.fill(shape=call.mil.concat(values=[rows, np.array([self.size], np.int32)], axis=0), value=0.0)

    def activation(self, index: int) -> Activation:
        name, parameters, call = self.functions[index], self.parameters[index], self.call
        return lambda x: getattr(call.mil, name)(x=x, **parameters)

    def clipped(self, x: Var) -> Var:
        bound = self.call.attributes.get_float("clip", 0.0)
        return self.call.mil.clip(x=x, alpha=-bound, beta=bound) if bound > 0 else x

    # ---- in one

    def turned(self, sequence: Var) -> Var:
        """A sequence in the order in which this direction reads it, or back."""
        return self.call.mil.reverse(x=sequence, axes=[0]) if self.is_reversed else sequence

    def fused(self, name: str, weights: Mapping[str, Array], states: Mapping[str, Var]) -> Sequence[Var]:
        """MIL's operator ``name``: the sequence, and the last states."""
        call = self.call
        source = self.turned(self.source)
        is_half = call.dtype(0) == np.float16 and call.ios < _FUSED_SINCE
        if is_half:
            source = call.mil.cast(x=source, dtype="fp32")
            states = {key: call.mil.cast(x=state, dtype="fp32") for key, state in states.items()}
            weights = {key: weight.astype(np.float32) for key, weight in weights.items()}
        sequence, *last = getattr(call.mil, name)(x=source, **states, **weights, output_sequence=True)
        made = [self.turned(sequence), *last]
        return [call.mil.cast(x=each, dtype="fp16") for each in made] if is_half else made

    # ---- step by step

    def looped(self, products: Var, cell: Cell, states: Sequence[Var]) -> Sequence[Var]:
        """The sequence and the last states of a loop. ``products``: what the input adds to the gates, of all steps."""
        call = self.call
        count = call.mil.slice_by_index(x=call.mil.shape(x=products), begin=[0], end=[1])
        final = call.mil.sub(x=count, y=1)
        lengths = call.var(4) if _has_lengths(call) else None

        def goes_on(step: Var, *_: Var) -> Var:
            return call.mil.less(x=step, y=count)

        def body(step: Var, sequence: Var, *state: Var) -> Sequence[Var]:
            at = call.mil.sub(x=final, y=step) if self.is_reversed else step
            product = call.mil.squeeze(x=call.mil.gather(x=products, indices=at, axis=0), axes=[0])
            after = cell(product, state)
            shown = after[0]
            if lengths is not None:
                is_read = call.mil.expand_dims(x=call.mil.less(x=at, y=lengths), axes=[1])
                shown = call.mil.select(cond=is_read, a=shown, b=0.0)
                after = [call.mil.select(cond=is_read, a=new, b=old) for new, old in zip(after, state, strict=True)]
            row = call.mil.expand_dims(x=shown, axes=[0])
            written = call.mil.scatter(data=sequence, indices=at, updates=row, axis=0, mode="update")
            return [call.mil.add(x=step, y=1), written, *after]

        # Every step of it is written: what it begins as is only of the right shape.
        sequence = part(call, products, 2, slice(0, self.size))
        begin = [unknown(call, value) for value in (call.mil.const(val=np.array([0], np.int32)), sequence, *states)]
        made: Sequence[Var]
        _, *made = call.mil.while_loop(_cond=goes_on, _body=body, loop_vars=tuple(begin))
        if lengths is None:
            return made
        # Of a sequence of no step ONNX Runtime gives zeros, not what it would begin with.
        is_any = call.mil.expand_dims(x=call.mil.greater(x=lengths, y=0), axes=[1])
        return [made[0], *(call.mil.select(cond=is_any, a=last, b=0.0) for last in made[1:])]


def lstm(call: Call) -> list[Result]:
    return _run(call, ["Sigmoid", "Tanh", "Tanh"], _lstm)


def _lstm(layer: _Layer) -> Sequence[Var]:
    call, attributes = layer.call, layer.call.attributes
    hidden, cell = layer.initial(5), layer.initial(6)
    # ONNX has the gates in the order input, output, forget, cell; MIL input, forget, output, cell.
    order = [0, 2, 1, 3]
    weights = {name: _ordered(layer.weight(operand), order) for name, operand in (("weight_ih", 1), ("weight_hh", 2))}
    bias = np.add(*layer.biases(4))[order].reshape(-1)
    peephole = _ordered(layer.weight(7), [0, 2, 1]) if call.has(7) else None
    is_plain = list(layer.functions) == ["sigmoid", "tanh", "tanh"] and not _is_clipped(call)
    if is_plain and not attributes.get_int("input_forget", 0) and not _has_lengths(call):
        more = {"bias": bias} if peephole is None else {"bias": bias, "peephole": peephole}
        return layer.fused("lstm", weights | more, {"initial_h": hidden, "initial_c": cell})
    mil, (gate, squash, show) = call.mil, (layer.activation(index) for index in range(3))
    peepholes = [None] * 3 if peephole is None else np.split(peephole, 3)

    def seen(x: Var, memory: Var, weight: Array | None) -> Var:
        return layer.clipped(x if weight is None else mil.add(x=x, y=mil.mul(x=memory, y=weight)))

    def step(product: Var, state: Sequence[Var]) -> Sequence[Var]:
        shown, memory = state
        gates = mil.add(x=product, y=mil.linear(x=shown, weight=weights["weight_hh"]))
        to_input, to_forget, to_output, to_cell = mil.split(x=gates, num_splits=4, axis=1)
        entry = gate(seen(to_input, memory, peepholes[0]))
        if attributes.get_int("input_forget", 0):
            kept = mil.sub(x=1.0, y=entry)
        else:
            kept = gate(seen(to_forget, memory, peepholes[1]))
        new = mil.mul(x=entry, y=squash(layer.clipped(to_cell)))
        memory = mil.add(x=mil.mul(x=kept, y=memory), y=new)
        return [mil.mul(x=gate(seen(to_output, memory, peepholes[2])), y=show(memory)), memory]

    return layer.looped(mil.linear(x=layer.source, weight=weights["weight_ih"], bias=bias), step, [hidden, cell])


def rnn(call: Call) -> list[Result]:
    return _run(call, ["Tanh"], _rnn)


def _rnn(layer: _Layer) -> Sequence[Var]:
    call, state = layer.call, layer.initial(5)
    weights, bias = {"weight_ih": layer.weight(1), "weight_hh": layer.weight(2)}, np.add(*layer.biases(1))[0]
    if layer.functions[0] == "tanh" and not _is_clipped(call) and not _has_lengths(call):
        return layer.fused("rnn", weights | {"bias": bias}, {"initial_h": state})

    def step(product: Var, states: Sequence[Var]) -> Sequence[Var]:
        recurrent = call.mil.linear(x=states[0], weight=weights["weight_hh"])
        return [layer.activation(0)(layer.clipped(call.mil.add(x=product, y=recurrent)))]

    return layer.looped(call.mil.linear(x=layer.source, weight=weights["weight_ih"], bias=bias), step, [state])


def gru(call: Call) -> list[Result]:
    return _run(call, ["Sigmoid", "Tanh"], _gru)


def _gru(layer: _Layer) -> Sequence[Var]:
    call, mil, size = layer.call, layer.call.mil, layer.size
    is_linear = bool(call.attributes.get_int("linear_before_reset", 0))
    gate, squash = layer.activation(0), layer.activation(1)
    recurrent = layer.weight(2)
    by_input, by_state = layer.biases(3)
    # What is added outside of the reset gate's product is added once for all steps.
    is_late = np.array([[False], [False], [is_linear]])
    early, late = np.where(is_late, by_input, np.add(by_input, by_state)), np.where(is_late, by_state, 0)

    def step(product: Var, state: Sequence[Var]) -> Sequence[Var]:
        update, reset, new = mil.split(x=product, num_splits=3, axis=1)
        if is_linear:
            recalled = mil.linear(x=state[0], weight=recurrent, bias=late.astype(by_state.dtype).reshape(-1))
            to_update, to_reset, to_new = mil.split(x=recalled, num_splits=3, axis=1)
        else:
            recalled = mil.linear(x=state[0], weight=recurrent[: 2 * size])
            to_update, to_reset = mil.split(x=recalled, num_splits=2, axis=1)
        update = gate(layer.clipped(mil.add(x=update, y=to_update)))
        reset = gate(layer.clipped(mil.add(x=reset, y=to_reset)))
        if is_linear:
            turned = mil.mul(x=reset, y=to_new)
        else:
            turned = mil.linear(x=mil.mul(x=reset, y=state[0]), weight=recurrent[2 * size :])
        candidate = squash(layer.clipped(mil.add(x=new, y=turned)))
        # h' = (1 - z) * n + z * h = n + z * (h - n)
        return [mil.add(x=candidate, y=mil.mul(x=update, y=mil.sub(x=state[0], y=candidate)))]

    products = mil.linear(x=layer.source, weight=layer.weight(1), bias=early.reshape(-1))
    return layer.looped(products, step, [layer.initial(5)])


def _run(call: Call, functions: Sequence[str], write: Callable[[_Layer], Sequence[Var]]) -> list[Result]:
    """Y, Y_h and of an LSTM Y_c, of all directions. ``functions``: those of one direction if the node names none."""
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[
        call.attributes.get_string("direction", "forward")
    ]
    count = len(functions)
    named = _named(call, list(call.attributes.get_strings("activations", ())) or list(functions) * len(directions))
    if len(named) != count * len(directions):
        raise Refusal(f"activations: there are {len(named)}, and {count * len(directions)} are needed")
    made = []
    for index, is_reversed in enumerate(directions):
        mine = named[index * count : (index + 1) * count]
        layer = _Layer(call, index, is_reversed, [name for name, _ in mine], [parameters for _, parameters in mine])
        made.append(write(layer))
    sequence, *states = zip(*made, strict=True)
    axis = 1 if _is_batch_first(call) else 0
    whole = _stacked(call, sequence, 1)
    return [
        transposed(call, whole, (2, 0, 1, 3)) if _is_batch_first(call) else whole,
        *(_stacked(call, state, axis) for state in states),
    ]


def _named(call: Call, names: Sequence[str]) -> list[tuple[str, Mapping[str, float]]]:
    """MIL's functions and their parameters."""
    for name in names:
        if name.lower() not in _FUNCTIONS:
            raise Refusal(f"activations={name}: MIL has no such function")
    functions = [_FUNCTIONS[name.lower()] for name in names]
    return list(zip(functions, numbers_of(call.node, names), strict=True))


def _ordered(rows: Array, order: Sequence[int]) -> Array:
    """``rows`` with the parts of each gate in another order."""
    return np.concatenate([np.split(rows, len(order))[gate] for gate in order])


def _stacked(call: Call, values: Sequence[Var], axis: int) -> Var:
    """``values`` with an axis of the directions."""
    return concatenated(call, [call.mil.expand_dims(x=value, axes=[axis]) for value in values], axis)


def _is_batch_first(call: Call) -> bool:
    return bool(call.attributes.get_int("layout", 0))


def _is_clipped(call: Call) -> bool:
    return call.attributes.get_float("clip", 0.0) > 0


def _has_lengths(call: Call) -> bool:
    """Whether sequences may end early."""
    if not call.has(4):
        return False
    steps = known(call.shape(0)[1 if _is_batch_first(call) else 0])
    return not call.is_constant(4) or any(length != steps for length in call.numbers(4, "the lengths"))


OPS: Mapping[str, Op] = {
    "GRU": Op(gru, FLOATS),
    "LSTM": Op(lstm, FLOATS),
    "RNN": Op(rnn, FLOATS),
}

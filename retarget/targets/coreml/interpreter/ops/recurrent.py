"""Recurrent layers over sequences [steps, batch, features]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, OpFunction, Tensor

Activation: TypeAlias = "Callable[[Tensor], Tensor]"


def rnn(call: Call) -> tuple[Tensor, Tensor]:
    activation = _activation(call, "activation", "tanh")
    recurrent, h = call.array("weight_hh").T, call.array("initial_h")
    states = []
    for x in _inputs(call, _ordered(call)):
        h = activation(x + h @ recurrent)
        states.append(h)
    return _sequence(call, states), h


def gru(call: Call) -> tuple[Tensor, Tensor]:
    """Resets what is remembered before it is multiplied with the weights.

    The docstring's formula reads as if it was multiplied first; coremltools' tests, which run on devices, do not.
    """
    recurrent_activation = _activation(call, "recurrent_activation", "sigmoid")
    activation = _activation(call, "activation", "tanh")
    # Rows: reset gate, what is new, update gate.
    to_reset, to_new, to_update = (part.T for part in np.split(call.array("weight_hh"), 3))
    h = call.array("initial_h")
    states: list[Tensor] = []
    for x in _inputs(call, _ordered(call)):
        x_reset, x_new, x_update = np.split(x, 3, axis=1)
        reset = recurrent_activation(x_reset + h @ to_reset)
        update = recurrent_activation(x_update + h @ to_update)
        h = (1 - update) * activation(x_new + (reset * h) @ to_new) + update * h
        states.append(h)
    return _sequence(call, states), h


def lstm(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    x, h, c = call.array("x"), call.array("initial_h"), call.array("initial_c")
    if call.text("direction", "forward") != "bidirectional":
        states, c = _lstm(call, _ordered(call), h, c, "")
        return _sequence(call, states), states[-1], c
    (ahead_h, back_h), (ahead_c, back_c) = np.split(h, 2, axis=1), np.split(c, 2, axis=1)
    ahead, ahead_c = _lstm(call, x, ahead_h, ahead_c, "")
    back, back_c = _lstm(call, x[::-1], back_h, back_c, "_back")
    last = np.concatenate([ahead[-1], back[-1]], axis=1)
    if call.flag("output_sequence", False):
        # Both in the order of the inputs, unlike the one that goes back alone.
        sequence = np.concatenate([np.stack(ahead), np.stack(back)[::-1]], axis=2)
    else:
        sequence = last[None]
    return sequence, last, np.concatenate([ahead_c, back_c], axis=1)


def _lstm(call: Call, x: Tensor, h: Tensor, c: Tensor, suffix: str) -> tuple[list[Tensor], Tensor]:
    """What each step gives, and what the last one remembers."""
    gate = _activation(call, "recurrent_activation", "sigmoid")
    cell, activation = _activation(call, "cell_activation", "tanh"), _activation(call, "activation", "tanh")
    recurrent = call.array("weight_hh" + suffix).T
    peephole = call.optional("peephole" + suffix)
    by_input, by_forget, by_output = (0, 0, 0) if peephole is None else np.split(peephole, 3)
    bound = call.number("clip") if call.has("clip") else None
    states: list[Tensor] = []
    for each in _inputs(call, x, suffix):
        to_input, to_forget, to_output, to_cell = np.split(each + h @ recurrent, 4, axis=1)
        kept = gate(to_forget + c * by_forget) * c
        c = kept + gate(to_input + c * by_input) * cell(to_cell)
        if bound is not None:
            c = np.clip(c, np.float32(-bound), np.float32(bound))
        h = gate(to_output + c * by_output) * activation(c)
        states.append(h)
    return states, c


def _ordered(call: Call) -> Tensor:
    """The sequence in the order that it is gone through, which is also the order of what comes out."""
    x, direction = call.array("x"), call.text("direction", "forward")
    if direction not in ("forward", "reverse"):
        raise NotInterpreted(f"direction '{direction}'")
    return x if direction == "forward" else x[::-1]


def _inputs(call: Call, x: Tensor, suffix: str = "") -> Tensor:
    """What the inputs add to the gates, of all steps at once."""
    bias = call.optional("bias" + suffix)
    result = x @ call.array("weight_ih" + suffix).T
    return result if bias is None else np.asarray(result + bias)


def _sequence(call: Call, states: list[Tensor]) -> Tensor:
    return np.stack(states if call.flag("output_sequence", False) else states[-1:])


def _activation(call: Call, name: str, default: str) -> Activation:
    word = call.text(name, default).lower()
    if word not in ACTIVATIONS:
        raise NotInterpreted(f"{name} '{word}'")
    return ACTIVATIONS[word]


def _sigmoid(x: Tensor) -> Tensor:
    return np.asarray(1 / (1 + np.exp(-x)))


def _sigmoid_hard(x: Tensor) -> Tensor:
    line: Tensor = np.float32(0.2) * x + np.float32(0.5)
    return np.clip(line, 0, 1)


ACTIVATIONS: Mapping[str, Activation] = {
    "tanh": np.tanh,
    "scaled_tanh": np.tanh,
    "sigmoid": _sigmoid,
    "hard_sigmoid": _sigmoid_hard,
    "sigmoid_hard": _sigmoid_hard,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
}
"""By their names in MIL. Those that scale have no parameters here: they are what they are without them."""

OPS: Mapping[str, OpFunction] = {"rnn": rnn, "gru": gru, "lstm": lstm}

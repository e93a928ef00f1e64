"""LSTM and RNN (``recurrent_layer``, ``lstm_layer``, ``lstm_unit_layer``, ``rnn_layer``).

Inputs are x [T, N, ...], cont [T, N], then a static input [N, ...] if there is one, then with ``expose_hidden`` the
first states [1, N, H]; tops are the outputs [T, N, H], then with ``expose_hidden`` the last states. Where cont is 0 a
sequence begins and what was before is forgotten. Without ``expose_hidden`` Caffe keeps the state from one call to the
next; here each call begins anew, as its first does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retarget.convert.caffe.net import Blob, Layer
from retarget.convert.caffe.reference.activation import logistic
from retarget.convert.caffe.reference.checks import Wide, narrow, positive, shaped, show, weights, wide, wrong


@dataclass(frozen=True)
class _Sequences:
    """What both layers begin with."""

    hidden: int
    x: Wide
    """[T, N, K]."""
    cont: Wide
    """[T, N, 1]."""
    static: Wide | None
    """[N, K']."""
    states: list[Wide]
    """[N, H] each."""
    exposed: bool


def lstm(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Weights W_xc, b_c, W_xc_static for a static input, W_hc; the gates are input, forget, output, new."""
    given = _read(layer, inputs, states=2, gates=4)
    hidden = given.hidden
    driven = _driven(layer, given, 4 * hidden)
    back = shaped(layer, weights(layer, 4 if given.static is not None else 3)[-1], (4 * hidden, hidden), "weights")
    state, cell = given.states
    tops = []
    for now, cont in zip(driven, given.cont, strict=True):
        gates = now + (cont * state) @ back.T
        take, keep, give = (logistic(part) for part in np.split(gates[:, : 3 * hidden], 3, axis=1))
        cell = cont * keep * cell + take * np.tanh(gates[:, 3 * hidden :])
        state = give * np.tanh(cell)
        tops.append(state)
    return _tops(given, tops, [state, cell])


def lstm_unit(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """One step of an LSTM: the next cell and its output, from the cell [1, N, H], gates [1, N, 4 H] and cont [1, N]."""
    cell, gates, cont = inputs
    if cell.ndim != 3 or gates.shape != (*cell.shape[:2], 4 * cell.shape[2]) or cont.shape != cell.shape[:2]:
        shapes = " and ".join(show(blob.shape) for blob in inputs)
        raise wrong(layer, f"takes [1,N,H], [1,N,4H] and [1,N], not {shapes}")
    take, keep, give, new = np.split(wide(gates), 4, axis=2)
    found = wide(cont)[..., None] * logistic(keep) * wide(cell) + logistic(take) * np.tanh(new)
    return [narrow(found), narrow(logistic(give) * np.tanh(found))]


def rnn(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Weights W_xh, b_h, W_xh_static for a static input, W_hh, W_ho, b_o."""
    given = _read(layer, inputs, states=1, gates=1)
    hidden = given.hidden
    driven = _driven(layer, given, hidden)
    blobs = weights(layer, 6 if given.static is not None else 5)[-3:]
    back, out = (shaped(layer, blob, (hidden, hidden), "weights") for blob in blobs[:2])
    term = shaped(layer, blobs[2], (hidden,), "biases")
    state = given.states[0]
    tops = []
    for now, cont in zip(driven, given.cont, strict=True):
        state = np.tanh(now + (cont * state) @ back.T)
        tops.append(np.tanh(state @ out.T + term))
    return _tops(given, tops, [state])


def _read(layer: Layer, inputs: Sequence[Blob], states: int, gates: int) -> _Sequences:
    parameters = layer.message.message("recurrent_param")
    hidden, exposed = positive(layer, parameters, "num_output"), parameters.flag("expose_hidden")
    least = 2 + states * exposed
    if len(inputs) not in (least, least + 1) or len(layer.tops) != 1 + states * exposed:
        raise wrong(layer, f"takes {least} or {least + 1} bottoms and {1 + states * exposed} tops")
    # Before anything is made of a size that is only a number in the file.
    shaped(layer, weights(layer, 2)[1], (gates * hidden,), "biases")
    x, cont = inputs[:2]
    if x.ndim < 2 or cont.shape != x.shape[:2]:
        raise wrong(layer, f"takes x as [T,N,...] and cont as [T,N], not {show(x.shape)} and {show(cont.shape)}")
    steps, batch = cont.shape
    static = inputs[2] if len(inputs) > least else None
    if static is not None and (not static.ndim or len(static) != batch):
        raise wrong(layer, f"the static input is {show(static.shape)}, with {batch} sequences")
    first = inputs[len(inputs) - states :] if exposed else [np.zeros((1, batch, hidden), np.float32)] * states
    for blob in first:
        if blob.shape != (1, batch, hidden):
            raise wrong(layer, f"a state is {show(blob.shape)}, not {show((1, batch, hidden))}")
    return _Sequences(
        hidden,
        wide(x).reshape(steps, batch, -1),
        wide(cont)[..., None],
        None if static is None else wide(static).reshape(batch, -1),
        [wide(blob)[0] for blob in first],
        exposed,
    )


def _driven(layer: Layer, given: _Sequences, rows: int) -> Wide:
    """What the inputs alone give, at every step: [T, N, rows]."""
    blobs = weights(layer, 2 if given.static is None else 3)
    steps, batch, size = given.x.shape
    matrix = shaped(layer, blobs[0], (rows, size), "weights")
    found = (given.x.reshape(-1, size) @ matrix.T).reshape(steps, batch, rows) + shaped(
        layer, blobs[1], (rows,), "biases"
    )
    if given.static is not None:
        found = found + given.static @ shaped(layer, blobs[2], (rows, given.static.shape[1]), "static weights").T
    return found


def _tops(given: _Sequences, outputs: list[Wide], states: list[Wide]) -> list[Blob]:
    return [narrow(np.stack(outputs)), *(narrow(state)[None] for state in states if given.exposed)]

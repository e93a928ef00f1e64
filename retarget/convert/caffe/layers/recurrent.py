"""Recurrent layers: time is axis 0, streams are axis 1, and ``cont`` resets a stream's state where it is 0.

Formulas: ``recurrent_layer``, ``lstm_layer``, ``lstm_unit_layer`` and ``rnn_layer`` of BVLC Caffe. ONNX's own LSTM has
no reset in mid-sequence, so the steps are written out, or for long sequences and an open T become a Scan. Caffe keeps
the state from one call to the next; here a call starts at zero, as Caffe's first does, and as ``cont`` 0 makes of any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from retarget.convert.caffe.build import Builder, Lowering, Shape, Value, static, weights, wrong
from retarget.convert.caffe.layers import scan
from retarget.convert.caffe.net import Layer

UNROLLED = 64
"""Steps that are written out; a longer sequence is a Scan, which fewer runtimes take and none optimizes."""

Cell: TypeAlias = Callable[[Builder, Sequence[Value] | None, Value, Value], list[Value]]
"""A step: the state (None: zero), what x adds, ``cont`` to the new state, of which the first is the output."""


def lstm(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """``x[T,N,...]``, ``cont[T,N]``, maybe ``x_static[N,...]``, with ``expose_hidden`` ``h_0`` and ``c_0[1,N,D]``.

    Gates stand in the order i, f, o, g. Makes ``h[T,N,D]``, with ``expose_hidden`` also the last h and c.
    """
    size = _num_output(layer)
    hidden = weights(layer, 3 if _has_static(layer, inputs, 2) else 2, 4 * size, size)
    recurrent = build.constant(np.ascontiguousarray(hidden.T))

    def cell(build: Builder, state: Sequence[Value] | None, x: Value, cont: Value) -> list[Value]:
        if state is None:
            return _unit(build, None, x, cont)
        h, c = state
        gates = build.op("MatMul", [build.op("Mul", [h, cont]), recurrent], x.shape)
        return _unit(build, c, build.op("Add", [gates, x]), cont)

    return _recur(layer, inputs, build, 4 * size, 2, cell)


def rnn(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """As ``lstm`` with one state, ``h = tanh(W_hh h + W_xh x + b_h)``. Makes ``tanh(W_ho h + b_o)``."""
    size = _num_output(layer)
    first = 3 if _has_static(layer, inputs, 1) else 2
    recurrent = build.constant(np.ascontiguousarray(weights(layer, first, size, size).T))

    def cell(build: Builder, state: Sequence[Value] | None, x: Value, cont: Value) -> list[Value]:
        if state is None:
            return [build.op("Tanh", [x])]
        add = build.op("MatMul", [build.op("Mul", [state[0], cont]), recurrent], x.shape)
        return [build.op("Tanh", [build.op("Add", [add, x])])]

    hidden, *last = _recur(layer, inputs, build, size, 1, cell)
    weight = build.constant(np.ascontiguousarray(weights(layer, first + 1, size, size).T))
    outputs = build.op("MatMul", [hidden, weight], hidden.shape)
    outputs = build.op("Add", [outputs, build.constant(weights(layer, first + 2, size))])
    return [build.op("Tanh", [outputs]), *last]


def lstm_unit(layer: Layer, inputs: Sequence[Value], build: Builder) -> Sequence[Value]:
    """One step alone: ``c[1,N,D]``, gate inputs ``[1,N,4*D]`` and ``cont[1,N]`` to the next c and h."""
    if len(inputs) != 3:
        raise wrong(layer, f"has {len(inputs)} bottoms, needs c, the gates' inputs and cont")
    c, gates, cont = inputs
    h, c = _unit(build, c, gates, build.op("Unsqueeze", [cont, build.integers(2)], (*cont.shape, 1)))
    return [c, h]


def _unit(build: Builder, c: Value | None, gates: Value, cont: Value) -> list[Value]:
    """The new h and c; ``gates`` ends in i, f, o, g; ``c`` is None where it is zero."""
    (size,) = (dim // 4 for dim in gates.shape[-1:] if isinstance(dim, int))
    shape = (*gates.shape[:-1], size)
    logits, candidate = build.ops(
        "Split",
        [gates, build.integers(3 * size, size)],
        [(*gates.shape[:-1], 3 * size), shape],
        axis=-1,
    )
    i, f, o = build.ops("Split", [build.op("Sigmoid", [logits])], [shape] * 3, axis=-1, num_outputs=3)
    new = build.op("Mul", [i, build.op("Tanh", [candidate])])
    if c is not None:
        new = build.op("Add", [build.op("Mul", [build.op("Mul", [f, cont]), c], shape), new])
    return [build.op("Mul", [o, build.op("Tanh", [new])]), new]


def _recur(layer: Layer, inputs: Sequence[Value], build: Builder, gates: int, states: int, cell: Cell) -> list[Value]:
    """The first state of every step as one blob [T,N,D], then each state after the last step as [1,N,D]."""
    x, cont, *more = inputs
    steps, streams = x.shape[:2]
    width = int(np.prod(static(layer, x, range(2, x.rank)), dtype=np.int64))
    weight = build.constant(np.ascontiguousarray(weights(layer, 0, gates, width).T))
    flat = x if x.rank == 3 else build.reshape(x, (steps, streams, width))
    added = build.op("MatMul", [flat, weight], (steps, streams, gates))
    added = build.op("Add", [added, build.constant(weights(layer, 1, gates))])
    if _has_static(layer, inputs, states):
        added = build.op("Add", [added, _static_input(layer, more.pop(0), build, gates)])
    conts = build.op("Unsqueeze", [cont, build.integers(2)], (steps, streams, 1))
    start = more if more else None
    if isinstance(steps, int) and steps <= UNROLLED:
        return _unroll(build, added, conts, start, cell)
    return _scan(layer, build, added, conts, start, states, cell)


def _unroll(build: Builder, added: Value, conts: Value, state: Sequence[Value] | None, cell: Cell) -> list[Value]:
    steps, streams, _ = added.shape
    assert isinstance(steps, int)
    outputs = []
    for x, cont in zip(_steps(build, added), _steps(build, conts), strict=True):
        state = cell(build, state, x, cont)
        outputs.append(state[0])
    assert state is not None
    size = state[0].shape[-1]
    joined = build.op("Concat", outputs, (steps, streams, size), axis=0) if steps > 1 else outputs[0]
    return [joined, *state]


def _steps(build: Builder, value: Value) -> list[Value]:
    """Each [1,N,D] of ``value[T,N,D]``."""
    steps = value.shape[0]
    assert isinstance(steps, int)
    if steps == 1:
        return [value]
    return build.ops("Split", [value], [(1, *value.shape[1:])] * steps, axis=0, num_outputs=steps)


def _scan(
    layer: Layer,
    build: Builder,
    added: Value,
    conts: Value,
    start: Sequence[Value] | None,
    states: int,
    cell: Cell,
) -> list[Value]:
    """As ``_unroll``, the cell being the body of a Scan over axis 0, where a state is [N,D]."""
    steps, streams, _ = added.shape
    size = _num_output(layer)
    if start is None:
        length = build.op("Shape", [added], (1,), ir.DataType.INT64, start=1, end=2)
        shape = build.op("Concat", [length, build.integers(size)], (2,), ir.DataType.INT64, axis=0)
        zero = build.op("Expand", [build.number(0), shape], (streams, size))
        begin = [zero] * states
    else:
        begin = [build.op("Squeeze", [state, build.integers(0)], (streams, size)) for state in start]

    roles: dict[str, Shape] = {f"state{index}": (streams, size) for index in range(states)}
    roles |= {"x": added.shape[1:], "cont": conts.shape[1:]}
    body, inside, (*state, x, cont) = scan.body(layer, "step", roles)
    new = cell(inside, state, x, cont)
    body.outputs.extend([*(each.value for each in new), inside.op("Identity", [new[0]]).value])

    shapes = [(streams, size)] * states + [(steps, streams, size)]
    *last, outputs = build.ops("Scan", [*begin, added, conts], shapes, body=body, num_scan_inputs=2)
    axis = build.integers(0)
    return [outputs, *(build.op("Unsqueeze", [each, axis], (1, streams, size)) for each in last)]


def _static_input(layer: Layer, x: Value, build: Builder, gates: int) -> Value:
    """What ``x_static[N,...]`` adds to the gates of every step, [1,N,gates]."""
    width = int(np.prod(static(layer, x, range(1, x.rank)), dtype=np.int64))
    weight = build.constant(np.ascontiguousarray(weights(layer, 2, gates, width).T))
    flat = x if x.rank == 2 else build.reshape(x, (x.shape[0], width))
    added = build.op("MatMul", [flat, weight], (x.shape[0], gates))
    return build.op("Unsqueeze", [added, build.integers(0)], (1, x.shape[0], gates))


def _num_output(layer: Layer) -> int:
    size = layer.message.message("recurrent_param").integer("num_output")
    if size <= 0:
        raise wrong(layer, f"num_output is {size}, must be positive")
    return size


def _has_static(layer: Layer, inputs: Sequence[Value], states: int) -> bool:
    """Whether ``x_static`` is among the bottoms. Raises ``RetargetError`` where their number or shapes do not fit."""
    exposed = states if layer.message.message("recurrent_param").flag("expose_hidden") else 0
    if len(inputs) - 2 - exposed not in (0, 1):
        wanted = f"{2 + exposed} or {3 + exposed}"
        raise wrong(layer, f"has {len(inputs)} bottoms, needs {wanted}: x, cont, maybe x_static, states if exposed")
    if inputs[0].rank < 2 or inputs[1].shape != inputs[0].shape[:2]:
        raise wrong(layer, "needs x of [T,N,...] and cont of [T,N]")
    return len(inputs) - 2 - exposed == 1


LAYERS: dict[str, Lowering] = {
    "LSTM": lstm,
    "LSTMUnit": lstm_unit,
    "RNN": rnn,
}

"""Recurrent layers become the operators of ONNX for them, or stay loops, and in both give Keras's numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from keras_testing import Build, feeds_for, hold, keras, keras_2, round_trip, save, source_of

from retarget import graph
from retarget.convert.keras import export
from retarget.convert.tensorflow.framework import quiet, tf
from retarget.convert.tensorflow.lower import to_onnx
from retarget.passes import presets
from retarget.session import Session
from retarget.spec import TensorSpec
from retarget.targets.openvino.runtime import core

ALL = "return_sequences=True"


def _sequential(*layers: str, shape: tuple[int | None, ...] = (None, 4)) -> Build:
    def build(k: ModuleType) -> Any:
        made = [eval(layer, vars(k.layers)) for layer in layers]
        return k.Sequential([k.Input(shape, name="x"), *made])

    return build


def _states(k: ModuleType) -> Any:
    x, state = k.Input((None, 4), name="x"), k.Input((3,), name="state")
    return k.Model([x, state], k.layers.GRU(3, return_sequences=True, return_state=True)(x, initial_state=state))


MODELS: dict[str, tuple[Build, dict[str, int]]] = {
    "gru": (_sequential(f"GRU(3, {ALL})"), {"GRU": 1}),
    "gru, reset before": (_sequential("GRU(3, reset_after=False)"), {"GRU": 1}),
    "gru, hard": (_sequential("GRU(3, recurrent_activation='hard_sigmoid')", "Dense(3)"), {"Loop": 1}),
    "rnn": (_sequential("SimpleRNN(3)"), {"RNN": 1}),
    "rnn, backwards": (_sequential(f"SimpleRNN(3, activation='relu', go_backwards=True, {ALL})"), {"RNN": 1}),
    "lstm": (_sequential(f"LSTM(3, activation='sigmoid', {ALL})"), {"LSTM": 1}),
    "states": (_states, {"GRU": 1}),
    "both ways": (
        _sequential(f"Bidirectional(GRU(3, {ALL}))", "Bidirectional(SimpleRNN(2))"),
        {"GRU": 2, "RNN": 2},
    ),
    "stacked, no bias": (
        _sequential(f"GRU(3, use_bias=False, {ALL})", "GRU(2, use_bias=False, reset_after=False)"),
        {"GRU": 2},
    ),
    "fixed": (_sequential(f"GRU(3, {ALL})", f"GRU(2, {ALL})", "SimpleRNN(3)", shape=(6, 4)), {"GRU": 2, "RNN": 1}),
    "unknown activation": (_sequential("GRU(3, activation='elu')"), {"Loop": 1}),
}
"""Model → how it is built, and the operators that are to be there."""
MASKED: dict[str, Build] = {
    "lstm": _sequential("Masking()", f"LSTM(3, {ALL})"),
    "both ways": _sequential("Masking()", f"Bidirectional(GRU(3, {ALL}))"),
    "rnn": _sequential("Masking()", "SimpleRNN(3)"),
}


def _recurrent(model: ir.Model) -> dict[str, int]:
    counts = Counter(node.op_type for node in graph.all_nodes(model))
    return {name: counts[name] for name in ("GRU", "RNN", "LSTM", "Loop") if counts[name]}


def _transposes(model: ir.Model) -> int:
    return sum(node.op_type == "Transpose" for node in graph.all_nodes(model))


def _openvino(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    compiled = core().compile_model(core().read_model(ir.to_proto(model).SerializeToString()), "CPU")
    results = compiled([feeds[value.name or ""] for value in model.graph.inputs])
    return [results[port] for port in compiled.outputs]


@pytest.mark.parametrize("name", MODELS)
def test_recurrent_layers(name: str, tmp_path: Path) -> None:
    build, expected = MODELS[name]
    source = source_of(save(build(keras), tmp_path / "model.keras"))
    exported, model = round_trip(source, tmp_path / "out")
    assert _recurrent(model) == expected
    for _, run in presets.build("default", {}):
        model = run(model).model
    assert _recurrent(model) == expected
    assert _transposes(model) <= 2
    with export.reference(source, exported) as runner, Session(model) as session:
        feeds = feeds_for(exported.inputs, 4)
        reference = runner.run(feeds)
        hold(reference, session.run(feeds), exported.outputs, 100)
        results = dict(zip(exported.outputs, _openvino(model, dict(feeds)), strict=True))
        hold(reference, results, exported.outputs, 80)


@pytest.mark.parametrize("name", ["gru, reset before", "both ways"])
def test_those_of_keras_2(name: str, tmp_path: Path) -> None:
    source = source_of(save(MODELS[name][0](keras_2()), tmp_path / "model.h5"), options={"implementation": "tf_keras"})
    _, model = round_trip(source, tmp_path / "out")
    assert "Loop" not in _recurrent(model)


@pytest.mark.parametrize("name", MASKED)
def test_masked_layers_stay_loops(name: str, tmp_path: Path) -> None:
    source = source_of(save(MASKED[name](keras), tmp_path / "model.keras"))
    feeds = []
    for batch, steps in ((2, 7), (3, 5)):
        x = np.random.default_rng(steps).standard_normal((batch, steps, 4)).astype("f4")
        x[0, -2:], x[1, 1] = 0, 0
        feeds.append({"x": x})
    exported, model = round_trip(source, tmp_path / "out", feeds)
    assert set(_recurrent(model)) == {"Loop"}
    for _, run in presets.build("default", {}):
        model = run(model).model
    assert _transposes(model) <= 2
    with export.reference(source, exported) as runner, Session(model) as session:
        hold(runner.run(feeds[0]), session.run(feeds[0]), exported.outputs, 100)


# ---- loops that are almost one

RNG = np.random.default_rng(3)
W, R = RNG.standard_normal((4, 3)).astype("f4"), RNG.standard_normal((3, 3)).astype("f4")


def _loop(
    step: Callable[..., Any] = lambda x, h: tf.tanh(x @ W + h @ R),
    *,
    steps: Callable[[Any], Any] = lambda x: tf.shape(x)[0],
    at: Callable[[Any, Any], Any] = lambda t, _: t,
    start: int = 0,
    written: Callable[[Any, Any], Any] = lambda h, _: h,
) -> Callable[[Any], list[Any]]:
    """A layer as one writes it by hand: what it gives at each step, and its last state."""

    def run(x: Any) -> list[Any]:
        count = steps(x)

        def body(t: Any, h: Any, out: Any) -> Any:
            new = step(tf.gather(x, at(t, count)), h)
            return t + 1, new, out.write(t - start, written(new, h))

        made = tf.TensorArray(tf.float32, count - start, element_shape=(None, 3))
        zero = tf.zeros([tf.shape(x)[1], 3])
        _, state, out = tf.while_loop(lambda t, *_: t < count, body, (tf.constant(start), zero, made))
        return [out.stack(), state]

    return run


LOOPS = {
    "plain": (_loop(), "RNN"),
    "one step less": (_loop(steps=lambda x: tf.shape(x)[0] - 1), "Loop"),
    "from the second on": (_loop(start=1), "Loop"),
    "each second step": (_loop(at=lambda t, _: t // 2), "Loop"),
    "backwards": (_loop(at=lambda t, count: count - 1 - t), "Loop"),
    "as many as there are sequences": (_loop(steps=lambda x: tf.shape(x)[1]), "Loop"),
    "state of before": (_loop(written=lambda _, h: h), "Loop"),
    "residual": (_loop(lambda x, h: h + tf.tanh(x @ W + h @ R)), "Loop"),
    "scaled": (_loop(lambda x, h: 0.5 * tf.tanh(x @ W + h @ R)), "Loop"),
    "without a state": (_loop(lambda x, h: tf.tanh(x @ W) + 0 * h), "Loop"),
    "gates that are not one less the other": (
        _loop(lambda x, h: tf.sigmoid(x @ W + h @ R) * h + (0.5 - tf.sigmoid(x @ W + h @ R)) * tf.tanh(x @ W)),
        "Loop",
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops(name: str, tmp_path: Path) -> None:
    function, operator = LOOPS[name]
    path = tmp_path / "model.onnx"
    with quiet():
        traced = tf.function(function).get_concrete_function(tf.TensorSpec([None, None, 4], tf.float32))
        to_onnx(traced, [TensorSpec("x", "float32", ("T", "N", 4))], ["y", "state"], path, name)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert operator in operators
    assert len(operators & {"Loop", "RNN", "GRU", "LSTM"}) == 1
    x = RNG.standard_normal((6, 5, 4)).astype("f4")
    with Session(path) as session:
        given = dict(zip(("y", "state"), (value.numpy() for value in function(tf.constant(x))), strict=True))
        hold(given, session.run({"x": x}), ("y", "state"), 100)


@pytest.mark.parametrize("axes", [[], [1], [-1, 0]])
def test_reversed_axes_are_a_slice(axes: list[int], tmp_path: Path) -> None:
    def function(x: Any) -> list[Any]:
        return [tf.reverse(x, axes) + 1.0]

    path = tmp_path / "model.onnx"
    with quiet():
        traced = tf.function(function).get_concrete_function(tf.TensorSpec([None, None, 4], tf.float32))
        to_onnx(traced, [TensorSpec("x", "float32", ("T", "N", 4))], ["y"], path, "reverse")
    assert {node.op_type for node in onnx.load(path).graph.node} <= {"Slice", "Add"}
    x = RNG.standard_normal((6, 5, 4)).astype("f4")
    with Session(path) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], function(tf.constant(x))[0].numpy())

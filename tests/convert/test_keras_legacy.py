"""Files that Keras 2 wrote, read by Keras 3: held against the outputs of Keras 2 itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_testing import converted, feeds_for, hold, keras_2, round_trip, save, save_as_it_is, source_of

from retarget.convert.tensorflow.framework import quiet, tf
from retarget.errors import RetargetError, Unsupported
from retarget.session import Session

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")


def _images(k: Any) -> Any:
    layers = k.layers
    image = k.Input((12, 12, 3), name="image")
    x = layers.BatchNormalization(name="block/norm")(layers.Conv2D(4, 3, padding="same", name="block/conv")(image))
    x = layers.DepthwiseConv2D(3)(layers.LeakyReLU(0.1)(x))
    x = layers.SeparableConv2D(3, 3)(layers.Conv2DTranspose(3, 2, strides=2)(x))
    x = layers.UpSampling2D(2, interpolation="bilinear")(layers.ThresholdedReLU(0.3)(x))
    x = layers.Activation("hard_sigmoid")(layers.LayerNormalization(axis=[3])(x))
    return k.Model(image, layers.GlobalAveragePooling2D()(x))


def _recurrent(k: Any) -> Any:
    layers = k.layers
    return k.Sequential(
        [
            k.Input((None, 4), name="x"),
            layers.LSTM(3, return_sequences=True, recurrent_activation="hard_sigmoid"),
            layers.Bidirectional(layers.LSTM(2, return_sequences=True), merge_mode="sum"),
            layers.GRU(3, reset_after=False, return_sequences=True),
            layers.TimeDistributed(layers.Dense(2)),
            layers.RNN(layers.LSTMCell(3)),
        ]
    )


def _without_input(k: Any) -> Any:
    first = k.layers.Dense(4, input_shape=(3,), activation="gelu", name="first")
    return k.Sequential([first, k.layers.Dropout(0.5), k.layers.Dense(2)])


def _tokens(k: Any) -> Any:
    tokens = k.Input((6,), dtype="int32", name="tokens")
    x = k.layers.Embedding(12, 8, input_length=6)(tokens)
    x = k.layers.LayerNormalization()(x + k.layers.MultiHeadAttention(2, 4)(x, value=x, key=x))
    return k.Model(tokens, k.layers.Attention()([x, x]))


def _states(k: Any) -> Any:
    x, state = k.Input((5, 4), name="x"), k.Input((3,), name="state")
    steps, h, c = k.layers.LSTM(3, return_sequences=True, return_state=True)(x, initial_state=[state, state])
    return k.Model([x, state], [k.layers.GRU(3)(steps, initial_state=h), c])


def _nested(k: Any) -> Any:
    layers = k.layers
    x, inner_x = k.Input((4,), name="x"), k.Input((4,))
    inner = k.Model(inner_x, layers.Dense(4, activation="tanh")(inner_x) * 2.0, name="inner")
    sequential = k.Sequential([layers.Dense(4)], name="outer")
    shared = layers.Dense(4, name="shared")
    once = inner(x)
    y = shared(sequential(sequential(inner(once))))
    return k.Model(x, [shared(y), inner(y), y, layers.Concatenate()([once, y])])


def _operators(k: Any) -> Any:
    x = k.Input((4, 4, 2), name="x")
    y = tf.reshape(tf.nn.relu(x) - 0.5, (-1, 32))
    y = tf.transpose(tf.stack([y, 1.0 - y], 1), [0, 2, 1])
    y = tf.clip_by_value(tf.where(y > 0, y, -y), 0.0, 0.7) / 2.0
    return k.Model(x, tf.concat([tf.math.reduce_max(y, axis=-1, keepdims=True)[:, 3:20, 0]], -1))


def _half(k: Any) -> Any:
    policy = k.mixed_precision.Policy("mixed_bfloat16")
    return k.Sequential([k.Input((4,), name="x"), k.layers.Dense(3, dtype=policy), k.layers.Dense(2, dtype="float32")])


MODELS: dict[str, Callable[[Any], Any]] = {
    "images": _images,
    "recurrent": _recurrent,
    "without input": _without_input,
    "tokens": _tokens,
    "states": _states,
    "nested": _nested,
    "operators": _operators,
}


def _held(model: Any, path: Path, out: Path, **settings: Any) -> None:
    """Convert ``path`` and hold the result against ``model``, which was stored there."""
    exported, onnx_model = round_trip(source_of(path, **settings), out)
    feeds = feeds_for(exported.inputs, 3)
    with quiet():
        outputs = model(
            [feeds[spec.name] for spec in exported.inputs] if len(feeds) > 1 else feeds[exported.inputs[0].name]
        )
    expected = dict(zip(exported.outputs, map(np.asarray, tf.nest.flatten(outputs)), strict=True))
    with Session(onnx_model) as session:
        hold(expected, session.run(feeds), exported.outputs, 100)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *((name, "h5") for name in MODELS),
        ("nested", "keras"),
        *(pytest.param(name, "keras", marks=pytest.mark.stress) for name in ("images", "states")),
    ],
)
def test_models_of_keras_2(name: str, suffix: str, tmp_path: Path) -> None:
    with quiet():
        model = MODELS[name](keras_2())
    _held(model, save(model, tmp_path / f"model.{suffix}"), tmp_path / "out")


def test_names_of_the_first_layers_input(tmp_path: Path) -> None:
    path = save(_without_input(keras_2()), tmp_path / "model.h5")
    exported, _ = converted(source_of(path), tmp_path / "out")
    assert [str(spec) for spec in exported.inputs] == ["first_input=float32[N,3]"]
    assert exported.outputs == ("dense",) or exported.outputs[0].startswith("dense")


def test_policies_of_half_precision_are_widened(tmp_path: Path) -> None:
    with quiet():
        path = save(_half(keras_2()), tmp_path / "model.h5")
    exported, _ = round_trip(source_of(path), tmp_path / "out")
    assert "layers of the policy mixed_bfloat16 compute in float32" in exported.notes


def test_what_has_no_equal_is_listed_and_keras_2_takes_it(tmp_path: Path) -> None:
    k = keras_2()
    layers = [k.layers.LSTM(2, return_sequences=True, time_major=True, name="steps"), k.layers.LocallyConnected1D(2, 3)]
    model = k.Sequential([k.Input((5, 4), name="x"), *layers])
    path = save(model, tmp_path / "model.h5")
    with pytest.raises(RetargetError) as caught:
        converted(source_of(path), tmp_path / "out")
    assert isinstance(caught.value, Unsupported)
    assert "'steps' (LSTM) with time_major=True" in caught.value.message
    assert "(LocallyConnected1D)" in caught.value.message
    assert "implementation: tf_keras" in str(caught.value.hint)


def test_keras_2_itself(tmp_path: Path) -> None:
    k = keras_2()
    model = k.Sequential([k.Input((7, 4), name="x"), k.layers.LocallyConnected1D(2, 3), k.layers.Flatten()])
    for suffix in ("h5", "keras"):
        path = save_as_it_is(model, tmp_path / f"model.{suffix}")
        _held(model, path, tmp_path / "out", options={"implementation": "tf_keras"})


def test_keras_2_does_not_read_files_of_keras_3(tmp_path: Path) -> None:
    from keras_testing import keras

    path = save(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), tmp_path / "model.keras")
    with pytest.raises(RetargetError, match=r"is a \.keras of Keras 3.*, which Keras 2.* does not read"):
        converted(source_of(path, options={"implementation": "tf_keras"}), tmp_path / "out")

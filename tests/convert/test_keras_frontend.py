"""The Keras frontend: models of all kinds of layers from file to ONNX Runtime, held against Keras itself."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from keras_testing import (
    Build,
    converted,
    feeds_for,
    hold,
    keras,
    round_trip,
    save,
    save_as_it_is,
    save_weights,
    source_of,
    transposes_left,
)

from retarget.compare import snr_db
from retarget.convert import keras as frontend
from retarget.convert import pytorch
from retarget.convert.tensorflow.framework import quiet
from retarget.errors import RetargetError
from retarget.session import Session


def _sequential(shape: tuple[int | None, ...], *layers: str) -> Build:
    """A sequential model of ``layers`` as one writes them, such as ``Dense(3)``."""

    def build(k: ModuleType) -> Any:
        made = [eval(layer, {"L": k.layers, **vars(k.layers)}) for layer in layers]
        return k.Sequential([k.Input(shape, name="x"), *made])

    return build


def _images(k: ModuleType) -> Any:
    layers = k.layers
    image = k.Input((12, 12, 3), name="image")
    x = layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.Activation("relu6")(layers.BatchNormalization()(x))
    y = layers.SeparableConv2D(6, 3, padding="same")(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.Concatenate()([layers.Add()([x, y]), layers.AveragePooling2D(3, 1, padding="same")(y)])
    x = layers.Conv2DTranspose(4, 2, strides=2)(layers.ZeroPadding2D(1)(x))
    return k.Model(image, layers.UpSampling2D(2)(x))


def _attention(k: ModuleType) -> Any:
    layers = k.layers
    x = k.Input((None, 8), name="x")
    y = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return k.Model(x, layers.LayerNormalization()(y + layers.Dense(8)(layers.Dense(16, activation="gelu")(y))))


def _tokens(k: ModuleType) -> Any:
    layers = k.layers
    tokens = k.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(20, 8)(tokens)
    x = x + layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)
    return k.Model(tokens, layers.Dense(3)(x))


def _two_inputs(k: ModuleType) -> Any:
    layers = k.layers
    left, right = k.Input((5,), name="left"), k.Input((5,), name="right")
    exact = layers.Dense(4, activation="gelu")(left)
    return k.Model(
        [left, right], [layers.Add(name="sum")([exact, layers.Dense(4)(right)]), k.ops.sin(exact), exact * exact]
    )


def _nested(k: ModuleType) -> Any:
    layers = k.layers
    x = k.Input((4,), name="x")
    inner_x = k.Input((4,))
    inner = k.Model(inner_x, layers.Dense(4, activation="tanh")(inner_x) * 2.0, name="inner")
    sequential = k.Sequential([layers.Dense(4)], name="outer")
    shared = layers.Dense(4, name="shared")
    y = sequential(inner(inner(x)))
    z = shared(shared(y))
    return k.Model(x, {"twice": z, "once": inner(z), "y": y})


def _frames(k: ModuleType) -> Any:
    layers = k.layers
    inner = k.Sequential([k.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten()])
    return k.Sequential([k.Input((None, 8, 8, 3), name="x"), layers.TimeDistributed(inner), layers.LSTM(4)])


MODELS: dict[str, tuple[Build, int]] = {
    "dense": (_sequential((5,), "Dense(4, 'selu')", "Dropout(0.5)", "GaussianNoise(1.0)", "Dense(3, 'softmax')"), 0),
    "images": (_images, 2),
    "attention": (_attention, 4),
    "tokens": (_tokens, 4),
    "two inputs": (_two_inputs, 0),
    "nested": (_nested, 0),
    "frames": (_frames, 3),
    "lstm": (_sequential((None, 4), "LSTM(3, return_sequences=True)"), 2),
    "lstms": (
        _sequential((None, 4), "LSTM(3, return_sequences=True)", "LSTM(3, return_sequences=True)", "LSTM(3)"),
        1,
    ),
    "bidirectional": (_sequential((None, 4), "Bidirectional(LSTM(2, return_sequences=True))", "Dense(2)"), 2),
    "conv1d": (
        _sequential(
            (None, 4),
            *("Conv1D(4, 3, padding='causal')", "BatchNormalization()", "MaxPooling1D(2)", "Conv1D(3, 2, strides=2)"),
            "GlobalAveragePooling1D()",
        ),
        1,
    ),
    "groups": (_sequential((8, 8, 4), "Conv2D(8, 3, groups=2)", "GroupNormalization(2)", "Flatten()", "Dense(2)"), 3),
    "steps": (_sequential((5, 4), "TimeDistributed(Dense(3))"), 0),
    "sizes": (_sequential((8, 8, 3), "Rescaling(0.1, 1.0)", "Resizing(12, 10)", "PReLU()", "Cropping2D(1)"), 2),
}
"""Model → how it is built, and how many Transposes the default passes may leave.

Four of each attention are its own, which part its heads and bring them together.
"""


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, tmp_path: Path) -> None:
    build, transposes = MODELS[name]
    source = source_of(save(build(keras), tmp_path / "model.keras"))
    _, model = round_trip(source, tmp_path / "out")
    assert transposes_left(model) <= transposes


@pytest.mark.parametrize("name", ["two inputs", "nested"])
def test_hdf5(name: str, tmp_path: Path) -> None:
    exported, _ = round_trip(source_of(save(MODELS[name][0](keras), tmp_path / "model.h5")), tmp_path / "out")
    assert exported.notes[0] == f".h5 of Keras {keras.__version__}, loaded by Keras {keras.__version__}"


def test_constants_of_an_adapted_normalization_are_no_inputs(tmp_path: Path) -> None:
    layer = keras.layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(3, 2, (50, 4)))
    model = keras.Sequential([keras.Input((4,), name="x"), layer, keras.layers.Dense(3)])
    exported, _ = round_trip(source_of(save_as_it_is(model, tmp_path / "model.keras")), tmp_path / "out")
    assert [str(spec) for spec in exported.inputs] == ["x=float32[N,4]"]


def test_layers_in_half_precision_compute_in_float32(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, dtype="mixed_float16")])
    exported, _ = round_trip(source_of(save(model, tmp_path / "model.keras")), tmp_path / "out")
    assert exported.notes[1:] == ("layers of the policy mixed_float16 compute in float32",)


# ---- names


def test_names_and_dimensions_are_the_users(tmp_path: Path) -> None:
    path = save(_attention(keras), tmp_path / "model.keras")
    source = source_of(path, "x=float32[batch,steps,8]", outputs=("features",))
    feeds = [feeds_for([spec], size) for size, spec in zip((2, 3), source.inputs * 2, strict=True)]
    exported, model = round_trip(source, tmp_path / "out", feeds)
    assert exported.outputs == ("features",)
    assert [str(dim) for dim in model.graph.inputs[0].shape or ()] == ["batch", "steps", "8"]


def test_fixed_sizes(tmp_path: Path) -> None:
    source = source_of(save(MODELS["lstm"][0](keras), tmp_path / "model.keras"), "x=float32[2,6,4]")
    rng = np.random.default_rng(0)
    round_trip(source, tmp_path / "out", [{"x": rng.standard_normal((2, 6, 4)).astype("f4")} for _ in range(2)])


def test_outputs_bear_the_names_of_their_layers_or_keys(tmp_path: Path) -> None:
    exported, _ = converted(source_of(save(_nested(keras), tmp_path / "n.keras")), tmp_path / "n")
    assert exported.outputs == ("twice", "once", "y")
    exported, _ = converted(source_of(save(_two_inputs(keras), tmp_path / "t.keras")), tmp_path / "t")
    assert exported.outputs[0] == "sum"
    assert len(set(exported.outputs)) == 3
    assert [str(spec) for spec in exported.inputs] == ["left=float32[N,5]", "right=float32[N,5]"]


def test_inputs_that_do_not_fit_are_met_with_those_that_the_model_has(tmp_path: Path) -> None:
    path = save(_two_inputs(keras), tmp_path / "model.keras")
    with pytest.raises(RetargetError, match="'right' is not named") as caught:
        converted(source_of(path, "left=float32[N,5]"), tmp_path / "out")
    assert caught.value.hint is not None
    assert "left=float32[?,5], right=float32[?,5]" in caught.value.hint
    with pytest.raises(RetargetError, match=r"dimension 1: '6' was given, .* has it fixed at 5"):
        converted(source_of(path, "left=float32[N,6]", "right=float32[N,5]"), tmp_path / "out")
    with pytest.raises(RetargetError, match="1 outputs are named"):
        converted(source_of(path, outputs=("y",)), tmp_path / "out")


# ---- factories

CUSTOM = """
import keras

@keras.saving.register_keras_serializable(package="ours")
class Doubled(keras.layers.Layer):
    def __init__(self, units, **settings):
        super().__init__(**settings)
        self.units = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")

    def call(self, x):
        return 2.0 * keras.ops.matmul(x, self.kernel)

    def get_config(self):
        return {**super().get_config(), "units": self.units}

def cubed(x):
    return x * x * x

class Pair(keras.Model):
    def __init__(self, width=4, **settings):
        super().__init__(**settings)
        self.first, self.second = keras.layers.Dense(width), keras.layers.Dense(width)

    def call(self, a, b, training=False):
        return {"sum": self.first(a) + self.second(b), "first": self.first(a)}

    def get_config(self):
        return super().get_config()

def classes():
    return {"Doubled": Doubled, "cubed": cubed, "Pair": Pair}

def sequential():
    return keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, activation="tanh"), Doubled(2)])

def built_pair(width=4):
    pair = Pair(width)
    import numpy as np
    pair(np.zeros((1, 5), "f4"), np.zeros((1, 5), "f4"))
    return pair

def nothing():
    return 3
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    (tmp_path / "ours.py").write_text(CUSTOM)
    return tmp_path / "ours.py"


def _run(factory: Path) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": "elsewhere"}
    exec(compile(factory.read_text(), factory, "exec"), scope)
    return scope


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_custom_layers_come_from_the_factory(suffix: str, factory: Path, tmp_path: Path) -> None:
    scope = _run(factory)
    layers = [keras.layers.Dense(3, activation=scope["cubed"]), keras.layers.TimeDistributed(scope["Doubled"](2))]
    path = save(keras.Sequential([keras.Input((5, 4), name="x"), *layers]), tmp_path / f"model.{suffix}")
    keras.saving.get_custom_objects().clear()
    with pytest.raises(RetargetError) as caught:
        converted(source_of(path), tmp_path / "out")
    assert "2 classes or functions are not of Keras" in caught.value.message
    assert "needs 'cubed'" in caught.value.message
    assert "Doubled'" in caught.value.message
    assert "--factory FILE.py:FUNCTION" in str(caught.value.hint)
    round_trip(source_of(path, factory=(factory, "classes")), tmp_path / "out")


def test_subclassed_models(factory: Path, tmp_path: Path) -> None:
    pair = _run(factory)["built_pair"]()
    path = save(pair, tmp_path / "model.keras")
    inputs = ("b=float32[N,5]", "a=float32[N,5]")
    exported, model = round_trip(source_of(path, *inputs, factory=(factory, "classes")), tmp_path / "out")
    assert exported.outputs == ("sum", "first")
    # Keras itself leaves the weights of such a model as they are made, at random.
    feeds = feeds_for(exported.inputs, 3)
    with Session(model) as session, quiet():
        expected = {name: np.asarray(value) for name, value in pair(feeds["a"], feeds["b"]).items()}
        hold(expected, session.run(feeds), exported.outputs, 100)
    with pytest.raises(RetargetError, match="of class Pair does not say its inputs"):
        converted(source_of(path, factory=(factory, "classes")), tmp_path / "out")


@pytest.mark.parametrize("suffix", ["weights.h5", "keras", "h5"])
def test_weights_alone_go_into_the_model_of_the_factory(suffix: str, factory: Path, tmp_path: Path) -> None:
    model = _run(factory)["sequential"]()
    path = tmp_path / f"model.{suffix}"
    save(model, path) if suffix != "weights.h5" else save_weights(model, path)
    keras.saving.get_custom_objects().clear()
    exported, onnx_model = round_trip(source_of(path, factory=(factory, "sequential")), tmp_path / "out")
    assert [str(spec) for spec in exported.inputs] == ["x=float32[N,4]"]
    x = np.random.default_rng(0).standard_normal((3, 4)).astype("f4")
    with Session(onnx_model) as session, quiet():
        assert snr_db(np.asarray(model(x)), session.run({"x": x})[exported.outputs[0]]) >= 100


def test_factory_arguments_and_weights_that_do_not_fit(factory: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.weights.h5"
    save_weights(_run(factory)["built_pair"](6), path)
    inputs = ("a=float32[N,5]", "b=float32[N,5]")
    source = source_of(path, *inputs, factory=(factory, "built_pair"), options={"factory_args": {"width": 6}})
    round_trip(source, tmp_path / "out")
    with pytest.raises(RetargetError, match="its weights do not fit the model of"):
        converted(source_of(path, *inputs, factory=(factory, "built_pair")), tmp_path / "out")
    with pytest.raises(RetargetError, match="holds weights alone"):
        converted(source_of(path), tmp_path / "out")
    with pytest.raises(RetargetError, match="returned int"):
        converted(source_of(path, factory=(factory, "nothing")), tmp_path / "out")


# ---- recognising and damage


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    archive, hdf5 = (save(MODELS["steps"][0](keras), tmp_path / name) for name in ("model.keras", "model.h5"))
    plain, odd = archive.rename(tmp_path / "plain"), hdf5.rename(tmp_path / "odd.bin")
    assert frontend.matches(plain) == "Keras"
    assert frontend.matches(odd) == "Keras HDF5"
    assert pytorch.matches(plain) is None
    for path in (plain, odd):
        round_trip(source_of(path), tmp_path / "out")
    (tmp_path / "text.h5").write_text("not HDF5")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("config.json", "{}")
    assert frontend.matches(tmp_path / "text.h5") is None
    assert frontend.matches(tmp_path / "other.zip") is None
    assert frontend.matches(tmp_path) is None


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_damaged_files(suffix: str, tmp_path: Path) -> None:
    path = save(_images(keras), tmp_path / f"model.{suffix}")
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for size in (0, 5, 100, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:size])
        with pytest.raises(RetargetError):
            converted(source_of(path), tmp_path / "out")
    for _ in range(10):
        flipped = bytearray(content)
        for place in rng.integers(0, min(len(content), 4096), 3):
            flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        # What is read all the same is another model; any error but ours is a failure of this test.
        with contextlib.suppress(RetargetError):
            converted(source_of(path), tmp_path / "out")


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    path = save(MODELS["steps"][0](keras), tmp_path / "model.h5")
    with h5py.File(tmp_path / "secret.h5", "w") as other:
        other["data"] = np.ones(4)
    with h5py.File(path, "a") as file:
        file["model_weights"]["more"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "data")
    with pytest.raises(RetargetError, match="'/model_weights/more' is a link"):
        converted(source_of(path), tmp_path / "out")
    with h5py.File(path, "a") as file:
        del file["model_weights"]["more"]
        file.create_dataset("more", (4,), "u1", external=[(str(tmp_path / "secret.h5"), 0, 4)])
    with pytest.raises(RetargetError, match="the data of '/more' lie in another file"):
        converted(source_of(path), tmp_path / "out")


def test_weights_that_claim_more_than_there_is_are_refused(tmp_path: Path) -> None:
    path = save(MODELS["steps"][0](keras), tmp_path / "model.h5")
    with h5py.File(path, "a") as file:
        file.create_dataset("bomb", (1 << 30,), "f4", chunks=(1 << 20,), compression="gzip")
    with pytest.raises(RetargetError, match="claim"):
        converted(source_of(path), tmp_path / "out")

"""TensorFlow 2.13 with Keras 2 in Python 3.8: what it wrote is converted by itself, through `retarget.remote`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from other_python import interpreter

from retarget import catalog
from retarget.compare import snr_db
from retarget.errors import RetargetError
from retarget.remote import RemoteFrontend, fingerprint
from retarget.session import Session
from retarget.source import Source

WRITE = """
import numpy as np, tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
keras = tf.keras
tf.random.set_seed(0)
image = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype("f4")
sequence = np.random.default_rng(1).standard_normal((3, 5, 4)).astype("f4")

net = keras.Sequential([
    keras.layers.Conv2D(6, 3, activation="relu", input_shape=(8, 8, 3)),
    keras.layers.BatchNormalization(),
    keras.layers.GlobalAveragePooling2D(),
    keras.layers.Dense(5),
])
net.save("saved"), net.save("net.h5"), net.save("net.keras")
frozen = tf.function(lambda image: net(image)).get_concrete_function(tf.TensorSpec((None, 8, 8, 3), tf.float32))
tf.io.write_graph(convert_variables_to_constants_v2(frozen).graph.as_graph_def(), ".", "frozen.pb", as_text=False)
open("net.tflite", "wb").write(tf.lite.TFLiteConverter.from_keras_model(net).convert())
recurrent = keras.Sequential([
    keras.layers.LSTM(6, return_sequences=True, input_shape=(None, 4)), keras.layers.GRU(5),
])
recurrent.save("recurrent.h5")
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    x = tf.compat.v1.placeholder(tf.float32, (None, 5, 4), name="x")
    w = tf.compat.v1.get_variable("w", (4, 3))
    y = tf.nn.tanh(tf.einsum("nti,io->no", x, w), name="y")
    session.run(tf.compat.v1.global_variables_initializer())
    tf.compat.v1.train.Saver().save(session, "checkpoint/model")
    one = session.run(y, {x: sequence})
keras.Sequential([keras.layers.Lambda(lambda x: x + 1, input_shape=(4,))]).save("lambda.h5")
np.savez("expected.npz", image=image, sequence=sequence, net=net(image).numpy(), recurrent=recurrent(sequence).numpy(),
         one=one)
"""

FILES = {
    "saved": ("tensorflow", "image", "net"),
    "frozen.pb": ("tensorflow", "image", "net"),
    "checkpoint/model.index": ("tensorflow", "sequence", "one"),
    "net.h5": ("keras", "image", "net"),
    "net.keras": ("keras", "image", "net"),
    "recurrent.h5": ("keras", "sequence", "recurrent"),
    "net.tflite": ("tflite", "image", "net"),
}
"""File to the frontend that reads it, and what it was given and gave when it was written."""
FAST = ("saved", "net.h5", "net.tflite")


@pytest.fixture(scope="module")
def python() -> Path:
    return interpreter("tensorflow")


@pytest.fixture(scope="module")
def written(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorflow")
    subprocess.run([python, "-c", WRITE], cwd=folder, check=True, capture_output=True)
    return folder


def source_of(path: Path, frontend: str) -> Source:
    light = catalog.frontend(frontend)
    options = msgspec.to_builtins(light.Options())
    return Source(path, (), {}, parts=light.parts(path), options=options)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.stress) for name in FILES]
)
def test_an_old_tensorflow_converts_its_own_files(name: str, written: Path, python: Path, tmp_path: Path) -> None:
    frontend_name, fed, given = FILES[name]
    with np.load(written / "expected.npz") as expected:
        feed, wanted = expected[fed], expected[given]
    source = source_of(written / name, frontend_name)
    with RemoteFrontend(python, frontend_name) as frontend:
        exported = frontend.export(source, None, tmp_path)
        model = catalog.frontend_load(frontend_name).load(tmp_path, source, exported)
        (spec,), (output,) = exported.inputs, exported.outputs
        assert spec.shape[0] == "N"
        with frontend.reference(source, exported) as runner, Session(model) as session:
            assert "2.13.1, CPU, " in runner.settings
            for rows in (1, 3):
                feeds = {spec.name: feed[:rows]}
                said = runner.run(feeds)[output]
                assert wanted[:rows].std() > 0
                assert snr_db(wanted[:rows], said) >= 100
                assert snr_db(said, session.run(feeds)[output]) >= 100


def test_an_old_keras_deserializes_no_lambda(written: Path, python: Path, tmp_path: Path) -> None:
    with (
        RemoteFrontend(python, "keras") as frontend,
        pytest.raises(RetargetError, match="Lambda") as caught,
    ):
        frontend.export(source_of(written / "lambda.h5", "keras"), None, tmp_path)
    assert caught.value.hint


def test_the_fingerprint_of_an_old_environment(python: Path) -> None:
    found = fingerprint(python)
    assert (found["tensorflow-cpu"], found["keras"], found["tf2onnx"]) == ("2.13.1", "2.13.1", "1.16.1")
    assert "torch" not in found

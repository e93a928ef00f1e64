"""TensorFlow models converted by an older TensorFlow, in an interpreter of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from other_python import interpreter
from tensorflow_testing import normal, source_of

from retarget.compare import snr_db
from retarget.convert.tensorflow import load
from retarget.errors import Unsupported
from retarget.remote import RemoteFrontend
from retarget.session import Session

WRITE = """
import sys
import keras, numpy as np, tensorflow as tf

folder = sys.argv[1]
v1 = tf.compat.v1
keras.utils.set_random_seed(0)
steps = keras.Input((None, 4), name="x")
last = keras.layers.Dense(3, activation="gelu")(keras.layers.LSTM(5)(steps))
keras.Model(steps, {"last": last}).save(folder + "/saved_model", save_format="tf")
with v1.Graph().as_default(), v1.Session() as session:
    x = v1.placeholder(tf.float32, [None, 5, 4], name="x")
    kernel = v1.get_variable("kernel", initializer=np.random.normal(size=(20, 6)).astype("f4"), use_resource=False)
    y = tf.nn.softmax(tf.reshape(x, [-1, 20]) @ kernel, name="y")
    session.run(v1.global_variables_initializer())
    v1.train.Saver().save(session, folder + "/checkpoint/net")
    frozen = v1.graph_util.convert_variables_to_constants(session, session.graph.as_graph_def(), ["y"])
    open(folder + "/frozen.pb", "wb").write(frozen.SerializeToString())

class Odd(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def call(self, x):
        return {"y": tf.math.zeta(x, x, name="odd")}
tf.saved_model.save(Odd(), folder + "/odd", signatures=Odd().call)
"""


@pytest.fixture(scope="module")
def python() -> Path:
    return interpreter("tensorflow")


@pytest.fixture(scope="module")
def written(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorflow")
    subprocess.run([str(python), "-c", WRITE, str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.timeout(600)
def test_an_old_tensorflow_converts_its_own_files(written: Path, python: Path, tmp_path: Path) -> None:
    with RemoteFrontend(python, "tensorflow") as frontend:
        for name in ("saved_model", "checkpoint", "frozen.pb"):
            source, out = source_of(written / name), tmp_path / name
            out.mkdir()
            exported = frontend.export(source, None, out)
            assert exported.inputs[0].name == "x"
            model = load.load(out, source, exported)
            with frontend.reference(source, exported) as runner, Session(model) as session:
                assert runner.settings.startswith("TensorFlow 2.13")
                for batch in (2, 3):
                    feeds = {"x": normal(batch, 5, 4)}
                    expected, actual = runner.run(feeds), session.run(feeds)
                    for output in exported.outputs:
                        assert expected[output].std() > 0
                        assert snr_db(expected[output], actual[output]) >= 100
        with pytest.raises(Unsupported, match=r"odd.* \(Zeta\): tf2onnx has no form of it"):
            frontend.export(source_of(written / "odd"), None, tmp_path)

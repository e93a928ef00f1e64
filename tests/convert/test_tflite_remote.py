"""TFLite files, float and int8, converted by the TensorFlow that wrote them in an interpreter of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from other_python import interpreter

from retarget.compare import snr_db
from retarget.convert.tflite import Options, load
from retarget.remote import RemoteFrontend, fingerprint
from retarget.session import Session
from retarget.source import Source

WRITE = """
import sys
import numpy as np, tensorflow as tf

folder = sys.argv[1]
tf.random.set_seed(0)
image = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype("f4")
net = tf.keras.Sequential([
    tf.keras.layers.Conv2D(6, 3, activation="relu", input_shape=(8, 8, 3)),
    tf.keras.layers.GlobalAveragePooling2D(),
    tf.keras.layers.Dense(5),
])
converter = tf.lite.TFLiteConverter.from_keras_model(net)
open(folder + "/float.tflite", "wb").write(converter.convert())
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([row[None]] for row in image)
open(folder + "/int8.tflite", "wb").write(converter.convert())
np.savez(folder + "/expected.npz", image=image, result=net(image).numpy())
"""


@pytest.fixture(scope="module")
def python() -> Path:
    return interpreter("tensorflow")


@pytest.mark.timeout(600)
def test_an_old_tensorflow_converts_its_own_tflite_files(python: Path, tmp_path: Path) -> None:
    subprocess.run([python, "-c", WRITE, tmp_path], check=True, capture_output=True)
    with np.load(tmp_path / "expected.npz") as expected:
        image, result = expected["image"], expected["result"]
    with RemoteFrontend(python, "tflite") as frontend:
        for name, from_float, from_file in (("float", 100, 100), ("int8", 20, 35)):
            source = Source(tmp_path / f"{name}.tflite", (), {}, options=msgspec.to_builtins(Options()))
            (tmp_path / name).mkdir()
            exported = frontend.export(source, None, tmp_path / name)
            (given,), (output,) = exported.inputs, exported.outputs
            model = load.load(tmp_path / name, source, exported)
            with frontend.reference(source, exported) as runner, Session(model) as session:
                assert "2.13.1, CPU" in runner.settings
                for rows in (1, 3):
                    feeds = {given.name: image[:rows]}
                    said = runner.run(feeds)[output]
                    assert result[:rows].std() > 0
                    assert snr_db(result[:rows], said) >= from_float
                    assert snr_db(said, session.run(feeds)[output]) >= from_file


def test_the_fingerprint_of_an_old_environment(python: Path) -> None:
    found = fingerprint(python)
    assert "2.13.1" in (found.get("tensorflow-cpu"), found.get("tensorflow"))
    assert (found["keras"], found["tf2onnx"]) == ("2.13.1", "1.16.1")
    assert "torch" not in found

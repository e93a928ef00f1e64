"""Files of Keras 2, converted by the TensorFlow of their time in an interpreter of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from keras_testing import feeds_for, hold, source_of
from other_python import interpreter

from retarget.convert.keras import load
from retarget.errors import RetargetError
from retarget.remote import RemoteFrontend
from retarget.session import Session

WRITE = """
import sys
import keras, numpy as np, tensorflow as tf

folder, mark = sys.argv[1:]
layers = keras.layers
keras.utils.set_random_seed(0)
image = keras.Input((8, 8, 3), name="image")
x = layers.BatchNormalization()(layers.DepthwiseConv2D(3)(layers.Conv2D(4, 3, padding="same")(image)))
x = tf.nn.relu(x) - 0.25
image_model = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.LocallyConnected2D(2, 3)(x))))
steps = keras.Sequential([keras.Input((6, 4), name="x"), layers.LSTM(3, return_sequences=True), layers.GRU(2)])
evil = eval(f"lambda x: (__import__('pathlib').Path({mark!r}).touch(), x)[1]")
evil = keras.Sequential([keras.Input((4,), name="x"), layers.Lambda(evil, name="evil"), layers.Dense(2)])
for name, model in (("image", image_model), ("steps", steps), ("evil", evil)):
    for suffix in ("h5", "keras"):
        model.save(f"{folder}/{name}.{suffix}")
"""


@pytest.fixture(scope="module")
def python() -> Path:
    return interpreter("tensorflow")


@pytest.fixture(scope="module")
def written(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    subprocess.run([str(python), "-c", WRITE, str(folder), str(folder / "executed")], check=True, capture_output=True)
    (folder / "executed").unlink()
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "image.h5",
        *(pytest.param(name, marks=pytest.mark.stress) for name in ("image.keras", "steps.h5", "steps.keras")),
    ],
)
def test_an_old_keras_converts_its_own_files(name: str, written: Path, python: Path, tmp_path: Path) -> None:
    source = source_of(written / name)
    with RemoteFrontend(python, "keras") as frontend:
        exported = frontend.export(source, None, tmp_path)
        model = load.load(tmp_path, source, exported)
        with frontend.reference(source, exported) as runner, Session(model) as session:
            for batch in (2, 3):
                feeds = feeds_for(exported.inputs, batch)
                hold(runner.run(feeds), session.run(feeds), exported.outputs, 80)
    assert exported.notes[0].endswith("of Keras 2.13.1, loaded by Keras 2.13.1")


@pytest.mark.parametrize("suffix", ["h5", pytest.param("keras", marks=pytest.mark.stress)])
def test_an_old_keras_runs_no_code_of_a_file(suffix: str, written: Path, python: Path, tmp_path: Path) -> None:
    with RemoteFrontend(python, "keras") as frontend:
        with pytest.raises(RetargetError, match=r"layer 'evil' \(Lambda\) carries code"):
            frontend.export(source_of(written / f"evil.{suffix}"), None, tmp_path)
        assert not (written / "executed").exists()
        if suffix == "h5":
            frontend.export(source_of(written / "evil.h5", trust=True), None, tmp_path)
            assert (written / "executed").exists(), "the file does carry code"
            (written / "executed").unlink()

"""The networks that Keras ships, at their real size and with random weights, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ["MobileNetV2", "ResNet50", "EfficientNetB0", "DenseNet121", "InceptionV3", "NASNetMobile"]

PEAK_BYTES = 3 << 30

CODE = """
import resource, sys
from pathlib import Path

import numpy as np
from keras_testing import keras, round_trip, save_as_it_is, source_of, transposes_left
from retarget.convert.tensorflow.framework import quiet

name, folder = sys.argv[1], Path(sys.argv[2])
path = folder / "model.keras"
if sys.argv[3] == "save":
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, classifier_activation=None)
    rng = np.random.default_rng(0)
    # Statistics that are those of numbers going through, so that what comes out depends on what goes in.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    with quiet():
        model(rng.normal(0, 1, (4, *model.input_shape[1:])).astype("f4"), training=True)
    save_as_it_is(model, path)
else:
    source = source_of(path)
    exported, model = round_trip(source, folder / "out", least=80)
    print(len(model.graph.inputs), transposes_left(model), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_applications(name: str, tmp_path: Path) -> None:
    def run(what: str) -> str:
        command = [sys.executable, "-c", CODE, name, str(tmp_path), what]
        done = subprocess.run(
            command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True, env=_environment()
        )
        return done.stdout.splitlines()[-1] if done.stdout else ""

    run("save")
    inputs, transposes, peak = map(int, run("convert").split())
    assert inputs == 1
    assert transposes <= 2
    assert peak < PEAK_BYTES


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "2"}

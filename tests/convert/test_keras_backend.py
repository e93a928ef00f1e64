"""Keras runs on TensorFlow, whatever the environment says: on another backend it computes some models otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

LOAD = "from retarget.convert.keras.framework import load_keras; print(load_keras('keras').backend.backend())"


def _run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_the_environment_does_not_choose_the_backend() -> None:
    assert _run(LOAD).stdout.split() == ["tensorflow"]


def test_another_backend_that_is_there_already_is_an_error() -> None:
    done = _run(f"import keras\n{LOAD}")
    assert done.returncode != 0
    assert "RetargetError: Keras runs on torch in this process" in done.stderr
    assert "hint: set KERAS_BACKEND=tensorflow" in done.stderr

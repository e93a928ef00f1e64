"""Keras, always on TensorFlow: on another backend it computes some models otherwise, without a word."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

from retarget.errors import MissingToolchain, RetargetError

BACKEND = "tensorflow"

if "keras" not in sys.modules:
    # TensorFlow may import Keras, which reads this once.
    os.environ["KERAS_BACKEND"] = BACKEND

from retarget.convert.tensorflow.framework import tf  # noqa: E402


def load_keras(implementation: str) -> ModuleType:
    """The package ``keras``, or ``tf_keras``. Raises ``RetargetError`` where another backend is loaded already."""
    if implementation == "tf_keras":
        return _tf_keras()
    try:
        keras = importlib.import_module("keras")
    except ImportError:
        # Up to TensorFlow 2.5, Keras is a part of it.
        keras = tf.keras
    backend = keras.backend.backend()
    if backend != BACKEND:
        raise RetargetError(
            f"Keras runs on {backend} in this process, and models are converted on TensorFlow",
            f"set KERAS_BACKEND={BACKEND}, and import keras nowhere before",
        )
    return keras


def _tf_keras() -> ModuleType:
    try:
        return importlib.import_module("tf_keras")
    except ImportError as error:
        raise MissingToolchain(
            "implementation tf_keras: the package tf_keras is not installed",
            f"pip install tf_keras~={'.'.join(tf.__version__.split('.')[:2])}.0",
        ) from error


def generation(keras: ModuleType) -> int:
    """2 or 3: the generation of Keras. TensorFlow numbered its own as itself."""
    own = keras.__name__ if keras.__name__ in ("keras", "tf_keras") else "tensorflow"
    return 3 if own == "keras" and int(str(keras.__version__).split(".")[0]) >= 3 else 2


def name_of(keras: ModuleType) -> str:
    """``Keras 3.15.1``."""
    return f"Keras {keras.__version__}"

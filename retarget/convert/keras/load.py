"""From what tf2onnx wrote to the normal form: as for every model of TensorFlow."""

from __future__ import annotations

from retarget.convert.tensorflow.load import load

__all__ = ["load"]

"""``retarget inspect``: what is in a model or an artifact, found out without executing anything.

Light: the reader of each kind is imported when a file of that kind is met.
"""

from __future__ import annotations

from pathlib import Path

from retarget import catalog
from retarget.errors import RetargetError
from retarget.inspection.result import Inspection
from retarget.recognise import recognise

__all__ = ["Inspection", "inspect", "inspect_model"]


def inspect(path: Path, weights: Path | None = None) -> Inspection:
    """What ``path`` is and holds, of a model of two files with its ``weights``.

    Raises ``RetargetError`` for what is damaged or not known.
    """
    if weights is not None:
        return inspect_model(path, weights)
    if not path.exists():
        raise RetargetError(f"{path}: no such file or folder", "give a model, or an artifact that a build made")
    from retarget.inspection import artifact

    if artifact.is_artifact(path):
        return artifact.inspect(path)
    return inspect_file(path)


def inspect_file(path: Path) -> Inspection:
    """``path`` by its own content, whatever lies beside it."""
    from retarget.inspection import coreml, engine, ncnn, openvino_ir, ranges

    if ranges.matches(path):
        return ranges.inspect(path)
    if engine.matches(path):
        return engine.inspect(path)
    if openvino_ir.matches(path):
        return openvino_ir.inspect(path)
    if coreml.matches(path):
        return coreml.inspect(path)
    if ncnn.matches(path):
        return ncnn.inspect(path)
    if (path / "report.json").is_file():
        example = next(iter(sorted(path.glob("*/*/manifest.json"))), None)
        raise RetargetError(
            f"{path}: a build, with an artifact in each of its folders",
            f"inspect one of them: retarget inspect {(example or path / 'TARGET/VARIANT/x').parent}",
        )
    return inspect_model(path)


def inspect_model(path: Path, weights: Path | None = None) -> Inspection:
    """The model at ``path``, of whichever frontend; ``weights``: its second file, else the one beside it."""
    name, form = recognise(path)
    frontend = catalog.frontend(name)
    if weights and not frontend.takes_weights:
        raise RetargetError(f"{path}: {form} has no second file", f"leave {weights} out")
    parts = {"weights": weights} if weights else frontend.parts(path)
    match name:
        case "caffe":
            from retarget.inspection import caffe

            return caffe.inspect(path, form, parts)
        case "keras":
            from retarget.inspection import keras

            return keras.inspect(path)
        case "onnx":
            from retarget.inspection import onnx_model

            return onnx_model.inspect(path)
        case "pytorch":
            from retarget.convert.pytorch.forms import EXPORTED
            from retarget.inspection import checkpoint, program

            return program.inspect(path) if form == EXPORTED else checkpoint.inspect(path, form)
        case "tensorflow":
            from retarget.inspection import tensorflow

            return tensorflow.inspect(path, form, parts)
        case "tflite":
            from retarget.inspection import tflite

            return tflite.inspect(path)
        case _:
            raise NotImplementedError(f"inspection of {name}")

"""The half of the Keras frontend that needs Keras and TensorFlow. It may run in the user's own interpreter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from retarget.convert.keras.called import called
from retarget.convert.keras.model import load
from retarget.convert.tensorflow.lower import to_onnx
from retarget.convert.tensorflow.names import check_types, output_names
from retarget.convert.tensorflow.runner import TensorFlowRunner
from retarget.source import Exported, Source

if TYPE_CHECKING:
    from retarget.protocols import Feeds

MODEL = "model.onnx"


def export(source: Source, example: Feeds | None, out: Path) -> Exported:  # noqa: ARG001 - Keras knows its shapes
    """Write ``out/model.onnx``. Raises ``RetargetError``; ``Unsupported`` lists every node that has no form in ONNX."""
    place = str(source.path)
    loaded = load(source)
    model = called(loaded, source)
    function = model.trace()
    check_types(model.outputs, place)
    outputs = output_names([output.name for output in model.outputs], source, model.inputs)
    notes = [*loaded.notes, *to_onnx(function, model.inputs, outputs, out / MODEL, place)]
    return Exported(rung="tf2onnx", inputs=model.inputs, outputs=outputs, notes=tuple(notes))


def reference(source: Source, exported: Exported) -> TensorFlowRunner:
    """The Keras model itself, as it predicts."""
    model = called(load(source), replace(source, inputs=exported.inputs))
    return TensorFlowRunner(model.run, [spec.name for spec in exported.inputs], exported.outputs)

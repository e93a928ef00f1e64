"""The half of the TensorFlow frontend that needs TensorFlow. It may run in the user's own interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retarget.convert.tensorflow import forms
from retarget.convert.tensorflow.graphs import open_checkpoint, open_frozen_graph
from retarget.convert.tensorflow.lower import half_type, write
from retarget.convert.tensorflow.names import check_types, input_specs, output_names
from retarget.convert.tensorflow.opened import Opened
from retarget.convert.tensorflow.runner import TensorFlowRunner
from retarget.convert.tensorflow.saved_model import open_saved_model
from retarget.errors import RetargetError
from retarget.source import Exported, Source

if TYPE_CHECKING:
    from retarget.protocols import Feeds

MODEL = "model.onnx"

_OPEN = {
    forms.SAVED_MODEL: open_saved_model,
    forms.FROZEN_GRAPH: open_frozen_graph,
    forms.CHECKPOINT: open_checkpoint,
}


def export(source: Source, example: Feeds | None, out: Path) -> Exported:  # noqa: ARG001 - a graph needs no sample
    """Write ``out/model.onnx``. Raises ``RetargetError``; ``Unsupported`` lists every node that has no form in ONNX."""
    place = str(source.path)
    opened = _open(source)
    inputs = input_specs(opened.inputs, source.inputs, place)
    check_types(opened.outputs, place)
    outputs = output_names([output.name for output in opened.outputs], source, inputs)
    notes = [*opened.notes, *write(opened.freeze(), inputs, outputs, out / MODEL, place)]
    narrow = half_type(out / MODEL)
    if narrow is not None:
        notes.append(f"the model was widened from {narrow} to float32; its inputs and outputs keep their types")
    return Exported(rung="tf2onnx", inputs=inputs, outputs=outputs, notes=tuple(notes), narrow=narrow)


def reference(source: Source, exported: Exported) -> TensorFlowRunner:
    """TensorFlow on the model as it was stored, its variables not frozen."""
    return TensorFlowRunner(_open(source).call, [spec.name for spec in exported.inputs], exported.outputs)


def _open(source: Source) -> Opened:
    form = forms.form_of(source.path) or forms.SUFFIXES.get(source.path.suffix.lower())
    if form is None:
        raise RetargetError(
            f"{source.path}: not a TensorFlow model", "give a SavedModel, a frozen graph or a checkpoint"
        )
    if source.factory is not None:
        raise RetargetError(f"{source.path}: a {form} needs no factory", "remove `factory`")
    if source.signature is not None and form != forms.SAVED_MODEL:
        raise RetargetError(f"{source.path}: a {form} has no signatures", "remove `signature`")
    return _OPEN[form](source)

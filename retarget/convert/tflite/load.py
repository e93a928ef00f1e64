"""From what tf2onnx wrote to the normal form."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from retarget import graph
from retarget.convert.normal_form import apply_specs, normal_form
from retarget.convert.tflite.export import MODEL
from retarget.source import Exported, Source


def load(out: Path, source: Source, exported: Exported) -> ir.Model:
    """The exported model in the normal form, with the names and dimensions of ``exported``."""
    model = graph.load(out / MODEL)
    # Before shapes are inferred: names are then found everywhere.
    apply_specs(model, exported.inputs, str(source.path))
    return normal_form(model, str(source.path))

"""From what tf2onnx wrote to the normal form."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from retarget import graph
from retarget.convert.normal_form import apply_specs, normal_form
from retarget.source import Exported, Source


def load(out: Path, source: Source, exported: Exported) -> ir.Model:
    """The exported model in the normal form, with the dimensions of ``exported``."""
    place = str(source.path)
    model = normal_form(graph.load(out / "model.onnx"), place)
    apply_specs(model, exported.inputs, place)
    return model

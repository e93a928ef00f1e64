"""From what tf2onnx wrote to the normal form."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from retarget import graph
from retarget.convert.normal_form import normal_form
from retarget.convert.onnx.widen import widen
from retarget.source import Exported, Source


def load(out: Path, source: Source, exported: Exported) -> ir.Model:
    """The exported model in the normal form, in float32 within."""
    model = normal_form(graph.load(out / "model.onnx"), str(source.path))
    if exported.narrow is not None:
        widen(model)
    return model

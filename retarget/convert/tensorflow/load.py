"""From what tf2onnx wrote to the normal form."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from retarget import graph
from retarget.convert.normal_form import normal_form
from retarget.source import Exported, Source


def load(out: Path, source: Source, exported: Exported) -> ir.Model:  # noqa: ARG001 - the export has its names
    """The exported model in the normal form."""
    return normal_form(graph.load(out / "model.onnx"), str(source.path))

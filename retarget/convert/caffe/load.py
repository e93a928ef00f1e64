"""What ``export`` wrote, which is in the normal form."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from retarget import graph
from retarget.source import Exported, Source


def load(out: Path, source: Source, exported: Exported) -> ir.Model:  # noqa: ARG001 - the names and sizes are in it
    """The lowered net."""
    return graph.load(out / "model.onnx")

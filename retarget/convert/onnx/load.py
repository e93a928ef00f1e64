"""From an ONNX file of any opset to the normal form."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from retarget.convert.normal_form import normal_form
from retarget.convert.onnx.named import narrow, open_named
from retarget.convert.onnx.widen import widen
from retarget.source import Exported, Source


def load(out: Path, source: Source, exported: Exported) -> ir.Model:  # noqa: ARG001 - the file is its own export
    """The file in the normal form, in float32 within. Raises ``RetargetError``."""
    model, _ = open_named(source)
    half = narrow(model)
    model = normal_form(model, str(source.path))
    if half is not None:
        widen(model)
    return model

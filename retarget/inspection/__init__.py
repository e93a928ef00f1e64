"""``retarget inspect``: what is in a model or an artifact, found out without executing anything.

Light: the reader of each kind is imported when a file of that kind is met.
"""

from __future__ import annotations

from pathlib import Path

from retarget import catalog
from retarget.errors import RetargetError
from retarget.inspection.result import Inspection

__all__ = ["Inspection", "inspect"]


def inspect(path: Path) -> Inspection:
    """What ``path`` is and holds. Raises ``RetargetError`` for what is damaged or not known."""
    if not path.exists():
        raise RetargetError(f"{path}: no such file or folder", "give a model, or an artifact that a build made")
    from retarget.inspection import artifact

    if artifact.is_artifact(path):
        return artifact.inspect(path)
    return inspect_file(path)


def inspect_file(path: Path) -> Inspection:
    """``path`` by its own content, whatever lies beside it."""
    from retarget.inspection import checkpoint, engine, openvino_ir, ranges

    if ranges.matches(path):
        return ranges.inspect(path)
    if engine.matches(path):
        return engine.inspect(path)
    if openvino_ir.matches(path):
        return openvino_ir.inspect(path)
    form = catalog.frontend("pytorch").matches(path)
    if form is not None:
        return checkpoint.inspect(path, form)
    if catalog.frontend("onnx").matches(path) is not None:
        from retarget.inspection import onnx_model

        return onnx_model.inspect(path)
    if (path / "report.json").is_file():
        example = next(iter(sorted(path.glob("*/*/manifest.json"))), None)
        raise RetargetError(
            f"{path}: a build, with an artifact in each of its folders",
            f"inspect one of them: retarget inspect {(example or path / 'TARGET/VARIANT/x').parent}",
        )
    raise RetargetError(
        f"{path}: not a model or an artifact that retarget knows",
        "it knows ONNX, OpenVINO IR, TensorRT engines, PyTorch checkpoints and the folders that a build writes",
    )

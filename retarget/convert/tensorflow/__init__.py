"""The frontend of TensorFlow: SavedModels of TensorFlow 2 and 1, frozen graphs, checkpoints with their graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from retarget.convert.tensorflow.forms import CHECKPOINT, SUFFIXES, checkpoint_files, checkpoint_prefix, form_of

requires: tuple[str, ...] = ("tensorflow", "tf2onnx")
extra: str | None = "tensorflow"
layout: Literal["nchw", "nhwc"] = "nhwc"
suffixes: Mapping[str, str] = SUFFIXES
takes_weights: bool = False


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a TensorFlow model."""

    outputs: tuple[str, ...] = ()
    """Of a graph without signatures: the tensors to convert, such as ``scores`` or ``cell/split:1``; by default those
    that depend on its placeholders and that no other node takes."""


def matches(path: Path) -> str | None:
    """The form of model that ``path`` holds, from its content."""
    return form_of(path)


def parts(path: Path) -> Mapping[str, Path]:
    """The other files of a checkpoint: its graph, its index and its data."""
    if form_of(path) != CHECKPOINT:
        return {}
    prefix = checkpoint_prefix(path)
    assert prefix is not None
    return {role: file for role, file in checkpoint_files(prefix).items() if file != path}

"""The frontend of Caffe: prototxt and caffemodel of V0, V1 and V2, read without Caffe and without a schema file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from retarget.convert.caffe import files

requires: tuple[str, ...] = ()
extra: str | None = None
layout: Literal["nchw", "nhwc"] = "nchw"
suffixes = files.SUFFIXES
takes_weights = True


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a Caffe net. Its phase is TEST."""

    stages: list[str] = []
    """Stages of the net's state, beside those in the file: layers may be for some stages only."""
    level: int | None = None
    """Level of the net's state; without it the file's own, or 0."""
    opencv: bool = True
    """Hold the reference against OpenCV too, where it is installed and takes the net; one that differs is an error."""


def matches(path: Path) -> str | None:
    """Whether ``path`` is a prototxt, a caffemodel or a folder of both, from its content."""
    return files.form(path)


def parts(path: Path) -> Mapping[str, Path]:
    """The ``weights`` of a prototxt, or the ``net`` of a caffemodel: of the same name, or the only one beside it."""
    return files.others(path)

"""Engines of TensorRT and TensorRT-RTX: nothing of them can be read without a GPU but what stands beside them."""

from __future__ import annotations

from pathlib import Path

from retarget.inspection.result import Inspection

_RTX = b"vtrt"
"""How engines of TensorRT-RTX 1.7 start; TensorRT's have other first bytes."""
_SUFFIXES = frozenset({".engine", ".plan", ".trt"})


def matches(path: Path) -> bool:
    """By its first bytes, or by its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_RTX)) == _RTX or path.suffix in _SUFFIXES


def inspect(path: Path) -> Inspection:
    """Its flavour and size."""
    with path.open("rb") as file:
        rtx = file.read(len(_RTX)) == _RTX
    return Inspection(
        path=str(path),
        what="TensorRT-RTX engine" if rtx else "TensorRT engine",
        bytes=path.stat().st_size,
        notes=("an engine says what is in it only where it loads, on an NVIDIA GPU with the version that built it",),
    )

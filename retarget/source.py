"""What a frontend is given, and what it says of its export: plain dataclasses that cross into other interpreters.

Modules that may run in the user's own interpreter (``worker_remote``) import nothing of retarget but this module,
``spec`` and ``errors``, and keep to the syntax and library of Python 3.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from retarget.spec import DimRange, TensorSpec


@dataclass(frozen=True)
class Source:
    """What the user gave to convert."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    """Empty: the frontend takes them from the file, and raises if the file does not say."""
    shapes: Mapping[str, DimRange]
    outputs: tuple[str, ...] = ()
    """Names for the outputs, in order; empty: the frontend's own."""
    factory: tuple[Path, str] | None = None
    """File and function that build the module, or the classes that the file names."""
    trust: bool = False
    signature: str | None = None
    """Which of several functions of a model; None: its only one, or its default."""
    parts: Mapping[str, Path] = field(default_factory=dict)
    """Role to each other file that the model consists of, as the frontend's ``parts`` names them."""
    options: Mapping[str, object] = field(default_factory=dict)
    """The frontend's own options, every field of its ``Options`` struct, as plain values."""


@dataclass(frozen=True)
class Exported:
    """What ``export`` says of the ``model.onnx`` that it wrote."""

    rung: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    notes: tuple[str, ...] = ()
    narrow: str | None = None
    """``float16`` or ``bfloat16`` where the source is in that, and ``load`` widens it to float32; ``int8`` where it is
    quantized, which stays: its float32 between scales cannot be held to more than that."""

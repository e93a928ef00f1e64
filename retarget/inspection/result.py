"""What an inspection says: one type for every kind of model and artifact."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from retarget.figures import bytes_text
from retarget.spec import DimRange, TensorSpec

SHOWN = 24
"""Tensors and operators that the table shows; JSON has all of them."""


class Extent(msgspec.Struct, frozen=True, kw_only=True):
    """How far the values of a tensor reached in calibration, NaN and infinities aside."""

    min: float
    max: float
    elements: int
    nan_count: int
    inf_count: int
    percentiles: dict[str, float]
    """Percent to the value that so many percent do not exceed."""

    def __str__(self) -> str:
        inner = " ".join(f"{percent} %: {value:.4g}" for percent, value in self.percentiles.items())
        odd = [f"{count:,} {what}" for count, what in ((self.nan_count, "NaN"), (self.inf_count, "infinite")) if count]
        return ", ".join([f"{self.min:.4g} to {self.max:.4g} ({inner})", *odd])


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What is really in a model or an artifact. None where the file does not say; nothing is executed."""

    path: str
    what: str
    """Such as ``ONNX model`` or ``PyTorch checkpoint (safetensors)``."""
    bytes: int
    """With the files of its weights."""
    version: str | None = None
    """Of the format or of the library that made it, such as ``opset 23, IR 10``."""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    shapes: dict[str, DimRange] = {}
    """The sizes that a symbolic dimension of the inputs may have, where the file bounds them."""
    nodes: int | None = None
    """Constants are none."""
    ops: dict[str, int] = {}
    """Operator to its count, the most frequent first."""
    parameters: int | None = None
    """Elements of the weights."""
    weights: dict[str, int] = {}
    """Type to bytes of weights, the most first."""
    macs: int | None = None
    """Multiply-accumulates of one call; None where none could be counted."""
    macs_at: dict[str, int] = {}
    """The size at which each symbolic dimension was counted."""
    compute: dict[str, int] = {}
    """Type of the data to multiply-accumulates in it, the most first."""
    tensors: tuple[TensorSpec, ...] = ()
    """Of a checkpoint."""
    ranges: dict[str, Extent] = {}
    """Tensor to its extent in calibration."""
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """Label and text, for a table; what is not known is left out."""
        size = f" at {', '.join(f'{name}={size}' for name, size in self.macs_at.items())}" if self.macs_at else ""
        rows = [
            ("file", self.path),
            ("what", self.what),
            ("version", self.version or ""),
            ("size", bytes_text(self.bytes)),
            ("inputs", "\n".join(map(str, self.inputs))),
            ("outputs", "\n".join(map(str, self.outputs))),
            ("sizes", "\n".join(f"{name} from {size.min} to {size.max}" for name, size in self.shapes.items())),
            ("nodes", "" if self.nodes is None else f"{self.nodes:,}"),
            ("operators", _shortened([f"{op} {count}" for op, count in self.ops.items()], ", ")),
            ("parameters", "" if self.parameters is None else f"{self.parameters:,}"),
            ("weights", ", ".join(f"{dtype} {bytes_text(size)}" for dtype, size in self.weights.items())),
            ("multiply-accumulates", "" if self.macs is None else f"{self.macs:,}{size}"),
            ("computed in", shares(self.compute)),
            ("tensors", _shortened([str(spec) for spec in self.tensors], "\n")),
            ("ranges", _shortened([f"{name}  {extent}" for name, extent in self.ranges.items()], "\n")),
            ("notes", "\n".join(self.notes)),
        ]
        return [(label, text) for label, text in rows if text]


def shares(counts: Mapping[str, int]) -> str:
    """``float16 97.1 %, float32 2.9 %``."""
    total = sum(counts.values())
    return ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in counts.items()) if total else ""


def most_first(counts: Mapping[str, int]) -> dict[str, int]:
    """Without what was counted 0 times; the alphabet decides between equals."""
    return dict(
        sorted(((name, count) for name, count in counts.items() if count), key=lambda item: (-item[1], item[0]))
    )


def _shortened(items: list[str], separator: str) -> str:
    more = len(items) - SHOWN
    return separator.join(items if more <= 0 else [*items[:SHOWN], f"and {more} more (--json shows all)"])

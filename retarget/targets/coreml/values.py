"""Values on the way from ONNX to MIL, their types, and why a node cannot be taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import ml_dtypes
import numpy as np

from retarget.targets.coreml.library import Var
from retarget.targets.walk import Refusal as Refusal

if TYPE_CHECKING:
    from retarget.protocols import Array

MOST_AXES = 5
"""Core ML's tensors have no more."""

NARROW = {"int64": "int32", "uint32": "int32", "uint64": "int32", "float64": "float32", "bfloat16": "float32"}
"""Types that are computed in a narrower one; constants are held against it, and the runner holds inputs against it."""

WIDE = {"int8": "int32", "uint8": "int32", "int16": "int32", "uint16": "int32"}
"""Types that MIL has only as the integers behind floats: their values are computed in a wider one."""

BYTES = ("int8", "uint8")
"""Types of the integers behind floats, which MIL has as such between ``quantize`` and ``dequantize``."""

TYPES = frozenset({"float32", "float16", "int32", "bool"})
"""Types of computed values."""


class Open(Refusal):
    """An operand's dimension must be known, and is open. ``symbols``: those that would have to be fixed."""

    def __init__(self, reason: str, symbols: Iterable[str]) -> None:
        super().__init__(reason)
        self.symbols = frozenset(symbols)


@dataclass(frozen=True, eq=False)
class Codes:
    """Constant integers and the floats that they stand for: ``(data - zero_point) * scale``.

    ``scale`` and ``zero_point`` have the rank of ``data``; along an axis they have its length, 1 or a number of equal
    blocks.
    """

    data: Array
    scale: Array
    zero_point: Array | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the floats."""
        return self.scale.dtype

    def transposed(self, perm: Sequence[int]) -> Codes:
        zero = None if self.zero_point is None else self.zero_point.transpose(perm)
        return Codes(self.data.transpose(perm), self.scale.transpose(perm), zero)

    def expanded(self, axis: int) -> Codes:
        """With an axis of size 1 more."""
        zero = None if self.zero_point is None else np.expand_dims(self.zero_point, axis)
        return Codes(np.expand_dims(self.data, axis), np.expand_dims(self.scale, axis), zero)


@dataclass(frozen=True, eq=False)
class Joined:
    """A value of more axes than Core ML has: only what moves its axes or joins them can take it.

    ``held`` has the same elements in the same order, with some of the axes joined.
    """

    held: Var
    shape: tuple[Dim, ...]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return dtype_of(self.held)


Dim: TypeAlias = "int | object"
"""A size, or coremltools' symbol where it is open."""

Operand: TypeAlias = "Var | Array | Codes | Joined"

Result: TypeAlias = "Operand | None"


def dtype_of(var: Var) -> np.dtype[np.generic]:
    """The numpy type of a MIL value."""
    name = str(var.dtype.__type_info__())
    return np.dtype({"fp32": "float32", "fp16": "float16"}.get(name, name))


def is_known(dim: Dim) -> bool:
    return isinstance(dim, int | np.integer)


def narrow(array: Array) -> Array:
    """``array`` in the type that MIL computes it in. Raises ``Refusal`` for integers that it cannot hold."""
    name = NARROW.get(array.dtype.name) or WIDE.get(array.dtype.name)
    if array.dtype == ml_dtypes.bfloat16:
        return array.astype(np.float32)
    if name is None:
        return array
    if name == "int32" and array.size:
        limits = np.iinfo(np.int32)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise Refusal("a constant holds integers that int32 cannot")
    return array.astype(name)

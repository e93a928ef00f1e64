"""Values on the way from ONNX to ncnn, where their rows went, and why a node cannot be taken.

ncnn's blobs have at most four axes, and beside them a count of rows (``Mat::n``) over which the engine runs a layer
again and again. An ONNX value is held in a blob as

    its axis 0 = rows x what is left of it,    and (what is left of axis 0, *its other axes) in any grouping as dims

so that the elements, row after row, are always those of the ONNX value in its own order. A value of the model's batch
has as many rows as that; weights and whatever does not hang on a batch have one, and so has everything at batch 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.targets.ncnn.program import MOST_DIMS, Blob, Dims
from retarget.targets.walk import Refusal as Refusal

if TYPE_CHECKING:
    from retarget.protocols import Array

Shape: TypeAlias = tuple[int, ...]

WHOLE = 1 << 24
"""The largest integer up to which float32 holds all: integers are computed as floats, as far as that is exact."""

BEYOND_WHOLE = (
    "may be beyond 2^24, up to which float32 holds all:"
    " declare a mask as bool, or cast to floats in front what is small"
)


def reach(dtype: np.dtype[np.generic]) -> float:
    """The largest magnitude of integers of ``dtype``: of signed ones that of the lowest, which is one more than that of
    the highest. No more than floats hold all of; infinite of other types."""
    if dtype.kind not in "iu":
        return math.inf
    limits = np.iinfo(dtype.name)
    return float(min(WHOLE, max(limits.max, -limits.min)))


@dataclass(frozen=True, eq=False)
class Value:
    """A computed value. ``blob`` is None of an input that nothing has asked for as floats yet."""

    shape: Shape
    """As ONNX has it, the rows in axis 0."""
    dtype: np.dtype[np.generic]
    """As ONNX has it: integers and truth values are floats in blobs."""
    blob: Blob | None
    rows: int = 1
    source: str | None = None
    """The model's input that its elements are, in their order, while it is no more than that."""
    largest: float = math.inf
    """Of integers: no element is larger than that in magnitude."""

    @property
    def row(self) -> Shape:
        """The shape of one row: axis 0 without the rows."""
        return row_shape(self.shape, self.rows)

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True, eq=False)
class Codes:
    """Constant integers and the floats that they stand for: ``(data - zero_point) * scale``.

    ``scale`` and ``zero_point`` have the rank of ``data``, and size 1 or its own along each axis.
    """

    data: Array
    scale: Array
    zero_point: Array | None = None

    @property
    def shape(self) -> Shape:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the floats."""
        return self.scale.dtype

    def array(self) -> Array:
        """The floats."""
        data = self.data.astype(np.float32)
        if self.zero_point is not None:
            data = data - self.zero_point.astype(np.float32)
        return data * self.scale.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A computed value that was rounded to int8 codes of one scale, and stands for ``codes * scale``.

    Layers that compute in int8 take ``of``, which is not rounded, and round it themselves; the others take ``codes``,
    which are floats.
    """

    of: Value
    scale: float
    codes: Value

    @property
    def shape(self) -> Shape:
        return self.of.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self.of.dtype


Operand: TypeAlias = "Value | Array | Codes | Quantized"

Result: TypeAlias = "Operand | None"


def row_shape(shape: Sequence[int], rows: int) -> Shape:
    """``shape`` without the rows in axis 0."""
    if rows == 1:
        return tuple(shape)
    assert shape, "a scalar has no rows"
    assert shape[0] % rows == 0, (tuple(shape), rows)
    return (shape[0] // rows, *shape[1:])


def plain_dims(shape: Sequence[int]) -> Dims:
    """``shape`` as the dims of a blob: without leading 1s, and where it is too long all the same without the others,
    the first axes joined."""
    dims = list(shape)
    while len(dims) > 1 and dims[0] == 1:
        del dims[0]
    while len(dims) > MOST_DIMS and 1 in dims:
        dims.remove(1)
    cut = max(0, len(dims) - MOST_DIMS + 1)
    return (math.prod(dims[:cut]), *dims[cut:]) if cut > 1 else tuple(dims) or (1,)


def border_dims(row: Sequence[int]) -> Dims:
    """The dims of an input or output, one row of which is ``row``: all its axes but that of the batch, also those of
    size 1, as an image of one channel has. What ncnn's own functions make of an image is such a blob."""
    own = row[1:] if len(row) > 1 and row[0] == 1 else row
    return tuple(own) or (1,) if len(own) <= MOST_DIMS else plain_dims(own)

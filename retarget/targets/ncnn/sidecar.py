"""``model.ncnn.json``: which blob is which input and output of the model, and how its elements lie in it.

A blob has the dims w, h, d and c, w the innermost, and beside them ``n`` rows, on each of which the layers run. Every
dim is one of the model's axes, or several joined in their order; an axis of size 1 may be left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from retarget.errors import RetargetError
from retarget.spec import TensorSpec
from retarget.targets.ncnn.program import Blob

FILE = "model.ncnn.json"

Name: TypeAlias = Literal["w", "h", "d", "c"]

NAMES: Mapping[int, tuple[Name, ...]] = {1: ("w",), 2: ("h", "w"), 3: ("c", "h", "w"), 4: ("c", "d", "h", "w")}
"""What ncnn calls so many dims, the outermost first."""

BLOB_TYPES: Mapping[str, Literal["float32", "int32"]] = {"float": "float32", "index": "int32"}

EXACT = {
    "use_fp16_packed": False,
    "use_fp16_storage": False,
    "use_fp16_arithmetic": False,
    "use_bf16_packed": False,
    "use_bf16_storage": False,
}
"""ncnn's options that round nothing beyond what the file has rounded."""


class Dim(msgspec.Struct, frozen=True, kw_only=True):
    """A dim of a blob, or its rows: as many as the ``axes`` of the model's value have elements."""

    dim: Name | Literal["n"]
    size: int | str
    """A symbol, or a product such as ``2*T``, where it is open."""
    axes: tuple[int, ...]
    """Empty of a 1 that is none of the model's."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A blob, and how the elements of the model's value lie in it: in their order, rows first, w last."""

    name: str
    dtype: Literal["float32", "int32"]
    layout: str
    """In words."""
    dims: tuple[Dim, ...]
    """The outermost first; the first of them is ``n`` where there are rows."""
    dropped: tuple[int, ...]
    """The model's axes that no dim stands for: their size is 1."""

    @property
    def rows(self) -> Dim | None:
        return self.dims[0] if self.dims[0].dim == "n" else None


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output of the model. An input that is used as numbers and to look something up has two blobs."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """As the model has it; symbols that have one size alone in the file stand in `Sidecar.sizes`."""
    blobs: tuple[Held, ...]


class Sidecar(msgspec.Struct, frozen=True, kw_only=True):
    """What a program that loads the files must know, and the files do not say."""

    schema: Literal[1] = 1
    param: str
    bin: str
    precision: str
    checked_with: str
    """The library whose format it is; rows need that release or a later one."""
    parity_options: dict[str, bool] = msgspec.field(default_factory=lambda: dict(EXACT))
    """Of ``ncnn::Option``: with these nothing is rounded beyond what is rounded in the files."""
    sizes: dict[str, int]
    """Symbolic dimensions that have one size alone."""
    ranges: dict[str, tuple[int, int]]
    """Those that are open → the smallest and the largest size. Beyond it constants that are cut to size end, of which
    ncnn says nothing."""
    multiples: dict[str, int] = {}
    """Those of which only multiples of a number are for the files."""
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def value(spec: TensorSpec, blobs: Sequence[Blob], lowered: Mapping[str, int], fixed: Mapping[str, int]) -> Value:
    """How the model's input or output lies in ``blobs``, whose sizes are those of the symbols ``lowered``."""
    shape = tuple(lowered[dim] if isinstance(dim, str) else dim for dim in spec.shape)
    shown = tuple(fixed.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape)
    return Value(
        name=spec.name, dtype=spec.dtype, shape=spec.shape, blobs=tuple(_held(shape, shown, blob) for blob in blobs)
    )


def write(sidecar: Sidecar, path: Path) -> None:
    """A line for each field, and for each input and output."""
    fields = []
    for name, field in msgspec.to_builtins(sidecar).items():
        text = json.dumps(field, ensure_ascii=False)
        if name in ("inputs", "outputs") and field:
            text = "[\n  " + ",\n  ".join(json.dumps(each, ensure_ascii=False) for each in field) + "\n ]"
        fields.append(f' "{name}": {text}')
    path.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")


def read(path: Path) -> Sidecar:
    """Raises ``RetargetError`` for what is missing or none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Sidecar)
    except (OSError, msgspec.DecodeError) as error:
        raise RetargetError(f"{path}: not read: {error}", "build the artifact again") from error


def _held(shape: Sequence[int], shown: Sequence[int | str], blob: Blob) -> Held:
    row = dict(enumerate(shape))
    dims: list[Dim] = []
    if blob.rows > 1:
        row[0] //= blob.rows
        dims.append(Dim(dim="n", size=_size(blob.rows, [0] if row[0] == 1 else [], shown), axes=(0,)))
        if row[0] == 1:
            del row[0]
    for name, size, axes in zip(NAMES[len(blob.dims)], blob.dims, _groups(row, blob.dims), strict=True):
        # What is left of axis 0 beside the rows is a number.
        own = [axis for axis in axes if row[axis] == shape[axis]]
        dims.append(Dim(dim=name, size=_size(size, own, shown), axes=axes))
    named = {axis for dim in dims for axis in dim.axes}
    return Held(
        name=blob.name,
        dtype=BLOB_TYPES[blob.kind],
        layout=", ".join(map(_words, dims)),
        dims=tuple(dims),
        dropped=tuple(axis for axis in range(len(shape)) if axis not in named),
    )


def _groups(row: Mapping[int, int], dims: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Of each of ``dims``, the axes of ``row`` that it is; between them only axes of size 1 may be left out."""
    left = list(row)
    for place, size in enumerate(dims):
        # One dim for each axis that is left is as it should be; of more axes those of size 1 go first.
        while len(left) > max(1, len(dims) - place) and row[left[0]] == 1 and (size != 1 or row[left[1]] == 1):
            del left[0]
        axes: list[int] = []
        while left and (not axes or math.prod(row[axis] for axis in axes) < size):
            axes.append(left.pop(0))
        assert math.prod(row[axis] for axis in axes) == size, (row, dims)
        yield tuple(axes)
    assert all(row[axis] == 1 for axis in left), (row, dims)


def _size(size: int, axes: Sequence[int], shown: Sequence[int | str]) -> int | str:
    """A dim's size, in the symbols of ``axes`` where they are open."""
    sizes = [shown[axis] for axis in axes if shown[axis] != 1]
    return "*".join(map(str, sizes)) if any(isinstance(each, str) for each in sizes) else size


def _words(dim: Dim) -> str:
    axes = " and ".join(map(str, dim.axes))
    return f"{dim.dim} = {dim.size}" + (f" (axis {axes})" if len(dim.axes) == 1 else f" (axes {axes})" if axes else "")

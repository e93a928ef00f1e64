"""``model.ncnn.param``, a line a layer, and ``model.ncnn.bin``, the weights one after the other, written and read.

After ncnn's ``docs/developer-guide/param-and-model-file-structure.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from retarget.errors import RetargetError
from retarget.targets.ncnn.program import LARGEST_HALF, Layer, Param, Weight

if TYPE_CHECKING:
    from retarget.protocols import Array

MAGIC = "7767517"

FLOAT32, FLOAT16, INT8 = 0, 0x01306B47, 0x000D4B38
"""Tags in front of weights."""

ALIGNMENT = 4
"""Bytes: shorter types are padded."""

ARRAY = -23300
"""The key of an array is this less its number."""

WHOLE_HALF = 1 << 11
"""The largest integer up to which float16 holds all."""

PIECE = 1 << 22
"""Elements of a weight that are converted at a time."""


# ---- writing


def write(layers: Sequence[Layer], param: Path, weights: Path, *, half: bool) -> None:
    """Both files. ``half``: tagged floats are stored as float16, where none of them is too large for it, and integers
    where it holds them."""
    param.write_text("\n".join([MAGIC, _counts(layers), *map(line, layers)]) + "\n", encoding="utf-8")
    with weights.open("wb") as file:
        for layer in layers:
            for weight in layer.weights:
                _write(weight, file, half=half)


def _counts(layers: Sequence[Layer]) -> str:
    return f"{len(layers)} {sum(len(layer.tops) for layer in layers)}"


def line(layer: Layer) -> str:
    """A layer's line of the param file."""
    ends = [blob.name for blob in (*layer.bottoms, *layer.tops)]
    head = f"{layer.type:<24} {layer.name:<24} {len(layer.bottoms)} {len(layer.tops)}"
    return " ".join([head, *ends, *(_pair(key, value) for key, value in layer.params.items())])


def _pair(key: int, value: Param) -> str:
    if isinstance(value, str):
        return f'{key}="{value}"'
    if isinstance(value, int | float):
        return f"{key}={_number(value)}"
    return f"{ARRAY - key}={','.join([str(len(value)), *map(_number, value)])}"


def _number(number: float) -> str:
    """As ncnn's parser reads it: a float has a point or an exponent, and at most 15 characters."""
    if isinstance(number, int | np.integer):
        return str(int(number))
    if not np.isfinite(number):
        raise AssertionError(f"{number} cannot be written in a param file")
    single = np.float32(number)
    positional = np.format_float_positional(single, trim="0")
    return positional if len(positional) <= 9 else np.format_float_scientific(single, trim="0")


def _write(weight: Weight, file: BinaryIO, *, half: bool) -> None:
    array = weight.array
    if not weight.tagged:
        _write_as(array, np.dtype("<f4"), file)
    elif array.dtype == np.int8:
        file.write(INT8.to_bytes(4, "little"))
        _write_as(array, np.dtype(np.int8), file)
    elif half and _fits_half(array):
        file.write(FLOAT16.to_bytes(4, "little"))
        _write_as(array, np.dtype("<f2"), file)
    else:
        file.write(FLOAT32.to_bytes(4, "little"))
        _write_as(array, np.dtype("<f4"), file)


def _fits_half(array: Array) -> bool:
    limit = WHOLE_HALF if array.dtype.kind in "iu" else LARGEST_HALF
    return all(bool(np.all(np.abs(piece) <= limit)) for piece in _pieces(array))


def _write_as(array: Array, dtype: np.dtype[np.generic], file: BinaryIO) -> None:
    for piece in _pieces(array):
        file.write(np.ascontiguousarray(piece.astype(dtype)).data)
    file.write(bytes(-array.size * dtype.itemsize % ALIGNMENT))


def _pieces(array: Array) -> Iterator[Array]:
    """``array`` in its order, at most so many elements at a time where its first axis can be cut."""
    if array.size <= PIECE or not array.ndim:
        yield array.reshape(-1)
        return
    step = max(1, PIECE * len(array) // array.size)
    for start in range(0, len(array), step):
        yield array[start : start + step].reshape(-1)


# ---- reading


@dataclass(frozen=True)
class Line:
    """A layer as the param file has it."""

    type: str
    name: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    params: dict[int, str]
    """Values as they are written; of an array the numbers without their count."""

    def integer(self, key: int, default: int = 0) -> int:
        return int(self.params.get(key, default))


def read(param: Path) -> list[Line]:
    """The layers of a param file. Raises ``RetargetError`` for what is not one."""
    lines = param.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise _unread(param, f"it does not begin with {MAGIC}")
    try:
        layers = [_line(text) for text in lines[2:] if text.strip()]
        count, blobs = map(int, lines[1].split())
    except (IndexError, ValueError) as error:
        raise _unread(param, str(error)) from error
    if len(layers) != count:
        raise _unread(param, f"it has {len(layers)} layers, and says {count}")
    if (made := sum(len(layer.tops) for layer in layers)) > blobs:
        raise _unread(param, f"it has {made} blobs, and says {blobs}")
    return layers


def _unread(param: Path, reason: str) -> RetargetError:
    return RetargetError(f"{param}: not a text param file of ncnn: {reason}", "give model.ncnn.param")


def _line(text: str) -> Line:
    kind, name, into, out, *rest = text.split()
    bottoms, tops = int(into), int(out)
    if bottoms < 0 or tops < 0 or len(rest) < bottoms + tops:
        raise ValueError(f"'{name}' has not as many blobs as it says")
    params: dict[int, str] = {}
    for pair in rest[bottoms + tops :]:
        key, _, value = pair.partition("=")
        number = int(key)
        if number <= ARRAY:
            number, value = ARRAY - number, value.partition(",")[2]
        params[number] = value.strip('"')
    return Line(kind, name, tuple(rest[:bottoms]), tuple(rest[bottoms : bottoms + tops]), params)

"""Caffemodels and binaryprotos: the wire format of V0, V1 and V2, mapped into memory and read where it lies.

Float32 weights are views of the file; others are converted, so that memory stays within a small multiple of the
file's size whatever sizes it claims.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from retarget.convert.caffe.net import Blob
from retarget.convert.caffe.text import decoded
from retarget.errors import DAMAGED, RetargetError
from retarget.protobuf import FIXED32, FIXED64, LENGTH, VARINT, Buffer, Field, WireError, fields, signed, varint

MAX_AXES = 32
"""Caffe's own limit."""
MAX_LAYERS = 100_000
MAX_BLOBS = 1_000
"""Of one layer. What is small in the file takes memory of its own."""
MAX_PIECES = 1_000
"""In which the numbers of one blob may lie."""

_HDF5 = b"\x89HDF\r\n\x1a\n"

_NET_NAME, _NET_LAYERS, _NET_LAYER = 1, 2, 100
_SINGLE: Mapping[int, tuple[int, str]] = {5: (FIXED32, "<f4"), 8: (FIXED64, "<f8")}
"""Field of a ``BlobProto`` that holds numbers: its wire type where they stand one by one, and their type."""
_RAW = 12
_RAW_TYPES: Mapping[int, str] = {0: "<f8", 1: "<f4", 2: "<f2"}
"""NVIDIA's fork stores bytes of the type that it names; its integers belong to no weights."""


@dataclass(frozen=True)
class SavedLayer:
    """A layer of a caffemodel."""

    name: str
    type: str
    """As it is written: a name, or the number of V1."""
    blobs: tuple[Blob, ...]
    """Views of the file where it holds them as float32."""


@dataclass(frozen=True)
class Weights:
    """What a caffemodel holds."""

    path: Path
    name: str
    version: Literal["V0", "V1", "V2"]
    layers: tuple[SavedLayer, ...]

    @property
    def parameters(self) -> int:
        return sum(blob.size for layer in self.layers for blob in layer.blobs)


def read(path: Path) -> Weights:
    """The caffemodel at ``path``. Raises ``RetargetError`` if it is damaged or is none."""
    buffer = _mapped(path)
    if buffer[:8] == _HDF5:
        raise RetargetError(
            f"{path.name}: weights in HDF5, which retarget does not read",
            "save them as a caffemodel: `net.save('NET.caffemodel')` in pycaffe, or `snapshot_format: BINARYPROTO`",
        )
    name, layers = "", []
    version: Literal["V0", "V1", "V2"] = "V2"
    try:
        for field in fields(buffer, 0, len(buffer)):
            if field.number == _NET_NAME and field.wire == LENGTH:
                name = _text(buffer, field)
            elif field.number in (_NET_LAYER, _NET_LAYERS) and field.wire == LENGTH:
                layer, version = _layer(buffer, field, path.name)
                layers.append(layer)
                if len(layers) > MAX_LAYERS:
                    raise RetargetError(f"{path.name}: more than {MAX_LAYERS:,} layers", DAMAGED)
    except WireError as error:
        raise RetargetError(f"{path.name}: {error}", _hint(buffer)) from None
    if not layers:
        raise RetargetError(f"{path.name}: no layers in it", _hint(buffer))
    return Weights(path, name, version, tuple(layers))


def read_mean(path: Path) -> Blob:
    """The mean image in the ``.binaryproto`` file at ``path``, float32[channels, height, width]."""
    buffer = _mapped(path)
    try:
        mean = _blob(buffer, 0, len(buffer), path.name)
    except WireError as error:
        raise RetargetError(f"{path.name}: {error}", DAMAGED) from None
    if mean.ndim == 4 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim != 3 or mean.size == 0:
        raise RetargetError(
            f"{path.name}: a mean image has channels, height and width, and this has the shape {list(mean.shape)}",
            "`compute_image_mean` of Caffe writes one",
        )
    return mean


def _mapped(path: Path) -> Buffer:
    try:
        with path.open("rb") as file:
            # A mapping of nothing cannot be made.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RetargetError(f"cannot read '{path}': {reason}", "give the path of a caffemodel") from None


def _hint(buffer: Buffer) -> str:
    """What to do with a file that cannot be read as weights: it may be the other one of the pair."""
    head = bytes(buffer[:512]).lstrip()
    if (head.isascii() and head[:5] in (b"name:", b"layer", b"input")) or head[:1] == b"#":
        return "this is the text of a prototxt: give `NET.prototxt,NET.caffemodel`"
    if head.startswith(b"version https://git-lfs"):
        return "this is a pointer of Git LFS: `git lfs pull` brings the file itself"
    return DAMAGED


def _layer(buffer: Buffer, outer: Field, file: str) -> tuple[SavedLayer, Literal["V0", "V1", "V2"]]:
    if outer.number == _NET_LAYER:
        return _saved(buffer, outer, file, name=1, kind=2, blobs=7), "V2"
    for field in fields(buffer, outer.start, outer.end):
        if field.number == 1 and field.wire == LENGTH:
            return _saved(buffer, field, file, name=1, kind=2, blobs=50), "V0"
    return _saved(buffer, outer, file, name=4, kind=5, blobs=6), "V1"


def _saved(buffer: Buffer, outer: Field, file: str, *, name: int, kind: int, blobs: int) -> SavedLayer:
    """The layer in ``outer``, whose fields have these numbers."""
    called, typed = "", ""
    found: list[Field] = []
    for field in fields(buffer, outer.start, outer.end):
        if field.number == name and field.wire == LENGTH:
            called = _text(buffer, field)
        elif field.number == kind and field.wire in (VARINT, LENGTH):
            typed = str(field.value) if field.wire == VARINT else _text(buffer, field)
        elif field.number == blobs and field.wire == LENGTH:
            if len(found) == MAX_BLOBS:
                raise RetargetError(f"{file}: layer '{called}' has more than {MAX_BLOBS:,} blobs", DAMAGED)
            found.append(field)
    read_blobs = tuple(
        _blob(buffer, each.start, each.end, f"{file}: blob {index} of layer '{called}'")
        for index, each in enumerate(found)
    )
    return SavedLayer(called, typed, read_blobs)


def _text(buffer: Buffer, field: Field) -> str:
    return decoded(bytes(buffer[field.start : field.end]))


def _blob(buffer: Buffer, start: int, end: int, place: str) -> Blob:
    """The ``BlobProto`` between ``start`` and ``end``."""
    shape: list[int] = []
    legacy: dict[int, int] = {}
    raw_type = 1
    stored: list[Field] = []
    for field in _folded(buffer, start, end):
        if field.number == 7 and field.wire == LENGTH:
            shape = _dims(buffer, field, place)
        elif field.number in (1, 2, 3, 4) and field.wire == VARINT:
            legacy[field.number] = signed(field.value)
        elif field.number == 10 and field.wire == VARINT:
            raw_type = field.value
        elif field.number in _SINGLE or field.number == _RAW:
            stored.append(field)
            if len(stored) > MAX_PIECES:
                raise RetargetError(f"{place}: its numbers lie in more than {MAX_PIECES:,} pieces", DAMAGED)
    values = _values(buffer, stored, raw_type, place)
    if legacy:
        shape = [legacy.get(number, 0) for number in (1, 2, 3, 4)]
    if min(shape, default=1) < 1 or math.prod(shape) != values.size:
        raise RetargetError(f"{place}: its shape is {shape}, and it has {values.size:,} numbers", DAMAGED)
    return values.reshape(shape)


def _dims(buffer: Buffer, outer: Field, place: str) -> list[int]:
    """Of a ``BlobShape``, packed or one by one."""
    dims: list[int] = []
    for field in fields(buffer, outer.start, outer.end):
        at = field.start
        while field.number == 1 and at < field.end:
            dim, at = (field.value, field.end) if field.wire == VARINT else varint(buffer, at, field.end)
            dims.append(signed(dim))
            if len(dims) > MAX_AXES:
                raise RetargetError(f"{place}: more than {MAX_AXES} axes", DAMAGED)
    return dims


def _values(buffer: Buffer, stored: Sequence[Field], raw_type: int, place: str) -> Blob:
    """The numbers in ``stored``, one after the other: a view of the file where it can be one."""
    pieces = []
    for field in stored:
        single, name = _SINGLE.get(field.number, (-1, ""))
        if field.number == _RAW and raw_type not in _RAW_TYPES:
            raise RetargetError(f"{place}: numbers of type {raw_type}, which weights do not have", DAMAGED)
        dtype = np.dtype(name or _RAW_TYPES[raw_type])
        if field.wire not in (LENGTH, single) or (field.wire == LENGTH and (field.end - field.start) % dtype.itemsize):
            raise RetargetError(f"{place}: its numbers are not of {dtype}", DAMAGED)
        # Those that stand one by one have a tag of one byte between them.
        step = dtype.itemsize + (field.wire != LENGTH)
        count = (field.end - field.start + step - dtype.itemsize) // step
        pieces.append(np.ndarray((count,), dtype, buffer, field.start, (step,)))
    if len(pieces) == 1 and pieces[0].dtype == np.float32 and pieces[0].flags.c_contiguous:
        return pieces[0]
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, which is met when weights are checked
        return np.concatenate(pieces or [np.empty(0, np.float32)], dtype=np.float32, casting="same_kind")


def _folded(buffer: Buffer, start: int, end: int) -> Iterator[Field]:
    """Fields, those of a run of numbers one by one as if they were one: a caffemodel may have millions of them."""
    at = start
    while at < end:
        for field in fields(buffer, at, end):
            at = field.end
            if field.number in _SINGLE and field.wire == _SINGLE[field.number][0]:
                at = _run_end(buffer, field, end)
                yield field._replace(end=at)
                break
            yield field


def _run_end(buffer: Buffer, first: Field, end: int) -> int:
    """Where the run of fields of fixed size that begins with ``first`` ends."""
    size = first.end - first.start
    tag, step = first.number << 3 | first.wire, size + 1
    at, ahead = first.end, 16
    while (count := min(ahead, (end - at) // step)) > 0:
        tags = np.ndarray((count,), np.uint8, buffer, at, (step,))
        same = count if (tags == tag).all() else int((tags != tag).argmax())
        at += same * step
        if same < count:
            break
        ahead = min(2 * ahead, 1 << 20)
    return at

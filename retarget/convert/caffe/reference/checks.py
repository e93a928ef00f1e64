"""What a layer's evaluation asks of its parameters, weights and inputs; each failure names the layer and its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retarget.convert.caffe.net import Blob, Layer, Message
from retarget.errors import RetargetError

Wide: TypeAlias = NDArray[np.float64]
"""Blobs are float32, as Caffe's are; sums are made in this."""


def wrong(layer: Layer, reason: str, hint: str | None = None) -> RetargetError:
    """The error for a layer that Caffe would not take."""
    return RetargetError(f"{layer.place}: {reason}", hint)


def narrow(array: NDArray[np.generic]) -> Blob:
    """As a blob."""
    return array.astype(np.float32)


def wide(blob: Blob) -> Wide:
    """To compute with."""
    return blob.astype(np.float64)


def show(shape: Sequence[int]) -> str:
    """``[2,4,9,10]``."""
    return f"[{','.join(map(str, shape))}]"


def canonical(layer: Layer, axis: int, rank: int) -> int:
    """``axis`` counted from the front; Caffe counts negative ones from the end."""
    if not -rank <= axis < rank:
        raise wrong(layer, f"axis {axis} of an input of rank {rank}")
    return axis % rank


def at_least(layer: Layer, blob: Blob, rank: int) -> Blob:
    """``blob``, of at least ``rank`` axes."""
    if blob.ndim < rank:
        raise wrong(layer, f"takes inputs of at least {rank} axes, not of {show(blob.shape)}")
    return blob


def image(layer: Layer, blob: Blob) -> Blob:
    """``blob``, of the axes N, C, H, W."""
    if blob.ndim != 4:
        raise wrong(layer, f"takes [N,C,H,W], not {show(blob.shape)}")
    return blob


def same_shape(layer: Layer, inputs: Sequence[Blob]) -> None:
    """Raise unless all inputs are of one shape."""
    if len({blob.shape for blob in inputs}) > 1:
        raise wrong(layer, f"takes inputs of one shape, not {' and '.join(show(blob.shape) for blob in inputs)}")


def weights(layer: Layer, count: int) -> tuple[Blob, ...]:
    """The first ``count`` weights."""
    if len(layer.blobs) < count:
        raise wrong(
            layer,
            f"needs {count} weight blobs, the caffemodel has {len(layer.blobs)} for it",
            "is this the caffemodel that belongs to the prototxt? Layers are matched by name",
        )
    return layer.blobs[:count]


def shaped(layer: Layer, blob: Blob, shape: Sequence[int], what: str) -> Wide:
    """A weight in ``shape``, whatever leading ones an old file has saved it with."""
    if blob.size != int(np.prod(shape, dtype=object)):
        raise wrong(layer, f"{what} must be {show(shape)} and are {show(blob.shape)}")
    return wide(blob).reshape(tuple(shape))


def choice(layer: Layer, message: Message, name: str, numbers: Mapping[str, int]) -> str:
    """The value of an enum by its name; the first of ``numbers`` is the default. A file may give the number instead."""
    word = message.word(name, next(iter(numbers)))
    for known, number in numbers.items():
        if word in (known, str(number)):
            return known
    raise wrong(layer, f"{name} {word} is unknown", f"it may be {', '.join(numbers)}")


def positive(layer: Layer, message: Message, name: str, default: int = 0) -> int:
    """An integer that must be above 0."""
    value = message.integer(name, default)
    if value <= 0:
        raise wrong(layer, f"{name} must be above 0" + (f", not {value}" if name in message else ""))
    return value


def whole(layer: Layer, blob: Blob, limit: int, what: str) -> NDArray[np.int64]:
    """Indices held in a float blob, each from 0 up to and without ``limit``."""
    if not bool(np.all((blob >= 0) & (blob < limit))):
        raise wrong(layer, f"{what} must be from 0 to {limit - 1}")
    return blob.astype(np.int64)

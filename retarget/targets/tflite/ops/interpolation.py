"""What ONNX's Resize means along one axis: which elements each result is made of, and with which weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float64]
    Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scaled:
    """One axis."""

    size: int
    out: int
    scale: float
    """The factor of the node, which need not be ``out / size``."""
    start: float = 0.0
    end: float = 1.0
    """The part of the operand that is seen, of ``tf_crop_and_resize``."""


@dataclass(frozen=True)
class How:
    """The attributes that are the same for all axes."""

    mode: str
    """``nearest``, ``linear`` or ``cubic``."""
    coordinates: str
    rounding: str
    cubic: float
    exclude_outside: bool
    antialias: bool


def places(axis: Scaled, coordinates: str) -> Floats:
    """Where each result lies in the operand, in float32 steps as ONNX Runtime has them."""
    one = np.float32
    result = np.arange(axis.out, dtype=one)
    size, out, scale = one(axis.size), one(axis.out), one(axis.scale)
    half = one(0.5)
    if coordinates == "align_corners":
        at = result * (size - 1) / (out - 1) if axis.out > 1 else result * 0
    elif coordinates == "asymmetric":
        at = result / scale
    elif coordinates == "tf_crop_and_resize":
        start, end = one(axis.start), one(axis.end)
        if axis.out > 1:
            at = start * (size - 1) + result * (end - start) * (size - 1) / (out - 1)
        else:
            at = result + half * (start + end) * (size - 1)
    elif coordinates == "pytorch_half_pixel" and axis.out == 1:
        at = result * 0
    else:
        symmetric = coordinates == "half_pixel_symmetric"
        shift = size / 2 * (1 - out / (scale * size)) if symmetric else one(0)
        at = shift + (result + half) / scale - half
    return at.astype(np.float64)


def outside(axis: Scaled, at: Floats) -> npt.NDArray[np.bool_]:
    """Which results lie outside of the operand."""
    return (at < 0) | (at > axis.size - 1)


def nearest(axis: Scaled, at: Floats, rounding: str) -> Indices:
    """The element that each result is."""
    ways: dict[str, Callable[[Floats], Floats]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    }
    indices: Indices = np.clip(ways[rounding](at), 0, axis.size - 1).astype(np.int64)
    return indices


def weights(axis: Scaled, at: Floats, how: How) -> Floats:
    """[out, size]: how much of each element each result has."""
    matrix = np.zeros((axis.out, axis.size))
    # With antialias the kernel is as much wider as the result is smaller.
    narrow = min(axis.scale, 1.0) if how.antialias else 1.0
    reach = 1 if how.mode == "linear" else 2
    for row, place in enumerate(at):
        first = math.floor(place - reach / narrow) + 1
        taps = np.arange(first, math.ceil(place + reach / narrow))
        parts = _kernel((taps - place) * narrow, how)
        inside = (taps >= 0) & (taps < axis.size)
        if how.exclude_outside:
            parts = np.where(inside, parts, 0)
        if how.exclude_outside or how.antialias:
            parts = parts / parts.sum()
        np.add.at(matrix[row], np.clip(taps, 0, axis.size - 1), parts)
    return matrix


def _kernel(distance: Floats, how: How) -> Floats:
    x = np.abs(distance)
    if how.mode == "linear":
        line: Floats = np.clip(1 - x, 0, 1)
        return line
    a = how.cubic
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


# ---- what TFLite's own kernels do


def kernel_nearest(axis: Scaled, *, align_corners: bool, half_pixel: bool) -> Indices:
    """The element that each result of RESIZE_NEAREST_NEIGHBOR is."""
    at = _kernel_scale(axis, align_corners=align_corners) * (_numbers(axis) + np.float32(0.5 if half_pixel else 0))
    # TfLiteRound takes halves away from zero, and there are no negative ones.
    rounded = np.floor(at + np.float32(0.5)) if align_corners else np.floor(at)
    indices: Indices = np.clip(rounded, 0, axis.size - 1).astype(np.int64)
    return indices


def kernel_linear(axis: Scaled, *, align_corners: bool, half_pixel: bool) -> Floats:
    """The weights of RESIZE_BILINEAR along one axis: [out, size]."""
    scale, half = _kernel_scale(axis, align_corners=align_corners), np.float32(0.5)
    at = (_numbers(axis) + half) * scale - half if half_pixel else _numbers(axis) * scale
    place = np.clip(at, 0, axis.size - 1)
    return weights(axis, place.astype(np.float64), LINEAR)


def _numbers(axis: Scaled) -> npt.NDArray[np.float32]:
    return np.arange(axis.out, dtype=np.float32)


def _kernel_scale(axis: Scaled, *, align_corners: bool) -> np.float32:
    if align_corners and axis.out > 1:
        return np.float32(axis.size - 1) / np.float32(axis.out - 1)
    return np.float32(axis.size) / np.float32(axis.out)


LINEAR = How("linear", "half_pixel", "floor", 0.0, exclude_outside=False, antialias=False)

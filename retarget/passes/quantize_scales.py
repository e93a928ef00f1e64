"""Scales and zero points: of activations from their clipping ranges, of weights and biases from their values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retarget.schemes import Grid

SMALLEST = 2.0**-56
"""The smallest scale: the product of two, a bias's, is then still a normal number in float32."""
BIAS_LIMIT = 2.0**30
"""Largest integer of an int32 bias: half the accumulator is left to the products."""
_CHUNK = 1 << 20
"""Elements of a weight that are worked on together: intermediate results take no more."""

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True)
class Levels:
    """Scale (a float32 number) and zero point of an activation."""

    scale: float
    zero_point: int


def activation_levels(low: float, high: float, grid: Grid) -> Levels:
    """The levels that cover ``low`` to ``high`` and hold zero exactly.

    ``high`` itself is never exceeded where ``low`` is 0: a runtime removes a Clip only in front of a QuantizeLinear
    that cuts off no later.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        # Nothing but zeros was seen: what else may come has no size.
        high = 1.0
    if grid.symmetric:
        return Levels(_float32(max(high / grid.high, -low / grid.high)), 0)
    scale = _float32((high - low) / (grid.high - grid.low))
    if low == 0:
        while scale > SMALLEST and np.float32(scale) * np.float32(grid.high - grid.low) > np.float32(high):
            scale = float(np.nextafter(np.float32(scale), np.float32(0)))
    zero_point = round(grid.low - low / scale)
    return Levels(scale, min(max(zero_point, grid.low), grid.high))


def weight_scales(weight: NDArray[np.float32], axis: int, low: int) -> NDArray[np.float32]:
    """A scale for each channel of ``axis``: its largest magnitude is the last integer. A channel of zeros gets 0.

    Not the scale of the smallest squared error, and not all 256 integers. On networks trained on small images the
    outputs of the first were 0 to 0.6 dB worse, as the largest weights matter most; of the second 0.9 to 1.5 dB, as
    half a step is cut off at the positive end.
    """
    largest = np.zeros(weight.shape[axis], np.float32)
    others = tuple(at for at in range(weight.ndim) if at != axis)
    for piece in _pieces(weight, axis):
        # Without `abs`: that would be a copy of the weight.
        np.maximum(largest, np.maximum(piece.max(axis=others), -piece.min(axis=others)), out=largest)
    return largest / np.float32(min(127, -low))


def _pieces(weight: NDArray[_T], axis: int) -> list[NDArray[_T]]:
    """``weight`` in views of about ``_CHUNK`` elements, cut along another axis than ``axis``."""
    size, longest = max((size, at) for at, size in enumerate(weight.shape) if at != axis)
    return np.array_split(weight, max(1, min(size, math.ceil(weight.size / _CHUNK))), axis=longest)


def bias_floor(bias: NDArray[np.float32], input_scale: float) -> NDArray[np.float64]:
    """The smallest weight scale of each channel with which ``bias`` fits the int32 of scale input × weight."""
    return np.abs(bias.astype(np.float64)) / (input_scale * BIAS_LIMIT)


def fill_scales(scales: NDArray[np.float32], floor: NDArray[np.float64]) -> NDArray[np.float32]:
    """``scales`` raised to ``floor`` and to ``SMALLEST``.

    A channel of zeros, whose weights fit any scale, gets the one in which its bias is most exact; where the bias is
    zero too it gets 1.
    """
    raised = np.where((scales == 0) & (floor == 0), 1.0, np.maximum(scales.astype(np.float64), floor))
    scaled: NDArray[np.float32] = np.maximum(raised, SMALLEST).astype(np.float32)
    return scaled


def quantize_weight(weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int, low: int) -> NDArray[np.int8]:
    """``weight`` in integers of ``low`` to 127, ``scales`` along ``axis``."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    result = np.empty(weight.shape, np.int8)
    divisor = scales.reshape(shape)
    for source, target in zip(_pieces(weight, axis), _pieces(result, axis), strict=True):
        target[...] = np.clip(np.rint(source / divisor), low, 127)
    return result


def quantize_bias(bias: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int32]:
    """``bias`` in int32, ``scales`` for each channel."""
    return np.rint(bias.astype(np.float64) / scales).astype(np.int32)


def _float32(scale: float) -> float:
    return float(np.float32(max(scale, SMALLEST)))

"""What TFLite's own kernels that resize do along one axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.interpolation import LINEAR, weights

if TYPE_CHECKING:
    import numpy.typing as npt

    from retarget.targets.interpolation import Floats, Indices, Scaled


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

"""Other sizes of images: nearest elements, or linear between two along each axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, OpFunction, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


def resize_nearest_neighbor(call: Call) -> Tensor:
    """The element under the middle of each new one.

    That is what coremltools takes for TensorFlow's ``half_pixel_centers``; the docstring names no rule.
    """
    x = call.stored("x")
    call.hold((*x.shape[:-2], *_target(call)))
    for axis, size in zip((-2, -1), _target(call), strict=True):
        x = x.take(_middles(x.shape[axis], size), axis)
    return x


def upsample_nearest_neighbor(call: Call) -> Tensor:
    """The element under the beginning of each new one."""
    x = call.stored("x")
    call.hold((*x.shape[:-2], *_scaled(call, x)))
    for axis, scale in zip((-2, -1), _scales(call), strict=True):
        x = x.take(_beginnings(x.shape[axis], scale), axis)
    return x


def resize_bilinear(call: Call) -> Tensor:
    x, mode = call.array("x"), call.text("sampling_mode", "DEFAULT")
    call.hold((*x.shape[:-2], *_target(call)))
    for axis, size in zip((-2, -1), _target(call), strict=True):
        x = _linear(x, axis, grid(mode, x.shape[axis], size))
    return x


def upsample_bilinear(call: Call) -> Tensor:
    x, corners = call.array("x"), call.flag("align_corners", True)
    if corners and call.flag("half_pixel_centers", False):
        raise NotInterpreted("half_pixel_centers with align_corners")
    centres = call.flag("half_pixel_centers", not corners)
    mode = "STRICT_ALIGN_CORNERS" if corners else "UNALIGN_CORNERS" if centres else "DEFAULT"
    sizes = _scaled(call, x)
    call.hold((*x.shape[:-2], *sizes))
    for axis, size in zip((-2, -1), sizes, strict=True):
        # The scale only says the size: the ratio of the sizes is what places are computed with.
        x = _linear(x, axis, grid(mode, x.shape[axis], size))
    return x


def resize(call: Call) -> Tensor:
    """To the last ``resized_dims`` sizes of ``shape``, 0 for a size that stays."""
    x, count = call.stored("x"), call.integer("resized_dims")
    interpolation, mode = call.text("interpolation_mode", "LINEAR"), call.text("sampling_mode", "DEFAULT")
    sizes = call.integers("shape")
    if not 0 <= count <= len(sizes) <= x.ndim:
        raise ToolchainFailure(f"{count} resized axes of {len(sizes)} sizes of {x.ndim} axes")
    step: Callable[[Tensor, int, int], Tensor]
    if interpolation == "LINEAR" and x.dtype.kind == "f":
        x = call.array("x")

        def step(array: Tensor, axis: int, size: int) -> Tensor:
            return _linear(array, axis, grid(mode, array.shape[axis], size))

    elif interpolation == "NEAREST_NEIGHBOR" and mode == "DEFAULT":

        def step(array: Tensor, axis: int, size: int) -> Tensor:
            return array.take(_middles(array.shape[axis], size), axis)

    else:
        raise NotInterpreted(f"interpolation_mode '{interpolation}', sampling_mode '{mode}' of {x.dtype.name}")
    wanted = [sizes[axis] or x.shape[axis] for axis in range(-count, 0)]
    call.hold((*x.shape[: x.ndim - count], *wanted))
    for axis, size in zip(range(-count, 0), wanted, strict=True):
        x = step(x, axis, size)
    return x


def crop(call: Call) -> Tensor:
    x = call.stored("x")
    (top, bottom), (left, right) = call.integers("crop_height"), call.integers("crop_width")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


# ---- places


def grid(mode: str, size: int, wanted: int) -> Tensor:
    """Where ``wanted`` new elements are among ``size``, in elements: the docstring of ``resize_bilinear``."""
    index = np.arange(wanted, dtype=np.float64)
    match mode:
        case "STRICT_ALIGN_CORNERS" | "ALIGN_CORNERS" if wanted > 1 or size == 1:
            places = index * ((size - 1) / max(wanted - 1, 1))
        case "ALIGN_CORNERS":
            places = index + (size - 1) / 2
        case "DEFAULT":
            places = index * (size / wanted)
        case "OFFSET_CORNERS":
            places = (index + 0.5) * (max(1, size - 1) / wanted)
        case "UNALIGN_CORNERS":
            places = (index + 0.5) * (size / wanted) - 0.5
        case _:
            raise NotInterpreted(f"sampling_mode '{mode}' of {size} elements to {wanted}")
    return np.clip(places, 0, size - 1)


def _linear(x: Tensor, axis: int, places: Tensor) -> Tensor:
    low = np.floor(places).astype(np.intp)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    part = (places - low).astype(np.float32).reshape(-1, *[1] * (-axis - 1))
    return np.asarray(x.take(low, axis) * (1 - part) + x.take(high, axis) * part)


def _middles(size: int, wanted: int) -> NDArray[np.intp]:
    return (2 * np.arange(wanted) + 1) * size // (2 * wanted)


def _beginnings(size: int, scale: float) -> NDArray[np.intp]:
    wanted = _whole(size, scale)
    index = np.arange(wanted)
    by_sizes = index * size // wanted
    # coremltools asks for a size by a scale that is 1e-4 elements too large, so that none is lost when it is rounded.
    by_scale = np.minimum(np.floor(index / scale).astype(np.intp), size - 1)
    if size * scale - wanted > 1e-3 and not np.array_equal(by_sizes, by_scale):
        raise NotInterpreted(f"scale {scale:g} of {size} elements: the ratio of the sizes has other elements nearest")
    return by_sizes


def _scales(call: Call) -> tuple[float, float]:
    return call.number("scale_factor_height", 1), call.number("scale_factor_width", 1)


def _scaled(call: Call, x: Tensor) -> list[int]:
    return [_whole(size, scale) for size, scale in zip(x.shape[-2:], _scales(call), strict=True)]


def _whole(size: int, scale: float) -> int:
    return int(np.floor(np.float32(size) * np.float32(scale)))


def _target(call: Call) -> tuple[int, int]:
    return call.integer("target_size_height", 1), call.integer("target_size_width", 1)


OPS: Mapping[str, OpFunction] = {
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
    "resize_bilinear": resize_bilinear,
    "upsample_bilinear": upsample_bilinear,
    "resize": resize,
    "crop": crop,
}

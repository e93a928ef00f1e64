"""What ONNX's Resize means along one axis: which elements each result is made of, and with which weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from retarget.targets.walk import Refusal

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float64]
    Indices: TypeAlias = npt.NDArray[np.int64]


CLOSE = 1e-6
"""How far weights of a kernel may be from those of the node: less than what float32 makes of them."""


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

    @staticmethod
    def of(node: ir.Node) -> How:
        """What a Resize says."""
        attributes = node.attributes
        return How(
            attributes.get_string("mode") or "nearest",
            attributes.get_string("coordinate_transformation_mode") or "half_pixel",
            attributes.get_string("nearest_mode") or "round_prefer_floor",
            attributes.get_float("cubic_coeff_a", -0.75),
            exclude_outside=bool(attributes.get_int("exclude_outside", 0)),
            antialias=bool(attributes.get_int("antialias", 0)),
        )


@dataclass(frozen=True, eq=False)
class Along:
    """What happens along one axis: each result is one element, or a sum of several."""

    axis: Scaled
    indices: Indices | None = None
    matrix: Floats | None = None
    """[out, size]. Without it and ``indices`` each result is the element of its number."""
    inside: npt.NDArray[np.bool_] | None = None
    """Which results lie inside of the operand, where there are others, which have a value of their own."""

    @cached_property
    def is_nothing(self) -> bool:
        """Whether each result is the element of its number."""
        if self.axis.out != self.axis.size or self.inside is not None:
            return False
        if self.indices is not None:
            return bool(np.array_equal(self.indices, np.arange(self.axis.size)))
        return self.matrix is None or bool(np.allclose(self.matrix, np.eye(self.axis.size), rtol=0, atol=CLOSE))


def along(axis: Scaled, how: How) -> Along:
    """What a Resize does along one axis."""
    if axis.out == axis.size and axis.scale == 1:
        return Along(axis)
    at = places(axis, how.coordinates)
    beyond = outside(axis, at)
    inside = ~beyond if how.coordinates == "tf_crop_and_resize" and beyond.any() else None
    if how.mode == "nearest":
        return Along(axis, indices=nearest(axis, at, how.rounding), inside=inside)
    return Along(axis, matrix=weights(axis, at, how), inside=inside)


def requested(
    node: ir.Node,
    shape: Sequence[int],
    sizes: Sequence[int] | None,
    scales: Sequence[float] | None,
    regions: Sequence[float] | None,
) -> list[Scaled]:
    """Each axis of ``shape`` as a Resize asks for it, by ``sizes``, or by ``scales`` where these are given.

    ``regions``: of ``tf_crop_and_resize``, all starts and then all ends. Raises ``Refusal`` where the result is empty,
    and where the runtimes do not agree on it.
    """
    axes = [axis % len(shape) for axis in node.attributes.get_ints("axes") or range(len(shape))]
    own = [shape[axis] for axis in axes]
    if scales is None:
        factors, outs = of_sizes(node, own, sizes or ())
    else:
        factors, outs = list(scales), of_scales(own, scales)
    if any(out < 1 for out in outs):
        raise Refusal("the result has no elements")
    found = [Scaled(size, size, 1.0) for size in shape]
    antialias = bool(node.attributes.get_int("antialias", 0))
    for index, axis in enumerate(axes):
        part = (0.0, 1.0) if regions is None else (float(regions[index]), float(regions[index + len(axes)]))
        if part != (0.0, 1.0) and (factors[index] == 1 or antialias):
            raise Refusal("roi of an axis that keeps its size, or with antialias: ONNX Runtime differs from ONNX in it")
        found[axis] = Scaled(shape[axis], outs[index], factors[index], *part)
    return found


def of_sizes(node: ir.Node, shape: Sequence[int], sizes: Sequence[int]) -> tuple[list[float], list[int]]:
    """The factors and the sizes of the result along axes of ``shape``, of a Resize that asks for ``sizes``."""
    policy = node.attributes.get_string("keep_aspect_ratio_policy") or "stretch"
    scales = [float(np.float32(out) / np.float32(size)) for out, size in zip(sizes, shape, strict=True)]
    if policy == "stretch":
        return scales, list(sizes)
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [scale] * len(scales), [math.floor(np.float32(scale) * size + 0.5) for size in shape]


def of_scales(shape: Sequence[int], scales: Sequence[float]) -> list[int]:
    """The sizes of the result of a Resize by ``scales``."""
    return [math.floor(np.float32(size) * np.float32(scale)) for size, scale in zip(shape, scales, strict=True)]


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
    first = np.floor(at - reach / narrow).astype(np.int64) + 1
    # As many as there can be of each: those beyond the kernel weigh nothing.
    taps = first[:, None] + np.arange(math.ceil(2 * reach / narrow))
    parts = _kernel((taps - at[:, None]) * narrow, how)
    if how.exclude_outside:
        parts = np.where((taps >= 0) & (taps < axis.size), parts, 0)
    if how.exclude_outside or how.antialias:
        parts = parts / parts.sum(axis=1, keepdims=True)
    np.add.at(matrix, (np.arange(axis.out)[:, None], np.clip(taps, 0, axis.size - 1)), parts)
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


LINEAR = How("linear", "half_pixel", "floor", 0.0, exclude_outside=False, antialias=False)
"""Between the two elements beside a place, by how near they are."""

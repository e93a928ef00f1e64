"""Resize: by Interp where its weights are those of the node, else along one axis after the other.

Interp resizes the last two axes of a blob of three, or the last of two. What it does along one, in ONNX's words:

=============================  =====================================================
``0=1``                        nearest, asymmetric with floor
``0=2``, ``0=3``               linear, cubic (a = -0.75): half_pixel
``0=2 6=1``, ``0=3 6=1``       linear, cubic: align_corners
=============================  =====================================================

It takes the factor to be the ratio of the sizes. Which of them fits is not read off the attributes: weights are held
against those of the node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.interpolation import (
    CLOSE,
    LINEAR,
    Along,
    How,
    Scaled,
    along,
    places,
    requested,
    weights,
)
from retarget.targets.ncnn.call import FLOATS, NUMBERS, Call, Op
from retarget.targets.ncnn.ops.padding import framed
from retarget.targets.ncnn.ops.places import taken
from retarget.targets.ncnn.ops.shape import held
from retarget.targets.ncnn.program import Blob, Param, Weight
from retarget.targets.ncnn.values import Refusal, Value

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.ncnn.values import Result

KIND, HEIGHT_FACTOR, WIDTH_FACTOR, HEIGHT, WIDTH, CORNERS = 0, 1, 2, 3, 4, 6
"""Keys of Interp."""


@dataclass(frozen=True)
class Way:
    """One of Interp's."""

    kind: int
    corners: bool = False

    def does(self, step: Along) -> bool:
        """Whether it does what the node does along one axis."""
        size, out = step.axis.size, step.axis.out
        if self.kind == 1:
            if size == 1:
                return step.indices is not None or _is_copy(step)
            indices = np.arange(size) if step.is_nothing else step.indices
            return indices is not None and np.array_equal(indices, _floor(size, out))
        # It reads as many elements side by side, and divides by one less than there are.
        if size < (2 if self.kind == 2 else 4) or (self.corners and out == 1):
            return False
        if step.is_nothing:
            return True
        if step.matrix is None:
            return False
        at = places(Scaled(size, out, out / size), "align_corners" if self.corners else "half_pixel")
        how = LINEAR if self.kind == 2 else CUBIC
        own = weights(Scaled(size, out, out / size), np.clip(at, 0, size - 1) if self.kind == 2 else at, how)
        return bool(np.abs(own - step.matrix).max() <= CLOSE)


CUBIC = How("cubic", "half_pixel", "floor", -0.75, exclude_outside=False, antialias=False)

WAYS = (Way(1), Way(2), Way(2, corners=True), Way(3), Way(3, corners=True))


def _is_copy(step: Along) -> bool:
    """Of an axis of one element: whether each result is it."""
    return step.is_nothing or (step.matrix is not None and bool(np.allclose(step.matrix, 1, rtol=0, atol=CLOSE)))


def _floor(size: int, out: int) -> Array:
    """The elements that Interp takes, in float32 steps as it has them."""
    step = np.float32(size) / np.float32(out)
    return np.minimum((np.arange(out, dtype=np.float32) * step).astype(np.int64), size - 1)


def _is_whole(factor: float) -> bool:
    """Whether Interp finds each element as often by ``factor`` as it finds by sizes, however many there are."""
    if not float(factor).is_integer():
        return False
    step = np.float32(1) / np.float32(factor)
    results = np.arange(1 << 14)
    return np.array_equal((results.astype(np.float32) * step).astype(np.int64), results // int(factor))


def resize(call: Call) -> Result:
    how, value = How.of(call.node), call.value(0)
    if how.mode != "nearest" and call.dtype(0).name not in FLOATS:
        raise Refusal(f"mode={how.mode} of integers: ncnn has it of floats")
    steps = _steps(call, how)
    outs = tuple(step.axis.out for step in steps)
    if call.declared() not in (None, outs):
        raise Refusal(f"its result is {list(outs)} in float32 steps, and said to be {list(call.declared() or ())}")
    changed = [axis for axis, step in enumerate(steps) if not step.is_nothing]
    if changed and changed[0] == 0:
        value = call.with_rows(value, 1)
    by_factor = not call.has(3)
    plane = [len(steps) - 2, len(steps) - 1]
    if changed[-2:] == plane and all(steps[axis].inside is None for axis in plane):
        way = next((way for way in WAYS if way.does(steps[-2]) and way.does(steps[-1])), None)
        if way is not None:
            value = _image(call, value, way, (steps[-2], steps[-1]), plane[0], by_factor=by_factor)
            del changed[-2:]
    beyond = _beyond(call)
    for axis in changed:
        value = _along(call, value, axis, steps[axis], beyond, by_factor=by_factor)
    largest = max(call.largest(0), abs(beyond))
    return call.made(call.blob(value), value.shape, largest=largest, picks=True)


def _beyond(call: Call) -> float:
    """What stands where there is nothing: among integers one of them, cut towards zero."""
    number = call.attributes.get_float("extrapolation_value", 0.0)
    if call.is_float(0):
        return number
    limits = np.iinfo(call.dtype(0).name)
    if not limits.min <= number <= limits.max:
        raise Refusal(f"extrapolation_value={number:g} is no {call.dtype(0).name}")
    return float(math.trunc(number))


def _steps(call: Call, how: How) -> list[Along]:
    """What happens along each axis."""
    sizes = call.numbers(3, "the size") if call.has(3) else None
    scales = None if sizes else call.array(2, "the scale").reshape(-1).tolist()
    regions = call.array(1, "the region").reshape(-1).tolist() if how.coordinates == "tf_crop_and_resize" else None
    return [along(axis, how) for axis in requested(call.node, call.shape(0), sizes, scales, regions)]


# ---- by Interp


def _image(call: Call, value: Value, way: Way, steps: tuple[Along, Along], axis: int, *, by_factor: bool) -> Value:
    """``value`` resized along ``axis``, the last but one, and the last."""
    before = math.prod(value.row[:axis])
    outs = [step.axis.out for step in steps]
    sizes = value.row[axis : axis + 2]
    if call.blob(value).dims == (before,):
        # Channels of one element, as global pooling gives them: all results are that, whatever Interp is to do.
        way, sizes = Way(2), ()
    blob = call.view(value, (before, *sizes))
    made = call.add("Interp", (blob,), (before, *outs), _params(way, steps, by_factor=by_factor))
    return _held(value, made, {axis: outs[0], axis + 1: outs[1]})


def _params(way: Way, steps: Sequence[Along], *, by_factor: bool) -> dict[int, Param]:
    """Of the last two axes, or of the last."""
    params: dict[int, Param] = {KIND: way.kind}
    factors = [step.axis.out / step.axis.size for step in steps]
    if by_factor and all(map(_is_whole, factors)) and all(step.axis.size > 1 for step in steps):
        params |= dict(zip((HEIGHT_FACTOR, WIDTH_FACTOR)[-len(steps) :], factors, strict=True))
    else:
        # Both, or it takes neither.
        params |= {HEIGHT: 1} | dict(
            zip((HEIGHT, WIDTH)[-len(steps) :], (step.axis.out for step in steps), strict=True)
        )
    return params | ({CORNERS: 1} if way.corners else {})


def _along(call: Call, value: Value, axis: int, step: Along, beyond: float, *, by_factor: bool) -> Value:
    """Along one axis; results outside are ``beyond``."""
    way = next((way for way in WAYS if way.does(step)), None) if step.inside is None else None
    if way is not None:
        return _native(call, value, axis, way, step, by_factor=by_factor)
    rows: Array = np.arange(step.axis.out)
    if step.inside is not None:
        # Places only grow, or only fall: what lies inside is in one piece.
        rows = np.flatnonzero(step.inside)
        if not rows.size:
            raise Refusal("no result lies inside of the operand")
    if step.indices is not None:
        value = taken(call, value, axis, [int(index) for index in step.indices[rows]])
    elif step.matrix is not None:
        value = _product(call, value, axis, step.matrix[rows])
    if step.inside is None:
        return value
    pairs = [(0, 0)] * value.rank
    pairs[axis] = int(rows[0]), int(step.axis.out - 1 - rows[-1])
    return framed(call, value, pairs, beyond)


def _native(call: Call, value: Value, axis: int, way: Way, step: Along, *, by_factor: bool) -> Value:
    """By Interp along one axis."""
    before, after = math.prod(value.row[:axis]), math.prod(value.row[axis + 1 :])
    size, out = step.axis.size, step.axis.out
    if after == 1:
        blob = call.view(value, (before, size))
        made = call.add("Interp", (blob,), (before, out), _params(way, [step], by_factor=by_factor))
    else:
        blob = call.view(value, (before, size, after))
        # Along an axis that stays it does nothing only where it reads no more elements than there are.
        whole = Along(Scaled(after, after, 1.0))
        if not way.does(whole):
            matrix = step.matrix if step.matrix is not None else np.eye(size)[step.indices]
            return _product(call, value, axis, matrix)
        made = call.add("Interp", (blob,), (before, out, after), _params(way, [step, whole], by_factor=by_factor))
    return _held(value, made, {axis: out})


# ---- by other layers


def _product(call: Call, value: Value, axis: int, matrix: Array) -> Value:
    """``value`` with [out, size] ``matrix`` along ``axis``."""
    before, after = math.prod(value.row[:axis]), math.prod(value.row[axis + 1 :])
    out, size = matrix.shape
    if after == 1:
        params: dict[int, Param] = {0: out, 1: 0, 2: matrix.size}
        weights = [Weight(matrix.astype(np.float32))]
        made = call.add("InnerProduct", (call.view(value, (before, size)),), (before, out), params, weights)
        return _held(value, made, {axis: out})
    blob = call.view(value, (before, size, after))
    factors = call.lowering.memory(matrix.astype(np.float32), (1, out, size))
    return _held(value, call.add("MatMul", (factors, blob), (before, out, after)), {axis: out})


def _held(value: Value, blob: Blob, sizes: Mapping[int, int]) -> Value:
    """``blob`` as ``value`` with other sizes of some axes."""
    return held(value, blob, [sizes.get(axis, size) for axis, size in enumerate(value.shape)])


# ---- blocks


def depth_to_space(call: Call) -> Result:
    """``1`` of PixelShuffle: whether the places in a block are in front of the channels."""
    x, block = call.spread(0), call.attributes.get_int("blocksize")
    count, channels, height, width = x.shape
    outs = (channels // block**2, height * block, width * block)
    crd = (call.attributes.get_string("mode") or "DCR") == "CRD"
    made = call.add("PixelShuffle", (call.view(x, x.shape[1:]),), outs, {0: block, 1: 0 if crd else 1})
    return call.made(made, (count, *outs), largest=call.largest(0), picks=True)


def space_to_depth(call: Call) -> Result:
    x, block = call.spread(0), call.attributes.get_int("blocksize")
    count, channels, height, width = x.shape
    outs = (channels * block**2, height // block, width // block)
    made = call.add("Reorg", (call.view(x, x.shape[1:]),), outs, {0: block, 1: 1})
    return call.made(made, (count, *outs), largest=call.largest(0), picks=True)


OPS: Mapping[str, Op] = {
    "DepthToSpace": Op(depth_to_space, NUMBERS),
    "Resize": Op(resize, NUMBERS),
    "SpaceToDepth": Op(space_to_depth, NUMBERS),
}

"""Pad in its modes, CenterCropPad; DepthToSpace and SpaceToDepth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from retarget.targets.coreml.call import ANY, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.parts import concatenated, part
from retarget.targets.coreml.values import Dim, dtype_of, is_known
from retarget.targets.pads import Pair, of_center_crop_pad, of_pad

MIRRORED_AXES = 2
"""Core ML mirrors or repeats elements along the last ones alone."""


def pad(call: Call) -> Var:
    pairs = _pairs(call)
    x = cropped(call, call.var(0), pairs)
    pairs = [(max(front, 0), max(back, 0)) for front, back in pairs]
    mode = call.attributes.get_string("mode", "constant") or "constant"
    if mode == "constant":
        value = call.array(2, "the value to pad with").reshape(-1)[0].item() if call.has(2) else 0
        return framed(call, x, pairs, value)
    return _continued(call, x, pairs, mode)


def _pairs(call: Call) -> list[Pair]:
    """The pads of a Pad in front of and behind each axis."""
    axes = call.numbers(3, "the axes") if call.has(3) else None
    return of_pad(call.rank(0), call.numbers(1, "the padding"), axes)


def center_crop_pad(call: Call) -> Var:
    wanted, rank = call.numbers(1, "the shape"), call.rank(0)
    axes = [axis % rank for axis in call.attributes.get_ints("axes", range(rank))]
    pairs = of_center_crop_pad(rank, axes, call.sizes(0, axes), wanted)
    x = cropped(call, call.var(0), pairs)
    return framed(call, x, [(max(front, 0), max(back, 0)) for front, back in pairs], 0)


def cropped(call: Call, x: Var, pairs: Sequence[tuple[int, int]]) -> Var:
    """``x`` without what negative pads, in front of and behind each axis, cut off."""
    for axis, (front, back) in enumerate(pairs):
        if min(front, back) < 0:
            x = part(call, x, axis, slice(max(-front, 0), back if back < 0 else None))
    return x


def framed(call: Call, x: Var, pairs: Sequence[tuple[int, int]], value: float) -> Var:
    """``x`` with ``value`` around it."""
    if not any(map(any, pairs)):
        return x
    if dtype_of(x) != np.int32:
        pads = [number for pair in pairs for number in pair]
        return call.mil.pad(x=x, pad=pads, mode="constant", constant_val=float(value))
    # Core ML pads floats alone.
    for axis, (front, back) in enumerate(pairs):
        values = [_filled(call, x, axis, front, int(value)), x, _filled(call, x, axis, back, int(value))]
        x = concatenated(call, [each for each in values if each is not None], axis)
    return x


def _filled(call: Call, x: Var, axis: int, count: int, value: int) -> Var | None:
    """``count`` elements along ``axis`` and as many as ``x`` has along the others."""
    if not count:
        return None
    shape: list[Dim] = [*x.shape[:axis], count, *x.shape[axis + 1 :]]
    if all(is_known(dim) for dim in shape):
        return call.mil.const(val=np.full([int(str(dim)) for dim in shape], value, np.int32))
    lengths, parts = call.mil.shape(x=x), [call.mil.const(val=np.array([count], np.int32))]
    if axis:
        parts.insert(0, part(call, lengths, 0, slice(0, axis)))
    if axis < x.rank - 1:
        parts.append(part(call, lengths, 0, slice(axis + 1, None)))
    return call.mil.fill(shape=concatenated(call, parts, 0), value=np.int32(value))


def _continued(call: Call, x: Var, pairs: Sequence[tuple[int, int]], mode: str) -> Var:
    """``x`` with what ``mode`` makes of its own elements around it."""
    padded = [axis for axis, pair in enumerate(pairs) if any(pair)]
    if padded and _is_mirrored(x, pairs, padded, mode):
        pads = [number for pair in pairs[-MIRRORED_AXES:] for number in pair]
        # Not used, but held against the type of x, which it has not by default where that is float16.
        kind = "reflect" if mode == "reflect" else "replicate"
        return call.mil.pad(x=x, pad=pads, mode=kind, constant_val=0.0)
    for axis in padded:
        x = _along(call, x, axis, pairs[axis], mode)
    return x


def _is_mirrored(x: Var, pairs: Sequence[tuple[int, int]], padded: Sequence[int], mode: str) -> bool:
    """Whether Core ML's own padding does it."""
    if mode == "wrap" or dtype_of(x) == np.int32 or x.rank < 3 or min(padded) < x.rank - MIRRORED_AXES:
        return False
    less = 1 if mode == "reflect" else 0
    return all(is_known(x.shape[axis]) and max(pairs[axis]) <= int(x.shape[axis]) - less for axis in padded)


def _along(call: Call, x: Var, axis: int, pair: tuple[int, int], mode: str) -> Var:
    """The elements of one axis, which are taken by their numbers; of an open one by their ends."""
    if is_known(x.shape[axis]):
        taken = np.pad(np.arange(int(x.shape[axis])), pair, mode=mode)  # type: ignore[call-overload]
        return call.mil.gather(x=x, indices=taken.astype(np.int32), axis=axis)
    front, back = pair
    if mode != "edge" and max(pair) > _least(call, axis) - (1 if mode == "reflect" else 0):
        call.sizes(0, [axis])
    parts = [x]
    if mode == "edge":
        if front:
            parts.insert(0, _repeated(call, part(call, x, axis, slice(0, 1)), axis, front))
        if back:
            parts.append(_repeated(call, part(call, x, axis, slice(-1, None)), axis, back))
    elif mode == "reflect":
        if front:
            parts.insert(0, call.mil.reverse(x=part(call, x, axis, slice(1, front + 1)), axes=[axis]))
        if back:
            parts.append(call.mil.reverse(x=part(call, x, axis, slice(-back - 1, -1)), axes=[axis]))
    else:
        if front:
            parts.insert(0, part(call, x, axis, slice(-front, None)))
        if back:
            parts.append(part(call, x, axis, slice(0, back)))
    return concatenated(call, parts, axis)


def _repeated(call: Call, x: Var, axis: int, count: int) -> Var:
    return call.mil.tile(x=x, reps=[count if each == axis else 1 for each in range(x.rank)])


def _least(call: Call, axis: int) -> int:
    """The smallest size of an open axis of operand 0 that is known of."""
    value = call.node.inputs[0]
    dim = None if value is None or value.shape is None else value.shape[axis]
    extent = None if dim is None or isinstance(dim, int) else call.lowering.job.shapes.get(str(dim.value))
    if extent is None:
        return 1
    cut = [-number for number in _pairs(call)[axis] if number < 0]
    return extent.min - sum(cut)


# ---- blocks


def depth_to_space(call: Call) -> Var:
    x, block = call.var(0), call.attributes.get_int("blocksize")
    if block == 1:
        return x
    if call.attributes.get_string("mode") == "CRD":
        return call.mil.pixel_shuffle(x=x, upscale_factor=block)
    return call.mil.depth_to_space(x=x, block_size=block)


def space_to_depth(call: Call) -> Var:
    x, block = call.var(0), call.attributes.get_int("blocksize")
    return x if block == 1 else call.mil.space_to_depth(x=x, block_size=block)


OPS: Mapping[str, Op] = {
    "CenterCropPad": Op(center_crop_pad, ANY, moves=True, small=True),
    "DepthToSpace": Op(depth_to_space),
    "Pad": Op(pad, ANY, moves=True, small=True),
    "SpaceToDepth": Op(space_to_depth),
}

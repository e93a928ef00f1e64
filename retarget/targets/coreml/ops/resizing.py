"""Resize: by Core ML's operator where one does the same, else along one axis after the other.

What its operators do, in ONNX's words (``resize_bilinear``; a result of one element aside, which they do otherwise):

=====================  ==========================================================================
UNALIGN_CORNERS        linear, half_pixel
STRICT_ALIGN_CORNERS   linear, align_corners
DEFAULT                linear, asymmetric
upsample_bilinear      linear by a whole factor, half_pixel or (``align_corners``) align_corners
upsample_nearest_…     nearest by a whole factor: half_pixel with any rounding, asymmetric with floor
=====================  ==========================================================================

All of them take the factor to be the ratio of the sizes. Which of them fits is not read off the attributes: weights
are held against those of the node, for open sizes at all of ``PROBED``, as both are one formula in the size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.coreml.call import NUMBERS, Call, Op
from retarget.targets.coreml.dims import Size
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.shape import asked
from retarget.targets.coreml.values import Dim, Refusal, dtype_of
from retarget.targets.interpolation import (
    CLOSE,
    LINEAR,
    Along,
    How,
    Scaled,
    along,
    of_scales,
    of_sizes,
    places,
    weights,
)

if TYPE_CHECKING:
    from retarget.protocols import Array

PROBED = range(1, 17)

PLANE = 2
"""Core ML's operators resize the last two axes."""

LINE = 3
"""Axes of what has one that is resized."""

SAMPLING = {"UNALIGN_CORNERS": "half_pixel", "STRICT_ALIGN_CORNERS": "align_corners", "DEFAULT": "asymmetric"}


@dataclass(frozen=True)
class Axis:
    """One axis of a Resize."""

    size: Dim
    steps: tuple[Along, ...]
    """What happens along it: at its size, or at the probed ones."""

    @property
    def is_open(self) -> bool:
        return not isinstance(self.size, int)

    @property
    def is_nothing(self) -> bool:
        return all(step.is_nothing for step in self.steps)

    @property
    def factor(self) -> int | None:
        """The whole number of results of each element."""
        factors = {step.axis.out / step.axis.size for step in self.steps}
        factor = factors.pop()
        return None if factors or not factor.is_integer() else int(factor)


def resize(call: Call) -> Var:
    x, how = call.var(0), How.of(call.node)
    if how.mode != "nearest" and dtype_of(x) == np.int32:
        raise Refusal(f"mode={how.mode} of integers: Core ML has it of floats")
    sizes = _sizes(call)
    if sizes is not None and any(isinstance(size, Var) for size in sizes):
        return _to_computed(call, x, how)
    found = _axes(call, how, sizes)
    changed = [axis for axis, each in enumerate(found) if not each.is_nothing]
    if not changed:
        return x
    made = _by_operator(call, x, found, how)
    if made is not None:
        return made
    call.sizes(0, [axis for axis in changed if found[axis].is_open])
    beyond = call.attributes.get_float("extrapolation_value", 0.0)
    for axis in changed:
        x = _one(call, x, axis, found[axis].steps[0], beyond)
    return x


# ---- what the node says


def _sizes(call: Call) -> list[Size] | None:
    """What is asked for along each axis that is resized: a number, the open size that is there already, or computed."""
    if not call.has(3):
        return None
    shape = call.shape(0)
    axes = [axis % len(shape) for axis in call.attributes.get_ints("axes") or range(len(shape))]
    wanted: list[Size] = []
    for axis, size in zip(axes, asked(call, 3), strict=True):
        assert size is not None, "a size that is not known is computed"
        own = isinstance(size, int | Var) or size == shape[axis]
        wanted.append(size if own else call.var(3))
    return wanted


def _axes(call: Call, how: How, wanted: Sequence[Size] | None) -> list[Axis]:
    shape = call.shape(0)
    axes = [axis % len(shape) for axis in call.attributes.get_ints("axes") or range(len(shape))]
    sizes = None if wanted is None else [size if isinstance(size, int) else None for size in wanted]
    scales = None if sizes else [float(scale) for scale in call.array(2, "the scale").reshape(-1)]
    rois = call.array(1, "the region").reshape(-1) if how.coordinates == "tf_crop_and_resize" else None
    if sizes and (call.attributes.get_string("keep_aspect_ratio_policy") or "stretch") != "stretch":
        # The result is as large only for these sizes.
        call.sizes(0, axes)
    found = [_whole(size) for size in shape]
    for index, axis in enumerate(axes):
        part = (0.0, 1.0) if rois is None else (float(rois[index]), float(rois[index + len(axes)]))
        size = shape[axis]
        if sizes is not None and sizes[index] is None:
            continue  # open, and as it is
        steps = []
        for own in [size] if isinstance(size, int) else PROBED:
            scale, out = _scaled(call, [own if each == axis else shape[each] for each in axes], index, sizes, scales)
            if out >= 1:
                steps.append(Scaled(own, out, scale, *part))
        if not steps:
            raise Refusal("the result has no elements")
        if part != (0.0, 1.0) and (any(step.scale == 1 for step in steps) or how.antialias):
            raise Refusal("roi of an axis that keeps its size, or with antialias: ONNX Runtime differs from ONNX in it")
        found[axis] = Axis(size, tuple(along(step, how) for step in steps))
    return found


def _whole(size: Dim) -> Axis:
    """An axis that stays as it is."""
    known = size if isinstance(size, int) else 1
    return Axis(size, (Along(Scaled(known, known, 1.0)),))


def _scaled(
    call: Call, shape: Sequence[Dim], index: int, sizes: Sequence[int | None] | None, scales: Sequence[float] | None
) -> tuple[float, int]:
    """The factor and the size of the result along one axis of ``shape``."""
    own = shape[index]
    assert isinstance(own, int)
    if scales is not None:
        return scales[index], of_scales([own], [scales[index]])[0]
    assert sizes is not None
    known = [size for size in shape if isinstance(size, int)]
    wanted = [size for size in sizes if size is not None]
    if len(known) < len(shape):
        # Each axis on its own: none of them hangs on another.
        size = sizes[index]
        assert size is not None
        known, wanted, index = [own], [size], 0
    factors, outs = of_sizes(call.node, known, wanted)
    return factors[index], outs[index]


# ---- by one operator


def _by_operator(call: Call, x: Var, found: Sequence[Axis], how: How) -> Var | None:
    """By an operator of Core ML's; None where none does the same."""
    if not LINE <= x.rank <= LINE + 1 or any(not each.is_nothing for each in found[:PLANE]):
        return None
    if dtype_of(x) == np.int32 or any(step.inside is not None for each in found for step in each.steps):
        return None
    plane = [_whole(1), found[2]] if x.rank == LINE else list(found[2:])
    image = call.mil.expand_dims(x=x, axes=[2]) if x.rank == LINE else x
    made = _nearest(call, image, plane) if how.mode == "nearest" else _linear(call, image, plane)
    return call.mil.squeeze(x=made, axes=[2]) if made is not None and x.rank == LINE else made


def _nearest(call: Call, x: Var, plane: Sequence[Axis]) -> Var | None:
    rows, columns = (each.factor for each in plane)
    if rows is None or columns is None:
        return None
    for each, factor in zip(plane, (rows, columns), strict=True):
        for step in each.steps:
            own = np.arange(step.axis.out) // factor
            if not step.is_nothing and (step.indices is None or not np.array_equal(step.indices, own)):
                return None
    return call.mil.upsample_nearest_neighbor(x=x, scale_factor_height=rows, scale_factor_width=columns)


def _linear(call: Call, x: Var, plane: Sequence[Axis]) -> Var | None:
    for mode, coordinates in SAMPLING.items():
        if not all(_agrees(step, coordinates) for each in plane for step in each.steps):
            continue
        outs = [{step.axis.out for step in each.steps} for each in plane]
        if all(len(each) == 1 for each in outs) and not any(each.is_open and each.is_nothing for each in plane):
            (height,), (width,) = outs
            return call.mil.resize_bilinear(x=x, target_size_height=height, target_size_width=width, sampling_mode=mode)
        rows, columns = (each.factor for each in plane)
        if rows is not None and columns is not None and mode != "DEFAULT":
            return call.mil.upsample_bilinear(
                x=x,
                scale_factor_height=rows,
                scale_factor_width=columns,
                align_corners=mode == "STRICT_ALIGN_CORNERS",
            )
    return None


def _agrees(step: Along, coordinates: str) -> bool:
    """Whether Core ML's weights for ``coordinates`` are those of the node."""
    if step.is_nothing:
        return True
    size, out = step.axis.size, step.axis.out
    if step.matrix is None or (out == 1 and coordinates != "half_pixel"):
        return False
    at = places(Scaled(size, out, out / size), coordinates)
    own = weights(step.axis, np.clip(at, 0, size - 1), LINEAR)
    return bool(np.allclose(own, step.matrix, rtol=0, atol=CLOSE))


def _to_computed(call: Call, x: Var, how: How) -> Var:
    """To a size that is computed: where that is by open dimensions, it is known when they are."""
    source, result = call.node.inputs[0], call.node.outputs[0]
    same = source is not None and source.shape is not None and result.shape is not None
    same = same and list(source.shape[:PLANE]) == list(result.shape[:PLANE])  # type: ignore[union-attr,index]
    mode = {"half_pixel": "UNALIGN_CORNERS", "align_corners": "STRICT_ALIGN_CORNERS"}.get(how.coordinates)
    plain = how.mode == "linear" and not (how.antialias or how.exclude_outside)
    stretched = (call.attributes.get_string("keep_aspect_ratio_policy") or "stretch") == "stretch"
    axes = [axis % x.rank for axis in call.attributes.get_ints("axes") or range(x.rank)]
    if not (call.ios >= 17 and same and mode and plain and stretched and x.rank == LINE + 1 and axes[-2:] == [2, 3]):
        call.sizes(0)
        raise Refusal("the size is computed: only a constant can be written")
    return call.mil.resize(
        x=x,
        shape=call.var(3),
        resized_dims=np.uint32(PLANE),
        interpolation_mode="LINEAR",
        sampling_mode=mode,
    )


# ---- along one axis


def _one(call: Call, x: Var, axis: int, step: Along, beyond: float) -> Var:
    """Along one axis, by a `gather` or a product with a constant matrix; results outside are ``beyond``."""
    rows: Array = np.arange(step.axis.out)
    if step.inside is not None:
        # Places only grow, or only fall: what lies inside is in one piece.
        rows = np.flatnonzero(step.inside)
        if not rows.size:
            raise Refusal("no result lies inside of the operand")
    if step.indices is not None:
        x = call.mil.gather(x=x, indices=step.indices[rows].astype(np.int32), axis=axis)
    elif step.matrix is not None:
        x = _product(call, x, axis, step.matrix[rows])
    if step.inside is None:
        return x
    pads = [0] * (2 * x.rank)
    pads[2 * axis], pads[2 * axis + 1] = int(rows[0]), int(step.axis.out - 1 - rows[-1])
    return call.mil.pad(x=x, pad=pads, mode="constant", constant_val=beyond)


def _product(call: Call, x: Var, axis: int, matrix: Array) -> Var:
    """``x`` with [out, size] ``matrix`` along ``axis``."""
    weight = call.mil.const(val=matrix.astype(dtype_of(x)))
    if axis == x.rank - 1:
        return call.mil.matmul(x=x, y=weight, transpose_y=True)
    if axis == x.rank - 2:
        return call.mil.matmul(x=weight, y=x)
    perm = [each for each in range(x.rank) if each != axis] + [axis]
    made = call.mil.matmul(x=call.mil.transpose(x=x, perm=perm), y=weight, transpose_y=True)
    return call.mil.transpose(x=made, perm=[perm.index(each) for each in range(x.rank)])


OPS: Mapping[str, Op] = {
    "Resize": Op(resize, NUMBERS, moves=True, small=True),
}

"""Layers that compute in int8: they round what they take to a scale, and give floats, or int8 for the next such layer.

What was found by running the kernels for x86 (of October 2026), and holds the choices made here:

- A product of several rows by a constant matrix is a Convolution over one axis. InnerProduct takes 4 to 12 times as
  long in int8 as that does, and even four times as long as in float.
- ConvolutionDepthWise of groups of several channels gives what happened to stand in memory. Such groups are computed
  in float, of the rounded values; groups of one channel are right.
- Convolutions of 3x3 windows are computed by Winograd's transform, whose sums are 576 times as large: they may leave
  int32. Where they could, the layer is told not to use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.program import MASK, Blob, Param, Weight
from retarget.targets.ncnn.values import Codes, Quantized, Value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retarget.protocols import Array
    from retarget.targets.ncnn.call import Call

SCALES = 8
"""Of a convolution: which scales stand behind its weights and biases."""
FOR_GROUPS, FOR_CHANNELS = 1, 2
"""Its values: a weight scale for each group, or for each output channel, and one for what it takes."""
AND_RESULT = 100
"""Added to them: one more for the result, which is int8 then."""

CONVOLUTIONS = frozenset({"Convolution", "ConvolutionDepthWise"})

LARGEST_CODE = 127
"""In magnitude."""

BIAS = 5
"""A key of convolutions: whether there is one, the second weight then."""

TURN, TURNED = 0, 5
"""The key of Permute for an order, and that of three axes from the last to the first."""

NO_WINOGRAD = 1 << 6
"""A bit of ``MASK``."""
WINOGRAD_WINDOW = (3, 3)
WINOGRAD_FACTOR = 576
"""By how much the sums of its largest tile, 4x4, are larger than those of the convolution."""


@dataclass(frozen=True, eq=False)
class Int8:
    """The operands of a node that can be computed in int8."""

    value: Value
    """Not rounded: the layer does that."""
    scale: float
    """Of its codes."""
    codes: Array
    """Of the weight, in ONNX's order."""
    scales: NDArray[np.float32]
    """Of the weight, one for each place along the axis of its output channels; float32."""


def int8(call: Call, x: int, w: int, axis: int) -> Int8 | None:
    """Operands ``x`` and ``w`` of the node, where both were rounded to int8 around 0; None where they were not.

    ``axis``: that of the output channels in ``w``.
    """
    data, weight = call.operand(x), call.operand(w)
    if not isinstance(data, Quantized) or not isinstance(weight, Codes) or weight.data.dtype != np.int8:
        return None
    if weight.zero_point is not None and weight.zero_point.any():
        return None
    channels = weight.shape[axis]
    given = weight.scale.astype(np.float32)
    if given.size != given.shape[axis] or not (given > 0).all():
        return None
    if LARGEST_CODE * _largest_sum(weight.data, axis) > np.iinfo(np.int32).max:
        return None
    scales = np.broadcast_to(given.reshape(-1), (channels,))
    return Int8(data.of, data.scale, weight.data, scales)


def _largest_sum(codes: Array, axis: int) -> int:
    """The largest sum of magnitudes that the codes of one output channel have."""
    others = tuple(at for at in range(codes.ndim) if at != axis)
    return int(np.abs(codes.astype(np.int32)).sum(axis=others, dtype=np.int64).max())


def has_kernel(codes: Array, groups: int) -> bool:
    """Whether a convolution by ``codes`` [outputs, inputs of a group, ...] computes in int8."""
    return codes.ndim in (3, 4) and (groups == 1 or (codes.shape[1] == 1 and codes.shape[0] == groups))


def convolved(
    call: Call, found: Int8, outs: Sequence[int], params: Mapping[int, Param], bias: Sequence[Weight]
) -> Blob:
    """The convolution of what ``has_kernel`` holds of, as [outputs, h, w]; a line is an image of one row.

    ``outs``: how many windows there are along h and w. ``params``: how they slide, and how many groups there are.
    """
    value = call.with_rows(found.value, found.value.shape[0])
    channels, *sizes = value.shape[1:]
    image = call.view(value, (channels, *([1] if len(sizes) == 1 else []), *sizes))
    return _layer(call, image, found, outs, params, bias)


def product(call: Call, *, turned: bool, bias: Array | None = None) -> Value | None:
    """Operand 0 [..., inputs] times operand 1 [inputs, outputs], plus ``bias`` [outputs]; None where they are no codes.

    ``turned``: operand 1 is [outputs, inputs].
    """
    found = int8(call, 0, 1, 0 if turned else 1)
    if found is None:
        return None
    found = found if turned else replace(found, codes=found.codes.T)
    outputs, inputs = found.codes.shape
    value = found.value if found.value.rank > 1 else call.with_rows(found.value, 1)
    positions = math.prod(value.row[:-1])
    biases = [] if bias is None else [Weight(bias, tagged=False)]
    blob = _turned(call, call.view(value, (positions, 1, inputs)))
    made = _turned(call, _layer(call, blob, found, (1, positions), {1: 1}, biases))
    return Value((*value.shape[:-1], outputs), value.dtype, made, value.rows)


def _turned(call: Call, blob: Blob) -> Blob:
    """``blob`` with its first axis behind the others and its last in front; of one position only its dims differ."""
    first, middle, last = blob.dims
    if 1 in (first, last):
        return call.lowering.reshaped(blob, (last, middle, first), call.node.name or "")
    known = call.lowering.turned
    if blob not in known:
        known[blob] = call.add("Permute", (blob,), (last, middle, first), {TURN: TURNED})
    return known[blob]


def _layer(
    call: Call, x: Blob, found: Int8, outs: Sequence[int], params: Mapping[int, Param], bias: Sequence[Weight]
) -> Blob:
    outputs = found.codes.shape[0]
    groups = 7 in params
    own: dict[int, Param] = {
        **params, 0: outputs, 6: found.codes.size, SCALES: FOR_GROUPS if groups else FOR_CHANNELS,
    }  # fmt: skip
    if bias:
        own[BIAS] = 1
    largest = LARGEST_CODE * _largest_sum(found.codes, 0) * WINOGRAD_FACTOR
    if not groups and found.codes.shape[2:] == WINOGRAD_WINDOW and largest > np.iinfo(np.int32).max:
        own[MASK] = NO_WINOGRAD
    weights = [Weight(found.codes), *bias, _factors(found.scales), _factors(np.asarray([found.scale]))]
    name = "ConvolutionDepthWise" if groups else "Convolution"
    return call.add(name, (x,), (outputs, *outs), dict(sorted(own.items())), weights)


def _factors(scales: Array) -> Weight:
    """As ncnn has scales: what a number is multiplied by to become a code."""
    return Weight(np.float32(1) / scales.astype(np.float32), tagged=False)

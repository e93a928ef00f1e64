"""Convolutions along one to three axes, and transposed ones: products of matrices, or sums over taps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from types import EllipsisType
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, OpFunction, Tensor
from retarget.targets.coreml.interpreter.ops.windows import Window, exactly, padded, windows

Index: TypeAlias = tuple[EllipsisType | int | slice, ...]

LARGEST = 1 << 26
"""Bytes of the elements under all windows that are laid side by side at once; more is done in pieces."""


def conv(call: Call) -> Tensor:
    x, weight, groups = call.array("x"), call.array("weight"), call.integer("groups", 1)
    outputs, channels, *taps = weight.shape
    if x.ndim != weight.ndim or x.shape[1] != channels * groups or outputs % groups:
        raise ToolchainFailure(f"x {list(x.shape)} with weights {list(weight.shape)} in {groups} groups")
    found = windows(call, x.shape[2:], taps)
    call.hold((len(x), outputs, *(each.steps for each in found)))
    x = padded(x, found, 0)
    if channels == 1:
        result = _depthwise(x, weight, found)
    elif math.prod(taps) == 1:
        result = _pointwise(x, weight, groups, found)
    else:
        result = _windowed(x, weight, groups, found)
    return _with_bias(call, result)


def conv_transpose(call: Call) -> Tensor:
    """What each element of ``x`` times the weights adds to the place of its window, less the pads."""
    x, weight, groups = call.array("x"), call.array("weight"), call.integer("groups", 1)
    channels, outputs, *taps = weight.shape
    rank = len(taps)
    if x.ndim != weight.ndim or x.shape[1] != channels or channels % groups:
        raise ToolchainFailure(f"x {list(x.shape)} with weights {list(weight.shape)} in {groups} groups")
    strides, dilations = exactly(call, "strides", rank, 1), exactly(call, "dilations", rank, 1)
    places = [
        Window(0, count, stride, dilation, 0, 0, steps)
        for count, stride, dilation, steps in zip(taps, strides, dilations, x.shape[2:], strict=True)
    ]
    full = [(each.steps - 1) * each.stride + each.reach for each in places]
    begins, sizes = _kept(call, full, [each.steps * each.stride for each in places])
    call.hold((len(x), groups * outputs, *sizes))
    # Sizes that are asked for may end behind all windows: nothing is added there.
    extents = [max(begin + size, end) for begin, size, end in zip(begins, sizes, full, strict=True)]
    total = np.zeros((len(x), groups, outputs, *extents), x.dtype)
    rows = x.reshape(len(x), groups, channels // groups, -1)
    matrices = weight.reshape(groups, channels // groups, outputs, *taps)
    for tap, under in _taps(places):
        total[under] += (matrices[tap].swapaxes(1, 2) @ rows).reshape(len(x), groups, outputs, *x.shape[2:])
    inside: Index = (..., *(slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True)))
    return _with_bias(call, total[inside].reshape(len(x), groups * outputs, *sizes))


def _kept(call: Call, full: Sequence[int], same: Sequence[int]) -> tuple[list[int], list[int]]:
    """Where the result begins in what all windows cover, and its sizes."""
    rank, kind = len(full), call.text("pad_type", "valid").lower()
    asked = call.integers("output_shape")[2:] if call.has("output_shape") else None
    if asked is not None and len(asked) != rank:
        raise ToolchainFailure(f"output_shape has {len(asked)} sizes for {rank} axes")
    match kind:
        case "valid":
            return [0] * rank, asked or list(full)
        case "same":
            sizes = asked or list(same)
            # As TensorFlow, which this is the gradient of: an odd pad is behind the axis.
            return [max(end - size, 0) // 2 for end, size in zip(full, sizes, strict=True)], sizes
        case "custom":
            pads = exactly(call, "pad", 2 * rank, 0)
            sizes = [end - sum(pads[2 * axis : 2 * axis + 2]) for axis, end in enumerate(full)]
            if asked is not None and asked != sizes:
                raise NotInterpreted(f"output_shape {asked} with pads that leave {sizes}")
            return pads[::2], sizes
        case _:
            raise NotInterpreted(f"pad_type '{kind}' of a transposed convolution")


def _with_bias(call: Call, result: Tensor) -> Tensor:
    bias = call.optional("bias")
    if bias is None:
        return result
    result += bias.reshape(-1, *[1] * (result.ndim - 2))
    return result


def _pointwise(x: Tensor, weight: Tensor, groups: int, found: Sequence[Window]) -> Tensor:
    _, under = next(_taps(found))
    x = x[under]
    rows = x.reshape(len(x), groups, weight.shape[1], -1)
    matrices = weight.reshape(groups, -1, weight.shape[1])
    return (matrices @ rows).reshape(len(x), len(weight), *x.shape[2:])


def _depthwise(x: Tensor, weight: Tensor, found: Sequence[Window]) -> Tensor:
    """One channel a group, and one or more outputs of each: a sum over taps, for all channels at once."""
    count, groups, rank = len(x), x.shape[1], len(found)
    x = x.reshape(count, groups, 1, *x.shape[2:])
    weight = weight.reshape(groups, -1, *weight.shape[2:])
    total = np.zeros((count, groups, weight.shape[1], *(each.steps for each in found)), x.dtype)
    term = np.empty_like(total)
    for tap, under in _taps(found):
        total += np.multiply(x[under], weight[tap].reshape(groups, -1, *[1] * rank), out=term)
    return total.reshape(count, -1, *total.shape[3:])


def _taps(found: Sequence[Window]) -> Iterator[tuple[Index, Index]]:
    """Each tap: which it is along the last axes of the weights, and what is under it along those of the input."""
    for tap in itertools.product(*(range(each.taps) for each in found)):
        yield (..., *tap), (..., *(each.of_tap(index) for each, index in zip(found, tap, strict=True)))


def _windowed(x: Tensor, weight: Tensor, groups: int, found: Sequence[Window]) -> Tensor:
    """The elements under each window as a column, times the weights as rows: ``LARGEST`` bytes of columns at once."""
    channels, rank, places = weight.shape[1], len(found), [each.steps for each in found]
    view = sliding_window_view(x, [each.reach for each in found], tuple(range(2, x.ndim)))
    at_steps: Index = tuple(slice(None, (each.steps - 1) * each.stride + 1, each.stride) for each in found)
    at_taps: Index = tuple(slice(None, None, each.dilation) for each in found)
    view = view[(slice(None), slice(None), *at_steps, *at_taps)]
    # Channels and taps in front, places behind: the order of a matrix of columns.
    view = view.transpose(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    matrices = weight.reshape(groups, len(weight) // groups, -1)
    result = np.empty((len(x), groups, matrices.shape[1], *places), x.dtype)
    row_bytes = x.itemsize * channels * groups * math.prod(weight.shape[2:]) * math.prod(places[1:])
    rows = max(LARGEST // row_bytes, 1)
    for sample, begin in itertools.product(range(len(x)), range(0, places[0], rows)):
        piece: Index = (sample, *[slice(None)] * (1 + rank), slice(begin, begin + rows))
        columns = view[piece].reshape(groups, matrices.shape[2], -1)
        result[sample, :, :, begin : begin + rows] = (matrices @ columns).reshape(*result.shape[1:3], -1, *places[1:])
    return result.reshape(len(x), len(weight), *places)


OPS: Mapping[str, OpFunction] = {"conv": conv, "conv_transpose": conv_transpose}

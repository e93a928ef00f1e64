"""Windows that convolutions and poolings move over spatial axes: pads, places, and the elements under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, Tensor


@dataclass(frozen=True)
class Window:
    """A window along one axis."""

    size: int
    """Elements along the axis."""
    taps: int
    stride: int
    dilation: int
    begin: int
    """Pads in front of the axis."""
    end: int
    """Pads behind it."""
    steps: int
    """How many places it has."""

    @property
    def reach(self) -> int:
        """From its first element to behind its last one."""
        return (self.taps - 1) * self.dilation + 1

    @property
    def overhang(self) -> int:
        """How far the last place reaches over the pads: more than nothing where sizes are rounded up."""
        return max((self.steps - 1) * self.stride + self.reach - (self.begin + self.size + self.end), 0)

    def of_tap(self, tap: int) -> slice:
        """What is under one tap at all places, along the padded axis."""
        start = tap * self.dilation
        return slice(start, start + (self.steps - 1) * self.stride + 1, self.stride)


def windows(call: Call, sizes: Sequence[int], taps: Sequence[int]) -> list[Window]:
    """The windows of a ``conv`` or a pooling over axes of ``sizes``.

    ``same`` pads such that there is a place for each ``stride`` elements, an odd pad behind the axis, with
    ``same_lower`` in front of it; ``pad`` counts for ``custom`` only.
    """
    rank = len(sizes)
    kind = call.text("pad_type", "valid").lower()
    strides = exactly(call, "strides", rank, 1)
    dilations = exactly(call, "dilations", rank, 1)
    pads = exactly(call, "pad", 2 * rank, 0) if kind == "custom" else [0] * (2 * rank)
    up = call.flag("ceil_mode", False)
    if kind not in ("valid", "custom", "same", "same_lower"):
        raise ToolchainFailure(f"pad_type '{kind}' does not exist")
    if up and (rank > 2 or kind.startswith("same") or pads[::2] != pads[1::2]):
        raise NotInterpreted(f"ceil_mode with {rank} axes, pad_type '{kind}', pad {pads}: Core ML defines no size")
    found = []
    for axis, (size, count, stride, dilation) in enumerate(zip(sizes, taps, strides, dilations, strict=True)):
        begin, end = pads[2 * axis : 2 * axis + 2]
        reach = (count - 1) * dilation + 1
        if kind.startswith("same"):
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            less, more = total // 2, total - total // 2
            begin, end = (less, more) if kind == "same" else (more, less)
        steps = (size + begin + end - reach + (stride - 1 if up else 0)) // stride + 1
        if up and begin and (steps - 1) * stride >= size + begin:
            steps -= 1  # as PyTorch: no place that begins behind the elements
        if steps < 1:
            raise ToolchainFailure(f"a window of {reach} does not fit on {size} elements with pads {begin} and {end}")
        if (steps - 1) * stride >= size + begin + end:
            raise NotInterpreted(f"ceil_mode puts a window of stride {stride} behind all of {size} elements")
        found.append(Window(size, count, stride, dilation, begin, end, steps))
    return found


def exactly(call: Call, name: str, count: int, default: int) -> list[int]:
    """A vector of ``count`` integers; ``default`` for each where it is not given."""
    given = call.integers(name, [default] * count)
    if len(given) != count:
        raise ToolchainFailure(f"parameter '{name}' is {given}, {count} integers are expected")
    return given


def padded(array: Tensor, found: Sequence[Window], value: float) -> Tensor:
    """``array`` with ``value`` around the last axes, as far as the windows reach."""
    edges = [(0, 0)] * (array.ndim - len(found)) + [(each.begin, each.end + each.overhang) for each in found]
    return np.pad(array, edges, constant_values=value) if any(a or b for a, b in edges) else array

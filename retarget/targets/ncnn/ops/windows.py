"""How windows slide along axes: pads as numbers, or by name where ncnn finds them itself for whatever size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retarget.targets.ncnn.call import Call
from retarget.targets.ncnn.program import Param
from retarget.targets.ncnn.values import Refusal

AXES = 3
"""The most axes that windows slide along."""

SUFFIX = {1: "1D", 2: "", 3: "3D"}
"""What layers over so many axes are called, behind the name of those over images."""

SAME_UPPER, SAME_LOWER = -233, -234
"""Pads of convolutions that ncnn finds itself."""


@dataclass(frozen=True)
class Window:
    """One axis."""

    size: int
    """Of the operand."""
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    """Pads that the node asks for."""
    extra: int
    """Pads at the end with which the windows are as many as the node has. More than ``end`` where that rounds up."""

    @property
    def span(self) -> int:
        """From the first element of a window to behind its last."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def out(self) -> int:
        """How many windows there are."""
        return (self.size + self.begin + self.extra - self.span) // self.stride + 1


@dataclass(frozen=True)
class Windows:
    """The windows of a node."""

    along: tuple[Window, ...]
    auto: str
    """``auto_pad`` where it is SAME_UPPER or SAME_LOWER and ncnn finds these pads too; else empty."""

    @property
    def outs(self) -> tuple[int, ...]:
        return tuple(each.out for each in self.along)

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(each.kernel for each in self.along)

    @property
    def is_dilated(self) -> bool:
        return any(each.dilation != 1 for each in self.along)

    @property
    def is_line(self) -> bool:
        return len(self.along) == 1

    @property
    def as_image(self) -> Windows:
        """Of a line: the windows over an image of one row."""
        return Windows((Window(1, 1, 1, 1, 0, 0, 0), *self.along), self.auto)

    @property
    def has_pads(self) -> bool:
        return any(each.begin or each.extra for each in self.along)


def windows(call: Call, kernel: Sequence[int], *, ceil: bool = False) -> Windows:
    """The windows over the axes of operand 0 from the third on. Raises ``Refusal`` where none fits."""
    sizes = call.shape(0)[2:]
    rank, attributes = len(sizes), call.attributes
    if not 1 <= rank <= AXES:
        raise Refusal(f"{rank} spatial axes: ncnn has layers for one to {AXES}")
    strides = attributes.get_ints("strides") or [1] * rank
    dilations = attributes.get_ints("dilations") or [1] * rank
    pads = attributes.get_ints("pads") or [0] * (2 * rank)
    auto = attributes.get_string("auto_pad") or "NOTSET"
    if min(pads) < 0:
        raise Refusal(f"pads={list(pads)}: negative pads are not written")
    found = []
    for axis, (size, taps, stride, dilation) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
        span = (taps - 1) * dilation + 1
        begin, end = (0, 0) if auto == "VALID" else (pads[axis], pads[axis + rank])
        if auto.startswith("SAME"):
            begin, end = _same(auto, size, stride, span)
        extra = _extra(size, stride, span, begin, end) if ceil else end
        window = Window(size, taps, stride, dilation, begin, end, extra)
        if size + begin + extra < span:
            raise Refusal(f"a window of {span} does not fit on an axis of {size}: the result is empty")
        found.append(window)
    return Windows(tuple(found), auto if _is_found(auto, found) else "")


def _same(auto: str, size: int, stride: int, span: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + span - size, 0)
    less, more = total // 2, total - total // 2
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def _is_found(auto: str, along: Sequence[Window]) -> bool:
    """Whether ncnn's own pads are those of ``auto``, and numbers would hang on the size."""
    if not auto.startswith("SAME") or all(each.stride == 1 for each in along):
        return False
    if auto == "SAME_LOWER" and len(along) == AXES:
        return False  # ncnn puts more behind a volume, not in front of it
    # It pads all axes where one of them is to be, and some by less than nothing where windows leave elements over.
    return all(each.span >= each.stride for each in along)


def _extra(size: int, stride: int, span: int, begin: int, end: int) -> int:
    """Pads at the end for as many windows as there are when their number is rounded up."""
    if end + stride <= span:
        # The last window then starts inside of the operand, whatever its size.
        return end + stride - 1
    out = -(-(size + begin + end - span) // stride) + 1
    # The last window must start inside of the operand or its first pads.
    out -= (out - 1) * stride >= size + begin
    missing = (out - 1) * stride + span - size - begin
    return min(max(end, missing), missing + stride - 1)


def numbered(keys: Sequence[Sequence[int]], numbers: Sequence[int]) -> dict[int, Param]:
    """``numbers`` of each axis, of which there are as many as in one of ``keys``, by the keys of these axes."""
    (own,) = [each for each in keys if len(each) == len(numbers)]
    return dict(zip(own, numbers, strict=True))


def by_axis(w: int, h: int, d: int) -> Sequence[Sequence[int]]:
    """For `numbered`: the keys of axes w, h and d, for lines, images and volumes."""
    return ((w,), (h, w), (d, h, w))

"""How windows slide along axes: pads as numbers, or by name where ncnn finds them itself for whatever size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retarget.targets.ncnn.call import Call
from retarget.targets.ncnn.program import Param
from retarget.targets.ncnn.values import Refusal
from retarget.targets.sliding import Sliding, padded_up

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
    rank = len(sizes)
    if not 1 <= rank <= AXES:
        raise Refusal(f"{rank} spatial axes: ncnn has layers for one to {AXES}")
    sliding = Sliding.of(call.node, rank)
    sliding.refuse_negative_pads()
    found = []
    steps = zip(sizes, kernel, sliding.strides, sliding.dilations, strict=True)
    for axis, (size, taps, stride, dilation) in enumerate(steps):
        span = (taps - 1) * dilation + 1
        begin, end = sliding.around(axis, size, span)
        extra = _extra(size, stride, span, begin, end) if ceil else end
        window = Window(size, taps, stride, dilation, begin, end, extra)
        if size + begin + extra < span:
            raise Refusal(f"a window of {span} does not fit on an axis of {size}: the result is empty")
        found.append(window)
    return Windows(tuple(found), sliding.auto if _is_found(sliding, found) else "")


def _is_found(sliding: Sliding, along: Sequence[Window]) -> bool:
    """Whether ncnn's own pads are those of ``auto_pad``, and numbers would hang on the size."""
    if not sliding.is_same or all(each.stride == 1 for each in along):
        return False
    if sliding.auto == "SAME_LOWER" and len(along) == AXES:
        return False  # ncnn puts more behind a volume, not in front of it
    # It pads all axes where one of them is to be, and some by less than nothing where windows leave elements over.
    return all(each.span >= each.stride for each in along)


def _extra(size: int, stride: int, span: int, begin: int, end: int) -> int:
    """Pads at the end for as many windows as there are when their number is rounded up."""
    if end + stride <= span:
        # The last window then starts inside of the operand, whatever its size.
        return end + stride - 1
    return padded_up(size, stride, span, begin, end)


def numbered(keys: Sequence[Sequence[int]], numbers: Sequence[int]) -> dict[int, Param]:
    """``numbers`` of each axis, of which there are as many as in one of ``keys``, by the keys of these axes."""
    (own,) = [each for each in keys if len(each) == len(numbers)]
    return dict(zip(own, numbers, strict=True))


def by_axis(w: int, h: int, d: int) -> Sequence[Sequence[int]]:
    """For `numbered`: the keys of axes w, h and d, for lines, images and volumes."""
    return ((w,), (h, w), (d, h, w))

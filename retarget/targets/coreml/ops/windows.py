"""How windows slide along axes: the pads that Core ML is given, also where the size of an axis is open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retarget.targets.coreml.call import Call
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.values import Dim, Refusal
from retarget.targets.sliding import Sliding, padded_up

AXES = 3
"""The most axes that windows slide along."""


@dataclass(frozen=True)
class Window:
    """One axis."""

    size: int | None
    """Of the operand; None where it is open."""
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
    def out(self) -> int | None:
        """How many windows there are."""
        return None if self.size is None else (self.size + self.begin + self.extra - self.span) // self.stride + 1


@dataclass(frozen=True)
class Windows:
    """The windows of a node. With a ``kind`` other than ``custom`` MIL finds the pads itself, for whatever size."""

    along: tuple[Window, ...]
    kind: str = "custom"

    @property
    def strides(self) -> list[int]:
        return [each.stride for each in self.along]

    @property
    def kernel(self) -> list[int]:
        return [each.kernel for each in self.along]

    @property
    def is_dilated(self) -> bool:
        return any(each.dilation != 1 for each in self.along)

    @property
    def padding(self) -> dict[str, str | list[int]]:
        """The parameters that say it."""
        pads = [number for each in self.along for number in (each.begin, each.extra)]
        if self.kind != "custom":
            return {"pad_type": self.kind}
        return {"pad_type": "custom", "pad": pads} if any(pads) else {"pad_type": "valid"}


def windows(call: Call, kernel: Sequence[int], *, ceil: bool = False) -> Windows:
    """The windows over the axes of operand 0 from the third on. Raises ``Refusal`` where none fits."""
    sizes = call.shape(0)[2:]
    rank = len(sizes)
    if not 1 <= rank <= AXES:
        raise Refusal(f"{rank} spatial axes: Core ML has one to {AXES}")
    sliding = Sliding.of(call.node, rank)
    sliding.refuse_negative_pads()
    strides, dilations = sliding.strides, sliding.dilations
    spans = [(taps - 1) * dilation + 1 for taps, dilation in zip(kernel, dilations, strict=True)]
    if sliding.is_same:
        kind = _kind(call, sliding.auto, sizes, strides)
        if kind is not None:
            found = [
                Window(None, taps, stride, dilation, 0, 0, 0)
                for taps, stride, dilation in zip(kernel, strides, dilations, strict=True)
            ]
            return Windows(tuple(found), kind)
    along = []
    for axis, (size, taps, stride, span) in enumerate(zip(sizes, kernel, strides, spans, strict=True)):
        known = size if isinstance(size, int) else None
        begin, end = sliding.around(axis, known, span)
        extra = _extra(call, axis, size, stride, span, begin, end) if ceil else end
        found_window = Window(known, taps, stride, dilations[axis], begin, end, extra)
        if found_window.out is not None and found_window.out < 1:
            raise Refusal(f"a window of {span} does not fit on an axis of {size}: the result is empty")
        along.append(found_window)
    return Windows(tuple(along))


def _kind(call: Call, auto: str, sizes: Sequence[Dim], strides: Sequence[int]) -> str | None:
    """How MIL calls pads that hang on a size that is open; None where the pads can be written as numbers."""
    hanging = [axis for axis, size in enumerate(sizes) if strides[axis] != 1 and not isinstance(size, int)]
    if not hanging:
        return None
    # Along one axis alone the runtime pads at the wrong end.
    if auto == "SAME_LOWER" and (call.ios < 16 or len(sizes) == 1):
        call.sizes(0, [axis + 2 for axis in hanging])
    return "same" if auto == "SAME_UPPER" else "same_lower"


def _extra(call: Call, axis: int, size: Dim, stride: int, span: int, begin: int, end: int) -> int:
    """Pads at the end for as many windows as there are when their number is rounded up."""
    if not isinstance(size, int) and end + stride <= span:
        # The last window then starts inside of the operand, whatever its size.
        return end + stride - 1
    (known,) = call.sizes(0, [axis + 2])
    return padded_up(known, stride, span, begin, end)


def zero_padded(call: Call, x: Var, begins: Sequence[int], ends: Sequence[int], value: float = 0.0) -> Var:
    """``x`` with ``value`` around its axes from the third on."""
    if not any((*begins, *ends)):
        return x
    # Written for all axes: Core ML's runtime wants that of constants.
    pads = [0, 0] * 2 + [number for pair in zip(begins, ends, strict=True) for number in pair]
    return call.mil.pad(x=x, pad=pads, mode="constant", constant_val=value)

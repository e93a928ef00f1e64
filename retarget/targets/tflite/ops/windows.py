"""How kernels slide along axes: pads, strides and dilations, and what of them a kernel is left with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retarget.targets.sliding import Sliding, rounded_up
from retarget.targets.tflite.call import Call
from retarget.targets.tflite.layout import order
from retarget.targets.tflite.program import Codes, Constant, Options, Tensor
from retarget.targets.tflite.values import Refusal, Value


@dataclass(frozen=True)
class Window:
    """One axis. The window of result ``i`` starts at ``i * stride - begin``."""

    size: int
    """Of the operand."""
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    """Pads that the node asks for; negative ones crop."""
    out: int
    """Of the result."""
    is_open: bool = False
    """Whether the operand may have another size when the model is loaded."""
    is_of_size: bool = False
    """Whether the pads, or the windows that count, are others for other sizes."""
    is_upper: bool = False
    """Whether the pads are SAME_UPPER, which is what TFLite calls SAME, whatever the size."""

    @property
    def span(self) -> int:
        """From the first element of a window to behind its last."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def missing(self) -> int:
        """How far the last window reaches past the operand; negative: how much of the operand is left over."""
        return (self.out - 1) * self.stride + self.span - self.size - self.begin

    @property
    def is_valid(self) -> bool:
        """Whether a kernel that pads nothing has these windows."""
        return self.begin == 0 and self.extra == 0

    @property
    def extra(self) -> int:
        """What the operand must be longer at its end; negative: shorter, or there would be one more window."""
        if self.is_open and not self.is_of_size:
            return self.end
        return 0 if -self.stride < self.missing <= 0 else self.missing

    @property
    def is_same(self) -> bool:
        """Whether a kernel with the padding SAME has these windows."""
        if self.is_open:
            pads = (self.span - 1) // 2, self.span // 2
            return self.is_upper or (self.stride == 1 and (self.begin, self.end) == pads)
        total = max((self.out - 1) * self.stride + self.span - self.size, 0)
        return self.out == -(-self.size // self.stride) and self.begin == total // 2


def windows(call: Call, sizes: Sequence[int], kernel: Sequence[int], *, ceil: bool = False) -> tuple[Window, ...]:
    """The windows over axes of ``sizes``, as ONNX has them. Raises ``Refusal`` where no window fits."""
    sliding = Sliding.of(call.node, len(sizes))
    declared = None if call.node.inputs[0] is None else call.node.inputs[0].shape
    found = []
    steps = zip(sizes, kernel, sliding.strides, sliding.dilations, strict=True)
    for axis, (size, taps, stride, dilation) in enumerate(steps):
        span = (taps - 1) * dilation + 1
        begin, end = sliding.around(axis, size, span)
        room = size + begin + end - span
        out = rounded_up(size, stride, span, begin, end) if ceil else room // stride + 1
        if room < 0 or out < 1:
            raise Refusal(f"a window of {span} does not fit on an axis of {size}: the result is empty")
        is_open = declared is None or not isinstance(declared[axis + 2], int)
        is_of_size = ceil or (sliding.is_same and stride != 1)
        is_upper = sliding.auto == "SAME_UPPER"
        found.append(Window(size, taps, stride, dilation, begin, end, out, is_open, is_of_size, is_upper))
    return tuple(found)


def bound(found: Sequence[Window], mode: str | None) -> tuple[int, ...]:
    """The sizes that the operator which has the windows ``found`` by the padding ``mode`` is bound to."""
    return () if mode == "SAME" else tuple(window.size for window in found if window.is_open and window.is_of_size)


def padding(found: Sequence[Window]) -> str | None:
    """The kernels' padding that has all these windows; None where the operand must be padded itself."""
    if all(window.is_valid for window in found):
        return "VALID"
    return "SAME" if all(window.is_same for window in found) else None


def padded(call: Call, value: Value, found: Sequence[Window], fill: float = 0.0) -> tuple[Value, str]:
    """``value`` and the padding with which a kernel has the windows ``found`` over the axes from the third on.

    ``fill`` is what pads hold. With integers they hold the code of 0 if ``fill`` is 0, and the least code otherwise.
    """
    mode = padding(found)
    if mode is not None:
        return value, mode
    return extended(call, value, [w.begin for w in found], [w.extra for w in found], fill), "VALID"


def extended(call: Call, value: Value, begins: Sequence[int], ends: Sequence[int], fill: float = 0.0) -> Value:
    """``value`` with its axes from the third on longer, or, by negative numbers, shorter, at both ends."""
    if any(number < 0 for number in (*begins, *ends)):
        starts = [0, 0, *(max(-number, 0) for number in begins)]
        sizes = [*value.shape]
        for axis, pads in enumerate(zip(begins, ends, strict=True), start=2):
            sizes[axis] += sum(min(number, 0) for number in pads)
        value = sliced(call, value, starts, sizes)
    around = [(0, 0), (0, 0)]
    around += [(max(begin, 0), max(end, 0)) for begin, end in zip(begins, ends, strict=True)]
    if not any(map(any, around)):
        return value
    shape = [size + sum(pair) for size, pair in zip(value.shape, around, strict=True)]
    placed = np.array(around, np.int32)[list(order(call.layout, value.rank))]
    pairs = call.lowering.constant(Constant.of(placed))
    if fill == 0:
        return kept(call, "PAD", value, [pairs], shape, Options("PadOptions"))
    return kept(call, "PADV2", value, [pairs, _filling(call, value, fill)], shape, Options("PadV2Options"))


def sliced(call: Call, value: Value, starts: Sequence[int], sizes: Sequence[int]) -> Value:
    """``sizes`` elements of each axis from ``starts`` on."""
    if tuple(sizes) == value.shape:
        return value
    bounds = [call.ints(call.placed(numbers)) for numbers in (starts, sizes)]
    return kept(call, "SLICE", value, bounds, sizes, Options("SliceOptions"))


def kept(
    call: Call,
    code: str,
    value: Value,
    inputs: Sequence[Tensor],
    shape: Sequence[int],
    options: Options | None = None,
) -> Value:
    """One operator that moves what ``value`` holds: integers stay what they are, and mean the same."""
    meaning = value.quantization if call.int8 else None
    made = call.lowering.new(tuple(shape), value.dtype, call.layout, meaning)
    (tensor,) = made.forms.values()
    source = call.lowering.form(value, call.layout, codes=meaning is not None)
    call.lowering.add(code, (source, *inputs), tensor, options, call.node.name or "")
    return made


def _filling(call: Call, value: Value, fill: float) -> Tensor:
    if not call.int8:
        return call.lowering.constant(Constant.of(fill, "float32"))
    assert value.quantization is not None
    integers = call.lowering.integers.name
    least = Constant.of(-32768 if integers == "int16" else -128, integers)
    return call.lowering.codes(Codes(least, value.quantization), integers)

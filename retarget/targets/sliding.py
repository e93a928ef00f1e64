"""What attributes of ONNX say of windows that slide along axes, and of what ConvTranspose spreads along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from retarget.targets.walk import Refusal


@dataclass(frozen=True)
class Sliding:
    """The attributes of a node over ``rank`` axes, with ONNX's defaults where it does not give them."""

    rank: int
    strides: Sequence[int]
    dilations: Sequence[int]
    pads: Sequence[int]
    """Of all axes those at the start, then of all those at the end."""
    auto: str
    """``auto_pad``."""

    @staticmethod
    def of(node: ir.Node, rank: int) -> Sliding:
        """What ``node`` says."""
        attributes = node.attributes
        return Sliding(
            rank,
            attributes.get_ints("strides") or [1] * rank,
            attributes.get_ints("dilations") or [1] * rank,
            attributes.get_ints("pads") or [0] * (2 * rank),
            attributes.get_string("auto_pad") or "NOTSET",
        )

    @property
    def is_same(self) -> bool:
        """Whether the pads are found: SAME_UPPER or SAME_LOWER."""
        return self.auto.startswith("SAME")

    def refuse_negative_pads(self) -> None:
        """Raise ``Refusal`` for pads that crop."""
        if min(self.pads) < 0:
            raise Refusal(f"pads={list(self.pads)}: negative pads are not written")

    def given(self, axis: int) -> tuple[int, int]:
        """The pads at both ends of an axis, where the node does not have them found."""
        return (0, 0) if self.auto == "VALID" else (self.pads[axis], self.pads[axis + self.rank])

    def around(self, axis: int, size: int | None, span: int) -> tuple[int, int]:
        """The pads at both ends of an axis of ``size`` for windows of ``span``, from first to behind the last element.

        ``size`` is None for any: only with a stride of 1 are pads that are found then right.
        """
        if not self.is_same:
            return self.given(axis)
        stride = self.strides[axis]
        return self.halves(span - 1 if size is None else max((-(-size // stride) - 1) * stride + span - size, 0))

    def halves(self, total: int) -> tuple[int, int]:
        """``total`` shared between both ends: what is odd goes to the start, with SAME_UPPER to the end."""
        less, more = total // 2, total - total // 2
        return (less, more) if self.auto == "SAME_UPPER" else (more, less)

    def unpooled(self, axis: int, size: int, taps: int) -> int:
        """How large the result of a MaxUnpool of windows of ``taps`` is along an axis of ``size``."""
        return (size - 1) * self.strides[axis] - sum(self.given(axis)) + taps

    def blocks(self, axis: int, size: int, span: int) -> int:
        """How many blocks Col2Im lays along an axis of an image of ``size``."""
        return (size + sum(self.given(axis)) - span) // self.strides[axis] + 1


@dataclass(frozen=True)
class Spreading:
    """The attributes of a ConvTranspose."""

    sliding: Sliding
    more: Sequence[int]
    """``output_padding``."""
    wanted: Sequence[int] | None
    """``output_shape`` of the spatial axes."""

    @staticmethod
    def of(node: ir.Node, rank: int) -> Spreading:
        """What ``node`` says of ``rank`` axes. Raises ``Refusal`` where ONNX is silent on what that means."""
        sliding, shape = Sliding.of(node, rank), node.attributes.get("output_shape")
        more = node.attributes.get_ints("output_padding") or [0] * rank
        wanted = None if shape is None else list(shape.as_ints())[-rank:]
        if wanted is None and sliding.is_same and any(more):
            raise Refusal(f"auto_pad={sliding.auto} with output_padding: ONNX does not say how large the result is")
        return Spreading(sliding, more, wanted)

    def cropped(self, axis: int, size: int | None, span: int) -> tuple[int, int]:
        """How many of the results of an axis are cut off at both ends; negative: results that nothing adds to.

        ``span``: of the results that one element adds to. ``size``, of the operand, counts where ``wanted`` is given.
        """
        stride, more = self.sliding.strides[axis], self.more[axis]
        if self.wanted is not None:
            assert size is not None, "the result is as large only for one size of the operand"
            natural = (size - 1) * stride + span
            begin, _ = self.sliding.halves(max(natural + more - self.wanted[axis], 0))
            return begin, natural - begin - self.wanted[axis]
        given = self.sliding.halves(max(span - stride, 0)) if self.sliding.is_same else self.sliding.given(axis)
        return given[0], given[1] - more


def rounded_up(size: int, stride: int, span: int, begin: int, end: int) -> int:
    """How many windows there are along an axis with ``ceil_mode``."""
    out = -(-(size + begin + end - span) // stride) + 1
    # The last window must start inside of the operand or its first pads.
    return out - ((out - 1) * stride >= size + begin)


def padded_up(size: int, stride: int, span: int, begin: int, end: int) -> int:
    """Pads at the end for as many windows as there are with ``ceil_mode``."""
    missing = (rounded_up(size, stride, span, begin, end) - 1) * stride + span - size - begin
    return min(max(end, missing), missing + stride - 1)

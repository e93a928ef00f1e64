"""What attributes of ONNX say of windows that slide along axes."""

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


def rounded_up(size: int, stride: int, span: int, begin: int, end: int) -> int:
    """How many windows there are along an axis with ``ceil_mode``."""
    out = -(-(size + begin + end - span) // stride) + 1
    # The last window must start inside of the operand or its first pads.
    return out - ((out - 1) * stride >= size + begin)


def padded_up(size: int, stride: int, span: int, begin: int, end: int) -> int:
    """Pads at the end for as many windows as there are with ``ceil_mode``."""
    missing = (rounded_up(size, stride, span, begin, end) - 1) * stride + span - size - begin
    return min(max(end, missing), missing + stride - 1)

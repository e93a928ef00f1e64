"""How much Pad and CenterCropPad put in front of each axis and behind it; less than nothing is cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Pair: TypeAlias = tuple[int, int]
"""Of an axis: how much goes in front of it, and behind it."""


def of_pad(rank: int, pads: Sequence[int], axes: Sequence[int] | None) -> list[Pair]:
    """Of each of ``rank`` axes, by the operands of a Pad: ``axes`` are all where it has none."""
    along = range(rank) if axes is None else [axis % rank for axis in axes]
    pairs = [(0, 0)] * rank
    for index, axis in enumerate(along):
        pairs[axis] = pads[index], pads[index + len(along)]
    return pairs


def of_center_crop_pad(rank: int, axes: Sequence[int], sizes: Sequence[int], wanted: Sequence[int]) -> list[Pair]:
    """Of each of ``rank`` axes, where those of ``sizes`` at ``axes`` are to be ``wanted``, by a CenterCropPad."""
    pairs = [(0, 0)] * rank
    for axis, size, to in zip(axes, sizes, wanted, strict=True):
        more = to - size
        front = more // 2 if more > 0 else -(-more // 2)
        pairs[axis] = front, more - front
    return pairs

"""Fourier transforms as products with a constant matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.walk import Refusal

if TYPE_CHECKING:
    from retarget.protocols import Array

_MOST_WEIGHTS = 1 << 24
"""The most numbers of a matrix: 64 MB."""


@dataclass(frozen=True)
class Transform:
    """What a DFT node asks for. ``size``: of the axis. ``parts``: 1 of real numbers, 2 of complex ones. ``length``:
    the samples of the transform, or None as many as there are."""

    size: int
    parts: int
    length: int | None
    inverse: bool
    onesided: bool

    def matrix(self) -> Array:
        """[size, parts, samples or frequencies, 1 or 2]. Raises ``Refusal`` where the runtimes do not agree on it, or
        it is too large."""
        of_one_side = self.inverse and self.onesided
        # Of one side that is inverted the other follows: it is of a real signal.
        length = self.length or (2 * (self.size - 1) if of_one_side else self.size)
        check(4 * self.size * length)
        if of_one_side and self.parts == 1:
            raise Refusal("inverse=1, onesided=1: the operand has no imaginary parts")
        if of_one_side and self.size < length // 2 + 1:
            raise Refusal(
                f"inverse=1, onesided=1: runtimes differ in what {self.size} frequencies are of {length} samples"
            )
        whole = (
            inverse_of_one_side(self.size, length)
            if of_one_side
            else matrix(self.size, length, inverse=self.inverse, onesided=self.onesided)
        )
        return whole[:, : self.parts]


def matrix(size: int, length: int, *, inverse: bool, onesided: bool) -> Array:
    """[samples, their two parts, frequencies, their two parts] of a transform of ``length`` samples.

    Of ``size`` samples that are given the last are left out, or as many zeros follow as are missing.
    """
    count = length // 2 + 1 if onesided else length
    turns = np.outer(np.arange(size), np.arange(count)) % length * (2 * math.pi / length)
    cosine, sine = np.cos(turns), np.sin(turns) * (1 if inverse else -1)
    # (a + ib)(c + is) = (ac - bs) + i(as + bc)
    made = np.stack([np.stack([cosine, sine], -1), np.stack([-sine, cosine], -1)], 1)
    made[length:] = 0
    return made / length if inverse else made


def inverse_of_one_side(size: int, length: int) -> Array:
    """[frequencies, their two parts, samples, 1]: each but the first and the middle one stands for two."""
    count = length // 2 + 1
    turns = np.outer(np.arange(size), np.arange(length)) % length * (2 * math.pi / length)
    often = np.full((size, 1), 2.0)
    often[[0, count - 1] if length % 2 == 0 else 0] = 1
    often[count:] = 0
    return np.stack([np.cos(turns) * often, -np.sin(turns) * often], 1)[..., None] / length


def check(numbers: int) -> None:
    """Raise ``Refusal`` where a matrix has too many ``numbers``."""
    if numbers > _MOST_WEIGHTS:
        raise Refusal(f"its matrix would have {numbers} numbers, and {_MOST_WEIGHTS} are written at most")

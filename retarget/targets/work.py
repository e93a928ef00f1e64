"""How much a runtime's executed graph computes in which type: what the report may claim of a precision."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

Shape: TypeAlias = Sequence[int]
Work: TypeAlias = Mapping[str, int]
"""Type name to multiply-accumulates."""

FULL = frozenset({"float32", "float64"})
"""Types that are not a low precision."""

INT8 = frozenset({"int8", "uint8"})
"""Types of int8 arithmetic; narrower weights are widened to them."""


def convolution(weight: Shape, out: Shape) -> int:
    """``weight`` is [outputs, inputs a group, kernel...], groups may stand first; ``out`` is [batch, outputs, ...]."""
    return math.prod(weight) // max(out[1], 1) * math.prod(out)


def transposed_convolution(weight: Shape, inner: Shape) -> int:
    """``weight`` is [inputs, outputs a group, kernel...], groups may stand first; ``inner`` is [batch, inputs, ...]."""
    return math.prod(weight) // max(inner[1], 1) * math.prod(inner)


def contraction(left: Shape, out: Shape) -> int:
    """A matrix product. A matrix of ``left`` may be transposed: it holds rows times the inner size."""
    if len(left) == 1:
        return left[0] * math.prod(out)
    if len(out) < len(left):
        # The right operand is a vector, so its axis is missing from the output.
        return math.prod(left)
    return math.prod(left[-2:]) // max(out[-2], 1) * math.prod(out)


def recurrence(sequence: Shape, weights: Iterable[Shape]) -> int:
    """``sequence`` starts with [steps, batch] or [batch, steps]; each weight matrix is applied once a step."""
    return math.prod(sequence[:2]) * sum(math.prod(weight) for weight in weights)


def attention(query: Shape, key: Shape, out: Shape) -> int:
    """Scores and their product with the values: each query element meets each of the key's positions, twice."""
    return (math.prod(query) + math.prod(out)) * key[-2]


def low_precision_share(work: Work, precision: str) -> float | None:
    """Share, 0 to 1, of the multiply-accumulates that are in ``precision``; None where there are none.

    In that of an int8 variant are those of 8-bit integers, and of every other variant those below float32.
    """
    total = sum(work.values())
    low = (count for dtype, count in work.items() if (dtype in INT8 if precision == "int8" else dtype not in FULL))
    return sum(low) / total if total else None


def shares(work: Work) -> str:
    """``98% uint8, 2% float32``: how the multiply-accumulates divide, the most first, without what there is none of."""
    total = sum(work.values())
    done = sorted(((count, dtype) for dtype, count in work.items() if count), reverse=True)
    return ", ".join(f"{_percent(count / total)} {dtype}" for count, dtype in done)


def _percent(share: float) -> str:
    """Rounded, but never to 0 % or 100 %."""
    if share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def most(counts: Counter[str]) -> str:
    """The name that was counted most, ``none`` where nothing was; the first in the alphabet of equals."""
    return min(counts, key=lambda name: (-counts[name], name)) if counts.total() else "none"


def joined(names: Iterable[str]) -> str:
    """``float32``, or ``float32, int64`` where there are several, in order of appearance; ``none``."""
    return ", ".join(dict.fromkeys(names)) or "none"

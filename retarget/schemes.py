"""How int8 is written for each runtime, as data: no numpy, no vendor library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

Method: TypeAlias = Literal["minmax", "percentile", "mse", "entropy"]
"""How a clipping range is found in what calibration recorded of a tensor."""
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class Grid:
    """The integer levels that a tensor is rounded to."""

    low: int
    high: int
    symmetric: bool
    """Zero is level 0, and the range reaches as far down as up."""

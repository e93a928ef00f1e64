"""The inputs and outputs of a model as its frontend calls them, from what the file says of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retarget.convert.tensorflow.names import Border, input_specs
from retarget.errors import RetargetError
from retarget.spec import TensorSpec


def specs(borders: Sequence[Border], kind: str, place: str) -> tuple[tuple[TensorSpec, ...], list[str]]:
    """The specs of ``borders``; none, and notes that say what is known, where one of them is not known whole."""
    try:
        return input_specs(borders, (), place), []
    except RetargetError:
        # No number of dimensions, or a type that no frontend takes.
        return (), [f"{kind} {border}" for border in borders]


def size_of(dtype: str, count: int) -> int:
    """The bytes of ``count`` elements, from the bits in the type's name; 0 for what is no number."""
    if dtype == "bool":
        return count
    bits = re.match(r"(?:q?u?int|b?float|complex)(\d+)", dtype)
    return -(-count * int(bits[1]) // 8) if bits else 0

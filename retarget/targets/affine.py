"""The places that AffineGrid moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget.targets.walk import Refusal

if TYPE_CHECKING:
    from retarget.protocols import Array


def places(node: ir.Node, sizes: Sequence[int]) -> Array:
    """[results, axes + 1]: where each result of ``sizes`` lies, from -1 to 1 and the last axis first, and then 1.

    Raises ``Refusal`` where ONNX does not say it.
    """
    corners = bool(node.attributes.get_int("align_corners", 0))
    if corners and 1 in sizes:
        raise Refusal("align_corners=1 along an axis of one element: ONNX does not say where it lies")
    axes = [np.linspace(-1, 1, size) if corners else (2 * np.arange(size) + 1) / size - 1 for size in sizes]
    # The last axis is the first number of a place.
    found = [each.reshape(-1) for each in np.meshgrid(*axes, indexing="ij")][::-1]
    return np.stack([*found, np.ones(math.prod(sizes))], axis=1)

"""Attention masks, as padding makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def padded(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Ones, then zeros along the last axis: at least one 1 in each row.

    Where nothing is left to attend to, each way of attention makes something else of it.
    """
    if not shape or not shape[-1]:
        return np.ones(shape, np.int64)
    lengths = rng.integers(1, shape[-1], size=(*shape[:-1], 1), endpoint=True)
    mask: NDArray[np.int64] = (np.arange(shape[-1]) < lengths).astype(np.int64)
    return mask

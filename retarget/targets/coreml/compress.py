"""Weights in fewer bits, by coremltools' own compression: what Core ML expands as it loads or multiplies."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retarget.protocols import EmitJob
from retarget.targets.coreml.library import ct

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST = 2048
"""Constants of fewer elements stay as they are, which is coremltools' own bound: a table would outweigh the gain."""

BLOCK = 32
"""How many weights of 4 bits share a scale where the recipe does not say."""

_PALETTE = 64
_SAMPLE = 1 << 16
"""Elements that are looked at to find the values of a table: every n-th in their order stands for all."""
_ROUNDS = 30


@dataclass(frozen=True)
class Compression:
    """One of coremltools' passes, and what it is told."""

    name: str
    config: ct.optimize.coreml.OptimizationConfig


def compression(job: EmitJob, kept: Collection[str]) -> Compression | None:
    """What makes the weights of ``job.precision``; None where the graph has them already.

    ``kept``: names of constants that stay as they are.
    """
    own = ct.optimize.coreml

    def of(name: str, config: object) -> Compression:
        told = own.OptimizationConfig(global_config=config, op_name_configs=dict.fromkeys(kept))
        return Compression(f"compression::{name}", told)

    if job.precision == "palette6":
        config = own.OpPalettizerConfig(mode="custom", lut_function=palette, weight_threshold=SMALLEST)
        return of("palettize_weights", config)
    if job.precision not in ("int8_weights", "int4_weights"):
        return None
    block = job.block or (BLOCK if job.precision == "int4_weights" else None)
    config = own.OpLinearQuantizerConfig(
        mode="linear_symmetric",
        dtype=job.precision.removesuffix("_weights"),
        granularity="per_channel" if block is None else "per_block",
        block_size=block or 0,
        weight_threshold=SMALLEST,
    )
    return of("linear_quantize_weights", config)


def palette(weights: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """64 values, and for each of ``weights`` the place of the one next to it.

    Lloyd's k-means on an even sample, started where the best table of many values has its own: as dense as the cube
    root of the weights' density (Panter and Dite, 1951). Without chance, and within some tenths of a dB of the best in
    half a second, where coremltools would ask scikit-learn for minutes.
    """
    flat = weights.reshape(-1).astype(np.float64)
    sample = np.sort(flat)[:: -(-flat.size // _SAMPLE)]
    counts, edges = np.histogram(sample, 2048)
    share = np.cumsum(np.cbrt(counts))
    table = np.interp((np.arange(_PALETTE) + 0.5) / _PALETTE * share[-1], share, edges[1:])
    for _ in range(_ROUNDS):
        nearest = _nearest(table, sample)
        held = np.bincount(nearest, minlength=_PALETTE)
        means = np.bincount(nearest, sample, _PALETTE) / np.maximum(held, 1)
        table = np.sort(np.where(held > 0, means, table))
    if (few := np.unique(flat)).size <= _PALETTE:
        table = np.concatenate([few, np.full(_PALETTE - few.size, few[-1])])
    rounded = table.astype(weights.dtype)
    return rounded, _nearest(rounded.astype(np.float64), flat).astype(np.uint8)


def _nearest(table: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.searchsorted((table[1:] + table[:-1]) / 2, values)

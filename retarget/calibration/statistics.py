"""Mean, spread and bounds of what a set of samples feeds, one batch at a time: what tells two sets apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retarget.facts import InputStatistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from retarget.protocols import Array
    from retarget.spec import TensorSpec

_CHUNK = 1 << 18


@dataclass
class _Running:
    """Means and squares are merged as Chan, Golub and LeVeque (1979) do, which cancels nothing."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    min: float = math.inf
    max: float = -math.inf

    def add(self, values: Array) -> None:
        wide = values.astype(np.float64)
        mean = float(wide.mean())
        squares = float(np.square(wide - mean).sum())
        total = self.count + wide.size
        apart = mean - self.mean
        self.squares += squares + apart * apart * self.count * wide.size / total
        self.mean += apart * wide.size / total
        self.count = total
        self.min, self.max = min(self.min, float(wide.min())), max(self.max, float(wide.max()))


def rows(batch: Mapping[str, Array]) -> int:
    """Rows of a batch: the first dimension that all inputs share, else the batch is one sample."""
    firsts = {array.shape[0] if array.ndim else 1 for array in batch.values()}
    return firsts.pop() if len(firsts) == 1 else 1


class Statistics:
    """Of each float input among ``specs``, over all batches that are added. Integers are names of something."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._inputs = {spec.name: _Running() for spec in specs if "float" in spec.dtype}
        self._names = [spec.name for spec in specs]
        self.samples = 0

    def add(self, batch: Mapping[str, Array]) -> None:
        """Count what ``batch`` feeds those inputs; all values are finite. Other arrays in it, as labels, are not."""
        self.samples += rows({name: batch[name] for name in self._names})
        for name, running in self._inputs.items():
            flat = batch[name].reshape(-1)
            for start in range(0, flat.size, _CHUNK):
                running.add(flat[start : start + _CHUNK])

    def result(self) -> tuple[InputStatistics, ...]:
        """Of each input that had values."""
        return tuple(
            InputStatistics(
                name=name,
                count=running.count,
                mean=running.mean,
                std=math.sqrt(running.squares / running.count),
                min=running.min,
                max=running.max,
            )
            for name, running in self._inputs.items()
            if running.count
        )

"""What calibration learned of each tensor: the ``calibrate`` step's artifact.

A tensor's values are counted by the upper 16 bits of their float32 form: 65,536 bins on a logarithmic scale, 128 for
each power of two and sign. No range has to be known beforehand, and two counts add exactly: statistics of parts of
the data, merged, are those of all of it. ``ranges.npz`` holds the bins that are not empty, ``ranges.json`` says in
numbers, for people, what they come to.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retarget.errors import RetargetError

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 2
NPZ, JSON = "ranges.npz", "ranges.json"
PERCENTILES = (0.1, 1.0, 50.0, 99.0, 99.9, 99.99)


@dataclass(frozen=True, eq=False)
class TensorRange:
    """Statistics of one tensor over all samples. ``min`` and ``max`` are exact, of its finite values."""

    min: float
    max: float
    nan_count: int
    inf_count: int
    bins: NDArray[np.uint16]
    """Bins that are not empty, ascending; those of NaN and infinities are left out."""
    counts: NDArray[np.int64]
    """How many values each of ``bins`` holds."""

    @property
    def absmax(self) -> float:
        """Largest magnitude; infinite when an infinity or NaN was seen."""
        return math.inf if self.nan_count or self.inf_count else max(abs(self.min), abs(self.max))

    @property
    def absmin(self) -> float:
        """Smallest magnitude other than zero, rounded down to its bin; 0 when all values are zero."""
        magnitudes = self.bins & np.uint16(0x7FFF)
        magnitudes = magnitudes[magnitudes > 0]
        return float(np.uint32(int(magnitudes.min()) << 16).view(np.float32)) if magnitudes.size else 0.0

    @property
    def elements(self) -> int:
        """How many finite values were seen."""
        return int(self.counts.sum())

    @property
    def values(self) -> NDArray[np.float64]:
        """The middle of each of ``bins``, within [``min``, ``max``]."""
        return np.clip(bin_values()[self.bins], self.min, self.max)

    def merged(self, other: TensorRange) -> TensorRange:
        """The statistics of what both have seen, exactly as if one had."""
        seen = [one for one in (self, other) if one.elements]
        bins, counts = summed(np.concatenate([self.bins, other.bins]), np.concatenate([self.counts, other.counts]))
        return TensorRange(
            min=min((one.min for one in seen), default=0.0),
            max=max((one.max for one in seen), default=0.0),
            nan_count=self.nan_count + other.nan_count,
            inf_count=self.inf_count + other.inf_count,
            bins=bins,
            counts=counts,
        )

    def clipped(self, low: float, high: float) -> TensorRange:
        """The statistics of the same values, those below ``low`` raised to it, those above ``high`` lowered to it.

        Exact, because a bound lies in the bin that it moves values to. NaN and infinities are taken to stay.
        """
        if not self.elements:
            return self
        ends = np.array([low, high], np.float32).view(np.uint16)[1::2]
        lowest, highest = _places(ends)
        bins = np.where(_places(self.bins) < lowest, ends[0], self.bins)
        bins = np.where(_places(bins) > highest, ends[1], bins)
        bins, counts = summed(bins, self.counts)
        least, most = (
            float(np.clip(np.float32(end), np.float32(low), np.float32(high))) for end in (self.min, self.max)
        )
        return TensorRange(least, most, self.nan_count, self.inf_count, bins, counts)

    def percentile(self, q: float) -> float:
        """The value that ``q`` percent of all values do not exceed, to the width of a bin (relative 2⁻⁷)."""
        if not self.elements:
            return 0.0
        if q >= 100:
            return self.max
        values = self.values
        order = np.argsort(values, kind="stable")
        cumulated = np.cumsum(self.counts[order])
        rank = max(1, math.ceil(q / 100 * cumulated[-1]))
        return float(values[order[np.searchsorted(cumulated, rank)]]) if q > 0 else self.min


class Ranges(Mapping[str, TensorRange]):
    """Statistics by value name, in the order of the graph."""

    def __init__(self, tensors: Mapping[str, TensorRange], samples: int, batches: int = 0) -> None:
        self._tensors = dict(tensors)
        self.samples = samples
        self.batches = batches
        """Runs of the model that gave them."""

    def __getitem__(self, name: str) -> TensorRange:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def absmax(self) -> dict[str, float]:
        """Largest magnitude by value name."""
        return {name: tensor.absmax for name, tensor in self.items()}

    def merged(self, other: Ranges) -> Ranges:
        """The ranges of the samples of both, exactly as if they had been observed together."""
        tensors = {name: self[name].merged(other[name]) if name in self else other[name] for name in other}
        return Ranges({**self, **tensors}, self.samples + other.samples, self.batches + other.batches)

    def save(self, folder: Path) -> None:
        """Write ``ranges.npz`` and ``ranges.json``."""
        with (folder / NPZ).open("wb") as file:
            self.write(file)
        words = {
            "schema": SCHEMA,
            "samples": self.samples,
            "tensors": {name: _readable(tensor) for name, tensor in self.items()},
        }
        (folder / JSON).write_text(json.dumps(words, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    def write(self, file: IO[bytes]) -> None:
        """Write the ``.npz``: all there is to know."""
        tensors = list(self.values())
        lengths = np.array([len(tensor.bins) for tensor in tensors], np.int64)
        np.savez_compressed(
            file,
            schema=np.int64(SCHEMA),
            samples=np.int64(self.samples),
            batches=np.int64(self.batches),
            names=np.frombuffer(json.dumps(list(self)).encode(), np.uint8),
            min=np.array([tensor.min for tensor in tensors], np.float64),
            max=np.array([tensor.max for tensor in tensors], np.float64),
            nan_count=np.array([tensor.nan_count for tensor in tensors], np.int64),
            inf_count=np.array([tensor.inf_count for tensor in tensors], np.int64),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            bins=np.concatenate([np.empty(0, np.uint16), *(tensor.bins for tensor in tensors)]),
            counts=np.concatenate([np.empty(0, np.int64), *(tensor.counts for tensor in tensors)]),
        )

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """What ``save`` wrote into the folder ``path``, or ``write`` into that file.

        Raises ``RetargetError`` when it is damaged.
        """
        file = path / NPZ if path.is_dir() else path
        try:
            # np.load leaves a file open that it finds damaged, unless the file is ours.
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            if (schema := int(arrays["schema"])) != SCHEMA:
                raise RetargetError(f"{file}: ranges of schema {schema}, this is {SCHEMA}", "calibrate again")
            ends = arrays["offsets"]
            tensors = {
                name: TensorRange(
                    min=float(arrays["min"][index]),
                    max=float(arrays["max"][index]),
                    nan_count=int(arrays["nan_count"][index]),
                    inf_count=int(arrays["inf_count"][index]),
                    bins=arrays["bins"][ends[index] : ends[index + 1]],
                    counts=arrays["counts"][ends[index] : ends[index + 1]],
                )
                for index, name in enumerate(json.loads(arrays["names"].tobytes()))
            }
            return cls(tensors, int(arrays["samples"]), int(arrays["batches"]))
        except (
            OSError,
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise RetargetError(f"{file}: not readable ranges ({error})", "calibrate again") from error


def summed(bins: NDArray[np.uint16], counts: NDArray[np.int64]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """``bins`` ascending, each once, with the sum of its ``counts``."""
    unique, place = np.unique(bins, return_inverse=True)
    sums = np.zeros(len(unique), np.int64)
    np.add.at(sums, place, counts)
    return unique, sums


def _places(bins: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Numbers in the order of the values in ``bins``; both zeros have the same."""
    magnitudes = (bins & 0x7FFF).astype(np.int32)
    return np.where(bins >> 15 != 0, -magnitudes, magnitudes)


def _readable(tensor: TensorRange) -> dict[str, object]:
    return {
        "min": tensor.min,
        "max": tensor.max,
        "elements": tensor.elements,
        "nan_count": tensor.nan_count,
        "inf_count": tensor.inf_count,
        "percentiles": {f"{q:g}": float(f"{tensor.percentile(q):.6g}") for q in PERCENTILES},
    }


@cache
def bin_values() -> NDArray[np.float64]:
    """The middle of each of the 65,536 bins; 0 for the two of zero, and for NaN and infinities."""
    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    # The bin of zero also holds denormals below 2**-133: zeros outnumber them in every tensor there is.
    used = ((bits & 0x7F800000) != 0x7F800000) & ((bits & 0x7FFF0000) != 0)
    values = np.zeros(len(bits), np.float64)
    values[used] = (bits[used] | 0x8000).view(np.float32)
    values.setflags(write=False)
    return values

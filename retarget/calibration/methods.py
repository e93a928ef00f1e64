"""The range that a tensor is clipped to before it is rounded, from what calibration recorded of it.

All methods read the same counts (`TensorRange`). Within a bin, whose width is at most 2⁻⁷ of its values, values are
taken as spread evenly; ``min`` and ``max`` are exact, and so is a peak there, such as that of a ReLU6 at 6. Zeros
change no choice: every range contains 0 and every grid represents it, so MSE and entropy leave them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from retarget.calibration.ranges import TensorRange, summed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from retarget.schemes import Grid, Method

    Reals = NDArray[np.float64]
    Indices = NDArray[np.intp]

PERCENTILE = 99.99
HISTOGRAM = 2048
"""Bins of equal width, from 0 to the largest magnitude, in which the entropy method compares distributions."""

_SIGN = np.uint16(0x8000)
_WORTH = 1.01
"""The full range stands unless a narrower one makes the error so many times smaller: the counts know no more."""
_ZOOM = 2.0 ** -np.arange(0, 10.5, 0.5)
"""Scales that are tried first, as parts of the full range's."""
_ZERO_POINTS = 129
_FINE_OCTAVES = 3
_COARSE_BITS = 3
_ENTROPY_STRIDE = 4
_ENTROPY_CLIPPED = 1e-3
"""Share of the values other than zero that the entropy method may clip at most."""


def chooser(
    ranges: Mapping[str, TensorRange], method: Method, *, percentile: float = PERCENTILE
) -> Callable[[str, Grid], tuple[float, float] | None]:
    """`clip` by the name of a value, each worked out once; None for a value of which nothing finite was recorded."""

    @cache
    def choose(name: str, grid: Grid) -> tuple[float, float] | None:
        recorded = ranges.get(name)
        if recorded is None or not recorded.elements:
            return None
        return clip(recorded, grid, method, percentile=percentile)

    return choose


def clip(tensor: TensorRange, grid: Grid, method: Method, *, percentile: float = PERCENTILE) -> tuple[float, float]:
    """The range, low and high, that ``tensor`` is clipped to when it is rounded to ``grid``.

    It contains 0 and reaches no further than the values that were seen, but for a part of a step. On a symmetric grid
    low is -high and the step ``high / grid.high``, else the step is ``(high - low) / (grid.high - grid.low)``.

    - ``minmax``: all values.
    - ``percentile``: at each end all but ``100 - percentile`` percent of the values; of magnitudes if symmetric.
    - ``mse``: least mean squared error of clipping and rounding.
    - ``entropy``: least Kullback-Leibler divergence, as TensorRT's calibrator does it (see `_entropy`).

    ``(0, 0)`` for a tensor of zeros and for one without finite values.
    """
    if grid.symmetric:
        _, high = _one_zero_point(_magnitudes(tensor), grid.high, method, percentile)
        return 0.0 - high, high
    return _one_zero_point(tensor, grid.high - grid.low, method, percentile)


def _one_zero_point(tensor: TensorRange, steps: int, method: Method, percentile: float) -> tuple[float, float]:
    """The range of ``tensor`` that ``steps`` equal steps are laid over, whatever zero's place among them."""
    low, high = min(tensor.min, 0.0), max(tensor.max, 0.0)
    if not (tensor.bins & ~_SIGN).any():
        return low, high
    match method:
        case "minmax":
            return low, high
        case "percentile":
            return min(tensor.percentile(100 - percentile), 0.0), max(tensor.percentile(percentile), 0.0)
        case "mse":
            return _mse(_density(tensor, coarse=True), low, high, steps)
        case "entropy":
            return _entropy(_density(tensor), low, high, steps + 1)


def _magnitudes(tensor: TensorRange) -> TensorRange:
    """The statistics of the absolute values."""
    bins, counts = summed(tensor.bins & ~_SIGN, tensor.counts)
    ends = abs(tensor.min), abs(tensor.max)
    return TensorRange(
        min=min(ends) if tensor.min > 0 or tensor.max < 0 else 0.0,
        max=max(ends),
        nan_count=tensor.nan_count,
        inf_count=tensor.inf_count,
        bins=bins,
        counts=counts,
    )


# ---- the density of the values other than zero


@dataclass(frozen=True, eq=False)
class _Density:
    """How many values there are in a unit of length: the same all the way between two ``edges``, none beyond them."""

    edges: Reals
    heights: Reals
    """One fewer than ``edges``."""

    def integral(self, antiderivative: Callable[[Reals], Reals]) -> Callable[[Reals], Reals]:
        """The integral of a function, from below all values up to each of a matrix of places, exactly.

        ``antiderivative`` takes a row; where it makes several of it, each is for one row of the places.
        """
        at_edges = antiderivative(self.edges[None])
        sums = np.zeros_like(at_edges)
        np.cumsum(self.heights * np.diff(at_edges), axis=1, out=sums[:, 1:])
        row = np.arange(len(at_edges))[:, None]

        def upto(places: Reals) -> Reals:
            places = np.minimum(np.maximum(places, self.edges[0]), self.edges[-1])
            index = np.minimum(np.searchsorted(self.edges, places, side="right"), len(self.heights)) - 1
            result: Reals = sums[row, index] + self.heights[index] * (antiderivative(places) - at_edges[row, index])
            return result

        return upto


def _density(tensor: TensorRange, *, coarse: bool = False) -> _Density:
    """Of the values other than zero, of which there must be some.

    ``coarse`` puts bins together that are too narrow to matter beside the largest ones: eight to one from three
    octaves below the largest magnitude, where they are still no wider than two steps of 8 bits.
    """
    nonzero = (tensor.bins & ~_SIGN) != 0
    negative = tensor.bins[nonzero] >= _SIGN
    bits = (tensor.bins[nonzero] & ~_SIGN).astype(np.uint32)
    octave = np.uint32(128)
    fine_from = max(int(bits.max() // octave) - _FINE_OCTAVES, 0) * octave if coarse else 0
    dropped = np.where(bits < fine_from, np.uint32(_COARSE_BITS), np.uint32(0))
    bits = bits >> dropped << dropped
    near = (bits << 16).view(np.float32).astype(np.float64)
    far = ((bits + (1 << dropped)) << 16).view(np.float32).astype(np.float64)
    # No bin reaches beyond the values that were seen.
    near = np.maximum(near, max(-tensor.max, tensor.min, 0.0))
    far = np.minimum(far, np.where(negative, -tensor.min, tensor.max))
    # A bin of which only its very edge is used is a peak: as narrow as floats let us draw it.
    near = np.where(near < far, near, far * (1 - 2.0**-30))
    lows, highs = np.where(negative, -far, near), np.where(negative, -near, far)
    edges = np.unique(np.concatenate([lows, highs]))
    heights = np.zeros(len(edges) - 1)
    np.add.at(heights, np.searchsorted(edges, lows), tensor.counts[nonzero] / (highs - lows))
    return _Density(edges, heights)


# ---- mean squared error


def _mse(density: _Density, low: float, high: float, steps: int) -> tuple[float, float]:
    """Search over scales, from coarse to fine; for each scale the zero points are weighed all at once.

    Where a value is not clipped its error hangs on the scale alone, because zero is a level: the sums up to every
    place are made once a scale, and a zero point only says between which two places they count.
    """
    moments = [density.integral(antiderivative) for antiderivative in (_x, _x_squared_half, _x_cubed_third)]
    of_all = [moment(density.edges[None, -1:]) for moment in moments]

    def clipped(lows: Reals, highs: Reals) -> Reals:
        """Squared distances, summed, of the values outside of the range from ``lows`` to ``highs`` to it."""
        below = [moment(lows) for moment in moments]
        above = [total - moment(highs) for total, moment in zip(of_all, moments, strict=True)]
        return _squares(below, lows) + _squares(above, highs)

    def least(scales: Reals) -> tuple[Reals, Reals, Reals]:
        """For each of ``scales`` the least sum of squared errors of all zero points, and the range that has it."""
        scale = scales[:, None]
        # No end of the range lies further out than the values do.
        most = np.minimum(np.ceil(-low / scale), steps)
        fewest = np.clip(steps - np.ceil(high / scale), 0, most)
        choices = int(min((most - fewest).max() + 1, _ZERO_POINTS))
        below = np.round(fewest + (most - fewest) * np.linspace(0, 1, choices))
        lows, highs = 0.0 - below * scale, (steps - below) * scale
        rounded = density.integral(lambda x: _rounding(x / scale) * scale**3)
        errors = rounded(highs) - rounded(lows) + clipped(lows, highs)
        best = errors.argmin(axis=1)[:, None]
        errors, lows, highs = (np.take_along_axis(array, best, axis=1)[:, 0] for array in (errors, lows, highs))
        return errors, lows, highs

    full = (high - low) / steps
    scales = full * _ZOOM
    errors, lows, highs = least(scales)
    widest = errors[0]
    for spread in (2**0.5, 2**0.125):
        scales = np.minimum(scales[errors.argmin()] * spread ** np.linspace(-1, 1, 9), full)
        errors, lows, highs = least(scales)
    best = errors.argmin()
    if widest <= errors[best] * _WORTH:
        return low, high
    return float(lows[best]), float(highs[best])


def _squares(moments: list[Reals], place: Reals) -> Reals:
    """Sum of the squared distances to ``place`` of values, from the sums of their powers 0, 1 and 2."""
    count, first, second = moments
    result: Reals = second - 2 * place * first + place * place * count
    return result


def _x(x: Reals) -> Reals:
    return x


def _x_squared_half(x: Reals) -> Reals:
    return x * x / 2


def _x_cubed_third(x: Reals) -> Reals:
    return x * x * x / 3


def _rounding(x: Reals) -> Reals:
    """∫₀ˣ (t - round(t))² dt: 1/12 for each whole step, and a cube for the rest."""
    whole = np.round(x)
    rest = x - whole
    return whole / 12 + _x_cubed_third(rest)


# ---- entropy


def _entropy(density: _Density, low: float, high: float, levels: int) -> tuple[float, float]:
    """The threshold on magnitudes whose quantized distribution diverges least from the clipped one.

    The algorithm of S. Migacz, "8-bit inference with TensorRT" (NVIDIA GTC 2017): 2,048 bins of equal width; for each
    threshold ``P`` is the histogram up to it, with what lies beyond added to its last bin, and ``Q`` the histogram
    without that, in ``levels`` groups of bins, the sum of each spread evenly over its bins that are not empty. Where
    a tensor has both signs and the grid is asymmetric, the same is done on both sides of zero at once.

    What it leaves open: zeros are left out, and the bin beside zero counts as much as the next one, as in NVIDIA's
    ``pytorch_quantization.calib.histogram``; a last bin that holds only what was added, where ``Q`` is 0 and ``P`` is
    not, diverges without bound; and no threshold is taken that clips more than `_ENTROPY_CLIPPED`, because a single
    peak that takes in all the rest would diverge from nothing.
    """
    width = max(high, -low) / HISTOGRAM
    below, above = int(np.ceil(-low / width)), int(np.ceil(high / width))
    edges = np.arange(-below, above + 1, dtype=np.float64) * width
    histogram = np.diff(density.integral(_x)(edges[None])[0])
    places = np.arange(HISTOGRAM, min(levels, HISTOGRAM) - 1, -_ENTROPY_STRIDE)
    starts, stops = below - np.minimum(places, below), below + np.minimum(places, above)
    upto = np.concatenate([[0.0], np.cumsum(histogram)])
    allowed = upto[stops] - upto[starts] >= (1 - _ENTROPY_CLIPPED) * upto[-1]
    # The first place leaves nothing out, but for what summing floats loses.
    allowed[0] = True
    _level_beside_zero(histogram, below)
    divergence = np.where(allowed, _divergence(histogram, starts, stops, levels), np.inf)
    chosen = places[divergence.argmin()]
    return max(low, -width * chosen), min(high, width * chosen)


def _level_beside_zero(histogram: Reals, zero: int) -> None:
    for first, second in ((zero, zero + 1), (zero - 1, zero - 2)):
        if 0 <= first < len(histogram) and 0 <= second < len(histogram):
            histogram[first] = histogram[second]


def _divergence(histogram: Reals, starts: Indices, stops: Indices, levels: int) -> Reals:
    """Kullback-Leibler divergence of ``Q`` from ``P`` for every range of bins from ``starts`` to ``stops``, in nats.

    Within a group ``Q`` is constant, so the sum over its bins needs only the sum and number of those not empty.
    """
    upto = np.concatenate([[0.0], np.cumsum(histogram)])
    filled = np.concatenate([[0], np.cumsum(histogram > 0)])
    entropy = np.concatenate([[0.0], np.cumsum(_xlogx(histogram))])
    edges = starts[:, None] + (stops - starts)[:, None] * np.arange(levels + 1) // levels
    sums, sizes = np.diff(upto[edges]), np.diff(filled[edges])
    heights = sums / np.maximum(sizes, 1)
    total, inside = upto[-1], upto[stops] - upto[starts]

    own = entropy[stops] - entropy[starts]
    cross = (sums * _log(heights)).sum(axis=1)
    possible = inside > 0
    for outliers, edge, group in ((upto[starts], starts, 0), (total - upto[stops], stops - 1, -1)):
        last = histogram[edge]
        own += _xlogx(last + outliers) - _xlogx(last)
        cross += outliers * _log(heights[:, group])
        possible &= (last > 0) | (outliers <= 1e-9 * total)
    return np.where(possible, (own - cross) / total + _log(inside / total), np.inf)


def _log(x: Reals) -> Reals:
    """The logarithm, and 0 at 0."""
    return np.log(np.where(x > 0, x, 1.0))


def _xlogx(x: Reals) -> Reals:
    return x * _log(x)

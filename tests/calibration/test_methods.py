"""The oracles work on the raw values: a brute-force search for MSE, the published algorithm bin by bin for entropy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from scipy import stats

from retarget.calibration.methods import HISTOGRAM, chooser, clip
from retarget.calibration.observers import Observer
from retarget.calibration.ranges import TensorRange
from retarget.schemes import Grid, Method

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from retarget.protocols import Array

Reals = NDArray[np.float64]
METHODS: tuple[Method, ...] = get_args(Method)

U8 = Grid(0, 255, symmetric=False)
S8 = Grid(-128, 127, symmetric=True)
S8_ASYMMETRIC = Grid(-128, 127, symmetric=False)
U4 = Grid(0, 15, symmetric=False)
U16 = Grid(0, 65535, symmetric=False)
S16 = Grid(-32768, 32767, symmetric=True)
GRIDS = {"u8": U8, "s8": S8, "s8 asymmetric": S8_ASYMMETRIC, "u4": U4, "u16": U16, "s16": S16}


def seen(values: Array) -> TensorRange:
    observer = Observer()
    observer.add(values)
    return observer.result()


def rounded(values: Reals, low: float, high: float, grid: Grid) -> Reals:
    """As QuantizeLinear and DequantizeLinear do it."""
    if low == high:
        return np.zeros_like(values)
    scale = high / grid.high if grid.symmetric else (high - low) / (grid.high - grid.low)
    zero = 0 if grid.symmetric else round(grid.low - low / scale)
    result: Reals = (np.clip(np.round(values / scale) + zero, grid.low, grid.high) - zero) * scale
    return result


def error(values: Reals, low: float, high: float, grid: Grid) -> float:
    return float(np.mean((rounded(values, low, high, grid) - values) ** 2))


def drawn(name: str, count: int = 20000) -> Reals:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(count)
    values = {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "minus relu": np.minimum(normal, 0),
        "relu6": np.clip(4 * normal, 0, 6),
        "laplace": rng.laplace(size=count),
        "student": rng.standard_t(3, count),
        "silu": 3 * normal / (1 + np.exp(-3 * normal)),
        "sigmoid": 1 / (1 + np.exp(-4 * normal)),
        "shifted": normal + 3,
        "skewed": rng.gumbel(size=count),
        "softmax": rng.dirichlet(np.full(50, 0.3), count // 50).reshape(-1),
    }[name]
    # What the model computes is float32.
    result: Reals = values.astype(np.float32).astype(np.float64)
    return result


DRAWS = [
    "normal",
    "relu",
    "minus relu",
    "relu6",
    "laplace",
    "student",
    "silu",
    "sigmoid",
    "shifted",
    "skewed",
    "softmax",
]


# ---- what holds for every method


any_values = npst.arrays(
    np.float32, st.integers(0, 60), elements=st.floats(width=32, allow_subnormal=True, allow_nan=True) | st.just(0.0)
)


@given(any_values, st.sampled_from(sorted(GRIDS)), st.sampled_from(METHODS))
def test_a_range_contains_zero_and_reaches_no_further_than_the_values(
    values: Array, grid_name: str, method: Method
) -> None:
    grid = GRIDS[grid_name]
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = clip(seen(values), grid, method)
    assert np.isfinite([low, high]).all()
    assert low <= 0 <= high
    step = (high - low) / (grid.high - grid.low)
    if grid.symmetric:
        assert low == -high
        assert high <= np.abs(finite).max(initial=0) * (1 + 1e-9)
    else:
        assert low >= finite.min(initial=0) - step
        assert high <= finite.max(initial=0) + step
    if not finite.any():
        assert (low, high) == (0, 0)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1.0, -1.0, 0.37, -1e-30, 3e38, 1e-42])
def test_a_constant_is_kept(value: float, method: Method, grid: Grid) -> None:
    constant = np.full(100, value, np.float32)
    low, high = clip(seen(constant), grid, method)
    assert max(-low, high) == pytest.approx(abs(float(constant[0])), rel=1e-6)
    assert min(-low, high) == (max(-low, high) if grid.symmetric else 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_peak_beside_zeros_is_kept(method: Method) -> None:
    mask = np.where(np.arange(1000) % 3 == 0, np.float32(-10000), np.float32(0))
    assert clip(seen(mask), U8, method) == pytest.approx((-10000, 0))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_finite_has_no_range(method: Method) -> None:
    assert clip(seen(np.array([np.nan, np.inf, -np.inf], np.float32)), U8, method) == (0, 0)
    assert clip(seen(np.zeros(0, np.float32)), S8, method) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_change_nothing_but_percentiles(method: Method) -> None:
    values = drawn("normal")
    with_zeros = np.concatenate([values, np.zeros(len(values))])
    for grid in (U8, S8):
        same = clip(seen(values), grid, method) == clip(seen(with_zeros), grid, method)
        assert same is (method != "percentile")


def test_minmax_is_exact() -> None:
    assert clip(seen(np.array([-1.2345, 0.5], np.float32)), U8, "minmax") == (float(np.float32(-1.2345)), 0.5)
    assert clip(seen(np.array([0.5, 0.7], np.float32)), U8, "minmax") == (0, float(np.float32(0.7)))
    assert clip(seen(np.array([-2, 0.7], np.float32)), S8, "minmax") == (-2, 2)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("percentile", [99.0, 99.9])
def test_percentiles_are_those_of_numpy(draw: str, percentile: float) -> None:
    values = drawn(draw)
    low, high = clip(seen(values), U8, "percentile", percentile=percentile)
    expected = np.percentile(values, [100 - percentile, percentile], method="inverted_cdf")
    assert (low, high) == pytest.approx((min(expected[0], 0), max(expected[1], 0)), rel=2**-7, abs=1e-30)
    magnitude = float(np.percentile(np.abs(values), percentile, method="inverted_cdf"))
    assert clip(seen(values), S8, "percentile", percentile=percentile)[1] == pytest.approx(magnitude, rel=2**-7)


# ---- mean squared error


def least_error(values: Reals, grid: Grid) -> float:
    """Over a fine lattice of scales and, on an asymmetric grid, of zero points."""
    steps = grid.high - grid.low
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    return min(error(values, *ends, grid) for ends in _lattice(low, high, steps, grid))


def _lattice(low: float, high: float, steps: int, grid: Grid) -> Iterator[tuple[float, float]]:
    for part in np.geomspace(0.1, 1, 50):
        if grid.symmetric:
            yield -max(-low, high) * part, max(-low, high) * part
            continue
        scale = (high - low) / steps * part
        most = min(steps, int(np.ceil(-low / scale)))
        least = min(most, max(0, steps - int(np.ceil(high / scale))))
        for below in np.unique(np.linspace(least, most, 24).round()):
            yield -below * scale, (steps - below) * scale


@pytest.mark.parametrize("grid", [U8, S8, U4], ids=["u8", "s8", "u4"])
@pytest.mark.parametrize("draw", DRAWS)
def test_the_error_is_the_least_there_is(draw: str, grid: Grid) -> None:
    values = drawn(draw)
    found = error(values, *clip(seen(values), grid, "mse"), grid)
    assert found <= 1.02 * least_error(values, grid)


def test_a_long_tail_is_clipped_where_that_pays() -> None:
    values = np.concatenate([drawn("normal", 100000), [200.0, -150.0]])
    found = clip(seen(values), U8, "mse")
    assert error(values, *found, U8) < 0.85 * error(values, -150, 200, U8)
    assert error(values, *found, U8) <= 1.02 * least_error(values, U8)


def test_levels_that_the_data_have_already_are_not_moved() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 10000) / 255
    low, high = clip(seen(pixels), U8, "mse")
    assert (low, high) == (0, 1)
    assert error(pixels, low, high, U8) < 1e-15


# ---- entropy


def divergences(magnitudes: Reals, levels: int) -> dict[int, float]:
    """Migacz as he wrote it down: each fourth number of bins whose last is not empty, and its divergence."""
    bins = np.histogram(magnitudes, bins=HISTOGRAM, range=(0, magnitudes.max()))[0].astype(np.float64)
    bins[0] = bins[1]
    found = {}
    for end in range(HISTOGRAM, levels - 1, -4):
        if bins[end - 1] == 0:
            continue
        groups = np.arange(levels) * end // levels
        used = bins[:end] > 0
        means = np.add.reduceat(bins[:end], groups) / np.maximum(np.add.reduceat(used, groups, dtype=np.int64), 1)
        expanded = np.repeat(means, np.diff(np.append(groups, end))) * used
        reference = bins[:end].copy()
        reference[-1] += bins[end:].sum()
        found[end] = float(stats.entropy(reference[used], expanded[used]))
    return found


DIVERGING = ["normal", "relu", "laplace", "student", "silu", "skewed", "shifted"]


@pytest.mark.parametrize("draw", DIVERGING)
@pytest.mark.parametrize("grid", [S8, U8], ids=["s8", "u8"])
def test_the_divergence_is_the_least_there_is(draw: str, grid: Grid) -> None:
    values = drawn(draw, 400000)
    values = np.abs(values[values != 0])
    by_bins = divergences(values, 256 if grid is U8 else 128)
    _, high = clip(seen(values), grid, "entropy")
    width = values.max() / HISTOGRAM
    end = min(by_bins, key=lambda end: abs(end * width - high))
    assert by_bins[end] <= 1.25 * min(by_bins.values())


@pytest.mark.parametrize("draw", DIVERGING)
def test_the_threshold_is_the_published_one_where_bins_are_filled_evenly(draw: str) -> None:
    recorded = seen(np.abs(drawn(draw)))
    bins = recorded.bins[recorded.bins > 0].astype(np.uint32)
    near, far = ((bits << 16).view(np.float32).astype(np.float64) for bits in (bins, bins + 1))
    far = np.minimum(far, recorded.max)
    copies = 50
    counts = recorded.counts[recorded.bins > 0] * copies
    index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    values = np.repeat(near, counts) + np.repeat((far - near) / counts, counts) * (index + 0.5)
    by_bins = divergences(np.append(values, recorded.max), 128)
    expected = min(by_bins, key=lambda end: by_bins[end])
    _, high = clip(recorded, S8, "entropy")
    chosen = round(high / recorded.max * HISTOGRAM)
    assert by_bins[chosen] <= 1.02 * by_bins[expected]


def test_a_long_tail_is_clipped_and_a_peak_is_not_all_there_is() -> None:
    values = drawn("student", 200000)
    assert clip(seen(values), S8, "entropy")[1] < 0.5 * np.abs(values).max()
    # All but the peak at -1 would be clipped if only the divergence counted.
    values = -np.maximum(drawn("normal", 200000), 0) - 1
    low, high = clip(seen(values), U8, "entropy")
    assert high == 0
    assert low < np.percentile(values, 0.2)


def test_more_levels_than_bins_leave_nothing_to_compare() -> None:
    values = drawn("student")
    assert clip(seen(values), U16, "entropy") == pytest.approx((values.min(), values.max()))


# ---- time


def seconds(call: Callable[[], object]) -> float:
    """Of this thread on a processor; the least of some runs."""
    taken = []
    for _ in range(5):
        started = time.thread_time()
        call()
        taken.append(time.thread_time() - started)
    return min(taken)


@pytest.mark.parametrize("method", METHODS)
def test_a_range_takes_no_longer_than_counting_what_20_images_leave_in_a_tensor(method: Method) -> None:
    values = drawn("normal", 200000)
    tensor, array = seen(values), values.astype(np.float32)
    assert seconds(lambda: clip(tensor, U8, method)) < 20 * seconds(lambda: Observer().add(array))


def test_values_are_looked_up_by_name_and_worked_out_once() -> None:
    ranges = {"x": seen(drawn("normal", 1000)), "nothing": seen(np.array([np.nan, np.inf]))}
    choose = chooser(ranges, "mse")
    assert choose("x", U8) == clip(ranges["x"], U8, "mse")
    assert choose("x", U8) is choose("x", U8)
    assert choose("x", S8) == clip(ranges["x"], S8, "mse")
    assert choose("nothing", U8) is None
    assert choose("unknown", U8) is None

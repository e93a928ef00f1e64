from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from retarget.calibration.statistics import Statistics
from retarget.spec import TensorSpec

SPEC = TensorSpec.parse("a=float32[N,700,500]")


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_batches_of_any_size_give_the_figures_of_the_whole(offset: float) -> None:
    whole = np.random.default_rng(0).standard_normal((7, 700, 500)).astype(np.float32) * 3 + np.float32(offset)
    for cuts in ([7], [1, 3], [2, 4, 6]):
        statistics = Statistics([SPEC])
        for part in np.split(whole, cuts):
            if len(part):
                statistics.add({"a": part, "label": np.arange(len(part))})
        (found,) = statistics.result()
        assert found.count == whole.size
        assert (found.min, found.max) == (whole.min(), whole.max())
        assert found.mean == pytest.approx(whole.mean(dtype=np.float64), rel=1e-12, abs=1e-12)
        assert found.std == pytest.approx(whole.std(dtype=np.float64), rel=1e-9)


def test_only_floats_are_counted() -> None:
    specs = [
        TensorSpec.parse(text) for text in ("a=bfloat16[N]", "tokens=int64[N]", "scale=float32[]", "none=float32[N]")
    ]
    statistics = Statistics(specs)
    feeds = {
        "a": np.array([1, 3], ml_dtypes.bfloat16),
        "tokens": np.array([5, 6]),
        "scale": np.array(2.0, np.float32),
        "none": np.zeros(0, np.float32),
    }
    statistics.add(feeds)
    assert [(one.name, one.count, one.mean, one.std) for one in statistics.result()] == [
        ("a", 2, 2.0, 1.0),
        ("scale", 1, 2.0, 0.0),
    ]

"""Weights in fewer bits: what coremltools stores, held against the floats that they came from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import target_testing as t
import written

from retarget import catalog
from retarget.targets.coreml import DeploymentTarget
from retarget.targets.coreml.compress import palette

if TYPE_CHECKING:
    from retarget.protocols import Array

NET = """g (float[N,64,4,4] x, float[64,64,3,3] w_conv, float[1024,64] w_fc) => (float[N,64] z) {
    [conv] a = Conv <pads = [1, 1, 1, 1]> (x, w_conv)
    [relu] r = Relu(a)
    [flat] f = Flatten(r)
    [fc] z = MatMul(f, w_fc)
}"""


def snr(actual: Array, expected: Array) -> float:
    right = expected.astype(np.float64)
    return float(10 * np.log10(np.square(right).sum() / np.square(actual.astype(np.float64) - right).sum()))


@pytest.mark.parametrize(
    ("precision", "block", "target", "held", "share", "least"),
    [
        ("palette6", None, "iOS16", "palette6", 6 / 32, 25),
        ("palette6", None, "iOS18", "palette6", 6 / 32, 25),
        ("int8_weights", None, "iOS16", "int8", 8 / 32, 35),
        ("int8_weights", 32, "iOS18", "int8", 8 / 32, 38),
        ("int4_weights", None, "iOS18", "int4", 4 / 32, 15),
    ],
)
def test_weights_are_stored_in_the_bits_that_are_asked_for(
    tmp_path: Path, precision: str, block: int | None, target: DeploymentTarget, held: str, share: float, least: float
) -> None:
    model = t.model(NET)
    for name in ("small", "whole"):
        (tmp_path / name).mkdir()
    emit = catalog.target_emit("coreml").emit
    facts = emit(model, replace(written.job(model, target, precision), block=block), tmp_path / "small")
    emit(model, written.job(model, target), tmp_path / "whole")
    assert facts.precision.weights == held
    small, whole = (weights_of(tmp_path / name) for name in ("small", "whole"))
    scales = whole / 32 * (32 if block or precision == "int4_weights" else 4) / 4  # a float for 32 of the weights
    assert small < whole * share + scales
    feeds = t.feeds(model, 3)
    found = t.run("coreml", tmp_path / "small", facts, feeds)["z"]
    assert least < snr(found, t.oracle(model, feeds)["z"]) < 60


def weights_of(artifact: Path) -> int:
    return (artifact / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size


@pytest.mark.parametrize("kept", ["fc", "MatMul"])
def test_what_is_kept_is_not_compressed(tmp_path: Path, kept: str) -> None:
    model = t.model(NET)
    for name in ("all", "some"):
        (tmp_path / name).mkdir()
    job = written.job(model, "iOS17", "int8_weights")
    whole = catalog.target_emit("coreml").emit(model, job, tmp_path / "all")
    some = catalog.target_emit("coreml").emit(model, replace(job, keep=(kept,)), tmp_path / "some")
    assert not whole.notes
    assert [note[:32] for note in some.notes] == ["64% of the weights stay float: t"]
    difference = weights_of(tmp_path / "some") - weights_of(tmp_path / "all")
    assert difference == pytest.approx(1024 * 64 * 3, rel=0.02)


@pytest.mark.parametrize(
    ("draw", "best"),
    [("normal", 31.9), ("laplace", 29.6)],  # Lloyd-Max of 64 levels, Paez and Glisson 1972 and the rule behind it
)
def test_a_palette_is_close_to_the_best_one(draw: str, best: float) -> None:
    weights = getattr(np.random.default_rng(0), draw)(size=200_000).astype(np.float32)
    table, places = palette(weights)
    assert snr(table[places], weights) > best - 0.4
    # Each weight has the value next to it.
    nearest = np.abs(weights[:500, None] - table).argmin(1)
    np.testing.assert_array_equal(np.abs(table[places[:500]] - weights[:500]), np.abs(table[nearest] - weights[:500]))


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [-1.0, 0.25, 8.0], list(range(64))])
def test_a_palette_of_few_values_is_exact(values: list[float]) -> None:
    weights = np.random.default_rng(0).choice(np.array(values, np.float32), 5000)
    table, places = palette(weights)
    assert table.shape == (64,)
    np.testing.assert_array_equal(table[places], weights)

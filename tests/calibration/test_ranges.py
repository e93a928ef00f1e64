from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from retarget.calibration.observers import Observer
from retarget.calibration.ranges import Ranges
from retarget.errors import RetargetError


def ranges() -> Ranges:
    tensors = {}
    for index, name in enumerate(["b/c", "a.file", "zeros"]):
        observer = Observer()
        observer.add(np.random.default_rng(index).standard_normal(500, dtype=np.float32) * 10**index * (index < 2))
        tensors[name] = observer.result()
    odd = Observer()
    odd.add(np.array([np.nan, np.inf], np.float32))
    return Ranges({**tensors, "not finite": odd.result()}, samples=7)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = ranges()
    saved.save(tmp_path)
    loaded = Ranges.load(tmp_path)
    assert list(loaded) == list(saved)
    assert loaded.samples == 7
    assert loaded.absmax() == saved.absmax()
    assert loaded.absmax()["not finite"] == np.inf
    for name in saved:
        np.testing.assert_array_equal(loaded[name].bins, saved[name].bins)
        np.testing.assert_array_equal(loaded[name].counts, saved[name].counts)
        assert (loaded[name].min, loaded[name].max) == (saved[name].min, saved[name].max)
        assert (loaded[name].nan_count, loaded[name].inf_count) == (saved[name].nan_count, saved[name].inf_count)


def test_the_same_ranges_are_the_same_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        ranges().save(folder)
    for name in ("ranges.npz", "ranges.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_people_can_read_them(tmp_path: Path) -> None:
    ranges().save(tmp_path)
    words = json.loads((tmp_path / "ranges.json").read_text())
    values = np.random.default_rng(1).standard_normal(500, dtype=np.float32) * 10
    entry = words["tensors"]["a.file"]
    assert (entry["min"], entry["max"], entry["elements"]) == (values.min(), values.max(), 500)
    assert entry["percentiles"]["50"] == pytest.approx(
        float(np.percentile(values, 50, method="inverted_cdf")), rel=0.01
    )
    assert words["tensors"]["not finite"]["nan_count"] == 1


def test_nothing_is_saved_and_loaded_too(tmp_path: Path) -> None:
    Ranges({}, 1).save(tmp_path)
    assert len(Ranges.load(tmp_path)) == 0


def test_damage_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges().save(tmp_path)
    whole = (tmp_path / "ranges.npz").read_bytes()
    (tmp_path / "ranges.npz").write_bytes(whole[:200])
    with pytest.raises(RetargetError, match="not readable ranges"):
        Ranges.load(tmp_path)
    (tmp_path / "ranges.npz").write_bytes(whole)
    monkeypatch.setattr("retarget.calibration.ranges.SCHEMA", 99)
    with pytest.raises(RetargetError, match="ranges of schema 2, this is 99"):
        Ranges.load(tmp_path)
    (tmp_path / "ranges.npz").unlink()
    with pytest.raises(RetargetError, match="not readable ranges"):
        Ranges.load(tmp_path)

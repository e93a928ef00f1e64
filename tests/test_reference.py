from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retarget import reference
from retarget.errors import RetargetError

FEED = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
OUTPUT = np.arange(4)


def record(folder: Path) -> None:
    writer = reference.ReferenceWriter(folder)
    writer.add("min", {"file": FEED}, {"layer/out:0": OUTPUT})
    writer.add("max", {"file": FEED * 2}, {"layer/out:0": OUTPUT + 1})
    writer.close()


def test_cases_come_back_as_they_were_even_with_odd_names(tmp_path: Path) -> None:
    record(tmp_path)
    low, high = reference.read(tmp_path)
    assert (low.case, high.case) == ("min", "max")
    np.testing.assert_array_equal(low.feeds["file"], FEED)
    np.testing.assert_array_equal(high.outputs["layer/out:0"], OUTPUT + 1)


def test_the_file_is_what_the_contract_says(tmp_path: Path) -> None:
    record(tmp_path)
    with np.load(tmp_path / "reference.npz") as file:
        assert sorted(file.files) == sorted(
            ["feeds/min/file", "outputs/min/layer/out:0", "feeds/max/file", "outputs/max/layer/out:0"]
        )


def test_a_large_case_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "LIMIT", 40)
    record(tmp_path)
    assert (tmp_path / "reference-min.npz").is_file()
    assert {recorded.case for recorded in reference.read(tmp_path)} == {"min", "max"}


def test_a_damaged_file_is_a_clear_error(tmp_path: Path) -> None:
    record(tmp_path)
    whole = (tmp_path / "reference.npz").read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "reference.npz").write_bytes(whole[:cut])
        with pytest.raises(RetargetError, match=r"reference\.npz"):
            list(reference.read(tmp_path))

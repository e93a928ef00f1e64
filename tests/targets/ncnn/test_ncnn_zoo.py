"""All architectures of the zoo in ncnn, at each of three sizes; `test_zoo_targets` has them at fewer in every run."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from ncnn_models import hold, hold_int8, three_sizes


@pytest.mark.stress
@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_architectures(name: str, tmp_path: Path) -> None:
    made = three_sizes("zoo", name, tmp_path)
    hold(made, tmp_path)
    (tmp_path / "int8").mkdir()
    hold_int8(made, tmp_path / "int8")

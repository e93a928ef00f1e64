"""All architectures of the zoo on every deployment target; `test_zoo_targets` has a share of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from whole_models import BOUNDS, as_built, hold, job_of
from zoo_prepared import ROUNDED, prepared

from retarget.targets.coreml import DeploymentTarget

TARGETS: tuple[DeploymentTarget, ...] = ("iOS15", "iOS16", "iOS17", "iOS18")


@pytest.mark.stress
@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_architectures(name: str, tmp_path: Path) -> None:
    shapes = zoo.FAMILIES[name].shapes
    sizes = [
        {symbol: extent.opt for symbol, extent in shapes.items()},
        {symbol: extent.max for symbol, extent in shapes.items()},
    ]
    made = prepared("zoo", name, sizes, tmp_path)
    for precision in BOUNDS:
        model = as_built(made, precision)
        for target in TARGETS:
            hold(made, model, job_of(made, precision, target), tmp_path / target / precision, ROUNDED.get(name))

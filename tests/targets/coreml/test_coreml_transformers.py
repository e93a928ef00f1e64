"""Architectures of transformers in Core ML, against PyTorch, with all batches and lengths open."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers_zoo
from whole_models import BOUNDS, as_built, hold, hold_elsewhere, job_of
from zoo_prepared import Prepared, prepared

from retarget.targets.coreml import DeploymentTarget

TARGETS: tuple[DeploymentTarget, ...] = ("iOS16", "iOS17", "iOS18")
SAMPLE: dict[str, DeploymentTarget] = {"efficientnet": "iOS16", "wav2vec2": "iOS17", "mistral": "iOS18"}
"""What is always tested, with its target: one each of images, sounds and texts."""


def _prepared(name: str, folder: Path) -> Prepared:
    shapes = transformers_zoo.FAMILIES[name].shapes
    opt = {symbol: extent.opt for symbol, extent in shapes.items()}
    return prepared("transformers_zoo", name, [opt, {symbol: extent.max for symbol, extent in shapes.items()}], folder)


@pytest.mark.parametrize(("name", "target"), SAMPLE.items())
def test_a_sample_of_architectures(name: str, target: DeploymentTarget, tmp_path: Path) -> None:
    made = _prepared(name, tmp_path)
    for precision in BOUNDS:
        hold(made, as_built(made, precision), job_of(made, precision, target), tmp_path / precision)
    if name == "mistral":
        hold_elsewhere(made.model, job_of(made, "fp32", target), tmp_path / "elsewhere")


@pytest.mark.stress
@pytest.mark.parametrize("name", transformers_zoo.FAMILIES)
def test_architectures(name: str, tmp_path: Path) -> None:
    made = _prepared(name, tmp_path)
    for precision in BOUNDS:
        model = as_built(made, precision)
        for target in TARGETS:
            hold(made, model, job_of(made, precision, target), tmp_path / target / precision)
    hold_elsewhere(model, job_of(made, "fp16", "iOS18"), tmp_path / "elsewhere")

"""The starter of ``init``: its inputs are those that the frontend itself gives, for every form that says them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from every_form import FORMS, written

from retarget import catalog
from retarget import recipe as recipes
from retarget.quick import starter_for
from retarget.source import Source
from retarget.spec import TensorSpec

pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks, about each other


SILENT = [name for name, form in FORMS.items() if not form.says and name not in ("caffe HDF5", "saved model's file")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return dict(written(tmp_path_factory.mktemp("models")))


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.says])
def test_the_inputs_of_the_starter_are_the_frontends_own(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(starter_for(models[name], (), tmp_path))
    recipe = recipes.load(tmp_path / "recipe.yaml")
    frontend = catalog.frontend(FORMS[name].frontend)
    options = msgspec.to_builtins(frontend.Options())
    source = Source(models[name], (), {}, options=options, parts=frontend.parts(models[name]))
    (tmp_path / "out").mkdir()
    exported = catalog.frontend_export(FORMS[name].frontend).export(source, None, tmp_path / "out")
    assert tuple(recipe.input_specs()) == exported.inputs
    assert recipe.model.format == FORMS[name].frontend


@pytest.mark.parametrize("name", SILENT)
def test_a_starter_without_inputs_is_a_recipe_too(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(starter_for(models[name], (), tmp_path))
    assert recipes.load(tmp_path / "recipe.yaml").input_specs() == ()


def test_the_second_file_of_a_caffe_net_is_shown(models: dict[str, Path], tmp_path: Path) -> None:
    for name in ("caffe net", "caffe weights"):
        text = starter_for(models[name], (), models[name].parent)
        assert "  path: net.prototxt " in text
        assert "  weights: net.caffemodel " in text


def test_sizes_are_those_of_the_file_or_likely_ones(models: dict[str, Path], tmp_path: Path) -> None:
    text = starter_for(models["program"], (), tmp_path)
    assert "dim0: {min: 2, opt: 2, max: 16}" in text
    text = starter_for(models["keras"], (), tmp_path)
    assert "picture_h: {min: 32, opt: 224, max: 256}" in text
    assert "N: {min: 1, opt: 1, max: 8}" in text


def test_inputs_that_are_given_count(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(starter_for(models["state dict"], ["x=float32[M,4]"], tmp_path))
    assert tuple(recipes.load(tmp_path / "recipe.yaml").input_specs()) == (TensorSpec("x", "float32", ("M", 4)),)

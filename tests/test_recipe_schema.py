"""The schema takes and refuses what `load` does; the starter recipe, and each key that it shows."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from recipe_texts import CONTRACT, DOCS, LEAST, load_text, valid

from retarget import catalog, recipe_schema
from retarget.errors import RecipeError
from retarget.recipe import (
    LatencyGate,
)
from retarget.recipe_nodes import File, Map, compose
from retarget.recipe_starter import IMAGE, starter
from retarget.spec import DimRange, TensorSpec

# ---- schema


def test_the_schema_in_docs_is_up_to_date() -> None:
    written = (DOCS / "recipe.schema.json").read_text(encoding="utf-8")
    assert written == recipe_schema.text(), "run `retarget schema > docs/recipe.schema.json`"


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(recipe_schema.schema())
    assert json.loads(recipe_schema.text()) == recipe_schema.schema()


def test_the_schema_takes_what_load_takes(tmp_path: Path) -> None:
    for text in (
        CONTRACT,
        LEAST,
        LEAST + "data:\nvariants: [{fp16: }]\n",
        CONTRACT.replace("- openvino", "- openvino:"),
    ):
        load_text(tmp_path, text)
        assert valid(text), text
    assert valid("extends: base.yaml\nname: child\n"), "what is required may come from the base"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version: 1", "version: 2"),
        ("version: 1\n", ""),
        ("targets:", "target:"),
        ("- onnxruntime", "- onnxruntme"),
        ("optional: true", "optionl: true"),
        ("compute_capability", "tf23"),
        ("precision: fp16, io: float16", "io: float16"),
        ("precision: fp16, io: float16", "precision: fp32, io: float16"),
        ("  - fp16\n", "  - fp16: {precision: fp32}\n"),
        ("float32[N", "float33[N"),
        ("model.py:build", "model.py"),
        ("min: 1", "min: 0"),
        ("max_drop: 0.01", "max_drop: 2"),
        ("metric: top1", "metric: top2"),
        ("optimize: default", "optimize: [no_such_pass]"),
        ("model:\n", "model:\n  io_layout: chwn\n"),
        ("name: digits", "name: a/b"),
    ],
)
def test_the_schema_refuses_what_load_refuses(tmp_path: Path, old: str, new: str) -> None:
    text = CONTRACT.replace(old, new, 1)
    assert text != CONTRACT
    assert not valid(text)
    with pytest.raises(RecipeError):
        load_text(tmp_path, text)


# ---- starter

SPECS = (TensorSpec("image", "float32", ("N", 3, "H", "W")), TensorSpec("input.1:0", "int64", ("N",)))


@pytest.mark.parametrize("inputs", [SPECS, (TensorSpec("x", "bool", (1,)),), ()])
def test_a_starter_recipe_is_read_as_what_it_was_given(tmp_path: Path, inputs: tuple[TensorSpec, ...]) -> None:
    text = starter(
        tmp_path / "models" / "my net (1).onnx",
        frontend="onnx",
        inputs=inputs,
        shapes={"N": DimRange(1, 4, 16)} if inputs == SPECS else {},
        targets=["onnxruntime", "openvino"],
        folder=tmp_path,
    )
    recipe = load_text(tmp_path, text)
    assert recipe.name == "my-net-1"
    assert recipe.model.path == tmp_path / "models" / "my net (1).onnx"
    assert recipe.input_specs() == inputs
    assert [variant.name for variant in recipe.variants] == ["fp32", "fp16"]
    if inputs == SPECS:
        assert recipe.dim_ranges() == {"N": DimRange(1, 4, 16), "H": IMAGE, "W": IMAGE}
    assert valid(text)


def uncommented(text: str) -> str:
    return re.sub(r"^( *)# (?=( |- |\w+:))", r"\1", text, flags=re.MULTILINE)


def test_every_key_of_a_starter_recipe_can_be_put_into_force(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(LEAST)
    text = starter(
        tmp_path / "m.onnx", frontend="onnx", inputs=SPECS, shapes={}, targets=["onnxruntime"], folder=tmp_path
    )
    full = uncommented(text)
    recipe = load_text(tmp_path, full)
    assert {target.name for target in recipe.targets} == set(catalog.TARGETS)
    assert recipe.gates.latency == LatencyGate(max_ratio=1.1)
    assert valid(full)
    node, _ = compose(full, File(Path("/r.yaml"), "r.yaml"))
    assert isinstance(node, Map)
    schema = recipe_schema.schema()
    for where, shown in ((schema, node), (definition(schema, "Model"), child(node, "model"))):
        properties = where["properties"]
        assert isinstance(properties, dict)
        assert set(shown.entries) == set(properties)


def definition(schema: recipe_schema.Schema, name: str) -> recipe_schema.Schema:
    definitions = schema["$defs"]
    assert isinstance(definitions, dict)
    found = definitions[name]
    assert isinstance(found, dict)
    options = found["anyOf"]
    assert isinstance(options, list)
    assert isinstance(options[1], dict)
    return options[1]


def child(node: Map, key: str) -> Map:
    value = node.entries[key][1]
    assert isinstance(value, Map)
    return value

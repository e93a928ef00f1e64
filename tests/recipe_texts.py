"""Recipes as text, and what reading them gives: for all tests of recipes."""

from functools import cache
from pathlib import Path

import jsonschema
import msgspec
import pytest

from retarget import catalog, recipe_schema
from retarget.errors import RecipeError
from retarget.recipe import (
    Recipe,
    load,
)
from retarget.recipe_nodes import File, List, Map, Node, Scalar, compose

DOCS = Path(__file__).parents[1] / "docs"

CONTRACT = """\
# yaml-language-server: $schema=../../docs/recipe.schema.json
version: 1
name: digits
model:
  path: digits_cnn.safetensors        # every path is relative to the recipe
  factory: model.py:build             # code that builds the module: PyTorch state dicts, JAX
  inputs: {image: "float32[N,1,32,32]"}
  shapes: {N: {min: 1, opt: 8, max: 32}}
data:
  samples: {path: samples.npz}        # optional, for parity
  calibration: {path: calibration.npz, samples: 256}      # .npz / a folder of .npy / file.py:function
  evaluation: {path: evaluation.npz, labels: label, metric: top1}
optimize: default                     # or a list of passes, each a name or {name: options}
variants:                             # a name, or {name: settings}; `precision` defaults to the name
  - fp32
  - fp16
  - half: {precision: fp16, io: float16}
targets:
  - onnxruntime
  - openvino
  - tensorrt_rtx: {variants: [fp16, half], compute_capability: ["8.9"], optional: true}
gates:
  parity: {fp32: {max_abs: 1.0e-4}, fp16: {snr_db: 40}, int8: {snr_db: 15}}
  accuracy: {max_drop: 0.01}
  latency: {max_ratio: 1.10}          # against the baseline report
  verified: [openvino]                # these must have been executed, not only built
waivers:
  - {gate: parity, target: openvino, variant: fp16, reason: "…", expires: 2027-01-31}
"""
"""The contract's example as far as it can be built today."""

LEAST = "version: 1\nname: x\nmodel: m.onnx\ntargets: [onnxruntime]\n"


def load_text(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load(path)


def problems(folder: Path, text: str) -> list[str]:
    """Each problem from its line on, hint included."""
    with pytest.raises(RecipeError) as caught:
        load_text(folder, text)
    return [str(problem).removeprefix(f"{folder}/recipe.yaml:") for problem in caught.value.problems]


def options_of(target: str, **values: object) -> msgspec.Struct:
    return msgspec.convert(values, catalog.target(target).Options)


def as_json(node: Node) -> object:
    """What a YAML editor validates: the tree with YAML 1.2's scalars."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, List):
        return [as_json(item) for item in node.items]
    return {key: as_json(value) for key, (_, value) in node.entries.items()}


def valid(text: str) -> bool:
    node, _ = compose(text, File(Path("/r.yaml"), "r.yaml"))
    assert isinstance(node, Map)
    return validator().is_valid(as_json(node))


@cache
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(recipe_schema.schema())

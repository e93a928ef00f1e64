"""Every ready recipe, built whole on a tiny model of its family, as a user's recipe that extends it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from zoo import FAMILIES

from retarget import catalog, engine, recipe, report
from retarget.plan import Invocation, Plan
from retarget.plan import make as make_plan
from retarget.protocols import Outcome, Step
from retarget.report_schema import Report
from retarget.store import Store

RECIPES = Path(__file__).parents[1] / "recipes"

BASES = {
    "resnet": "residual-cnn",
    "mobilenet_v2": "mobile-cnn",
    "convnext": "convnext",
    "vit": "vit",
    "swin": "swin",
    "yolo": "detector",
    "detr": "detr",
    "segformer": "segformer",
    "bert": "bert",
    "gpt2": "decoder",
    "llama": "decoder",
    "whisper_encoder": "whisper-encoder",
    "lstm": "recurrent",
    "gru": "recurrent",
}
"""Model of the zoo to the recipe that it extends."""


def extending(family: str, folder: Path) -> Path:
    """A recipe of a user's: the base, the checkpoint with its factory, and this tiny model's sizes."""
    import torch

    model = FAMILIES[family]
    checkpoint = folder / f"{family}.pt"
    torch.save(model.build().state_dict(), checkpoint)
    sizes = {name: {"min": extent.min, "opt": extent.opt, "max": extent.max} for name, extent in model.shapes.items()}
    base = yaml.safe_load((RECIPES / f"{BASES[family]}.yaml").read_text())
    own = {
        "extends": str(RECIPES / f"{BASES[family]}.yaml"),
        "name": family,
        "model": {
            "path": checkpoint.name,
            "factory": f"{Path(__file__).parent / 'zoo_factory.py'}:build",
            "inputs": model.inputs,
            "shapes": sizes,
            "options": {"factory_args": {"family": family}},
        },
        "outputs": list(model.outputs),
        "targets": [
            *(target for target in base["targets"] if "tensorrt_rtx" not in target),
            {"tensorrt_rtx": {"compute_capability": ["8.9"], "optional": True}},
        ],
    }
    path = folder / f"{family}.yaml"
    path.write_text(yaml.safe_dump(own, sort_keys=False))
    return path


def build_all(families: Iterable[str], folder: Path) -> dict[str, Report]:
    """Build the recipes of ``families`` in one run, so that a worker imports its framework once for all of them."""
    store = Store(folder / "store")
    plans: dict[str, Plan] = {}
    steps: list[Step] = []
    for family in families:
        # Threads of a runtime that wait for each other take many times as long where other tests hold the processors.
        plan = make_plan(recipe.load(extending(family, folder)), store, Invocation(threads=1, bench_seconds=0.02))
        plans[family] = plan
        steps += _named_after(family, plan.steps)
    outcomes: dict[str, list[Outcome]] = {family: [] for family in plans}
    limits = engine.Limits(memory_bytes=3 << 30, seconds=300)
    with closing(engine.run(steps, store, jobs=2, limits=limits, progress=lambda event: None)) as running:
        for outcome in running:
            family, _, own = outcome.step.id.partition(": ")
            step = next(step for step in plans[family].steps if step.id == own)
            outcomes[family].append(dataclasses.replace(outcome, step=step))
    here = report.environment()
    return {family: report.build(plan, outcomes[family], environment=here) for family, plan in plans.items()}


def _named_after(family: str, steps: Iterable[Step]) -> list[Step]:
    """The same steps with the family in their ids, which are then unique among all plans."""
    named: dict[str, Step] = {}
    for step in steps:
        inputs = {role: named[source.id] for role, source in step.inputs.items()}
        named[step.id] = dataclasses.replace(step, id=f"{family}: {step.id}", inputs=inputs)
    return list(named.values())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "families",
    [
        ("resnet", "mobilenet_v2", "convnext", "yolo"),
        ("vit", "swin", "detr", "segformer", "whisper_encoder"),
        ("bert", "llama", "lstm"),
        pytest.param(("gpt2", "gru"), marks=pytest.mark.stress),  # a second model of two families
    ],
    ids=["convolutional", "attention", "sequences", "second"],
)
def test_every_recipe_builds_and_passes_its_gates(families: tuple[str, ...], tmp_path: Path) -> None:
    wrong = {}
    for family, made in build_all(families, tmp_path).items():
        assert [row.name for row in made.artifacts] == [
            f"{target}/{variant}"
            for target in ("onnxruntime", "openvino", "tflite", "coreml", "ncnn", "tensorrt_rtx")
            for variant in ("fp32", "fp16")
        ]
        if made.verdict != "pass":
            wrong[family] = made.reasons
        for row in made.artifacts:
            if row.target == "tensorrt_rtx":
                assert row.verified in ("executed", "not verified") or wrong, (family, row)
            elif row.status == "built":
                how = "executed" if catalog.target(row.target).interpreted is None else "interpreted"
                assert row.verified == how, (family, row.name, row.reason)
    assert wrong == {}


def test_every_recipe_is_tried_and_every_family_has_one() -> None:
    assert set(BASES) == set(FAMILIES)
    assert {f"{name}.yaml" for name in BASES.values()} == {path.name for path in RECIPES.glob("*.yaml")}


@pytest.mark.parametrize("base", sorted(set(BASES.values())))
def test_a_recipe_lacks_only_what_its_user_knows(base: str, tmp_path: Path) -> None:
    own = tmp_path / "recipe.yaml"
    own.write_text(f"extends: {RECIPES / base}.yaml\nname: mine\nmodel: {{path: model.pt}}\n")
    read = recipe.load(own)
    assert [variant.name for variant in read.variants] == ["fp32", "fp16"]
    assert [target.name for target in read.targets] == [
        *("onnxruntime", "openvino", "tflite", "coreml", "ncnn", "tensorrt_rtx")
    ]
    assert set(read.gates.verified) == {"onnxruntime", "openvino", "tflite", "ncnn"}
    symbols = {symbol for spec in read.input_specs() for symbol in spec.symbols}
    assert "N" in symbols
    assert symbols == set(read.model.shapes)


def test_the_recipes_of_the_readme_are_recipes(tmp_path: Path) -> None:
    text = (RECIPES / "README.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        own = tmp_path / "recipe.yaml"
        own.write_text(block.replace("path/to/recipes", str(RECIPES)))
        assert recipe.load(own).name.startswith("my-")
    assert {f"{name}.yaml" for name in re.findall(r"\[[\w-]+\]\(([\w-]+)\.yaml\)", text)} == {
        path.name for path in RECIPES.glob("*.yaml")
    }

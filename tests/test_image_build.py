"""Builds whose data are folders of images, drawn, or prepared in two ways, from the recipe to the report."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from retarget import build as builds
from retarget import identity, recipe_write, report
from retarget import plan as plans
from retarget import recipe as recipes
from retarget.engine import Limits
from retarget.errors import MissingToolchain, RetargetError
from retarget.facts import CalibrateFacts, EvaluateFacts
from retarget.plan import Invocation, Plan
from retarget.preprocess import Preprocess
from retarget.quick import recipe_for
from retarget.store import Store, read_manifest

if TYPE_CHECKING:
    from retarget.report_schema import Report

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
digits (float[N,1,8,8] image) => (float[N,10] scores)
<float[64,10] w, float[10] b> {
  flat = Flatten(image)
  scores = Gemm(flat, w, b)
}
"""

RECIPE = """
version: 1
name: digits
model: {path: digits.onnx, shapes: {N: {min: 1, opt: 16, max: 32}}}
variants: [fp32, fp16]
targets: [onnxruntime]
data:
  calibration: {path: images, samples: 40}
  evaluation: {path: images, labels: folder}
  preprocess: {color: gray, scale: 1/255, mean: 0.5, std: 0.5}
"""

QUANTIZE = "quantize int8/u8s8"


class Digits:
    """A folder with a classifier of digits, its images a folder a class, and what is right."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pixels, self.labels = load_digits(return_X_y=True)
        self.pixels: NDArray[np.uint8] = np.rint(pixels * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
        self.prepared = (self.pixels / np.float32(127.5) - 1).astype(np.float32)
        rows = self.prepared.reshape(len(pixels), 64)
        fitted = LogisticRegression(C=0.001, max_iter=200).fit(rows[:600], self.labels[:600])
        self.model = onnx.parser.parse_model(MODEL)
        for name, values in (("w", fitted.coef_.T), ("b", fitted.intercept_)):
            array = np.ascontiguousarray(values, np.float32)
            self.model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        onnx.save(self.model, folder / "digits.onnx")
        self.accuracy = float((fitted.predict(rows[:200]) == self.labels[:200]).mean())
        for index in range(200):
            path = folder / "images" / str(self.labels[index]) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.pixels[index, 0]).save(path)

    def plan(self, text: str = RECIPE) -> Plan:
        (self.folder / "recipe.yaml").write_text(text)
        store = Store(self.folder / "store")
        try:
            return plans.make(recipes.load(self.folder / "recipe.yaml"), store, Invocation(threads=1, bench=False))
        finally:
            store.close()

    def build(self, text: str = RECIPE) -> Report:
        (self.folder / "recipe.yaml").write_text(text)
        store = Store(self.folder / "store")
        try:
            return builds.build(
                recipes.load(self.folder / "recipe.yaml"),
                store,
                self.folder / "out",
                invocation=Invocation(threads=1, bench=False),
                limits=Limits(memory_bytes=None, seconds=None),
                jobs=2,
                display=lambda steps, found: nullcontext(lambda event: None),
            ).report
        finally:
            store.close()

    def facts(self, kind: str) -> list[CalibrateFacts | EvaluateFacts]:
        """What all steps of a kind in the store say."""
        types: dict[str, type[CalibrateFacts | EvaluateFacts]] = {
            "calibrate": CalibrateFacts,
            "evaluate": EvaluateFacts,
        }
        store = Store(self.folder / "store")
        try:
            artifacts = [store.get(entry.key) for entry in store.entries()]
            manifests = [read_manifest(artifact.path) for artifact in artifacts if artifact]
        finally:
            store.close()
        return [manifest.facts_as(types[kind]) for manifest in manifests if manifest.kind == kind]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits(tmp_path_factory.mktemp("digits"))


def test_a_folder_of_images_calibrates_and_evaluates(digits: Digits) -> None:
    made = digits.build()
    assert made.verdict == "pass", made.reasons
    assert not made.warnings
    assert digits.accuracy > 0.8
    for row in made.artifacts:
        assert row.accuracy is not None
        assert row.accuracy.reference == pytest.approx(digits.accuracy)
        assert row.accuracy.value == pytest.approx(digits.accuracy, abs=0.011)  # a float16 may tip two images
        assert row.accuracy.samples == 200
    assert made.model.data == "calibration"
    (calibrated,) = digits.facts("calibrate")
    assert calibrated.data is not None
    assert calibrated.data.samples == 40
    assert calibrated.data.digest == plans_digest(digits)
    (image,) = calibrated.data.inputs
    # The folders take turns: the first 40 are 4 of each class.
    first = np.concatenate([digits.prepared[:200][digits.labels[:200] == number][:4] for number in range(10)])
    assert image.mean == pytest.approx(float(first.mean()), abs=1e-6)
    assert image.std == pytest.approx(float(first.std()), abs=1e-6)
    assert (image.min, image.max, image.count) == (-1.0, 1.0, 40 * 64)
    assert all(facts.data is not None and facts.data.samples == 200 for facts in digits.facts("evaluate"))


def plans_digest(digits: Digits) -> str:
    return digits.plan().inputs[digits.folder / "images"]


def test_what_changes_in_the_data_makes_other_keys(digits: Digits) -> None:
    def keys(text: str = RECIPE) -> dict[str, str]:
        return {step.id: step.key for step in digits.plan(text).steps}

    before = keys()
    assert keys(RECIPE.replace("std: 0.5", "std: 0.25")).items() & before.items() == set()
    classes = keys(RECIPE.replace("labels: folder", "labels: folder, classes: numbers"))
    changed = {name for name in before if before[name] != classes[name]}
    assert changed == {name for name in before if name.startswith("evaluate")}
    assert "pillow" in digits.plan().versions
    moved = digits.folder / "images" / "3" / "moved.png"
    Image.fromarray(digits.pixels[0, 0]).save(moved)
    try:
        assert keys().items() & before.items() == set()
    finally:
        moved.unlink()
    assert keys() == before


def test_selection_data_is_labelled_as_the_evaluation_data(digits: Digits) -> None:
    text = RECIPE.replace("fp16", "int8").replace("labels: folder}", "labels: folder, classes: numbers}")
    (told,) = [
        step.options["int8"] for step in digits.plan(text + "  selection: images\n").steps if step.id == QUANTIZE
    ]
    assert isinstance(told, dict)
    selection = told["selection"]
    assert isinstance(selection, dict)
    assert isinstance(selection["data"], dict)
    assert (selection["labels"], selection["data"]["classes"]) == ("folder", "numbers")
    (told,) = [
        step.options["int8"]
        for step in digits.plan(text + "  selection: {synthetic: normal}\n").steps
        if step.id == QUANTIZE
    ]
    assert isinstance(told, dict)
    assert isinstance(told["selection"], dict)
    assert told["selection"]["labels"] is None


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("  preprocess:", "  #", "images: images need a `preprocess:` block", "preprocess: {resize: 256, crop: 224"),
        ("images, labels", "nowhere, labels", "nowhere: no such file or folder", "a relative path starts"),
        ("path: images, labels: folder", "path: digits.onnx, classes: sorted", "classes is for a folder of images", ""),
        ("color: gray, scale: 1/255, mean: 0.5, std: 0.5", "sample_rate: 8", "a `preprocess:` block of their own", ""),
    ],
)
def test_what_is_known_to_fail_before_anything_runs(
    digits: Digits, old: str, new: str, message: str, hint: str
) -> None:
    with pytest.raises(RetargetError, match=message) as caught:
        digits.plan(RECIPE.replace(old, new))
    assert hint in (caught.value.hint or "")


def test_a_machine_without_pillow_is_told_so(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    version = identity.version
    monkeypatch.setattr(identity, "version", lambda name: identity.ABSENT if name == "pillow" else version(name))
    with pytest.raises(MissingToolchain, match="a folder of images needs pillow") as caught:
        digits.plan()
    assert caught.value.hint == "pip install 'retarget[images]'"


def test_an_image_that_is_damaged_fails_its_steps_by_name(digits: Digits) -> None:
    bad = digits.folder / "images" / "0" / "0000.png"
    bad.write_bytes(b"no image")
    try:
        made = digits.build()
    finally:
        bad.unlink()
    assert made.verdict != "pass"
    errors = [step.error for step in made.steps if step.error is not None and step.error.kind != "Skipped"]
    assert errors
    assert all("0000.png: not a readable image" in error.message and not error.bug for error in errors)


def test_evaluation_data_that_is_normalised_twice_is_warned_of(digits: Digits) -> None:
    twice = digits.prepared[:200] * 2 - 1
    np.savez(digits.folder / "twice.npz", image=twice, label=digits.labels[:200])
    np.savez(digits.folder / "once.npz", image=digits.prepared[200:400], label=digits.labels[200:400])
    evaluation = "{path: images, labels: folder}"
    (warning,) = digits.build(RECIPE.replace(evaluation, "twice.npz")).warnings
    assert warning.startswith("calibration 'image' has mean -0.")
    assert warning.endswith("is one of them normalised twice, or not at all?")
    for name in report.NAMES[1:3]:
        assert "normalised twice" in (digits.folder / "out" / name).read_text()
    assert not digits.build(RECIPE.replace(evaluation, "once.npz")).warnings


def test_drawn_data_marks_the_report(digits: Digits) -> None:
    text = RECIPE.replace("{path: images, samples: 40}", "{synthetic: normal, samples: 24}")
    made = digits.build(text)
    assert made.verdict == "pass", made.reasons
    assert made.warnings == (
        "parity was measured on generated inputs: give data.samples for the real thing",
        "calibration ran on synthetic data: ranges of drawn values are not those of real inputs",
    )
    for name in report.NAMES[1:3]:
        assert "calibration ran on synthetic data" in (digits.folder / "out" / name).read_text()
    drawn = [facts for facts in digits.facts("calibrate") if isinstance(facts, CalibrateFacts)]
    assert [(facts.samples, facts.data.samples) for facts in drawn if facts.origin == "synthetic" and facts.data] == [
        (24, 24)
    ]
    assert digits.plan(text.replace(", samples: 24", "")).steps != digits.plan(text).steps


def test_fewer_classes_than_the_model_knows_are_warned_of(digits: Digits, tmp_path: Path) -> None:
    for number in (0, 1, 2):
        (tmp_path / f"class{number}").symlink_to(digits.folder / "images" / str(number))
    named = RECIPE.replace("path: images, labels", f"path: {tmp_path}, labels")
    (warning,) = digits.build(named).warnings
    assert "the data has 3 classes, numbered in the order of their names, and 'scores' has 10" in warning
    listed = "[" + ", ".join(f"class{number}" for number in range(10)) + "]"
    assert not digits.build(named.replace("labels: folder", f"labels: folder, classes: {listed}")).warnings


# ---- without a recipe


def quick(digits: Digits, preprocess: str | None) -> recipes.Recipe:
    return recipe_for(
        digits.folder / "digits.onnx",
        targets=["onnxruntime"],
        precisions=["fp16"],
        inputs=[],
        outputs=[],
        shapes=["N=1:16:32"],
        factory=None,
        signature=None,
        io_layout=None,
        normalize=None,
        python=None,
        data=None,
        calibration=str(digits.folder / "images"),
        preprocess=preprocess,
        optimize=None,
        trust=False,
    )


def test_the_command_line_takes_the_block_too(digits: Digits) -> None:
    wanted = quick(digits, "{color: gray, scale: 1/255, mean: [0.5]}")
    assert wanted.data.preprocess == Preprocess(color="gray", scale="1/255", mean=(0.5,))
    made = digits.plan(recipe_write.dump(wanted))
    assert made.recipe.data == wanted.data
    with pytest.raises(RetargetError, match="images need a `preprocess:` block") as caught:
        digits.plan(recipe_write.dump(quick(digits, None)))
    assert "or with --preprocess, as in `preprocess: {resize: 256, crop: 224" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{resise: 8}", "--preprocess:1:2: resise: unknown key"),
        ("{mean: [1, 2]}", "--preprocess:1:1: mean has 2 numbers, and rgb 3 channels"),
        ("{resize: 8", "--preprocess:1:"),
        ("resize", "--preprocess:1:1: expected a map, got 'resize'"),
    ],
)
def test_a_block_on_the_command_line_that_cannot_be_read(digits: Digits, text: str, problem: str) -> None:
    with pytest.raises(RetargetError) as caught:
        quick(digits, text)
    assert problem in str(caught.value)

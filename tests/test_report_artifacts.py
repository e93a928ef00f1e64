"""What the report says of an artifact: from the facts of its steps, made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from made_build import CPU_FP16, ENVIRONMENT, NO_GPU, MadeBuild, executed, full_build, made_recipe

from retarget import report
from retarget.facts import EvaluateFacts
from retarget.report_schema import ArtifactRow, Report
from retarget.store import Manifest


@pytest.fixture
def made(tmp_path: Path) -> Report:
    build = full_build(tmp_path)
    return report.build(build.plan(made_recipe()), build.outcomes, environment=ENVIRONMENT, warnings=("N: 1:1:8",))


def artifact(made: Report, name: str) -> ArtifactRow:
    (found,) = (row for row in made.artifacts if row.name == name)
    return found


def test_artifacts_come_in_the_recipe_s_order_with_those_that_were_not_built(made: Report) -> None:
    assert [row.name for row in made.artifacts] == [
        *("onnxruntime/fp32", "onnxruntime/fp16", "openvino/fp32", "openvino/fp16", "openvino/int8"),
        *("tensorrt/fp16", "tensorrt_rtx/fp16", "ncnn/fp16"),
    ]


def test_an_artifact_that_was_not_built_has_no_figures_but_a_reason(made: Report) -> None:
    crashed = artifact(made, "openvino/int8")
    assert (crashed.status, crashed.path, crashed.bytes, crashed.precision) == ("failed", None, None, None)
    assert crashed.reason == "openvino was killed by SIGSEGV"
    missing = artifact(made, "tensorrt/fp16")
    assert (missing.status, missing.reason) == ("skipped", "tensorrt is not installed")
    assert missing.hint == "pip install 'retarget[tensorrt]'"


def test_an_artifact_that_cannot_be_executed_here_is_not_verified(made: Report) -> None:
    row = artifact(made, "tensorrt_rtx/fp16")
    assert (row.status, row.verified, row.reason, row.check_failed) == ("built", "not verified", NO_GPU, False)
    assert row.parity == ()
    assert row.latency is None
    assert row.latency_reason == NO_GPU
    assert row.accuracy is not None
    assert (row.accuracy.value, row.accuracy.drop, row.accuracy.passed) == (None, None, None)


def test_the_artifact_s_facts_are_the_manifest_s(made: Report) -> None:
    row = artifact(made, "onnxruntime/fp16")
    assert row.notes == (CPU_FP16,)
    assert [node.op for node in row.kept] == ["Softmax", "Pow"]
    assert row.tolerance == {"snr_db": 40}
    assert row.ratio_to_source == 0.5
    assert list(row.files) == ["model.onnx"]
    assert row.reproduce == "retarget build recipe.yaml --locked --only onnxruntime/fp16"
    assert artifact(made, "openvino/fp16").kept == ()  # stored as float16, not computed so: no quantize step on its way
    assert artifact(made, "openvino/fp32").parity_default[0].snr_db == 47.2


def test_exact_parity_says_exact(made: Report) -> None:
    row = artifact(made, "onnxruntime/fp32").parity[0]
    assert (row.snr_db, row.exact, row.max_abs) == (300.0, True, 0.0)


def test_a_metric_that_is_nan_has_no_value(tmp_path: Path) -> None:
    build = full_build(tmp_path)
    made = report.build(build.plan(made_recipe()), build.outcomes, environment=ENVIRONMENT)
    row = artifact(made, "ncnn/fp16")
    assert row.accuracy is not None
    assert (row.accuracy.value, row.accuracy.drop) == (None, None)
    assert row.accuracy.reason == "the metric is nan"


# ---- the error budget


def test_the_budget_follows_the_worst_output_from_the_source_to_the_artifact(made: Report) -> None:
    budget = artifact(made, "onnxruntime/fp16").budget
    assert [(stage.step, stage.output, stage.snr_db) for stage in budget] == [
        ("convert", "boxes", 125.1),
        ("optimize", "boxes", 123.2),
        ("quantize fp16", "boxes", 66.0),
        ("emit onnxruntime/fp16", "boxes", 66.0),
    ]


def test_the_shares_of_a_budget_are_of_error_power_and_add_up_to_one(made: Report) -> None:
    shares = [stage.share for stage in artifact(made, "openvino/fp32").budget]
    powers = [10 ** (-snr / 10) for snr in (125.1, 123.2, 118.4)]
    expected = [powers[0] / powers[2], (powers[1] - powers[0]) / powers[2], (powers[2] - powers[1]) / powers[2]]
    assert shares == pytest.approx(expected)
    assert math.fsum(share for share in shares if share is not None) == pytest.approx(1)


def test_a_chain_without_any_error_has_no_shares(tmp_path: Path) -> None:
    build = exact_chain(tmp_path)
    (row,) = report.build(build.plan(made_recipe()), build.outcomes, environment=ENVIRONMENT).artifacts
    assert [stage.share for stage in row.budget] == [None, None]


def exact_chain(folder: Path) -> MadeBuild:
    full = full_build(folder)
    steps = [step for step in full.steps if step.id in ("convert", "optimize", "emit openvino/fp32")]
    build = MadeBuild(folder / "one", steps, [outcome for outcome in full.outcomes if outcome.step in steps])
    build.folder.mkdir()
    build.compare(steps[0], executed(300.0, 300.0), target=None, variant="onnx", tolerance=80)
    build.compare(steps[2], executed(300.0, 300.0), target="openvino", variant="fp32", tolerance=90)
    return build


def test_evaluation_reads_nan_from_a_manifest() -> None:
    """The fixture writes facts as a worker does; this holds the two together."""
    facts: dict[str, object] = {"metric": "top1", "value": "nan", "samples": 1, "settings": ""}
    manifest = Manifest(schema=1, key="k", kind="evaluate", id="e", versions={}, files={}, facts=facts)
    value = manifest.facts_as(EvaluateFacts).value
    assert value is not None
    assert math.isnan(value)

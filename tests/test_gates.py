from __future__ import annotations

import datetime
from pathlib import Path

import msgspec
import pytest
from made_build import ENVIRONMENT, NO_GPU, MadeBuild, executed, full_build, made_recipe, timed

from retarget import report
from retarget.facts import BenchEntry, BenchFacts, CompareFacts
from retarget.figures import ratio_text
from retarget.protocols import Outcome, StepError
from retarget.recipe import AccuracyGate, LatencyGate, Recipe, Waiver
from retarget.report_schema import GateRow, Report
from retarget.tolerance import Tolerance


def built(build: MadeBuild, recipe: Recipe, *, day: str = "2026-11-21", baseline: Report | None = None) -> Report:
    environment = msgspec.structs.replace(ENVIRONMENT, built=f"{day}T10:15:00+00:00")
    return report.build(build.plan(recipe), build.outcomes, environment=environment, baseline=baseline)


def gate(made: Report, name: str, subject: str) -> GateRow:
    (found,) = (row for row in made.gates if (row.gate, row.subject) == (name, subject))
    return found


@pytest.fixture
def full(tmp_path: Path) -> MadeBuild:
    return full_build(tmp_path)


def one_artifact(folder: Path, facts: CompareFacts) -> MadeBuild:
    """openvino/fp32 alone, compared as ``facts`` say."""
    full = full_build(folder)
    wanted = ("convert", "optimize", "emit openvino/fp32")
    steps = [step for step in full.steps if step.id in wanted]
    outcomes = [outcome for outcome in full.outcomes if outcome.step in steps]
    build = MadeBuild(folder / "one", steps, outcomes)
    build.folder.mkdir()
    build.compare(steps[-1], facts, target="openvino", variant="fp32", tolerance=90)
    return build


# ---- parity


def test_parity_names_the_worst_output(full: MadeBuild) -> None:
    row = gate(built(full, made_recipe()), "parity", "openvino/fp32")
    assert row.passed is True
    assert row.status == "passed"
    assert row.detail.startswith("boxes: 118.4 dB")
    assert row.detail.endswith("1 other output no worse")


def test_parity_that_failed_says_which_output_and_why(full: MadeBuild) -> None:
    row = gate(built(full, made_recipe()), "parity", "ncnn/fp16")
    assert row.passed is False
    assert row.detail == "boxes: 12 NaN where the reference has none; snr_db -300 < 40"


def test_without_a_tolerance_in_the_recipe_the_default_one_is_a_gate(full: MadeBuild) -> None:
    made = built(full, made_recipe(parity={"fp32": Tolerance(snr_db=90.0)}))
    assert gate(made, "parity (default)", "openvino/fp16").status == "passed"
    assert gate(made, "parity (default)", "ncnn/fp16").status == "failed"
    assert gate(made, "parity", "openvino/fp32").status == "passed"


def test_a_comparison_without_any_bound_is_no_pass(tmp_path: Path) -> None:
    build = full_build(tmp_path)
    for step in build.steps:
        if step.id == "compare openvino/fp32":
            assert isinstance(step.options, dict)
            step.options["tolerance"] = {}
    row = gate(built(build, made_recipe()), "parity", "openvino/fp32")
    assert (row.status, row.passed) == ("unchecked", None)


def test_a_batch_whose_samples_disturb_each_other_fails(tmp_path: Path) -> None:
    facts = msgspec.structs.replace(executed(121.0, 118.0), batch="row 3: snr_db 12.1 < 90", batch_passed=False)
    made = built(one_artifact(tmp_path, facts), made_recipe(accuracy=None))
    assert gate(made, "parity (batch)", "openvino/fp32").status == "failed"
    assert made.verdict == "fail"


def test_no_batch_gate_where_there_is_no_batch(tmp_path: Path) -> None:
    facts = msgspec.structs.replace(executed(121.0, 118.0), batch="skipped: no batch dimension", batch_passed=None)
    made = built(one_artifact(tmp_path, facts), made_recipe(accuracy=None))
    assert {row.gate for row in made.gates} == {"parity", "verified"}
    assert made.verdict == "pass"


# ---- accuracy


def test_accuracy_holds_the_drop_against_the_bound(full: MadeBuild) -> None:
    made = built(full, made_recipe(accuracy=AccuracyGate(max_drop=0.005)))
    assert gate(made, "accuracy", "openvino/fp32").detail == "top1 0.9806 of 0.9833: drop 0.0027 ≤ 0.005"
    assert gate(made, "accuracy", "openvino/fp32").status == "passed"
    assert "drop 0.0083 > 0.005" in gate(made, "accuracy", "openvino/fp16").detail


def test_a_metric_that_is_nan_is_unchecked(full: MadeBuild) -> None:
    row = gate(built(full, made_recipe()), "accuracy", "ncnn/fp16")
    assert (row.status, row.passed, row.detail) == ("unchecked", None, "the metric is nan")


def test_accuracy_without_an_evaluation_is_unchecked(tmp_path: Path) -> None:
    made = built(one_artifact(tmp_path, executed(121.0, 118.0)), made_recipe())
    assert gate(made, "accuracy", "openvino/fp32").status == "unchecked"
    assert made.verdict == "incomplete"


# ---- latency


def with_latency(folder: Path, p50_ms: float, *, stable: bool = True, host: str = "builder-7") -> Report:
    build = one_artifact(folder, executed(121.0, 118.0))
    reference = 8.0 if host == "builder-7" else 16.0
    entries = (
        BenchEntry(subject="reference", latency=timed(reference, reference)),
        BenchEntry(subject="openvino/fp32", latency=timed(p50_ms, reference, stable=stable)),
    )
    build.add("bench", "bench", BenchFacts(batch=8, sizes={"N": 8}, entries=entries))
    environment = msgspec.structs.replace(ENVIRONMENT, host=host)
    recipe = made_recipe(accuracy=None, latency=LatencyGate(max_ratio=1.10))
    plan = build.plan(recipe)
    baseline = report.read(folder.parent / "baseline.json") if (folder.parent / "baseline.json").exists() else None
    return report.build(plan, build.outcomes, environment=environment, baseline=baseline)


def folder_with_baseline(tmp_path: Path, made: Report) -> Path:
    (tmp_path / "baseline.json").write_bytes(report.encode(made))
    return tmp_path / "now"


def test_latency_without_a_baseline_is_skipped_and_does_not_hurt(tmp_path: Path) -> None:
    (tmp_path / "then").mkdir()
    made = with_latency(tmp_path / "then", 3.0)
    assert gate(made, "latency", "openvino/fp32").status == "skipped"
    assert made.verdict == "pass"


@pytest.mark.parametrize(
    ("now", "stable", "status"), [(3.2, True, "passed"), (3.5, True, "failed"), (3.5, False, "unchecked")]
)
def test_latency_against_the_baseline_of_the_same_machine(
    tmp_path: Path, now: float, stable: bool, status: str
) -> None:
    (tmp_path / "then").mkdir()
    folder = folder_with_baseline(tmp_path, with_latency(tmp_path / "then", 3.0))
    folder.mkdir()
    made = with_latency(folder, now, stable=stable)
    assert gate(made, "latency", "openvino/fp32").status == status
    assert made.verdict == {"passed": "pass", "failed": "fail", "unchecked": "incomplete"}[status]


def test_latency_against_another_machine_is_relative_to_the_reference(tmp_path: Path) -> None:
    (tmp_path / "then").mkdir()
    folder = folder_with_baseline(tmp_path, with_latency(tmp_path / "then", 3.0))
    folder.mkdir()
    row = gate(with_latency(folder, 6.0, host="slow"), "latency", "openvino/fp32")
    assert row.status == "passed"  # twice the time on a machine whose reference takes twice the time
    assert f"{ratio_text(1.0)} of the baseline" in row.detail
    assert "another machine" in row.detail


def test_latency_that_was_not_to_be_measured_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "then").mkdir()
    baseline = with_latency(tmp_path / "then", 3.0)
    (tmp_path / "now").mkdir()
    build = one_artifact(tmp_path / "now", executed(121.0, 118.0))
    made = built(build, made_recipe(accuracy=None, latency=LatencyGate(max_ratio=1.10)), baseline=baseline)
    row = gate(made, "latency", "openvino/fp32")
    assert (row.status, row.detail) == ("skipped", "not measured (--no-bench)")
    assert made.artifacts[0].latency_reason == row.detail
    assert made.verdict == "pass"


def test_latency_that_was_to_be_measured_and_was_not_is_unchecked(tmp_path: Path) -> None:
    (tmp_path / "then").mkdir()
    baseline = with_latency(tmp_path / "then", 3.0)
    (tmp_path / "now").mkdir()
    build = one_artifact(tmp_path / "now", executed(121.0, 118.0))
    build.add("bench", "bench", status="failed", error=StepError(kind="RetargetError", message="no room"))
    made = built(build, made_recipe(accuracy=None, latency=LatencyGate(max_ratio=1.10)), baseline=baseline)
    assert gate(made, "latency", "openvino/fp32").status == "unchecked"
    assert made.verdict == "incomplete"


# ---- verified


def test_verified_demands_execution(full: MadeBuild) -> None:
    made = built(full, made_recipe(verified=("openvino", "tensorrt_rtx")))
    assert gate(made, "verified", "openvino/fp32").status == "passed"
    row = gate(made, "verified", "tensorrt_rtx/fp16")
    assert (row.status, row.detail) == ("failed", f"not verified: {NO_GPU}")
    row = gate(made, "verified", "openvino/int8")  # the step that crashed is what is wrong
    assert (row.status, row.detail) == ("unchecked", "not built: openvino was killed by SIGSEGV")


def test_verified_excuses_no_missing_toolchain(full: MadeBuild) -> None:
    row = gate(built(full, made_recipe(verified=("tensorrt",))), "verified", "tensorrt/fp16")
    assert (row.status, row.detail) == ("failed", "not built: tensorrt is not installed")


def test_interpreted_is_not_executed(tmp_path: Path) -> None:
    facts = msgspec.structs.replace(executed(121.0, 118.0), verified="interpreted", reason="not on a Mac")
    made = built(one_artifact(tmp_path, facts), made_recipe(accuracy=None))
    row = gate(made, "verified", "openvino/fp32")
    assert row.status == "failed"
    assert row.detail.startswith("interpreted: not on a Mac; build where it is executed, or leave it out of")
    assert gate(made, "parity", "openvino/fp32").status == "passed"
    assert made.headline.endswith("1 of 1 artifact built, 1 of them verified, 1 of these interpreted")


def test_what_is_interpreted_has_no_latency_and_that_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "then").mkdir()
    baseline = with_latency(tmp_path / "then", 3.0)
    (tmp_path / "now").mkdir()
    facts = msgspec.structs.replace(executed(121.0, 118.0), verified="interpreted", reason="not on a Mac")
    build = one_artifact(tmp_path / "now", facts)
    left_out = BenchEntry(subject="openvino/fp32", latency=None, reason="interpreted, not executed: not on a Mac")
    build.add("bench", "bench", BenchFacts(batch=8, sizes={"N": 8}, entries=(left_out,)))
    recipe = made_recipe(accuracy=None, verified=(), latency=LatencyGate(max_ratio=1.10))
    made = built(build, recipe, baseline=baseline)
    row = gate(made, "latency", "openvino/fp32")
    assert (row.status, row.detail) == ("skipped", "interpreted: not on a Mac")
    assert made.artifacts[0].latency_reason == left_out.reason
    assert made.verdict == "pass"


# ---- waivers


def waiver(expires: datetime.date, variant: str | None = None) -> Waiver:
    return Waiver(gate="parity", target="ncnn", variant=variant, reason="known", expires=expires)


@pytest.mark.parametrize(
    ("expires", "status"),
    [
        (datetime.date(2026, 11, 20), "failed"),
        (datetime.date(2026, 11, 21), "waived"),
        (datetime.date(2027, 1, 1), "waived"),
    ],
)
def test_a_waiver_holds_through_its_last_day(full: MadeBuild, expires: datetime.date, status: str) -> None:
    recipe = msgspec.structs.replace(made_recipe(), waivers=(waiver(expires),))
    row = gate(built(full, recipe), "parity", "ncnn/fp16")
    assert row.status == status
    assert row.passed is False  # waived is accepted, not passed
    assert row.waiver is not None
    assert row.waiver.expired is (status == "failed")


def test_a_waiver_of_another_variant_does_not_hold(full: MadeBuild) -> None:
    recipe = msgspec.structs.replace(made_recipe(), waivers=(waiver(datetime.date(2027, 1, 1), variant="int8"),))
    row = gate(built(full, recipe), "parity", "ncnn/fp16")
    assert (row.status, row.waiver) == ("failed", None)


def test_a_waiver_of_parity_holds_for_the_default_tolerance(full: MadeBuild) -> None:
    recipe = msgspec.structs.replace(made_recipe(parity={}), waivers=(waiver(datetime.date(2027, 1, 1)),))
    assert gate(built(full, recipe), "parity (default)", "ncnn/fp16").status == "waived"


def test_the_later_of_two_waivers_holds(full: MadeBuild) -> None:
    both = (waiver(datetime.date(2026, 1, 1)), waiver(datetime.date(2027, 1, 1)))
    recipe = msgspec.structs.replace(made_recipe(), waivers=both)
    assert gate(built(full, recipe), "parity", "ncnn/fp16").status == "waived"


def test_a_waiver_does_not_make_up_for_what_was_not_checked(full: MadeBuild) -> None:
    over = Waiver(gate="accuracy", target="ncnn", reason="known", expires=datetime.date(2027, 1, 1))
    recipe = msgspec.structs.replace(made_recipe(), waivers=(over,))
    assert gate(built(full, recipe), "accuracy", "ncnn/fp16").status == "unchecked"


# ---- the verdict


def test_a_failed_gate_and_a_failed_step_is_fail_and_ends_with_1(full: MadeBuild) -> None:
    made = built(full, made_recipe())
    assert made.verdict == "fail"
    assert report.exit_code(made) == 1
    assert "emit openvino/int8 failed: openvino was killed by SIGSEGV" in made.reasons
    assert not any("tensorrt" in reason for reason in made.reasons)  # optional


def test_a_failed_gate_alone_ends_with_4(tmp_path: Path) -> None:
    made = built(one_artifact(tmp_path, executed(121.0, 20.0, failed="snr_db 20 < 90")), made_recipe(accuracy=None))
    assert (made.verdict, report.exit_code(made)) == ("fail", 4)


def test_all_gates_passed_is_pass_and_ends_with_0(tmp_path: Path) -> None:
    made = built(one_artifact(tmp_path, executed(121.0, 118.0)), made_recipe(accuracy=None))
    assert (made.verdict, report.exit_code(made), made.reasons) == ("pass", 0, ())
    assert made.headline == "3 of 3 gates passed; 1 of 1 artifact built, 1 of them verified"


def test_an_artifact_that_this_machine_cannot_execute_does_not_hurt_a_verified_one(full: MadeBuild) -> None:
    keep = {"convert", "optimize", "quantize fp16", "calibrate"}
    names = ("onnxruntime/fp32", "tensorrt_rtx/fp16")
    full.steps = [step for step in full.steps if step.id in keep or step.id.endswith(names)]
    full.outcomes = [outcome for outcome in full.outcomes if outcome.step in full.steps]
    made = built(full, made_recipe(accuracy=None, verified=("onnxruntime",)))
    assert made.verdict == "pass"
    assert gate(made, "parity", "tensorrt_rtx/fp16").status == "skipped"
    assert "1 of them verified" in made.headline


def test_where_nothing_was_executed_nothing_is_a_pass(tmp_path: Path) -> None:
    facts = CompareFacts(verified="not verified", reason=NO_GPU, settings="", parity=())
    made = built(one_artifact(tmp_path, facts), made_recipe(accuracy=None, verified=()))
    assert made.verdict == "incomplete"
    assert made.reasons == ("no artifact was executed, so nothing is verified",)
    assert report.exit_code(made) == 1


def test_a_comparison_that_crashed_leaves_the_gate_unchecked(full: MadeBuild) -> None:
    crash = StepError(kind="ToolchainFailure", message="openvino was killed by SIGKILL")
    full.outcomes = [
        Outcome(outcome.step, "failed", 1.0, error=crash) if outcome.step.id == "compare openvino/fp32" else outcome
        for outcome in full.outcomes
    ]
    made = built(full, made_recipe())
    row = gate(made, "parity", "openvino/fp32")
    assert (row.status, row.detail) == ("unchecked", "not verified: openvino was killed by SIGKILL")
    assert gate(made, "verified", "openvino/fp32").status == "unchecked"
    assert "compare openvino/fp32 failed: openvino was killed by SIGKILL" in made.reasons
    assert made.unfinished


def test_a_bug_ends_with_3(full: MadeBuild) -> None:
    bug = StepError(kind="KeyError", message="'axis'", bug=True)
    full.outcomes[0] = Outcome(full.steps[0], "failed", 1.0, error=bug)
    assert report.exit_code(built(full, made_recipe())) == 3


def test_steps_skipped_after_a_failure_are_no_reasons_of_their_own(full: MadeBuild) -> None:
    cause = StepError(kind="RetargetError", message="detector.safetensors: cut short")
    after = StepError(kind="Skipped", message="'convert' failed: detector.safetensors: cut short")
    full.outcomes = [
        Outcome(
            step,
            "failed" if step.kind == "convert" else "skipped",
            0.0,
            error=cause if step.kind == "convert" else after,
        )
        for step in full.steps
    ]
    made = built(full, made_recipe())
    assert made.reasons == ("convert failed: detector.safetensors: cut short",)
    assert made.headline.startswith("1 thing could not be built or checked")
    assert made.verdict == "incomplete"


def test_a_build_that_ended_early_is_incomplete(full: MadeBuild) -> None:
    full.outcomes = full.outcomes[:5]
    made = built(full, made_recipe())
    assert made.verdict == "incomplete"
    assert next(step for step in made.steps if step.id == "bench").status == "skipped"


def test_an_optional_artifact_that_crashed_is_not_excused(full: MadeBuild) -> None:
    crash = StepError(kind="ToolchainFailure", message="tensorrt_rtx was killed by SIGSEGV")
    full.outcomes = [
        Outcome(outcome.step, "failed", 1.0, error=crash) if outcome.step.id == "emit tensorrt_rtx/fp16" else outcome
        for outcome in full.outcomes
    ]
    made = built(full, made_recipe())
    assert "emit tensorrt_rtx/fp16 failed: tensorrt_rtx was killed by SIGSEGV" in made.reasons
    assert gate(made, "parity", "tensorrt_rtx/fp16").status == "unchecked"

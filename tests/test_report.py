from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest
from made_build import ENVIRONMENT, WEIGHTS, full_build, made_recipe

from retarget import report
from retarget.errors import RetargetError
from retarget.facts import EmitFacts
from retarget.report_schema import ArtifactRow, Report
from retarget.store import Manifest


@pytest.fixture
def made(tmp_path: Path) -> Report:
    build = full_build(tmp_path)
    return report.build(build.plan(made_recipe()), build.outcomes, environment=ENVIRONMENT, warnings=("N: 1:1:8",))


def artifact(made: Report, name: str) -> ArtifactRow:
    (found,) = (row for row in made.artifacts if row.name == name)
    return found


# ---- report.json


def test_report_json_has_the_keys_of_the_contract(made: Report) -> None:
    read = json.loads(report.encode(made))
    assert read["schema"] == 1
    assert read["name"] == "detector"
    assert read["verdict"] == "fail"
    step = next(step for step in read["steps"] if step["id"] == "emit openvino/fp32")
    assert (step["kind"], step["status"], step["seconds"], step["peak_rss_bytes"]) == ("emit", "ran", 1.8, 412_000_000)
    assert step["error"] is None
    row = next(row for row in read["artifacts"] if (row["target"], row["variant"]) == ("openvino", "fp16"))
    assert row["path"] == "openvino/fp16"
    assert row["bytes"] == WEIGHTS // 2 + 90_000
    assert row["precision"] == {
        "weights": "float16",
        "activations": "float16",
        "io": "float32",
        "low_precision_share": 0.0,
    }
    assert (row["verified"], row["reason"]) == ("executed", None)
    assert row["parity"][1]["output"] == "boxes"
    assert row["parity"][1]["snr_db"] == 63.1
    assert set(row["parity"][1]) >= {
        *("output", "max_abs", "snr_db", "exact", "nan_count", "inf_count"),
        *("cosine", "top1_agreement", "samples", "passed"),
    }
    assert row["accuracy"]["metric"] == "top1"
    assert row["accuracy"]["drop"] == pytest.approx(0.9833 - 0.9750)
    assert row["accuracy"]["passed"] is False
    assert set(row["latency"]) >= {"p50_ms", "p90_ms", "p99_ms", "throughput_per_s", "ratio_to_reference", "stable"}
    assert {"gate", "target", "variant", "passed", "detail"} <= set(read["gates"][0])


def test_report_json_is_what_its_types_say_and_comes_back_the_same(made: Report, tmp_path: Path) -> None:
    text = report.encode(made)
    plain = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    jsonschema.validate(plain, msgspec.json.schema(Report))
    (tmp_path / "report.json").write_bytes(text)
    assert report.read(tmp_path) == made
    assert report.read(tmp_path / "report.json") == made


def test_a_report_with_keys_of_a_newer_version_can_be_read(made: Report, tmp_path: Path) -> None:
    newer = json.loads(report.encode(made))
    newer["energy"] = {"joules": 3}
    newer["artifacts"][0]["energy"] = 3
    newer["gates"][0]["severity"] = "high"
    (tmp_path / "report.json").write_text(json.dumps(newer))
    assert report.read(tmp_path) == made


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"schema": 2}', b"\xff\xfe"])
def test_what_is_no_report_is_one_line_and_a_hint(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(RetargetError) as caught:
        report.read(tmp_path)
    assert "report.json" in caught.value.message
    assert "\n" not in caught.value.message
    assert "retarget build" in (caught.value.hint or "")


def test_write_leaves_four_files_and_nothing_else(made: Report, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    report.write(made, folder)
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.html", "report.md", "junit.xml"}
    assert report.read(folder) == made


def test_a_folder_that_cannot_be_written_is_a_user_error(made: Report, tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match="nowhere: the report cannot be written"):
        report.write(made, tmp_path / "nowhere")


# ---- the rest


def test_the_model_is_identified(made: Report) -> None:
    model = made.model
    assert model.path == "detector.safetensors"  # not where it lay on this machine
    assert model.sha256 is not None
    assert len(model.sha256) == 64
    assert (model.frontend, model.form, model.rung) == ("pytorch", "safetensors with a factory", "dynamo")
    assert model.reference == "PyTorch 2.13.0 on the CPU"
    assert (model.data, model.cases) == ("calibration", 3)


def test_passes_and_versions_are_there(made: Report) -> None:
    (optimize,) = made.optimize
    assert [row.name for row in optimize.passes if row.status == "dropped"] == ["simplify"]
    assert optimize.passes[2].reason == "output 'boxes' moved to 31.2 dB"
    assert made.environment.versions == {
        "numpy": "2.3.4",
        "onnx": "1.23.0",
        "openvino": "2026.4.0",
        "torch": "2.13.0",
    }


def test_an_error_keeps_the_end_of_its_log_without_terminal_codes(made: Report) -> None:
    step = next(step for step in made.steps if step.id == "emit openvino/int8")
    assert step.error is not None
    excerpt = step.error.excerpt
    assert excerpt is not None
    assert len(excerpt.splitlines()) == report.EXCERPT_LINES
    assert excerpt.endswith("[ ERROR ] <FakeQuantize> unexpected shape & bell\nSegmentation fault (core dumped)")


def test_a_log_that_is_gone_does_not_take_the_report_with_it(tmp_path: Path) -> None:
    build = full_build(tmp_path)
    (tmp_path / "openvino-int8.txt").unlink()
    made = report.build(build.plan(made_recipe()), build.outcomes, environment=ENVIRONMENT)
    step = next(step for step in made.steps if step.id == "emit openvino/int8")
    assert step.error is not None
    assert step.error.excerpt is None


def test_generated_inputs_are_a_warning(tmp_path: Path) -> None:
    build = full_build(tmp_path)
    manifest = tmp_path / build.steps[0].key / "manifest.json"
    told = msgspec.json.decode(manifest.read_bytes(), type=Manifest)
    generated = msgspec.structs.replace(told, facts={**told.facts, "origin": "generated"}).sealed()
    manifest.write_bytes(msgspec.json.encode(generated))
    made = report.build(build.plan(made_recipe()), build.outcomes, environment=ENVIRONMENT)
    assert any("generated inputs" in warning for warning in made.warnings)


def test_an_artifact_in_another_precision_than_its_name_is_a_warning(made: Report, tmp_path: Path) -> None:
    """A float16 source stays one in the variant fp32, as its inputs and outputs are the user's."""
    assert not any("its weights are" in warning for warning in made.warnings)
    folder = tmp_path / "again"
    folder.mkdir()
    build = full_build(folder)
    step = next(step for step in build.steps if step.id == "emit openvino/fp32")
    manifest = folder / step.key / "manifest.json"
    told = msgspec.json.decode(manifest.read_bytes(), type=Manifest)
    facts = told.facts_as(EmitFacts)
    narrow = msgspec.structs.replace(facts, precision=msgspec.structs.replace(facts.precision, weights="float16"))
    changed = msgspec.structs.replace(told, facts=msgspec.to_builtins(narrow)).sealed()
    manifest.write_bytes(msgspec.json.encode(changed))
    again = report.build(build.plan(made_recipe()), build.outcomes, environment=ENVIRONMENT)
    assert "openvino/fp32: its weights are float16, not float32" in again.warnings


def test_environment_is_this_machine() -> None:
    here = report.environment()
    assert here.cpu
    assert here.cores >= 1
    assert here.memory_bytes > 1 << 20
    assert here.built.endswith("+00:00")


# ---- the baseline


def test_nothing_changed_since_the_same_report(made: Report) -> None:
    difference = report.difference(made, made)
    assert difference.same_machine
    change = next(row for row in difference.changes if (row.target, row.variant) == ("openvino", "fp32"))
    assert (change.latency_ratio, change.accuracy_change, change.bytes_ratio, change.snr_change_db) == (1, 0, 1, 0)
    assert change.verified is None
    assert {row.status for row in difference.changes} == {"same"}


def test_changes_since_a_baseline(made: Report, tmp_path: Path) -> None:
    (tmp_path / "now").mkdir()
    build = full_build(tmp_path / "now")
    build.outcomes = [outcome for outcome in build.outcomes if "onnxruntime/fp16" not in outcome.step.id]
    build.steps = [step for step in build.steps if "onnxruntime/fp16" not in step.id]
    now = report.build(build.plan(made_recipe()), build.outcomes, environment=ENVIRONMENT, baseline=made)
    assert now.baseline is not None
    removed = [(row.target, row.variant) for row in now.baseline.changes if row.status == "removed"]
    assert removed == [("onnxruntime", "fp16")]
    back = report.difference(made, now)
    assert [(row.target, row.variant) for row in back.changes if row.status == "added"] == [("onnxruntime", "fp16")]


def test_a_verification_that_is_gone_shows(made: Report) -> None:
    rows = [
        msgspec.structs.replace(row, verified="not verified", parity=()) if row.name == "openvino/fp32" else row
        for row in made.artifacts
    ]
    now = msgspec.structs.replace(made, artifacts=tuple(rows))
    change = next(row for row in report.difference(now, made).changes if row.target == "openvino")
    assert change.verified == ("executed", "not verified")
    assert change.snr_change_db is None

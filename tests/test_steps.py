"""Step functions in this process, on the artifacts of a real build."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec
import numpy as np
import onnx
import pytest

from retarget import catalog, engine, recipe, reference, steps
from retarget.engine import Limits
from retarget.errors import NotExecutable
from retarget.facts import CompareFacts, ConvertFacts, EmitFacts
from retarget.plan import Invocation, make
from retarget.protocols import JSON, Outcome, Runner, StepRequest, TargetRun
from retarget.session import Session
from retarget.store import Store, read_manifest

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N,64] x) => (float[N,64] y) <float[64,64] w> {
  h = MatMul(x, w)
  y = Tanh(h)
}
"""

RECIPE = """
version: 1
name: net
model: {path: net.onnx, shapes: {N: {min: 1, opt: 2, max: 4}}}
variants: [fp32, fp16]
targets: [onnxruntime, openvino]
"""

ARTIFACTS = {f"{target}/{variant}" for target in ("onnxruntime", "openvino") for variant in ("fp32", "fp16")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Outcome]:
    """How each step of a small build ended, by its id; all but the bench step."""
    folder = tmp_path_factory.mktemp("net")
    model = onnx.parser.parse_model(MODEL)
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32) / 8
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, folder / "net.onnx")
    (folder / "recipe.yaml").write_text(RECIPE)
    return run(folder, Invocation(threads=1, bench=False))


def run(folder: Path, invocation: Invocation) -> dict[str, Outcome]:
    store = Store(folder / "store")
    plan = make(recipe.load(folder / "recipe.yaml"), store, invocation)
    limits = Limits(memory_bytes=None, seconds=None)
    outcomes = engine.run(plan.steps, store, jobs=2, limits=limits, progress=lambda event: None)
    return {outcome.step.id: outcome for outcome in outcomes}


def artifact(outcome: Outcome) -> Path:
    assert outcome.artifact is not None, outcome.error
    return outcome.artifact.path


class Counted:
    """A target's runner that counts how many of its kind are open."""

    def __init__(self, runner: Runner, counts: list[int]) -> None:
        self._runner, self._counts = runner, counts
        self.settings = runner.settings
        counts.append(counts[-1] + 1)

    def run(self, feeds: Feeds) -> Outputs:
        return self._runner.run(feeds)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counts.append(self._counts[-1] - 1)
        self._runner.__exit__(kind, value, trace)


@pytest.mark.parametrize("together", [True, False])
def test_no_more_artifacts_are_open_at_once_than_memory_allows(
    built: Mapping[str, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    folders = {step: artifact(outcome) for step, outcome in built.items()}
    request = StepRequest(
        kind="bench",
        options={"threads": 1, "seconds": 0.02},
        inputs={
            "source": folders["convert"],
            "reference": folders["optimize"],
            **{name: folders[f"emit {name}"] for name in ARTIFACTS},
        },
        files={},
        out=tmp_path,
    )
    total = sum(file.stat().st_size for name in ARTIFACTS for file in folders[f"emit {name}"].glob("model.*"))
    counts = [0]
    real = catalog.target_run

    def counting(name: str) -> TargetRun:
        run = real(name)

        class Run:
            @staticmethod
            def open(artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> Runner:
                return Counted(run.open(artifact, facts, parity=parity, threads=threads), counts)

        return Run()

    monkeypatch.setattr(catalog, "target_run", counting)
    if not together:
        monkeypatch.setattr(steps, "TOGETHER_BYTES", total)  # the reference is another one
    facts = steps.bench(request)

    assert facts.together is together
    assert max(counts) == (4 if together else 1)
    assert counts[-1] == 0
    assert {entry.subject for entry in facts.entries} == ARTIFACTS | {"reference"}
    latencies = {entry.subject: entry.latency for entry in facts.entries}
    for latency in latencies.values():
        assert latency is not None
        assert latency.calls >= 20
    reference = latencies["reference"]
    assert reference is not None
    assert reference.ratio_to_reference == 1.0


def test_a_scalar_input_does_not_keep_rows_from_being_checked(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        net (float[N,4] x, float scale) => (float[N,4] y) { h = Mul(x, scale)  y = Tanh(h) }"""
    )
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(3, 4)), scale=np.float32(0.5))
    text = RECIPE.replace("variants: [fp32, fp16]", "data: {samples: data.npz}")
    (tmp_path / "recipe.yaml").write_text(text)
    done = run(tmp_path, Invocation(threads=1, bench=False))
    for subject in ("onnx", "onnxruntime/fp32", "openvino/fp32"):
        facts = steps.facts_of(artifact(done[f"compare {subject}"]), CompareFacts)
        assert facts.batch_passed is True, facts.batch
        assert facts.batch is not None
        assert facts.batch.startswith("4 rows together and one by one: SNR at least")


HALF = """
<ir_version: 10, opset_import: ["" : 21]>
net (float16[N,64] x) => (float16[N,64] y) <float16[64,64] w> {
  h = MatMul(x, w)
  y = Tanh(h)
}
"""


def test_fp32_of_a_float16_source_is_float32_within(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(HALF)
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float16) / np.float16(8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "net.onnx")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = run(tmp_path, Invocation(threads=1, bench=False))
    source = steps.facts_of(artifact(done["convert"]), ConvertFacts)
    assert source.narrow == "float16"
    assert [spec.dtype for spec in (*source.inputs, *source.outputs)] == ["float16", "float16"]
    for name in ARTIFACTS:
        emitted = steps.facts_of(artifact(done[f"emit {name}"]), EmitFacts)
        assert emitted.precision.weights == ("float32" if name.endswith("fp32") else "float16")
        compared = steps.facts_of(artifact(done[f"compare {name}"]), CompareFacts)
        assert compared.tolerance == {"snr_db": 40}
        assert all(row.passed for row in compared.parity), compared.parity
    for recorded in reference.read(artifact(done["convert"])):
        with Session(tmp_path / "net.onnx") as session:
            np.testing.assert_array_equal(recorded.outputs["y"], session.run(recorded.feeds)["y"])


def test_a_gate_of_the_recipe_is_held_for_a_float16_source_too(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(HALF.replace("<float16[64,64] w>", "").replace("MatMul(x, w)", "Exp(x)"))
    onnx.save(model, tmp_path / "net.onnx")
    text = RECIPE.replace("variants: [fp32, fp16]", "gates: {parity: {fp32: {snr_db: 60}}}")
    (tmp_path / "recipe.yaml").write_text(text.replace(", openvino", ""))
    done = run(tmp_path, Invocation(threads=1, bench=False))
    compared = steps.facts_of(artifact(done["compare onnxruntime/fp32"]), CompareFacts)
    assert compared.tolerance == {"snr_db": 60}


def fixed(emitted: Path, folder: Path, sizes: dict[str, int]) -> Path:
    """A copy of an artifact that says that it takes ``sizes`` alone."""
    return saying(emitted, folder, sizes=sizes)


def saying(emitted: Path, folder: Path, **what: object) -> Path:
    """A copy of an artifact that says something else of itself."""
    shutil.copytree(emitted, folder)
    manifest = read_manifest(folder)
    facts = msgspec.structs.replace(manifest.facts_as(EmitFacts), **what)
    told = msgspec.structs.replace(manifest, facts=msgspec.to_builtins(facts)).sealed()
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_bytes(msgspec.json.encode(told))
    return folder


class OneSize:
    """A target's runner that was built for so many rows."""

    def __init__(self, runner: Runner, rows: int) -> None:
        self._runner, self._rows = runner, rows
        self.settings = runner.settings

    def run(self, feeds: Feeds) -> Outputs:
        assert {len(array) for array in feeds.values()} == {self._rows}
        return self._runner.run(feeds)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, value, trace)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners refuse what an artifact of one size refuses."""
    real = catalog.target_run

    def strictly(name: str) -> TargetRun:
        run = real(name)

        class Run:
            @staticmethod
            def open(artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> Runner:
                return OneSize(run.open(artifact, facts, parity=parity, threads=threads), facts.sizes["N"])

        return Run()

    monkeypatch.setattr(catalog, "target_run", strictly)


COMPARE: dict[str, JSON] = {
    "subject": "onnxruntime/fp32",
    "target": "onnxruntime",
    "variant": "fp32",
    "precision": "fp32",
    "tolerance": {"snr_db": 80.0},
    "threads": 1,
}
EVALUATE: dict[str, JSON] = {
    "target": "onnxruntime",
    "variant": "fp32",
    "precision": "fp32",
    "source": None,
    "data": {"origin": "samples", "limit": None},
    "labels": "label",
    "metric": "top1",
    "threads": 1,
}


@pytest.mark.usefixtures("strict")
def test_an_artifact_of_one_size_is_compared_and_timed_at_that_size(
    built: Mapping[str, Outcome], tmp_path: Path
) -> None:
    source, optimized = artifact(built["convert"]), artifact(built["optimize"])
    emitted = artifact(built["emit onnxruntime/fp32"])
    for rows, left_out in ((2, ("min (N=1)", "max (N=4)")), (3, ("min (N=1)", "opt (N=2)", "max (N=4)"))):
        model = fixed(emitted, tmp_path / f"rows{rows}", {"N": rows})
        request = StepRequest("compare", COMPARE, {"model": model, "source": source}, files={}, out=tmp_path)
        compared = steps.compare(request)
        assert compared.left_out == left_out
        assert compared.verified == ("executed" if rows == 2 else "not verified")
        assert compared.batch_passed is None
        roles = {"source": source, "reference": optimized, "onnxruntime/fp32": model}
        timed = steps.bench(StepRequest("bench", {"threads": 1, "seconds": 0.02}, roles, files={}, out=tmp_path))
        (entry,) = (entry for entry in timed.entries if entry.subject == "onnxruntime/fp32")
        assert (entry.latency is None) == (rows == 3)
        assert entry.reason == (None if rows == 2 else "the artifact takes N=3 alone, and latency is measured at N=2")


def test_an_artifact_that_nothing_here_executes_is_never_called_executed(
    built: Mapping[str, Outcome], tmp_path: Path
) -> None:
    source, emitted, lack = artifact(built["convert"]), artifact(built["emit onnxruntime/fp32"]), "no kernels are here"
    model = saying(emitted, tmp_path / "emitted", not_executable=lack)
    compared = steps.compare(
        StepRequest("compare", COMPARE, {"model": model, "source": source}, files={}, out=tmp_path)
    )
    assert (compared.verified, compared.reason, compared.parity) == ("not verified", lack, ())
    roles = {"source": source, "reference": artifact(built["optimize"]), "onnxruntime/fp32": model}
    timed = steps.bench(StepRequest("bench", {"threads": 1, "seconds": 0.02}, roles, files={}, out=tmp_path))
    (entry,) = (entry for entry in timed.entries if entry.subject == "onnxruntime/fp32")
    assert (entry.latency, entry.reason) == (None, lack)
    judged = steps.evaluate(
        StepRequest("evaluate", EVALUATE, {"model": model, "source": source}, files={}, out=tmp_path)
    )
    assert (judged.value, judged.reason) == (None, lack)


def test_what_is_interpreted_is_called_so_and_is_not_timed(
    built: Mapping[str, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog.target("onnxruntime"), "interpreted", "there is no Mac here")
    source, emitted = artifact(built["convert"]), artifact(built["emit onnxruntime/fp32"])
    compared = steps.compare(
        StepRequest("compare", COMPARE, {"model": emitted, "source": source}, files={}, out=tmp_path)
    )
    assert compared.verified == "interpreted"
    assert compared.reason == "in numpy on this machine, not executed: there is no Mac here"
    assert [row.passed for row in compared.parity] == [True]
    roles = {"source": source, "reference": artifact(built["optimize"]), "onnxruntime/fp32": emitted}
    timed = steps.bench(StepRequest("bench", {"threads": 1, "seconds": 0.02}, roles, files={}, out=tmp_path))
    (entry,) = (entry for entry in timed.entries if entry.subject == "onnxruntime/fp32")
    assert (entry.latency, entry.reason) == (None, "interpreted, not executed: there is no Mac here")


class Refusing:
    """A runner that cannot execute what it is fed."""

    settings = "a machine without pixels"

    def run(self, feeds: Feeds) -> Outputs:
        raise NotExecutable("the feeds are no pixels")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def test_what_a_runner_cannot_execute_is_not_verified(
    built: Mapping[str, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = catalog.target_run("onnxruntime")
    monkeypatch.setattr(run, "open", lambda artifact, facts, *, parity, threads: Refusing())
    source, emitted = artifact(built["convert"]), artifact(built["emit onnxruntime/fp32"])
    roles = {"model": emitted, "source": source}
    compared = steps.compare(StepRequest("compare", COMPARE, roles, files={}, out=tmp_path))
    assert (compared.verified, compared.reason) == ("not verified", "the feeds are no pixels")
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 64), np.float32), label=np.zeros(2, np.int64))
    data = {"data": tmp_path / "data.npz"}
    judged = steps.evaluate(StepRequest("evaluate", EVALUATE, roles, data, out=tmp_path))
    assert (judged.value, judged.reason) == (None, "the feeds are no pixels")
    roles = {"source": source, "reference": artifact(built["optimize"]), "onnxruntime/fp32": emitted}
    timed = steps.bench(StepRequest("bench", {"threads": 1, "seconds": 0.02}, roles, files={}, out=tmp_path))
    told = {entry.subject: (entry.latency is None, entry.reason) for entry in timed.entries}
    assert told == {"reference": (False, None), "onnxruntime/fp32": (True, "the feeds are no pixels")}


@pytest.mark.usefixtures("strict")
def test_an_artifact_of_one_size_is_evaluated_on_every_row(built: Mapping[str, Outcome], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(11, 64)).astype(np.float32), np.arange(11)
    np.savez(tmp_path / "data.npz", x=rows, label=labels)
    with Session(artifact(built["optimize"]) / "model.onnx") as session:
        expected = float((session.run({"x": rows})["y"].argmax(axis=1) == labels).mean())
    model = fixed(artifact(built["emit onnxruntime/fp32"]), tmp_path / "five", {"N": 5})
    roles = {"model": model, "source": artifact(built["convert"])}
    request = StepRequest("evaluate", EVALUATE, roles, {"data": tmp_path / "data.npz"}, out=tmp_path)
    facts = steps.evaluate(request)
    assert facts.samples == 11
    assert facts.value == pytest.approx(expected)
    assert facts.notes == ("onnxruntime/fp32 takes batches of 5 alone: 4 rows fed again to fill them up do not count",)

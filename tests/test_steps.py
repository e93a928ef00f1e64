"""Step functions in this process, on the artifacts of a real build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import onnx
import pytest

from retarget import catalog, engine, recipe, reference, steps
from retarget.engine import Limits
from retarget.facts import CompareFacts, ConvertFacts, EmitFacts
from retarget.plan import Invocation, make
from retarget.protocols import Outcome, Runner, StepRequest, TargetRun
from retarget.session import Session
from retarget.store import Store

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

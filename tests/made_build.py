"""A build made by hand: steps, outcomes and manifests as a real one leaves them, failures and oddities included."""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from retarget.facts import (
    BenchEntry,
    BenchFacts,
    CalibrateFacts,
    Case,
    CompareFacts,
    Comparison,
    ConvertFacts,
    EmitFacts,
    EvaluateFacts,
    Fact,
    IoEntry,
    KeptNode,
    Latency,
    OptimizeFacts,
    PassFact,
    Precision,
    QuantizeFacts,
)
from retarget.plan import LeftOut, Plan
from retarget.protocols import JSON, Artifact, Kind, Outcome, Status, Step, StepError
from retarget.recipe import AccuracyGate, Gates, Model, Recipe, TargetEntry, Variant, Waiver
from retarget.recipe_yaml import Settings
from retarget.report_schema import Environment, Report
from retarget.spec import DimRange, TensorSpec
from retarget.store import FileEntry, Manifest
from retarget.tolerance import Tolerance

IMAGE = TensorSpec("image", "float32", ("N", 3, 64, 64))
LOGITS = TensorSpec("logits", "float32", ("N", 10))
BOXES = TensorSpec("boxes", "float32", ("N", 4))
WEIGHTS = 45_200_000

ENVIRONMENT = Environment(
    retarget="0.1.0",
    python="3.11.9",
    os="Linux 6.8.0",
    machine="x86_64",
    cpu="AMD EPYC 9354 32-Core Processor",
    cores=8,
    memory_bytes=33_400_000_000,
    host="builder-7",
    built="2026-11-21T10:15:00+00:00",
)


@dataclass
class MadeBuild:
    """Steps and how they ended; artifacts lie under ``folder``."""

    folder: Path
    steps: list[Step] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def plan(self, recipe: Recipe) -> Plan:
        """The plan that these steps are."""
        inputs = {recipe.model.path: _sha("model")}
        return Plan(recipe, tuple(self.steps), tuple(self.left_out), inputs, {"numpy": "2.3.4"}, found="")

    def add(
        self,
        id: str,  # noqa: A002
        kind: Kind,
        facts: Fact | None = None,
        *,
        options: Mapping[str, JSON] | None = None,
        inputs: Mapping[str, Step] | None = None,
        files: Mapping[str, int] | None = None,
        status: Status = "ran",
        seconds: float = 0.5,
        error: StepError | None = None,
        optional: bool = False,
    ) -> Step:
        step = Step(
            id=id,
            kind=kind,
            options=options or {},
            inputs=inputs or {},
            files={},
            toolchain="onnx",
            key=_sha(id),
            optional=optional,
        )
        artifact = None
        if facts is not None:
            artifact = Artifact(step.key, self.folder / step.key)
            self._commit(step, artifact.path, facts, files or {"model.onnx": 1000})
        self.steps.append(step)
        self.outcomes.append(
            Outcome(
                step=step,
                status=status,
                seconds=seconds,
                peak_rss=412_000_000 if status == "ran" else None,
                peak_anonymous=230_000_000 if status == "ran" else None,
                artifact=artifact,
                error=error,
            )
        )
        return step

    def _commit(self, step: Step, path: Path, facts: Fact, files: Mapping[str, int]) -> None:
        path.mkdir()
        manifest = Manifest(
            schema=1,
            key=step.key,
            kind=step.kind,
            id=step.id,
            versions={"onnx": "1.23.0", "openvino": "2026.4.0", "torch": "2.13.0"},
            files={name: FileEntry(sha256=_sha(name + step.key), bytes=size) for name, size in files.items()},
            facts=_finite(msgspec.to_builtins(facts)),
        ).sealed()
        (path / "manifest.json").write_bytes(msgspec.json.encode(manifest))

    def emit(
        self,
        target: str,
        variant: str,
        model: Step,
        *,
        size: int,
        share: float | None = 0.0,
        low: str = "float32",
        notes: tuple[str, ...] = (),
        optional: bool = False,
    ) -> Step:
        """An emit step that ran."""
        facts = EmitFacts(
            target=target,
            variant_precision=variant,
            inputs=(IoEntry(name="image", artifact_name="image", spec=IMAGE, artifact_dtype="float32"),),
            outputs=(
                IoEntry(name="logits", artifact_name="logits", spec=LOGITS, artifact_dtype="float32"),
                IoEntry(name="boxes", artifact_name="boxes/sink_port_0", spec=BOXES, artifact_dtype="float32"),
            ),
            precision=Precision(weights=low, activations=low, io="float32", low_precision_share=share),
            notes=notes,
        )
        files = {"model.xml": 90_000, "model.bin": size - 90_000} if target == "openvino" else {"model.onnx": size}
        return self.add(
            f"emit {target}/{variant}",
            "emit",
            facts,
            options=_about(target, variant),
            inputs={"model": model, "source": self.steps[0]},
            files=files,
            seconds=1.8,
            optional=optional,
        )

    def compare(
        self, subject: Step, facts: CompareFacts, *, target: str | None, variant: str, tolerance: float
    ) -> Step:
        """A comparison that ran, of an artifact or of a model between steps."""
        name = variant if target is None else f"{target}/{variant}"
        return self.add(
            f"compare {name}",
            "compare",
            facts,
            options={**_about(target, variant), "tolerance": {"snr_db": tolerance}},
            inputs={"model": subject, "source": self.steps[0]},
            seconds=0.3,
        )

    def evaluate(self, target: str | None, variant: str | None, value: float | None, reason: str | None = None) -> Step:
        """An evaluation that ran, of an artifact or of the source."""
        facts = EvaluateFacts(
            metric="top1", value=value, samples=360, settings="CPU, default, 2 threads", reason=reason
        )
        return self.add(
            "evaluate source" if target is None else f"evaluate {target}/{variant}",
            "evaluate",
            facts,
            options={"target": target, "variant": variant, "precision": "fp32", "metric": "top1"},
        )


def compared(output: str, snr_db: float, *, passed: bool = True, reason: str | None = None, nan: int = 0) -> Comparison:
    """One output's comparison with an SNR of ``snr_db``."""
    exact = snr_db == 300.0
    error = 0.0 if exact else min(10 ** (-snr_db / 20) * 3, 1e30)
    return Comparison(
        output=output,
        max_abs=error,
        mean_abs=error / 8,
        snr_db=snr_db,
        exact=exact,
        cosine=1.0 if snr_db > 60 else 0.99991,
        top1_agreement=1.0 if output == "logits" else None,
        nan_count=nan,
        inf_count=0,
        samples=64,
        passed=passed,
        reason=reason,
    )


def executed(
    logits: float, boxes: float, *, failed: str | None = None, nan: int = 0, default: float | None = None
) -> CompareFacts:
    """An artifact that was executed, its second output broken where ``failed`` says how."""
    rows = (compared("logits", logits), compared("boxes", boxes, passed=failed is None, reason=failed, nan=nan))
    return CompareFacts(
        verified="executed",
        reason=None,
        settings="CPU, f32, 2 threads",
        parity=rows,
        parity_default=() if default is None else (compared("logits", default), compared("boxes", default)),
        batch="8 rows together and one by one: SNR at least 118.2 dB",
        batch_passed=True,
    )


def timed(p50_ms: float, reference_ms: float, *, stable: bool = True) -> Latency:
    return Latency(
        p50_ms=p50_ms,
        p90_ms=p50_ms * 1.08,
        p99_ms=p50_ms * 1.4,
        throughput_per_s=8000 / p50_ms,
        ratio_to_reference=p50_ms / reference_ms,
        stable=stable,
        calls=400,
        settings="CPU, default, 2 threads",
    )


NO_GPU = "no NVIDIA GPU on this machine"


def full_build(folder: Path) -> MadeBuild:
    """Six artifacts that exist, one whose toolchain is missing, one whose converter crashed, one that gives NaN."""
    build = MadeBuild(folder)
    convert = build.add(
        "convert",
        "convert",
        ConvertFacts(
            frontend="pytorch",
            form="safetensors with a factory",
            rung="dynamo",
            inputs=(IMAGE,),
            outputs=(LOGITS, BOXES),
            shapes={"N": DimRange(1, 8, 32)},
            nodes=450,
            bytes=WEIGHTS,
            parameters=11_300_000,
            cases=tuple(Case(name=name, sizes={"N": 8}, origin="calibration") for name in ("data", "min", "max")),
            origin="calibration",
            reference="PyTorch 2.13.0 on the CPU",
            notes=("attention was exported eagerly: the fused form has no ONNX counterpart",),
        ),
        files={"model.onnx": WEIGHTS, "reference.npz": 4_000_000},
        seconds=6.2,
    )
    optimize = build.add(
        "optimize", "optimize", OPTIMIZED, inputs={"model": convert, "source": convert}, files={"model.onnx": WEIGHTS}
    )
    build.compare(convert, executed(127.3, 125.1), target=None, variant="onnx", tolerance=80)
    build.compare(optimize, executed(124.9, 123.2), target=None, variant="optimized", tolerance=80)
    ranges = build.add(
        "calibrate",
        "calibrate",
        CalibrateFacts(origin="calibration", samples=200, tensors=212),
        inputs={"model": optimize, "source": convert},
        status="cached",
        seconds=0.0,
    )
    kept = (
        KeptNode(name="/head/softmax", op="Softmax", reason="keeps float32: sums of exponentials"),
        KeptNode(name="/norm/pow", op="Pow", reason="its output reaches 41200, near float16's limit of 65504"),
    )
    fp16 = build.add(
        "quantize fp16",
        "quantize",
        QuantizeFacts(precision="fp16", nodes=118, kept=kept),
        inputs={"model": optimize, "ranges": ranges},
        files={"model.onnx": WEIGHTS // 2},
    )
    build.compare(fp16, executed(68.4, 66.0), target=None, variant="fp16", tolerance=40)

    ort32 = build.emit("onnxruntime", "fp32", optimize, size=WEIGHTS)
    ort16 = build.emit("onnxruntime", "fp16", fp16, size=WEIGHTS // 2, low="float16", share=0.0, notes=(CPU_FP16,))
    ov32 = build.emit("openvino", "fp32", optimize, size=WEIGHTS + 90_000)
    ov16 = build.emit("openvino", "fp16", optimize, size=WEIGHTS // 2 + 90_000, low="float16", share=0.0)
    build.add(
        "emit openvino/int8",
        "emit",
        options=_about("openvino", "int8"),
        inputs={"model": optimize, "source": convert},
        status="failed",
        seconds=3.1,
        error=StepError(
            kind="ToolchainFailure",
            message="openvino was killed by SIGSEGV",
            hint="build this target alone with `--only openvino/int8`, or raise --memory",
            log=_log(folder),
        ),
    )
    rtx = build.emit("tensorrt_rtx", "fp16", fp16, size=24_500_000, low="float16", share=1.0, optional=True)
    build.left_out.append(
        LeftOut("tensorrt", "fp16", "fp16", "tensorrt is not installed", "pip install 'retarget[tensorrt]'")
    )
    ncnn = build.emit("ncnn", "fp16", optimize, size=22_700_000, low="float16", share=0.4)

    build.compare(ort32, executed(300.0, 123.2), target="onnxruntime", variant="fp32", tolerance=90)
    build.compare(ort16, executed(68.4, 66.0), target="onnxruntime", variant="fp16", tolerance=40)
    build.compare(ov32, executed(121.0, 118.4, default=47.2), target="openvino", variant="fp32", tolerance=90)
    build.compare(ov16, executed(64.6, 63.1), target="openvino", variant="fp16", tolerance=40)
    lost = executed(39.1, -300.0, failed="12 NaN where the reference has none; snr_db -300 < 40", nan=12)
    build.compare(ncnn, lost, target="ncnn", variant="fp16", tolerance=40)
    unverified = CompareFacts(verified="not verified", reason=NO_GPU, settings="", parity=())
    build.compare(rtx, unverified, target="tensorrt_rtx", variant="fp16", tolerance=40)

    build.evaluate(None, None, 0.9833)
    build.evaluate("onnxruntime", "fp32", 0.9833)
    build.evaluate("onnxruntime", "fp16", 0.9833)
    build.evaluate("openvino", "fp32", 0.9806)
    build.evaluate("openvino", "fp16", 0.9750)
    build.evaluate("ncnn", "fp16", float("nan"))
    build.evaluate("tensorrt_rtx", "fp16", None, NO_GPU)
    entries = (
        BenchEntry(subject="reference", latency=timed(8.4, 8.4)),
        BenchEntry(subject="onnxruntime/fp32", latency=timed(8.5, 8.4)),
        BenchEntry(subject="onnxruntime/fp16", latency=timed(9.9, 8.4)),
        BenchEntry(subject="openvino/fp32", latency=timed(3.1, 8.4)),
        BenchEntry(subject="openvino/fp16", latency=timed(3.0, 8.4)),
        BenchEntry(subject="ncnn/fp16", latency=timed(14.2, 8.4, stable=False)),
        BenchEntry(subject="tensorrt_rtx/fp16", latency=None, reason=NO_GPU),
    )
    build.add("bench", "bench", BenchFacts(batch=8, sizes={"N": 8}, entries=entries), seconds=21.0)
    return build


CPU_FP16 = "ONNX Runtime's CPU plan runs the MatMuls in float32: only the storage is float16"

OPTIMIZED = OptimizeFacts(
    preset="default",
    passes=(
        PassFact(
            name="fuse_conv_bn",
            status="changed",
            nodes_before=450,
            nodes_after=278,
            bytes_before=45_600_000,
            bytes_after=WEIGHTS,
            seconds=0.21,
        ),
        PassFact(
            name="fuse_gelu",
            status="unchanged",
            nodes_before=278,
            nodes_after=278,
            bytes_before=WEIGHTS,
            bytes_after=WEIGHTS,
            seconds=0.01,
        ),
        PassFact(
            name="simplify",
            status="dropped",
            nodes_before=278,
            nodes_after=278,
            bytes_before=WEIGHTS,
            bytes_after=WEIGHTS,
            seconds=0.64,
            reason="output 'boxes' moved to 31.2 dB",
        ),
        PassFact(
            name="eliminate_reshapes",
            status="changed",
            nodes_before=278,
            nodes_after=122,
            bytes_before=WEIGHTS,
            bytes_after=WEIGHTS,
            seconds=0.05,
        ),
    ),
    checked=True,
    reason=None,
    snr_db=124.9,
    seconds_passes=0.91,
    seconds_check=0.6,
)


def made_recipe(**gates: object) -> Recipe:
    """The recipe of ``full_build``; ``gates`` replace its own."""
    chosen: dict[str, object] = {
        "parity": {"fp32": Tolerance(snr_db=90.0), "fp16": Tolerance(snr_db=40.0)},
        "accuracy": AccuracyGate(max_drop=0.005),
        "verified": ("onnxruntime", "openvino"),
    }
    return Recipe(
        version=1,
        name="detector",
        model=Model(path=Path("/models/detector.safetensors")),
        variants=tuple(Variant(name=name, precision=name) for name in ("fp32", "fp16", "int8")),
        targets=tuple(
            TargetEntry(name=name, options=Settings(), optional=name.startswith("tensorrt"))
            for name in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "ncnn")
        ),
        gates=msgspec.structs.replace(Gates(), **{**chosen, **gates}),
        waivers=(
            Waiver(
                gate="accuracy",
                target="openvino",
                variant="fp16",
                reason="bf16 accumulates; fixed upstream, see the ticket",
                expires=datetime.date(2026, 12, 31),
            ),
            Waiver(
                gate="parity",
                target="ncnn",
                reason="the known NaN of the box head",
                expires=datetime.date(2026, 11, 20),
            ),
        ),
    )


def _finite(value: Any) -> Any:
    """As a worker writes facts: what JSON cannot hold as a string."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _about(target: str | None, variant: str) -> dict[str, JSON]:
    return {"target": target, "variant": variant, "precision": variant}


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _log(folder: Path) -> Path:
    log = folder / "openvino-int8.txt"
    lines = [f"[ INFO ] layer {number} quantized" for number in range(40)]
    lines += ["\x1b[31m[ ERROR ]\x1b[0m <FakeQuantize> unexpected shape & \x07bell", "Segmentation fault (core dumped)"]
    log.write_text("\n".join(lines) + "\n")
    return log


def interpreted(made: Report, name: str, reason: str) -> Report:
    """``made`` where artifact ``name`` was interpreted rather than executed."""
    return msgspec.structs.replace(
        made,
        artifacts=tuple(
            msgspec.structs.replace(row, verified="interpreted", reason=reason) if row.name == name else row
            for row in made.artifacts
        ),
    )


def of_one_size(made: Report, name: str, left_out: tuple[str, ...], notes: tuple[str, ...] = ()) -> Report:
    """``made`` where artifact ``name`` takes N=8 alone, and so parity is without the cases ``left_out``."""
    return msgspec.structs.replace(
        made,
        artifacts=tuple(
            msgspec.structs.replace(row, sizes={"N": 8}, left_out=left_out, notes=notes) if row.name == name else row
            for row in made.artifacts
        ),
    )

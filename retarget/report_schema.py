"""``report.json``, schema 1, as types: what ``build`` leaves, what CI systems and `--baseline` read.

All figures are finite: JSON has no NaN, and a comparison counts what is not a number and says so in ``reason``.
Keys may be added within schema 1; none is renamed or removed. Rows tolerate keys that they do not know, so
that a baseline written by a newer version can be read.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from retarget.facts import Int8Facts, IoEntry, KeptNode, PassFact, Precision, Verified, reason_of_one_size
from retarget.figures import sizes_text
from retarget.protocols import Kind, Status
from retarget.spec import DimRange, TensorSpec

Verdict = Literal["pass", "fail", "incomplete"]
CONSEQUENCE = "Skipped"
"""Kind of the error of a step that was skipped because one before it failed."""
NOT_MEASURED = "not measured (--no-bench)"
GateStatus = Literal["passed", "failed", "waived", "skipped", "unchecked"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything in ``report.json``."""


# ---- the model and where it was built


class ModelRow(Row, frozen=True, kw_only=True):
    """What was converted. ``sha256`` identifies the file or folder that the user gave."""

    path: str
    sha256: str | None
    frontend: str | None = None
    form: str | None = None
    rung: str | None = None
    """Which rung of the frontend's ladder gave the model."""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    shapes: dict[str, DimRange] = {}
    nodes: int | None = None
    parameters: int | None = None
    bytes: int | None = None
    """Of the weights, as converted."""
    data: str | None = None
    """Where the parity inputs came from: ``samples``, ``calibration`` or ``generated``."""
    cases: int = 0
    reference: str | None = None
    """How the source's own outputs were computed."""
    notes: tuple[str, ...] = ()


class Environment(Row, frozen=True, kw_only=True):
    """Where and with what the build ran."""

    retarget: str
    python: str
    os: str
    machine: str
    cpu: str
    cores: int
    memory_bytes: int
    host: str
    built: str
    """UTC, ISO 8601."""
    versions: dict[str, str] = {}
    """Distribution to version, as the steps' manifests name them."""


# ---- steps


class ErrorRow(Row, frozen=True, kw_only=True):
    kind: str
    message: str
    hint: str | None
    bug: bool
    log: str | None
    excerpt: str | None
    """The last lines of the log."""


class StepRow(Row, frozen=True, kw_only=True):
    id: str
    kind: Kind
    status: Status
    seconds: float
    peak_rss_bytes: int | None
    peak_anonymous_bytes: int | None = None
    optional: bool = False
    error: ErrorRow | None

    @property
    def is_cause(self) -> bool:
        """It failed or was skipped by itself, not because a step before it was."""
        return self.error is not None and self.error.kind != CONSEQUENCE


class OptimizeRow(Row, frozen=True, kw_only=True):
    """One optimize step: what each pass did."""

    step: str
    preset: str
    checked: bool
    reason: str | None
    snr_db: float | None
    seconds_passes: float
    seconds_check: float
    passes: tuple[PassFact, ...]
    notes: tuple[str, ...] = ()
    """What the check left out, and why."""


# ---- artifacts


class ParityRow(Row, frozen=True, kw_only=True):
    """One output against the source framework's own. ``snr_db`` is 300 where ``exact``, -300 where nothing is left."""

    output: str
    max_abs: float
    mean_abs: float
    snr_db: float
    exact: bool
    nan_count: int
    inf_count: int
    cosine: float
    top1_agreement: float | None
    samples: int
    passed: bool
    reason: str | None = None
    """What broke; of a row that passed, what takes from the worth of the match."""


class AccuracyRow(Row, frozen=True, kw_only=True):
    metric: str
    reference: float | None
    value: float | None
    drop: float | None
    """``reference - value``: metrics are the higher the better."""
    passed: bool | None
    """None where the recipe sets no bound or there is no value."""
    samples: int = 0
    settings: str | None = None
    reason: str | None = None


class LatencyRow(Row, frozen=True, kw_only=True):
    """Milliseconds a call over the timed calls; throughput in samples a second."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput_per_s: float
    ratio_to_reference: float | None
    stable: bool
    calls: int = 0
    settings: str | None = None


class StageRow(Row, frozen=True, kw_only=True):
    """One comparison on the way from the source to an artifact: how far outputs have moved up to here."""

    step: str
    """The step whose result was compared, such as ``quantize fp16``."""
    output: str
    """The artifact's worst output, which the budget follows."""
    snr_db: float
    """Of this output, against the source framework's own."""
    share: float | None
    """Share, 0 to 1, of all error power that this step added; None where there is no error."""


class ArtifactRow(Row, frozen=True, kw_only=True):
    target: str
    variant: str
    path: str | None
    """Relative to the report; None if there is no artifact."""
    bytes: int | None
    precision: Precision | None
    verified: Verified
    reason: str | None
    """Why it is not verified, or interpreted rather than executed, or was not built."""
    hint: str | None = None
    parity: tuple[ParityRow, ...] = ()
    accuracy: AccuracyRow | None = None
    latency: LatencyRow | None = None
    # beyond the contract's keys:
    requested: str
    """The precision that the recipe asks for."""
    status: Literal["built", "failed", "skipped"]
    check_failed: bool = False
    """The comparison itself failed, as against a machine that cannot execute the artifact."""
    optional: bool = False
    settings: str | None = None
    """How it was executed for parity."""
    tolerance: dict[str, float] = {}
    """What parity was held against."""
    parity_default: tuple[ParityRow, ...] = ()
    sizes: dict[str, int] = {}
    """The symbolic dimensions that it has at one size only."""
    left_out: tuple[str, ...] = ()
    """The parity cases of other sizes, such as ``max (N=32)``: ``parity`` is without them."""
    batch: str | None = None
    batch_passed: bool | None = None
    ratio_to_source: float | None = None
    """``bytes`` over the bytes of the converted model's weights."""
    latency_reason: str | None = None
    inputs: tuple[IoEntry, ...] = ()
    outputs: tuple[IoEntry, ...] = ()
    notes: tuple[str, ...] = ()
    budget: tuple[StageRow, ...] = ()
    kept: tuple[KeptNode, ...] = ()
    int8: Int8Facts | None = None
    """How it was brought to int8, if it was."""
    ranges: str | None = None
    """The page beside the report that shows the ranges behind it."""
    files: dict[str, str] = {}
    """File to its sha256."""
    reproduce: str | None = None

    @property
    def name(self) -> str:
        """``openvino/fp16``."""
        return f"{self.target}/{self.variant}"

    @property
    def unheld(self) -> str | None:
        """Which parity cases it could not be held against, in words; None if there is none."""
        if not self.left_out or not self.parity:
            return None
        shown = [*self.left_out[:3], *([f"{len(self.left_out) - 3} more"] if len(self.left_out) > 3 else [])]
        found = (reason_of_one_size(note, *size) for note in self.notes for size in self.sizes.items())
        why = "; ".join(dict.fromkeys(filter(None, found)))
        said = f"not held against {', '.join(shown)}: it takes {sizes_text(self.sizes)} alone"
        return f"{said}, as {why}" if why else said

    @property
    def worst(self) -> ParityRow | None:
        """The output with the smallest SNR."""
        return min(self.parity, key=lambda row: row.snr_db, default=None)


# ---- gates and the baseline


class WaiverRow(Row, frozen=True, kw_only=True):
    reason: str
    expires: str
    """ISO 8601 date: the last day on which it holds."""
    expired: bool


class GateRow(Row, frozen=True, kw_only=True):
    gate: str
    target: str
    variant: str | None
    passed: bool | None
    """None where the gate had nothing to judge: ``status`` and ``detail`` say why."""
    detail: str
    status: GateStatus
    waiver: WaiverRow | None = None

    @property
    def subject(self) -> str:
        """``openvino/fp16``, or the target alone."""
        return self.target if self.variant is None else f"{self.target}/{self.variant}"


class ChangeRow(Row, frozen=True, kw_only=True):
    """One artifact against the same one in the baseline. Ratios are now over then."""

    target: str
    variant: str
    status: Literal["same", "added", "removed"]
    latency_ratio: float | None = None
    latency_relative: bool = False
    """The ratio is of the latencies relative to each report's reference: the reports are of two machines."""
    accuracy_change: float | None = None
    """Now minus then."""
    bytes_ratio: float | None = None
    snr_change_db: float | None = None
    verified: tuple[str, str] | None = None
    """Then and now, where they differ."""


class Difference(Row, frozen=True, kw_only=True):
    name: str
    built: str
    same_machine: bool
    changes: tuple[ChangeRow, ...]


# ---- the whole


class Report(Row, frozen=True, kw_only=True):
    schema: Literal[1] = 1
    name: str
    verdict: Verdict
    headline: str
    """The verdict and what it rests on, in a sentence."""
    reasons: tuple[str, ...] = ()
    """Why the verdict is not ``pass``."""
    unfinished: bool = False
    """Something that was asked for could not be built or checked, whatever the gates say."""
    steps: tuple[StepRow, ...]
    artifacts: tuple[ArtifactRow, ...]
    gates: tuple[GateRow, ...]
    model: ModelRow
    environment: Environment
    optimize: tuple[OptimizeRow, ...] = ()
    reference: LatencyRow | None = None
    """Latency of the reference: ONNX Runtime, fp32."""
    bench: str | None = None
    """Shape at which latency was measured; None where it was not."""
    bench_together: bool = True
    """All artifacts took turns at once; else each took turns with the reference alone, which bounds the memory."""
    warnings: tuple[str, ...] = ()
    baseline: Difference | None = None

    @property
    def measured(self) -> bool:
        """Whether the build was to measure latency."""
        return any(step.kind == "bench" for step in self.steps)

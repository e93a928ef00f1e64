"""What each step says of its work: typed, stored as ``facts`` in the artifact's ``manifest.json``, read by the report.

A step writes files; everything else that it wants known later stands here. Sizes are bytes, times seconds
unless a name says otherwise.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from retarget.spec import DimRange, TensorSpec

DataOrigin = Literal["samples", "calibration", "synthetic", "generated"]
Verified = Literal["executed", "interpreted", "not verified"]


class Fact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all facts."""


# ---- convert


class Case(Fact, frozen=True, kw_only=True):
    """One parity case: feeds under ``feeds/<name>/<input>`` and ``outputs/<name>/<output>`` in ``reference.npz``."""

    name: str
    sizes: dict[str, int]
    origin: DataOrigin


class ConvertFacts(Fact, frozen=True, kw_only=True):
    frontend: str
    form: str
    """The form of the source that was recognised, such as ``TorchScript``."""
    rung: str
    """Which rung of the frontend's retry ladder gave the model, such as ``dynamo``."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: dict[str, DimRange]
    """Range of every symbolic dimension, defaults filled in."""
    nodes: int
    bytes: int
    parameters: int
    cases: tuple[Case, ...]
    origin: DataOrigin
    rows_depend: str | None = None
    """How far the source's own outputs for rows together and alone lie apart, in words; None where they agree."""
    layouts: dict[str, Literal["nchw", "nhwc"]] = {}
    """Of each input and output of 4 axes."""
    narrow: str | None = None
    """``float16`` or ``bfloat16`` where the source is in that, and the model was widened to float32; ``int8`` where it
    is quantized."""
    reference: str = ""
    """How the source's own outputs were computed: the settings of the frontend's reference."""
    notes: tuple[str, ...] = ()


# ---- optimize


class PassFact(Fact, frozen=True, kw_only=True):
    """One pass as it ran. ``bytes`` counts initializers."""

    name: str
    status: Literal["changed", "unchanged", "dropped"]
    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int
    seconds: float
    reason: str | None = None
    """Why the pass was dropped: what broke, how it crashed, or that it does not gain."""
    gain_db: float | None = None
    """Of a pass that prepares for int8: what int8 gained in SNR by it, or would lose."""


class OptimizeFacts(Fact, frozen=True, kw_only=True):
    preset: str
    passes: tuple[PassFact, ...]
    checked: bool
    """Whether outputs before and after were compared; when not, ``reason`` says why."""
    reason: str | None
    snr_db: float | None
    """Smallest over all outputs and cases, against the model before the passes."""
    seconds_passes: float
    seconds_check: float
    notes: tuple[str, ...] = ()
    """What the check left out, and why."""


# ---- data


class InputStatistics(Fact, frozen=True, kw_only=True):
    """Over all values of one float input that a set fed."""

    name: str
    count: int
    mean: float
    std: float
    min: float
    max: float


class DataFacts(Fact, frozen=True, kw_only=True):
    """What a step was fed."""

    digest: str | None
    """SHA-256 of the file or folder; None where nothing was given."""
    samples: int
    inputs: tuple[InputStatistics, ...]


# ---- calibrate, quantize


class CalibrateFacts(Fact, frozen=True, kw_only=True):
    origin: DataOrigin
    samples: int
    tensors: int
    data: DataFacts | None = None
    """None where the parity cases were fed."""
    notes: tuple[str, ...] = ()
    """What was changed in the data on the way, such as a dtype, or left out."""


class KeptNode(Fact, frozen=True, kw_only=True):
    """A node that was left in float32, and why."""

    name: str
    op: str
    reason: str


class BudgetFacts(Fact, frozen=True, kw_only=True):
    """The search for the nodes that must stay float for a budget to hold."""

    goal: str
    """In words, such as ``min_snr_db 30``."""
    before: float
    """What was judged, with every node in int8: a drop, or decibels."""
    after: float
    """The same with ``returned`` in float."""
    returned: tuple[KeptNode, ...]
    macs_share: float
    """Share, 0 to 1, of the multiply-accumulates that went back to float."""
    latency_ratio: float | None
    """Time of a call over that with every node in int8, in ONNX Runtime where it was made; None where nothing went
    back, and for the schemes of other runtimes."""
    tried: int
    """How many models were judged."""


class Int8Facts(Fact, frozen=True, kw_only=True):
    """How a model was brought to int8, and what that was judged at."""

    scheme: str
    """The dialect that it is written in."""
    method: str
    """How clipping ranges were found."""
    judged_on: str
    """The data behind ``snr_db`` and the budget, in words."""
    snr_db: float
    """Smallest over the outputs, against the float model, simulated in ONNX Runtime."""
    bias_gain_db: float | None = None
    """What correcting the biases gained; None where it was left out."""
    budget: BudgetFacts | None = None
    notes: tuple[str, ...] = ()


class QuantizeFacts(Fact, frozen=True, kw_only=True):
    precision: str
    nodes: int
    """Nodes that now compute in the low precision."""
    kept: tuple[KeptNode, ...]
    int8: Int8Facts | None = None


# ---- emit


class IoEntry(Fact, frozen=True, kw_only=True):
    """How one input or output of the artifact stands to the user's own name and type."""

    name: str
    artifact_name: str
    spec: TensorSpec
    artifact_dtype: str
    permutation: tuple[int, ...] | None = None
    """The artifact's axes in terms of the user's: ``artifact = user.transpose(permutation)``. None: the same axes."""
    scale: float | None = None
    """Where the artifact holds a float tensor as integer codes: a code is
    ``clip(round_half_even(value / scale) + zero_point)``. None: the artifact holds the values themselves."""
    zero_point: int | None = None

    @property
    def changes(self) -> tuple[str, ...]:
        """What the artifact does to the values beside their type, in words."""
        found = []
        if self.permutation is not None:
            found.append(f"its axes are {', '.join(map(str, self.permutation))} of the given ones")
        if self.scale is not None:
            found.append(f"value = {self.scale:g} * (code - {self.zero_point or 0})")
        return tuple(found)


class Precision(Fact, frozen=True, kw_only=True):
    """Types read back from the emitted artifact, never from the request. ``none`` where there are none."""

    weights: str
    activations: str
    io: str
    low_precision_share: float | None
    """Share, 0 to 1, of the multiply-accumulates that the executed graph does below float32, of int8 in 8 bits; None if
    unknown."""


class EmitFacts(Fact, frozen=True, kw_only=True):
    target: str
    variant_precision: str
    inputs: tuple[IoEntry, ...]
    outputs: tuple[IoEntry, ...]
    precision: Precision
    sizes: dict[str, int] = {}
    """The symbolic dimensions that the artifact has at one size only, and that size."""
    settings: dict[str, str] = {}
    """What the recipe says of how it is executed, for the runner, such as ``{"kernels": "builtin"}``."""
    not_executable: str | None = None
    """Why no machine of retarget's can execute this artifact, whatever is installed; None if one can."""
    notes: tuple[str, ...] = ()
    """Every change and limit that a user must know, a sentence each."""


def one_size(symbol: str, size: int, where: str, reason: str) -> str:
    """The note that an artifact has ``symbol`` at one size only; ``where`` is what it is, such as its files."""
    return f"{symbol} is {size} in the {where}: {reason}"


def reason_of_one_size(note: str, symbol: str, size: int) -> str | None:
    """The reason in ``note``, if that is what `one_size` says of ``symbol``."""
    said, _, reason = note.partition(": ")
    return reason if said.startswith(f"{symbol} is {size} in the ") else None


# ---- check


class Refusal(Fact, frozen=True, kw_only=True):
    """A node that a target cannot take, and why."""

    node: str
    operator: str
    reason: str


class CheckFacts(Fact, frozen=True, kw_only=True):
    nodes: int
    """How many the model has, lowered for the target."""
    refused: tuple[Refusal, ...]


# ---- compare


class Comparison(Fact, frozen=True, kw_only=True):
    """One output of one runner held against the reference over all cases."""

    output: str
    max_abs: float
    mean_abs: float
    snr_db: float
    exact: bool
    cosine: float
    top1_agreement: float | None
    nan_count: int
    inf_count: int
    samples: int
    passed: bool
    reason: str | None = None


class CompareFacts(Fact, frozen=True, kw_only=True):
    verified: Verified
    reason: str | None
    """Why it was not verified, or interpreted rather than executed."""
    settings: str
    """How the runner executed, such as ``CPU, f32, 2 threads``."""
    parity: tuple[Comparison, ...]
    parity_default: tuple[Comparison, ...] = ()
    """The same at the runtime's default precision, where that is another one."""
    tolerance: dict[str, float] = {}
    """What parity was held against."""
    left_out: tuple[str, ...] = ()
    """The recorded cases that are not in ``parity``, as the artifact cannot have their sizes: ``max (N=32)``."""
    batch: str | None = None
    """Result of the batch check in words, or why it was skipped."""
    batch_passed: bool | None = None


# ---- evaluate, bench


class EvaluateFacts(Fact, frozen=True, kw_only=True):
    metric: str
    value: float | None
    samples: int
    settings: str
    reason: str | None = None
    """Why there is no value."""
    data: DataFacts | None = None
    notes: tuple[str, ...] = ()
    """What was changed in the data on the way, such as a dtype, or left out."""


class Latency(Fact, frozen=True, kw_only=True):
    """Milliseconds a call over the timed calls; throughput in samples a second."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput_per_s: float
    ratio_to_reference: float | None
    stable: bool
    calls: int
    settings: str


class BenchEntry(Fact, frozen=True, kw_only=True):
    subject: str
    """``target/variant``, or ``reference``."""
    latency: Latency | None
    reason: str | None = None


class BenchFacts(Fact, frozen=True, kw_only=True):
    batch: int | None
    sizes: dict[str, int]
    entries: tuple[BenchEntry, ...]
    together: bool = True
    """Whether all took turns at once; else each took turns with the reference alone, which bounds the memory."""


FACTS: dict[str, type[Fact]] = {
    "convert": ConvertFacts,
    "optimize": OptimizeFacts,
    "calibrate": CalibrateFacts,
    "quantize": QuantizeFacts,
    "emit": EmitFacts,
    "check": CheckFacts,
    "compare": CompareFacts,
    "evaluate": EvaluateFacts,
    "bench": BenchFacts,
}
"""Step kind to the type of its facts."""

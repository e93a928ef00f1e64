"""The types that flow and the protocols that frontends and targets satisfy: no numpy, no vendor library.

A frontend is a package ``convert/<name>/``, a target a package ``targets/<name>/``. The package itself
(``__init__.py``) is light and satisfies ``Frontend`` or ``Target``; its heavy half lives in submodules that
only a worker imports: ``export.py`` (``FrontendExport``) and ``load.py`` (``FrontendLoad``), or ``emit.py`` +
``run.py`` (``TargetEmit``, ``TargetRun``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeAlias

import msgspec

from retarget.facts import EmitFacts
from retarget.schemes import QuantScheme
from retarget.source import Exported, Source
from retarget.spec import DimRange, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.generic]
    Feeds: TypeAlias = Mapping[str, Array]
    Outputs: TypeAlias = dict[str, Array]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Kind: TypeAlias = Literal[
    "convert", "optimize", "calibrate", "quantize", "emit", "check", "compare", "evaluate", "bench", "package"
]
Status: TypeAlias = Literal["ran", "cached", "failed", "skipped"]


# ---- steps and artifacts


@dataclass(frozen=True)
class Step:
    """One unit of work, its key known before it runs."""

    id: str
    """For people: unique in a plan and stable, such as ``emit openvino/fp16``."""
    kind: Kind
    options: Mapping[str, JSON]
    inputs: Mapping[str, Step]
    """Role to the step whose artifact plays it, such as ``{"model": optimize, "reference": convert}``."""
    files: Mapping[str, Path]
    """Role to a file or folder of the user's, such as ``{"calibration": calibration.npz}``."""
    toolchain: str
    """Which worker runs it: a frontend's or target's name, or ``onnx``, or ``bench``."""
    key: str
    optional: bool = False
    """A failure to find the toolchain skips this step and does not fail the build."""
    partial: bool = False
    """Runs with the inputs that could be made, rather than being skipped when one of them failed."""
    python: Path | None = None
    """The interpreter of the user's own that runs the source framework; None: this one."""
    code_root: Path | None = None
    """Where the step imports the user's own code: the folder that its names in the manifest are relative to."""


@dataclass(frozen=True)
class Artifact:
    """An immutable directory with a ``manifest.json``."""

    key: str
    path: Path


@dataclass(frozen=True)
class StepError:
    """A step's failure as it crosses the process boundary. ``kind`` is the exception's class name."""

    kind: str
    message: str
    hint: str | None = None
    bug: bool = False
    """An exception in retarget's own code rather than the user's input or a library."""
    log: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How a step ended. Memory is in bytes: resident high-water mark, and anonymous memory alone."""

    step: Step
    status: Status
    seconds: float
    peak_rss: int | None = None
    peak_anonymous: int | None = None
    artifact: Artifact | None = None
    error: StepError | None = None


@dataclass(frozen=True)
class StepRequest:
    """What a step function gets, all paths absolute. It writes its files into ``out``, which is empty."""

    kind: Kind
    options: Mapping[str, JSON]
    inputs: Mapping[str, Path]
    """Role to an artifact's directory."""
    files: Mapping[str, Path]
    out: Path
    python: Path | None = None
    """As in ``Step``."""
    scratch: Path | None = None
    """A folder for what the step wants to find again when it is run anew after a failure or a kill."""
    memory_bytes: int | None = None
    """What the step may take of anonymous memory; None: no limit."""


# ---- execution


class Runner(Protocol):
    """Executes a model or artifact. Feeds and outputs bear the user's names, dtypes and shapes."""

    @property
    def settings(self) -> str:
        """How it executes, for the report: device, precision, threads."""

    def run(self, feeds: Feeds) -> Outputs: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


# ---- frontends


class Frontend(Protocol):
    """The light half of a frontend: the package ``convert/<name>``."""

    requires: tuple[str, ...]
    """Distributions that it needs, beyond retarget's own."""
    extra: str | None
    """The extra of retarget that brings them, None when nothing is needed."""
    Options: type[msgspec.Struct]
    layout: Literal["nchw", "nhwc"] | None
    """Where the channels of this framework's images stand; None: only a model's own graph tells."""
    suffixes: Mapping[str, str]
    """Suffix to the form that a file called so is to have: what cannot be recognised is met with its reader's error."""

    takes_weights: bool
    """Whether a model has a second file, which the user may name."""

    @staticmethod
    def matches(path: Path) -> str | None:
        """The form of this format that ``path`` holds, from its content, such as ``TorchScript``; None if another's."""

    @staticmethod
    def parts(path: Path) -> Mapping[str, Path]:
        """Role to each other file that the model at ``path`` consists of, found beside it."""


class FrontendExport(Protocol):
    """The half that needs the framework: ``convert/<name>/export.py``. It may run in the user's own interpreter.

    A module, or what stands for one that runs elsewhere (``remote.RemoteFrontend``).
    """

    def export(self, source: Source, example: Feeds | None, out: Path) -> Exported:
        """Write ``out/model.onnx`` (any opset, external data beside it). ``example``: a real sample, if any.

        The model's inputs and outputs bear the names in what is returned; its dimensions need not.
        """

    def reference(self, source: Source, exported: Exported) -> Runner:
        """The source framework itself, as a runner."""


class FrontendLoad(Protocol):
    """The half that needs retarget: ``convert/<name>/load.py``."""

    @staticmethod
    def load(out: Path, source: Source, exported: Exported) -> ir.Model:
        """The exported model in the normal form, with the names and dimensions of ``exported``."""


# ---- targets


@dataclass(frozen=True)
class EmitJob:
    """What ``emit`` needs besides the model."""

    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: Mapping[str, DimRange]
    options: msgspec.Struct
    """An instance of the target's ``Options``."""
    io: str = "float32"
    """Type of the float inputs and outputs. Where fp16 is the graph's, the model has it already; where it is an
    integer, the model has floats still, with a QuantizeLinear behind each input and a DequantizeLinear in front of each
    output."""
    layouts: Mapping[str, Literal["nchw", "nhwc"]] = field(default_factory=dict)
    """Of each input and output of 4 axes; ``nchw`` where one is missing."""
    block: int | None = None
    """Of a precision that the target compresses: how many weights share a scale; None: all of an output channel."""
    keep: tuple[str, ...] = ()
    """Of such a precision: nodes whose weights stay as they are, by name or operator."""


class Target(Protocol):
    """The light half of a target: the package ``targets/<name>``."""

    requires: tuple[str, ...]
    extra: str | None
    precisions: frozenset[str]
    Options: type[msgspec.Struct]
    fp16: Literal["graph", "weights"]
    """Who makes fp16: our pass (the graph computes in it) or the format's storage."""
    schemes: Mapping[str, QuantScheme]
    """By precision, such as ``int8``: which integers the runtime really executes."""
    integer_io: bool
    """Whether inputs and outputs can be the integers themselves."""
    compresses: frozenset[str]
    """Precisions of weights alone that the format's own tools make: ``emit`` is given the floats."""
    lower: tuple[str, ...]
    """Passes to run before emit, by name."""
    interpreted: str | None
    """Why artifacts are read back and interpreted on this machine, rather than executed by their runtime (``Core ML
    runs on macOS alone``); None where the runtime executes them."""

    @staticmethod
    def objection(precision: str, block: int | None, options: msgspec.Struct) -> tuple[str, str] | None:
        """Why ``options`` cannot hold what the target else takes, as (reason, hint); None if they can."""

    @staticmethod
    def fingerprint() -> Mapping[str, str]:
        """Versions and device that shape the artifact, without importing the library."""

    @staticmethod
    def unavailable() -> tuple[str, str] | None:
        """Why this machine cannot build artifacts, as (reason, hint); None if it can. Light."""

    @staticmethod
    def not_executable() -> str | None:
        """Why this machine cannot execute artifacts (``no NVIDIA GPU on this machine``); None if it can. Light."""


class TargetEmit(Protocol):
    """``targets/<name>/emit.py``, imported in a worker only."""

    @staticmethod
    def check(model: ir.Model, job: EmitJob) -> list[tuple[str, str, str]]:
        """Every node that the target cannot take: (node name, operator, reason)."""

    @staticmethod
    def emit(model: ir.Model, job: EmitJob, out: Path) -> EmitFacts:
        """Write the artifact into ``out``; raise ``Unsupported`` with all offending nodes. Reads its types back."""


class TargetRun(Protocol):
    """``targets/<name>/run.py``, imported in a worker only."""

    @staticmethod
    def open(artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> Runner:
        """Execute the artifact: as exactly as the runtime can when ``parity``, else at the runtime's default.

        It, and its ``run``, raise ``NotExecutable`` for what this machine cannot execute.
        """

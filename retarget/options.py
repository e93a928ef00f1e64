"""What each step is told: typed, written by the plan as ``Step.options``, read by the step function.

The counterpart of ``facts``. Everything here enters the step's key, so nothing here is a path or a clock.
"""

from __future__ import annotations

from typing import Literal, TypeVar, cast

import msgspec

from retarget.facts import DataOrigin
from retarget.interface import Layout, Normalize
from retarget.preprocess import Classes, Preprocess
from retarget.protocols import JSON
from retarget.schemes import Choice, QuantScheme


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all step options."""


class SourceOptions(Options, frozen=True, kw_only=True):
    """How to read the user's model. Files: ``model``, ``model.<part>``, and ``factory`` if there is one."""

    frontend: str
    form: str
    inputs: tuple[str, ...]
    shapes: dict[str, str]
    outputs: tuple[str, ...]
    factory: str | None
    """The function in file ``factory``."""
    trust: bool
    layout: Layout | dict[str, Layout] | None = None
    """Of the inputs and outputs; None: the source's own."""
    normalize: Normalize | None = None
    signature: str | None = None
    parts: tuple[str, ...] = ()
    """The other files that the model consists of, such as ``weights``."""
    options: dict[str, object]


class DataOptions(Options, frozen=True, kw_only=True):
    """How to read a set of samples. File: ``data``, unless ``origin`` is ``synthetic``."""

    origin: DataOrigin
    function: str | None = None
    """The function in the file, where the data is ``file.py:function``."""
    limit: int | None
    digest: str | None = None
    """Of the file or folder."""
    preprocess: Preprocess | None = None
    """For a folder of images or sound, and only there."""
    classes: Classes | None = None
    readers: dict[str, str] = {}
    """Distributions that decode the files, and their versions."""


class ConvertOptions(Options, frozen=True, kw_only=True):
    source: SourceOptions
    data: DataOptions | None


class OptimizeOptions(Options, frozen=True, kw_only=True):
    preset: str | tuple[tuple[str, dict[str, object]], ...]
    strict: bool
    data: DataOptions | None = None
    """Of an equalize step: the calibration data, which decides what is kept of `equalization.PASSES`."""


class CalibrateOptions(Options, frozen=True, kw_only=True):
    data: DataOptions | None
    """None: the feeds of the parity cases."""
    hold_out: bool = False
    """Leave some batches out of the statistics: the quantize step judges on them."""
    plot: bool = False
    """Show the ranges in ``ranges.html`` too."""


class SelectionOptions(Options, frozen=True, kw_only=True):
    """What int8 is judged on inside the quantize step. File: ``selection``."""

    data: DataOptions
    labels: str | None
    """The array that holds the labels, where a metric can be taken."""
    metric: str
    """``top1``, ``top5``, or the function in file ``metric``."""


class Int8Options(Options, frozen=True, kw_only=True):
    """Of int8 and int16x8. File ``data``: the calibration set. Inputs: ``model``, ``ranges``."""

    scheme: QuantScheme
    method: Choice
    percentile: float
    max_drop: float | None
    min_snr_db: float | None
    correct_bias: bool
    keep: tuple[str, ...]
    rest: Literal["fp32", "fp16"]
    integer_io: bool = False
    """Round the float inputs and outputs of the model as well."""
    data: DataOptions
    selection: SelectionOptions | None
    """None: the calibration batches that ``calibrate`` held out."""


class WeightsOptions(Options, frozen=True, kw_only=True):
    bits: Literal[4, 8]
    block: int | None
    """How many weights share a scale; None: all of an output channel, convolutions' too."""
    keep: tuple[str, ...]


class QuantizeOptions(Options, frozen=True, kw_only=True):
    """``int8`` and ``weights`` are None for float16."""

    variant: str
    precision: str
    io: str
    int8: Int8Options | None = None
    weights: WeightsOptions | None = None


class EmitOptions(Options, frozen=True, kw_only=True):
    target: str
    variant: str
    precision: str
    io: str
    options: dict[str, object]
    block: int | None = None
    """Of a precision that the target compresses, as `EmitJob` has it; so is ``keep``."""
    keep: tuple[str, ...] = ()


class CompareOptions(Options, frozen=True, kw_only=True):
    """``target`` is None for a model between steps, which ONNX Runtime executes with optimizations off."""

    subject: str
    target: str | None
    variant: str
    precision: str
    tolerance: dict[str, float]
    by_default: bool = False
    """No gate of the recipe set ``tolerance``."""
    threads: int


class EvaluateOptions(Options, frozen=True, kw_only=True):
    """``target`` is None for the source framework itself, which ``source`` then describes."""

    target: str | None
    variant: str | None
    precision: str
    source: SourceOptions | None
    data: DataOptions
    labels: str
    metric: str
    """``top1``, ``top5``, or the function in file ``metric``."""
    threads: int


class BenchOptions(Options, frozen=True, kw_only=True):
    """Artifacts are the inputs called ``<target>/<variant>``; ``reference`` is the fp32 model."""

    threads: int
    seconds: float
    """Time for each artifact's timed calls."""


OptionsT = TypeVar("OptionsT", bound=Options)


def to_json(options: Options) -> dict[str, JSON]:
    """As ``Step.options`` holds them."""
    return cast("dict[str, JSON]", msgspec.json.decode(msgspec.json.encode(options)))


def read(options: object, kind: type[OptionsT]) -> OptionsT:
    """The inverse of ``to_json``."""
    return msgspec.convert(options, kind)

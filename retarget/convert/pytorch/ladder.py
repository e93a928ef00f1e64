"""The retry ladder: dynamo, dynamo with eager attention, the TorchScript exporter. Which rung held is reported.

Attention comes out as primitives (opset 21 has no Attention): targets build those, and calibration sees inside.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import onnx_ir as ir
import torch
from torch import nn

from retarget import graph
from retarget.compare import snr_db
from retarget.convert.pytorch.checkpoint import quiet
from retarget.convert.pytorch.named import Named, to_array
from retarget.errors import RetargetError, ToolchainFailure
from retarget.session import Session
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Array

logger = logging.getLogger(__name__)

DYNAMO_OPSET = 21
TORCHSCRIPT_OPSET = 18

_SAME_DB = 40.0
"""Low: parity is judged later, and what a size baked into the graph does to outputs is far larger."""

_WORD = re.compile(r"[A-Za-z_]\w*")

_PLACES = 4
"""How many lines of code a note names."""

_RECURRENT = ("LSTM", "GRU", "RNN")


@runtime_checkable
class SwitchesAttention(Protocol):
    """What the models of transformers offer, in whatever module they sit."""

    def set_attn_implementation(self, attn_implementation: str) -> None: ...


@dataclass(frozen=True)
class Run:
    """The module's own outputs, with their path names, on ``inputs`` of ``sizes``."""

    sizes: dict[str, int]
    inputs: tuple[torch.Tensor, ...]
    names: tuple[str, ...]
    outputs: tuple[Array, ...]


@dataclass(frozen=True)
class Job:
    """What each rung gets: ``traced`` is exported, ``other`` checks it, None where there are no other sizes."""

    named: Named
    specs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    traced: Run
    other: Run | None
    path: Path


def climb(job: Job, rung: str, notes: list[str]) -> str:
    """Write ``job.path`` by the first rung that works and return its name; the failures before it become notes.

    Raises ``ToolchainFailure`` with the last line of each when all fail.
    """
    scripted = any(isinstance(part, torch.jit.ScriptModule) for part in job.named.modules())
    eager = list(_outermost(job.named))
    rungs: dict[str, Callable[[], None]] = {}
    if rung != "torchscript" and not scripted:
        rungs["dynamo"] = lambda: _dynamo(job)
        if eager:
            rungs["dynamo, eager attention"] = lambda: _dynamo_eager(job, eager)
    if rung != "dynamo" or scripted:
        rungs["torchscript"] = lambda: _torchscript(job, eager)

    failures = []
    before = set(job.path.parent.iterdir())
    for name, attempt in rungs.items():
        try:
            with quiet() as warned, torch.no_grad():
                attempt()
            _check(job, name)
        except Exception as error:
            # Exporters fail in every way that Python knows; each failure is kept, and raised when none is left.
            logger.info("%s failed", name, exc_info=True)
            failures.append(f"{name}: {_cause(error)}")
            for file in set(job.path.parent.iterdir()) - before:
                file.unlink()
            if len(failures) == len(rungs):
                raise ToolchainFailure(
                    "\n  ".join(["PyTorch cannot export the model:", *failures]),
                    "where a dimension became static, write its size in the input's shape, or change the model",
                ) from error
            continue
        notes += [f"the exporter {failure}" for failure in failures]
        notes += _fixed_by_tracing(warned)
        return name
    raise AssertionError("a ladder has rungs")


def _fixed_by_tracing(warned: Sequence[warnings.WarningMessage]) -> list[str]:
    """A note on the branches and sizes that Python took from the data of the trace: others are not in the model."""
    tracer = torch.jit.TracerWarning  # type: ignore[attr-defined]
    places = dict.fromkeys(
        f"{Path(one.filename).name}:{one.lineno}"
        for one in warned
        if issubclass(one.category, tracer) and "to a Python" in str(one.message)
    )
    if not places:
        return []
    listing = ", ".join(list(places)[:_PLACES])
    more = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
    return [f"tracing fixed what Python computed from tensors, for this data and any other: {listing}{more}"]


def _dynamo(job: Job) -> None:
    shapes = tuple({axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in job.specs)
    torch.onnx.export(
        job.named,
        job.traced.inputs,
        job.path,
        dynamo=True,
        verbose=False,
        opset_version=DYNAMO_OPSET,
        input_names=[spec.name for spec in job.specs],
        output_names=list(job.outputs),
        dynamic_shapes={"tensors": shapes},
        external_data=True,
    )


def _dynamo_eager(job: Job, parts: Sequence[SwitchesAttention]) -> None:
    _make_eager(parts)
    _dynamo(job)


def _torchscript(job: Job, parts: Sequence[SwitchesAttention]) -> None:
    _make_eager(parts)
    axes = {spec.name: {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in job.specs}
    module: nn.Module = job.named
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        # The exporter's own trace forgets which scripted parts there are; this one keeps their control flow.
        module = torch.jit.trace(module, job.traced.inputs, check_trace=False, strict=False)  # type: ignore[no-untyped-call]
    torch.onnx.export(
        module,
        job.traced.inputs,
        str(job.path),
        dynamo=False,
        verbose=False,
        opset_version=TORCHSCRIPT_OPSET,
        input_names=[spec.name for spec in job.specs],
        output_names=list(job.outputs),
        dynamic_axes={name: dims for name, dims in axes.items() if dims},
    )


def _make_eager(parts: Sequence[SwitchesAttention]) -> None:
    """Attention as plain matrix products. It is not switched back: this module is exported, never compared with."""
    for part in parts:
        part.set_attn_implementation("eager")


def _outermost(module: nn.Module) -> Iterator[SwitchesAttention]:
    """The models of transformers in ``module``, not their parts: a part may have no say in its attention."""
    if isinstance(module, SwitchesAttention):
        yield module
    else:
        for child in module.children():
            yield from _outermost(child)


def _check(job: Job, rung: str) -> None:
    """Inputs and outputs are the user's, each symbol of the specs is one in the result, and it computes the same."""
    model = ir.load(job.path)
    found = {value.name: value for value in model.graph.inputs}
    for spec in job.specs:
        value = found.get(spec.name)
        if value is None or value.shape is None:
            raise RetargetError(f"input '{spec.name}' has no effect on any output")
        for axis, (wanted, dim) in enumerate(zip(spec.shape, value.shape, strict=True)):
            if isinstance(wanted, str) and isinstance(dim, int):
                raise RetargetError(f"input '{spec.name}', dimension {axis}: {wanted} became static {dim}")
    names = tuple(value.name for value in model.graph.outputs)
    if names != job.outputs:
        raise RetargetError(f"outputs came out as {names}, not {job.outputs}")
    _settle_shapes(model, job, rung)
    if job.other is not None:
        _check_run(job, job.other)


def _check_run(job: Job, run: Run) -> None:
    """Sizes that Python computed while tracing are in the graph without a word: run it at sizes of another trace."""
    sizes = ", ".join(f"{symbol}={size}" for symbol, size in run.sizes.items())
    feeds = {spec.name: to_array(value) for spec, value in zip(job.specs, run.inputs, strict=True)}
    with Session(graph.load(job.path)) as session:
        try:
            actual = session.run(feeds)
        except ToolchainFailure as error:
            raise RetargetError(f"fails at {sizes}, a size became static: {error.message}") from error
    for name, wanted in zip(job.outputs, run.outputs, strict=True):
        got = actual[name]
        if got.shape != wanted.shape:
            raise RetargetError(f"output '{name}' is {got.shape} at {sizes} where PyTorch gives {wanted.shape}")
        if wanted.dtype.kind == "f" and snr_db(wanted, got) < _SAME_DB:
            raise RetargetError(f"output '{name}' is wrong at {sizes}: a size became static")


def _settle_shapes(model: ir.Model, job: Job, rung: str) -> None:
    """Correct the shapes that the exporter declares, in ``job.path``, by those that two runs had.

    PyTorch's own shape function of LSTM makes the sequence static, and the TorchScript exporter invents a symbol for
    each dimension: there the shapes of values inside the graph are dropped, to be inferred again.
    """
    if rung == "torchscript" or any(node.op_type in _RECURRENT for node in graph.all_nodes(model)):
        for node in graph.all_nodes(model):
            for value in node.outputs:
                value.shape = None
    for index, value in enumerate(model.graph.outputs):
        seen = job.traced.outputs[index].shape
        other = seen if job.other is None else job.other.outputs[index].shape
        declared = [None] * len(seen) if value.shape is None or len(value.shape) != len(seen) else list(value.shape)
        value.shape = ir.Shape(
            _dimension(job, dim, size, again) for dim, size, again in zip(declared, seen, other, strict=True)
        )
    ir.save(model, job.path)


def _dimension(job: Job, declared: int | ir.SymbolicDim | None, size: int, again: int) -> int | str | None:
    """A dimension of an output, which had ``size`` in one run and ``again`` in the other."""
    expression = declared.value if isinstance(declared, ir.SymbolicDim) else None
    if expression and set(_WORD.findall(expression)) <= set(job.traced.sizes):
        return expression
    if size == again:
        return size
    assert job.other is not None
    fitting = [symbol for symbol, one in job.traced.sizes.items() if (one, job.other.sizes[symbol]) == (size, again)]
    return fitting[0] if len(fitting) == 1 else None


def _cause(error: BaseException) -> str:
    """The deepest cause, in one line: exporters wrap it in advice."""
    while error.__cause__ is not None and not isinstance(error, RetargetError):
        error = error.__cause__
    text = error.message if isinstance(error, RetargetError) else f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]

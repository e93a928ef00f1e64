"""The retry ladder: dynamo, dynamo with eager attention, the TorchScript exporter. Which rung held is reported.

Attention comes out as primitives (opset 21 has no Attention): targets build those, and calibration sees inside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import onnx_ir as ir
import torch
from torch import nn

from retarget import graph
from retarget.convert.pytorch.checkpoint import quiet
from retarget.convert.pytorch.named import Named, to_array
from retarget.errors import RetargetError, ToolchainFailure
from retarget.session import Session
from retarget.spec import TensorSpec

logger = logging.getLogger(__name__)

DYNAMO_OPSET = 21
TORCHSCRIPT_OPSET = 18

_NEAR = 1e-3
"""Relative difference of norms: what a dimension baked into the graph does to outputs is far larger."""


@runtime_checkable
class SwitchesAttention(Protocol):
    """What the models of transformers offer, in whatever module they sit."""

    def set_attn_implementation(self, attn_implementation: str) -> None: ...


@dataclass(frozen=True)
class Export:
    """What each rung gets. ``other`` is an example of other sizes, None when no dimension is symbolic."""

    named: Named
    specs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    example: tuple[torch.Tensor, ...]
    other: tuple[torch.Tensor, ...] | None
    path: Path


def climb(job: Export, rung: str, notes: list[str]) -> str:
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
    for name, attempt in rungs.items():
        for file in job.path.parent.iterdir():
            file.unlink()
        try:
            with quiet(), torch.no_grad():
                attempt()
            _check(job)
        except Exception as error:
            # Exporters fail in every way that Python knows; each failure is kept, and raised when none is left.
            logger.info("%s failed", name, exc_info=True)
            failures.append(f"{name}: {_cause(error)}")
            if len(failures) == len(rungs):
                raise ToolchainFailure(
                    "\n  ".join(["PyTorch cannot export the model:", *failures]),
                    "if a dimension became static, give its size in --input, or change the model so that it stays free",
                ) from error
            continue
        notes += [f"the exporter {failure}" for failure in failures]
        return name
    raise AssertionError("a ladder has rungs")


def _dynamo(job: Export) -> None:
    shapes = tuple({axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in job.specs)
    torch.onnx.export(
        job.named,
        job.example,
        job.path,
        dynamo=True,
        verbose=False,
        opset_version=DYNAMO_OPSET,
        input_names=[spec.name for spec in job.specs],
        output_names=list(job.outputs),
        dynamic_shapes={"tensors": shapes},
        external_data=True,
    )


def _dynamo_eager(job: Export, parts: Sequence[SwitchesAttention]) -> None:
    _make_eager(parts)
    _dynamo(job)


def _torchscript(job: Export, parts: Sequence[SwitchesAttention]) -> None:
    _make_eager(parts)
    axes = {spec.name: {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in job.specs}
    torch.onnx.export(
        job.named,
        job.example,
        str(job.path),
        dynamo=False,
        verbose=False,
        opset_version=TORCHSCRIPT_OPSET,
        input_names=[spec.name for spec in job.specs],
        output_names=list(job.outputs),
        dynamic_axes={name: dims for name, dims in axes.items() if dims},
    )
    if job.other is not None:
        _check_other_sizes(job)


def _make_eager(parts: Sequence[SwitchesAttention]) -> None:
    """Attention as plain matrix products. It is not switched back: this module is only exported, never compared with."""
    for part in parts:
        part.set_attn_implementation("eager")


def _outermost(module: nn.Module) -> Iterator[SwitchesAttention]:
    """The models of transformers in ``module``, not their parts: a part may have no say in its attention."""
    if isinstance(module, SwitchesAttention):
        yield module
    else:
        for child in module.children():
            yield from _outermost(child)


def _check(job: Export) -> None:
    """Inputs and outputs are the user's, and each symbol of the specs is one in the result."""
    model = ir.load(job.path)
    found = {value.name: value for value in model.graph.inputs}
    for spec in job.specs:
        value = found.get(spec.name)
        if value is None:
            raise RetargetError(f"input '{spec.name}' has no effect on any output", "remove it from the inputs")
        assert value.shape is not None
        for axis, (wanted, dim) in enumerate(zip(spec.shape, value.shape, strict=True)):
            if isinstance(wanted, str) and isinstance(dim, int):
                raise RetargetError(
                    f"input '{spec.name}', dimension {axis}: {wanted} became static {dim}",
                    f"the model fixes it: write {dim} in place of {wanted}",
                )
    names = tuple(value.name for value in model.graph.outputs)
    if names != job.outputs:
        raise RetargetError(f"outputs came out as {names}, not {job.outputs}")


def _check_other_sizes(job: Export) -> None:
    """A trace bakes sizes that Python computed into the graph without a word: run it at other sizes."""
    assert job.other is not None
    try:
        expected = [to_array(tensor) for tensor in job.named(*job.other)]
    except Exception:
        logger.info("the model does not run at other sizes", exc_info=True)
        return
    with Session(graph.load(job.path)) as session:
        feeds = {spec.name: to_array(tensor) for spec, tensor in zip(job.specs, job.other, strict=True)}
        actual = session.run(feeds)
    for name, value in zip(job.outputs, expected, strict=True):
        got = actual[name]
        if got.shape != value.shape:
            raise RetargetError(
                f"output '{name}' has shape {got.shape} where PyTorch gives {value.shape}: sizes became static"
            )
        norm = float(abs(value.astype("float64")).sum())
        error = float(abs(got.astype("float64") - value.astype("float64")).sum())
        if not error <= _NEAR * norm + 1e-6:
            raise RetargetError(f"output '{name}' is wrong at other sizes than those of the trace: sizes became static")


def _cause(error: BaseException) -> str:
    """The deepest cause, in one line: exporters wrap it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

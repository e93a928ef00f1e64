"""The retry ladder: dynamo, dynamo with eager attention, the TorchScript exporter. Which rung held is reported.

Attention comes out as primitives (opset 21 has no Attention): targets build those, and calibration sees inside.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import onnx
import torch
from torch import nn

from retarget.convert.pytorch.checkpoint import quiet
from retarget.convert.pytorch.named import THREADS, Named, to_array
from retarget.errors import RetargetError, ToolchainFailure, Unsupported
from retarget.ort_words import ort_words
from retarget.repeats import check_repeats
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Array

logger = logging.getLogger(__name__)

DYNAMO_OPSET = 21
TORCHSCRIPT_OPSET = 18
DYNAMO_SINCE = (2, 7)
"""What came before had another exporter of that name, or one that takes dimensions by name for static ones."""

_SAME = 1e-2
"""Loose: parity is judged later, and what a size baked into the graph does to outputs is far larger."""

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
    """What each rung gets: ``traced`` is exported, ``other`` checks it, None where there are no other sizes; ``again``
    runs what is traced once more."""

    named: Named
    specs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    traced: Run
    other: Run | None
    path: Path
    again: Callable[[], tuple[Array, ...]]


def climb(job: Job, rung: str, notes: list[str]) -> str:
    """Write ``job.path`` by the first rung that works and return its name; the failures before it become notes.

    Raises ``ToolchainFailure`` with the last line of each when all fail, ``RetargetError`` where that is as the module
    says no thing twice.
    """
    scripted = any(isinstance(part, torch.jit.ScriptModule) for part in job.named.modules())
    eager = list(_outermost(job.named))
    rungs: dict[str, Callable[[], None]] = {}
    lack = _no_dynamo()
    if lack is not None and rung == "dynamo" and not scripted:
        raise Unsupported(f"the rung 'dynamo' cannot be used: {lack}", "leave `rung` out of the model's options")
    if lack is not None and rung == "auto" and not scripted:
        notes.append(f"the dynamo exporter was left out: {lack}")
    if rung != "torchscript" and not scripted and lack is None:
        rungs["dynamo"] = lambda: _dynamo(job)
        if eager:
            rungs["dynamo, eager attention"] = lambda: _dynamo_eager(job, eager)
    if rung != "dynamo" or scripted:
        rungs["torchscript"] = lambda: _torchscript(job, eager)

    failures = []
    before = set(job.path.parent.iterdir())
    again: tuple[Array, ...] | None = None
    for name, attempt in rungs.items():
        if eager and name != "dynamo" and again is None:
            # Later it is another module: eager attention makes something else of rows with nothing to attend to.
            again = job.again()
        try:
            with quiet() as warned, torch.no_grad():
                attempt()
            _check(job, name, notes)
        except Exception as error:
            # Exporters fail in every way that Python knows; each failure is kept, and raised when none is left.
            logger.info("%s failed", name, exc_info=True)
            failures.append(f"{name}: {_cause(error)}")
            for file in set(job.path.parent.iterdir()) - before:
                file.unlink()
            if len(failures) == len(rungs):
                second = job.again() if again is None else again
                check_repeats(*(dict(zip(job.traced.names, each)) for each in (job.traced.outputs, second)))
                raise ToolchainFailure(
                    "\n  ".join(["PyTorch cannot export the model:", *failures]),
                    "where a dimension became static, write its size in the input's shape, or change the model",
                ) from error
            continue
        notes += [f"the exporter {failure}" for failure in failures]
        notes += _fixed_by_tracing(warned)
        return name
    raise AssertionError("a ladder has rungs")


def _no_dynamo() -> str | None:
    """Why there is no dynamo exporter here; None if there is one."""
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < DYNAMO_SINCE:
        return f"PyTorch {torch.__version__} is older than {'.'.join(map(str, DYNAMO_SINCE))}"
    return None if importlib.util.find_spec("onnxscript") else "onnxscript is not installed"


def _torchscript_opset() -> int:
    """The newest that is used and that this version of PyTorch writes."""
    known = getattr(torch.onnx, "_constants", None)
    newest = getattr(known, "ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET", getattr(known, "ONNX_MAX_OPSET", 13))
    return min(TORCHSCRIPT_OPSET, newest)


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
        # By place, not by name: 2.6 takes the keys for those of `input_names`.
        dynamic_shapes=(shapes,),
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
    # An older PyTorch has no other exporter, and no word for it.
    several = "dynamo" in inspect.signature(torch.onnx.export).parameters
    write = functools.partial(torch.onnx.export, dynamo=False) if several else torch.onnx.export
    with _unfused(job.named):
        write(
            module,
            job.traced.inputs,
            str(job.path),
            verbose=False,
            opset_version=_torchscript_opset(),
            input_names=[spec.name for spec in job.specs],
            output_names=list(job.outputs),
            dynamic_axes={name: dims for name, dims in axes.items() if dims},
        )


@contextlib.contextmanager
def _unfused(module: nn.Module) -> Iterator[None]:
    """Without the one operator that PyTorch makes of a layer of attention, which no exporter knows.

    It is not taken where gradients are wanted: all versions of PyTorch have that way around it.
    """
    layers = [
        part for part in module.modules() if isinstance(part, (nn.MultiheadAttention, nn.TransformerEncoderLayer))
    ]
    parameters = [parameter for layer in layers for parameter in layer.parameters() if parameter.is_floating_point()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.set_grad_enabled(bool(parameters)):
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


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


def _check(job: Job, rung: str, notes: list[str]) -> None:
    """Inputs and outputs are the user's, each symbol of the specs is one in the result, and it computes the same."""
    # Without the weights, which may be many: nothing here looks at them.
    model = onnx.load(str(job.path), load_external_data=False)
    found = {value.name: value for value in model.graph.input}
    for spec in job.specs:
        value = found.get(spec.name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            raise RetargetError(f"input '{spec.name}' has no effect on any output")
        for axis, (wanted, dim) in enumerate(zip(spec.shape, value.type.tensor_type.shape.dim)):
            if isinstance(wanted, str) and dim.HasField("dim_value"):
                raise RetargetError(f"input '{spec.name}', dimension {axis}: {wanted} became static {dim.dim_value}")
    names = tuple(value.name for value in model.graph.output)
    if names != job.outputs:
        raise RetargetError(f"outputs came out as {names}, not {job.outputs}")
    _settle_shapes(model, job, rung)
    if job.other is not None:
        _check_run(job, job.other, notes)


def _check_run(job: Job, run: Run, notes: list[str]) -> None:
    """Sizes that Python computed while tracing are in the graph without a word: run it at sizes of another trace."""
    sizes = ", ".join(f"{symbol}={size}" for symbol, size in run.sizes.items())
    feeds = _feeds(job, run)
    try:
        import onnxruntime
    except ImportError:
        notes.append(f"the export was not run at {sizes}: onnxruntime is not installed beside PyTorch")
        return
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = THREADS
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(job.path), options, providers=["CPUExecutionProvider"])
        outputs = session.run(list(job.outputs), feeds)
    except Exception as error:
        # ONNX Runtime's exceptions share no base of their own.
        raise RetargetError(f"fails at {sizes}, a size became static: {ort_words(error)}") from error
    for place, (name, wanted, got) in enumerate(zip(job.outputs, run.outputs, outputs)):
        if got.shape != wanted.shape:
            raise RetargetError(f"output '{name}' is {got.shape} at {sizes} where PyTorch gives {wanted.shape}")
        if wanted.dtype.kind == "f" and not _same(wanted, got):
            known = session.run([name], _feeds(job, job.traced))[0]
            static = known.shape == job.traced.outputs[place].shape and _same(job.traced.outputs[place], known)
            why = "a size became static" if static else "as at those of the trace, so no size is the cause"
            raise RetargetError(f"output '{name}' is wrong at {sizes}: {why}")


def _feeds(job: Job, run: Run) -> dict[str, Array]:
    return {spec.name: to_array(value) for spec, value in zip(job.specs, run.inputs)}


def _same(wanted: Array, got: Array) -> bool:
    """Whether two outputs are the same but for rounding; they are infinite or no numbers in the same places."""
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(got)):
        return False
    expected = wanted[finite].astype(np.float64)
    return bool(np.linalg.norm(got[finite].astype(np.float64) - expected) <= _SAME * np.linalg.norm(expected))


def _settle_shapes(model: onnx.ModelProto, job: Job, rung: str) -> None:
    """Correct the shapes that the exporter declares, in ``job.path``, by those that two runs had.

    PyTorch's own shape function of LSTM makes the sequence static, and the TorchScript exporter invents a symbol for
    each dimension: there the shapes of values inside the graph are dropped, to be inferred again.
    """
    graphs = list(_graphs(model.graph))
    if rung == "torchscript" or any(node.op_type in _RECURRENT for graph in graphs for node in graph.node):
        for graph in graphs:
            # Weights are listed too, and they have the shapes that they have.
            weights = {tensor.name for tensor in graph.initializer}
            for value in (*graph.value_info, *(graph.output if graph is not graphs[0] else ())):
                if value.name not in weights:
                    value.type.tensor_type.ClearField("shape")
    for index, value in enumerate(model.graph.output):
        seen = job.traced.outputs[index].shape
        other = seen if job.other is None else job.other.outputs[index].shape
        shape = value.type.tensor_type.shape
        declared = [dim.dim_param for dim in shape.dim] if len(shape.dim) == len(seen) else [""] * len(seen)
        del shape.dim[:]
        # Of a scalar too: no dimensions are a shape, and not an unknown one.
        shape.SetInParent()
        for each in zip(declared, seen, other):
            dim, wanted = shape.dim.add(), _dimension(job, *each)
            if isinstance(wanted, int):
                dim.dim_value = wanted
            elif wanted is not None:
                dim.dim_param = wanted
    job.path.write_bytes(model.SerializeToString())


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """``graph`` and those of its nodes, such as the branches of an If."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _dimension(job: Job, declared: str, size: int, again: int) -> int | str | None:
    """A dimension of an output, which had ``size`` in one run and ``again`` in the other."""
    if declared and set(_WORD.findall(declared)) <= set(job.traced.sizes):
        return declared
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

"""Write ``model.onnx`` and read back what is in it and what ONNX Runtime makes of it on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from retarget import graph
from retarget.errors import ToolchainFailure, unsupported
from retarget.facts import EmitFacts, IoEntry, Precision
from retarget.protocols import EmitJob
from retarget.session import Session
from retarget.spec import TensorSpec
from retarget.targets import legal, machine, work
from retarget.targets.onnxruntime.executed import Executed, executed, rounds_activations

FILE = "model.onnx"


def check(model: ir.Model, job: EmitJob) -> list[legal.Refusal]:
    """Every node without a CPU kernel for its types. No table: no operator is known that ONNX Runtime runs wrongly."""
    del job
    return legal.tried(model, _trial)


def emit(model: ir.Model, job: EmitJob, out: Path) -> EmitFacts:
    """``out/model.onnx``, with ``model.onnx.data`` beside it when the weights are large."""
    path = out / FILE
    graph.save(_deployable(model), path)
    _load(path, model, job)
    written = graph.load(path)
    sizes = {symbol: extent.opt for symbol, extent in job.shapes.items()}
    done = executed(path, sizes)
    held, computed = _weights(written), _activations(written, sizes)
    share = None if isinstance(done, str) else work.low_precision_share(done.work, job.precision)
    return EmitFacts(
        target="onnxruntime",
        variant_precision=job.precision,
        inputs=_entries(job.inputs, written.graph.inputs),
        outputs=_entries(job.outputs, written.graph.outputs),
        precision=Precision(
            weights=held,
            activations=computed,
            io=work.joined(graph.dtype_name(value.dtype) for value in (*written.graph.inputs, *written.graph.outputs)),
            low_precision_share=share,
        ),
        notes=tuple(_notes(written, done, held, integer=job.precision == "int8" or computed in work.INT8)),
    )


def _load(path: Path, model: ir.Model, job: EmitJob) -> None:
    """Open the artifact as it is written, then as applications do: a crash or refusal belongs here, to the artifact."""
    for optimize in (False, True):
        try:
            Session(path, optimize=optimize).close()
        except ToolchainFailure as error:
            if not optimize and (refusals := check(model, job)):
                raise unsupported("onnxruntime", refusals) from error
            raise ToolchainFailure(
                f"ONNX Runtime, its optimizations {'on' if optimize else 'off'}, cannot load {FILE}: {_reason(error)}",
                "no node is refused on its own, so shapes or types contradict each other: if a dimension is fixed that"
                " the source leaves open, open it again; or keep the graph as the source has it (`optimize: none`)",
            ) from error


def _notes(written: ir.Model, done: Executed | str, held: str, *, integer: bool) -> Iterator[str]:
    """What ONNX Runtime makes of weights that are ``held`` in low precision; ``integer``: of activations too."""
    if isinstance(done, str):
        yield f"What ONNX Runtime executes could not be read back: {done}."
        return
    half = work.low_precision_share(done.work, "fp16")
    if held == "float16" and half is not None and half < 1:
        yield (
            f"On this machine ONNX Runtime's CPU kernels compute {1 - half:.0%} of the multiply-accumulates"
            " in float32, between casts that it inserts: float16 saves storage here, not time."
        )
    if integer:
        if work.low_precision_share(done.work, "int8") != 1:
            yield f"ONNX Runtime's multiply-accumulates on this machine, by type: {work.shares(done.work)}."
        if machine.saturates():
            yield (
                "The CPU of this machine adds products of 8-bit integers in 16 bits, and large ones saturate: results"
                " differ from those of CPUs with VNNI, unless the session sets `session.x64quantprecision` to 1."
            )
    if expanded := sum(done.operators.get(node.name or "") == node.op_type for node in _of_weights(written)):
        yield (
            f"ONNX Runtime expands {expanded} of the weights to float32 at each run: their low precision saves"
            " storage, and costs time."
        )
    if "MatMulNBits" in done.operators.values() and rounds_activations():
        yield (
            "By default ONNX Runtime rounds activations to int8, in blocks, where it multiplies them by weights in"
            " blocks; parity is held without that."
        )


def _of_weights(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes that dequantize a constant of two axes or more."""
    for node in graph.all_nodes(model):
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        tensor = None if codes is None else codes.const_value
        if tensor is not None and len(tensor.shape) > 1:
            yield node


def _trial(alone: ir.Model) -> str | None:
    try:
        Session(alone).close()
    except ToolchainFailure as error:
        return _reason(error)
    return None


def _reason(error: ToolchainFailure) -> str:
    """What ONNX Runtime says, without what it says it of."""
    return error.message.partition(": ")[2] or error.message


def _deployable(model: ir.Model) -> ir.Model:
    """``model`` without what exporters note on each node and value: their own stack traces and paths."""
    clean = model.clone()
    for inner in clean.graphs():
        inner.metadata_props.clear()
        inner.doc_string = None
        for value in (*inner.inputs, *inner.initializers.values()):
            value.metadata_props.clear()
        for node in inner:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    return clean


def _entries(specs: tuple[TensorSpec, ...], values: Sequence[ir.Value]) -> tuple[IoEntry, ...]:
    return tuple(
        IoEntry(
            name=spec.name,
            artifact_name=value.name or "",
            spec=spec,
            artifact_dtype=graph.dtype_name(value.dtype),
        )
        for spec, value in zip(specs, values, strict=True)
    )


def _weights(model: ir.Model) -> str:
    """The type of most elements of the initializers with two axes or more."""
    held: Counter[str] = Counter()
    for value in graph.initializers(model):
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) > 1:
            held[graph.dtype_name(tensor.dtype)] += tensor.size
    return work.most(held)


def _activations(model: ir.Model, sizes: Mapping[str, int]) -> str:
    """The type that the graph gives to most multiply-accumulates; of most float values where there are none."""
    work_by_dtype: Counter[str] = Counter()
    values_by_dtype: Counter[str] = Counter()
    for node in graph.all_nodes(model):
        work_by_dtype[graph.computed_dtype(node)] += graph.macs(node, sizes)
        values_by_dtype.update(
            graph.dtype_name(value.dtype)
            for value in node.outputs
            if value.dtype is not None and value.dtype.is_floating_point()
        )
    return work.most(work_by_dtype if work_by_dtype.total() else values_by_dtype)

"""Write ``model.onnx`` and read back what is in it and what ONNX Runtime makes of it on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from retarget import graph
from retarget.errors import ToolchainFailure, unsupported
from retarget.facts import EmitFacts, IoEntry, Precision
from retarget.protocols import EmitJob
from retarget.session import Session
from retarget.spec import TensorSpec
from retarget.targets import legal, work
from retarget.targets.onnxruntime.executed import executed

FILE = "model.onnx"


def check(model: ir.Model, job: EmitJob) -> list[legal.Refusal]:
    """Every node without a CPU kernel for its types. No table: no operator is known that ONNX Runtime runs wrongly."""
    del job
    return legal.tried(model, _trial)


def emit(model: ir.Model, job: EmitJob, out: Path) -> EmitFacts:
    """``out/model.onnx``, with ``model.onnx.data`` beside it when the weights are large."""
    path = out / FILE
    graph.save(_deployable(model), path)
    try:
        Session(path).close()
    except ToolchainFailure as error:
        if refusals := check(model, job):
            raise unsupported("onnxruntime", refusals) from error
        raise

    written = graph.load(path)
    sizes = {symbol: extent.opt for symbol, extent in job.shapes.items()}
    done = executed(path, sizes)
    notes: list[str] = []
    held = _weights(written)
    if isinstance(done, str):
        share = None
        notes.append(f"What ONNX Runtime executes could not be read back: {done}.")
    else:
        share = work.low_precision_share(done)
        if held == "float16" and share is not None and share < 1:
            notes.append(
                f"On this machine ONNX Runtime's CPU kernels compute {1 - share:.0%} of the multiply-accumulates"
                " in float32, between casts that it inserts: float16 saves storage here, not time."
            )
    return EmitFacts(
        target="onnxruntime",
        variant_precision=job.precision,
        inputs=_entries(job.inputs, written.graph.inputs),
        outputs=_entries(job.outputs, written.graph.outputs),
        precision=Precision(
            weights=held,
            activations=_activations(written, sizes),
            io=work.joined(graph.dtype_name(value.dtype) for value in (*written.graph.inputs, *written.graph.outputs)),
            low_precision_share=share,
        ),
        notes=tuple(notes),
    )


def _trial(alone: ir.Model) -> str | None:
    try:
        Session(alone).close()
    except ToolchainFailure as error:
        return error.message.partition(": ")[2] or error.message
    return None


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
    """The type that holds most bytes of the initializers with two axes or more."""
    held: Counter[str] = Counter()
    for value in graph.initializers(model):
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) > 1:
            held[graph.dtype_name(tensor.dtype)] += tensor.nbytes
    return work.most(held)


def _activations(model: ir.Model, sizes: Mapping[str, int]) -> str:
    """The type that the graph gives to most multiply-accumulates; of most float values where there are none."""
    work_by_dtype: Counter[str] = Counter()
    values_by_dtype: Counter[str] = Counter()
    for node in graph.all_nodes(model):
        dtype = graph.dtype_name(node.inputs[0].dtype) if node.inputs and node.inputs[0] is not None else "unknown"
        work_by_dtype[dtype] += graph.macs(node, sizes)
        values_by_dtype.update(
            graph.dtype_name(value.dtype)
            for value in node.outputs
            if value.dtype is not None and value.dtype.is_floating_point()
        )
    return work.most(work_by_dtype if work_by_dtype.total() else values_by_dtype)

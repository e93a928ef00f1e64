"""Write ``model.ncnn.param`` and ``model.ncnn.bin`` and, beside them, which blob is which value of the ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from retarget.errors import unsupported
from retarget.facts import EmitFacts, IoEntry, Precision
from retarget.protocols import EmitJob
from retarget.targets import legal, ncnn, tensor_map
from retarget.targets.ncnn import files
from retarget.targets.ncnn.lowering import Lowering, lowered
from retarget.targets.ncnn.open_sizes import opened
from retarget.targets.ncnn.ops import OPS
from retarget.targets.ncnn.program import Program, word

PARAM, BIN = "model.ncnn.param", "model.ncnn.bin"


def check(model: ir.Model, job: EmitJob) -> list[legal.Refusal]:
    """Every node that cannot be written, each with its reason."""
    return _lowered(model, job).refusals


def emit(model: ir.Model, job: EmitJob, out: Path) -> EmitFacts:
    """``out/model.ncnn.param``, ``out/model.ncnn.bin`` and ``out/tensors.json``."""
    assert isinstance(job.options, ncnn.Options)
    lowering = _lowered(model, job)
    if lowering.refusals:
        raise unsupported("ncnn", lowering.refusals)
    made = opened(lambda sizes: _program(model, job, sizes), job.shapes)
    names = {name: word(name) for name in (*made.program.inputs, *made.program.outputs)}
    program = made.program.finished(names)
    files.write(program.layers, out / PARAM, out / BIN, half=job.precision == "fp16")
    tensor_map.write(_tensors(program), out / tensor_map.FILE)
    sizes = {symbol: job.shapes[symbol].opt for symbol in made.fixed}
    return EmitFacts(
        target="ncnn",
        variant_precision=job.precision,
        inputs=tuple(
            IoEntry(name=spec.name, artifact_name=names[spec.name], spec=spec, artifact_dtype=spec.dtype)
            for spec in job.inputs
        ),
        outputs=tuple(
            IoEntry(name=spec.name, artifact_name=names[spec.name], spec=spec, artifact_dtype="float32")
            for spec in job.outputs
        ),
        precision=Precision(weights="float32", activations="float32", io="float32", low_precision_share=0.0),
        sizes=sizes,
        notes=tuple(
            f"{symbol} is {sizes[symbol]} in the files: {reason}"
            for symbol, reason in made.fixed.items()
            if job.shapes[symbol].min < job.shapes[symbol].max
        ),
    )


def _program(model: ir.Model, job: EmitJob, sizes: Mapping[str, int]) -> Program | str:
    """The model's program at ``sizes``, or why there is none."""
    lowering = lowered(model, job, sizes, OPS)
    if lowering.refusals:
        name, operator, reason = lowering.refusals[0]
        return f"{operator} '{name}': {reason}"
    return lowering.program


def _lowered(model: ir.Model, job: EmitJob) -> Lowering:
    return lowered(model, job, {symbol: extent.opt for symbol, extent in job.shapes.items()}, OPS)


def _tensors(program: Program) -> Iterator[Mapping[str, object]]:
    for layer in program.layers:
        for blob in layer.tops:
            yield {
                "name": blob.name,
                "value": blob.value,
                "dtype": {"float": "float32", "index": "int32", "codes": "int8"}[blob.kind],
                "shape": [blob.rows, *blob.dims],
                "layer": layer.name,
                "node": layer.origin or None,
            }

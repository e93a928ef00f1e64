"""Write ``model.mlpackage`` and, beside it, which of its values is which of the ONNX graph."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from retarget.errors import ToolchainFailure, unsupported
from retarget.facts import EmitFacts, IoEntry
from retarget.protocols import EmitJob
from retarget.spec import TensorSpec
from retarget.targets import legal
from retarget.targets.coreml import Options
from retarget.targets.coreml.border import input_types
from retarget.targets.coreml.compress import compression
from retarget.targets.coreml.executed import Executed, executed
from retarget.targets.coreml.library import Program, ct
from retarget.targets.coreml.lowering import Lowering
from retarget.targets.coreml.ops import OPS
from retarget.targets.coreml.package import settle

FILE = "model.mlpackage"
MAP = "tensors.json"

_NEWER = "`minimum_deployment_target` of the target names the oldest system"

PASSES = (
    "common::cast_optimization",
    "common::noop_elimination",
    "common::const_deduplication",
    "common::fuse_matmul_weight_bias",
    "common::fuse_linear_bias",
    "common::fuse_conv_bias",
    "common::fuse_transpose_matmul",
    "common::guard_negative_gather_indices",
    "common::dead_code_elimination",
)
"""Of coremltools: those that only leave out or join what is exact, and what no pass on the ONNX graph can do as it has
no such operator. None that changes what is rounded: quantized models mean what their scales say."""


def check(model: ir.Model, job: EmitJob) -> list[legal.Refusal]:
    """Every node that cannot be written, each with its reason."""
    return _lowered(model, job)[0].refusals


def emit(model: ir.Model, job: EmitJob, out: Path) -> EmitFacts:
    """``out/model.mlpackage`` and ``out/tensors.json``."""
    lowering, program, closed = _lowered(model, job)
    if lowering.refusals:
        raise unsupported("coreml", lowering.refusals, _NEWER)
    _convert(program, lowering, job, out / FILE)
    settle(out / FILE)
    done = executed(out / FILE)
    _write_map(done, lowering.names, out / MAP)
    return _facts(job, lowering, done, closed)


def _lowered(model: ir.Model, job: EmitJob) -> tuple[Lowering, Program, dict[str, str]]:
    """The program with as many open dimensions as can be; those that had to be fixed with the reason."""
    assert isinstance(job.options, Options)
    sizes = {symbol: extent.opt for symbol, extent in job.shapes.items() if extent.min == extent.max}
    closed: dict[str, str] = {}
    while True:
        lowering = Lowering(model, job, job.options.minimum_deployment_target, sizes, OPS)
        program = lowering.run()
        if not lowering.closed:
            return lowering, program, closed
        closed |= lowering.closed
        sizes |= {symbol: job.shapes[symbol].opt for symbol in lowering.closed}


def _convert(program: Program, lowering: Lowering, job: EmitJob, path: Path) -> None:
    passes = list(PASSES)
    made = compression(job, lowering.kept)
    if made is not None:
        passes.insert(0, made.name)  # in front of all that gives constants other names
    pipeline = ct.PassPipeline(pass_names=passes, pipeline_name="retarget")
    if made is not None:
        pipeline.set_options(made.name, {"config": made.config})
    with warnings.catch_warnings():
        # It leaves its temporary folder to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            ct.convert(
                program,
                source="milinternal",
                convert_to="mlprogram",
                inputs=input_types(job, lowering.inputs, lowering.sizes),
                minimum_deployment_target=getattr(ct.target, lowering.target),
                compute_precision=ct.precision.FLOAT32,  # what is float16 is so in the graph already
                pass_pipeline=pipeline,
                package_dir=str(path),
                skip_model_load=True,
            )
        except (AssertionError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            words = " ".join(str(error).split())
            raise ToolchainFailure(f"coremltools cannot write the program: {words}") from error


def _write_map(done: Executed, names: Mapping[str, str], path: Path) -> None:
    """Each value of the package that is one of the ONNX graph: its name there, type and shape, -1 where it is open."""
    rows = [
        {"name": name, "value": names[name], "dtype": value.dtype, "shape": list(value.shape)}
        for name, value in done.values.items()
        if name in names
    ]
    path.write_text(json.dumps(rows, indent=1) + "\n")


def _facts(job: EmitJob, lowering: Lowering, done: Executed, closed: Mapping[str, str]) -> EmitFacts:
    return EmitFacts(
        target="coreml",
        variant_precision=job.precision,
        inputs=tuple(_entry(spec, lowering.inputs[spec.name], done) for spec in job.inputs),
        outputs=tuple(_entry(spec, lowering.outputs[spec.name], done) for spec in job.outputs),
        precision=done.precision(job.precision),
        sizes={symbol: job.shapes[symbol].opt for symbol in closed},
        notes=tuple(_notes(job, closed)),
    )


def _notes(job: EmitJob, closed: Mapping[str, str]) -> Iterator[str]:
    for symbol, reason in closed.items():
        yield f"{symbol} is {job.shapes[symbol].opt} in the package: {reason}"


def _entry(spec: TensorSpec, name: str, done: Executed) -> IoEntry:
    return IoEntry(name=spec.name, artifact_name=name, spec=spec, artifact_dtype=done.values[name].dtype)

"""Write ``model.mlpackage`` and, beside it, which of its values is which of the ONNX graph."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.errors import ToolchainFailure, unsupported
from retarget.facts import EmitFacts, IoEntry, one_size
from retarget.protocols import EmitJob
from retarget.spec import TensorSpec
from retarget.targets import legal, tensor_map
from retarget.targets.coreml import compresses
from retarget.targets.coreml.border import (
    TO_CHANNELS_FIRST,
    Border,
    Names,
    border,
    classifier_config,
    describe,
    input_types,
    is_turned,
    one_at_a_time,
    options,
)
from retarget.targets.coreml.compress import SMALLEST, compression
from retarget.targets.coreml.executed import Executed, executed
from retarget.targets.coreml.library import Program, ct
from retarget.targets.coreml.lowering import Lowering
from retarget.targets.coreml.ops import OPS
from retarget.targets.coreml.package import settle

FILE = "model.mlpackage"
BORDER = "border"
"""Of the settings: a `Border`, as JSON."""

_NEWER = "`minimum_deployment_target` of the target names the oldest system"

PASSES = (
    "common::cast_optimization",
    "common::noop_elimination",
    "common::const_deduplication",
    "common::fuse_transpose_matmul",
    "common::remove_redundant_ops",
    "common::dead_code_elimination",
    "common::dedup_op_and_var_names",
)
"""Of coremltools: those that only leave out or join what is exact, and what no pass on the ONNX graph can do as it has
no such operator. None that changes what is rounded: quantized models mean what their scales say. None that looks for
biases: see ``ops.biases``."""


def check(model: ir.Model, job: EmitJob) -> list[legal.Refusal]:
    """Every node that cannot be written, each with its reason."""
    return _lowered(model, job)[0].refusals


def emit(model: ir.Model, job: EmitJob, out: Path) -> EmitFacts:
    """``out/model.mlpackage`` and ``out/tensors.json``."""
    lowering, program, closed = _lowered(model, job)
    if lowering.refusals:
        raise unsupported("coreml", lowering.refusals, _NEWER)
    names = Names(lowering.inputs, lowering.outputs)
    shown = border(job, names, lowering.sizes)
    _convert(program, lowering, job, shown, out / FILE)
    settle(out / FILE, lambda spec: describe(spec, job, shown, names))
    done = executed(out / FILE)
    tensor_map.write(_tensors(done, lowering, shown), out / tensor_map.FILE)
    return _facts(job, lowering, shown, done, closed)


def _lowered(model: ir.Model, job: EmitJob) -> tuple[Lowering, Program, dict[str, str]]:
    """The program with as many open dimensions as can be; those that had to be fixed with the reason."""
    closed = one_at_a_time(job)
    sizes = {symbol: extent.opt for symbol, extent in job.shapes.items() if extent.min == extent.max}
    closed = {symbol: reason for symbol, reason in closed.items() if symbol not in sizes}
    sizes |= dict.fromkeys(closed, 1)
    while True:
        lowering = Lowering(model, job, options(job).minimum_deployment_target, sizes, OPS)
        program = lowering.run()
        if not lowering.closed:
            return lowering, program, closed
        closed |= lowering.closed
        sizes |= {symbol: job.shapes[symbol].opt for symbol in lowering.closed}


def _convert(program: Program, lowering: Lowering, job: EmitJob, shown: Border, path: Path) -> None:
    passes = list(PASSES)
    made = compression(job, lowering.kept)
    if made is not None:
        passes.insert(0, made.name)  # in front of all that gives constants other names
    pipeline = ct.PassPipeline(pass_names=passes, pipeline_name="retarget")
    if made is not None:
        pipeline.set_options(made.name, {"config": made.config})
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        # It leaves its temporary folder to the garbage collector, and holds limits of int32 against those of float16.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            ct.convert(
                program,
                source="milinternal",
                convert_to="mlprogram",
                inputs=input_types(job, lowering.inputs, lowering.sizes),
                classifier_config=classifier_config(shown),
                minimum_deployment_target=getattr(ct.target, lowering.target),
                compute_precision=ct.precision.FLOAT32,  # what is float16 is so in the graph already
                pass_pipeline=pipeline,
                package_dir=str(path),
                skip_model_load=True,
            )
        except (AssertionError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            words = " ".join(str(error).split())
            raise ToolchainFailure(f"coremltools cannot write the program: {words}") from error


def _tensors(done: Executed, lowering: Lowering, shown: Border) -> Iterator[Mapping[str, object]]:
    """Inputs and what is computed, with -1 where a size is open; ``value`` and ``node`` are those of the ONNX graph."""
    made_by = {value.name: node.name for node in graph.all_nodes(lowering.model) for value in node.outputs}
    for name, held in done.values.items():
        # An image is pixels in the package, and not the value that it becomes.
        value = None if name in shown.images else lowering.names.get(name)
        entry = {"name": name, "value": value, "dtype": held.dtype, "shape": list(held.shape)}
        if held.operation:
            entry |= {"operation": held.operation, "node": made_by.get(value)}
        yield entry


def _facts(job: EmitJob, lowering: Lowering, shown: Border, done: Executed, closed: Mapping[str, str]) -> EmitFacts:
    return EmitFacts(
        target="coreml",
        variant_precision=job.precision,
        inputs=tuple(_input(spec, lowering.inputs[spec.name], job, done) for spec in job.inputs),
        outputs=tuple(_entry(spec, lowering.outputs[spec.name], done) for spec in job.outputs),
        precision=done.precision(job.precision),
        sizes={symbol: lowering.sizes[symbol] for symbol in closed},
        settings={BORDER: msgspec.json.encode(shown).decode()} if shown != Border() else {},
        notes=tuple(_notes(job, lowering, shown, done, closed)),
    )


def _notes(job: EmitJob, lowering: Lowering, shown: Border, done: Executed, closed: Mapping[str, str]) -> Iterator[str]:
    stored = done.stored(2)
    if job.precision in compresses and (wide := stored["float32"] + stored["float16"]):
        yield (
            f"{wide / stored.total():.0%} of the weights stay float: those of constants below {SMALLEST} elements, that"
            " are kept, or that no block divides"
        )
    for symbol, reason in closed.items():
        yield one_size(symbol, lowering.sizes[symbol], "package", reason)
    for name, image in shown.images.items():
        what = "float16" if image.color_layout == "GRAYSCALE_FLOAT16" else "whole numbers, 0 to 255"
        yield f"'{name}' is an image of the kind {image.color_layout} in the package: on a device its pixels are {what}"
    if shown.classes is not None:
        yield f"'{shown.classes.output}' is a dictionary of labels in the package, called '{shown.classes.scores}'"


def _input(spec: TensorSpec, name: str, job: EmitJob, done: Executed) -> IoEntry:
    if spec.name in options(job).images:
        # The runner makes pixels of the values, so it gets these as they are.
        turned = TO_CHANNELS_FIRST if is_turned(spec.name, job) else None
        return IoEntry(name=spec.name, artifact_name=name, spec=spec, artifact_dtype="float32", permutation=turned)
    return _entry(spec, name, done)


def _entry(spec: TensorSpec, name: str, done: Executed) -> IoEntry:
    return IoEntry(name=spec.name, artifact_name=name, spec=spec, artifact_dtype=done.values[name].dtype)

"""Write ``model.ncnn.param`` and ``model.ncnn.bin`` and, beside them, which blob is which value of the ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from retarget.distributions import version_of
from retarget.errors import RetargetError, unsupported
from retarget.facts import EmitFacts, IoEntry, one_size
from retarget.protocols import EmitJob
from retarget.spec import TensorSpec
from retarget.targets import legal, ncnn, tensor_map
from retarget.targets.ncnn import cpp, files, sidecar
from retarget.targets.ncnn.executed import Executed, executed
from retarget.targets.ncnn.fusing import fused
from retarget.targets.ncnn.lowering import Arrays, Lowering, lowered
from retarget.targets.ncnn.open_sizes import Opened, opened
from retarget.targets.ncnn.ops import OPS
from retarget.targets.ncnn.program import Program, own_name, word
from retarget.targets.ncnn.requantizing import requantized, turned_late
from retarget.targets.ncnn.slicing import sliced

PARAM, BIN = "model.ncnn.param", "model.ncnn.bin"

WORTH_SAYING = 0.01
"""Share of the weights."""


def check(model: ir.Model, job: EmitJob) -> list[legal.Refusal]:
    """Every node that cannot be written, each with its reason."""
    return lowered(model, job, _opt(job), OPS).refusals


def emit(model: ir.Model, job: EmitJob, out: Path) -> EmitFacts:
    """``out/model.ncnn.param``, ``out/model.ncnn.bin``, ``out/model.ncnn.json`` and ``out/tensors.json``; where the
    options ask for it, ``out/model.ncnn.cpp``."""
    assert isinstance(job.options, ncnn.Options)
    arrays = Arrays()
    first = lowered(model, job, _opt(job), OPS, arrays)
    if first.refusals:
        raise unsupported("ncnn", first.refusals)

    unused = [first]

    def program_at(sizes: Mapping[str, int]) -> Program | str:
        is_first = unused and sizes == first.sizes
        return _program(unused.pop() if is_first else lowered(model, job, sizes, OPS, arrays))

    made = opened(program_at, job.shapes, _own_sizes(model))
    names = _words([*made.program.inputs, *made.program.outputs])
    program = sliced(made.program).finished(names)
    says = _sidecar(program, job, made)
    files.write(program.layers, out / PARAM, out / BIN, half=job.precision == "fp16")
    sidecar.write(says, out / sidecar.FILE)
    tensor_map.write(_tensors(program), out / tensor_map.FILE)
    if job.options.emit_cpp:
        (out / cpp.FILE).write_text(cpp.source(says, _opt(job)), encoding="utf-8")
    return _facts(job, says, _read_back(out), made)


def _own_sizes(model: ir.Model) -> set[int]:
    """The sizes of axes that are no symbols."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return {dim for value in values if value.shape is not None for dim in value.shape.dims if isinstance(dim, int)}


def _program(lowering: Lowering) -> Program | str:
    """The program, or why there is none."""
    if lowering.refusals:
        name, operator, reason = lowering.refusals[0]
        return f"{operator} '{name}': {reason}"
    return requantized(fused(turned_late(lowering.program)))


def _opt(job: EmitJob) -> dict[str, int]:
    return {symbol: extent.opt for symbol, extent in job.shapes.items()}


def _words(names: Sequence[str]) -> dict[str, str]:
    """What each of ``names`` is called in the file, where a name is one word."""
    kept = {name for name in names if word(name) == name}
    taken = set(kept)
    return {name: name if name in kept else own_name(name, taken) for name in dict.fromkeys(names)}


def _sidecar(program: Program, job: EmitJob, made: Opened) -> sidecar.Sidecar:
    fixed = {symbol: job.shapes[symbol].opt for symbol in made.fixed}
    return sidecar.Sidecar(
        param=PARAM,
        bin=BIN,
        precision=job.precision,
        checked_with=f"ncnn {version_of('ncnn')}",
        sizes=dict(sorted(fixed.items())),
        ranges={name: (extent.min, extent.max) for name, extent in sorted(job.shapes.items()) if name not in fixed},
        multiples={name: step for name, (step, _) in sorted(made.multiples.items())},
        inputs=tuple(sidecar.value(spec, program.inputs[spec.name], made.sizes, fixed) for spec in job.inputs),
        outputs=tuple(
            sidecar.value(spec, [program.outputs[spec.name]], _named(spec, program.shapes[spec.name]), fixed)
            for spec in job.outputs
        ),
    )


def _named(spec: TensorSpec, shape: Sequence[int]) -> dict[str, int]:
    """The symbols of ``spec`` at ``shape``: an output may have some that no input has."""
    return {dim: size for dim, size in zip(spec.shape, shape, strict=True) if isinstance(dim, str)}


def _read_back(out: Path) -> Executed:
    try:
        return executed(files.read(out / PARAM), out / BIN, sidecar.read(out / sidecar.FILE), out / tensor_map.FILE)
    except RetargetError as error:  # of the user's doing is nothing in them
        raise AssertionError(str(error)) from error


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


def _facts(job: EmitJob, says: sidecar.Sidecar, done: Executed, made: Opened) -> EmitFacts:
    assert isinstance(job.options, ncnn.Options)
    return EmitFacts(
        target="ncnn",
        variant_precision=job.precision,
        inputs=tuple(map(_entry, job.inputs, says.inputs)),
        outputs=tuple(map(_entry, job.outputs, says.outputs)),
        precision=done.precision(job.precision),
        sizes=says.sizes,
        settings={ncnn.VULKAN: "on"} if job.options.vulkan else {},
        notes=tuple(_notes(job, says, done, made)),
    )


def _entry(spec: TensorSpec, value: sidecar.Value) -> IoEntry:
    """Of an input with two blobs that of floats, from which the runner makes the other."""
    first = min(value.blobs, key=lambda held: held.dtype)
    return IoEntry(name=spec.name, artifact_name=first.name, spec=spec, artifact_dtype=first.dtype)


def _notes(job: EmitJob, says: sidecar.Sidecar, done: Executed, made: Opened) -> Iterator[str]:
    for symbol, reason in made.fixed.items():
        if job.shapes[symbol].min < job.shapes[symbol].max:
            yield one_size(symbol, says.sizes[symbol], "files", reason)
    for symbol, (step, reason) in made.multiples.items():
        yield f"{symbol} is a multiple of {step} in the files: {reason}"
    for value in (*says.inputs, *says.outputs):
        if value.blobs[0].name != value.name:
            yield f"'{value.name}' is called '{value.blobs[0].name}' in the files"
        if len(value.blobs) > 1:
            named = " and ".join(f"'{held.name}' ({held.dtype})" for held in value.blobs)
            yield f"'{value.name}' is used as numbers and to look something up, and must be fed twice: {named}"
    if job.precision == "fp16":
        yield (
            "weights are stored as float16; whether they are computed with in 16 bits hangs on ncnn's options and the"
            " device: parity is held in float32"
        )
        wide, whole = done.weights["float32"] + done.constants["float32"], done.weights + done.constants
        if wide and wide / whole.total() >= WORTH_SAYING:
            yield f"{wide / whole.total():.0%} of the weights stay float32: constants, and what float16 does not reach"

"""What is held of each package of a whole model: its outputs, that coremltools reads it, that it is always the same."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from zoo_prepared import Prepared

from retarget import catalog, graph
from retarget.calibration.observers import observe
from retarget.compare import snr_db
from retarget.passes.fp16 import CastFloat16
from retarget.protocols import EmitJob
from retarget.targets.coreml import DeploymentTarget, Options
from retarget.targets.coreml.emit import FILE
from retarget.targets.coreml.executed import executed

if TYPE_CHECKING:
    import onnx_ir as ir

BOUNDS = {"fp32": 80, "fp16": 40}
"""Decibels against PyTorch, as interpreted."""


def as_built(made: Prepared, precision: str) -> ir.Model:
    """The model as a build gives it to the emitter for ``precision``."""
    if precision == "fp32":
        return made.model
    return CastFloat16(observe(made.model, made.feeds), io="float32")(made.model.clone()).model


def job_of(made: Prepared, precision: str, target: DeploymentTarget) -> EmitJob:
    options = Options(minimum_deployment_target=target)
    return EmitJob(precision, made.family.specs, made.outputs, made.family.shapes, options)


def hold(made: Prepared, model: ir.Model, job: EmitJob, out: Path, least: float | None = None) -> None:
    """Write the package twice in ``out``, read it in every way, and interpret it at each of the prepared sizes.

    ``least``: what of float16 is less than usual.
    """
    bound = least if least is not None and job.precision == "fp16" else BOUNDS[job.precision]
    first, again = out / "first", out / "again"
    for folder in (first, again):
        folder.mkdir(parents=True)
        facts = catalog.target_emit("coreml").emit(model, job, folder)
    assert digests(first) == digests(again)
    assert not facts.sizes, facts.notes
    assert facts.precision.weights == ("float32" if _is_full(model, job) else "float16")
    read_by_coremltools(first / FILE)
    with catalog.target_run("coreml").open(first, facts, parity=True, threads=1) as runner:
        for sizes, feeds, expected in zip(made.sizes, made.feeds, made.expected, strict=True):
            got = runner.run(feeds)
            for output, right in expected.items():
                assert right.std() > 0.05
                decibels = snr_db(right, got[output])
                assert decibels >= bound, f"{output} at {dict(sizes)}: {decibels:.1f} dB"


def _is_full(model: ir.Model, job: EmitJob) -> bool:
    """Whether weights are float32: Core ML's ``lstm`` takes others from iOS17 on."""
    assert isinstance(job.options, Options)
    old = job.options.minimum_deployment_target in ("iOS15", "iOS16")
    return job.precision == "fp32" or (old and any(node.op_type == "LSTM" for node in model.graph))


def read_by_coremltools(path: Path) -> None:
    """As a model, and back into the program that it makes packages of."""
    from retarget.targets.coreml.library import ct

    load = import_module("coremltools.converters.mil.frontend.milproto.load").load
    opened = ct.models.MLModel(str(path), skip_model_load=True)
    spec = opened.get_spec()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, where it infers values
        (function,) = load(spec, spec.specificationVersion, opened.weights_dir).functions.values()
    done = executed(path)
    assert function.opset_version == spec.specificationVersion
    assert list(function.inputs) == list(done.function.inputs)
    assert [each.name for each in function.outputs] == list(done.function.block.outputs)
    for each in function.outputs:
        # What it infers, from the operations alone, for what the file declares: symbols for what is open.
        found = [size if isinstance(size, int) else -1 for size in each.shape]
        assert found == list(done.values[each.name].shape)


def hold_elsewhere(model: ir.Model, job: EmitJob, out: Path) -> None:
    """Write the package in this process and in another one, which orders its sets otherwise."""
    source = out / "source" / "model.onnx"
    source.parent.mkdir(parents=True)
    graph.save(model, source)
    here, there = out / "here", out / "there"
    _written(source, job, here)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        other.submit(_written, source, job, there).result()
    assert digests(here) == digests(there)


def digests(folder: Path) -> Mapping[str, str]:
    """Of every file below ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert files
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def _written(source: Path, job: EmitJob, out: Path) -> None:
    out.mkdir()
    catalog.target_emit("coreml").emit(graph.load(source), job, out)

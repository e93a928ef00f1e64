"""The heavy half of the PyTorch frontend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from retarget.convert.pytorch import checkpoint
from retarget.convert.pytorch.checkpoint import Loaded, quiet
from retarget.convert.pytorch.ladder import Job, Run, climb
from retarget.convert.pytorch.named import (
    Named,
    TorchRunner,
    choose_outputs,
    forward_parameters,
    said,
    to_array,
    to_tensor,
    wrap,
)
from retarget.errors import RetargetError
from retarget.masks import padded
from retarget.source import Exported, Source
from retarget.spec import DEFAULT_RANGE, DimRange, TensorSpec, symbols

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from retarget.protocols import Array, Feeds

MODEL = "model.onnx"
MOST_HALVED = 32
"""As often as networks halve an image, together."""


def export(source: Source, example: Feeds | None, out: Path) -> Exported:
    """Write ``out/model.onnx`` by the first rung of the ladder that works. Raises ``RetargetError``."""
    loaded = checkpoint.load(source)
    source = replace(source, inputs=source.inputs or _specs(loaded, source.path))
    notes = list(loaded.notes)
    named = wrap(loaded.module, loaded.program, source.inputs, notes)
    choices = [_trace_sizes(source.inputs, source.shapes, even=even) for even in (False, True)]
    sizes, others = [first for first, _ in choices], [second for _, second in choices]
    traced = _first_run(named, source, sizes, example)
    if traced.sizes != sizes[0]:
        notes.append(f"it was traced at {_words(traced.sizes)}: the model fails at {_words(sizes[0])}")
    outputs = choose_outputs(traced.names, source)
    other = None
    if others[0] != sizes[0]:
        try:
            other = _first_run(named, source, others, example)
        except RetargetError as error:
            notes.append(f"the export was not checked at other sizes than {_words(traced.sizes)}: {error.message}")
    job = Job(
        named,
        source.inputs,
        outputs,
        traced,
        other,
        out / MODEL,
        lambda: _run(named, source, traced.sizes, example).outputs,
    )
    rung = climb(job, str(source.options["rung"]), notes)
    return Exported(rung=rung, inputs=source.inputs, outputs=outputs, notes=tuple(notes))


def reference(source: Source, exported: Exported) -> TorchRunner:
    """The module itself."""
    loaded = checkpoint.load(source)
    return TorchRunner(wrap(loaded.module, loaded.program, exported.inputs, []), exported.outputs)


# ---- inputs


def _specs(loaded: Loaded, path: Path) -> tuple[TensorSpec, ...]:
    """The inputs where the user names none: those of a program of ``torch.export``, no other form knows its own."""
    if loaded.program is None:
        parameters = ", ".join(forward_parameters(loaded.module)) or "any tensors"
        raise RetargetError(
            f"{path}: a {loaded.form} does not say its inputs (its forward takes {parameters})",
            "give each with --input, as in --input image=float32[N,3,224,224]",
        )
    return tuple(_program_specs(loaded.program, path))


def _program_specs(program: ExportedProgram, path: Path) -> list[TensorSpec]:
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    names: dict[str, str] = {}
    specs: list[TensorSpec] = []
    for name in program.graph_signature.user_inputs:
        value = values.get(name) if isinstance(name, str) else None
        if not isinstance(value, torch.Tensor):
            raise RetargetError(
                f"{path}: its input '{name}' is not a tensor", "export the program with tensors as its only inputs"
            )
        # A symbolic size is a `torch.SymInt`, called `s77` or the like.
        sizes: tuple[object, ...] = tuple(value.shape)
        dims = tuple(
            size if isinstance(size, int) else names.setdefault(str(size), f"dim{len(names)}") for size in sizes
        )
        specs.append(TensorSpec(str(name), str(value.dtype).rpartition(".")[2], dims))
    return specs


def _trace_sizes(
    specs: Sequence[TensorSpec], shapes: Mapping[str, DimRange], *, even: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes to trace with, and other ones to check with, inside the ranges where those leave a choice.

    1 is avoided, as exporters treat it as broadcasting, and so are equal sizes of two symbols. ``even``: they can be
    halved as often as `opt`, for models that take no other.
    """
    sizes: dict[str, int] = {}
    others: dict[str, int] = {}
    for symbol in symbols(specs):
        extent = shapes.get(symbol, DEFAULT_RANGE)
        step = math.gcd(extent.opt, MOST_HALVED) if even else 1
        far = 16 if step == 1 else 2 * step
        near = [
            size
            for size in range(max(extent.min, extent.opt - far), min(extent.max, extent.opt + far) + 1)
            if size % step == 0
        ]
        taken = (*sizes.values(), *others.values())
        first, second = (*sorted(near, key=lambda size: (size == 1, size in taken, abs(size - extent.opt))), None)[:2]
        sizes[symbol] = first or extent.opt
        others[symbol] = second or sizes[symbol]
    return sizes, others


def _first_run(named: Named, source: Source, choices: Sequence[Mapping[str, int]], example: Feeds | None) -> Run:
    """Run the module at the first of ``choices`` that it takes. Raises the error of the first where it takes none."""
    problem: RetargetError | None = None
    for number, sizes in enumerate(choices):
        if sizes in choices[:number]:
            continue
        try:
            return _run(named, source, sizes, example)
        except RetargetError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _run(named: Named, source: Source, sizes: Mapping[str, int], example: Feeds | None) -> Run:
    """Run the module at ``sizes``. Raises ``RetargetError`` when it fails."""
    rng = np.random.default_rng(0)
    narrow = [spec.name for spec in source.inputs if spec.dtype in ("float16", "bfloat16")]
    tensors = tuple(_tensor(spec, spec.at(sizes), example, rng) for spec in source.inputs)
    try:
        with quiet(), torch.no_grad():
            found = list(named.leaves(tensors))
    except RetargetError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{spec.name}={list(t.shape)}" for spec, t in zip(source.inputs, tensors))
        raise RetargetError(
            f"{source.path}: the model fails on inputs of shape {shapes}: {said(error)}",
            "check names, types and shapes of the inputs, and the ranges of their dimensions"
            if not narrow
            else f"weights in half precision are widened to float32: declare {', '.join(narrow)} as float32 too",
        ) from error
    return Run(dict(sizes), tensors, tuple(name for name, _ in found), tuple(to_array(value) for _, value in found))


def _tensor(spec: TensorSpec, shape: tuple[int, ...], sample: Feeds | None, rng: np.random.Generator) -> torch.Tensor:
    """The sample, tiled or cropped to ``shape``; without one floats are normal, a mask is ones, then zeros, and other
    integers are 0 or 1: valid indices."""
    given = None if sample is None else sample.get(spec.name)
    if given is not None and given.ndim == len(shape) and given.size:
        for axis, size in enumerate(shape):
            given = np.take(given, np.arange(size) % given.shape[axis], axis)
        return to_tensor(given)
    values: Array
    if "float" in spec.dtype:
        values = rng.standard_normal(shape)
    elif "mask" in spec.name.lower():
        values = padded(rng, shape)
    else:
        values = rng.integers(0, 2, shape)
    # numpy itself knows no bfloat16.
    narrow = spec.dtype == "bfloat16"
    tensor = to_tensor(values.astype("float32" if narrow else spec.dtype))
    return tensor.to(torch.bfloat16) if narrow else tensor


def _words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{symbol}={size}" for symbol, size in sizes.items())

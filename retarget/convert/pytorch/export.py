"""The heavy half of the PyTorch frontend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from retarget import graph
from retarget.convert.normal_form import normal_form
from retarget.convert.pytorch import Options, checkpoint
from retarget.convert.pytorch.checkpoint import Loaded, quiet
from retarget.convert.pytorch.ladder import Export, climb
from retarget.convert.pytorch.named import Named, TorchRunner, choose_outputs, forward_parameters, to_tensor, wrap
from retarget.errors import RetargetError
from retarget.protocols import Exported, Source
from retarget.spec import DEFAULT_RANGE, DimRange, TensorSpec, symbols

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

MODEL = "model.onnx"


def export(source: Source, example: Feeds | None, out: Path) -> Exported:
    """Write ``out/model.onnx`` by the first rung of the ladder that works. Raises ``RetargetError``."""
    options = msgspec.convert(dict(source.options), Options)
    loaded = checkpoint.load(source)
    source = replace(source, inputs=source.inputs or _specs(loaded, source.path))
    notes = list(loaded.notes)
    named = wrap(loaded.module, source.inputs, notes)
    sizes, others = _trace_sizes(source.inputs, source.shapes)
    tensors = _example(source.inputs, sizes, example)
    outputs = _outputs(named, tensors, source)
    other = _example(source.inputs, others, example) if others != sizes else None
    rung = climb(Export(named, source.inputs, outputs, tensors, other, out / MODEL), options.rung, notes)
    return Exported(rung=rung, inputs=source.inputs, outputs=outputs, notes=tuple(notes))


def load(out: Path, source: Source) -> ir.Model:
    """The exported model in the normal form."""
    return normal_form(graph.load(out / MODEL), str(source.path))


def reference(source: Source, exported: Exported) -> TorchRunner:
    """The module itself."""
    loaded = checkpoint.load(source)
    return TorchRunner(wrap(loaded.module, exported.inputs, []), exported.outputs)


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
        dims = tuple(
            dim if isinstance(dim, int) else names.setdefault(str(dim), f"dim{len(names)}") for dim in value.shape
        )
        specs.append(TensorSpec(str(name), str(value.dtype).removeprefix("torch."), dims))
    return specs


def _trace_sizes(specs: Sequence[TensorSpec], shapes: Mapping[str, DimRange]) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes to trace with, and other ones to check with, inside the ranges where those leave a choice.

    1 is avoided, as exporters treat it as broadcasting, and so are equal sizes of two symbols.
    """
    sizes: dict[str, int] = {}
    others: dict[str, int] = {}
    for symbol in symbols(specs):
        extent = shapes.get(symbol, DEFAULT_RANGE)
        choices = [size for size in range(extent.min, min(extent.max, extent.min + 64) + 1) if size > 1]
        choices.sort(key=lambda size: (size in sizes.values(), abs(size - extent.opt)))
        sizes[symbol] = choices[0] if choices else extent.opt
        others[symbol] = next((size for size in (extent.max, extent.min) if size != sizes[symbol]), sizes[symbol])
    return sizes, others


def _example(specs: Sequence[TensorSpec], sizes: Mapping[str, int], sample: Feeds | None) -> tuple[torch.Tensor, ...]:
    """The sample, tiled or cropped to ``sizes``; without one floats are normal and integers 0 or 1: valid indices."""
    rng = np.random.default_rng(0)
    return tuple(to_tensor(_array(spec, spec.at(sizes), sample, rng)) for spec in specs)


def _array(spec: TensorSpec, shape: tuple[int, ...], sample: Feeds | None, rng: np.random.Generator) -> Array:
    given = None if sample is None else sample.get(spec.name)
    if given is not None and given.ndim == len(shape) and given.size:
        for axis, size in enumerate(shape):
            given = np.take(given, np.arange(size) % given.shape[axis], axis)
        return given
    dtype = graph.data_type(spec.dtype).numpy()
    values: Array = rng.standard_normal(shape) if "float" in spec.dtype else rng.integers(0, 2, shape)
    return values.astype(dtype)


def _outputs(named: Named, tensors: tuple[torch.Tensor, ...], source: Source) -> tuple[str, ...]:
    """Run the module once, to learn what it returns."""
    shapes = ", ".join(f"{spec.name}={list(t.shape)}" for spec, t in zip(source.inputs, tensors, strict=True))
    try:
        with quiet():
            found = named.output_names(tensors)
    except RetargetError:
        raise
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RetargetError(
            f"{source.path}: the model fails on inputs of shape {shapes}: {line}",
            "check names, types and shapes of the inputs, and the ranges of their dimensions",
        ) from error
    return choose_outputs(found, source)

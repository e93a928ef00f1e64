"""ONNX models: heavy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from retarget import graph
from retarget.convert.onnx import named, read
from retarget.errors import RetargetError
from retarget.inspection.result import Inspection, most_first
from retarget.source import Source
from retarget.spec import TensorSpec, symbols

SIZE = 1
"""The size at which symbolic dimensions are counted."""


def inspect(path: Path) -> Inspection:
    """Everything that the graph says. Raises ``RetargetError`` for a damaged file."""
    model, notes = read.read(path)
    notes += named.drop_constants(model, Source(path, (), {}))
    external = {tensor.location for tensor in _tensors(model) if isinstance(tensor, ir.ExternalTensor)}
    size = path.stat().st_size + sum((path.parent / name).stat().st_size for name in external)
    try:
        named.name_dimensions(model, str(path))
    except RetargetError as error:
        inputs: tuple[TensorSpec, ...] = ()
        notes.append(error.message.removeprefix(f"{path}: "))
    else:
        inputs = tuple(graph.value_spec(value) for value in model.graph.inputs)
    outputs = tuple(graph.value_spec(value) for value in model.graph.outputs if value.shape is not None)
    shapeless = [value.name for value in model.graph.outputs if value.shape is None]
    notes += [f"output '{name}' has no shape" for name in shapeless]
    notes += read.describe_nodes(model)
    ops = Counter(_operator(node) for node in graph.all_nodes(model) if node.op_type != "Constant")
    weights: Counter[str] = Counter()
    parameters = 0
    for tensor in {id(tensor): tensor for tensor in _tensors(model)}.values():
        weights[graph.dtype_name(tensor.dtype)] += tensor.nbytes
        parameters += tensor.size
    compute: Counter[str] = Counter()
    uncounted = 0
    for node in graph.all_nodes(_at(model, SIZE)):
        done = graph.macs(node, {})
        compute[graph.computed_dtype(node)] += done
        uncounted += done == 0 and node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")
    if uncounted:
        notes.append(f"{uncounted} convolutions and products are not counted: their shapes are not known")
    return Inspection(
        path=str(path),
        what="ONNX model",
        version=f"opset {model.opset_imports.get('', '?')}, IR {model.ir_version}"
        + (f", made by {model.producer_name} {model.producer_version or ''}".rstrip() if model.producer_name else ""),
        bytes=size,
        inputs=inputs,
        outputs=outputs,
        nodes=graph.node_count(model),
        ops=most_first(ops),
        parameters=parameters,
        weights=most_first(weights),
        macs=compute.total() or None,
        macs_at=dict.fromkeys(symbols(inputs), SIZE) if compute.total() else {},
        compute=most_first(compute),
        notes=tuple(notes),
    )


def _tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    return [value.const_value for value in graph.initializers(model) if value.const_value is not None]


def _at(model: ir.Model, size: int) -> ir.Model:
    """``model`` with every symbolic dimension of its inputs at ``size``, so that shapes inside it follow."""
    fixed = model.clone()
    for value in fixed.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else size for dim in value.shape])
    return ShapeInferencePass()(fixed).model


def _operator(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"

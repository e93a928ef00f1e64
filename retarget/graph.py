"""The few onnx_ir helpers that steps, passes and targets share."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from retarget.errors import DAMAGED, RetargetError
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OPSET = 23
"""The one opset of the default domain: the normal form (`docs/concepts/normal-form.md`)."""

INLINE_LIMIT = 64 << 20
"""A model whose initializers are larger keeps them in ``model.onnx.data``, to be memory-mapped."""


def load(path: Path) -> ir.Model:
    """The model in the ``.onnx`` file ``path``, its external data memory-mapped. Raises ``RetargetError``."""
    try:
        return ir.load(path)
    except FileNotFoundError as error:
        raise RetargetError(f"{path}: no such file") from error
    except Exception as error:
        # Protobuf's and onnx_ir's own exceptions have no common base.
        raise RetargetError(
            f"{path}: not a readable ONNX model ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            DAMAGED,
        ) from error


def save(model: ir.Model, path: Path) -> None:
    """Write ``path``; initializers beyond ``INLINE_LIMIT`` in total go to ``<path>.data``. ``model`` is unchanged."""
    if initializer_bytes(model) > INLINE_LIMIT:
        ir.save(model, path, external_data=path.name + ".data")
    else:
        # Tensors of another folder's data file would otherwise be written as references to it.
        inlined = model.clone()
        ir.external_data.load_to_model(inlined)
        ir.save(inlined, path)


def clone(model: ir.Model) -> ir.Model:
    """A model of its own but for the tensors: `ir.Model.clone` shares the objects of types and shapes as well."""
    own = model.clone()
    for inner in own.graphs():
        values = [*inner.inputs, *inner.initializers.values(), *(out for node in inner for out in node.outputs)]
        for value in values:
            value.type = copy.copy(value.type)
            value.shape = None if value.shape is None else value.shape.copy()
    return own


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node, those of subgraphs included."""
    return iter(ir.traversal.RecursiveGraphIterator(model.graph))


def node_count(model: ir.Model) -> int:
    """How many nodes there are, subgraphs included, Constants not."""
    return sum(node.op_type != "Constant" for node in all_nodes(model))


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """Every initializer, those of subgraphs included."""
    for graph in model.graphs():
        yield from graph.initializers.values()


def initializer_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, each counted once."""
    seen: dict[int, int] = {}
    for value in initializers(model):
        if value.const_value is not None:
            seen[id(value.const_value)] = value.const_value.nbytes
    return sum(seen.values())


def dtype_name(dtype: ir.DataType | None) -> str:
    """The name that specs use (``float32``), ``unknown`` where there is none."""
    if dtype is None:
        return "unknown"
    return _NAMES.get(dtype, dtype.name.lower())


def data_type(name: str) -> ir.DataType:
    """The ONNX type of a spec's dtype name."""
    return _TYPES[name]


def value_spec(value: ir.Value) -> TensorSpec:
    """Name, dtype and shape of a graph input or output; an unnamed dimension is called ``<name>_dim<axis>``."""
    name = value.name or ""
    if value.shape is None:
        raise RetargetError(f"'{name}' has no shape", "give it with --input NAME=DTYPE[SHAPE]")
    dims = (
        dim if isinstance(dim, int) else (dim.value or f"{name}_dim{axis}") for axis, dim in enumerate(value.shape.dims)
    )
    return TensorSpec(name, dtype_name(value.dtype), tuple(dims))


def numel(value: ir.Value | None, sizes: Mapping[str, int]) -> int | None:
    """How many elements ``value`` has with symbolic dimensions at ``sizes``; None if that is unknown."""
    shape = static_shape(value, sizes)
    return None if shape is None else math.prod(shape)


def static_shape(value: ir.Value | None, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape of ``value`` with symbolic dimensions at ``sizes``; None if that is unknown."""
    if value is None or value.shape is None:
        return None
    dims = []
    for dim in value.shape.dims:
        size = dim if isinstance(dim, int) else sizes.get(dim.value or "")
        if size is None:
            return None
        dims.append(size)
    return tuple(dims)


def macs(node: ir.Node, sizes: Mapping[str, int]) -> int:
    """Multiply-accumulates of a Conv, ConvTranspose, MatMul, Gemm, Attention-free node; 0 for all others.

    Symbolic dimensions are taken at ``sizes``; a node whose shapes are unknown counts 0.
    """
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    match node.op_type:
        case "Conv":
            kernel, out = static_shape(weight, sizes), numel(node.outputs[0], sizes)
            return math.prod(kernel[1:]) * out if kernel and out else 0
        case "ConvTranspose":
            kernel, inner = static_shape(weight, sizes), numel(node.inputs[0], sizes)
            return math.prod(kernel[1:]) * inner if kernel and inner else 0
        case "MatMul" | "Gemm":
            left, out = static_shape(node.inputs[0], sizes), numel(node.outputs[0], sizes)
            transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", False)
            return left[0 if transposed else -1] * out if left and out else 0
        case _:
            return 0


def computed_dtype(node: ir.Node) -> str:
    """The type of the first operand of ``node``: of dequantized codes theirs, not that of what they stand for."""
    value = node.inputs[0] if node.inputs else None
    if value is None:
        return "unknown"
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear" and producer.inputs[0] is not None:
        return dtype_name(producer.inputs[0].dtype)
    return dtype_name(value.dtype)


_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
_TYPES = {_NAMES.get(dtype, dtype.name.lower()): dtype for dtype in ir.DataType}

"""Read an ONNX file and refuse what is damaged, unsafe or unsupported, before any of it is used.

Parsers and checkers of ONNX trust the sizes that tensors declare; here each is held against the bytes that exist.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from retarget import graph
from retarget.dependencies import depends_on
from retarget.errors import DAMAGED, RetargetError, Unsupported

_PROTOBUF_LIMIT = (1 << 31) - 1
_STANDARD = frozenset({"", "ai.onnx"})

_FIELDS = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
    ir.DataType.STRING: "string_data",
    **dict.fromkeys(
        (
            ir.DataType.BOOL,
            ir.DataType.INT8,
            ir.DataType.UINT8,
            ir.DataType.INT16,
            ir.DataType.UINT16,
            ir.DataType.INT32,
            ir.DataType.FLOAT16,
            ir.DataType.BFLOAT16,
        ),
        "int32_data",
    ),
}
"""Where a tensor without raw data keeps one entry an element."""


def read(path: Path) -> tuple[ir.Model, list[str]]:
    """The model with its external data mapped, and notes on what was dropped. Raises ``RetargetError``."""
    proto = _parse(path)
    for tensor in _tensors(proto):
        _check_tensor(tensor, path)
    notes = _notes(proto)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RetargetError(f"{path}: not a valid ONNX model ({line})", DAMAGED) from error
    _open_negative_dimensions(model)
    ir.external_data.set_base_dir(model.graph, path.parent)
    _check_values(model, path)
    return model, notes


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise RetargetError(f"{path}: no such file")
    size = path.stat().st_size
    if size > _PROTOBUF_LIMIT:
        raise RetargetError(
            f"{path}: {size / 1e9:.1f} GB in one file, and protobuf ends at 2 GB",
            "save the model with its weights as external data",
        )
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:
        raise RetargetError(f"{path}: not a readable ONNX model ({error})", DAMAGED) from error
    if not proto.ir_version or not proto.HasField("graph"):
        raise RetargetError(f"{path}: not an ONNX model: it has no graph", DAMAGED)
    return proto


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            scope = graphs.pop()
            yield from scope.initializer
            nodes += scope.node
        else:
            for attribute in nodes.pop().attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs += attribute.graphs


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    place = f"{path}: tensor '{tensor.name}'"
    try:
        dtype = ir.DataType(tensor.data_type)
        bits = 0 if dtype == ir.DataType.STRING else dtype.bitwidth
    except (ValueError, TypeError, KeyError) as error:
        raise RetargetError(f"{place} has the unknown data type {tensor.data_type}", DAMAGED) from error
    if any(dim < 0 for dim in tensor.dims):
        raise RetargetError(f"{place} has the impossible shape {list(tensor.dims)}", DAMAGED)
    size = math.prod(tensor.dims)
    wanted = -(-size * bits // 8)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, wanted, place, path.parent)
    elif tensor.HasField("raw_data"):
        if len(tensor.raw_data) != wanted or not bits:
            raise RetargetError(f"{place} has {len(tensor.raw_data)} bytes, its shape needs {wanted}", DAMAGED)
    elif dtype in _FIELDS:
        entries = len(getattr(tensor, _FIELDS[dtype]))
        if entries != size:
            raise RetargetError(f"{place} has {entries} elements, its shape needs {size}", DAMAGED)


def _check_external(tensor: onnx.TensorProto, wanted: int, place: str, folder: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", wanted))
    except ValueError as error:
        raise RetargetError(f"{place} has an offset or length that is no number", DAMAGED) from error
    file = folder / location
    # `resolve` follows links: neither `..` nor a link may lead the reader out of the model's own folder.
    if not location or "\0" in location or not file.resolve().is_relative_to(folder.resolve()):
        raise RetargetError(
            f"{place} keeps its data at '{location}', outside the model's folder {folder}",
            "put the data file itself (no link) beside the model, where the file says that it is",
        )
    if not file.is_file():
        raise RetargetError(f"{place}: its data file {file} does not exist", "copy it to where the model expects it")
    depends_on(file)
    there = file.stat().st_size
    if length != wanted or offset < 0 or offset + length > there:
        raise RetargetError(
            f"{place} needs {wanted} bytes at {offset} of {file}, which has {there}",
            "the data file is cut short or belongs to another model: copy it again",
        )
    if file.stat().st_nlink > 1:
        raise RetargetError(
            f"{place}: its data file {file} has more than one hard link, which is not mapped for safety",
            f"copy the file: cp {file} {file}.copy && mv {file}.copy {file}",
        )


def _notes(proto: onnx.ModelProto) -> list[str]:
    notes = []
    if proto.training_info:
        notes.append("the training graphs of the file were dropped: only inference is converted")
    if proto.graph.sparse_initializer:
        names = ", ".join(item.values.name for item in proto.graph.sparse_initializer)
        raise Unsupported(f"sparse initializers are not supported: {names}", "save the model with dense weights")
    return notes


def _open_negative_dimensions(model: ir.Model) -> None:
    """Some exporters write -1 for a dimension that is not fixed; ONNX Runtime takes it so, shape inference does not."""
    for scope in model.graphs():
        for value in itertools.chain(scope.inputs, *(node.outputs for node in scope)):
            if value.shape is not None and any(isinstance(dim, int) and dim < 0 for dim in value.shape):
                value.shape = ir.Shape(None if isinstance(dim, int) and dim < 0 else dim for dim in value.shape)


def _check_values(model: ir.Model, path: Path) -> None:
    for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for value in values:
            if value.type is not None and not isinstance(value.type, ir.TensorType):
                raise Unsupported(
                    f"{path}: {kind} '{value.name}' is a {type(value.type).__name__.removesuffix('Type').lower()}, "
                    "only tensors can be converted",
                    "export the model with tensors at its border",
                )
            if value.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
                raise Unsupported(
                    f"{path}: {kind} '{value.name}' is of type {graph.dtype_name(value.dtype)}, which is not supported",
                    "do text processing outside the model",
                )


def describe_nodes(model: ir.Model) -> list[str]:
    """Notes on nodes that a user should know of: custom operators and training modes."""
    notes = []
    custom: dict[str, Counter[str]] = {}
    training = 0
    for node in graph.all_nodes(model):
        if node.domain not in _STANDARD and node.op_identifier() not in model.functions:
            custom.setdefault(node.domain, Counter())[node.op_type] += 1
        training += node.op_type == "BatchNormalization" and bool(node.attributes.get_int("training_mode", 0))
    for domain, ops in custom.items():
        listing = ", ".join(f"{count} {op}" for op, count in sorted(ops.items()))
        notes.append(f"operators of the domain {domain} are kept as they are: {listing}")
    if training:
        notes.append(f"{training} BatchNormalization nodes are in training mode: they normalize by each batch")
    return notes

"""A model in half precision as the same model in float32, so that a variant called fp32 is that.

The plan asks for precisions, of a float16 source too: what is cast to float16 later is chosen by its values then, and a
target that stores weights as float16 does so itself. The border stays the user's: inputs and outputs keep their types.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from retarget import graph

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision"})
"""Attributes of standard operators that hold a data type."""

_KNOWN = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains whose operators take float32 wherever they take float16."""


def half_type(model: ir.Model) -> ir.DataType | None:
    """The half-precision type that ``model`` computes in; None where it has such a type at its border at most.

    Types of values need not have been inferred: what is in half precision comes from an input, a weight or a Cast.
    """
    return next((dtype for node in _nodes(model) if node.op_type != "Cast" for dtype in _half_inputs(node)), None)


def unknown_domains(model: ir.Model) -> list[str]:
    """Domains of operators that may not take float32."""
    functions = {identifier[:2] for identifier in model.functions}
    foreign = (node for node in _nodes(model) if (node.domain, node.op_type) not in functions)
    return sorted({node.domain for node in foreign} - _KNOWN)


def widen(model: ir.Model) -> None:
    """Make everything within ``model`` float32 that is in half precision, in place.

    Given ``float16 x → Relu → float16 y``, the result is ``float16 x → Cast → Relu → Cast → float16 y``. ``model`` is
    in the normal form: its functions are inlined, its types inferred.
    """
    borders = [(index, value, value.dtype) for index, value in enumerate(model.graph.outputs) if value.dtype in HALF]
    for scope in model.graphs():
        for value in scope.initializers.values():
            if value.const_value is not None and value.const_value.dtype in HALF:
                value.const_value = _widened(value.const_value)
            _set_float(value)
        for value in scope.inputs if scope is not model.graph else ():
            _set_float(value)
    for node in graph.all_nodes(model):
        for output in node.outputs:
            _set_float(output)
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in HALF:
                node.attributes[name] = ir.AttrTensor(name, _widened(attribute.value))
            elif name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.value in HALF:
                node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
    for value in model.graph.inputs:
        if value.dtype in HALF:
            _cast_input(model.graph, value)
    for index, value, dtype in borders:
        if not value.is_graph_input():
            _cast_output(model.graph, index, value, dtype)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from graph.all_nodes(model)
    for function in model.functions.values():
        yield from ir.traversal.RecursiveGraphIterator(function)


def _half_inputs(node: ir.Node) -> Iterator[ir.DataType]:
    for value in node.inputs:
        if value is None:
            continue
        producer = value.producer()
        if producer is None:
            dtype = value.const_value.dtype if value.const_value is not None else value.dtype
        elif producer.op_type == "Constant" and "value" in producer.attributes:
            dtype = producer.attributes["value"].as_tensor().dtype
        elif producer.op_type == "Cast":
            dtype = ir.DataType(producer.attributes.get_int("to", ir.DataType.UNDEFINED))
        else:
            continue
        if dtype in HALF:
            yield dtype


def _set_float(value: ir.Value) -> None:
    if value.dtype in HALF:
        if isinstance(value.type, ir.TensorType):
            value.type = ir.TensorType(ir.DataType.FLOAT)
        else:
            value.dtype = ir.DataType.FLOAT


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """``tensor`` in float32, computed each time that it is asked for: all of them at once would be held in memory."""

    def compute() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    return ir.LazyTensor(compute, dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


def _cast_input(main: ir.Graph, value: ir.Value) -> None:
    users = [(use.node, use.idx) for use in value.uses()]
    if not users:
        return
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
    wide = cast.outputs[0]
    wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    for node, index in users:
        node.replace_input_with(index, wide)
    main.insert_before(main[0], cast)


def _cast_output(main: ir.Graph, index: int, value: ir.Value, dtype: ir.DataType | None) -> None:
    assert dtype is not None
    name = value.name
    value.name = f"{name}_float32"
    cast = ir.node("Cast", [value], {"to": dtype})
    narrow = cast.outputs[0]
    narrow.name, narrow.type, narrow.shape = name, ir.TensorType(dtype), value.shape
    main.append(cast)
    main.outputs[index] = narrow

"""ONNX operators that the recipe allows as custom operators, for a runtime that brings their kernels.

The operator has the name that it has in ONNX, operands and results in ONNX's order of axes, and the attributes that the
node gives as a map in a flexbuffer. Attributes at their defaults are left out, as in ONNX.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from flatbuffers import flexbuffers

from retarget import graph
from retarget.targets import legal
from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.layout import Layout
from retarget.targets.tflite.program import Operator
from retarget.targets.tflite.values import NARROW, TYPES, Refusal, Value

_ONE = (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING)
_NUMBERS = (ir.AttributeType.INTS, ir.AttributeType.FLOATS)


def custom(call: Call) -> list[Value | None]:
    """One operator for the node. Raises ``Refusal`` where a result's size or type, or an attribute, has no form."""
    if any(isinstance(operand, Value) and operand.is_counted for operand in call.operands):
        raise Refusal("how large its operand is depends on the data")
    options = attributes(call.node)
    results = [_result(call, value) for value in call.node.outputs]
    inputs = tuple(call.tensor(operand, layout=Layout.FIRST) for operand in call.operands)
    outputs = tuple(tensor for result in results for tensor in result.forms.values())
    name = legal.operator(call.node)
    operator = Operator("CUSTOM", inputs, outputs, None, call.node.name or "", custom=name, custom_options=options)
    call.lowering.program.operators.append(operator)
    return [*results]


def attributes(node: ir.Node) -> bytes:
    """The attributes of ``node`` as a map, sorted by name: numbers, texts, typed vectors of numbers, vectors of texts.

    Raises ``Refusal`` for tensors and graphs.
    """
    for name, attribute in node.attributes.items():
        if attribute.type not in (*_ONE, *_NUMBERS, ir.AttributeType.STRINGS):
            raise Refusal(f"{name} is a {attribute.type.name.lower()}, which a custom operator cannot have")
    builder = flexbuffers.Builder()
    with builder.Map():
        for name, attribute in sorted(node.attributes.items()):
            builder.Key(name)
            if attribute.type in _NUMBERS:
                builder.TypedVectorFromElements(list(attribute.value))
            else:
                builder.Add(attribute.value)
    return bytes(builder.Finish())


def _result(call: Call, value: ir.Value) -> Value:
    shape = graph.static_shape(value, call.lowering.sizes)
    if shape is None or value.dtype is None:
        raise Refusal(f"the model does not say the shape and type of its result '{value.name}'")
    own = graph.dtype_name(value.dtype)
    dtype = NARROW.get(own, own)
    if dtype not in TYPES:
        raise Refusal(f"its result '{value.name}' is {own}, which TFLite does not compute with")
    return call.lowering.new(shape, np.dtype(dtype), Layout.FIRST)


CUSTOM = Op(custom, dtypes=TYPES)

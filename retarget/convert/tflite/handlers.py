"""Operators of TFLite that tf2onnx 1.17 leaves out or has wrong.

Syntax and library of Python 3.8.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tf2onnx import utils
from tf2onnx.handler import tfl_op
from tf2onnx.tflite_handlers import tfl_math, tfl_nn


def register() -> None:
    """Let tf2onnx know them, in the place of its own."""
    tfl_op(["TFL_TRANSPOSE_CONV"], tf_op="Conv2DBackpropInput")(TransposeConv)
    tfl_op(["TFL_FULLY_CONNECTED"])(FullyConnected)
    tfl_op(["TFL_SOFTMAX"], tf_op="Softmax")(Softmax)
    tfl_op(["TFL_GELU"])(Gelu)
    tfl_op(["TFL_RELU_N1_TO_1"])(ReluN1To1)


class TransposeConv:
    """tf2onnx's own forgets the bias, the fourth input."""

    @classmethod
    def to_tf(cls, ctx: Any, node: Any, **kwargs: Any) -> None:
        bias = node.input[3] if len(node.input) > 3 else None
        ctx.replace_inputs(node, node.input[:3])
        tfl_nn.TflTransposeConv.to_tf(ctx, node, **kwargs)
        if bias is not None:
            # Right behind the convolution: before the activation, which stands behind it by now.
            added = ctx.insert_new_node_on_output("Add", node.output[0], inputs=[node.output[0], bias])
            added.skip_conversion = True


class FullyConnected:
    """Of int8 weights and floats: in float, as tf2onnx has convolutions.

    The interpreter rounds the floats row by row, tf2onnx's own all rows by one scale: rows would depend on each other.
    """

    @classmethod
    def to_tf(cls, ctx: Any, node: Any, **kwargs: Any) -> None:
        node.set_attr("asymmetric_quantize_inputs", 0)
        tfl_math.TflFullyConnectedOp.to_tf(ctx, node, **kwargs)


class Softmax:
    """beta scales what goes in; tf2onnx's own scales what comes out."""

    @classmethod
    def to_tf(cls, ctx: Any, node: Any, **kwargs: Any) -> None:  # noqa: ARG003 - what tf2onnx calls it with
        beta = node.get_attr_value("beta")
        if beta is not None and beta != 1:
            scaled = _made(ctx, "Mul", [node.input[0], _number(ctx, beta)])
            ctx.replace_inputs(node, [scaled])


class Gelu:
    """x · Φ(x), or its approximation by tanh."""

    @classmethod
    def version_1(cls, ctx: Any, node: Any, **kwargs: Any) -> None:  # noqa: ARG003 - what tf2onnx calls it with
        x = node.input[0]
        if node.get_attr_value("approximate"):
            cubed = _made(ctx, "Mul", [_made(ctx, "Mul", [x, x]), x])
            inner = _made(ctx, "Add", [x, _made(ctx, "Mul", [cubed, _number(ctx, 0.044715)])])
            inner = _made(ctx, "Tanh", [_made(ctx, "Mul", [inner, _number(ctx, math.sqrt(2 / math.pi))])])
        else:
            inner = _made(ctx, "Erf", [_made(ctx, "Div", [x, _number(ctx, math.sqrt(2))])])
        share = _made(ctx, "Mul", [_made(ctx, "Add", [inner, _number(ctx, 1.0)]), _number(ctx, 0.5)])
        _become(ctx, node, "Mul", [x, share])


class ReluN1To1:
    """Clipped to -1 and 1."""

    @classmethod
    def version_1(cls, ctx: Any, node: Any, **kwargs: Any) -> None:  # noqa: ARG003 - what tf2onnx calls it with
        _become(ctx, node, "Clip", [node.input[0], _number(ctx, -1.0), _number(ctx, 1.0)])


def _made(ctx: Any, op: str, inputs: list[str]) -> str:
    return str(ctx.make_node(op, inputs).output[0])


def _number(ctx: Any, number: float) -> str:
    return str(ctx.make_const(utils.make_name("number"), np.array(number, np.float32)).output[0])


def _become(ctx: Any, node: Any, op: str, inputs: list[str]) -> None:
    """Put ``op`` in the place of ``node``, under its name."""
    name, outputs = node.name, list(node.output)
    shapes, dtypes = [ctx.get_shape(each) for each in outputs], [ctx.get_dtype(each) for each in outputs]
    ctx.remove_node(name)
    ctx.make_node(op, inputs, name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)

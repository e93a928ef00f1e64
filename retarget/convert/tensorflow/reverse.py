"""ReverseV2 of TensorFlow as a Slice, which asks for no shape; tf2onnx makes a ReverseSequence of it for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tf2onnx.graph import Graph, Node

END = np.iinfo(np.int64).min
"""Before the first element, however long an axis is."""


def reverse(context: Graph, node: Node, name: str, arguments: Sequence[str]) -> None:  # noqa: ARG001 - tf2onnx's own call
    """Each of the axes from its last element to its first."""
    dtype, shape, outputs = context.get_dtype(node.output[0]), context.get_shape(node.output[0]), list(node.output)
    source, axes = node.input[0], np.atleast_1d(node.inputs[1].get_tensor_value(as_list=False)).astype(np.int64)
    context.remove_node(node.name)
    if not axes.size:
        context.make_node("Identity", [source], outputs=outputs, dtypes=[dtype], shapes=[shape], name=name)
        return
    back = np.full(axes.shape, -1, np.int64)
    given = {"starts": back, "ends": np.full(axes.shape, END), "axes": axes, "steps": back}
    constants = [context.make_const(f"{name}_{role}", value).output[0] for role, value in given.items()]
    context.make_node("Slice", [source, *constants], outputs=outputs, dtypes=[dtype], shapes=[shape], name=name)

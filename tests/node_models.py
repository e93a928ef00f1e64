"""Models of many nodes that have nothing to do with each other, and numbers to feed them.

To load a model costs more than to compute a node: many are held against ONNX Runtime at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import target_testing
from onnx import helper, numpy_helper

from retarget import graph

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

Attribute: TypeAlias = int | float | str | list[int] | list[float] | list[str]


@dataclass(frozen=True)
class Node:
    """One node, the arrays that it is fed, and which of these the model holds."""

    operator: str
    operands: Sequence[Array | None]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    constants: tuple[int, ...] = ()
    outputs: int = 1


def model(*nodes: Node) -> tuple[ir.Model, Feeds]:
    """A model of nodes that have nothing to do with each other, and what they are fed."""
    made = helper.make_graph([], "g", [], [])
    feeds: dict[str, Array] = {}
    for place, node in enumerate(nodes):
        names = ["" if each is None else f"x{place}_{index}" for index, each in enumerate(node.operands)]
        results = [f"y{place}_{index}" for index in range(node.outputs)]
        proto = helper.make_node(node.operator, names, results, name=f"node{place}")
        proto.attribute.extend(helper.make_attribute(name, value) for name, value in node.attributes.items())
        made.node.append(proto)
        made.output.extend(helper.make_empty_tensor_value_info(name) for name in results)
        for index, (name, operand) in enumerate(zip(names, node.operands, strict=True)):
            if operand is None:
                continue
            array = np.asarray(operand)
            if index in node.constants:
                made.initializer.append(numpy_helper.from_array(array, name))
            else:
                kind = helper.np_dtype_to_tensor_dtype(array.dtype)
                made.input.append(helper.make_tensor_value_info(name, kind, array.shape))
                feeds[name] = array
    opset = helper.make_opsetid("", graph.OPSET)
    proto_model = helper.make_model(made, opset_imports=[opset], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto_model, strict_mode=True)), feeds


def of_text(inputs: str, node: str, outputs: str = "y") -> ir.Model:
    """``node`` as the right side of an assignment in ONNX text, with constants written where operands stand.

    ``of_text("float[N,4] x", "Slice(x, [0], [2], [1])")``. The outputs have the type of the first input, unless
    one stands before the name.
    """
    before, node = constants(node)
    kind = re.split(r"\W", inputs)[0]
    named = [each.split() for each in outputs.split(",")]
    results = ", ".join(f"{each[0] if len(each) > 1 else kind}[] {each[-1]}" for each in named)
    names = ", ".join(each[-1] for each in named)
    return target_testing.model(f"g ({inputs}) => ({results}) {{ {before} [node] {names} = {node} }}")


def constants(node: str, name: str = "k") -> tuple[str, str]:
    """Assignments of the integer constants among the operands of ``node``, and the node with their names."""
    operator, _, operands = node.rpartition("(")
    found = re.findall(r"\[[^\]]*\]", operands)
    for index, numbers in enumerate(found):
        operands = operands.replace(numbers, f"{name}{index}", 1)
    before = " ".join(f"{name}{at} = Constant <value_ints = {numbers}> ()" for at, numbers in enumerate(found))
    return before, f"{operator}({operands}"


def side_by_side(inputs: str, *nodes: str, kind: str = "float") -> ir.Model:
    """``nodes`` as in `of_text`, all of the same inputs."""
    body, results = [], []
    for number, node in enumerate(nodes):
        before, call = constants(node, f"k{number}_")
        body.append(f"{before} [node{number}] y{number} = {call}")
        results.append(f"{kind}[] y{number}")
    return target_testing.model("\n".join([f"g ({inputs}) => ({', '.join(results)}) {{", *body, "}"]))


def floats(*shape: int, scale: float = 3.0, seed: int = 1) -> Array:
    array: Array = np.asarray(np.random.default_rng(seed).normal(0, scale, shape), np.float32)
    return array


def integers(*shape: int, low: int = -9, high: int = 9, dtype: str = "int32", seed: int = 1) -> Array:
    array: Array = np.random.default_rng(seed).integers(low, high, shape).astype(dtype)
    return array


def truths(*shape: int, seed: int = 1) -> Array:
    array: Array = np.random.default_rng(seed).random(shape) < 0.5
    return array

"""Many nodes in one model, apart from each other, against ONNX Runtime: in both layouts, by two kernel sets.

To load a model costs more than to compute a node: many are held against ONNX Runtime at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import target_testing as t
from onnx import helper, numpy_helper

from retarget import catalog, graph
from retarget.protocols import EmitJob
from retarget.spec import TensorSpec
from retarget.targets.tflite import Options, emit
from retarget.targets.tflite.layout import FIRST_AXES, Arranged, Layout, Way, Wish

if TYPE_CHECKING:
    from collections.abc import Callable

    from retarget.protocols import Array, Feeds

Attribute: TypeAlias = int | float | str | list[int]

LAYOUTS = ("first", "last")
KERNELS = ("xnnpack", "builtin")


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


def agrees(
    nodes: Sequence[Node],
    layout: str,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    expected: Mapping[str, Array] | None = None,
    kernels: Sequence[str] = KERNELS,
) -> None:
    """Assert that LiteRT has what ONNX Runtime has, or what is ``expected``, by each of ``kernels``.

    ``layout``: that of all values which the nodes can work on in it. ``atol`` is of the largest number.
    """
    made, feeds = model(*nodes)
    expected = t.oracle(made, feeds) if expected is None else expected
    if layout == "last":
        monkeypatch.setattr(emit, "arrange", channels_last)
    facts = emit.emit(made, job(made, expected), out)
    for name in kernels:
        chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": name})
        with catalog.target_run("tflite").open(out, chosen, parity=True, threads=1) as runner:
            actual = runner.run(feeds)
        for output, right in expected.items():
            case = f"{nodes[int(output[1:].partition('_')[0])]} by {name}"
            assert actual[output].dtype == right.dtype, case
            assert actual[output].shape == right.shape, case
            finite = np.abs(right[np.isfinite(right)]) if right.dtype.kind == "f" else np.zeros(0)
            tolerance = atol * float(finite.max(initial=0))
            left, wide = actual[output].astype(np.float64), right.astype(np.float64)
            np.testing.assert_allclose(left, wide, rtol=rtol, atol=tolerance, err_msg=case)


def job(model: ir.Model, outputs: Mapping[str, Array]) -> EmitJob:
    return EmitJob(
        precision="fp32",
        inputs=tuple(graph.value_spec(value) for value in model.graph.inputs),
        outputs=tuple(TensorSpec(name, array.dtype.name, array.shape) for name, array in outputs.items()),
        shapes={},
        options=Options(),
    )


def channels_last(
    graph: ir.Graph,
    wish: Callable[[ir.Node], Wish | None],
    sizes: Mapping[str, int],
    border: Mapping[str, Layout],
) -> dict[ir.Node, Arranged]:
    """Wherever a node can work on values with the channels last, it has to."""
    del sizes, border
    made: dict[ir.Node, Arranged] = {}
    for node in graph:
        wished = wish(node)
        way = Way.FIRST if wished is None else wished.way
        shape = node.outputs[0].shape
        if way is Way.EITHER and (shape is None or len(shape) < FIRST_AXES):
            way = Way.FIRST
        made[node] = Arranged(
            Layout.FIRST if way is Way.FIRST else Layout.LAST,
            Layout.LAST if way in (Way.LAST, Way.EITHER) else Layout.FIRST,
        )
    return made


def floats(*shape: int, scale: float = 3.0, seed: int = 1) -> Array:
    array: Array = np.asarray(np.random.default_rng(seed).normal(0, scale, shape), np.float32)
    return array


def integers(*shape: int, low: int = -9, high: int = 9, dtype: str = "int32", seed: int = 1) -> Array:
    array: Array = np.random.default_rng(seed).integers(low, high, shape).astype(dtype)
    return array


def truths(*shape: int, seed: int = 1) -> Array:
    array: Array = np.random.default_rng(seed).random(shape) < 0.5
    return array

"""What pass tests share: a model from ONNX text, a pass run on it, and the numbers before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from retarget.graph import all_nodes

if TYPE_CHECKING:
    from retarget.protocols import Array

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'


def parse(text: str, constants: Mapping[str, Array] | None = None) -> ir.Model:
    """The model of ONNX text without its header; ``constants`` become initializers. Checked, shapes inferred."""
    proto = onnx.parser.parse_model(HEADER + text)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()
    )
    onnx.checker.check_model(proto)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def ops(model: ir.Model) -> list[str]:
    """Operators in order, those of subgraphs included."""
    return [node.op_type for node in all_nodes(model)]


def outputs(model: ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
    """What ONNX Runtime computes with its own optimizations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    result: list[Array] = session.run(None, dict(feeds))
    return result


def feeds_for(model: ir.Model, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
    """Random feeds: normal floats, small integers, coins."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        assert value.name
        shape = [dim if isinstance(dim, int) else sizes[dim.value or ""] for dim in value.shape.dims]
        dtype = value.dtype.numpy()
        feeds[value.name] = (
            rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else rng.integers(0, 2, shape).astype(dtype)
        )
    return feeds


@dataclass(frozen=True)
class Ran:
    """A pass as it ran on a model."""

    model: ir.Model
    modified: bool
    error: float
    """Largest absolute difference of all outputs, over the sizes that were fed."""

    @property
    def ops(self) -> list[str]:
        return ops(self.model)

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.ops)


def run_pass(
    one: ir.passes.PassBase,
    text: str,
    constants: Mapping[str, Array] | None = None,
    *,
    sizes: tuple[Mapping[str, int], ...] = ({"N": 3},),
    feeds: Mapping[str, Array] | None = None,
) -> Ran:
    """Run a pass and hold it to what every pass owes: numbers, names, a clean checker, a second run that is idle."""
    model = parse(text, constants)
    fed = [dict(feeds)] if feeds is not None else [feeds_for(model, size) for size in sizes]
    before = [outputs(model, each) for each in fed]
    interface = _interface(model)
    result = one(model)
    assert _interface(result.model) == interface
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    after = [outputs(result.model, each) for each in fed]
    again = ops(result.model)
    assert not one(result.model).modified, "a second run changes something"
    assert ops(result.model) == again
    error = 0.0
    for expected, found in zip(before, after, strict=True):
        for left, right in zip(expected, found, strict=True):
            assert left.shape == right.shape
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(np.isnan(left.astype(float)), np.isnan(right.astype(float)))
            differ = left != right
            if differ.any():
                difference = np.abs(left[differ].astype(float) - right[differ].astype(float))
                error = max(error, float(np.nanmax(difference, initial=0)))
    if not result.modified:
        assert error == 0
    return Ran(result.model, result.modified, error)


def _interface(model: ir.Model) -> list[tuple[str | None, str]]:
    return [(value.name, str(value.dtype)) for value in (*model.graph.inputs, *model.graph.outputs)]

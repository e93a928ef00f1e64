"""What the files hold, and what the CPU plugin on this machine makes of them, from the graph that it executes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retarget.spec import TensorSpec
from retarget.targets import work
from retarget.targets.openvino.runtime import core, dtype_name, failure, openvino, scopes, set_shapes

if TYPE_CHECKING:
    from retarget.protocols import Array

COMPRESSED = frozenset({"int4", "uint4", "int8", "uint8"})
"""Types of weights that are widened where they are used, or before."""

EXACT = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
"""Keeps the plugin from rounding activations to int8 where it multiplies them by compressed weights: its default."""


def at(path: Path, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> openvino.Model:
    """The artifact with its dimensions at ``sizes``, so that the amount of work is known."""
    model = core().read_model(path)
    try:
        set_shapes(model, [openvino.PartialShape(list(spec.at(sizes))) for spec in inputs])
    except RuntimeError as error:
        raise failure(f"OpenVINO cannot give its own model the sizes {dict(sizes)}", error) from error
    return model


@dataclass(frozen=True)
class Executed:
    """What the plugin makes of the model: work by type, and how many elements of its constants are compressed."""

    work: work.Work
    compressed: int


def weights(model: openvino.Model) -> str:
    """The type of most elements of the constants with two axes or more."""
    held: Counter[str] = Counter()
    for node in _nodes(model):
        if node.get_type_name() == "Constant" and len(node.get_output_shape(0)) > 1:
            held[_dtype(node.output(0))] += math.prod(node.get_output_shape(0))
    return work.most(held)


def compressed_elements(model: openvino.Model) -> int:
    """How many elements of the constants with two axes or more are in few bits."""
    return sum(
        math.prod(node.get_output_shape(0))
        for node in _nodes(model)
        if node.get_type_name() == "Constant"
        and len(node.get_output_shape(0)) > 1
        and _dtype(node.output(0)) in COMPRESSED
    )


def activations(model: openvino.Model) -> str:
    """The type that the files give to most multiply-accumulates; of most float values where there are none."""
    done: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for node in _nodes(model):
        if node.get_input_size():
            done[_dtype(_codes(node.input_value(0)))] += _macs(node.get_type_name(), node)
        if node.get_type_name() != "Constant":
            values.update(
                dtype_name(output.get_element_type().get_type_name())
                for output in node.outputs()
                if output.get_element_type().is_real()
            )
    return work.most(done if done.total() else values)


def _codes(value: openvino.Output) -> openvino.Output:
    """The 8-bit codes that ``value`` is dequantized from; ``value`` itself if it is not."""
    source = value
    while source.get_node().get_type_name() in {"Convert", "Multiply", "Subtract"}:
        source = source.get_node().input_value(0)
        if _dtype(source) in work.INT8:
            return source
    return value


def _dtype(value: openvino.Output) -> str:
    return dtype_name(value.get_element_type().get_type_name())


def _nodes(model: openvino.Model) -> Iterator[openvino.Node]:
    """Every node, those in bodies included."""
    for _, scope in scopes(model):
        yield from scope.get_ops()


def compiled(model: openvino.Model) -> openvino.CompiledModel:
    """The model as the CPU plugin runs it by default. Raises ``ToolchainFailure``."""
    try:
        return core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1})
    except RuntimeError as error:
        raise failure("OpenVINO cannot compile the model", error) from error


def executed(model: openvino.Model, written: openvino.Model | None = None) -> Executed:
    """What the CPU plugin runs by default on this machine.

    ``model`` has fixed sizes, so that work can be counted. ``written``: the same with open ones, of which the plugin
    may make something else: then types are those of its nodes, as far as they have the same names.
    """
    fixed = list(compiled(model).get_runtime_model().get_ops())
    real = fixed if written is None else list(compiled(written).get_runtime_model().get_ops())
    types = {node.get_friendly_name(): _computed(node) for node in (*fixed, *real) if node.get_input_size()}
    named = {node.get_friendly_name(): _macs(node.get_type_name(), node) for node in _nodes(model)}
    done: Counter[str] = Counter()
    for node in fixed:
        if node.get_input_size():
            kind = _told(node, "layerType")
            # A chain that is compiled as one has no products of its own, but says which nodes it was made of.
            fused = _told(node, "originalLayersNames").split(",") if kind == "Subgraph" else []
            done[types[node.get_friendly_name()]] += _macs(kind, node) + sum(named.get(name, 0) for name in fused)
    kept = sum(
        math.prod(node.get_output_shape(0))
        for node in real
        if _told(node, "layerType") == "Const"
        and len(node.get_output_partial_shape(0)) > 1
        and _dtype(node.output(0)) in COMPRESSED
    )
    return Executed(done, kept)


def _told(node: openvino.Node, what: str) -> str:
    """What a node of the executed graph says of itself."""
    told: str = node.get_rt_info()[what].astype(str)
    return told


def _computed(node: openvino.Node) -> str:
    """The type that a node of the executed graph takes its first operand in."""
    # Not its `runtimePrecision`: that is float16 too where float16 weights are widened to meet float32 data.
    return "int8" if _rounds(node) else _dtype(node.input_value(0))


def _rounds(node: openvino.Node) -> bool:
    """Whether a node of the executed graph rounds its float activations to int8, to meet compressed weights."""
    if (
        _told(node, "layerType") != "FullyConnected"
        or node.get_input_size() < 4
        or not node.get_input_element_type(0).is_real()
    ):
        return False
    weights, scales = node.input(1), node.input(3)
    if dtype_name(weights.get_element_type().get_type_name()) not in COMPRESSED or not math.prod(scales.get_shape()):
        return False
    inner = weights.get_shape()[-1]
    return rounds_activations(weights.get_element_type().get_type_name(), inner, scales.get_shape()[-1])


@cache
def rounds_activations(weights: str, inner: int, blocks: int) -> bool:
    """Whether the plugin rounds activations to meet ``weights`` (OpenVINO's name of their type) of ``inner`` numbers
    a row, in ``blocks``. Neither a graph nor a counter says it: a product is tried with and without.
    """
    opset = openvino.opset13
    rng = np.random.default_rng(0)
    shape = [16, blocks, inner // blocks]
    x = opset.parameter([1, inner], openvino.Type.f32)
    codes = openvino.op.Constant(
        getattr(openvino.Type, weights), openvino.Shape(shape), rng.integers(0, 8, shape).ravel().tolist()
    )
    scaled = opset.multiply(opset.convert(codes, "f32"), opset.constant(np.full([16, blocks, 1], 0.01, np.float32)))
    rows = opset.reshape(scaled, opset.constant(np.array([16, inner])), special_zero=False)
    model = openvino.Model([opset.matmul(x, rows, transpose_a=False, transpose_b=True)], [x])
    fed = rng.standard_normal((1, inner), np.float32)
    results: list[Array] = []
    for settings in ({}, EXACT):
        request = core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1, **settings}).create_infer_request()
        results.append(np.array(request.infer([fed])[0]))
    return not np.array_equal(results[0], results[1])


def _macs(kind: str, node: openvino.Node) -> int:
    """Of a node of the files or of the executed graph, which has a few kinds of its own; 0 where it has no shapes."""
    if not all(port.get_partial_shape().is_static for port in (*node.inputs(), *node.outputs())):
        return 0
    inputs = [list(port.get_shape()) for port in node.inputs()]
    outputs = [list(port.get_shape()) for port in node.outputs()]
    match kind:
        case "Convolution" | "GroupConvolution":
            return work.convolution(inputs[1], outputs[0])
        case "ConvolutionBackpropData" | "GroupConvolutionBackpropData" | "Deconvolution":
            return work.transposed_convolution(inputs[1], inputs[0])
        case "MatMul" | "FullyConnected":
            return work.contraction(inputs[0], outputs[0])
        case "LSTMSequence" | "GRUSequence" | "RNNSequence" | "RNNSeq":
            # Whatever states and lengths stand before them, the weights W, R and the bias come last.
            return work.recurrence(inputs[0], inputs[-3:-1])
        case "ScaledDotProductAttention":
            return work.attention(inputs[0], inputs[1], outputs[0])
        case _:
            return 0

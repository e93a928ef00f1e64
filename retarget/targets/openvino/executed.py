"""What the files hold, and what the CPU plugin on this machine makes of them, from the graph that it executes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from retarget.spec import TensorSpec
from retarget.targets import work
from retarget.targets.openvino.runtime import core, dtype_name, failure, openvino, scopes


def at(path: Path, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> openvino.Model:
    """The artifact with its dimensions at ``sizes``, so that the amount of work is known."""
    model = core().read_model(path)
    try:
        model.reshape({port: list(spec.at(sizes)) for port, spec in zip(model.inputs, inputs, strict=True)})
    except RuntimeError as error:
        raise failure(f"OpenVINO cannot give its own model the sizes {dict(sizes)}", error) from error
    return model


def weights(model: openvino.Model) -> str:
    """The type that holds most bytes of the constants with two axes or more."""
    held: Counter[str] = Counter()
    for node in _nodes(model):
        if node.get_type_name() == "Constant" and len(node.get_output_shape(0)) > 1:
            kind = node.get_element_type()
            held[dtype_name(kind.get_type_name())] += math.prod(node.get_output_shape(0)) * kind.get_bitwidth() // 8
    return work.most(held)


def activations(model: openvino.Model) -> str:
    """The type that the files give to most multiply-accumulates; of most float values where there are none."""
    done: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for node in _nodes(model):
        if node.get_input_size():
            done[dtype_name(node.get_input_element_type(0).get_type_name())] += _macs(node.get_type_name(), node)
        if node.get_type_name() != "Constant":
            values.update(
                dtype_name(output.get_element_type().get_type_name())
                for output in node.outputs()
                if output.get_element_type().is_real()
            )
    return work.most(done if done.total() else values)


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


def executed(model: openvino.Model) -> work.Work:
    """Multiply-accumulates by the type that the CPU plugin runs them in by default on this machine."""
    done: Counter[str] = Counter()
    for node in compiled(model).get_runtime_model().get_ops():
        if node.get_input_size():
            # Not its `runtimePrecision`: that is float16 too where float16 weights are widened to meet float32 data.
            kind = node.get_rt_info()["layerType"].astype(str)
            done[dtype_name(node.get_input_element_type(0).get_type_name())] += _macs(kind, node)
    return done


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

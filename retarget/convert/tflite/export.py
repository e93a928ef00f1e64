"""The half of the TFLite frontend that needs TensorFlow and the interpreter. Syntax and library of Python 3.8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retarget.convert.tensorflow.names import input_specs, output_names
from retarget.convert.tflite.interpreter import Interpreter
from retarget.convert.tflite.names import borders
from retarget.convert.tflite.read import DEQUANTIZE, Signature, Subgraph, chosen_signature, read
from retarget.errors import RetargetError
from retarget.source import Exported, Source
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Feeds

MODEL = "model.onnx"


def export(source: Source, example: Feeds | None, out: Path) -> Exported:  # noqa: ARG001 - nothing is traced
    """Write ``out/model.onnx``, quantized tensors behind QuantizeLinear and DequantizeLinear."""
    if source.factory is not None:
        raise RetargetError(f"{source.path}: a TFLite file needs no factory", "remove `factory`")
    file = read(source.path)
    signature = chosen_signature(file, source)
    graph = file.subgraphs[signature.subgraph]
    own, names = borders(graph, signature)
    inputs = input_specs(own, source.inputs, str(source.path))
    outputs = output_names(names, source, inputs)
    # Imported here: TensorFlow takes seconds, and a damaged file is found without it.
    from retarget.convert.tflite.to_onnx import refuse_unknown, to_onnx

    refuse_unknown(file, signature)
    with _interpreter(source, graph, signature, inputs, outputs) as interpreter:
        shapes = interpreter.shapes()
    model = to_onnx(file, signature, inputs, outputs, shapes)
    (out / MODEL).write_bytes(model.SerializeToString())
    notes = _about_int8(graph)
    return Exported(rung="tf2onnx", inputs=inputs, outputs=outputs, notes=notes, narrow="int8" if notes else None)


def _about_int8(graph: Subgraph) -> tuple[str, ...]:
    """What a user must know of int8 in the file; empty where there is none."""
    if any(tensor.quantized and not tensor.constant for tensor in graph.tensors):
        return ("the file is int8 within: its own scales and zero points are kept, and variants change what is float",)
    for operator in graph.operators:
        read = [graph.tensors[index] for index in operator.inputs if index >= 0]
        made = [graph.tensors[index] for index in operator.outputs if index >= 0]
        if (
            operator.code != DEQUANTIZE
            and any(tensor.quantized and tensor.constant and tensor.dtype == "int8" for tensor in read)
            and any(tensor.dtype == "float32" for tensor in made)
        ):
            words = (
                "weights are int8 and multiplied in float; the interpreter rounds what it multiplies them with as well"
            )
            return (words,)
    return ()


def reference(source: Source, exported: Exported) -> Interpreter:
    """The interpreter on the file itself."""
    file = read(source.path)
    signature = chosen_signature(file, source)
    graph = file.subgraphs[signature.subgraph]
    return _interpreter(source, graph, signature, exported.inputs, exported.outputs)


def _interpreter(
    source: Source, graph: Subgraph, signature: Signature, inputs: Sequence[TensorSpec], outputs: Sequence[str]
) -> Interpreter:
    kernels = str(source.options["kernels"])
    return Interpreter(source.path, graph, signature, [spec.name for spec in inputs], outputs, kernels)

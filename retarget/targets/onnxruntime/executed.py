"""What ONNX Runtime really executes, from the profile of one run: the only place that says types and shapes.

The optimized model that it can save says neither, for the nodes that it fused and the casts that it put in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from retarget.session import Session
from retarget.targets import work

_DTYPES = {"float": "float32", "double": "float64"}
"""The profile's names that are not ours."""

_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class Executed:
    """What one run did: work by type, and the operator that each node ended as, by the name that it has there."""

    work: work.Work
    operators: Mapping[str, str]


def executed(path: Path, sizes: Mapping[str, int]) -> Executed | str:
    """Multiply-accumulates by the type that they ran in, symbolic dimensions at ``sizes``; or why there are none.

    Inputs are all ones: the types do not depend on the values, and a one is a legal divisor, index and size more
    often than any other number.
    """
    with TemporaryDirectory(prefix="retarget-profile-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        # Blocked layouts pad channels and packed weights vanish from the profile; neither changes a type.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.disable_prepacking", "1")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        try:
            feeds = {node.name: _ones(node, sizes) for node in session.get_inputs()}
            session.run_with_ort_values(None, feeds)
        except (Fail, InvalidArgument, RuntimeException) as error:
            # Inputs of ones may well not be legal for this model.
            return f"a run on inputs of ones failed ({str(error).splitlines()[0]})"
        finally:
            profile = Path(session.end_profiling())
        events = json.loads(profile.read_text())
    done: Counter[str] = Counter()
    operators: dict[str, str] = {}
    for event in events:
        arguments = event.get("args", {})
        if "op_name" in arguments and event["name"].endswith(_SUFFIX):
            operator = arguments["op_name"]
            operators[event["name"].removesuffix(_SUFFIX)] = operator
            inputs = _tensors(arguments["input_type_shape"])
            outputs = _tensors(arguments["output_type_shape"])
            if inputs and outputs:
                shapes = [shape for _, shape in inputs]
                done[_computed(operator, inputs)] += _macs(operator, shapes, [shape for _, shape in outputs])
    return Executed(done, operators)


def _tensors(described: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, Sequence[int]]]:
    return [(_DTYPES.get(name, name), shape) for tensor in described for name, shape in tensor.items()]


def _computed(op: str, inputs: Sequence[tuple[str, Sequence[int]]]) -> str:
    """The type that a node multiplies in: that of its first input, but for those that round it themselves."""
    match op:
        case "DynamicQuantizeMatMul" | "DynamicQuantizeLSTM":
            return inputs[1][0]
        case "MatMulNBits":
            return "int8" if rounds_activations() else inputs[0][0]
        case _:
            return inputs[0][0]


def _macs(op: str, inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> int:
    match op:
        case "Conv" | "FusedConv" | "NhwcFusedConv" | "ConvInteger":
            return work.convolution(inputs[1], outputs[0])
        case "QLinearConv":
            # Between the operands stand their scales and zero points.
            return work.convolution(inputs[3], outputs[0])
        case "ConvTranspose":
            return work.transposed_convolution(inputs[1], inputs[0])
        case (
            "MatMul" | "FusedMatMul" | "Gemm" | "FusedGemm" | "TransposeMatMul" | "QLinearMatMul" | "QGemm"
            | "MatMulInteger" | "MatMulIntegerToFloat" | "DynamicQuantizeMatMul" | "MatMulNBits"
        ):  # fmt: skip
            return work.contraction(inputs[0], outputs[0])
        case "LSTM" | "GRU" | "RNN" | "DynamicQuantizeLSTM":
            return work.recurrence(inputs[0], inputs[1:3])
        case "Attention" | "MultiHeadAttention" | "GroupQueryAttention":
            return work.attention(inputs[0], inputs[1], outputs[0])
        case _:
            return 0


@cache
def rounds_activations() -> bool:
    """Whether products with weights in blocks round their activations to int8 here, which neither graph nor profile
    says: it is ONNX Runtime's default, and needs kernels for this CPU. So a product of 64 numbers is tried.
    """
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (64, 16), np.int8)
    activations = rng.standard_normal((1, 64), np.float32)
    x = ir.val("x", ir.DataType.FLOAT, [1, 64])
    weights = [ir.tensor(codes, name="codes"), ir.tensor(np.full((2, 16), 2**-7, np.float32), name="scales")]
    operands = [ir.val(tensor.name or "", const_value=tensor) for tensor in weights]
    dequantize = ir.node("DequantizeLinear", operands, {"axis": 0, "block_size": 32})
    product = ir.node("MatMul", [x, dequantize.outputs[0]])
    product.outputs[0].name, product.outputs[0].dtype = "y", ir.DataType.FLOAT
    model = ir.Model(
        ir.Graph([x], product.outputs, nodes=[dequantize, product], initializers=operands, opset_imports={"": 21}),
        ir_version=10,
    )
    with Session(model, optimize=True) as session:
        found = session.run({"x": activations})["y"]
    return not np.allclose(found, activations @ (codes * np.float32(2**-7)), atol=1e-4)


def _ones(node: ort.NodeArg, sizes: Mapping[str, int]) -> ort.OrtValue:
    """An input of ones; a dimension that is not named counts as 1."""
    shape = [dim if isinstance(dim, int) else sizes.get(dim, 1) for dim in node.shape]
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if kind == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.full(shape, 0x3F80, np.uint16), 16)
    return ort.OrtValue.ortvalue_from_numpy(np.ones(shape, _DTYPES.get(kind, kind)))

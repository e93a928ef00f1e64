"""What ONNX Runtime really executes, from the profile of one run: the only place that says types and shapes.

The optimized model that it can save says neither, for the nodes that it fused and the casts that it put in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from retarget.targets import work

_DTYPES = {"float": "float32", "double": "float64"}
"""The profile's names that are not ours."""


def executed(path: Path, sizes: Mapping[str, int]) -> work.Work | str:
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
    for event in events:
        arguments = event.get("args", {})
        if "op_name" in arguments and event["name"].endswith("_kernel_time"):
            inputs = _tensors(arguments["input_type_shape"])
            outputs = _tensors(arguments["output_type_shape"])
            if inputs and outputs:
                done[inputs[0][0]] += _macs(
                    arguments["op_name"], [shape for _, shape in inputs], [shape for _, shape in outputs]
                )
    return done


def _tensors(described: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, Sequence[int]]]:
    return [(_DTYPES.get(name, name), shape) for tensor in described for name, shape in tensor.items()]


def _macs(op: str, inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> int:
    match op:
        case "Conv" | "FusedConv" | "NhwcFusedConv":
            return work.convolution(inputs[1], outputs[0])
        case "ConvTranspose":
            return work.transposed_convolution(inputs[1], inputs[0])
        case "MatMul" | "FusedMatMul" | "Gemm" | "FusedGemm" | "TransposeMatMul":
            return work.contraction(inputs[0], outputs[0])
        case "LSTM" | "GRU" | "RNN":
            return work.recurrence(inputs[0], inputs[1:3])
        case "Attention" | "MultiHeadAttention" | "GroupQueryAttention":
            return work.attention(inputs[0], inputs[1], outputs[0])
        case _:
            return 0


def _ones(node: ort.NodeArg, sizes: Mapping[str, int]) -> ort.OrtValue:
    """An input of ones; a dimension that is not named counts as 1."""
    shape = [dim if isinstance(dim, int) else sizes.get(dim, 1) for dim in node.shape]
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if kind == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.full(shape, 0x3F80, np.uint16), 16)
    return ort.OrtValue.ortvalue_from_numpy(np.ones(shape, _DTYPES.get(kind, kind)))

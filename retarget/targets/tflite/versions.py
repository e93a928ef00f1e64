"""Versions of operators: what a runtime must know to execute them, and since when TensorFlow's runtime does.

Each version of an operator brought something that its kernels took from then on. An operator has the highest of those
whose matter it makes use of, which is what TensorFlow's `op_version.cc` says; the table of releases is that of its
`runtime_version.cc`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from retarget.targets.tflite.program import Operator, Tensor

FOUR = 4
"""The most axes that kernels took at first."""


def version(operator: Operator) -> int:
    """The version of ``operator``."""
    if operator.custom is not None:
        return 1
    found = [1]
    first = operator.inputs[_LEADING.get(operator.code, 0)] if operator.inputs else None
    if first is not None:
        found.append(_TYPES.get(operator.code, {}).get(first.dtype.name, 1))
        if len(first.shape) > FOUR:
            found.append(_MANY_AXES.get(operator.code, 1))
    if operator.code in _BROADCASTS and _broadcasts(operator):
        found.append(_BROADCASTS[operator.code])
    if operator.code in _RULES:
        found.append(_RULES[operator.code](operator))
    return max(found)


def runtime(operators: Mapping[tuple[str, int], object]) -> str:
    """The first release of TensorFlow that executes all of these codes in these versions, such as ``2.3.0``.

    Empty where the table knows none of them, as in files of TensorFlow.
    """
    needed = [RELEASES[code][at - 1] for code, at in operators if at <= len(RELEASES.get(code, ()))]
    return max((each for each in needed if each), key=lambda text: [*map(int, text.split("."))], default="")


def _broadcasts(operator: Operator) -> bool:
    shapes = [tensor.shape for tensor in operator.inputs if tensor is not None]
    return len(shapes) > 1 and shapes[0] != shapes[1] and max(map(len, shapes)) > FOUR


def _type(operator: Operator, index: int) -> str | None:
    tensor = _input(operator, index)
    return None if tensor is None else tensor.dtype.name


def _input(operator: Operator, index: int) -> Tensor | None:
    return operator.inputs[index] if index < len(operator.inputs) else None


def _option(operator: Operator, name: str) -> object:
    """A field of its options, None where it has the schema's default."""
    return operator.options.fields.get(name) if operator.options else None


def _is_set(operator: Operator, name: str) -> bool:
    return _option(operator, name) not in (None, False, 0, "NONE", "FLOAT32")


def _hybrid(operator: Operator, weights: int = 1) -> bool:
    """Whether it takes floats and multiplies them by int8 weights."""
    return _type(operator, 0) == "float32" and _type(operator, weights) == "int8"


def _per_channel(operator: Operator, index: int) -> bool:
    tensor = _input(operator, index)
    return tensor is not None and tensor.quantization is not None and tensor.quantization.per_channel


def _conv_2d(operator: Operator) -> int:
    data, weights = operator.inputs[0], operator.inputs[1]
    assert data is not None
    assert weights is not None
    if _is_set(operator, "quantizedBiasType"):
        return 8
    if data.shape[-1] != weights.shape[-1]:
        return 6
    if _hybrid(operator):
        return 5 if _per_channel(operator, 1) else 2
    return 1


def _depthwise_conv_2d(operator: Operator) -> int:
    if _hybrid(operator):
        return 6 if _per_channel(operator, 1) else 4
    return 2 if any(_option(operator, name) not in (None, 1) for name in ("dilationWFactor", "dilationHFactor")) else 1


def _fully_connected(operator: Operator) -> int:
    if _hybrid(operator):
        if _per_channel(operator, 1):
            return 12
        return 9 if _is_set(operator, "asymmetricQuantizeInputs") else 6 if len(operator.inputs) == 2 else 3
    if _is_set(operator, "quantizedBiasType"):
        return 11
    if len(operator.inputs) == 2:
        return 6
    return 5 if _is_set(operator, "keepNumDims") else 1


def _gather(operator: Operator) -> int:
    if _type(operator, 1) == "int16":
        return 6
    return 5 if _is_set(operator, "batchDims") else 1


def _add(operator: Operator) -> int:
    if _type(operator, 0) != "int16":
        return 1
    first = operator.inputs[0]
    # The schema's default of `potScaleInt16` is true.
    quantized = first is not None and first.quantization is not None
    return 5 if not quantized else 3 if _option(operator, "potScaleInt16") is False else 1


def _sub(operator: Operator) -> int:
    return 5 if _type(operator, 0) == "int16" and _option(operator, "potScaleInt16") is False else 1


def _mul(operator: Operator) -> int:
    left, right = operator.inputs[0], operator.inputs[1]
    assert left is not None
    assert right is not None
    product = operator.outputs[0].quantization
    if left.quantization is None or right.quantization is None or product is None:
        return 7 if left.dtype.name in ("int16", "uint32") else 1
    return 3 if left.quantization.scales[0] * right.quantization.scales[0] / product.scales[0] >= 1 else 1


def _transpose(operator: Operator) -> int:
    rank = len(operator.outputs[0].shape)
    return 8 if rank > 6 else 6 if rank > 5 else 1


def _transpose_conv(operator: Operator) -> int:
    if _is_set(operator, "quantizedBiasType"):
        return 5
    if _is_set(operator, "fusedActivationFunction"):
        return 4
    return 3 if _input(operator, 3) is not None else 1


def _lstm(operator: Operator) -> int:
    if _option(operator, "kernelType") in (1, "BASIC"):
        return 2
    if _type(operator, 0) == "int16" and _type(operator, 2) == "int8":
        return 5
    return (4 if _is_set(operator, "asymmetricQuantizeInputs") else 3) if _hybrid(operator, 2) else 1


def _unidirectional_sequence_lstm(operator: Operator) -> int:
    if _type(operator, 0) == "int16" and _type(operator, 2) == "int8":
        return 5
    if _is_set(operator, "diagonalRecurrentTensors"):
        return 4
    return (3 if _is_set(operator, "asymmetricQuantizeInputs") else 2) if _hybrid(operator, 2) else 1


def _rnn(operator: Operator) -> int:
    return (3 if _is_set(operator, "asymmetricQuantizeInputs") else 2) if _hybrid(operator) else 1


def _batch_matmul(operator: Operator) -> int:
    return 4 if _hybrid(operator) and _is_set(operator, "asymmetricQuantizeInputs") else 1


def _dequantize(operator: Operator) -> int:
    return 5 if _type(operator, 0) == "int8" and _per_channel(operator, 0) else 1


def _quantize(operator: Operator) -> int:
    made = operator.outputs[0].quantization
    if _per_channel(operator, 0) or (made is not None and made.per_channel):
        return 3
    return 2 if operator.outputs[0].dtype.name == "int16" else 1


def _strided_slice(operator: Operator) -> int:
    if _is_set(operator, "offset"):
        return 8
    return 6 if _is_set(operator, "ellipsisMask") or _is_set(operator, "newAxisMask") else 1


def _resize(operator: Operator) -> int:
    nearest = operator.code == "RESIZE_NEAREST_NEIGHBOR"
    return 3 if _is_set(operator, "halfPixelCenters") or (nearest and _is_set(operator, "alignCorners")) else 1


def _blocks(operator: Operator) -> int:
    return 3 if len(operator.outputs[0].shape) != FOUR else 1


def _select(operator: Operator) -> int:
    return 3 if any(tensor is not None and len(tensor.shape) > FOUR for tensor in operator.inputs) else 1


def _gather_nd(operator: Operator) -> int:
    return 4 if _type(operator, 1) == "int16" else 1


def _cast(operator: Operator) -> int:
    versions = {"bfloat16": 7, "float64": 5, "float16": 5, "uint16": 4, "int8": 3, "uint32": 2}
    return max(versions.get(each.dtype.name, 1) for each in (*operator.inputs, *operator.outputs) if each is not None)


def _where(operator: Operator) -> int:
    return 1 if _type(operator, 0) == "bool" else 2


def _broadcast_to(_: Operator) -> int:
    return 2  # the first was taken back, and its code changed


_TYPES: Mapping[str, Mapping[str, int]] = {
    "ABS": {"int8": 2, "uint8": 2, "int16": 4, "int32": 5},
    "ADD": {"int8": 2, "int64": 4, "float16": 6},
    "ARG_MAX": {"int8": 2, "bool": 3},
    "ARG_MIN": {"int8": 2, "bool": 3},
    "AVERAGE_POOL_2D": {"int8": 2, "int16": 3},
    "BATCH_MATMUL": {"int8": 2, "int16": 3},
    "BATCH_TO_SPACE_ND": {"int8": 2, "int16": 4},
    "BROADCAST_TO": {"int8": 3, "int16": 3},
    "CONCATENATION": {"int8": 2, "int16": 3, "uint32": 4},
    "CONV_2D": {"int8": 3},
    "DEPTHWISE_CONV_2D": {"int8": 3},
    "DEPTH_TO_SPACE": {"int8": 2},
    "DEQUANTIZE": {"int8": 2, "int16": 3, "float16": 3},
    "DYNAMIC_UPDATE_SLICE": {"float16": 3, "int16": 4, "bfloat16": 6},
    "EQUAL": {"int8": 2, "int16": 5},
    "EXP": {"int8": 2, "int16": 2},
    "FILL": {"bool": 2, "int8": 3, "int16": 3, "float16": 4},
    "FLOOR_DIV": {"float32": 2, "int8": 3, "int16": 3},
    "FLOOR_MOD": {"int8": 2, "int16": 2},
    "FULLY_CONNECTED": {"int8": 4},
    "GATHER": {"int8": 2, "bool": 3, "int16": 4},
    "GATHER_ND": {"int16": 3, "bool": 5},
    "GELU": {"int8": 2, "uint8": 2},
    "GREATER": {"int8": 2},
    "GREATER_EQUAL": {"int8": 2, "int16": 3},
    "L2_NORMALIZATION": {"int8": 2},
    "LEAKY_RELU": {"int16": 2},
    "LESS": {"int8": 2, "int16": 3},
    "LESS_EQUAL": {"int8": 2},
    "LOG": {"int8": 2, "int16": 2},
    "LOGISTIC": {"int8": 2, "int16": 3},
    "LOG_SOFTMAX": {"int8": 2},
    "MAXIMUM": {"int8": 2, "int16": 4},
    "MAX_POOL_2D": {"int8": 2, "int16": 3},
    "MEAN": {"int8": 2, "int16": 3},
    "MINIMUM": {"int8": 2, "int16": 4},
    "MIRROR_PAD": {"int8": 2, "int16": 3},
    "MUL": {"int8": 2, "int16": 4, "int64": 5, "complex64": 6, "float16": 8},
    "NOT_EQUAL": {"int8": 2, "int16": 4},
    "PACK": {"int8": 2, "int16": 3, "uint32": 4},
    "PAD": {"int8": 2, "int16": 3, "bool": 5},
    "PADV2": {"int8": 2, "int16": 3, "bool": 5},
    "RANGE": {"int64": 2},
    "REDUCE_MAX": {"int8": 2, "int16": 3},
    "REDUCE_MIN": {"int8": 2, "int16": 3},
    "REDUCE_PROD": {"int8": 2, "int16": 2},
    "RELU": {"int8": 2, "uint8": 2, "int16": 3},
    "RELU6": {"int8": 2, "int16": 3},
    "RESIZE_BILINEAR": {"int8": 2, "int16": 4},
    "RESIZE_NEAREST_NEIGHBOR": {"int8": 2, "int16": 4},
    "REVERSE_V2": {"bool": 2, "int8": 3},
    "RSQRT": {"int8": 2, "int16": 3},
    "SELECT": {"int8": 2, "uint32": 4},
    "SELECT_V2": {"uint32": 2},
    "SIGN": {"int32": 2},
    "SLICE": {"int8": 2, "int16": 4, "uint32": 6},
    "SOFTMAX": {"int8": 2, "int16": 3},
    "SPACE_TO_BATCH_ND": {"int8": 2, "int16": 4},
    "SPACE_TO_DEPTH": {"int8": 2},
    "SPARSE_TO_DENSE": {"int64": 2, "int8": 3, "uint8": 3},
    "SPLIT": {"int8": 2, "int32": 3, "int16": 4},
    "SPLIT_V": {"int8": 2},
    "SQRT": {"int8": 2, "int16": 2},
    "SQUARED_DIFFERENCE": {"int8": 2},
    "STRIDED_SLICE": {"int8": 2, "bool": 3, "uint32": 7},
    "SUB": {"int8": 2, "int64": 4},
    "SUM": {"int8": 2},
    "TANH": {"int8": 2, "int16": 3},
    "TILE": {"int8": 3},
    "TOPK_V2": {"int8": 2, "int16": 3},
    "TRANSPOSE": {"int8": 2, "bool": 3, "int16": 5, "bfloat16": 8},
    "TRANSPOSE_CONV": {"int8": 2},
    "UNPACK": {"int8": 2, "uint8": 2, "bool": 3, "int16": 4, "float16": 5, "bfloat16": 5},
}
"""Operator → type of its leading input → the version that brought it."""

_LEADING = {"SPLIT": 1, "FILL": 1, "SPARSE_TO_DENSE": 2, "TRANSPOSE_CONV": 1}
"""Where the leading input is not the first."""

_MANY_AXES = {"TRANSPOSE": 4, "SLICE": 5, "STRIDED_SLICE": 4, "PAD": 4, "PADV2": 4}
"""What brought more than four axes."""

_BROADCASTS = {"MAXIMUM": 3, "MINIMUM": 3, "SUB": 3, "DIV": 2}
"""What brought broadcasts of more than four axes."""

_Rule: TypeAlias = Callable[[Operator], int]

_RULES: Mapping[str, _Rule] = {
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "FULLY_CONNECTED": _fully_connected,
    "GATHER": _gather,
    "ADD": _add,
    "SUB": _sub,
    "MUL": _mul,
    "TRANSPOSE": _transpose,
    "TRANSPOSE_CONV": _transpose_conv,
    "LSTM": _lstm,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _unidirectional_sequence_lstm,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _rnn,
    "RNN": _rnn,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _rnn,
    "BIDIRECTIONAL_SEQUENCE_RNN": _rnn,
    "BATCH_MATMUL": _batch_matmul,
    "DEQUANTIZE": _dequantize,
    "QUANTIZE": _quantize,
    "STRIDED_SLICE": _strided_slice,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "SPACE_TO_BATCH_ND": _blocks,
    "BATCH_TO_SPACE_ND": _blocks,
    "SELECT": _select,
    "GATHER_ND": _gather_nd,
    "CAST": _cast,
    "WHERE": _where,
    "BROADCAST_TO": _broadcast_to,
}
"""Operator → what else it may need."""

RELEASES: Mapping[str, tuple[str, ...]] = {
    name: tuple("" if each == "-" else each for each in versions)
    for name, *versions in (
        line.split()
        for line in """
ABS 1.13.0 2.4.0 2.5.0 2.6.0 2.12.0
ADD 1.5.0 1.14.0 2.4.0 2.6.0 2.13.0 2.23.0
ADD_N 1.14.0
ARG_MAX 1.9.0 1.14.0 2.9.0
ARG_MIN 1.9.0 1.14.0 2.9.0
ATAN2 2.10.0
AVERAGE_POOL_2D 1.5.0 1.14.0 2.3.0
BATCH_MATMUL 2.3.0 2.3.0 2.4.0 2.5.0
BATCH_TO_SPACE_ND 1.6.0 1.14.0 2.3.0 2.12.0
BIDIRECTIONAL_SEQUENCE_LSTM 1.14.0 1.14.0 1.14.0
BIDIRECTIONAL_SEQUENCE_RNN 1.14.0 1.14.0 2.3.0
BITCAST 2.13.0
BITWISE_XOR 2.13.0
BROADCAST_ARGS 2.6.0
BROADCAST_TO - 2.5.0 2.5.0
BUCKETIZE 2.8.0
CAST 1.5.0 2.7.0 2.8.0 2.9.0 2.12.0 2.15.0 2.17.0 2.21.0
CEIL 1.14.0
CONCATENATION 1.5.0 1.14.0 2.3.0 2.14.0 2.21.0
CONV_2D 1.5.0 1.14.0 1.14.0 2.3.0 2.4.0 2.9.0 2.11.0 2.15.0
CONV_3D 2.5.0
CONV_3D_TRANSPOSE 2.6.0
COS 1.14.0
CUMSUM 2.4.0
DEPTHWISE_CONV_2D 1.5.0 1.12.0 1.14.0 2.2.0 2.3.0 2.3.0 2.11.0
DEPTH_TO_SPACE 2.1.0 2.5.0
DEQUANTIZE 1.13.1 1.14.0 1.15.0 2.2.0 2.7.0 2.18.0 2.21.0 2.22.0
DILATE 2.15.0
DIV 1.6.0 2.3.0
DYNAMIC_UPDATE_SLICE 2.9.0 2.17.0 2.19.0 2.20.0 2.21.0 2.22.0
ELU 1.14.0
EMBEDDING_LOOKUP 1.13.0 1.14.0 1.14.0 2.18.0 2.21.0
EQUAL 1.14.0 1.14.0 2.3.0 2.13.0 2.21.0
EXP 1.7.0 2.12.0
EXPAND_DIMS 1.10.0
FILL 1.13.0 2.3.0 2.5.0 2.12.0
FLOOR 1.9.0
FLOOR_DIV 1.14.0 1.14.0 2.13.0
FLOOR_MOD 1.13.0 2.13.0
FULLY_CONNECTED 1.5.0 1.10.0 1.14.0 1.14.0 2.0.0 2.1.0 2.3.0 2.3.0 2.3.0 2.11.0 2.15.0 2.17.0 2.18.0 2.21.0
GATHER 1.6.0 1.14.0 1.15.0 2.4.0 2.5.0 2.13.0 2.15.0
GATHER_ND 1.14.0 2.3.0 2.5.0 2.13.0 2.16.0
GELU 2.9.0 2.9.0
GREATER 1.14.0 1.14.0
GREATER_EQUAL 1.14.0 1.14.0 2.13.0
HARD_SWISH 1.15.0
L2_NORMALIZATION 1.5.0 1.14.0
L2_POOL_2D 1.5.0
LEAKY_RELU 1.13.1 2.3.0
LESS 1.14.0 1.14.0 2.13.0
LESS_EQUAL 1.14.0 1.14.0
LOCAL_RESPONSE_NORMALIZATION 1.5.0
LOG 1.14.0 2.15.0
LOGICAL_AND 1.11.0
LOGICAL_NOT 1.11.0
LOGICAL_OR 1.11.0
LOGISTIC 1.14.0 1.14.0 2.3.0
LOG_SOFTMAX 1.14.0 1.14.0
LSTM 1.7.0 1.10.0 1.14.0 2.3.0
MATRIX_DIAG 1.14.0
MATRIX_SET_DIAG 1.14.0
MAXIMUM 1.14.0 1.14.0 2.3.0 2.3.0
MAX_POOL_2D 1.5.0 1.14.0 2.3.0
MEAN 1.6.0 1.14.0 2.4.0
MINIMUM 1.14.0 1.14.0 2.3.0 2.3.0
MIRROR_PAD 1.13.1 2.3.0 2.12.0
MUL 1.5.0 1.14.0 1.15.0 2.3.0 2.6.0 2.11.0 2.13.0 2.23.0
NEG 1.9.0
NON_MAX_SUPPRESSION_V4 2.1.0
NON_MAX_SUPPRESSION_V5 2.1.0
NOT_EQUAL 1.14.0 1.14.0 2.3.0 2.21.0
ONE_HOT 1.11.0
PACK 1.11.0 1.14.0 2.3.0 2.13.0
PAD 1.5.0 1.14.0 2.4.0 2.6.0 2.20.0
PADV2 1.9.0 1.14.0 2.4.0 2.6.0 2.20.0
POW 1.10.0
PRELU 1.8.0
QUANTIZE 1.14.0 1.15.0 2.7.0 2.21.0 2.21.0 2.21.0
RANGE 1.13.0 2.14.0
RANK 1.14.0
REDUCE_ALL 2.6.0
REDUCE_ANY 1.11.0
REDUCE_MAX 1.11.0 1.14.0 2.5.0
REDUCE_MIN 1.11.0 1.14.0 2.5.0
REDUCE_PROD 1.11.0 2.6.0
REDUCE_WINDOW 2.15.0
RELU 1.5.0 2.1.0 2.5.0
RELU6 1.5.0 1.14.0 2.5.0
RELU_0_TO_1 2.10.0
RELU_N1_TO_1 1.5.0
RESHAPE 1.5.0
RESIZE_BILINEAR 1.7.0 1.14.0 2.2.0 2.5.0
RESIZE_NEAREST_NEIGHBOR 1.13.1 1.14.0 2.3.0 2.4.0
REVERSE_SEQUENCE 1.14.0
REVERSE_V2 1.14.0 2.2.0 2.5.0
RIGHT_SHIFT 2.13.0
RNN 1.5.0 1.14.0 2.3.0
ROUND 1.14.0
RSQRT 1.10.0 2.5.0 2.15.0
SCATTER_ND 2.1.0
SEGMENT_SUM 2.2.0
SELECT 1.14.0 1.14.0 2.12.0 2.12.0
SELECT_V2 2.2.0 2.12.0
SHAPE 1.10.0
SIGN 2.11.0 2.12.0
SIN 1.9.0
SLICE 1.14.0 1.14.0 1.14.0 2.4.0 2.5.0 2.14.0 2.21.0
SOFTMAX 1.5.0 1.14.0 2.3.0
SPACE_TO_BATCH_ND 1.6.0 1.14.0 2.3.0 2.12.0
SPACE_TO_DEPTH 1.5.0 1.14.0
SPARSE_TO_DENSE 1.9.0 1.14.0 1.15.0
SPLIT 1.5.0 1.14.0 1.14.0 2.3.0
SPLIT_V 1.13.1 2.3.0
SQRT 1.10.0 2.21.0
SQUARE 1.12.0
SQUARED_DIFFERENCE 1.13.1 2.5.0
SQUEEZE 1.6.0 2.5.0
STABLEHLO_GATHER 2.16.0
STABLEHLO_PAD 2.16.0
STABLEHLO_REDUCE_WINDOW 2.16.0
STABLEHLO_SCATTER 2.15.0
STRIDED_SLICE 1.6.0 1.14.0 2.1.0 2.2.0 2.5.0 2.6.0 2.14.0 2.14.0
SUB 1.6.0 1.14.0 2.3.0 2.4.0 2.4.0
SUM 1.10.0 1.15.0
TANH 1.14.0 1.14.0 2.3.0
TILE 1.10.1 2.2.0 2.8.0
TOPK_V2 1.7.0 1.14.0 2.13.0
TRANSPOSE 1.6.0 1.14.0 1.15.0 2.3.0 2.4.0 2.12.0 2.14.4 2.22.0
TRANSPOSE_CONV 1.9.0 2.2.0 2.3.0 2.13.0 2.15.0
UNIDIRECTIONAL_SEQUENCE_LSTM 1.13.1 1.14.0 2.3.0 2.12.0
UNIDIRECTIONAL_SEQUENCE_RNN 1.14.0 1.14.0 2.3.0
UNPACK 1.11.0 1.14.0 2.2.0 2.3.0 2.22.0
WHERE 1.14.0 2.8.0
ZEROS_LIKE 1.12.0
""".strip().splitlines()
    )
}
"""Operator → the release of TensorFlow that brought each of its versions, from the first on."""

"""Matrix products: FULLY_CONNECTED with a constant matrix, BATCH_MATMUL of two others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.tflite.call import Call, Int8, Op
from retarget.targets.tflite.layout import Layout
from retarget.targets.tflite.ops.weights import bias_tensor, is_hybrid, takes_integers, weight_tensor
from retarget.targets.tflite.program import Constant, Options
from retarget.targets.tflite.values import Operand, Refusal, Value

if TYPE_CHECKING:
    from retarget.protocols import Array


def mat_mul(call: Call) -> Value:
    left, right = call.operand(0), call.operand(1)
    if isinstance(left, Value) and isinstance(right, Constant) and _is_layer(call):
        return _fully_connected(call, left, right, call.bias, is_turned=False)
    return call.activated(_batched(call, left, right))


def _is_layer(call: Call) -> bool:
    """Whether a MatMul is a product with a constant matrix, which is a layer's."""
    left, right = call.operand(0), call.operand(1)
    return isinstance(right, Constant) and len(right.shape) == 2 and isinstance(left, Value) and left.rank > 1


def gemm(call: Call) -> Value:
    attributes = call.attributes
    alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    left, right = call.operand(0), call.operand(1)
    bias = call.operand(2) if call.has(2) and beta else None
    turned = bool(attributes.get_int("transA", 0)), bool(attributes.get_int("transB", 0))
    row = _row(bias, right.shape[0 if turned[1] else 1], beta)
    if isinstance(left, Value) and isinstance(right, Constant) and not turned[0] and (bias is None or row is not None):
        return _fully_connected(call, left, _scaled(right, alpha), row, is_turned=turned[1])
    product = _batched(call, left, right, turned)
    if alpha != 1:
        product = call.binary("MUL", product, alpha)
    if bias is not None:
        product = call.binary("ADD", product, bias if beta == 1 else call.binary("MUL", bias, beta))
    return call.activated(product)


def _fully_connected(call: Call, left: Value, weight: Constant, bias: Constant | None, *, is_turned: bool) -> Value:
    """``left`` times the constant ``weight`` [inputs, outputs], or [outputs, inputs] if it is turned, plus ``bias``."""
    outputs = weight.shape[0 if is_turned else 1]
    layout = Layout.FIRST
    if left.image is not None and (Layout.LAST, call.int8) in left.forms:
        layout = Layout.LAST
        weight = _for_channels_last(weight, left.image, axis=1 if is_turned else 0)
    hybrid = is_hybrid(call, weight, 0 if is_turned else 1)
    source = call.tensor(left, layout=layout)
    matrix = weight_tensor(call, weight, perm=None if is_turned else (1, 0), axis=0, hybrid=hybrid)
    added = bias_tensor(call, bias, outputs, weight) if bias is not None or call.int8 else None
    options = Options(
        "FullyConnectedOptions", {"fusedActivationFunction": call.activation, "keepNumDims": left.rank != 2}
    )
    return call.emit("FULLY_CONNECTED", [source, matrix, added], (*left.shape[:-1], outputs), np.float32, options)


def _for_channels_last(weight: Constant, image: Sequence[int], axis: int) -> Constant:
    """``weight`` with what it multiplies along ``axis``, [channels, ...] flattened, in the order [..., channels]."""

    def moved(array: Array) -> Array:
        parts = array.reshape(*array.shape[:axis], *image, *array.shape[axis + 1 :])
        return np.moveaxis(parts, axis, axis + len(image) - 1).reshape(array.shape)

    what = ("channels last", tuple(image), axis)
    made, codes = weight.then(what, moved, weight.shape), weight.codes
    if codes is None:
        return made
    return replace(made, codes=replace(codes, integers=codes.integers.then(what, moved, weight.shape)))


def _scaled(weight: Constant, factor: float) -> Constant:
    """``weight`` times ``factor``, as floats."""
    if factor == 1:
        return weight
    return weight.then(("times", factor), lambda array: np.multiply(array, np.float32(factor)), weight.shape)


def _row(bias: Operand | None, count: int, factor: float) -> Constant | None:
    """``bias`` as a row of ``count`` numbers, the same for all rows of the product; None where it is not that."""
    if not isinstance(bias, Constant) or len(bias.shape) > 2 or (len(bias.shape) == 2 and bias.shape[0] != 1):
        return None
    if bias.size == count:
        return _scaled(bias.reshaped((count,)), factor)
    scaled = _scaled(bias.reshaped(()), factor)
    return scaled.then(("repeated", count), lambda array: np.repeat(array, count), (count,))


def _batched(call: Call, left: Operand, right: Operand, turned: tuple[bool, bool] = (False, False)) -> Value:
    """The product as ONNX's MatMul has it: axes in front of the last two broadcast, vectors lose theirs."""
    matrices = _matrix(call, left, (1, -1)), _matrix(call, right, (-1, 1))
    (*front, rows, inner), (*behind, others, columns) = (each.shape for each in matrices)
    shape = (*np.broadcast_shapes(tuple(front), tuple(behind)), inner if turned[0] else rows)
    if len(shape) >= 5:
        raise Refusal(f"there are {len(shape) + 1} axes, and the kernel takes 5")
    options = Options("BatchMatMulOptions", {"adjX": turned[0], "adjY": turned[1]})
    tensors = [call.tensor(each) for each in matrices]
    product = call.emit("BATCH_MATMUL", tensors, (*shape, others if turned[1] else columns), np.float32, options)
    kept = [*product.shape[:-2]]
    kept += [size for size, of in zip(product.shape[-2:], (left, right), strict=True) if len(of.shape) > 1]
    return call.reshape(product, kept)


def _matrix(call: Call, operand: Operand, of_vector: tuple[int, int]) -> Operand:
    """``operand``; a vector as the matrix of one row or column that ONNX's MatMul takes it for."""
    if len(operand.shape) > 1:
        return operand
    shape = tuple(operand.shape[0] if size < 0 else size for size in of_vector)
    return operand.reshaped(shape) if isinstance(operand, Constant) else call.reshape(operand, shape)


def _mat_mul_integers(call: Call) -> Int8:
    left, right = call.operand(0), call.operand(1)
    if isinstance(right, Constant):
        return "computes" if _is_layer(call) and takes_integers(call, 1) else "no"
    return "no" if isinstance(left, Constant) else "computes"


def _gemm_integers(call: Call) -> Int8:
    attributes = call.attributes
    plain = attributes.get_float("alpha", 1.0) == 1 and not attributes.get_int("transA", 0)
    beta = attributes.get_float("beta", 1.0)
    bias = call.operand(2) if call.has(2) and beta != 0 else None
    plain &= bias is None or (isinstance(bias, Constant) and beta == 1 and bias.size > 1)
    return "computes" if plain and takes_integers(call, 0 if attributes.get_int("transB", 0) else 1) else "no"


OPS: Mapping[str, Op] = {
    "Gemm": Op(gemm, fuses=True, int8=_gemm_integers),
    "MatMul": Op(mat_mul, fuses=True, biased=_is_layer, int8=_mat_mul_integers),
}

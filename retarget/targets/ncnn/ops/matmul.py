"""Products of matrices: layers that hold a constant one, and MatMul of two that are computed.

Of one position (a vector) a constant matrix is an InnerProduct, which can have an activation of its own. Of several it
is a Gemm: both take the same time, but for a number of positions that no power of two divides (197 of a ViT) an
InnerProduct takes four times as long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn import int8
from retarget.targets.ncnn.call import NUMBERS, Call, Op
from retarget.targets.ncnn.ops.elementwise import ADD, MUL, binary, with_number
from retarget.targets.ncnn.program import Weight
from retarget.targets.ncnn.rows import aligned
from retarget.targets.ncnn.values import Refusal, Shape, Value

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.ncnn.values import Result

OUTPUTS, BIAS, WEIGHTS = 0, 1, 2
"""Keys of InnerProduct: how many numbers it gives, whether it adds some, and of how many its matrix is."""

ALPHA, TURNED_LEFT, TURNED_RIGHT, HOLDS_LEFT, HOLDS_RIGHT, HOLDS_BIAS = 0, 2, 3, 4, 5, 6
"""Keys of Gemm: a factor of the product, and which matrices are transposed and which in the file."""
M, N, K, BIAS_KIND = 7, 8, 9, 10
"""Keys of Gemm: sizes of what is in the file."""
NO_BIAS, BIAS_OF_COLUMNS = -1, 4
"""``BIAS_KIND`` of Gemm."""

_BATCH_AXES = 2
"""The most that MatMul has in front of the matrices."""


def mat_mul(call: Call) -> Result:
    if call.is_constant(1) and call.rank(1) == 2:
        if (rounded := int8.product(call, turned=False)) is not None:
            return rounded
        return _made(call, linear(call, _left(call), call.array(1, "it").T), call.shape(1)[0])
    if call.is_constant(0) and call.rank(0) == 2 and call.rank(1) > 1:
        made = _by_constant_left(call, call.array(0, "it"), call.value(1))
        if made is not None:
            return _made(call, made, call.shape(0)[1])
    return _made(call, product(call, call.value(0), call.value(1)), call.shape(0)[-1])


def _made(call: Call, value: Value, terms: int) -> Value:
    """``value`` as the node's, whose elements are sums of so many products."""
    assert value.blob is not None
    return call.made(value.blob, value.shape, largest=terms * call.largest(0) * call.largest(1))


def _left(call: Call) -> Value:
    """Operand 0 of a product, whose last axis is multiplied: it cannot be rows."""
    return call.whole(0) if call.rank(0) == 1 else call.value(0)


def linear(call: Call, value: Value, weight: Array, bias: Array | None = None) -> Value:
    """``value`` [..., inputs] times the constant ``weight`` [outputs, inputs], plus ``bias`` [outputs]."""
    outputs, inputs = weight.shape
    shape = (*value.shape[:-1], outputs)
    positions = math.prod(value.row[:-1])
    weights = [Weight(weight)]
    if positions == 1:
        if bias is not None:
            weights.append(Weight(bias, tagged=False))
        params = {OUTPUTS: outputs, BIAS: int(bias is not None), WEIGHTS: outputs * inputs}
        blob = call.add("InnerProduct", [call.view(value, (inputs,))], (outputs,), params, weights)
    else:
        if bias is not None:
            weights.append(Weight(bias))
        params = gemm_params(inputs, outputs, has_bias=bias is not None)
        blob = call.add("Gemm", [call.view(value, (positions, inputs))], (positions, outputs), params, weights)
    return Value(shape, value.dtype, blob, value.rows)


def gemm_params(inputs: int, outputs: int, *, has_bias: bool) -> dict[int, int]:
    """Of a Gemm that holds its right matrix, [outputs, inputs]."""
    return {
        TURNED_RIGHT: 1, HOLDS_RIGHT: 1, HOLDS_BIAS: 1, N: outputs, K: inputs,
        BIAS_KIND: BIAS_OF_COLUMNS if has_bias else NO_BIAS,
    }  # fmt: skip


def _by_constant_left(call: Call, left: Array, right: Value) -> Value | None:
    """The constant ``left`` [m, k] times one matrix in each row of ``right``; None where there are several."""
    if right.rank == 2:
        right = call.with_rows(right, 1)
    if math.prod(right.row[:-2]) != 1:
        return None
    m, k = left.shape
    n = right.shape[-1]
    params = {HOLDS_LEFT: 1, HOLDS_BIAS: 1, M: m, K: k, BIAS_KIND: NO_BIAS}
    blob = call.add("Gemm", [call.view(right, (k, n))], (m, n), params, [Weight(left)])
    return Value((*right.shape[:-2], m, n), right.dtype, blob, right.rows)


def product(call: Call, left: Value, right: Value) -> Value:
    """As ONNX's MatMul has it: axes in front of the last two broadcast, vectors lose theirs."""
    gone = [axis for axis, value in ((-2, left), (-1, right)) if value.rank == 1]
    one = left if left.rank > 1 else replace(call.with_rows(left, 1), shape=(1, *left.shape))
    other = right if right.rank > 1 else replace(call.with_rows(right, 1), shape=(*right.shape, 1))
    one, other = _beside(call, one, other)
    (m, k), n = one.row[-2:], other.row[-1]
    shape = [*np.broadcast_shapes(one.shape[:-2], other.shape[:-2]), one.shape[-2], n]
    firsts, seconds = _batches(one.row[:-2], other.row[:-2])
    if len(firsts) > _BATCH_AXES:
        raise Refusal(f"matrices of {list(left.shape)} and {list(right.shape)} are shared by turns along three axes")
    if set(seconds) <= {1}:  # one matrix for all
        m, firsts, seconds = m * math.prod(firsts), (), ()
    # As vectors where they are that: no Reshape is needed.
    first = call.view(one, (*firsts, m, k) if firsts or m > 1 else (k,))
    second = call.view(other, (*seconds, k, n) if seconds or n > 1 else (k,))
    dims = (
        *np.broadcast_shapes(firsts, seconds),
        *((m,) if m > 1 or firsts else ()),
        *((n,) if n > 1 or seconds else ()),
    )
    blob = call.add("MatMul", [first, second], dims or (1,))
    for axis in gone:
        del shape[axis]
    return Value(tuple(shape), left.dtype, blob, blob.rows)


def _batches(one: Shape, other: Shape) -> tuple[Shape, Shape]:
    """Axes in front of matrices with as few as say the same: neighbours along which each is whole, or 1, are one."""
    rank = max(len(one), len(other))
    left, right = ((1,) * (rank - len(shape)) + tuple(shape) for shape in (one, other))
    found: list[tuple[int, int]] = []
    last = None
    for sizes in zip(left, right, strict=True):
        look = tuple(size == 1 for size in sizes)
        if look == (True, True):
            continue
        found = [*found[:-1], (found[-1][0] * sizes[0], found[-1][1] * sizes[1])] if look == last else [*found, sizes]
        last = look
    return tuple(sizes[0] for sizes in found), tuple(sizes[1] for sizes in found)


def _beside(call: Call, left: Value, right: Value) -> tuple[Value, Value]:
    """Both with rows only along axes in front of their matrices; those of a single left matrix may be rows too."""
    if right.rank == 2:
        right = call.with_rows(right, 1)
        if left.rank == 2:
            return left, right
    elif left.rank == 2:
        left = call.with_rows(left, 1)
    one, other = aligned(call, [left, right])
    return one, other


def gemm(call: Call) -> Result:
    attributes = call.attributes
    alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    turned_left, turned_right = (bool(attributes.get_int(name, 0)) for name in ("transA", "transB"))
    has_bias = call.has(2) and beta != 0
    if not call.is_float(0) and not (alpha.is_integer() and (beta.is_integer() or not has_bias)):
        raise Refusal(f"alpha={alpha:g}, beta={beta:g} of integers: ONNX does not say how these are rounded")
    bias = _row(call, beta) if has_bias else None
    rounded = None if turned_left or alpha != 1 else int8.product(call, turned=turned_right, bias=bias)
    if rounded is not None:
        made = rounded
    elif call.is_constant(1) and not turned_left:
        weight = call.array(1, "it") if turned_right else call.array(1, "it").T
        made = linear(call, call.value(0), weight if alpha == 1 else _times(weight, alpha), bias)
    else:
        made = _of_two(call, alpha, turned_left=turned_left, turned_right=turned_right)
        bias = None
    largest = abs(alpha) * call.shape(0)[0 if turned_left else 1] * call.largest(0) * call.largest(1)
    if has_bias:
        largest += abs(beta) * call.largest(2)
    if has_bias and bias is None:
        added = call.value(2)
        if beta != 1:
            added = replace(added, blob=with_number(call, MUL, added, beta))
        blob, shape = binary(call, ADD, *aligned(call, [made, added]))
        return call.made(blob, shape, largest=largest)
    assert made.blob is not None
    return call.made(made.blob, made.shape, largest=largest)


def _of_two(call: Call, alpha: float, *, turned_left: bool, turned_right: bool) -> Value:
    """A Gemm of two blobs, without a bias."""
    left = call.whole(0) if turned_left else call.value(0)
    right = call.whole(1)
    m, n = left.row[1 if turned_left else 0], right.row[0 if turned_right else 1]
    params = {
        ALPHA: alpha, TURNED_LEFT: int(turned_left), TURNED_RIGHT: int(turned_right), HOLDS_BIAS: 1, BIAS_KIND: NO_BIAS,
    }  # fmt: skip
    blob = call.add("Gemm", [call.view(left, left.row), call.view(right, right.row)], (m, n), params)
    return Value((m * left.rows, n), left.dtype, blob, left.rows)


def _row(call: Call, factor: float) -> Array | None:
    """The constant operand 2 of a Gemm as one number for each column; None where it is not that."""
    if not call.is_constant(2):
        return None
    bias = call.array(2, "it")
    count = call.shape(1)[0 if call.attributes.get_int("transB", 0) else 1]
    if bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1):
        return None
    row = np.broadcast_to(bias.reshape(-1), (count,))
    return row if factor == 1 else _times(row, factor)


def _times(array: Array, factor: float) -> Array:
    return array.astype(np.float32) * np.float32(factor)


OPS: Mapping[str, Op] = {
    "Gemm": Op(gemm, NUMBERS),
    "MatMul": Op(mat_mul, NUMBERS),
}

"""Arithmetic of two operands with ONNX's broadcasting, and functions of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.ncnn.call import FLOATS, NUMBERS, Call, Op
from retarget.targets.ncnn.program import MOST_DIMS, Blob
from retarget.targets.ncnn.values import Refusal, Shape, Value

if TYPE_CHECKING:
    from retarget.targets.ncnn.values import Result

ADD, SUB, MUL, DIV, MAX, MIN, POW = 0, 1, 2, 3, 4, 5, 6
"""``0`` of BinaryOp."""

WITH_NUMBER, NUMBER = 1, 2
"""Keys of BinaryOp: whether its second operand is one number, and the number."""


def together(shapes: Sequence[Shape]) -> list[Shape]:
    """``shapes``, which broadcast to one another, with as few axes as say the same: all of one rank, at most 4.

    Axes side by side along which each of them is whole, or 1, are one. Raises ``Refusal`` where more are left.
    """
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    result = np.broadcast_shapes(*padded)
    groups: list[list[int]] = []
    looks: list[tuple[bool, ...]] = []
    for axis, size in enumerate(result):
        if size == 1:
            continue
        look = tuple(shape[axis] == 1 for shape in padded)
        if looks and looks[-1] == look:
            groups[-1].append(axis)
        else:
            groups.append([axis])
            looks.append(look)
    if len(groups) > MOST_DIMS:
        raise Refusal(f"its operands have {len(groups)} groups of axes between them, and ncnn's blobs have {MOST_DIMS}")
    return [tuple(int(np.prod([shape[axis] for axis in group])) for group in groups) or (1,) for shape in padded]


def binary(call: Call, op: int, left: Value, right: Value) -> tuple[Blob, Shape]:
    """A BinaryOp on two values, whose rows are aligned; the blob, and ONNX's shape of the result."""
    shape = tuple(np.broadcast_shapes(left.shape, right.shape))
    one, other = call.blob(left), call.blob(right)
    if one.dims != other.dims or left.row != right.row:
        one, other = (
            call.view(value, dims) for value, dims in zip((left, right), together([left.row, right.row]), strict=True)
        )
    dims = tuple(np.broadcast_shapes(one.dims, other.dims))
    return call.add("BinaryOp", (one, other), dims, {0: op}), shape


def number_of(call: Call, index: int) -> float | None:
    """The one number that operand ``index`` is, if it is a constant of one element that a param file can hold."""
    if not call.is_constant(index):
        return None
    array = call.array(index, "it")
    if array.size != 1 or not np.isfinite(array.astype(np.float64)).all():
        return None
    return float(array.reshape(()))


def with_number(call: Call, op: int, value: Value, number: float) -> Blob:
    """A BinaryOp on a value and a number."""
    blob = call.blob(value)
    return call.add("BinaryOp", (blob,), blob.dims, {0: op, WITH_NUMBER: 1, NUMBER: number})


def add(call: Call) -> Result:
    number = number_of(call, 1)
    largest = call.largest(0) + call.largest(1)
    if number is not None and len(call.shape(1)) <= call.rank(0):
        value = call.value(0)
        return call.made(with_number(call, ADD, value, number), value.shape, largest=largest)
    blob, shape = binary(call, ADD, *call.aligned(0, 1))
    return call.made(blob, shape, largest=largest)


def relu(call: Call) -> Result:
    value = call.value(0)
    blob = call.blob(value)
    return call.made(call.add("ReLU", (blob,), blob.dims), value.shape)


OPS: Mapping[str, Op] = {"Add": Op(add, NUMBERS), "Relu": Op(relu, FLOATS)}

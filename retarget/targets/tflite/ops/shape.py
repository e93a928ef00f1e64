"""Other shapes of the same numbers: reshapes, transposes, and what is known of a shape when the file is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.program import Codes, Constant, Shape
from retarget.targets.tflite.values import TYPES, Operand, Refusal


def reshape(call: Call) -> Operand:
    allowzero = bool(call.attributes.get_int("allowzero", 0))
    return reshaped(call, call.operand(0), _target(call.operand(0).shape, call.numbers(1, "the shape"), allowzero))


def _target(shape: Shape, wanted: Sequence[int], allowzero: bool) -> Shape:
    """``wanted`` of Reshape for an operand of ``shape``: 0 is the operand's size there, -1 what is left."""
    sizes = [shape[axis] if size == 0 and not allowzero else size for axis, size in enumerate(wanted)]
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(shape) // known if known else 0
    return tuple(sizes)


def flatten(call: Call) -> Operand:
    operand = call.operand(0)
    rank = len(operand.shape)
    axis = call.attributes.get_int("axis", 1)
    cut = axis + rank if axis < 0 else axis
    return reshaped(call, operand, (math.prod(operand.shape[:cut]), math.prod(operand.shape[cut:])))


def squeeze(call: Call) -> Operand:
    shape = call.operand(0).shape
    if call.has(1):
        dropped = {axis % len(shape) for axis in call.numbers(1, "the axes")}
    else:
        dropped = {axis for axis, size in enumerate(shape) if size == 1}
    return reshaped(call, call.operand(0), tuple(size for axis, size in enumerate(shape) if axis not in dropped))


def unsqueeze(call: Call) -> Operand:
    sizes = list(call.operand(0).shape)
    axes = call.numbers(1, "the axes")
    rank = len(sizes) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        sizes.insert(axis, 1)
    return reshaped(call, call.operand(0), tuple(sizes))


def reshaped(call: Call, operand: Operand, shape: Shape) -> Operand:
    """``operand`` with another shape, in the layouts that were chosen for the node."""
    if isinstance(operand, Constant):
        made, codes = operand.reshaped(shape), operand.codes
        if codes is None or codes.quantization.per_channel:
            return made
        return replace(made, codes=Codes(codes.integers.reshaped(shape), codes.quantization))
    if 0 in shape:
        return nothing(call, shape, operand)
    return call.reshape(operand, shape)


def nothing(call: Call, shape: Sequence[int], like: Operand) -> Constant:
    """A result without elements, which is constant whatever the operands are."""
    if any(value.is_graph_output() for value in call.node.outputs):
        raise Refusal("it has no elements, and files have no empty outputs")
    return Constant.of(np.zeros(shape, like.dtype))


def transpose(call: Call) -> Operand:
    operand = call.operand(0)
    perm = tuple(call.attributes.get_ints("perm", tuple(reversed(range(len(operand.shape))))))
    return operand.transposed(perm) if isinstance(operand, Constant) else call.transpose(operand, perm)


def shape(call: Call) -> Constant:
    sizes = call.operand(0).shape
    start, end = call.attributes.get_int("start", 0), call.attributes.get_int("end", len(sizes))
    return Constant.of(sizes[slice(start, end)], "int64")


def size(call: Call) -> Constant:
    return Constant.of(math.prod(call.operand(0).shape), "int64")


def eye_like(call: Call) -> Constant:
    """Of the operand it takes the shape, and the type unless that is said."""
    operand = call.operand(0)
    kind = call.attributes.get_int("dtype", 0)
    dtype = ir.DataType(kind).numpy() if kind else operand.dtype
    rows, columns = operand.shape
    return Constant.of(np.eye(rows, columns, call.attributes.get_int("k", 0), dtype))


def constant_of_shape(call: Call) -> Constant:
    shape = tuple(call.numbers(0, "the shape"))
    value = call.attributes.get_tensor("value", None)
    return Constant.of(np.full(shape, np.float32(0) if value is None else value.numpy().reshape(())))


def range_(call: Call) -> Constant:
    start, limit, delta = (call.array(index, "a bound or the step").item() for index in range(3))
    # In the type of the bounds, as numpy has it of scalars.
    numbers: np.ndarray[tuple[int], np.dtype[np.generic]] = np.arange(start, limit, delta)
    return Constant.of(numbers.astype(call.operand(0).dtype))


OPS: Mapping[str, Op] = {
    # Those of constants alone are folded before anything is asked of them here.
    "ConstantOfShape": Op(constant_of_shape, dtypes=TYPES),
    "EyeLike": Op(eye_like, dtypes=TYPES),
    "Flatten": Op(flatten, dtypes=TYPES, int8="moves"),
    "Range": Op(range_, dtypes=TYPES),
    "Reshape": Op(reshape, dtypes=TYPES, int8="moves"),
    "Shape": Op(shape, dtypes=TYPES),
    "Size": Op(size, dtypes=TYPES),
    "Squeeze": Op(squeeze, dtypes=TYPES, int8="moves"),
    "Transpose": Op(transpose, dtypes=TYPES, int8="moves"),
    "Unsqueeze": Op(unsqueeze, dtypes=TYPES, int8="moves"),
}

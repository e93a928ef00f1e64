"""Elements taken by computed or constant indices.

GATHER and GATHER_ND fail at negative indices, which count from the end in ONNX: those of constants are made positive
here, computed ones by FLOOR_MOD unless their producers show that there are none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from retarget.targets.indices import is_every_place, is_never_negative
from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.layout import FIRST_AXES, Layout, Way
from retarget.targets.tflite.ops.shape import nothing, reshaped
from retarget.targets.tflite.program import Constant, Options, Shape
from retarget.targets.tflite.values import MOST_AXES, TYPES, Operand, Refusal, Value, narrow


def gather(call: Call) -> Operand:
    data = call.operand(0)
    rank = len(data.shape)
    axis = call.attributes.get_int("axis", 0) % rank
    indices = from_front(call, 1, data.shape[axis])
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    if 0 in shape:
        return nothing(call, shape, data)
    options = Options("GatherOptions", {"axis": call.position(axis, rank)})
    taken = call.tensor(indices, layout=Layout.FIRST)
    made = call.emit("GATHER", [call.tensor(data), taken], shape, narrow_dtype(data), options)
    return made.counted() if any(isinstance(each, Value) and each.is_counted for each in (data, indices)) else made


def narrow_dtype(operand: Operand) -> np.dtype[np.generic]:
    """The type of ``operand`` in the file."""
    return narrow(operand).dtype if isinstance(operand, Constant) else operand.dtype


def from_front(call: Call, index: int, size: int | tuple[int, ...]) -> Operand:
    """Operand ``index``, indices of an axis of ``size`` (of several: of one after the other), none from the end."""
    indices = call.operand(index)
    if isinstance(indices, Constant):
        return Constant.of(np.mod(indices.array(), size), "int32")
    value = call.node.inputs[index]
    if value is not None and is_never_negative(value):
        return indices
    return call.emit(
        "FLOOR_MOD",
        [indices, Constant.of(size, "int32")],
        indices.shape,
        options=Options("FloorModOptions"),
        layout=Layout.FIRST,
    )


def _gather_way(node: ir.Node) -> Way:
    """EITHER where one axis of an image is taken parts of, or a spatial one is dropped."""
    data, indices = (None if value is None else value.shape for value in node.inputs[:2])
    if data is None or indices is None or not FIRST_AXES <= len(data) <= MOST_AXES:
        return Way.FIRST
    axis = node.attributes.get_int("axis", 0) % len(data)
    return Way.EITHER if len(indices) == 1 or (len(indices) == 0 and axis > 1) else Way.FIRST


def gather_elements(call: Call) -> Operand:
    data = call.operand(0)
    axis = call.attributes.get_int("axis", 0) % len(data.shape)
    indices = from_front(call, 1, data.shape[axis])
    shape = indices.shape
    if 0 in shape:
        return nothing(call, shape, data)
    if shape[:axis] == data.shape[:axis] and math.prod(data.shape[axis + 1 :]) == 1:
        # Of each row the elements that its own indices name.
        rows, row = (math.prod(shape[:axis]), data.shape[axis]), (math.prod(shape[:axis]), shape[axis])
        options = Options("GatherOptions", {"axis": 1, "batchDims": 1})
        inputs = [reshaped(call, data, rows), reshaped(call, indices, row)]
        return call.reshape(call.emit("GATHER", inputs, row, narrow_dtype(data), options), shape)
    flat = reshaped(call, data, (math.prod(data.shape),))
    places = flat_places(call, indices, data.shape, axis)
    return call.emit("GATHER", [flat, places], shape, narrow_dtype(data), Options("GatherOptions", {"axis": 0}))


def flat_places(call: Call, indices: Operand, shape: Shape, axis: int) -> Operand:
    """Where the elements that ``indices`` name along ``axis`` are among all elements of a value of ``shape``.

    Along the other axes they are where their index itself is.
    """
    if math.prod(shape) > np.iinfo(np.int32).max:
        raise Refusal("there are more elements than int32 can count")
    strides = [math.prod(shape[position + 1 :]) for position in range(len(shape))]
    others = np.zeros(indices.shape, np.int32)
    for position, grid in enumerate(np.indices(indices.shape, np.int32, sparse=True)):
        if position != axis:
            others = others + grid * np.int32(strides[position])
    if isinstance(indices, Constant):
        return Constant.of(indices.array().astype(np.int32) * np.int32(strides[axis]) + others)
    if strides[axis] != 1:
        indices = call.binary("MUL", indices, Constant.of(strides[axis], "int32"), np.int32)
    return call.binary("ADD", indices, Constant.of(others), np.int32) if others.any() else indices


def gather_nd(call: Call) -> Operand:
    data, indices = call.operand(0), call.operand(1)
    batch, count = call.attributes.get_int("batch_dims", 0), indices.shape[-1]
    sizes = data.shape[batch : batch + count]
    shape = (*indices.shape[:-1], *data.shape[batch + count :])
    if 0 in shape:
        return nothing(call, shape, data)
    indices = from_front(call, 1, sizes)
    if not batch and isinstance(indices, Constant) and is_every_place(indices.array(), sizes):
        return reshaped(call, data, shape)
    if not batch:
        return call.emit("GATHER_ND", [data, indices], shape, narrow_dtype(data), Options("GatherNdOptions"))
    rows = math.prod(data.shape[:batch])
    places = reshaped(call, joined_places(call, indices, sizes), (rows, math.prod(indices.shape[batch:-1])))
    flat = reshaped(call, data, (rows, math.prod(sizes), *data.shape[batch + count :]))
    options = Options("GatherOptions", {"axis": 1, "batchDims": 1})
    to = (*places.shape, *data.shape[batch + count :])
    return reshaped(call, call.emit("GATHER", [flat, places], to, narrow_dtype(data), options), shape)


def joined_places(call: Call, indices: Operand, sizes: Shape) -> Operand:
    """``indices`` [..., axes] of axes of ``sizes`` as one index [...] of all these axes together."""
    if math.prod(sizes) > np.iinfo(np.int32).max:
        raise Refusal("there are more elements than int32 can count")
    strides = np.array([math.prod(sizes[position + 1 :]) for position in range(len(sizes))], np.int32)
    shape = indices.shape[:-1]
    if isinstance(indices, Constant):
        return Constant.of((indices.array().astype(np.int32) * strides).sum(-1), "int32")
    if len(sizes) == 1:
        return call.reshape(indices, shape)
    scaled = call.binary("MUL", indices, Constant.of(strides), np.int32)
    return call.emit("SUM", [scaled, call.ints([len(shape)])], shape, options=Options("ReducerOptions"))


def one_hot(call: Call) -> Operand:
    depth = int(call.array(1, "the depth").reshape(-1)[0])
    values = call.fixed(2, "what stands where")
    shape = list(call.operand(0).shape)
    axis = call.attributes.get_int("axis", -1) % (len(shape) + 1)
    indices = call.value(0)
    if 0 in shape or not depth:
        shape.insert(axis, depth)
        return nothing(call, shape, values)
    indices = call.cast(indices, "int32")
    value = call.node.inputs[0]
    if value is not None and not is_never_negative(value):
        # Those from -depth on count from the end; what is out of bounds on either side is nowhere.
        is_negative = call.binary("LESS", indices, Constant.of(0, "int32"), np.bool_)
        from_end = call.binary("ADD", indices, Constant.of(depth, "int32"), np.int32)
        inputs = [is_negative, from_end, indices]
        indices = call.emit("SELECT_V2", inputs, indices.shape, np.int32, Options("SelectV2Options"))
    off, on = (Constant.of(each) for each in values.array())
    options = Options("OneHotOptions", {"axis": axis})
    shape.insert(axis, depth)
    count = call.lowering.constant(Constant.of(depth, "int32"))
    return call.emit("ONE_HOT", [indices, count, on, off], shape, narrow_dtype(values), options)


def reverse_sequence(call: Call) -> Operand:
    operand = call.operand(0)
    attributes, rank = call.attributes, len(operand.shape)
    along, batch = attributes.get_int("time_axis", 0) % rank, attributes.get_int("batch_axis", 1) % rank
    options = Options("ReverseSequenceOptions", {"seqDim": along, "batchDim": batch})
    lengths = call.tensor(call.operand(1))
    return call.emit("REVERSE_SEQUENCE", [operand, lengths], operand.shape, options=options)


OPS: Mapping[str, Op] = {
    "Gather": Op(gather, _gather_way, (0,), dtypes=TYPES, int8="moves"),
    "GatherElements": Op(gather_elements, dtypes=TYPES, int8="moves"),
    "GatherND": Op(gather_nd, dtypes=TYPES, int8="moves"),
    "OneHot": Op(one_hot, dtypes=frozenset({"float32", "int32"})),
    "ReverseSequence": Op(reverse_sequence, dtypes=frozenset({"float32", "int32"})),
}

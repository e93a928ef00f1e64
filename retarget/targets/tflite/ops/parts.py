"""Values joined, cut and repeated along their axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from retarget.targets.tflite.call import Call, Int8, Op
from retarget.targets.tflite.layout import FIRST_AXES, Way
from retarget.targets.tflite.ops.shape import nothing, reshaped
from retarget.targets.tflite.program import Constant, Options, Quantization, Shape, Tensor
from retarget.targets.tflite.values import MOST_AXES, TYPES, Operand, Refusal, Value

PARTS = 4
"""XNNPACK joins so many at a time."""

DELEGATED_AXES = 6
"""XNNPACK takes a CONCATENATION or SPLIT of more axes, and then fails."""


def concat(call: Call) -> Operand:
    parts = [operand for operand in call.operands if operand is not None and 0 not in operand.shape]
    if len(parts) < 2:
        return parts[0] if parts else call.operand(0)
    shape = list(parts[0].shape)
    rank = len(shape)
    axis = call.attributes.get_int("axis", 0) % rank
    shape[axis] = sum(part.shape[axis] for part in parts)
    if rank <= DELEGATED_AXES:
        options = Options("ConcatenationOptions", {"axis": call.position(axis, rank)})
        return call.emit("CONCATENATION", parts, shape, options=options)
    flat = [around(call, part, axis) for part in parts]
    options = Options("ConcatenationOptions", {"axis": 1})
    joined = call.emit("CONCATENATION", flat, three(shape, axis), options=options)
    return call.reshape(joined, shape)


def three(shape: Sequence[int], axis: int) -> Shape:
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def around(call: Call, operand: Operand, axis: int) -> Operand:
    """``operand`` [in front of the axis, axis, behind it]: what is done along one axis needs no more axes."""
    return reshaped(call, operand, three(operand.shape, axis))


def split(call: Call) -> list[Operand]:
    operand = call.value(0)
    axis = call.attributes.get_int("axis", 0) % operand.rank
    size, count = operand.shape[axis], len(call.node.outputs)
    if call.has(1):
        sizes = call.numbers(1, "the sizes of the parts")
    else:
        each = -(-size // count)
        sizes = [min(each, size - min(each * index, size)) for index in range(count)]
    if count == 1:
        return [operand]
    if operand.dtype == np.bool_ or 0 in sizes:
        # The kernels take no bool.
        ends = np.cumsum(sizes)
        return [
            cut(call, operand, {axis: slice(int(end) - part, int(end))}) for end, part in zip(ends, sizes, strict=True)
        ]
    position = _scalar(call, call.position(axis, operand.rank))
    source = call.tensor(operand)
    shapes = [(*operand.shape[:axis], part, *operand.shape[axis + 1 :]) for part in sizes]
    made = [call.result(shape, operand.dtype) for shape in shapes]
    tensors = [tensor for value in made for tensor in value.forms.values()]
    if len(set(sizes)) == 1 and operand.rank <= DELEGATED_AXES:
        options = Options("SplitOptions", {"numSplits": count})
        call.lowering.add("SPLIT", (position, source), tensors, options, call.node.name or "")
    else:
        options = Options("SplitVOptions", {"numSplits": count})
        call.lowering.add("SPLIT_V", (source, call.ints(sizes), position), tensors, options, call.node.name or "")
    return list(made)


def _scalar(call: Call, number: int) -> Tensor:
    return call.lowering.constant(Constant.of(number, "int32"))


def slice_(call: Call) -> Operand:
    operand = call.operand(0)
    starts, ends = call.numbers(1, "where it starts"), call.numbers(2, "where it ends")
    axes = call.numbers(3, "the axes") if call.has(3) else list(range(len(starts)))
    steps = call.numbers(4, "the steps") if call.has(4) else [1] * len(starts)
    rank = len(operand.shape)
    if any(end >= np.iinfo(np.int32).max and step < 0 for end, step in zip(ends, steps, strict=True)):
        raise Refusal(
            "it ends behind the last element with a negative step: that is nothing by ONNX, and all by ONNX Runtime"
        )
    cuts: dict[int, slice] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # Backwards, what starts in front of the first element starts at it.
        first = 0 if step < 0 and start < -operand.shape[axis % rank] else start
        cuts[axis % rank] = slice(first, end, step)
    return cut(call, operand, cuts)


def cut(call: Call, operand: Operand, cuts: Mapping[int, slice]) -> Operand:
    """What ``cuts``, by axis, leave of ``operand``; bounds stay as they are, to hold for open axes of other sizes."""
    full = [cuts.get(axis, slice(None)) for axis in range(len(operand.shape))]
    kept = [range(*each.indices(size)) for each, size in zip(full, operand.shape, strict=True)]
    shape = tuple(len(each) for each in kept)
    if all(each == range(size) for each, size in zip(kept, operand.shape, strict=True)):
        return operand
    if 0 in shape:
        return nothing(call, shape, operand)
    starts, stops = [each.start for each in full], [each.stop for each in full]
    numbers = [call.ints(call.placed([_bounded(bound) for bound in bounds])) for bounds in (starts, stops)]
    numbers.append(call.ints(call.placed([each.step or 1 for each in full])))
    options = Options("StridedSliceOptions", {"beginMask": _open(call, starts), "endMask": _open(call, stops)})
    return call.emit("STRIDED_SLICE", [operand, *numbers], shape, options=options)


def _open(call: Call, bounds: Sequence[int | None]) -> int:
    """A bit for each axis, as it is stored, whose bound is not said."""
    return sum(bit << axis for axis, bit in enumerate(call.placed([int(bound is None) for bound in bounds])))


def _bounded(bound: int | None) -> int:
    limits = np.iinfo(np.int32)
    return 0 if bound is None else min(max(bound, int(limits.min)), int(limits.max))


def expand(call: Call) -> Operand:
    operand = call.operand(0)
    wanted = tuple(call.numbers(1, "the shape"))
    try:
        shape = tuple(np.broadcast_shapes(operand.shape, wanted))
    except ValueError as error:
        raise Refusal(f"{list(operand.shape)} does not expand to {list(wanted)}") from error
    if math.prod(shape) == math.prod(operand.shape):
        return reshaped(call, operand, shape)
    if 0 in shape:
        return nothing(call, shape, operand)
    if (axis := _grown(call, operand, shape)) is not None:
        return _repeated(call, operand, shape, axis)
    sizes = call.ints(call.placed(shape))
    return call.emit("BROADCAST_TO", [operand, sizes], shape, options=Options("BroadcastToOptions"))


def _grown(call: Call, operand: Operand, shape: Shape) -> int | None:
    """The one axis of a fixed size along which floats are repeated a few times: XNNPACK has no BROADCAST_TO.

    So heads of keys are shared by heads of queries, which took twice as long with the builtin kernel.
    """
    if operand.dtype != np.float32 or len(shape) > DELEGATED_AXES:
        return None
    whole = (1,) * (len(shape) - len(operand.shape)) + operand.shape
    axes = [axis for axis, (size, to) in enumerate(zip(whole, shape, strict=True)) if size != to]
    declared = call.node.outputs[0].shape
    if len(axes) != 1 or declared is None or not isinstance(declared[axes[0]], int):
        return None
    return axes[0] if _factors(shape[axes[0]]) else None


def _repeated(call: Call, operand: Operand, shape: Shape, axis: int) -> Operand:
    """``operand`` joined with itself, and that with itself again."""
    size = 1
    made = reshaped(call, operand, (*(shape[:axis]), size, *shape[axis + 1 :]))
    for times in _factors(shape[axis]):
        size *= times
        options = Options("ConcatenationOptions", {"axis": call.position(axis, len(shape))})
        made = call.emit("CONCATENATION", [made] * times, (*shape[:axis], size, *shape[axis + 1 :]), options=options)
    return made


def _factors(times: int) -> list[int]:
    """``times`` as a product of at most two numbers of parts that XNNPACK joins; empty if it is none."""
    pairs = ([each, times // each] for each in range(PARTS, 1, -1) if times % each == 0 and times // each <= PARTS)
    return [each for each in next(pairs, []) if each > 1]


def tile(call: Call) -> Operand:
    operand, repeats = call.operand(0), call.numbers(1, "the repeats")
    shape = tuple(size * times for size, times in zip(operand.shape, repeats, strict=True))
    if shape == operand.shape:
        return operand
    if 0 in shape:
        return nothing(call, shape, operand)
    return call.emit("TILE", [operand, call.ints(call.placed(repeats))], shape, options=Options("TileOptions"))


def trilu(call: Call) -> Operand:
    """What is left out is 0, also where it was not finite."""
    operand = call.operand(0)
    diagonal = call.numbers(1, "the diagonal")[0] if call.has(1) else 0
    ones = np.ones(operand.shape[-2:], np.bool_)
    mask = np.triu(ones, diagonal) if call.attributes.get_int("upper", 1) else np.tril(ones, diagonal)
    if mask.all():
        return operand
    zero = np.zeros((), operand.dtype)
    return call.emit("SELECT_V2", [Constant.of(mask), operand, zero], operand.shape, options=Options("SelectV2Options"))


def up_to(most: int) -> Callable[[ir.Node], Way]:
    """EITHER for images of at most so many axes: of those each axis is named, wherever it is stored."""

    def way(node: ir.Node) -> Way:
        ranks = [
            len(value.shape)
            for value in (node.inputs[0], node.outputs[0])
            if value is not None and value.shape is not None
        ]
        return Way.EITHER if ranks and min(ranks) >= FIRST_AXES and max(ranks) <= most else Way.FIRST

    return way


def _of_one_quantization(call: Call) -> Int8:
    """Whether constants among the operands stand for integers as the computed ones do."""
    found: set[Quantization | None] = set()
    for operand in call.operands:
        if isinstance(operand, Constant) and operand.dtype == np.float32:
            codes = operand.codes
            is_alike = codes is not None and codes.integers.dtype == call.lowering.integers
            found.add(codes.quantization if codes is not None and is_alike else None)
        elif isinstance(operand, Value):
            found.add(operand.quantization)
    return "moves" if len(found) == 1 else "no"


OPS: Mapping[str, Op] = {
    "Concat": Op(concat, up_to(DELEGATED_AXES), dtypes=TYPES, int8=_of_one_quantization),
    "Expand": Op(expand, up_to(MOST_AXES), (0,), dtypes=TYPES, int8="moves"),
    "Slice": Op(slice_, up_to(MOST_AXES), (0,), dtypes=TYPES, int8="moves"),
    "Split": Op(split, up_to(DELEGATED_AXES), (0,), dtypes=TYPES, int8="moves"),
    # The reference kernels have no TILE of int8.
    "Tile": Op(tile, up_to(MOST_AXES), (0,), dtypes=TYPES),
    "Trilu": Op(trilu, up_to(MOST_AXES), (0,), dtypes=TYPES),
}

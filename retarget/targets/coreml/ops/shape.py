"""What changes axes and sizes and computes no element: reshaping, joining, parts, repeats; and shapes as values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from retarget.targets.coreml.call import ANY, NUMBERS, Call, Op
from retarget.targets.coreml.dims import (
    Size,
    joined_sizes,
    length,
    part_of,
    plain,
    product,
    quotient,
    said,
    sized,
    unsized,
)
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.joined import beside, held, reshaped, transposed
from retarget.targets.coreml.values import (
    MOST_AXES,
    NARROW,
    WIDE,
    Codes,
    Dim,
    Joined,
    Refusal,
    Result,
    dtype_of,
    is_known,
)
from retarget.targets.indices import is_never_negative

SMALL = 1 << 16
"""Elements up to which a value that is the same everywhere is written as a constant."""


# ---- axes


def asked(call: Call, index: int) -> list[Size | None]:
    """The sizes that operand ``index`` asks for: numbers as they are given, symbols, or one computed number each.

    Numbers that ONNX knows of the result stand for computed ones.
    """
    operand = call.operand(index)
    if isinstance(operand, np.ndarray):
        return [int(number) for number in operand.reshape(-1)]
    vector = call.var(index)
    (count,) = call.sizes(index)
    known = vector.sym_val
    found: list[Size | None] = [None] * count if known is None else [plain(each) for each in np.asarray(known).tolist()]
    result = said(call.node.outputs[0], call.lowering.sizes, call.lowering.symbols)
    if result is not None and len(result) == count:
        for axis, dim in enumerate(result):
            if is_known(dim) or (dim is not None and not is_known(found[axis])):
                found[axis] = dim
    mine = set(call.shape(0)) if call.node.op_type in ("Reshape", "Expand", "Resize") else set()
    return [
        size if is_known(size) or size in mine else part_of(call, vector, axis, axis + 1)
        for axis, size in enumerate(found)
    ]


def reshape(call: Call) -> Result:
    sizes, own = asked(call, 1), [plain(dim) for dim in call.shape(0)]
    if not call.attributes.get_int("allowzero", 0):
        value = call.node.inputs[1]
        may_be_none = value is not None and not is_never_negative(value)
        for axis, size in enumerate(sizes):
            if isinstance(size, Var) and may_be_none and axis < len(own):
                # A zero that is computed is taken for the size there is, too; sizes of values are none.
                is_none = call.mil.equal(x=size, y=np.int32(0))
                sizes[axis] = call.mil.select(cond=is_none, a=length(call, 0, axis), b=size)
            elif not isinstance(size, Var) and size == 0:
                sizes[axis] = own[axis]
    if -1 in sizes:
        at = sizes.index(-1)
        others = [size for axis, size in enumerate(sizes) if axis != at]
        sizes[at] = None if any(isinstance(size, Var) for size in others) else quotient(own, others)
    computed = [axis for axis, size in enumerate(sizes) if isinstance(size, Var)]
    if len(computed) == 1 and None not in sizes:
        # What the others leave need not be computed.
        sizes[computed[0]] = None
    return reshaped(call, held(call, 0), sizes)


def flatten(call: Call) -> Result:
    own = call.shape(0)
    rank = len(own)
    axis = call.attributes.get_int("axis", 1)
    axis = axis + rank if axis < 0 else axis
    rows, columns = product(own[:axis]), product(own[axis:])
    var = held(call, 0)
    if is_known(rows) or is_known(columns) or rows in own or columns in own:
        return sized(call, var, [rows, columns])
    counts = part_of(call, call.mil.shape(x=var), 0, axis)
    return call.mil.reshape(
        x=var,
        shape=call.mil.concat(
            values=(
                call.mil.reduce_prod(x=counts, axes=[0], keep_dims=True),
                call.mil.const(val=np.array([-1], np.int32)),
            ),
            axis=0,
        ),
    )


def squeeze(call: Call) -> Result:
    own = [plain(dim) for dim in call.shape(0)]
    if call.has(1):
        axes = {axis % len(own) for axis in call.numbers(1, "which axes are dropped")}
    else:
        axes = {axis for axis, dim in enumerate(own) if dim == 1}
        shape = call.node.outputs[0].shape
        if not all(map(is_known, own)) and (shape is None or len(shape) != len(own) - len(axes)):
            raise unsized(call, own)
    return reshaped(call, held(call, 0), _dropped(call, axes))


def _dropped(call: Call, axes: set[int]) -> list[Dim]:
    return [plain(dim) for axis, dim in enumerate(call.shape(0)) if axis not in axes]


def unsqueeze(call: Call) -> Result:
    operand, own = call.operand(0), [plain(dim) for dim in call.shape(0)]
    given = call.numbers(1, "where axes are put")
    axes = sorted(axis % (len(own) + len(given)) for axis in given)
    sizes = list(own)
    for axis in axes:
        sizes.insert(axis, 1)
    if isinstance(operand, Joined) or len(sizes) > MOST_AXES:
        return reshaped(call, held(call, 0), sizes)
    var = call.var(0)
    if var.sym_val is not None and len(sizes) == 1:
        # Sizes are known on, as they are not across expand_dims.
        return call.mil.reshape(x=var, shape=[1])
    return call.mil.expand_dims(x=var, axes=axes)


def transpose(call: Call) -> Result:
    operand, rank = call.operand(0), call.rank(0)
    perm = [axis % rank for axis in call.attributes.get_ints("perm", list(range(rank))[::-1])]
    if perm == list(range(rank)):
        return operand
    if isinstance(operand, Codes):
        return operand.transposed(perm)
    if isinstance(operand, Joined):
        return transposed(call, operand, perm)
    return call.mil.transpose(x=call.var(0), perm=perm)


# ---- joins and parts


def concat(call: Call) -> Result:
    # What has no elements says nothing, and Core ML has no such tensors: as an empty cache at the first step.
    given = [index for index in range(call.count) if 0 not in call.shape(index)]
    axis = call.axis(0)
    if any(isinstance(call.operand(index), Joined) for index in given):
        return _joined_concat(call, given, axis)
    values = tuple(call.var(index) for index in given)
    return call.operand(given[0]) if len(given) == 1 else call.mil.concat(values=values, axis=axis)


def _joined_concat(call: Call, given: Sequence[int], axis: int) -> Result:
    values, lengths = [], []
    for index in given:
        operand = call.operand(index)
        joined = operand if isinstance(operand, Joined) else Joined(call.var(index), call.shape(index))
        values.append(beside(call, joined, axis))
        lengths.append(joined.shape[axis])
    shape = list(call.shape(given[0]))
    total = plain(sum(lengths))  # type: ignore[arg-type]  # symbols add up, too
    return reshaped(call, call.mil.concat(values=tuple(values), axis=1), [*shape[:axis], total, *shape[axis + 1 :]])


def split(call: Call) -> Sequence[Result]:
    axis, outputs = call.axis(0), len(call.node.outputs)
    if call.has(1):
        sizes = call.numbers(1, "how it is split")
    else:
        (whole,) = call.sizes(0, [axis])
        size = math.ceil(whole / outputs)
        sizes = [min(size, max(whole - size * part, 0)) for part in range(outputs)]
    operand, shape = call.operand(0), [plain(dim) for dim in call.shape(0)]
    if outputs == 1:
        return [operand]
    # Parts without elements are none of Core ML's: what uses one is refused.
    parts = [part for part, size in enumerate(sizes) if size]
    if any(call.outputs[part] and part not in parts for part in range(outputs)):
        raise Refusal("one of its parts is empty, and Core ML has no empty tensors")
    sizes = [sizes[part] for part in parts]
    joined = isinstance(operand, Joined)
    var = beside(call, operand, axis) if isinstance(operand, Joined) else call.var(0)
    at = 1 if joined else axis
    made: list[Var] = [var]
    if len(parts) > 1:
        even = len(set(sizes)) == 1
        made = list(
            call.mil.split(x=var, num_splits=len(parts), axis=at)
            if even and is_known(shape[axis])
            else call.mil.split(x=var, split_sizes=sizes, axis=at)
        )
    results: list[Result] = [None] * outputs
    for part, size, each in zip(parts, sizes, made, strict=True):
        dims = [*shape[:axis], size, *shape[axis + 1 :]]
        results[part] = reshaped(call, each, dims) if joined else each
    return results


# ---- repeats


def expand(call: Call) -> Result:
    own = [plain(dim) for dim in call.shape(0)]
    sizes = asked(call, 1)
    rank = max(len(own), len(sizes))
    if rank > MOST_AXES:
        raise Refusal(f"its result has {rank} axes, and Core ML has at most {MOST_AXES}")
    own = [*[1] * (rank - len(own)), *own]
    sizes = [*[1] * (rank - len(sizes)), *sizes]
    var = sized(call, held(call, 0), own)
    counts: list[Size | None] = [
        1
        if own_size == size or size == 1 or (is_known(own_size) and own_size != 1)
        else _count(call, own_size, size, var, axis)
        for axis, (own_size, size) in enumerate(zip(own, sizes, strict=True))
    ]
    return _tiled(call, var, counts)


def _count(call: Call, own: Dim, size: Size | None, var: Var, axis: int) -> Size:
    """How often an axis of size ``own`` is repeated so that it is ``size``, as often as 1 where it is so already."""
    if own == 1:
        return size if isinstance(size, Var) or is_known(size) else _number(call, 1, axis)
    mine = part_of(call, call.mil.shape(x=var), axis, axis + 1)
    there = np.array([size], np.int32) if is_known(size) else size if isinstance(size, Var) else _number(call, 1, axis)
    return call.mil.select(cond=call.mil.equal(x=mine, y=1), a=there, b=np.array([1], np.int32))


def _number(call: Call, index: int, axis: int) -> Var:
    """What operand ``index`` asks of ``axis`` of the result."""
    skipped = max(call.rank(0) - call.sizes(index)[0], 0)
    return part_of(call, call.var(index), axis - skipped, axis - skipped + 1)


def _tiled(call: Call, var: Var, counts: Sequence[Size | None]) -> Var:
    if all(count == 1 for count in counts):
        return var
    if all(isinstance(count, int) for count in counts):
        return call.mil.tile(x=var, reps=np.array(counts, np.int32))
    parts = [count if isinstance(count, Var) else call.mil.const(val=np.array([count], np.int32)) for count in counts]
    return call.mil.tile(x=var, reps=parts[0] if len(parts) == 1 else call.mil.concat(values=tuple(parts), axis=0))


def tile(call: Call) -> Result:
    if call.is_constant(1):
        return _tiled(call, call.var(0), call.numbers(1, "how often it is repeated"))
    return call.mil.tile(x=call.var(0), reps=call.var(1))


# ---- shapes as values


def shape(call: Call) -> Result:
    own = [plain(dim) for dim in call.shape(0)]
    start, end, _ = slice(
        call.attributes.get_int("start", 0), call.attributes.get_int("end") if "end" in call.attributes else None
    ).indices(len(own))
    if all(map(is_known, own[start:end])):
        return np.array(own[start:end], np.int64)
    operand = call.operand(0)
    if isinstance(operand, Joined):
        found = joined_sizes(call, operand.held, own)
        if isinstance(found, np.ndarray):  # all but one, which is not in it
            raise unsized(call, own)
        return part_of(call, found, start, end)
    found = call.mil.shape(x=call.var(0))
    return found if end - start == len(own) else part_of(call, found, start, end)


def size(call: Call) -> Result:
    count = product(call.shape(0))
    if isinstance(count, int):
        return np.array(count, np.int64)
    return call.mil.reduce_prod(x=call.mil.shape(x=held(call, 0)), axes=[0], keep_dims=False)


def constant_of_shape(call: Call) -> Result:
    tensor = call.attributes.get_tensor("value") if "value" in call.attributes else None
    value = np.zeros(1, np.float32) if tensor is None else np.asarray(tensor.numpy()).reshape(-1)
    sizes = asked(call, 0)
    if (
        all(isinstance(each, int) for each in sizes)
        and math.prod(each for each in sizes if isinstance(each, int)) <= SMALL
    ):
        return np.full([each for each in sizes if isinstance(each, int)], value[0])
    return filled(call, call.var(0), value[0])


def filled(call: Call, sizes: Var, value: np.generic) -> Var:
    """A value that is ``value`` everywhere."""
    kind = np.dtype(NARROW.get(value.dtype.name) or WIDE.get(value.dtype.name) or value.dtype)
    if kind == np.bool_:
        return call.mil.cast(x=call.mil.fill(shape=sizes, value=np.int32(value)), dtype="bool")
    return call.mil.fill(shape=sizes, value=value.astype(kind))


def range_(call: Call) -> Result:
    start, end, step = (call.var(index) for index in range(3))
    return call.mil.range_1d(start=start, end=end, step=step)


def positions(call: Call, count: Size) -> Var:
    """0, 1, 2 … as int32, as many as ``count``."""
    if isinstance(count, int):
        return call.mil.const(val=np.arange(count, dtype=np.int32))
    assert isinstance(count, Var)
    end = call.mil.squeeze(x=count, axes=[0])
    return call.mil.range_1d(start=np.int32(0), end=end, step=np.int32(1))


def count(call: Call, index: int, axis: int) -> int | Var:
    """The size of operand ``index`` along ``axis``, a number or computed."""
    found = length(call, index, axis)
    return int(found[0]) if isinstance(found, np.ndarray) else found


def band(call: Call, axes: tuple[int, int]) -> tuple[Var, Var]:
    """Of each place of a matrix along two ``axes`` of the first operand, which row and which column it is."""
    rows, columns = (positions(call, count(call, 0, axis)) for axis in axes)
    return call.mil.expand_dims(x=rows, axes=[1]), call.mil.expand_dims(x=columns, axes=[0])


def eye_like(call: Call) -> Result:
    kind = call.attributes.get_int("dtype", 0)
    value = call.node.inputs[0]
    found = ir.DataType(kind) if kind else value.dtype if value is not None else None
    own = np.dtype(np.float32) if found is None else found.numpy()
    diagonal = call.attributes.get_int("k", 0)
    sizes = [plain(dim) for dim in call.shape(0)]
    if all(isinstance(each, int) for each in sizes):
        rows, columns = (each for each in sizes if isinstance(each, int))
        return np.eye(rows, columns, diagonal).astype(own)
    row, column = band(call, (0, 1))
    is_one = call.mil.equal(x=call.mil.sub(x=column, y=row), y=np.int32(diagonal))
    name = NARROW.get(own.name) or WIDE.get(own.name) or own.name
    if name == "bool":
        return is_one
    return call.mil.cast(x=is_one, dtype={"float32": "fp32", "float16": "fp16"}.get(name, name))


def trilu(call: Call) -> Result:
    """What is left out is replaced rather than multiplied by zero: infinities and NaN are left out, too."""
    rank = call.rank(0)
    upper = bool(call.attributes.get_int("upper", 1))
    fixed = not call.has(1) or call.is_constant(1)
    diagonal = (call.numbers(1, "the diagonal")[0] if call.has(1) else 0) if fixed else None
    sizes = [plain(dim) for dim in call.shape(0)[-2:]]
    var = call.var(0)
    if diagonal is not None and all(isinstance(each, int) for each in sizes):
        rows, columns = (each for each in sizes if isinstance(each, int))
        places = np.arange(columns) - np.arange(rows)[:, None]
        kept = call.mil.const(val=places >= diagonal if upper else places <= diagonal)
    else:
        row, column = band(call, (rank - 2, rank - 1))
        places_var = call.mil.sub(x=column, y=row)
        limit = np.int32(diagonal) if diagonal is not None else sized(call, call.var(1), [])
        compare = call.mil.greater_equal if upper else call.mil.less_equal
        kept = compare(x=places_var, y=limit)
    return call.mil.select(cond=kept, a=var, b=np.zeros((), dtype_of(var))[()])


OPS: Mapping[str, Op] = {
    "Concat": Op(concat, ANY, moves=True),
    "ConstantOfShape": Op(constant_of_shape, frozenset({"int32"})),
    "Expand": Op(expand, ANY, moves=True),
    "EyeLike": Op(eye_like, ANY, small=True),
    "Flatten": Op(flatten, ANY, moves=True),
    "Range": Op(range_, NUMBERS),
    "Reshape": Op(reshape, ANY, moves=True),
    "Shape": Op(shape, ANY, small=True),
    "Size": Op(size, ANY, small=True),
    "Split": Op(split, ANY, moves=True),
    "Squeeze": Op(squeeze, ANY, moves=True),
    "Tile": Op(tile, ANY, moves=True),
    "Transpose": Op(transpose, ANY, moves=True),
    "Trilu": Op(trilu, ANY, moves=True),
    "Unsqueeze": Op(unsqueeze, ANY, moves=True),
}

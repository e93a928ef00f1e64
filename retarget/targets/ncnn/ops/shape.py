"""What changes no element: shapes, and the order of axes; and shapes as values, which are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise, permutations
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget.targets.ncnn.call import ANY, Call, Lower, Op
from retarget.targets.ncnn.program import MOST_DIMS, Blob, Dims
from retarget.targets.ncnn.values import Codes, Quantized, Refusal, Shape, Value, plain_dims
from retarget.targets.walk import folded_arrays

if TYPE_CHECKING:
    from retarget.targets.ncnn.values import Result

# ---- values in other blobs


def held(value: Value, blob: Blob, shape: Sequence[int]) -> Value:
    """Elements of ``value`` in ``blob``, as a value of ``shape``."""
    assert math.prod(shape) == blob.size * blob.rows, (tuple(shape), blob.dims, blob.rows)
    return Value(tuple(shape), value.dtype, blob, blob.rows, largest=value.largest)


def in_shape(call: Call, value: Value, shape: Sequence[int]) -> Value:
    """``value`` in another of ONNX's shapes, the elements in their order: no layer where the rows can stay."""
    if value.rows > 1 and not (shape and shape[0] % value.rows == 0):
        value = call.with_rows(value, 1)
    return replace(value, shape=tuple(shape))


def standing(call: Call, value: Value, axes: Sequence[int]) -> tuple[Blob, list[int]] | None:
    """A row of ``value`` in a blob of which each of ``axes``, in rising order, is a dim of its own; and which dims.

    None where that takes too many dims, which it never does for one axis.
    """
    row = value.row
    for dims in (call.blob(value).dims, plain_dims(row), apart(row, axes)):
        if len(dims) <= MOST_DIMS and (found := dims_of(dims, row, axes)) is not None:
            return call.view(value, dims), found
    return None


def apart(shape: Shape, axes: Sequence[int]) -> Dims:
    """``shape`` with the axes between ``axes`` joined, and left out where they are 1."""
    dims: list[int] = []
    start = 0
    for axis in (*axes, len(shape)):
        between = math.prod(shape[start:axis])
        dims += [between] if between > 1 else []
        dims += [shape[axis]] if axis < len(shape) else []
        start = axis + 1
    return tuple(dims)


def dims_of(dims: Dims, shape: Shape, axes: Sequence[int]) -> list[int] | None:
    """Which of ``dims``, a grouping of ``shape``, each of ``axes`` is; None where one of them is none by itself."""
    found: list[int] = []
    for axis in axes:
        outer = math.prod(shape[:axis])
        for place in range(found[-1] + 1 if found else 0, len(dims)):
            if dims[place] == shape[axis] and math.prod(dims[:place]) == outer:
                found.append(place)
                break
        else:
            return None
    return found


def is_open(call: Call, index: int, axes: Iterable[int]) -> bool:
    """Whether ONNX leaves the size of operand ``index`` along one of ``axes`` open."""
    value = call.node.inputs[index]
    return value is None or value.shape is None or any(isinstance(value.shape[axis], ir.SymbolicDim) for axis in axes)


# ---- the order of axes

ORDERS = {
    2: "wh hw",
    3: "whc hwc wch cwh hcw chw",
    4: "whdc hwdc wdhc dwhc hdwc dhwc whcd hwcd wchd cwhd hcwd chwd "
    "wdch dwch wcdh cwdh dcwh cdwh hdcw dhcw hcdw chdw dchw cdhw",
}
"""``0`` of Permute for so many dims: which dims of its input those of its result are, the innermost first."""

NAMES = {2: "hw", 3: "chw", 4: "cdhw"}
"""Of dims, the outermost first."""


def transposed(call: Call, value: Value, perm: Sequence[int]) -> Value:
    """The axes of ``value`` in the order ``perm``: Permute layers, or none where only axes of size 1 move.

    The rows stay where axis 0 stays the first.
    """
    if value.rows > 1 and perm[0] != 0:
        value = call.with_rows(value, 1)
    shape, row = [value.shape[axis] for axis in perm], value.row
    moved = [axis for axis in perm if row[axis] != 1]
    if moved == sorted(moved):
        return in_shape(call, value, shape)
    for dims in (call.blob(value).dims, plain_dims(row), joined(row, perm)):
        order = order_of(dims, row, perm)
        if order is not None and len(dims) <= MOST_DIMS:
            return held(value, permuted(call, call.view(value, dims), order), shape)
    blob, dims = call.blob(value), joined(row, perm)
    for before, move in steps(dims, tuple(order_of(dims, row, perm) or ())):
        blob = permuted(call, call.lowering.reshaped(blob, before, call.node.name or ""), move)
    return held(value, blob, shape)


def permuted(call: Call, blob: Blob, order: Sequence[int]) -> Blob:
    """``blob`` with its dims in ``order``."""
    names = NAMES[len(order)]
    number = ORDERS[len(order)].split().index("".join(names[place] for place in reversed(order)))
    return call.add("Permute", (blob,), [blob.dims[place] for place in order], {0: number})


def joined(shape: Shape, perm: Sequence[int]) -> Dims:
    """``shape`` without axes of size 1, those joined that are side by side before and behind ``perm``."""
    behind = [axis for axis in perm if shape[axis] != 1]
    follows = set(pairwise(behind))
    dims: list[int] = []
    last = None
    for axis in sorted(behind):
        if (last, axis) in follows:
            dims[-1] *= shape[axis]
        else:
            dims.append(shape[axis])
        last = axis
    return tuple(dims)


def order_of(dims: Dims, shape: Shape, perm: Sequence[int]) -> list[int] | None:
    """The order of ``dims``, a grouping of ``shape``, that is ``perm`` of the axes; None where that splits one."""
    groups: list[list[int]] = []
    rest = [axis for axis, size in enumerate(shape) if size != 1]
    for size in dims:
        groups.append([])
        while math.prod(shape[axis] for axis in groups[-1]) < size and rest:
            groups[-1].append(rest.pop(0))
        if math.prod(shape[axis] for axis in groups[-1]) != size:
            return None
    place = {axis: number for number, axis in enumerate(axis for axis in perm if shape[axis] != 1)}
    order = sorted(range(len(dims)), key=lambda group: place[groups[group][0]] if groups[group] else -1)
    flat = [place[axis] for group in order for axis in groups[group]]
    return order if flat == sorted(flat) else None


@cache
def steps(dims: Dims, order: tuple[int, ...]) -> list[tuple[Dims, tuple[int, ...]]]:
    """``order`` of more dims than blobs have as several of few, each with the dims in front of it.

    Each joins as many as can be.
    """
    if len(dims) <= MOST_DIMS:
        return [(dims, order)]
    best: tuple[Dims, tuple[int, ...], Dims, tuple[int, ...]] | None = None
    for cuts in combinations(range(1, len(dims)), MOST_DIMS - 1):
        parts = [range(start, stop) for start, stop in zip((0, *cuts), (*cuts, len(dims)), strict=True)]
        for move in permutations(range(MOST_DIMS)):
            now = [place for part in move for place in parts[part]]
            after = joined(tuple(dims[place] for place in now), [now.index(place) for place in order])
            if best is None or len(after) < len(best[2]):
                left = order_of(after, tuple(dims[place] for place in now), [now.index(place) for place in order])
                assert left is not None
                best = tuple(math.prod(dims[at] for at in part) for part in parts), move, after, tuple(left)
    assert best is not None
    first, move, after, left_order = best
    return [(first, move), *(steps(after, left_order) if len(after) > 1 else [])]


# ---- operators


def moving(lower: Lower, *, keeps_codes: bool = False) -> Lower:
    """``lower``, which moves the elements of operand 0, for one that was rounded to codes too: it moves the codes.

    Constant codes become floats in front of it, unless it ``keeps_codes``.
    """

    def of_codes(call: Call) -> Result | Sequence[Result]:
        operand = call.operands[0]
        if isinstance(operand, Codes) and not keeps_codes:
            moved = folded_arrays(call.node, [operand.array(), *call.operands[1:]])
            return lower(call) if moved is None else moved
        if not isinstance(operand, Quantized):
            return lower(call)
        # What nobody asks for of the two is not written.
        given = (operand.of, operand.codes)
        floats, codes = (_listed(lower(replace(call, operands=(each, *call.operands[1:])))) for each in given)
        return [
            Quantized(one, operand.scale, other) if isinstance(one, Value) and isinstance(other, Value) else one
            for one, other in zip(floats, codes, strict=True)
        ]

    return of_codes


def _listed(made: Result | Sequence[Result]) -> Sequence[Result]:
    return made if isinstance(made, Sequence) else [made]


def identity(call: Call) -> Result:
    return call.operand(0)


def reshape(call: Call) -> Result:
    shape, wanted = call.shape(0), call.numbers(1, "the shape")
    allowzero = bool(call.attributes.get_int("allowzero", 0))
    sizes = [shape[axis] if size == 0 and not allowzero else size for axis, size in enumerate(wanted)]
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(shape) // known if known else 0
    if math.prod(sizes) != math.prod(shape):
        raise Refusal(f"{list(shape)} is to be {wanted}, which has another number of elements")
    return _reshaped(call, sizes)


def flatten(call: Call) -> Result:
    shape = call.shape(0)
    axis = call.attributes.get_int("axis", 1)
    cut = axis + len(shape) if axis < 0 else axis
    return _reshaped(call, [math.prod(shape[:cut]), math.prod(shape[cut:])])


def squeeze(call: Call) -> Result:
    shape = call.shape(0)
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    dropped = [axis % len(shape) for axis in call.numbers(1, "the axes")] if call.has(1) else ones
    return _reshaped(call, [size for axis, size in enumerate(shape) if axis not in dropped])


def unsqueeze(call: Call) -> Result:
    sizes, axes = list(call.shape(0)), call.numbers(1, "the axes")
    for axis in sorted(axis % (len(sizes) + len(axes)) for axis in axes):
        sizes.insert(axis, 1)
    return _reshaped(call, sizes)


def _reshaped(call: Call, shape: Sequence[int]) -> Result:
    operand = call.operand(0)
    if isinstance(operand, Codes):
        return _codes_in(operand, tuple(shape))
    return in_shape(call, call.value(0), shape)


def _codes_in(codes: Codes, shape: Shape) -> Result:
    """``codes`` in ``shape``, as floats where their scales hang on an axis that is no more."""
    around = [size for size in codes.shape if size != 1]
    scales = codes.scale.size
    if scales == 1:
        scale_shape: Shape = (1,) * len(shape)
    elif around == [size for size in shape if size != 1]:
        varied = iter(size for axis, size in enumerate(codes.scale.shape) if codes.shape[axis] != 1)
        scale_shape = tuple(next(varied) if size != 1 else 1 for size in shape)
    else:
        return codes.array().reshape(shape)
    zero = codes.zero_point
    return Codes(
        codes.data.reshape(shape), codes.scale.reshape(scale_shape), None if zero is None else zero.reshape(scale_shape)
    )


def transpose(call: Call) -> Result:
    perm = list(call.attributes.get_ints("perm", list(range(call.rank(0)))[::-1]))
    operand = call.operand(0)
    if isinstance(operand, Codes):
        zero = operand.zero_point
        return Codes(
            operand.data.transpose(perm),
            operand.scale.transpose(perm),
            None if zero is None else zero.transpose(perm),
        )
    return transposed(call, call.value(0), perm)


def shape_(call: Call) -> Result:
    start = call.attributes.get_int("start", 0)
    end = call.attributes.get_int("end", call.rank(0))
    return np.array(call.shape(0)[start:end], np.int64)


def size_(call: Call) -> Result:
    return np.array(math.prod(call.shape(0)), np.int64)


def eye_like(call: Call) -> Result:
    rows, columns = call.shape(0)
    return np.eye(rows, columns, k=call.attributes.get_int("k", 0)).astype(call.result_dtype())


def of_known_size(call: Call) -> Result:
    """Range and ConstantOfShape, whose constant operands are folded before."""
    del call
    raise Refusal("how large its result is, is computed, and sizes must be known when the file is written")


OPS: Mapping[str, Op] = {
    "ConstantOfShape": Op(of_known_size, ANY),
    "EyeLike": Op(eye_like, ANY),
    "Flatten": Op(moving(flatten, keeps_codes=True), ANY),
    "Identity": Op(identity, ANY),
    "Range": Op(of_known_size, ANY),
    "Reshape": Op(moving(reshape, keeps_codes=True), ANY),
    "Shape": Op(shape_, ANY),
    "Size": Op(size_, ANY),
    "Squeeze": Op(moving(squeeze, keeps_codes=True), ANY),
    "Transpose": Op(moving(transpose, keeps_codes=True), ANY),
    "Unsqueeze": Op(moving(unsqueeze, keeps_codes=True), ANY),
}

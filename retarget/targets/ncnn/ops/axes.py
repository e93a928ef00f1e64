"""Which dims of a blob are which axes of ONNX's: a layer takes a blob as it is where its dims say the same."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import combinations_with_replacement

import numpy as np

from retarget.targets.ncnn.call import Call
from retarget.targets.ncnn.program import MOST_DIMS, Blob, Dims
from retarget.targets.ncnn.values import Refusal, Shape, Value, plain_dims


def along(call: Call, value: Value, axes: Collection[int]) -> tuple[Blob, tuple[int, ...]]:
    """One row of ``value`` in dims of which each is of ``axes`` alone or of others alone, and those of ``axes``.

    No dims where each of ``axes`` has size 1. Raises ``Refusal`` where there are more dims than ncnn's blobs have.
    """
    row, blob = value.row, call.blob(value)
    for dims in (blob.dims, plain_dims(row), _joined(row, axes)):
        found = None if dims is None else held(row, dims, axes)
        if dims is not None and found is not None:
            return call.view(value, dims), found
    raise Refusal(f"its axes {sorted(axes)} leave more than {MOST_DIMS} groups of axes, and ncnn's blobs have no more")


def around(call: Call, value: Value, axis: int) -> tuple[Blob, int]:
    """One row of ``value`` in dims of which one is ``axis``, and which, also where the axis has size 1."""
    if value.row[axis] == 1:
        return call.view(value, (math.prod(value.row), 1)), 1
    blob, (place,) = along(call, value, [axis])
    return blob, place


def held(row: Shape, dims: Dims, axes: Collection[int]) -> tuple[int, ...] | None:
    """The dims that are ``axes`` of a value whose row has the shape ``row``; None where one is others too."""
    waiting = [axis for axis, size in enumerate(row) if size != 1]
    found: list[int] = []
    for place, dim in enumerate(dims):
        joined: list[int] = []
        while dim != math.prod(row[axis] for axis in joined):
            if not waiting:
                return None
            joined.append(waiting.pop(0))
            if math.prod(row[axis] for axis in joined) > dim:
                return None
        among = {axis in axes for axis in joined}
        if len(among) == 2:
            return None
        if among == {True}:
            found.append(place)
    return tuple(found)


def _joined(row: Shape, axes: Collection[int]) -> Dims | None:
    """``row`` with axes side by side joined as far as all are of ``axes``, or none is."""
    dims: list[int] = []
    last: bool | None = None
    for axis, size in enumerate(row):
        if size == 1:
            continue
        if (axis in axes) == last:
            dims[-1] *= size
        else:
            dims.append(size)
        last = axis in axes
    return tuple(dims) or (1,) if len(dims) <= MOST_DIMS else None


def beside(call: Call, values: Sequence[Value]) -> list[Blob]:
    """Blobs of ``values``, whose rows are aligned, of one rank, which ncnn's layers broadcast to one another as ONNX
    does: in dims in which most of them are already. One element alone is a blob of any rank.

    Raises ``Refusal`` where no dims do.
    """
    rank = max(value.rank for value in values)
    shapes = [(1,) * (rank - len(value.row)) + value.row for value in values]
    result = tuple(np.broadcast_shapes(*shapes))
    blobs = [call.blob(value) for value in values]
    plain = plain_dims(result)
    best: tuple[tuple[int, bool], list[Dims]] | None = None
    for groups in _groupings(result):
        sizes = [tuple(math.prod(shape[axis] for axis in group) for group in groups) for shape in shapes]
        whole = tuple(math.prod(result[axis] for axis in group) for group in groups)
        if any(dim not in (1, full) for dims in sizes for dim, full in zip(dims, whole, strict=True)):
            continue
        moved = sum(
            blob.size
            for blob, dims in zip(blobs, sizes, strict=True)
            if blob.dims != dims and blob.size > 1 and not call.lowering.is_memory(blob)
        )
        cost = (moved, whole != plain)
        if best is None or cost < best[0]:
            best = cost, sizes
    if best is None:
        raise Refusal(f"its operands broadcast along more than the {MOST_DIMS} dims of ncnn's blobs")
    return [
        call.view(value, (1,) if blob.size == 1 else dims)
        for value, blob, dims in zip(values, blobs, best[1], strict=True)
    ]


def _groupings(result: Shape) -> Iterator[list[list[int]]]:
    """The ways to lay the axes of ``result`` that are not 1, in their order, into the dims of a blob; dims may be
    of none."""
    tight = [axis for axis, size in enumerate(result) if size != 1]
    for count in range(1, MOST_DIMS + 1):
        for places in combinations_with_replacement(range(count), len(tight)):
            groups: list[list[int]] = [[] for _ in range(count)]
            for axis, place in zip(tight, places, strict=True):
                groups[place].append(axis)
            yield groups

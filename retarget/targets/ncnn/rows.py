"""Rows: what of a value's axis 0 is counted by ``Mat::n``, and Reshape layers that move it there and back.

A Reshape with ``12`` (the axis of its input that the rows become) or ``13`` (the axis of its result that becomes rows)
sees all rows at once; every other layer is run on one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retarget.targets.ncnn.program import MOST_DIMS, SIZES, Blob, Layer, Param
from retarget.targets.ncnn.values import Refusal, Value, plain_dims, row_shape

if TYPE_CHECKING:
    from retarget.targets.ncnn.call import Call

EXPRESSION, FROM_ROWS, TO_ROWS = 6, 12, 13


def with_rows(call: Call, value: Value, count: int) -> Value:
    """``value`` with ``count`` rows. Raises ``Refusal`` where its axis 0 cannot be cut so, or it has too many axes."""
    if value.rows == count:
        return value
    if not value.shape or value.shape[0] % count:
        raise Refusal(f"axis 0 of {list(value.shape)} cannot be held as {count} rows")
    source = call.blob(value)
    dims = plain_dims(row_shape(value.shape, count))
    made = call.lowering.moved_rows(source, dims, count, call.node.name or "")
    return Value(value.shape, value.dtype, made, count, largest=value.largest)


def regrouped(source: Blob, dims: tuple[int, ...], count: int, origin: str) -> Layer:
    """The Reshape that gives ``source`` other dims and rows."""
    params: dict[int, Param] = {}
    sizes = dims if count == 1 else (-1, *dims)  # rows are the axis in front of the others
    if len(sizes) > MOST_DIMS:
        params[EXPRESSION] = ",".join(map(str, reversed(sizes)))
    else:
        params |= dict(zip(SIZES[len(sizes)], sizes, strict=True))
    if source.rows > 1:
        params[FROM_ROWS] = 0
    if count > 1:
        params[TO_ROWS] = 0
    return Layer("Reshape", (source,), (Blob(dims, count, source.kind),), params, origin=origin)


def aligned(call: Call, values: Sequence[Value]) -> list[Value]:
    """``values`` such that each has as many rows as the others, or axis 0 of size 1 (or none) and no rows.

    A blob without rows is there for each row of the others.
    """
    counts = {value.rows for value in values if value.rows > 1}
    if not counts:
        return list(values)
    rank = max(value.rank for value in values)

    def is_shared(value: Value) -> bool:
        return value.rows == 1 and (value.rank < rank or value.shape[0] == 1)

    beside = [value for value in values if not is_shared(value)]
    # Values of a lower rank than the others have their rows at another axis.
    if len(counts) == 1 and all(value.rank == rank for value in beside):
        (count,) = counts
        if all(value.rows == count or value.shape[0] == count for value in beside):
            return [value if is_shared(value) else with_rows(call, value, count) for value in values]
    return [with_rows(call, value, 1) for value in values]

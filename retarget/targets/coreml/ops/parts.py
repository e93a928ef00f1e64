"""Axes and parts of values, written for whatever operator needs them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retarget.targets.coreml.call import Call
from retarget.targets.coreml.dims import Size, part_of, sized, told
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.values import Dim, is_known


def known(dim: Dim) -> int | None:
    """The size of one dimension; None where it is open."""
    return int(dim) if isinstance(dim, int | np.integer) else None


def reshaped(call: Call, x: Var, shape: Sequence[Dim], *sources: Var) -> Var:
    """``x`` of another shape. Dimensions that are open are those of ``x`` or ``sources``, at most one is another."""
    strange = [dim for dim in shape if not is_known(dim) and dim not in x.shape]
    read: list[Size] = [length(call, dim, *sources) or dim if dim in strange[1:] else dim for dim in shape]
    return told(sized(call, x, read), shape)


def length(call: Call, dim: Dim, *sources: Var) -> Var | None:
    """One dimension that is open, as a vector of one number; None where none of ``sources`` has it."""
    for source in sources:
        for axis, found in enumerate(source.shape):
            if not is_known(found) and found == dim:
                return part_of(call, call.mil.shape(x=source), axis, axis + 1)
    return None


def transposed(call: Call, x: Var, perm: Sequence[int]) -> Var:
    """``x`` with its axes as ``perm`` says."""
    return x if list(perm) == list(range(x.rank)) else call.mil.transpose(x=x, perm=list(perm))


def concatenated(call: Call, values: Sequence[Var], axis: int) -> Var:
    """``values`` one behind the other along ``axis``."""
    return values[0] if len(values) == 1 else call.mil.concat(values=list(values), axis=axis)


def part(call: Call, x: Var, axis: int, kept: slice) -> Var:
    """A range of ``x`` along ``axis``, whose ends are numbers; what ends nowhere goes on to the end."""
    axis %= x.rank
    size = x.shape[axis]
    if is_known(size) and range(*kept.indices(int(size))) == range(int(size)):
        return x
    others = [at != axis for at in range(x.rank)]
    begin, end, stride = [0] * x.rank, [0] * x.rank, [1] * x.rank
    begin[axis], end[axis], stride[axis] = kept.start or 0, kept.stop or 0, kept.step or 1
    end_mask = list(others)
    end_mask[axis] = kept.stop is None
    return call.mil.slice_by_index(
        x=x,
        begin=begin,
        end=end,
        stride=stride if stride[axis] != 1 else None,
        begin_mask=others,
        end_mask=end_mask,
    )


def unknown(call: Call, x: Var) -> Var:
    """``x`` as a loop begins with it: the builder would write the loop's body as if a constant stayed what it is."""
    made = call.mil.identity(x=x)
    made._sym_val = None
    return made

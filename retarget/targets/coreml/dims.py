"""Sizes that are known, open (coremltools' symbols) or computed when the model runs, and values given such axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
import onnx_ir as ir

from retarget.targets.coreml.library import Var, types
from retarget.targets.coreml.values import Dim, Open, is_known

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.coreml.call import Call

Size: TypeAlias = "Dim | Var"
"""A dimension, or one int32 number that is computed: [1]."""

EMPTY = "its result is empty, and Core ML has no empty tensors"

LARGE = 1 << 31
"""No axis is as long."""


# ---- arithmetic


def plain(dim: Dim) -> Dim:
    """``dim`` as a Python number where it is one; what coremltools computes of symbols can be a number, too."""
    return int(cast("int", dim)) if is_known(dim) or getattr(dim, "is_Integer", False) else dim


def product(dims: Sequence[Dim]) -> Dim:
    return plain(math.prod(cast("Sequence[int]", dims)))


def quotient(dims: Sequence[Dim], others: Sequence[Dim]) -> Dim | None:
    """How much longer a value of ``dims`` is than one of ``others``; None where that is not known."""
    whole, part = product(dims), product(others)
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part and whole % part == 0 else None
    found = plain(whole / part)  # type: ignore[operator]  # symbols cancel out
    return found if isinstance(found, int) else None


def bounds(call: Call, dim: Dim) -> tuple[int, int]:
    """The least and the largest that a dimension can be, as far as is known."""
    if is_known(dim):
        return int(cast("int", dim)), int(cast("int", dim))
    for name, symbol in call.lowering.symbols.items():
        if symbol == dim:
            extent = call.lowering.job.shapes[name]
            return extent.min, extent.max
    return 1, LARGE


def said(value: ir.Value, sizes: Mapping[str, int], symbols: Mapping[str, object]) -> tuple[Dim | None, ...] | None:
    """The dimensions that ONNX says of a value, None for those that it has no name for; None where it says nothing.

    ``sizes``: names that stand for a number. ``symbols``: names that stand for an open dimension.
    """
    if value.shape is None:
        return None
    names = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]
    return tuple(name if isinstance(name, int) else sizes.get(name, symbols.get(name)) for name in names)


def told(var: Var, dims: Sequence[Dim | None] | None) -> Var:
    """Let coremltools know the sizes ``dims`` of a value, where its own shape inference made up a symbol.

    It loses what a dimension is at every size that is computed; ONNX kept the name. There is no public way to say it.
    """
    if dims is None or len(dims) != var.rank or not dims:
        return var
    shape = tuple(own if is_known(own) or dim is None else dim for own, dim in zip(var.shape, dims, strict=True))
    if shape != tuple(var.shape):
        var._sym_type = types.tensor(var.dtype, shape)
    return var


# ---- sizes when the model runs


def ints(call: Call, *numbers: int) -> Var:
    return call.mil.const(val=np.array(numbers, np.int32))


def length(call: Call, index: int, axis: int) -> Var | Array:
    """The size of operand ``index`` along ``axis`` as one int32 number: [1]."""
    dim = plain(call.shape(index)[axis])
    if isinstance(dim, int):
        return np.array([dim], np.int32)
    return part_of(call, call.mil.shape(x=call.var(index)), axis, axis + 1)


def part_of(call: Call, vector: Var, start: int, stop: int) -> Var:
    """Some numbers of a vector."""
    return call.mil.slice_by_index(x=vector, begin=ints(call, start), end=ints(call, stop))


def joined_sizes(call: Call, var: Var, sizes: Sequence[Size | None]) -> Var | Array:
    """``sizes`` as one vector: a constant where at most one is not known, which is -1 in it.

    Others are read off the shape of ``var`` where that has them. Raises ``Open`` where more than one is unknown then.
    """
    settled = [size if isinstance(size, Var) or size is None else plain(size) for size in sizes]
    if sum(not isinstance(size, int) for size in settled) <= 1:
        return np.array([size if isinstance(size, int) else -1 for size in settled], np.int32)
    own = [plain(dim) for dim in var.shape]
    parts: list[tuple[str, list[int] | Var]] = []  # runs: of numbers, of axes of var side by side, or computed
    unknown = 0
    for size in settled:
        if isinstance(size, Var):
            parts.append(("computed", size))
            continue
        if size is not None and not isinstance(size, int) and size in own:
            kind, number = "own", own.index(size)
        else:
            kind, number = "known", size if isinstance(size, int) else -1
            unknown += number == -1
        last = parts[-1] if parts else ("", [])
        run = last[1]
        if isinstance(run, list) and last[0] == kind and (kind == "known" or run[-1] + 1 == number):
            run.append(number)
        else:
            parts.append((kind, [number]))
    if unknown > 1:
        raise unsized(call, settled)
    shape = call.mil.shape(x=var)
    written = [
        run
        if isinstance(run, Var)
        else ints(call, *run)
        if kind == "known"
        else part_of(call, shape, run[0], run[-1] + 1)
        for kind, run in parts
    ]
    return written[0] if len(written) == 1 else call.mil.concat(values=tuple(written), axis=0)


def unsized(call: Call, sizes: Sequence[object]) -> Open:
    """That the dimensions among ``sizes`` must be known."""
    free = frozenset(name for name, symbol in call.lowering.symbols.items() if symbol in sizes)
    return Open("more than one of its sizes is open", free or frozenset(call.lowering.free))


def sized(call: Call, var: Var, sizes: Sequence[Size | None]) -> Var:
    """``var`` with the axes ``sizes``; None: what is left. It is the value itself where it has them already."""
    dims = [size if isinstance(size, Var) or size is None else plain(size) for size in sizes]
    if len(dims) == var.rank and all(dim == plain(own) for dim, own in zip(dims, var.shape, strict=True)):
        return var
    if not dims:
        return call.mil.squeeze(x=sized(call, var, [1]), axes=[0])
    made = call.mil.reshape(x=var, shape=joined_sizes(call, var, dims))
    return told(made, [None if isinstance(dim, Var) else dim for dim in dims])

"""Slice: parts of axes that are known, open or begin where is computed.

Bounds are written so that none is outside of an axis, whatever its size: what the runtime does then is not documented.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np

from retarget.targets.coreml.call import ANY, Call, Op
from retarget.targets.coreml.dims import EMPTY, LARGE, bounds, ints, part_of, plain, told
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.joined import beside, reshaped
from retarget.targets.coreml.values import Dim, Joined, Refusal, Result, is_known

Bound: TypeAlias = "int | Var | None"
"""Where a part begins or ends; negative: from the end; None: where the axis does."""

Part: TypeAlias = tuple[Bound, Bound, int]
"""Begin, end and a positive stride."""

WHOLE: Part = (None, None, 1)


@dataclass(frozen=True)
class Cut:
    """A part of an axis, turned around where that is said, and every ``stride``-th of that."""

    part: Part
    length: Dim | None
    """Of the result, where it is known."""
    is_turned: bool = False
    stride: int = 1


def cut(call: Call, var: Var, parts: Mapping[int, Part], dims: Mapping[int, Dim]) -> Var:
    """``parts`` of some axes of ``var``; ``dims``: how long they are, where that is known."""
    own = list(var.shape)
    fixed = {axis: part for axis, part in parts.items() if not any(isinstance(bound, Var) for bound in part)}
    # coremltools forgets all sizes at a computed bound: the other axes are cut before.
    for chosen in (fixed, {axis: part for axis, part in parts.items() if axis not in fixed}):
        if not chosen:
            continue
        rows = [chosen.get(axis, WHOLE) for axis in range(len(own))]
        var = call.mil.slice_by_index(
            x=var,
            begin=_vector(call, [begin for begin, _, _ in rows]),
            end=_vector(call, [end for _, end, _ in rows]),
            stride=np.array([stride for _, _, stride in rows], np.int32),
            begin_mask=np.array([begin is None for begin, _, _ in rows]),
            end_mask=np.array([end is None for _, end, _ in rows]),
        )
        var = told(var, [dims.get(axis) if axis in chosen else dim for axis, dim in enumerate(own)])
    return var


def _vector(call: Call, bounds_: Sequence[Bound]) -> Var:
    if not any(isinstance(bound, Var) for bound in bounds_):
        return ints(call, *(0 if bound is None else cast("int", bound) for bound in bounds_))
    parts = [bound if isinstance(bound, Var) else ints(call, bound or 0) for bound in bounds_]
    return parts[0] if len(parts) == 1 else call.mil.concat(values=tuple(parts), axis=0)


def slice_(call: Call) -> Result:
    operand, own = call.operand(0), [plain(dim) for dim in call.shape(0)]
    starts, ends = _bounds(call, 1), _bounds(call, 2)
    axes = call.numbers(3, "which axes are cut") if call.has(3) else list(range(len(starts)))
    steps = call.numbers(4, "the step") if call.has(4) else [1] * len(starts)
    parts: dict[int, Cut] = {}
    for axis, start, end, step in zip((axis % len(own) for axis in axes), starts, ends, steps, strict=True):
        dim = own[axis]
        if not (isinstance(start, int) and isinstance(end, int)):
            if step < 0:
                raise Refusal(f"a step of {step} between computed bounds: where it ends hangs on their order")
            found = Cut(_computed(call, axis, start, end, step), None)
        elif isinstance(dim, int):
            found = _known(start, end, step, dim)
        else:
            found = _open(call, axis, start, end, step) if step > 0 else _backwards(call, axis, start, end, -step)
        if found.part != WHOLE or found.is_turned or found.stride != 1:
            parts[axis] = found
    if isinstance(operand, Joined):
        return _of_joined(call, operand, parts)
    return _taken(call, call.var(0), parts) if parts else operand


def _taken(call: Call, var: Var, cuts: Mapping[int, Cut]) -> Var:
    lengths = {axis: each.length for axis, each in cuts.items() if each.stride == 1 and each.length is not None}
    var = cut(call, var, {axis: each.part for axis, each in cuts.items() if each.part != WHOLE}, lengths)
    turned = [axis for axis, each in cuts.items() if each.is_turned]
    var = call.mil.reverse(x=var, axes=turned) if turned else var
    return cut(call, var, {axis: (None, None, each.stride) for axis, each in cuts.items() if each.stride != 1}, {})


def _of_joined(call: Call, operand: Joined, cuts: Mapping[int, Cut]) -> Result:
    """One axis after the other, with those before and after it joined."""
    found: Result = operand
    for axis, each in cuts.items():
        assert isinstance(found, Joined)  # no axis is dropped
        if each.length is None:
            raise Refusal(f"it has {len(found.shape)} axes and is cut along one of open size")
        var = _taken(call, beside(call, found, axis), {1: each})
        found = reshaped(call, var, [*found.shape[:axis], each.length, *found.shape[axis + 1 :]])
    return found


def _bounds(call: Call, index: int) -> list[int | object | Var]:
    """Each bound: a number, a symbol, or one computed number."""
    if isinstance(call.operand(index), np.ndarray):
        return list(call.numbers(index, "a bound"))
    vector = call.var(index)
    (count,) = call.sizes(index)
    known = [None] * count if vector.sym_val is None else np.asarray(vector.sym_val).tolist()
    own = {plain(dim) for dim in call.shape(0)}
    return [
        plain(each)
        if each is not None and (is_known(plain(each)) or plain(each) in own)
        else part_of(call, vector, at, at + 1)
        for at, each in enumerate(known)
    ]


def _known(start: int, end: int, step: int, size: int) -> Cut:
    """Of an axis of ``size``, clamped as ONNX does: not as Python, where a start before the first gives none."""
    least, most = (0, size) if step > 0 else (-1, size - 1)
    first, stop = (bound + size if bound < 0 else bound for bound in (start, end))
    places = range(min(max(first, 0), most), min(max(stop, least), most), step)
    if not places:
        raise Refusal(EMPTY)
    first, last = min(places[0], places[-1]), max(places[0], places[-1])
    part = WHOLE if len(places) == size else (first, last + 1, abs(step))
    return Cut(part, len(places), step < 0)


def _open(call: Call, axis: int, start: int, end: int, step: int) -> Cut:
    """Of an axis of which the least and the largest size are known."""
    dim = plain(call.shape(0)[axis])
    least, most = bounds(call, dim)
    begin: Bound = None if start == 0 or -start >= most else start
    if begin is not None and -start > least:
        begin = call.mil.maximum(x=call.mil.add(x=_size(call, axis), y=np.int32(start)), y=np.int32(0))
    stop: Bound = None if end >= most else end
    if stop is not None and end > least:
        stop = call.mil.minimum(x=_size(call, axis), y=np.int32(end))
    length: Dim | None = None
    if (begin, stop, step) == WHOLE:
        length = dim
    elif isinstance(begin, int) and begin < 0 and (stop is None or (isinstance(stop, int) and stop < 0)):
        length = math.ceil(((stop or 0) - begin) / step)
    elif not isinstance(begin, Var) and (begin or 0) >= 0 and isinstance(stop, int) and stop >= 0:
        length = math.ceil((stop - (begin or 0)) / step)
    if isinstance(length, int) and length <= 0:
        raise Refusal(EMPTY)
    return Cut((begin, stop, step), length)


def _backwards(call: Call, axis: int, start: int, end: int, step: int) -> Cut:
    """The same elements forwards, turned around."""
    least, most = bounds(call, plain(call.shape(0)[axis]))
    if end == -1:
        raise Refusal(EMPTY)
    if -start > least:
        call.sizes(0, [axis])  # of a smaller axis it is the first
    forwards = _open(call, axis, 0 if end < -most else end + 1, LARGE if start == -1 else start + 1, 1)
    return Cut(forwards.part, forwards.length if step == 1 else None, is_turned=True, stride=step)


def _size(call: Call, axis: int) -> Var:
    return part_of(call, call.mil.shape(x=call.var(0)), axis, axis + 1)


def _computed(call: Call, axis: int, start: object, end: object, step: int) -> Part:
    """Bounds of which one at least is computed, moved to where there is something."""
    dim = plain(call.shape(0)[axis])
    _, most = bounds(call, dim)
    size = np.array([dim], np.int32) if isinstance(dim, int) else _size(call, axis)

    def inside(bound: object) -> Var:
        var = bound if isinstance(bound, Var) else ints(call, max(min(cast("int", bound), LARGE - 1), -LARGE))
        if not isinstance(bound, int) or bound < 0:
            var = call.mil.select(cond=call.mil.less(x=var, y=np.int32(0)), a=call.mil.add(x=var, y=size), b=var)
        return call.mil.minimum(x=call.mil.maximum(x=var, y=np.int32(0)), y=size)

    def read(bound: object) -> object:
        """A symbol that is no other than the size of the axis is its end; of another axis, it is read off the shape."""
        if isinstance(bound, int | Var):
            return bound
        return LARGE if bound == dim else _size(call, [plain(each) for each in call.shape(0)].index(bound))

    start, end = read(start), read(end)
    begin: Bound = None if start == 0 else inside(start)
    stop: Bound = None if isinstance(end, int) and end >= most else inside(end)
    return begin, stop, step


OPS: Mapping[str, Op] = {
    "Slice": Op(slice_, ANY, moves=True),
}

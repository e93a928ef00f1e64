"""Slices and picks whose bounds depend on the size of a dimension, with the bounds counted from its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from retarget.targets.tflite.program import Constant, Operator, Options, Shape, Tensor

AXES = 5
"""The most axes of a STRIDED_SLICE."""

Pair: TypeAlias = tuple[int, int]
"""A number of one program and the same of another, which was lowered at another size."""


class OneSize(Exception):
    """Why a dimension cannot stay open."""


def sliced(operator: Operator, other: Operator, where: str) -> Operator:
    """A SLICE or STRIDED_SLICE with its bounds counted from the start or, where those differ, from the end."""
    data, another = operator.inputs[0], other.inputs[0]
    assert data is not None
    assert another is not None
    # ``operator`` has the common program's tensors, whose shapes are still those of the one.
    dims = pairs(data.shape, another.shape)
    begins, ends, strides = (_bounds(operator, other, index, where) for index in (1, 2, 3))
    if operator.code == "SLICE":
        # The third operand is of sizes.
        ends = [_added(begin, extent) for begin, extent in zip(begins, ends, strict=True)]
        options, mask = Options("StridedSliceOptions"), 0
    else:
        options, mask = operator.options or Options("StridedSliceOptions"), _option(operator, "endMask")
        if len(begins) != len(dims) or _option(operator, "ellipsisMask") or _option(operator, "newAxisMask"):
            raise OneSize(f"{where} holds it as a number")
    starts: list[int] = []
    stops: list[int] = []
    for axis, (begin, end, dim) in enumerate(zip(begins, ends, dims, strict=True)):
        step = strides[axis][0] if strides else 1
        starts.append(_from_end(begin, dim, where))
        if mask >> axis & 1 or (differs(end) and end == dim and step > 0):
            mask |= 1 << axis
            stops.append(0)
        else:
            stops.append(_from_end(end, dim, where))
    steps = [step for step, _ in strides] or [1] * len(begins)
    return replace(
        operator,
        code="STRIDED_SLICE",
        inputs=(data, ints(starts), ints(stops), ints(steps)),
        options=Options("StridedSliceOptions", {**options.fields, "endMask": mask}),
    )


def picked(operator: Operator, other: Operator, where: str) -> Operator:
    """A GATHER of one element, counted from the end, which only a slice can do."""
    data, another = operator.inputs[0], other.inputs[0]
    indices = _bounds(operator, other, 1, where)
    assert data is not None
    assert another is not None
    assert operator.inputs[1] is not None
    rank = len(data.shape)
    axis = _option(operator, "axis") % rank
    if len(indices) != 1 or _option(operator, "batchDims") or rank > AXES:
        raise OneSize(f"{where} holds it as a number")
    at = _from_end(indices[0], (data.shape[axis], another.shape[axis]), where)
    bounds = [[number if each == axis else 0 for each in range(rank)] for number in (at, at + 1)]
    mask = (1 << rank) - 1
    fields = {
        "beginMask": mask & ~(1 << axis),
        "endMask": mask if at == -1 else mask & ~(1 << axis),
        "shrinkAxisMask": 0 if operator.inputs[1].shape else 1 << axis,
    }
    return replace(
        operator,
        code="STRIDED_SLICE",
        inputs=(data, *map(ints, (*bounds, [1] * rank))),
        options=Options("StridedSliceOptions", fields),
    )


def _bounds(operator: Operator, other: Operator, index: int, where: str) -> list[Pair]:
    """The numbers of operand ``index`` in the one and in the other; none where it has no such operand."""
    if index >= len(operator.inputs):
        return []
    mine, its = operator.inputs[index], other.inputs[index]
    if mine is None or its is None or mine.constant is None or its.constant is None:
        raise OneSize(f"{where} holds it as a number")
    return pairs(numbers(mine.constant), numbers(its.constant))


def ints(numbers: Sequence[int]) -> Tensor:
    """A constant of one axis, int32."""
    constant = Constant.of(list(numbers), "int32")
    return Tensor(constant.shape, constant.dtype, constant=constant)


def pairs(one: Sequence[int], other: Sequence[int]) -> list[Pair]:
    return list(zip(one, other, strict=True))


def _added(one: Pair, other: Pair) -> Pair:
    return one[0] + other[0], one[1] + other[1]


def differs(pair: Pair) -> bool:
    return pair[0] != pair[1]


def _option(operator: Operator, name: str) -> int:
    value = operator.options.fields.get(name, 0) if operator.options else 0
    assert isinstance(value, int)
    return value


def _from_end(bound: Pair, dim: Pair, where: str) -> int:
    """A bound that is the same for both sizes, if need be counted from the end, as negative ones are."""
    if not differs(bound):
        return bound[0]
    behind = bound[0] - dim[0]
    if behind != bound[1] - dim[1] or behind >= 0:
        raise OneSize(f"{where} holds it as a number")
    return behind


def numbers(constant: Constant) -> Shape:
    return tuple(int(number) for number in constant.array().reshape(-1))

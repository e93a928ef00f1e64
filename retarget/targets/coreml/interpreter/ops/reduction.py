"""Sums, extremes and their positions over axes, running sums, softmax, and orders.

Floats are added up in float64: the result is then no matter of an order that each processor chooses for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, OpFunction

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retarget.protocols import Array
    from retarget.targets.coreml.interpreter.call import Tensor

Reduction: TypeAlias = "Callable[[Tensor, tuple[int, ...], bool], Tensor]"
"""Of what, over which axes, and whether these stay, as axes of one element."""


def _reduced(function: Reduction, *, integers: bool = True) -> OpFunction:
    """A reduction of floats, as float64, and of integers where their result is one."""

    def op(call: Call) -> Tensor:
        x = call.array("x")
        if x.dtype.kind != "f" and not integers:
            raise NotInterpreted(f"x is {x.dtype.name}: how the result becomes one is not documented")
        axes = tuple(call.axes("axes", x.ndim, range(x.ndim)))
        wide = x.astype(np.float64) if x.dtype.kind == "f" else x
        return np.asarray(function(wide, axes, call.flag("keep_dims", False)), x.dtype)

    return op


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return np.asarray(np.sum(x, axis=axes, keepdims=keep, dtype=x.dtype))


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return np.asarray(np.prod(x, axis=axes, keepdims=keep, dtype=x.dtype))


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    largest = np.max(x, axis=axes, keepdims=True)
    shift = np.where(np.isfinite(largest), largest, 0.0)
    result = np.asarray(np.log(np.sum(np.exp(x - shift), axis=axes, keepdims=True)) + shift)
    return result if keep else np.squeeze(result, axis=axes)


def _best(function: Callable[..., Tensor]) -> OpFunction:
    """The position of an extreme; of several, the first."""

    def op(call: Call) -> Array:
        x = call.array("x")
        axis = call.axis("axis", x.ndim, -1)
        best = function(x, axis=axis, keepdims=call.flag("keep_dims", False))
        return np.asarray(best, _positions(call, "output_dtype", 0))

    return op


def _positions(call: Call, parameter: str, output: int) -> np.dtype[np.generic]:
    """The type of the positions that are ``output``, which a parameter names since iOS17."""
    name, declared = call.text(parameter, "int32"), call.dtype(output)
    if declared.name != name or name not in ("int32", "uint16"):
        raise ToolchainFailure(f"output {output} is declared {declared.name}, {parameter} is '{name}'")
    return declared


def softmax(call: Call) -> Tensor:
    x = call.array("x").astype(np.float64)
    axis = call.axis("axis", x.ndim, -1)
    powers = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return np.asarray(powers / np.sum(powers, axis=axis, keepdims=True), np.float32)


def cumsum(call: Call) -> Tensor:
    x = call.array("x")
    axis = call.axis("axis", x.ndim, 0)
    wide = x.astype(np.float64) if x.dtype.kind == "f" else x
    if call.flag("reverse", False):
        wide = np.flip(wide, axis)
    sums = np.cumsum(wide, axis=axis, dtype=wide.dtype)
    if call.flag("exclusive", False) and x.shape[axis]:
        before = np.split(sums, [x.shape[axis] - 1], axis=axis)[0]
        sums = np.concatenate([np.zeros_like(np.take(sums, [0], axis=axis)), before], axis=axis)
    return (np.flip(sums, axis) if call.flag("reverse", False) else sums).astype(x.dtype)


def _order(x: Tensor, axis: int, *, ascending: bool) -> NDArray[np.intp]:
    """Positions along an axis in the order of the elements; of equal ones the first comes first."""
    if ascending:
        return np.argsort(x, axis=axis, kind="stable")
    backwards = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return np.flip(x.shape[axis] - 1 - backwards, axis)


def argsort(call: Call) -> Array:
    x = call.array("x")
    axis = call.axis("axis", x.ndim, -1)
    return _order(x, axis, ascending=call.flag("ascending", False)).astype(np.int32)


def topk(call: Call) -> tuple[Array, ...]:
    """The first ones in their order, also where ``sort`` is false and any order would do."""
    x = call.stored("x")
    axis, k = call.axis("axis", x.ndim, -1), call.integer("k", 1)
    if call.opset >= 17 and k == -1:
        k = x.shape[axis]
    if not 0 <= k <= x.shape[axis]:
        raise ToolchainFailure(f"k is {k}, of {x.shape[axis]}")
    chosen = np.take(_order(x, axis, ascending=call.flag("ascending", False)), np.arange(k), axis=axis)
    values = np.take_along_axis(x, chosen, axis=axis)
    if not call.flag("return_indices", True):
        return (values,)
    return values, chosen.astype(_positions(call, "output_indices_dtype", 1))


OPS: Mapping[str, OpFunction] = {
    "argsort": argsort,
    "cumsum": cumsum,
    "reduce_argmax": _best(np.argmax),
    "reduce_argmin": _best(np.argmin),
    "reduce_l1_norm": _reduced(lambda x, axes, keep: _sum(np.abs(x), axes, keep)),
    "reduce_l2_norm": _reduced(lambda x, axes, keep: np.sqrt(_sum(np.square(x), axes, keep)), integers=False),
    "reduce_log_sum": _reduced(lambda x, axes, keep: np.log(_sum(x, axes, keep)), integers=False),
    "reduce_log_sum_exp": _reduced(_log_sum_exp, integers=False),
    "reduce_max": _reduced(lambda x, axes, keep: np.max(x, axis=axes, keepdims=keep)),
    "reduce_mean": _reduced(lambda x, axes, keep: np.mean(x, axis=axes, keepdims=keep), integers=False),
    "reduce_min": _reduced(lambda x, axes, keep: np.min(x, axis=axes, keepdims=keep)),
    "reduce_prod": _reduced(_prod),
    "reduce_sum": _reduced(_sum),
    "reduce_sum_square": _reduced(lambda x, axes, keep: _sum(np.square(x), axes, keep)),
    "softmax": softmax,
    "topk": topk,
}

"""Sums, extremes and their positions over axes, running sums, determinants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from retarget.targets.coreml.call import ANY, FLOATS, NUMBERS, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.ops.elementwise import quotient
from retarget.targets.coreml.ops.parts import known, part, reshaped
from retarget.targets.coreml.values import Refusal, Result

MOST_ROWS = 4
"""Of matrices whose determinants are written out: of 5 rows they would be sums of 120 products."""


# ---- reductions


def reduction(
    name: str,
    alone: Callable[[Call, Var], Var] = lambda _, x: x,
    after: Callable[[Call, Var], Var] = lambda _, x: x,
) -> Callable[[Call], Var]:
    """The op function that reduces by MIL's ``name`` and applies ``after``; ``alone``: what the reduction of each
    element for itself is."""

    def lower(call: Call) -> Var:
        x, axes = call.var(0), _axes(call)
        return after(call, _reduced(call, name, x, axes) if axes else alone(call, x))

    return lower


def _reduced(call: Call, name: str, x: Var, axes: Sequence[int]) -> Var:
    return getattr(call.mil, name)(x=x, axes=list(axes), keep_dims=_keeps(call))


def _axes(call: Call) -> list[int]:
    """Those that are reduced, counted from the front."""
    numbers, rank = call.numbers(1, "which axes it reduces") if call.has(1) else [], call.rank(0)
    if not numbers and not call.attributes.get_int("noop_with_empty_axes", 0):
        return list(range(rank))
    return sorted({number % rank for number in numbers})


def _keeps(call: Call) -> bool:
    return bool(call.attributes.get_int("keepdims", 1))


def _absolute(call: Call, x: Var) -> Var:
    return call.mil.abs(x=x)


def _log(call: Call, x: Var) -> Var:
    return call.mil.log(x=x, epsilon=0.0)


def _square(call: Call, x: Var) -> Var:
    return call.mil.mul(x=x, y=x)


def reduce_mean(call: Call) -> Var:
    """Of integers: the sum divided by the count, towards zero."""
    if call.dtype(0) != np.int32:
        return reduction("reduce_mean")(call)
    axes = _axes(call)
    total = reduction("reduce_sum")(call)
    return quotient(call, total, math.prod(call.sizes(0, axes))) if axes else total


# ---- positions


def best_scores(call: Call, axis: int, name: str, *, last: bool) -> Var:
    """For each element, how it counts along ``axis``: 0 where it is not the extreme that ``name`` reduces to, else
    more, the earlier it stands: from the size of the axis down to 1. ``last``: the later it stands.

    Which of equal elements `reduce_argmax` finds is not guaranteed.
    """
    x = call.var(0)
    extreme = getattr(call.mil, name)(x=x, axes=[axis], keep_dims=True)
    is_best = call.mil.cast(x=call.mil.equal(x=x, y=extreme), dtype="int32")
    return call.mil.mul(x=is_best, y=_counted(call, axis, backwards=not last))


def _counted(call: Call, axis: int, *, backwards: bool) -> Var | np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """The places along ``axis``, from 1 on, as they broadcast with operand 0."""
    size, rank = known(call.shape(0)[axis]), call.rank(0)
    if size is not None:
        places = np.arange(1, size + 1, dtype=np.int32)
        return (places[::-1] if backwards else places).reshape(-1, *(1,) * (rank - 1 - axis))
    row = call.var(0)
    for other in range(rank):
        if other != axis:
            row = part(call, row, other, slice(0, 1))
    # Nothing is less than itself.
    ones = call.mil.cast(x=call.mil.logical_not(x=call.mil.less(x=row, y=row)), dtype="int32")
    return call.mil.cumsum(x=ones, axis=axis, reverse=backwards)


def arg_max(call: Call) -> Var:
    return _arg(call, "reduce_max")


def arg_min(call: Call) -> Var:
    return _arg(call, "reduce_min")


def _arg(call: Call, name: str) -> Var:
    """The place of the first extreme, or the last."""
    if not call.rank(0):
        raise Refusal("its operand has no axes")
    axis, last = call.axis(0), bool(call.attributes.get_int("select_last_index", 0))
    scores = best_scores(call, axis, name, last=last)
    best = call.mil.reduce_max(x=scores, axes=[axis], keep_dims=_keeps(call))
    if last:
        return call.mil.sub(x=best, y=1)
    size = known(call.shape(0)[axis])
    if size is None:
        size = call.mil.reduce_max(x=_counted(call, axis, backwards=True), keep_dims=False)
    return call.mil.sub(x=size, y=best)


# ---- sums on the way, determinants


def cum_sum(call: Call) -> Result:
    if not call.rank(0):
        return call.var(0)
    (axis,) = call.numbers(1, "the axis")
    exclusive, reverse = (bool(call.attributes.get_int(name, 0)) for name in ("exclusive", "reverse"))
    return call.mil.cumsum(x=call.var(0), axis=axis % call.rank(0), exclusive=exclusive, reverse=reverse)


def det(call: Call) -> Var:
    """The sum over all permutations of the products of one element a row and column, with their signs (Leibniz)."""
    x = call.var(0)
    (size,) = call.sizes(0, [call.rank(0) - 1])
    if size > MOST_ROWS:
        raise Refusal(f"its matrices have {size} rows: determinants of up to {MOST_ROWS} are written out")
    permutations = list(itertools.permutations(range(size)))
    places = [row * size + column for each in permutations for row, column in enumerate(each)]
    signs = np.array([np.linalg.det(np.eye(size)[list(each)]).round() for each in permutations], call.dtype(0))
    batch = call.shape(0)[:-2]
    rows = reshaped(call, x, (*batch, size * size))
    picked = call.mil.gather(x=rows, indices=np.array(places, np.int32), axis=len(batch))
    products = call.mil.reduce_prod(x=reshaped(call, picked, (*batch, len(signs), size), x), axes=[-1], keep_dims=False)
    return call.mil.reduce_sum(x=call.mil.mul(x=products, y=signs), axes=[-1], keep_dims=False)


OPS: Mapping[str, Op] = {
    "ArgMax": Op(arg_max, NUMBERS, small=True),
    "ArgMin": Op(arg_min, NUMBERS, small=True),
    "CumSum": Op(cum_sum, NUMBERS),
    "Det": Op(det, FLOATS),
    "ReduceL1": Op(reduction("reduce_l1_norm", _absolute), NUMBERS),
    "ReduceL2": Op(reduction("reduce_l2_norm", _absolute), FLOATS),
    "ReduceLogSum": Op(reduction("reduce_sum", after=_log), FLOATS),
    "ReduceLogSumExp": Op(reduction("reduce_log_sum_exp"), FLOATS),
    "ReduceMax": Op(reduction("reduce_max"), ANY, moves=True),
    "ReduceMean": Op(reduce_mean, NUMBERS),
    "ReduceMin": Op(reduction("reduce_min"), ANY, moves=True),
    "ReduceProd": Op(reduction("reduce_prod"), NUMBERS),
    "ReduceSum": Op(reduction("reduce_sum"), NUMBERS),
    "ReduceSumSquare": Op(reduction("reduce_sum_square", _square), NUMBERS),
}

"""Sums, extremes and their positions over axes. Where an element is NaN, an extreme may be any of the elements."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from retarget.targets.tflite.call import Call, Int8, Op
from retarget.targets.tflite.layout import FIRST_AXES, Layout, Way, stored
from retarget.targets.tflite.program import Constant, Options, Shape, Tensor
from retarget.targets.tflite.values import Operand, Refusal, Value, broadcast

MOST_AXES = 6
"""XNNPACK's reductions and SOFTMAX take values of no more axes, and fail when the model is loaded."""

MOST_ROWS = 4
"""Of matrices whose determinants are written out: of 5 rows they would be sums of 120 products."""


# ---- in which layouts


def kept_way(node: ir.Node) -> Way:
    """Of what keeps the axes that it works along: either layout, unless rows may have been flattened in either."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    return Way.EITHER if shape is not None and len(shape) >= FIRST_AXES else Way.FIRST


def _reduced_way(node: ir.Node) -> Way:
    """Without the axes that are dropped, what was stored with the channels last is in an order of its own."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if shape is None:
        return Way.FIRST
    return _dropped_way(node, len(shape), _constant_axes(node, len(shape)))


def _best_way(node: ir.Node) -> Way:
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if shape is None:
        return Way.FIRST
    return _dropped_way(node, len(shape), [node.attributes.get_int("axis", 0) % max(len(shape), 1)])


def _dropped_way(node: ir.Node, rank: int, axes: Sequence[int] | None) -> Way:
    if rank < FIRST_AXES or axes is None:
        return Way.FIRST
    if node.attributes.get_int("keepdims", 1):
        return Way.EITHER
    kept = [axis for axis in range(rank) if axis not in axes]
    if 1 not in kept or kept in ([1], [0, 1]):
        # The channels are gone, or alone behind the batch: what is left is in ONNX's order.
        return Way.ENDS
    return Way.EITHER if 0 in kept else Way.FIRST


def _constant_axes(node: ir.Node, rank: int) -> list[int] | None:
    """The axes that are reduced; None where they are not known before the nodes in front of them are."""
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is None:
        return [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank))
    tensor = ir.convenience.get_const_tensor(given)
    return None if tensor is None else _axes(tensor.numpy().reshape(-1).tolist(), node, rank)


def _axes(numbers: Sequence[int], node: ir.Node, rank: int) -> list[int]:
    if not numbers and not node.attributes.get_int("noop_with_empty_axes", 0):
        return list(range(rank))
    return sorted({int(number) % rank for number in numbers})


# ---- steps


def _reduced(call: Call, code: str, data: Operand, axes: Sequence[int], *, keep: bool) -> Operand:
    """``data`` reduced by a builtin; without the axes it is as the node's results are stored, else as its operands."""
    rank = len(data.shape)
    if not axes:
        return data
    if rank > MOST_AXES:
        raise Refusal(f"its operand has {rank} axes: LiteRT's kernels reduce values of up to {MOST_AXES}")
    places = call.ints(sorted(call.position(axis, rank) for axis in axes))
    options = Options("ReducerOptions", {"keepDims": keep})
    source = call.tensor(data, rank)
    return call.emit(
        code,
        [source, places],
        without(data.shape, axes, keep=keep),
        data.dtype,
        options,
        layout=call.layout if keep else call.results,
    )


def without(shape: Sequence[int], axes: Sequence[int], *, keep: bool) -> Shape:
    """``shape`` after a reduction of ``axes``."""
    if keep:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def stored_as(call: Call, source: Tensor, shape: Sequence[int], layout: Layout | None = None) -> Value:
    """What is stored in ``source``, in the same order, as a value of ``shape`` in ``layout``, or the results'."""
    layout = layout or call.results
    to = call.ints(stored(shape, layout))
    return call.emit("RESHAPE", [source, to], shape, source.dtype, Options("ReshapeOptions"), layout=layout)


def _element(call: Call, code: str, *operands: Operand | float) -> Value:
    """An operator element by element in front of the reduction: the layout stays that of the node's operand."""
    shape = broadcast(*(each.shape for each in operands if not isinstance(each, float)))
    table = {"SUB": "SubOptions", "MUL": "MulOptions"}.get(code)
    return call.emit(code, operands, shape, options=Options(table) if table else None, layout=call.layout)


# ---- reductions


def reduction(
    code: str,
    before: Callable[[Call, Operand], Operand] = lambda _, data: data,
    after: Callable[[Call, Operand], Operand] = lambda _, data: data,
) -> Callable[[Call], Operand]:
    """The op function that reduces by ``code`` what ``before`` makes of the operand, and applies ``after``."""

    def reduce(call: Call) -> Operand:
        data = call.operand(0)
        axes, keep = _chosen(call), _keeps(call)
        summed = _reduced(call, code, before(call, data), axes, keep=keep)
        return after(call, summed)

    return reduce


def _chosen(call: Call) -> list[int]:
    rank = len(call.operand(0).shape)
    numbers = call.numbers(1, "the axes") if call.has(1) else []
    return _axes(numbers, call.node, rank) if rank else []


def _keeps(call: Call) -> bool:
    return bool(call.attributes.get_int("keepdims", 1))


def _after(code: str) -> Callable[[Call, Operand], Operand]:
    return lambda call, data: call.emit(code, [data], data.shape, layout=call.results)


def _absolute(call: Call, data: Operand) -> Operand:
    return _element(call, "ABS", data)


def _squared(call: Call, data: Operand) -> Operand:
    return _element(call, "MUL", data, data)


def reduce_mean(call: Call) -> Operand:
    """Of integers: the sum divided by the count, towards zero."""
    data, axes = call.operand(0), _chosen(call)
    if data.dtype == np.float32:
        return _reduced(call, "MEAN", data, axes, keep=_keeps(call))
    count = int(np.prod([data.shape[axis] for axis in axes], dtype=np.int64))
    total = _reduced(call, "SUM", data, axes, keep=_keeps(call))
    divisor = Constant.of(count, "int32")
    return call.emit("DIV", [total, divisor], total.shape, options=Options("DivOptions"), layout=call.results)


def reduce_max(call: Call) -> Operand:
    return reduction("REDUCE_ANY" if call.operand(0).dtype == np.bool_ else "REDUCE_MAX")(call)


def reduce_min(call: Call) -> Operand:
    return reduction("REDUCE_ALL" if call.operand(0).dtype == np.bool_ else "REDUCE_MIN")(call)


def reduce_log_sum_exp(call: Call) -> Operand:
    """``log(sum(exp(x - m))) + m``, with the largest element as ``m``: it does not overflow."""
    data, axes = call.operand(0), _chosen(call)
    largest = _reduced(call, "REDUCE_MAX", data, axes, keep=True)
    # inf - inf would be NaN.
    limit = float(np.finfo(np.float32).max)
    finite = _element(call, "MINIMUM", _element(call, "MAXIMUM", largest, -limit), limit)
    powers = _element(call, "EXP", _element(call, "SUB", data, finite))
    total = _reduced(call, "SUM", powers, axes, keep=True)
    result = _element(call, "ADD", _element(call, "LOG", total), finite)
    if _keeps(call):
        return result
    shape = without(data.shape, axes, keep=False)
    return stored_as(call, _only(call, result), shape)


def _only(call: Call, value: Value) -> Tensor:
    """The tensor of ``value`` as the node's operands are stored."""
    tensor = call.tensor(value, layout=call.layout)
    assert tensor is not None
    return tensor


# ---- positions


def best_along(call: Call, data: Value, axis: int, code: str) -> Value:
    """Where the first of the largest (ARG_MAX) or smallest (ARG_MIN) elements along ``axis`` is; the axis is kept."""
    place = call.position(axis, data.rank)
    kept = without(data.shape, [axis], keep=True)
    flat = list(stored(data.shape, call.layout))
    del flat[place]
    found = call.emit(
        code,
        [call.tensor(data), call.ints([place])],
        flat,
        np.int32,
        Options(_BEST[code], {"outputType": "INT32"}),
        layout=Layout.FIRST,
    )
    source = call.tensor(found, layout=Layout.FIRST)
    assert source is not None
    return stored_as(call, source, kept, call.layout)


_BEST = {"ARG_MAX": "ArgMaxOptions", "ARG_MIN": "ArgMinOptions"}


def arg_max(call: Call) -> Operand:
    return _arg(call, "ARG_MAX")


def arg_min(call: Call) -> Operand:
    return _arg(call, "ARG_MIN")


def _arg(call: Call, code: str) -> Operand:
    data = call.value(0)
    if not data.rank:
        raise Refusal("its operand has no axes")
    axis = call.attributes.get_int("axis", 0) % data.rank
    last = bool(call.attributes.get_int("select_last_index", 0))
    if last:
        # The last of equals is the first from behind.
        places = call.ints([call.position(axis, data.rank)])
        data = call.emit("REVERSE_V2", [data, places], data.shape, layout=call.layout)
    best = best_along(call, data, axis, code)
    if last:
        best = _element(call, "SUB", Constant.of(data.shape[axis] - 1, "int32"), best)
    if _keeps(call):
        return best
    return stored_as(call, _only(call, best), without(data.shape, [axis], keep=False))


def cum_sum(call: Call) -> Operand:
    data = call.value(0)
    if not data.rank:
        return data
    (axis,) = call.numbers(1, "the axis")
    reverse, exclusive = (bool(call.attributes.get_int(name, 0)) for name in ("reverse", "exclusive"))
    options = Options("CumsumOptions", {"reverse": reverse, "exclusive": exclusive})
    return call.emit("CUMSUM", [data, call.ints([call.position(axis, data.rank)])], data.shape, options=options)


def det(call: Call) -> Operand:
    """The sum over all permutations of the products of one element a row and column, with their signs (Leibniz)."""
    data = call.value(0)
    *batch, size, _ = data.shape
    if size > MOST_ROWS:
        raise Refusal(f"its matrices have {size} rows: determinants of up to {MOST_ROWS} are written out")
    permutations = list(itertools.permutations(range(size)))
    places = np.array([[row * size + column for row, column in enumerate(each)] for each in permutations], np.int32)
    signs = [np.linalg.det(np.eye(size)[list(each)]).round() for each in permutations]
    rows = call.reshape(data, (*batch, size * size))
    picked = call.emit(
        "GATHER",
        [rows, call.tensor(Constant.of(places), 0)],
        (*batch, *places.shape),
        options=Options("GatherOptions", {"axis": len(batch)}),
    )
    products = _reduced(call, "REDUCE_PROD", picked, [len(batch) + 1], keep=False)
    signed = call.binary("MUL", products, Constant.of(np.array(signs, np.float32)))
    return _reduced(call, "SUM", signed, [len(batch)], keep=False)


_NUMBERS = frozenset({"float32", "int32"})
_ORDERED = _NUMBERS | {"int8", "uint8", "bool"}


def _op(lower: Callable[[Call], Operand], dtypes: frozenset[str] = frozenset({"float32"}), int8: Int8 = "no") -> Op:
    return Op(lower, _reduced_way, operands=(0,), dtypes=dtypes, int8=int8)


OPS: Mapping[str, Op] = {
    "ArgMax": Op(arg_max, _best_way, dtypes=_ORDERED, int8="reads", int16=False),
    "ArgMin": Op(arg_min, _best_way, dtypes=_ORDERED, int8="reads", int16=False),
    "CumSum": Op(cum_sum, kept_way, operands=(0,), dtypes=_NUMBERS),
    "Det": Op(det),
    "ReduceL1": _op(reduction("SUM", _absolute), _NUMBERS),
    "ReduceL2": _op(reduction("SUM", _squared, _after("SQRT"))),
    "ReduceLogSum": _op(reduction("SUM", after=_after("LOG"))),
    "ReduceLogSumExp": _op(reduce_log_sum_exp),
    "ReduceMax": _op(reduce_max, _ORDERED, "moves"),
    "ReduceMean": _op(reduce_mean, _NUMBERS, "computes"),
    "ReduceMin": _op(reduce_min, _ORDERED, "moves"),
    "ReduceProd": _op(reduction("REDUCE_PROD"), _NUMBERS),
    # Int8 SUM is wrong in the reference kernels.
    "ReduceSum": _op(reduction("SUM"), _NUMBERS),
    "ReduceSumSquare": _op(reduction("SUM", _squared), _NUMBERS),
}

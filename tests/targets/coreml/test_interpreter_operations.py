"""Operations on elements, along axes and of shapes: saved packages against coremltools' own inference of values.

Where that infers no values (or wrong ones, which is said), what is right is written out here or comes from torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import packaged
import pytest
import torch

from retarget.targets.coreml.interpreter.evaluate import Interpreter
from retarget.targets.coreml.interpreter.ops import OPS, elementwise, reduction, shape
from retarget.targets.coreml.interpreter.program import read
from retarget.targets.coreml.library import Function, Var, mb

if TYPE_CHECKING:
    from retarget.protocols import Array

ALL = (15, 16, 17, 18)
RANDOM = np.random.default_rng(6)


@dataclass(frozen=True)
class Case:
    op: str
    fed: Mapping[str, Any]
    """Parameters that the program computes: an array, or a list of them."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Those that it holds."""
    right: Callable[..., Any] | None = None
    """Computes it of ``fed`` and ``fixed``; None: coremltools infers it."""
    opsets: tuple[int, ...] = ALL
    rtol: float = 2e-6

    def __str__(self) -> str:
        shapes = {
            name: [np.shape(each) for each in value] if isinstance(value, list) else np.shape(value)
            for name, value in self.fed.items()
        }
        return f"{self.op} {shapes} {dict(self.fixed)}"


def floats(*shape: int, scale: float = 2.0) -> Array:
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


def positive(*shape: int) -> Array:
    return (RANDOM.random(shape) + 0.05).astype(np.float32)


def integers(*shape: int, low: int = -9, high: int = 10) -> Array:
    return RANDOM.integers(low, high, shape, dtype=np.int32)


def truths(*shape: int) -> Array:
    return RANDOM.random(shape) < 0.5


HALVES = np.array([-2.5, -1.5, -0.5, -0.0, 0.0, 0.5, 1.5, 2.5, 3.49], np.float32)
UNIT = np.linspace(-0.99, 0.99, 12, dtype=np.float32).reshape(3, 4)
SPAN = np.concatenate([np.linspace(-7, 7, 57), [-90.0, 90.0, 0.0]]).astype(np.float32).reshape(4, 15)


def by_torch(function: Callable[..., torch.Tensor], *names: str) -> Callable[..., Array]:
    """``function`` of parameter ``x`` and of the others that are named."""

    def right(**given: Any) -> Array:
        return np.asarray(function(torch.from_numpy(given["x"]), *(given[name] for name in names)))

    return right


# ---- element by element


def unary() -> list[Case]:
    smooth = ["atan", "cos", "erf", "exp", "exp2", "sigmoid", "sin", "softplus", "softsign", "square", "tanh"]
    anywhere = [*smooth, "abs", "ceil", "floor", "relu", "relu6", "round", "sign"]
    cases = [Case(op, {"x": x}) for op in anywhere for x in (SPAN, HALVES, floats(2, 3, 1, 4, 2), floats(1)[0])]
    cases += [Case(op, {"x": floats(3, 4, scale=1)}) for op in ("cosh", "sinh", "tan")]
    cases += [Case(op, {"x": UNIT}) for op in ("acos", "asin", "atanh")]
    cases += [Case(op, {"x": positive(3, 4)}) for op in ("sqrt", "log", "rsqrt", "inverse")]
    cases += [
        Case(op, {"x": positive(3, 4)}, {"epsilon": np.float32(epsilon)})
        for op in ("log", "rsqrt", "inverse")
        for epsilon in (0.0, 0.25)
    ]
    cases += [Case(op, {"x": integers(3, 4)}) for op in ("abs", "sign", "square")]
    cases += [Case("silu", {"x": SPAN}, right=by_torch(torch.nn.functional.silu))]
    return [*cases, Case("logical_not", {"x": truths(2, 3)})]


def with_numbers() -> list[Case]:
    one, two = np.float32(0.3), np.float32(1.7)
    cases = [Case(op, {"x": SPAN}, {"alpha": one}) for op in ("elu", "leaky_relu", "threshold", "thresholded_relu")]
    cases += [
        Case(op, {"x": SPAN}, {"alpha": one, "beta": two})
        for op in ("clamped_relu", "clip", "linear_activation", "scaled_tanh", "sigmoid_hard")
    ]
    cases += [Case("gelu", {"x": SPAN})]
    cases += [
        Case("gelu", {"x": SPAN}, {"mode": mode}, rtol=1e-5)
        for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
    ]
    cases += [Case("threshold", {"x": integers(3, 4)}, {"alpha": np.int32(2)})]
    slopes, others = np.array([0.1, -0.5, 2.0], np.float32), np.array([0.7, 1.0, 1.3], np.float32)
    cases += [Case("prelu", {"x": floats(2, 3, 2, 2)}, {"alpha": slopes})]
    cases += [Case("prelu", {"x": floats(2, 3, 2)}, {"alpha": np.full(3, 0.25, np.float32)})]
    return [*cases, Case("softplus_parametric", {"x": floats(2, 3, 2, 2)}, {"alpha": slopes, "beta": others})]


def binary() -> list[Case]:
    shapes: list[tuple[Sequence[int], Sequence[int]]] = [
        ((2, 3), (2, 3)),
        ((2, 1, 3), (4, 1)),
        ((3,), ()),
        ((), (2, 2)),
    ]
    cases = []
    for op in ("add", "sub", "mul", "maximum", "minimum", "equal", "not_equal"):
        cases += [Case(op, {"x": floats(*x), "y": floats(*y)}) for x, y in shapes]
        cases += [Case(op, {"x": integers(*x, high=3), "y": integers(*y, high=3)}) for x, y in shapes]
    for op in ("greater", "greater_equal", "less", "less_equal"):
        cases += [Case(op, {"x": integers(9, low=0, high=3), "y": integers(9, low=0, high=3)})]
        cases += [Case(op, {"x": floats(4, 3), "y": floats(3)})]
    signs = np.array(list(itertools.product([-7, 7, -6, 6, 1], [-3, 3, 2, -2])), np.int32).T
    for op in ("floor_div", "mod"):
        cases += [Case(op, {"x": signs[0], "y": signs[1]})]
        cases += [Case(op, {"x": (signs[0] + 0.5).astype(np.float32), "y": signs[1].astype(np.float32)})]
    cases += [Case("real_div", {"x": floats(*x), "y": positive(*y)}) for x, y in shapes]
    cases += [Case("pow", {"x": positive(3, 4), "y": floats(4)}, rtol=1e-5)]
    cases += [Case("pow", {"x": integers(3, 4, low=-3, high=4), "y": integers(4, low=0, high=4)})]
    cases += [Case("pow", {"x": floats(3, 4), "y": np.float32(2)})]
    for op in ("logical_and", "logical_or", "logical_xor"):
        cases += [Case(op, {"x": truths(4, 1), "y": truths(3)})]
    return cases


def choices() -> list[Case]:
    cases = [
        Case("select", {"cond": truths(2, 3), "a": make(2, 3), "b": make(2, 3)}) for make in (floats, integers, truths)
    ]
    cases += [Case("select", {"cond": truths(2, 1), "a": floats(2, 3), "b": floats(3)})]
    whole = np.array([-3.7, -0.5, 0.0, 0.5, 2.999, 117.0], np.float32)
    cases += [Case("cast", {"x": whole}, {"dtype": to}) for to in ("fp32", "int32", "bool")]
    cases += [Case("cast", {"x": integers(3, 4)}, {"dtype": to}) for to in ("fp32", "int32", "bool")]
    cases += [Case("cast", {"x": truths(5)}, {"dtype": to}) for to in ("fp32", "int32", "bool")]
    small = np.array([0.0, 3.7, 99.5], np.float32)
    for to in ("int8", "uint8", "int16", "uint16"):
        cases += [Case("cast", {"x": small}, {"dtype": to}, opsets=(17, 18))]
        cases += [Case("cast", {"x": small.astype(to)}, {"dtype": "fp32"}, opsets=(17, 18))]
    return cases


# ---- along axes


def reductions() -> list[Case]:
    whole = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_sum_square", "reduce_l1_norm")
    cases = []
    for op in (*whole, "reduce_mean", "reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp"):
        make = positive if op == "reduce_log_sum" else floats
        for sizes, axes in (((2, 3, 4), None), ((2, 3, 4), [1]), ((2, 3, 4), [-1, 0]), ((5,), [0])):
            for keep in (False, True):
                fixed: dict[str, Any] = {"keep_dims": keep} | (
                    {} if axes is None else {"axes": np.array(axes, np.int32)}
                )
                cases += [Case(op, {"x": make(*sizes)}, fixed, rtol=1e-5)]
                cases += [Case(op, {"x": integers(*sizes, low=-3, high=4)}, fixed)] if op in whole else []
    for op in ("reduce_argmax", "reduce_argmin"):
        for given in ({}, {"axis": 0}, {"axis": 1, "keep_dims": True}):
            cases += [Case(op, {"x": floats(3, 4)}, given), Case(op, {"x": integers(3, 4, high=-6)}, given)]
        small = {"axis": 1, "output_dtype": "uint16"}
        cases += [Case(op, {"x": floats(3, 4)}, small, opsets=(17, 18))]
    return cases


def sums_and_orders() -> list[Case]:
    cases = [Case("softmax", {"x": floats(2, 3, 4)}, {"axis": axis}, rtol=1e-5) for axis in (-1, 0, 1)]
    cases += [Case("softmax", {"x": SPAN})]
    for axis, exclusive, backwards in itertools.product((0, 1, -1), (False, True), (False, True)):
        fixed = {"axis": axis, "exclusive": exclusive, "reverse": backwards}
        cases += [Case("cumsum", {"x": make(3, 4)}, fixed, _cumsum, rtol=1e-5) for make in (floats, integers)]
    for kind, axis, ascending in itertools.product((np.float32, np.int32), (-1, 0), (False, True)):
        fixed = {"axis": axis, "ascending": ascending}
        x = RANDOM.permutation(20).reshape(4, 5).astype(kind)  # no two alike: coremltools gives those in any order
        cases += [Case("argsort", {"x": x}, fixed), Case("topk", {"x": x}, {**fixed, "k": 2})]
        cases += [Case("topk", {"x": x}, {**fixed, "k": 3, "return_indices": False}, opsets=(16, 17, 18))]
        cases += [Case("topk", {"x": x}, {**fixed, "k": 3, "sort": False}, opsets=(16, 17, 18))]
    return cases


def _cumsum(*, x: Array, axis: int, exclusive: bool, reverse: bool) -> Array:
    """coremltools' own inference fails where it is exclusive."""
    result = np.zeros_like(x)
    length = x.shape[axis]
    for at in range(length):
        members = range(at + exclusive, length) if reverse else range(at + 1 - exclusive)
        place: list[Any] = [slice(None)] * x.ndim
        place[axis] = at
        result[tuple(place)] = sum(np.take(x, member, axis) for member in members)
    return result


# ---- shapes


def reshaped() -> list[Case]:
    x = integers(2, 3, 4)
    cases = [
        Case("reshape", {"x": x}, {"shape": np.array(to, np.int32)})
        for to in ([4, 6], [-1], [2, -1, 2], [0, 12], [3, 8], [1, 24, 1])
        if 0 not in to
    ]
    cases += [
        Case("reshape", {"x": x}, {"shape": np.array(to, np.int32)}) for to in ([0, -1, 4], [0, 0, 0], [-1, 3, 0])
    ]
    cases += [
        Case("reshape", {"x": x}, {"shape": np.array(to, np.int32)}, opsets=(17, 18))
        for to in ([1, 0, 0, 0], [0, 0, -1, 0], [-1, 0], [6, 0])
    ]
    like = {"begins": (np.int32(0), np.int32(1)), "ends": (np.int32(1), np.int32(0)), "end_masks": (False, True)}
    cases += [
        Case(
            "reshape_like",
            {"x": x, "ref_tensors": [integers(2, 9), integers(7, 4, 3)]},
            like,
            lambda *, x, **_: x.reshape(2, 4, 3),
            opsets=(16, 17, 18),
        )
    ]
    cases += [Case("transpose", {"x": x}, {"perm": np.array(perm, np.int32)}) for perm in ([2, 0, 1], [0, -1, 1])]
    thin = integers(1, 3, 1, 4)
    cases += [Case("squeeze", {"x": thin}, {"axes": np.array(axes, np.int32)}) for axes in ([0], [-2], [0, 2])]
    stays = lambda *, x, axes: x.reshape(3, 1, 4)  # noqa: E731
    cases += [Case("squeeze", {"x": thin}), Case("squeeze", {"x": thin}, {"axes": np.array([0, 1], np.int32)}, stays)]
    cases += [
        Case("expand_dims", {"x": x}, {"axes": np.array(axes, np.int32)}) for axes in ([0], [-1], [1, -1], [0, 1])
    ]
    cases += [Case("flatten2d", {"x": x}, {"axis": axis}) for axis in (1, 2, -1, -2)]
    cases += [Case("shape", {"x": x}), Case("shape", {"x": truths(5)}), Case("identity", {"x": floats(2, 3)})]
    return [*cases, Case("identity", {"x": truths(2)})]


def joined() -> list[Case]:
    pair = [floats(2, 3), floats(2, 3)]
    both = lambda *, values, axis, **_: np.stack(values, axis + 1).reshape(4 - 2 * axis, 3 + 3 * axis)  # noqa: E731
    cases = [Case("concat", {"values": pair}, {"axis": axis}) for axis in (0, 1, -1)]
    cases += [Case("concat", {"values": [integers(2, 1), integers(2, 4), integers(2, 2)]}, {"axis": 1})]
    cases += [Case("concat", {"values": [integers(1)[0], integers(1)[0]]}, {"axis": 0})]
    # coremltools infers no interleaving.
    cases += [Case("concat", {"values": pair}, {"axis": axis, "interleave": True}, both) for axis in (0, 1)]
    cases += [Case("stack", {"values": pair}, {"axis": axis}) for axis in (0, 1, 2, -1)]
    cases += [Case("split", {"x": integers(4, 6)}, {"axis": axis, "num_splits": 2}) for axis in (0, -1)]
    sizes = {"split_sizes": np.array([1, 3, 2], np.int32)}
    cases += [Case("split", {"x": integers(4, 6)}, {"axis": 1, **sizes})]
    cases += [Case("split", {"x": integers(4, 6)}, {"axis": 1, "num_splits": 3, **sizes})]
    cases += [
        Case("tile", {"x": integers(2, 3)}, {"reps": np.array(reps, np.int32)}) for reps in ([2, 1], [1, 3], [3, 2])
    ]
    cases += [Case("reverse", {"x": integers(2, 3, 4)}, {"axes": np.array(axes, np.int32)}) for axes in ([0], [-1, 1])]
    cases += [Case("reverse", {"x": integers(2, 3, 4)})]
    for along, batch in ((1, 0), (0, 1), (2, 1), (0, 2)):
        fixed = {"lengths": np.array([1, 4, 0, 3], np.int32), "seq_axis": along, "batch_axis": batch}
        cases += [Case("reverse_sequence", {"x": integers(4, 4, 4)}, fixed, _reverse_sequence)]
    return cases


def _reverse_sequence(*, x: Array, lengths: Array, seq_axis: int, batch_axis: int) -> Array:
    result = x.copy()
    rows, reversed_rows = (
        np.moveaxis(x, [batch_axis, seq_axis], [0, 1]),
        np.moveaxis(result, [batch_axis, seq_axis], [0, 1]),
    )
    for index, length in enumerate(lengths):
        reversed_rows[index, :length] = rows[index, :length][::-1]
    return result


def sliced() -> list[Case]:
    x = integers(4, 5, 6)
    given: list[dict[str, Any]] = [
        {"begin": [1, 0, 2], "end": [3, 5, 6]},
        {"begin": [0, 0, 0], "end": [4, 5, 6], "stride": [2, 3, 1]},
        {"begin": [-3, -2, -6], "end": [-1, -1, -2]},
        {"begin": [1, 1, 1], "end": [0, 0, 3], "end_mask": [True, True, False]},
        {"begin": [2, 2, 2], "end": [3, 3, 5], "begin_mask": [True, False, True]},
        {"begin": [3, 4, 5], "end": [0, 1, 2], "stride": [-1, -2, -1]},
        {"begin": [3, 4, 5], "end": [0, 1, 2], "stride": [-1, -1, -3], "end_mask": [True, True, True]},
        {"begin": [1, 2, 0], "end": [0, 0, 6], "squeeze_mask": [True, True, False]},
        {"begin": [-1, 0, 0], "end": [0, 5, 6], "squeeze_mask": [True, False, False]},
        {"begin": [0, 0, 0], "end": [99, 5, 6]},
    ]
    cases = []
    for each in given:
        fixed = {name: np.array(value, bool if "mask" in name else np.int32) for name, value in each.items()}
        cases += [Case("slice_by_index", {"x": x}, fixed)]
        updated = x[_numpy_index(**fixed)]
        fed = {"x": x, "update": integers(*updated.shape)}
        cases += [Case("slice_update", fed, fixed, opsets=(18,))]
    scalar = {"begin": np.array([1], np.int32), "end": np.array([0], np.int32), "squeeze_mask": np.array([True])}
    cases += [Case("slice_by_index", {"x": integers(4)}, scalar)]
    for begin, size in (([1, 0, 2], [2, 5, 3]), ([0, 1, 0], [-1, -1, 6]), ([-2, -1, 0], [1, 1, 1])):
        fixed = {"begin": np.array(begin, np.int32), "size": np.array(size, np.int32)}
        cases += [Case("slice_by_size", {"x": x}, fixed)]
    for axis, length, stride in ((0, 2, 1), (1, 3, 2), (-1, 6, 1), (2, 2, 3)):
        numbers = {"axis": axis, "size": length, "stride": stride}
        right = by_torch(lambda x, axis, *rest: x.unfold(axis, *rest).movedim(-1, axis % 3 + 1), *numbers)
        cases += [Case("sliding_windows", {"x": floats(4, 5, 6)}, numbers, right)]
    return cases


def _numpy_index(begin: Array, end: Array, **masks: Array) -> tuple[Any, ...]:
    no = np.zeros(len(begin), bool)
    parts = zip(
        begin,
        end,
        masks.get("stride", no + 1),
        masks.get("begin_mask", no),
        masks.get("end_mask", no),
        masks.get("squeeze_mask", no),
        strict=True,
    )
    return tuple(at if one else slice(None if b else at, None if e else to, by) for at, to, by, b, e, one in parts)


def padded_and_made() -> list[Case]:
    x = floats(2, 3, 4)
    cases = [
        Case("pad", {"x": x}, {"pad": np.array(numbers, np.int32), **mode})
        for numbers in ([1, 2], [0, 1, 2, 0], [1, 0, 0, 1, 1, 1])
        for mode in (
            {},
            {"mode": "constant", "constant_val": np.float32(-1.5)},
            {"mode": "reflect"},
            {"mode": "replicate"},
        )
        if len(numbers) < 6 or mode.get("mode") != "reflect"
    ]
    numbers = np.array([2, 3], np.int32)
    cases += [
        Case("fill", {"shape": numbers}, {"value": value}, _fill) for value in (np.float32(1.5), np.int32(-2), True)
    ]
    cases += [Case("fill", {}, {"shape": numbers, "value": np.float32(2)}), Case("fill", {}, {"shape": numbers})]
    cases += [
        Case("fill_like", {"ref_tensor": integers(2, 3)}, {"value": value}, opsets=(16, 17, 18))
        for value in (np.float32(1.5), np.int32(-2), True)
    ]
    for start, end, step in ((0, 7, 2), (5, -4, -3), (3, 3, 1)):
        for kind in (np.int32, np.float32):
            cases += [Case("range_1d", {"start": kind(start), "end": kind(end), "step": kind(step)})]
    cases += [Case("range_1d", {"start": np.float32(0), "end": np.float32(1), "step": np.float32(0.3)})]
    for axis in (-1, 0, 1, -2):
        fixed = {"one_hot_vector_size": 4, "axis": axis, "on_value": np.float32(2), "off_value": np.float32(-1)}
        cases += [Case("one_hot", {"indices": integers(2, 3, low=0, high=4)}, fixed, _one_hot)]
    counts = {"one_hot_vector_size": 3, "axis": -1}
    cases += [Case("one_hot", {"indices": integers(5, low=0, high=3)}, counts, _one_hot)]
    for lower, upper in ((0, -1), (-1, 0), (0, 0), (1, 2), (-1, -1)):
        cases += [Case("band_part", {"x": floats(2, 4, 5)}, {"lower": lower, "upper": upper})]
    cases += [
        Case("non_zero", {"x": integers(3, 4, low=-1, high=2)}, right=lambda *, x: np.argwhere(x).astype(np.int32))
    ]
    return cases


def _fill(*, shape: Array, value: Any) -> Array:
    return np.array([[value] * shape[1]] * shape[0])


def _one_hot(*, indices: Array, one_hot_vector_size: int, axis: int, on_value: Any = 1, off_value: Any = 0) -> Array:
    hot = torch.nn.functional.one_hot(torch.from_numpy(indices).long(), one_hot_vector_size)
    kind = np.int32 if isinstance(on_value, int) else np.float32
    return np.asarray(np.where(hot.movedim(-1, axis).numpy().astype(bool), on_value, off_value), kind)


def blocks() -> list[Case]:
    cases = [
        Case(
            "pixel_shuffle",
            {"x": floats(2, 12, 2, 3)},
            {"upscale_factor": 2},
            by_torch(torch.pixel_shuffle, "upscale_factor"),
        ),
        Case(
            "pixel_unshuffle",
            {"x": floats(2, 3, 4, 6)},
            {"downscale_factor": np.uint32(2)},
            by_torch(lambda x, factor: torch.pixel_unshuffle(x, int(factor)), "downscale_factor"),
            opsets=(16, 17, 18),
        ),
        Case("depth_to_space", {"x": floats(2, 12, 2, 3)}, {"block_size": 2}, _depth_to_space),
        Case("space_to_depth", {"x": floats(2, 3, 4, 6)}, {"block_size": 2}, _space_to_depth),
    ]
    for block, edges in (((2, 3), ((0, 0), (0, 0))), ((2, 2), ((1, 1), (2, 0)))):
        fixed = {"block_shape": np.array(block, np.int32), "paddings": np.array(edges, np.int32)}
        cases += [Case("space_to_batch", {"x": floats(2, 3, 4, 6)}, fixed, _space_to_batch)]
        fixed = {"block_shape": np.array(block, np.int32), "crops": np.array(edges, np.int32)}
        cases += [Case("batch_to_space", {"x": floats(12, 3, 2, 3)}, fixed, _batch_to_space)]
    return cases


def _depth_to_space(*, x: Array, block_size: int) -> Array:
    n, c, h, w = x.shape
    depth = c // block_size**2
    result = np.empty((n, depth, h * block_size, w * block_size), x.dtype)
    for i, j in itertools.product(range(block_size), repeat=2):
        first = (i * block_size + j) * depth
        result[:, :, i::block_size, j::block_size] = x[:, first : first + depth]
    return result


def _space_to_depth(*, x: Array, block_size: int) -> Array:
    corners = itertools.product(range(block_size), repeat=2)
    return np.concatenate([x[:, :, i::block_size, j::block_size] for i, j in corners], axis=1)


def _space_to_batch(*, x: Array, block_shape: Array, paddings: Array) -> Array:
    x = np.pad(x, [(0, 0), (0, 0), *paddings.tolist()])
    corners = itertools.product(*map(range, block_shape))
    return np.concatenate([x[:, :, i :: block_shape[0], j :: block_shape[1]] for i, j in corners])


def _batch_to_space(*, x: Array, block_shape: Array, crops: Array) -> Array:
    n, c, h, w = x.shape
    high, wide = block_shape
    count = n // (high * wide)
    result = np.empty((count, c, h * high, w * wide), x.dtype)
    for index, (i, j) in enumerate(itertools.product(range(high), range(wide))):
        result[:, :, i::high, j::wide] = x[index * count : (index + 1) * count]
    (top, bottom), (left, right) = crops
    return result[:, :, top : h * high - bottom, left : w * wide - right]


CASES = [
    *unary(),
    *with_numbers(),
    *binary(),
    *choices(),
    *reductions(),
    *sums_and_orders(),
    *reshaped(),
    *joined(),
    *sliced(),
    *padded_and_made(),
    *blocks(),
]


# ---- the tests


def test_every_operation_has_a_case() -> None:
    mine = {*elementwise.OPS, *reduction.OPS, *shape.OPS}
    assert mine == {case.op for case in CASES}
    assert mine <= set(OPS)


def inferred(case: Case, opset: int) -> list[Array]:
    """What is right."""
    if case.right is not None:
        found = case.right(**case.fed, **case.fixed)
    else:
        with Function({}, opset_version=packaged.OPSETS[opset]), np.errstate(all="ignore"):
            copies = {
                name: [each.copy() for each in given] if isinstance(given, list) else np.copy(given)[()]
                for name, given in case.fed.items()
            }
            made = getattr(mb, case.op)(**copies, **case.fixed)
            found = tuple(each.val for each in made) if isinstance(made, tuple | list) else made.val
    return [np.asarray(each) for each in (found if isinstance(found, tuple) else (found,))]


def computed(
    cases: Sequence[Case], opset: int, path: Path, *, half: bool = False, mode: str = "fp16"
) -> list[list[Array]]:
    """What the interpreter makes of one package with all of ``cases`` in it."""
    fed: dict[str, Array] = {"zero": np.zeros(1, np.float32)}
    for index, case in enumerate(cases):
        for name, given in case.fed.items():
            for part, each in enumerate(given if isinstance(given, list) else [given]):
                array = np.asarray(each)
                fed[f"{name}_{index}_{part}"] = (
                    array.astype(np.float16) if half and array.dtype == np.float32 else array
                )
    names: list[list[str]] = []

    def build(values: Mapping[str, Var]) -> Var:
        for index, case in enumerate(cases):
            given: dict[str, Any] = {}
            for name, value in case.fed.items():
                count = len(value) if isinstance(value, list) else 1
                parts = [values[f"{name}_{index}_{part}"] for part in range(count)]
                given[name] = parts if isinstance(value, list) else parts[0]
            fixed = {
                name: value.astype(np.float16) if half and getattr(value, "dtype", None) == np.float32 else value
                for name, value in case.fixed.items()
            }
            made = getattr(mb, case.op)(**given, **fixed)
            names.append([each.name for each in (made if isinstance(made, tuple | list) else [made])])
        return mb.identity(x=values["zero"], name="done")

    feeds = packaged.saved(path, fed, build, opset)
    trace: dict[str, Array] = {}
    Interpreter(read(path), "fp32" if mode == "fp32" else "fp16").run(feeds, trace)
    return [[trace[name] for name in each] for each in names]


@pytest.mark.parametrize("opset", ALL)
def test_operations(opset: int, tmp_path: Path) -> None:
    cases = [case for case in CASES if opset in case.opsets]
    results = zip(cases, computed(cases, opset, tmp_path / "m.mlpackage"), strict=True)
    assert not [f"{case}: {fault}" for case, found in results if (fault := differs(case, inferred(case, opset), found))]


def differs(case: Case, right: list[Array], found: list[Array]) -> str | None:
    """In what the results are not what is right."""
    for one, other in zip(right, found, strict=True):
        if one.shape != other.shape:
            return f"{other.shape}, right is {one.shape}"
        # coremltools infers integers in types of its own; the declared one is held by the interpreter itself.
        if other.dtype.kind not in ("iu" if one.dtype.kind in "iu" else one.dtype.kind):
            return f"{other.dtype}, right is {one.dtype}"
        scale = np.abs(one[np.isfinite(one)]).max(initial=0.0) if one.dtype.kind == "f" else 0.0
        if not np.allclose(one, other, case.rtol if scale else 0, case.rtol * scale, equal_nan=True):
            return f"{other.tolist()}, right is {one.tolist()}"
    return None


def test_half_precision_is_float32_rounded_at_each_output(tmp_path: Path) -> None:
    cases = [case for case in CASES if _takes_halves(case)]
    exact = computed([_halved(case) for case in cases], 17, tmp_path / "wide.mlpackage")
    for case, wide, found in zip(
        cases, exact, computed(cases, 17, tmp_path / "half.mlpackage", half=True), strict=True
    ):
        for right, result in zip(wide, found, strict=True):
            assert result.dtype == (np.float16 if right.dtype == np.float32 else right.dtype), str(case)
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(result, right.astype(result.dtype), err_msg=str(case))


def _takes_halves(case: Case) -> bool:
    return (
        17 in case.opsets
        and case.op != "cast"
        and any(_is_float(each) for each in (*case.fed.values(), *case.fixed.values()))
    )


def _is_float(value: Any) -> bool:
    return (
        all(_is_float(each) for each in value)
        if isinstance(value, list)
        else getattr(value, "dtype", None) == np.float32
    )


def _halved(case: Case) -> Case:
    """In float32, numbers that float16 holds."""

    def halved(value: Any) -> Any:
        if isinstance(value, list):
            return [halved(each) for each in value]
        return value.astype(np.float16).astype(np.float32) if _is_float(value) else value

    fed = {name: halved(value) for name, value in case.fed.items()}
    return Case(case.op, fed, {name: halved(value) for name, value in case.fixed.items()})


def test_error_function_is_exact() -> None:
    x = np.concatenate([np.linspace(-7, 7, 100_001), np.geomspace(1e-300, 1, 2_000), [np.inf, -np.inf, -0.0]])
    right = np.array([math.erf(each) for each in x])
    found = elementwise.error_function(x)
    assert np.abs(found - right).max() < 3e-16
    np.testing.assert_allclose(found, right, rtol=1e-12)
    assert np.signbit(found[-1])
    assert np.isnan(elementwise.error_function(np.array([np.nan])))

"""Arithmetic, bounds, comparisons, logic, bits and casts of TFLite against ONNX Runtime."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t
from many_nodes import LAYOUTS, agrees
from node_models import Node, floats, integers, model, truths

from retarget.errors import Unsupported

if TYPE_CHECKING:
    from retarget.protocols import Array

BROADCASTS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), ()),
    ((5,), (1,)),
    ((3, 1), (1, 4)),
    ((2, 3, 4), (3, 1)),
    ((4,), (2, 3, 4)),
    ((2, 3, 4, 5), (3, 1, 1)),
    ((1, 3, 1, 5), (2, 1, 4, 1)),
    ((2, 3, 4, 5), (4, 5)),
    ((2, 3, 2, 3, 2), (1, 3, 1, 1, 1)),
    ((2, 3, 2, 3, 2, 2), (2, 1, 2, 1, 2, 1)),
]

NOT_FINITE = np.array([[np.nan, np.inf, -np.inf, -0.0, 0.0, 1.5, -2.5, 3e38]], np.float32)


def numbers(dtype: str, *shape: int, low: int = -9, seed: int = 1) -> Array:
    if dtype == "float32":
        return floats(*shape, seed=seed)
    return integers(*shape, low=max(low, 0) if dtype == "uint8" else low, dtype=dtype, seed=seed)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]
)
def test_two_operands(operator: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        Node(operator, [numbers(dtype, *left), numbers(dtype, *right, low=1, seed=2)], {}, held)
        for dtype in (
            ("float32", "int64", "uint8") if layout == "last" else ("float32", "int32", "int64", "int8", "uint8")
        )
        for (left, right), held in zip(BROADCASTS, itertools.cycle([(), (1,), (0,)]), strict=False)
    ]
    agrees(nodes, layout, tmp_path, monkeypatch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_remainders(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        Node("Mod", [numbers(dtype, *left), numbers(dtype, *right, low=1, seed=2)], {"fmod": fmod})
        for dtype in ("float32", "int32", "int64", "int8", "uint8")
        for fmod in ((1,) if dtype == "float32" else (0, 1))
        for left, right in BROADCASTS
    ]
    agrees(nodes, layout, tmp_path, monkeypatch)


def test_integer_division_and_remainders_have_the_signs_of_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = np.array([7, -7, 7, -7, 2**31 - 1, -(2**31), 0], np.int32)
    right = np.array([2, 2, -2, -2, 3, 3, -5], np.int32)
    dividends = np.array([5.5, -5.5, 5.5, -5.5, 4.0, -1e9], np.float32)
    divisors = np.array([2, 2, -2, -2, np.inf, 0.3], np.float32)
    nodes = [
        Node("Div", [left, right]),
        Node("Mod", [left, right], {"fmod": 0}),
        Node("Mod", [left, right], {"fmod": 1}),
        Node("Mod", [dividends, divisors], {"fmod": 1}),
    ]
    agrees(nodes, "first", tmp_path, monkeypatch)


def test_narrow_integers_wrap_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = np.array([200, 255, 3], np.uint8), np.array([100, 1, 5], np.uint8)
    nodes = [Node(operator, [left, right]) for operator in ("Add", "Sub", "Mul")]
    agrees(nodes, "first", tmp_path, monkeypatch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logic(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        Node(operator, [truths(*left), truths(*right, seed=2)])
        for operator in ("And", "Or", "Xor")
        for left, right in BROADCASTS
    ]
    agrees([*nodes, Node("Not", [truths(2, 3, 4)])], layout, tmp_path, monkeypatch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pow_by_a_constant(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = np.abs(floats(2, 3, 4, 5)) + np.float32(0.1)
    nodes = [
        Node("Pow", [base, np.full(shape, exponent, np.float32)], {}, (1,))
        for exponent in (-2.0, -1.0, -0.5, 0.0, 0.5, 0.75, 1.0, 2.0, 3.0, 4.0)
        for shape in ((), (1,), (1, 1, 1, 1, 1))
    ]
    agrees(nodes, layout, tmp_path, monkeypatch)


def test_pow_of_mixed_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = []
    for left, right in itertools.product(["float32", "int32", "int64"], repeat=2):
        base, exponent = integers(2, 3, low=0, high=5, dtype=left), integers(3, low=0, high=4, dtype=right)
        nodes += [Node("Pow", [base, exponent]), Node("Pow", [base, exponent[:1]], {}, (1,))]
    agrees(nodes, "first", tmp_path, monkeypatch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_operand(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = np.array([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 0.49999997]], np.float32)
    nodes = [
        Node(operator, [numbers(dtype, *shape)])
        for operator in ("Abs", "Neg", "Sign")
        for dtype in ("float32", "int32", "int64", "int8")
        for shape in ((), (5,), (2, 3, 4), (2, 3, 2, 2, 2, 2))
    ]
    for operator in ("Ceil", "Floor", "Round", "Exp", "Sqrt", "Log", "Reciprocal", "Identity"):
        data = np.abs(halves) if operator in ("Sqrt", "Log") else halves
        nodes += [Node(operator, [data]), Node(operator, [data.reshape(1, 2, 2, 2)])]
    agrees(nodes, layout, tmp_path, monkeypatch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_number_of_operands(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = []
    for operator, count in itertools.product(("Max", "Min", "Sum", "Mean"), (1, 2, 4)):
        operands = [floats(2, 3, 1, 5, seed=seed) for seed in range(count)]
        nodes.append(Node(operator, [*operands[:-1], operands[-1][:, :, :, :1]]))
    agrees(nodes, layout, tmp_path, monkeypatch)


BOUNDS = [(-1.5, 2.0), (0.0, 6.0), (0.0, None), (-1.0, 1.0), (None, 2.0), (None, None), (2.0, -2.0)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_clip(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        Node("Clip", [numbers(dtype, 2, 3, 4), *(None if each is None else np.asarray(each, dtype) for each in bounds)])
        for dtype in ("float32", "int32", "int64", "int8")
        for bounds in BOUNDS
    ]
    held = [Node(each.operator, each.operands, {}, (1, 2)) for each in nodes]
    agrees([*nodes, *held], layout, tmp_path, monkeypatch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[tuple[int, ...], ...]] = [
        ((), (), ()),
        ((4,), (2, 3, 4), (1,)),
        ((2, 1, 4), (3, 1), ()),
        ((2, 3, 4, 1), (1, 1, 4, 5), (2, 1, 1, 5)),
        ((2, 3, 1, 2, 1), (2, 3, 4, 2, 2), (1,)),
    ]
    nodes = [
        Node("Where", [truths(*condition), numbers(dtype, *left), numbers(dtype, *right, seed=2)], {}, held)
        for dtype in ("float32", "int32", "int64", "uint8")
        for condition, left, right in shapes
        for held in ((), (2,))
    ]
    agrees(nodes, layout, tmp_path, monkeypatch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_is_found(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = []
    for data in (NOT_FINITE, NOT_FINITE.reshape(1, 2, 2, 2)):
        nodes.append(Node("IsNaN", [data]))
        for negative, positive in itertools.product((0, 1), repeat=2):
            nodes.append(Node("IsInf", [data], {"detect_negative": negative, "detect_positive": positive}))
    agrees(nodes, layout, tmp_path, monkeypatch)


def test_casts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = []
    for before, after in itertools.product(["float32", "int32", "int64", "bool", "int8", "uint8"], repeat=2):
        data = floats(2, 3, 4) if before == "float32" else integers(2, 3, 4, low=0, high=100, dtype=before)
        data = np.abs(data) if after == "uint8" else data
        nodes.append(Node("Cast", [data], {"to": int(ir.DataType.from_numpy(np.dtype(after)))}))
        nodes.append(Node("CastLike", [data, np.zeros(1, after)]))
    agrees(nodes, "last", tmp_path, monkeypatch)


def test_wide_integers_are_cut_to_narrow_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.array([-(2**31), -300, -129, -1, 0, 127, 128, 255, 256, 2**31 - 1], np.int32)
    nodes = [Node("CastLike", [data, np.zeros(1, dtype)]) for dtype in ("int8", "uint8", "bool")]
    agrees(nodes, "first", tmp_path, monkeypatch)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "int8"])
def test_bits(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = (-(2**31), 2**31) if dtype in ("int32", "int64") else (0, 127)
    left = integers(2, 1, 4, low=low, high=high, dtype=dtype)
    right = integers(3, 4, low=low, high=high, dtype=dtype, seed=2)
    nodes = [
        Node(operator, [left, right], {}, held)
        for operator in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
        for held in ((), (1,))
    ]
    agrees([*nodes, Node("BitwiseNot", [left])], "last", tmp_path, monkeypatch)


def test_shifts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        Node(
            "BitShift",
            [integers(2, 3, 4, low=0, high=250, dtype=dtype), integers(2, 3, 4, low=0, high=8, dtype=dtype)],
            {"direction": direction},
        )
        for dtype in ("uint8", "uint32")
        for direction in ("LEFT", "RIGHT")
    ]
    agrees(nodes, "last", tmp_path, monkeypatch)


def test_dropout_does_nothing_and_masks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [Node("Dropout", [NOT_FINITE], outputs=count) for count in (1, 2)]
    agrees(nodes, "first", tmp_path, monkeypatch)
    training = Node("Dropout", [floats(3), np.array(0.5, np.float32), np.array(True)], {}, (1, 2))
    with pytest.raises(Unsupported, match="training_mode=1: what it drops is random"):
        t.emit("tflite", model(training)[0], tmp_path)


def test_float16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="to=float16: TFLite does not compute with it"):
        t.emit("tflite", model(Node("Cast", [floats(3)], {"to": 10}))[0], tmp_path)


def test_a_constant_that_fits_one_size_holds_it(tmp_path: Path) -> None:
    chain = t.model("g (float[N,3] x, float[4,1] w_a) => (float[N,3] y) { a = Neg(x) y = Add(a, w_a) }")
    assert t.emit("tflite", chain, tmp_path).sizes == {"N": 4}


def test_the_batch_stays_open(tmp_path: Path) -> None:
    chain = t.model("""g (float[N,3,4,5] x, float[3,1,1] w_a, float[5] w_b) => (float[N,3,4,5] y) {
        a = Mul(x, w_a) b = Add(a, w_b) c = Max(b, w_b) d = Clip(c) e = Greater(d, x) y = Where(e, d, x)
    }""")
    facts = t.emit("tflite", chain, tmp_path)
    assert not facts.sizes
    for size in (4, 1):
        feeds = t.feeds(chain, size)
        right = t.oracle(chain, feeds)["y"]
        t.assert_close(t.run("tflite", tmp_path, facts, feeds)["y"], right)

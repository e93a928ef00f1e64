"""Arithmetic and functions of ncnn, element by element, against ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from ncnn_written import check, layers, refused
from node_models import Node, floats, integers, model, of_text

if TYPE_CHECKING:
    from retarget.protocols import Array

BROADCASTS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), ()),
    ((4,), ()),
    ((), (2, 3)),
    ((1, 1), (5,)),
    ((1,), (2, 1, 3)),
    ((3, 1), (1, 4)),
    ((4,), (2, 3, 4)),
    ((2, 17, 1), (17, 16)),
    ((1, 3, 4, 5), (3, 1, 1)),
    ((2, 3, 4, 5), (2, 3, 4, 5)),
    ((2, 3, 1, 5), (4, 1)),
    ((2, 1, 4, 1), (1, 3, 1, 5)),
    ((2, 3, 2, 3, 2), (1, 3, 1, 1, 1)),
    ((2, 3, 2, 3, 2, 2), (3, 2, 1, 1, 1)),
    ((1, 2, 3, 1, 4, 5), (1, 4, 1)),
]
ROWS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3, 4), (3, 4)),
    ((3, 4), (3, 1)),
    ((3, 1, 5), (3, 4, 1)),
    ((3, 2, 4, 5), (3, 2, 1, 1)),
    ((3, 2, 4, 5), (3, 1, 4, 1)),
    ((3, 2, 3, 4, 5), (3, 2, 1, 1, 5)),
]
SHARED: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3, 4), (4,)),
    ((3, 2, 4, 5), (2, 1, 1)),
    ((3, 2, 4, 5), (1, 2, 1, 5)),
    ((3, 2, 4), ()),
    ((3, 2, 4), (3, 1, 4)),
]
"""The second a constant."""
TWO = ("Add", "Sub", "Mul", "Div", "Max", "Min")


@pytest.mark.parametrize("operator", TWO)
def test_two_operands(operator: str) -> None:
    nodes = [
        Node(operator, [floats(*left), floats(*right, seed=2)], {}, held)
        for left, right in BROADCASTS
        for held in ((), (0,), (1,))
    ]
    check(*model(*nodes), atol=1e-6)


def test_two_operands_of_rows() -> None:
    nodes = [Node(operator, [floats(*left), floats(*right, seed=2)]) for operator in TWO for left, right in ROWS]
    nodes += [
        Node(operator, [floats(*right, seed=2), floats(*left)][::order], {}, (0,) if order == 1 else (1,))
        for operator in TWO
        for left, right in SHARED
        for order in (1, -1)
    ]
    check(*model(*nodes), atol=1e-6)


def test_operands_that_broadcast_as_they_are_are_not_moved() -> None:
    assert layers(of_text("float[1,3,4,5] x, float[1,3,1,1] z", "Add(x, z)")) == ["BinaryOp"]
    assert layers(of_text("float[1,3,4,5] x, float[1,3,4,5] z", "Mul(x, z)")) == ["BinaryOp"]
    assert layers(of_text("float[1,3,4,5] x, float[4,5] z", "Sub(x, z)")) == ["Reshape", "BinaryOp"]
    constant = Node("Add", [floats(1, 3, 4, 5), floats(5)], {}, (1,))
    assert layers(model(constant)[0]) == ["BinaryOp"]
    number = Node("Sub", [np.array(2, np.float32), floats(1, 3, 4, 5)], {}, (0,))
    assert layers(model(number)[0]) == ["BinaryOp"]


def test_operands_that_broadcast_along_too_many_axes_are_refused() -> None:
    text = refused(of_text("float[2,1,2,1,2,1] x, float[1,3,1,3,1,3] z", "Add(x, z)"))
    assert "broadcast along more than the 4 dims" in text


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers(dtype: str) -> None:
    left, right = integers(3, 5, low=-90, high=90, dtype=dtype), integers(3, 5, low=1, dtype=dtype, seed=2)
    signs = np.multiply(right, [[1], [-1], [1]]).astype(dtype)
    nodes = [Node(operator, [left, signs], {"fmod": fmod} if fmod >= 0 else {}) for operator, fmod in _DIVISIONS]
    nodes += [Node(operator, [signs, left[:1]], {}, (0,)) for operator in ("Max", "Min")]
    nodes += [Node(operator, [left]) for operator in ("Abs", "Neg", "Sign", *(("Relu",) if dtype == "int32" else ()))]
    check(*model(*nodes))


_DIVISIONS = (("Div", -1), ("Mod", 0), ("Mod", 1))


def test_quotients_of_large_integers() -> None:
    numbers = np.array([0, 1, 6, 7, 999_999, 16_777_215, 12_582_912, 8_388_609], np.int32)
    left = np.concatenate([numbers, -numbers])[:, None]
    right = np.array([1, 2, 3, 5, 7, 10, 641, 4096, 16_777_213, -3, -7], np.int32)
    check(
        *model(*(Node(operator, [left, right], {"fmod": fmod} if fmod >= 0 else {}) for operator, fmod in _DIVISIONS))
    )


def test_quotients_of_neighbours() -> None:
    """Beyond 2^23 a float has no halves: what is one less than the divisor is not as much."""
    right = np.array([2**23 + 2, 12_582_914, 16_777_214, 2**24, 5, 3], np.int32)
    left = np.array([2**23 + 1, 12_582_913, 16_777_213, 2**24 - 1, 16_777_214, 16_777_214], np.int32)
    nodes = [Node(operator, [left, right], {"fmod": fmod} if fmod >= 0 else {}) for operator, fmod in _DIVISIONS]
    check(*model(*nodes), atol=0)


def test_integers_that_may_wrap_around_are_refused() -> None:
    assert "2^24" in refused(of_text("int64[4] x, int64[4] z", "Add(x, z)"))
    assert "wrap around" in refused(of_text("uint8[4] x, uint8[4] z", "Sub(x, z)"))
    assert "wrap around" in refused(of_text("int8[4] x, int8[4] z", "Add(x, z)"))


def test_a_mask_that_is_declared_bool_is_no_large_integer() -> None:
    """As DeBERTa multiplies its mask by itself."""
    assert "declare a mask as bool" in refused(of_text("int64[2,5] x, int64[2,5] z", "Mul(x, z)"))
    mask = np.arange(5) < np.array([[3], [5]])
    check(of_text("bool[2,5] x, bool[2,5] z", "And(x, z)"), {"x": mask, "z": mask[::-1].copy()})


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_the_lowest_integer_of_a_type(dtype: str) -> None:
    """It has no opposite: what would be that is itself again."""
    limits = np.iinfo(dtype)
    x = np.array([limits.min, limits.min + 1, -1, 0, 1, limits.max], dtype)
    signs = np.array([-1, 1, -1, 2, 3, -1], dtype)
    nodes = [Node(operator, [x]) for operator in ("Abs", "Neg", "Sign", "BitwiseNot")]
    nodes += [Node(operator, [x, signs], {}, held) for operator in ("Div", "Mod") for held in ((), (1,))]
    nodes += [Node("Cast", [x], {"to": onnx.TensorProto.INT32}), Node("Abs", [np.array([0, 255], np.uint8)])]
    check(*model(*nodes), atol=0)


def test_the_lowest_integer_is_chosen_as_others_are() -> None:
    x = np.array([-128, -127, 0, 127], np.int8)
    lowest, three = np.array(-128, np.int8), np.array(3, np.int8)
    nodes = [Node(operator, [x, x[::-1].copy()]) for operator in ("Max", "Min")]
    nodes += [Node("Relu", [x]), Node("ReduceMin", [x]), Node("Clip", [x, lowest, three], {}, (1, 2))]
    nodes += [Node("Where", [x > 0, x, lowest], {}, (2,)), Node("Gather", [x, np.array([1, 0])], {}, (0,))]
    nodes += [Node("Pad", [x, np.array([1, 1]), lowest], {}, (1, 2)), Node("Concat", [x, x], {"axis": 0})]
    check(*model(*nodes), atol=0)


def test_constant_integers_beyond_2_24() -> None:
    """As float32, 2^24 + 1 is 2^24: what a computed integer is held against stays beyond it."""
    x = np.array([2**24, -(2**24), 2**24 - 1, 0], np.int32)
    nodes = [
        Node(operator, [x, np.array(number, np.int32)][::order], {}, (0,) if order == -1 else (1,))
        for operator in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
        for number in (2**24, 2**24 + 1, -(2**24) - 1, 2**31 - 1, -(2**31))
        for order in (1, -1)
    ]
    ends = [(0, 2**63 - 1), (-(2**63), 2**63 - 1), (-(2**63), 7), (2**24, 2**24 + 1)]
    nodes += [Node("Clip", [x.astype(np.int64), *map(np.array, pair)], {}, (1, 2)) for pair in ends]
    check(*model(*nodes), atol=0)
    for operator in ("Add", "Mul", "Max"):
        assert "beyond 2^24" in refused(model(Node(operator, [x.astype(np.int64), np.array(2**24 + 1)], {}, (1,)))[0])


def test_division_by_zero_and_infinity() -> None:
    x = np.array([1, -1, 0, 2, np.inf, -np.inf, 3, -3] * 4, np.float32)
    y = np.repeat(np.array([0, np.inf, 2, -4], np.float32), 8)
    nodes = [Node("Div", [x, y]), Node("Div", [x, y], {}, (0,)), Node("Div", [x, y], {}, (1,)), Node("Reciprocal", [y])]
    nodes += [Node("Div", [np.array(number, np.float32), y], {}, (0,)) for number in (1, 3, -2)]
    nodes += [Node("Div", [x[:, None], y[:1]]), Node("Div", [x, np.array(0, np.float32)], {}, (1,))]
    check(*model(*nodes), atol=1e-6)


def test_powers() -> None:
    positive, x = np.abs(floats(3, 17)) + 0.1, floats(3, 17)
    nodes = [
        Node("Pow", [positive, np.array(exponent, np.float32)], {}, (1,))
        for exponent in (0, 0.5, 1, 1.7, 2, 3, -1, -0.5, -2, 4)
    ]
    nodes += [Node("Pow", [x, np.array([exponent], dtype)], {}, (1,)) for exponent, dtype in _EXPONENTS]
    nodes += [Node("Pow", [np.array(base, np.float32), x], {}, (0,)) for base in (0.5, 2, 10)]
    nodes += [Node("Pow", [positive, x]), Node("Pow", [x, integers(17, dtype="float32")]), Node("Pow", [x, x])]
    nodes += [Node("Pow", [integers(3, 4, low=-9), np.array(1, np.int32)], {}, (1,))]
    check(*model(*nodes), atol=3e-6)


_EXPONENTS = ((2, "float32"), (3, "int64"), (4, "int32"), (-1, "float32"), (5, "float32"), (0.5, "float32"))


def test_powers_of_zero() -> None:
    base = np.array([0, 0, 0, 0, -2, -2, -2, np.inf, np.inf, 1], np.float32)
    exponent = np.array([0, 1, 2.5, -1, 2, 3, 0.5, 2, -1, 5], np.float32)
    check(*model(Node("Pow", [base, exponent]), Node("Pow", [base, np.array(-1, np.float32)], {}, (1,))))


def test_powers_of_integers_are_refused() -> None:
    assert "rounded as floats" in refused(of_text("int32[4] x, int32[4] z", "Pow(x, z)"))


def test_any_number_of_operands() -> None:
    operands = [floats(3, 1, 4), floats(3, 5, 1, seed=2), floats(3, 5, 4, seed=3), floats(3, 1, 1, seed=4)]
    nodes = [
        Node(operator, operands[:count])
        for operator in ("Max", "Mean", "Min", "Sum")
        for count in (1, 2, 3, 4)
    ]  # fmt: skip
    nodes += [Node(operator, [*operands[:3], floats(4)], {}, (3,)) for operator in ("Max", "Mean", "Min", "Sum")]
    check(*model(*nodes), atol=1e-6)


EVERYWHERE = ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Neg", "Round", "Sign", "Sin", "Tanh", "Sigmoid", "Atan",
              "Asinh", "Sinh", "Cosh", "Tan")  # fmt: skip
WITHIN = ("Acos", "Asin", "Atanh")
ABOVE = ("Log", "Sqrt", "Reciprocal", "Acosh")


@pytest.mark.parametrize("shape", [(), (19,), (3, 5), (1, 2, 3, 7), (3, 2, 4, 5), (3, 2, 1, 2, 2, 3)])
def test_one_operand(shape: tuple[int, ...]) -> None:
    x, within = floats(*shape), np.tanh(floats(*shape)) * np.array(0.99, np.float32)
    nodes = [Node(operator, [x]) for operator in EVERYWHERE]
    nodes += [Node(operator, [within]) for operator in (*WITHIN, "Tan")]
    nodes += [Node(operator, [np.abs(x) + np.array(1.01, np.float32)]) for operator in ABOVE]
    check(*model(*nodes), atol=2e-6)


def test_functions_of_one_operand_are_one_layer() -> None:
    for operator in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Log", "Neg", "Reciprocal", "Round", "Sqrt"):
        assert len(layers(of_text("float[3,2,4,5] x", f"{operator}(x)"))) == 1, operator


def test_rounding_to_even() -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 2.4, 2.6, 8388609.0, 1e20, 0.49999997] * 3, np.float32)
    check(*model(Node("Round", [x])), atol=0)


SPECIAL: dict[str, list[float]] = {
    "Exp": [np.inf, -np.inf, 88, 89, 100, 1e30, -90, -1e30, np.nan],
    "Log": [0, np.inf, 1, -1, 1e-30, np.nan],
    "Sqrt": [0, np.inf, -1, 1e-30, np.nan],
    "Abs": [np.inf, -np.inf, np.nan],
    "Neg": [np.inf, -np.inf, np.nan],
    "Floor": [np.inf, -np.inf, -0.5, np.nan],
    "Ceil": [np.inf, -np.inf, 0.5, np.nan],
    "Reciprocal": [0, np.inf, -np.inf, np.nan],
    "Erf": [np.inf, -np.inf, 5, -5],
    "Sigmoid": [np.inf, -np.inf, 200, -200],
    "Tanh": [np.inf, -np.inf, 50, -50],
    "Atan": [np.inf, -np.inf, 1e30, -1e30],
    "Sinh": [np.inf, -np.inf, 89, -89, 100, -100, 0],
    "Cosh": [np.inf, -np.inf, 89, -89, 100, -100, 0],
    "Asinh": [1e20, -1e20, 0],
    "Acosh": [1, 1e20, 0.5, -3, np.inf],
    "Atanh": [1, -1, 0, 2],
    "Acos": [1, -1, 2],
    "Asin": [1, -1, 2],
    "Sin": [1e3, 1e4, -1e6],
    "Cos": [1e3, 1e4, -1e6],
}


@pytest.mark.parametrize("count", [1, 16, 19])
def test_zeros_and_infinities(count: int) -> None:
    """At several sizes, for which ncnn has code of its own."""
    nodes = [Node(name, [np.repeat(np.array(each, np.float32), count)]) for name, each in SPECIAL.items()]
    check(*model(*nodes), atol=1e-6)


def test_clip() -> None:
    x, inf = floats(3, 4, 5), np.array(np.inf, np.float32)
    bounds: list[list[Array | None]] = [
        [np.array(-1, np.float32), np.array(1, np.float32)],
        [np.array(-1, np.float32), None],
        [None, np.array(1, np.float32)],
        [np.array(2, np.float32), np.array(-2, np.float32)],
        [np.negative(inf), np.array(1, np.float32)],
        [np.array(0, np.float32), inf],
    ]
    nodes = [Node("Clip", [x, *each], {}, (1, 2)) for each in bounds]
    nodes += [
        Node("Clip", [x]),
        Node("Clip", [np.array([[np.inf], [-np.inf], [2]], np.float32), None, np.array(5, np.float32)], {}, (2,)),
    ]
    nodes += [Node("Clip", [integers(3, 4), np.array(-2, np.int32), np.array(4, np.int32)], {}, (1, 2))]
    check(*model(*nodes), atol=0)
    computed = [Node("Clip", [floats(2, 3), np.array(-1, np.float32), np.array(0.5, np.float32)])]
    check(*model(*computed), atol=0)


def test_remainders_of_floats() -> None:
    x = floats(3, 40, scale=100)
    check(
        *model(*(Node("Mod", [x, np.array(number, np.float32)], {"fmod": 1}, (1,)) for number in (1, 0.5, 4, -2))),
        atol=0,
    )
    assert "quotient is rounded" in refused(of_text("float[4] x, float[4] z", "Mod<fmod=1>(x, z)"))


def test_dropout() -> None:
    check(*model(Node("Dropout", [floats(3, 4)], outputs=2), Node("Dropout", [floats(3, 4)])))
    text = refused(of_text("float[4] x, bool t", "Dropout(x, , t)"))
    assert "training_mode" in text

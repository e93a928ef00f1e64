"""Comparisons, truth values, choices and casts of ncnn against ONNX Runtime."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import target_testing
from ncnn_written import check, layers, refused, written
from node_models import Node, floats, integers, model, of_text, truths

from retarget.targets.ncnn import files
from retarget.targets.ncnn.emit import PARAM
from retarget.targets.ncnn.program import MASK, NO_HALF

COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
BROADCASTS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), ()),
    ((17,), ()),
    ((3, 1), (1, 4)),
    ((2, 3, 4, 5), (3, 1, 1)),
    ((2, 3, 2, 3, 2), (1, 3, 1, 1, 1)),
]
ODD = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 3.4028235e38, -3.4028235e38, 0.1, 1e-30], np.float32)


def held(operands: int) -> list[tuple[int, ...]]:
    return [(), *((index,) for index in range(operands))]


@pytest.mark.parametrize("operator", COMPARISONS)
def test_comparisons(operator: str) -> None:
    nodes = [
        Node(operator, [integers(*left, dtype="float32"), integers(*right, dtype="float32", seed=2)], {}, constants)
        for left, right in BROADCASTS
        for constants in held(2)
    ]
    nodes += [
        Node(operator, [integers(3, 4, dtype=kind), integers(4, seed=2, dtype=kind)]) for kind in ("int32", "int64")
    ]
    nodes += [
        Node(operator, [floats(3, 4), np.array(number, np.float32)], {}, (1,))
        for number in (0, 1, -2.5, np.inf, -np.inf)
    ]
    nodes += [Node(operator, [np.array(number, np.float32), floats(3, 4)], {}, (0,)) for number in (0, 1, -2.5)]
    if operator == "Equal":
        nodes += [
            Node(operator, [truths(3, 4), truths(4, seed=2)]),
            Node(operator, [truths(3), np.array(True)], {}, (1,)),
        ]
    check(*model(*nodes))


_INTEGERS = ("int32", "int64")


@pytest.mark.parametrize("operator", COMPARISONS)
def test_comparisons_of_infinities_and_of_what_is_no_number(operator: str) -> None:
    left, right = (each.reshape(-1) for each in np.meshgrid(ODD, ODD))
    nodes = [Node(operator, [left, right], {}, constants) for constants in held(2)]
    nodes += [
        Node(operator, [ODD, number.reshape(()), ][::order], {}, (1 if order == 1 else 0,))
        for number in ODD
        for order in (1, -1)
    ]  # fmt: skip
    check(*model(*nodes))


def test_neighbours() -> None:
    x = np.array(
        [
            1,
            np.nextafter(np.array(1, np.float32), np.array(2, np.float32)),
            np.nextafter(np.array(1, np.float32), np.array(0, np.float32)),
        ],
        np.float32,
    )
    nodes = [Node(operator, [x, number], {}, (1,)) for operator in COMPARISONS for number in x.reshape(-1, 1)]
    nodes += [Node(operator, [x[:, None], x]) for operator in COMPARISONS]
    check(*model(*nodes))


def test_comparisons_of_rows() -> None:
    nodes = [
        Node(operator, [integers(3, 2, 4, 5, dtype="float32"), integers(3, 2, 1, 1, dtype="float32", seed=2)])
        for operator in COMPARISONS
    ]
    nodes += [
        Node(operator, [integers(3, 2, 4, dtype="float32"), integers(4, dtype="float32")], {}, (1,))
        for operator in COMPARISONS
    ]
    check(*model(*nodes))


def test_truth_values() -> None:
    nodes = [
        Node(operator, [truths(*left), truths(*right, seed=2)], {}, constants)
        for operator in ("And", "Or", "Xor")
        for left, right in BROADCASTS
        for constants in held(2)
    ]
    check(*model(*nodes, *(Node("Not", [truths(*shape)]) for shape, _ in BROADCASTS)))


def test_a_comparison_with_a_number_is_one_layer_or_two() -> None:
    assert layers(model(Node("Greater", [floats(3, 4), np.array(1, np.float32)], {}, (1,)))[0]) == ["Threshold"]
    assert layers(model(Node("GreaterOrEqual", [floats(3, 4), np.array(0, np.float32)], {}, (1,)))[0]) == ["Threshold"]
    assert layers(model(Node("Less", [floats(3, 4), np.array(1, np.float32)], {}, (1,)))[0]) == ["UnaryOp", "Threshold"]


@pytest.mark.parametrize("count", [1, 16, 19])
def test_what_is_no_number(count: int) -> None:
    x = np.repeat(ODD, count)
    nodes = [Node("IsNaN", [x])]
    nodes += [
        Node("IsInf", [x], {"detect_negative": negative, "detect_positive": positive})
        for negative, positive in itertools.product((0, 1), (0, 1))
    ]
    check(*model(*nodes))


CHOICES = [
    ((3, 4), (3, 4), (3, 4)),
    ((), (3, 4), (4,)),
    ((3, 1), (1, 4), ()),
    ((2, 1, 17), (2, 5, 17), ()),
    ((17,), (), (2, 1, 1)),
    ((2, 3, 4, 5), (3, 1, 1), (5,)),
    ((1, 1, 4, 4), (2, 3, 4, 4), ()),
    ((2, 1, 4, 4), (2, 3, 4, 4), (1,)),
]


def test_choices() -> None:
    nodes = [
        Node("Where", [truths(*condition), floats(*x), floats(*y, seed=2)], {}, constants)
        for condition, x, y in CHOICES
        for constants in (*held(3), (0, 1), (0, 2), (1, 2))
    ]
    nodes += [
        Node("Where", [truths(3, 4), integers(3, 4), np.array(0, np.int32)], {}, constants) for constants in ((), (2,))
    ]
    check(*model(*nodes), atol=0)


def test_choices_of_rows() -> None:
    nodes = [
        Node("Where", [truths(3, 1, 4, 5), floats(3, 2, 4, 5), floats(seed=2)], {}, (2,)),
        Node("Where", [truths(1, 1, 4, 5), floats(3, 2, 4, 5), floats(3, 2, 4, 5, seed=2)], {}, (0,)),
        Node("Where", [truths(3, 2, 1, 1), floats(3, 2, 4, 5), floats(3, 1, 4, 1, seed=2)]),
    ]
    check(*model(*nodes), atol=0)


@pytest.mark.parametrize("count", [1, 4])
def test_what_is_not_chosen_does_not_matter(count: int) -> None:
    """Infinities and NaN among it."""
    odd = np.array([np.inf, -np.inf, np.nan, 5, np.inf, -np.inf, 3.4e38, -3.4e38], np.float32)
    condition = np.array([0, 0, 0, 1, 1, 1, 1, 1], np.bool_)
    operands = [np.tile(each, count) for each in (condition, odd, floats(8))]
    swapped = [np.logical_not(operands[0]), operands[2], operands[1]]
    numbers = (
        np.array(0, np.float32),
        np.array(-np.inf, np.float32),
        np.array(-3.4028235e38, np.float32),
        np.array(np.inf, np.float32),
    )
    nodes = [Node("Where", operands, {}, constants) for constants in ((), (0,), (2,), (0, 2))]
    nodes += [Node("Where", swapped, {}, constants) for constants in ((), (0,), (1,), (0, 1))]
    nodes += [
        Node("Where", [*operands[:2], number], {}, constants) for number in numbers for constants in ((2,), (0, 2))
    ]
    nodes += [Node("Where", [operands[0], number, numbers[1]], {}, (1, 2)) for number in numbers[:1]]
    check(*model(*nodes), atol=0)


def test_a_guard_of_a_softmax_is_one_layer() -> None:
    guarded = target_testing.model("""g (float[2,3] x) => (float[2,3] y) {
        s = Softmax (x)
        zero = Constant <value_float = 0.0> ()
        bad = IsNaN (s)
        y = Where (bad, zero, s)
    }""")
    assert layers(guarded) == ["Softmax", "Shrink"]
    inf = np.array(np.inf, np.float32)
    check(guarded, {"x": np.array([[1, 2, -inf], [-inf, -inf, -inf]], np.float32)})


def test_casts() -> None:
    x = np.array([[0, -0.0, 1.5, -1.5], [2.99, -0.3, 1e5, 7], [0.5, 1, -7, 100]], np.float32)
    bits = integers(3, 4)
    to = {"float": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9}
    nodes = [Node("Cast", [x], {"to": to[name]}) for name in ("float", "int32", "int64", "bool")]
    nodes += [Node("Cast", [np.abs(np.minimum(x, 200))], {"to": to["uint8"]})]
    nodes += [Node("Cast", [bits], {"to": to[name]}) for name in ("float", "int64", "bool", "int32")]
    nodes += [Node("Cast", [truths(3, 4)], {"to": to[name]}) for name in ("float", "int32", "int64", "uint8", "bool")]
    nodes += [Node("Cast", [np.array([np.nan, np.inf, 0, 1e-30], np.float32)], {"to": to["bool"]})]
    nodes += [Node("CastLike", [x, np.zeros(1, kind)], {}, (1,)) for kind in (np.int32, np.bool_)]
    check(*model(*nodes), atol=0)


def test_casts_that_wrap_around_are_refused() -> None:
    assert "wrap around" in refused(of_text("int32[4] x", "Cast<to=3>(x)", "int8 y"))
    assert "wrap around" in refused(of_text("int32[4] x", "Cast<to=2>(x)", "uint8 y"))
    assert "string" in refused(of_text("float[4] x", "Cast<to=8>(x)", "string y"))


def test_shifts() -> None:
    x = integers(3, 4, low=0, high=200, dtype="uint8")
    nodes = [
        Node("BitShift", [x, np.array(by, np.uint8)], {"direction": "RIGHT"}, (1,)) for by in (0, 1, 3, [1, 2, 0, 7])
    ]
    nodes.append(Node("BitShift", [x, np.array([[1], [0], [7]], np.uint8)], {"direction": "RIGHT"}, (1,)))  # of rows
    check(*model(*nodes))
    assert "wrap around" in refused(model(Node("BitShift", [x, np.array(1, np.uint8)], {"direction": "LEFT"}, (1,)))[0])


def test_bits() -> None:
    signed, unsigned = integers(3, 4, dtype="int16"), integers(3, 4, low=0, dtype="uint8")
    check(*model(Node("BitwiseNot", [signed]), Node("BitwiseNot", [unsigned])))
    assert "beyond 2^24" in refused(of_text("int32[4] x", "BitwiseNot(x)"))
    assert "bits of integers" in refused(of_text("int32[4] x, int32[4] z", "BitwiseAnd(x, z)"))


def test_a_constant_that_is_no_number_is_refused() -> None:
    made, _ = model(Node("Where", [truths(3), np.array(np.nan, np.float32), floats(3)], {}, (1,)))
    assert "NaN" in refused(made)


def test_a_choice_between_texts_is_refused() -> None:
    texts = 'a = Constant <value_string = "a"> () b = Constant <value_string = "b"> ()'
    made = target_testing.model(f"g (bool[2] c) => (string[2] y) {{ {texts} [choice] y = Where(c, a, b) }}")
    assert "choice (Where): operand 1 is text" in refused(made)


def test_choices_between_numbers() -> None:
    inf, lowest = np.inf, -3.4028235e38
    pairs = [(1, 0), (0, 1), (0, lowest), (lowest, 0), (0, -inf), (-inf, 0), (inf, -inf), (lowest, -lowest), (0.1, 1e9)]
    condition = truths(3, 4)
    nodes = [Node("Where", [condition, np.array(x, np.float32), np.array(y, np.float32)], {}, (1, 2)) for x, y in pairs]
    check(*model(*nodes), atol=0)
    assert layers(model(nodes[0])[0]) == ["Noop"]
    assert layers(model(nodes[2])[0]) == ["BinaryOp"] * 2
    assert layers(model(nodes[4])[0]) == ["BinaryOp"] * 3


@pytest.mark.parametrize("lowest", [-1e9, -3.4028235e38])
def test_a_choice_of_what_float16_does_not_hold_is_made_without_it(lowest: float, tmp_path: Path) -> None:
    """In float16 the step from -1e9 to 0 is infinite, and would be added to minus infinity."""
    numbers = (np.array(number, np.float32) for number in (0, lowest))
    written(model(Node("Where", [truths(3, 4), *numbers], {}, (1, 2)))[0], tmp_path)
    made = [line for line in files.read(tmp_path / PARAM) if line.type == "BinaryOp"]
    assert [line.integer(MASK) for line in made] == [NO_HALF] * 2


def test_a_constant_mask_is_two_layers() -> None:
    mask = np.tril(np.ones((4, 4), np.bool_))
    nodes = [Node("Where", [mask, floats(2, 3, 4, 4), np.array(-np.inf, np.float32)], {}, (0, 2))]
    check(*model(*nodes), atol=0)
    assert layers(model(*nodes)[0]) == ["Shrink", "BinaryOp"]


@pytest.mark.parametrize("operator", ["Atan", "Pow", "ReduceLogSumExp"])
def test_a_finite_number_for_an_infinite_one_is_never_float16(operator: str, tmp_path: Path) -> None:
    """As float16 the largest float is infinite again, and 0 times that no number."""
    operands = [floats(3, 4), floats(3, 4, seed=2)] if operator == "Pow" else [floats(3, 4)]
    written(model(Node(operator, operands))[0], tmp_path)
    lines = files.read(tmp_path / PARAM)
    assert "Clip" in [line.type for line in lines]
    given = ("x0_0", "x0_1")
    rounded = [line for line in lines if line.type not in ("Input", "Reshape") and line.integer(MASK) != NO_HALF]
    copied = [top for line in lines if line.type == "Split" and line.bottoms[0] in given for top in line.tops]
    # A Tile makes float32 of what is given.
    own = {"Split": given, "Tile": [*given, *copied]}
    assert all(line.bottoms[0] in own.get(line.type, ()) for line in rounded), rounded


def test_integers_are_never_float16(tmp_path: Path) -> None:
    """It does not hold 2049; what copies or moves an integer, or holds it against another, rounds it too."""
    x = integers(3, 4, dtype="int64")
    nodes = [Node("Equal", [x, np.array(50256)], {}, (1,)), Node("Concat", [x, x], {"axis": 1})]
    nodes += [Node("Transpose", [x]), Node("Max", [x, x]), Node("Cast", [floats(3, 4)], {"to": int(ir.DataType.INT64)})]
    nodes += [Node("Identity", [x]), Node("Where", [truths(3, 4), x, x[::-1].copy()])]
    made, feeds = model(*nodes)
    check(made, feeds, atol=0)
    written(made, tmp_path)
    lines = [line for line in files.read(tmp_path / PARAM) if line.type not in ("Input", "MemoryData")]
    assert {line.integer(MASK) for line in lines} == {NO_HALF}
    # Integers of one byte it does hold.
    written(model(Node("Max", [np.zeros(4, np.int8), np.ones(4, np.int8)]))[0], tmp_path)
    assert {line.integer(MASK) for line in files.read(tmp_path / PARAM)} == {0}


def test_a_copy_of_integers_for_two_is_never_float16(tmp_path: Path) -> None:
    text = (
        "g (int64[4] x) => (bool[4] y, bool[4] z) { k = Constant<value_int = 5000>() y = Less(x, k) z = Equal(x, k) }"
    )
    written(target_testing.model(text), tmp_path)
    copies = [line for line in files.read(tmp_path / PARAM) if line.type == "Split" and line.bottoms == ("x",)]
    assert [line.integer(MASK) for line in copies] == [NO_HALF]


COUNTED = """
    zero = Constant<value_int = 0>() one = Constant<value_int = 1>() size = Shape<start = 1>(x)
    scalar = Squeeze(size) r = Range(zero, scalar, one)
"""


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ("2,3,4", "b = Transpose<perm = [2, 1, 0]>(a) y = Transpose<perm = [1, 0, 2]>(b)"),
        ("N,S,4", "s = Constant<value_ints = [0, -1, 2]>() y = Reshape(a, s)"),
        ("N,S", f"{COUNTED} y = Max(a, r)"),
    ],
)
def test_integers_are_never_float16_in_layers_of_several(shape: str, body: str, tmp_path: Path) -> None:
    """Nor in those that are one for several sizes, or for several others."""
    written(target_testing.model(f"g (float[{shape}] x) => (int64[] y) {{ a = Cast<to = 7>(x) {body} }}"), tmp_path)
    free = ("Input", "MemoryData")
    lines = [line for line in files.read(tmp_path / PARAM) if line.type not in free and line.bottoms != ("x",)]
    assert lines
    assert {line.integer(MASK) for line in lines} == {NO_HALF}, lines

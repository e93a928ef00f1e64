"""Arithmetic, bounds, comparisons, logic, bits and casts of Core ML against ONNX Runtime."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t
import written
from agreement import agrees
from node_models import Node, floats, integers, of_text, truths

from retarget.errors import Unsupported

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.coreml import DeploymentTarget

BROADCASTS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), ()),
    ((3, 1), (1, 4)),
    ((4,), (2, 3, 4)),
    ((2, 3, 4, 5), (3, 1, 1)),
    ((2, 3, 2, 3, 2), (1, 3, 1, 1, 1)),
]
NOT_FINITE = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.5, -2.5, 3e38, -3e38, 90, -90], np.float32)


def numbers(dtype: str, *shape: int, low: int = -9, seed: int = 1) -> Array:
    if dtype.startswith("float"):
        return floats(*shape, seed=seed).astype(dtype)
    return integers(*shape, low=max(low, 0) if dtype.startswith("u") else low, dtype=dtype, seed=seed)


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_two_operands(target: DeploymentTarget) -> None:
    nodes = [
        Node(operator, [numbers(dtype, *left), numbers(dtype, *right, low=1, seed=2)], {}, held)
        for operator in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "GreaterOrEqual")
        for dtype in ("float32", "int64")
        for (left, right), held in zip(BROADCASTS[1:], itertools.cycle([(), (1,), (0,)]), strict=False)
    ]
    agrees(*nodes, target=target)


def test_two_operands_of_other_types() -> None:
    halves = [
        Node(operator, [numbers("float16", 3, 4), numbers("float16", 4, seed=2)])
        for operator in ("Add", "Sub", "Mul", "Div", "Max", "Greater", "LessOrEqual")
    ]
    small = [
        Node(operator, [numbers(dtype, 3, 4), numbers(dtype, 4, seed=2)])
        for operator in ("Equal", "Less", "Max", "Min")
        for dtype in ("int8", "uint8")
    ]
    agrees(*halves, *small, rtol=1e-3)


def test_integer_division_and_remainders_have_the_signs_of_onnx() -> None:
    left = np.array([7, -7, 7, -7, 2**31 - 1, -(2**31), 0, 6, -6], np.int32)
    right = np.array([2, 2, -2, -2, 3, 3, -5, -3, 3], np.int32)
    dividends = np.array([5.5, -5.5, 5.5, -5.5, 4.0, -1e6, -4.0], np.float32)
    divisors = np.array([2, 2, -2, -2, np.inf, 0.3, 2], np.float32)
    agrees(
        *(Node("Div", [left, right], {}, held) for held in ((), (0,), (1,))),
        *(Node("Mod", [left, right], {"fmod": fmod}, held) for fmod in (0, 1) for held in ((), (1,))),
        *(Node("Mod", [numbers(kind, 9), numbers(kind, 9, low=1)], {"fmod": 1}) for kind in ("int64", "int8", "uint8")),
        Node("Mod", [dividends, divisors], {"fmod": 1}),
        rtol=0,
        atol=0,
    )


def test_powers() -> None:
    base = np.abs(floats(2, 3, 4)) + np.float32(0.1)
    exponents = (-2.0, -1.0, -0.5, 0.0, 0.5, 0.75, 1.0, 2.0, 3.0, 4.0)
    nodes = [
        Node("Pow", [base, np.full(shape, exponent, np.float32)], {}, (1,))
        for exponent in exponents
        for shape in ((), (1,), (1, 1, 1, 1))
    ]
    nodes += [
        Node("Pow", [integers(2, 3, low=0, high=5, dtype=left), integers(3, low=0, high=4, dtype=right)], {}, held)
        for left, right in itertools.product(["float32", "int32", "int64"], repeat=2)
        for held in ((), (1,))
        if held or not (left.startswith("int") and right == "float32")
    ]
    # A negative exponent of an integer leaves what is not a fraction.
    powers = np.array([[1, -1, 2, -3, 1, -1, 5, -2], [-1, -3, -1, -2, 0, -2, 2, 3]], np.int32)
    agrees(*nodes, Node("Pow", [*powers]), Node("Pow", [*powers], {}, (1,)))


def test_one_operand() -> None:
    halves = np.array([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 0.49999997]], np.float32)
    nodes = [
        Node(operator, [numbers(dtype, *shape)])
        for operator in ("Abs", "Neg", "Sign")
        for dtype in ("float32", "int64", "float16")
        for shape in ((), (5,), (2, 3, 2, 2, 2))
    ]
    nodes += [
        Node(operator, [np.abs(halves) if operator in ("Sqrt", "Log") else halves])
        for operator in ("Ceil", "Floor", "Round", "Exp", "Sqrt", "Log", "Reciprocal")
    ]
    agrees(*nodes, rtol=1e-6)


def test_what_is_not_finite() -> None:
    names = ("Abs", "Neg", "Ceil", "Floor", "Round", "Exp", "Sqrt", "Log", "Reciprocal", "Sign", "IsNaN", "IsInf")
    nodes = [Node(name, [NOT_FINITE]) for name in names]
    nodes += [
        Node("IsInf", [NOT_FINITE], {"detect_negative": negative, "detect_positive": positive})
        for negative, positive in ((0, 0), (0, 1), (1, 0))
    ]
    nodes += [
        Node("Clip", [NOT_FINITE, np.array(-1, np.float32), np.array(2, np.float32)], {}, (1, 2)),
        Node("Cast", [NOT_FINITE], {"to": 9}),
    ]
    nodes += [Node(name, [NOT_FINITE, NOT_FINITE[::-1].copy()]) for name in ("Add", "Max", "Min", "Equal", "Less")]
    agrees(*nodes)


def test_any_number_of_operands() -> None:
    agrees(
        *(
            Node(operator, [floats(2, 3, 1, 5, seed=seed) for seed in range(count - 1)] + [floats(2, 3, 1, 1)])
            for operator, count in itertools.product(("Max", "Min", "Sum", "Mean"), (1, 2, 4))
        )
    )


def test_clip() -> None:
    bounds = [(-1.5, 2.0), (0.0, None), (None, 2.0), (None, None), (2.0, -2.0), (1.0, 1.0)]
    agrees(
        *(
            Node(
                "Clip",
                [numbers(kind, 2, 3), *(None if each is None else np.asarray(each, kind) for each in pair)],
                {},
                held,
            )
            for kind in ("float32", "float16", "int64", "int8")
            for pair in bounds
            for held in ((), (1, 2))
        )
    )


def test_bounds_beyond_int32_bound_nothing() -> None:
    limits = np.iinfo(np.int64)
    pairs = ((limits.min, 3), (-2, limits.max), (limits.min, limits.max), (None, limits.max))
    agrees(
        *(
            Node(
                "Clip",
                [integers(9, dtype="int64"), *(None if each is None else np.array(each) for each in pair)],
                {},
                (1, 2),
            )
            for pair in pairs
        )
    )


def test_logic() -> None:
    agrees(
        *(
            Node(operator, [truths(*left), truths(*right, seed=2)])
            for operator in ("And", "Or", "Xor", "Equal")
            for left, right in BROADCASTS
        ),
        Node("Not", [truths(2, 3)]),
    )


def test_where_takes_its_shape_from_all_three() -> None:
    shapes: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
        ((2, 3), (2, 3), (2, 3), ()),
        ((2, 3), (), (), (1, 2)),
        ((2, 3), (3,), (1,), ()),
        ((2, 1), (1, 3), (), (2,)),
        ((4, 2, 3), (2, 3), (1,), (1,)),
        ((), (2, 3), (3,), ()),
        ((1, 1, 3, 3), (2, 2, 3, 3), (), (2,)),
    ]
    agrees(
        *(
            Node("Where", [truths(*condition), numbers(kind, *x), numbers(kind, *y, seed=3)], {}, held)
            for kind in ("float32", "float16", "int64")
            for condition, x, y, held in shapes
        )
    )


def test_where_of_truths_and_of_an_open_condition() -> None:
    model = of_text("bool[N,3] c, bool[3] x, bool[N,1] y", "Where(c, x, y)", "bool z")
    feeds = [{"c": truths(size, 3), "x": truths(3, seed=2), "y": truths(size, 1, seed=3)} for size in (2, 5)]
    for feed, found in zip(feeds, written.interpreted(model, *feeds), strict=True):
        np.testing.assert_array_equal(found["z"], np.where(feed["c"], feed["x"], feed["y"]))
    mask = of_text("bool[N,3] c, float[1] x", "Where(c, x, x)", "float z")
    written.check(mask, *({"c": truths(size, 3), "x": floats(1)} for size in (2, 5)))


CAST: dict[str, Array] = {
    "float32": np.array([0, -0.0, 0.5, 1.9, -1.9, 100.7, -100.2], np.float32),
    "float16": np.array([0, 0.5, 1.9, -1.9, 100.7], np.float16),
    "int32": np.array([0, 1, -1, 300, -300, 70000, -70000, 2**31 - 1, -(2**31)], np.int32),
    "int64": np.array([0, 1, -1, 300, -300, 70000], np.int64),
    "bool": np.array([True, False]),
    "int8": np.array([-128, 127, 0, 5], np.int8),
    "uint8": np.array([0, 255, 128, 7], np.uint8),
    "int16": np.array([-32768, 32767, 0], np.int16),
}


def test_cast() -> None:
    nodes = []
    for (source, array), name in itertools.product(CAST.items(), (*CAST, "uint16")):
        fed = np.abs(array) if source.startswith("float") and name.startswith("u") else array
        nodes.append(Node("Cast", [fed], {"to": ir.DataType.from_numpy(np.dtype(name)).value}))
    agrees(*nodes, rtol=0, atol=0)


def test_cast_like() -> None:
    agrees(*(Node("CastLike", [CAST["int32"], CAST[kind]]) for kind in ("float32", "bool", "int8", "uint8")), rtol=0)


def test_casts_there_and_back_are_kept() -> None:
    model = t.model("""g (float[6] x) => (float[6] y, float[6] z) {
        i = Cast <to = 7> (x)  y = Cast <to = 1> (i)
        h = Cast <to = 10> (x)  z = Cast <to = 1> (h)
    }""")
    written.check(model, {"x": np.array([0.3, -1.7, 2.5, 1000.7, -0.1, 3.14159], np.float32)}, atol=0)


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_casts_of_what_integers_do_not_hold_may_be_discarded(dtype: str) -> None:
    model = t.model(
        f"""g ({dtype}[N,4] x) => (int64[N,4] y) {{
            zero = Constant <value = {dtype} {{0}}> ()  seven = Constant <value = int64 {{7}}> ()
            l = Log (x)  i = Cast <to = 7> (l)  none = Equal (x, zero)
            y = Where (none, seven, i)
        }}"""
    )
    x = np.array([[0, 1, 60, 3000], [0, 0, 5, 1e4]], np.float32)
    written.check(model, {"x": x if dtype == "float" else x.astype(np.float16)})


def test_bits() -> None:
    edges = np.array([7, -7, 2**31 - 1, -(2**31), 0, -1, 1 << 30, 0x55555555], np.int32)
    agrees(
        *(
            Node(f"Bitwise{name}", [numbers(kind, 3, 4, low=-128), numbers(kind, 4, low=-99, seed=3)])
            for name, kind in (("And", "int64"), ("Or", "int8"), ("Xor", "uint8"))
        ),
        *(Node(f"Bitwise{name}", [edges, edges[::-1].copy()]) for name in ("And", "Or", "Xor")),
        *(Node("BitwiseNot", [numbers(kind, 3, 4)]) for kind in ("int32", "int8", "uint8")),
        rtol=0,
        atol=0,
    )


def test_shifts() -> None:
    data, shifts = np.array([[0, 1, 200, 255], [7, 128, 3, 99]], np.uint8), np.array([0, 1, 3, 7], np.uint8)
    agrees(
        *(Node("BitShift", [data, shifts], {"direction": direction}, (1,)) for direction in ("LEFT", "RIGHT")),
        Node("BitShift", [data.astype(np.uint32), shifts.astype(np.uint32)], {"direction": "RIGHT"}, (1,)),
    )


def test_dropout() -> None:
    agrees(Node("Dropout", [NOT_FINITE], outputs=2), Node("Dropout", [floats(2, 3)]))


@pytest.mark.parametrize(
    "node",
    ["Add(x, y)", "Div(x, y)", "Min(x, y)", "Where(c, x, y)", "Mod <fmod = 1> (x, y)", "Less(x, y)"],
)
def test_open_dimensions_stay_open(node: str) -> None:
    kind = "bool z" if node.startswith("Less") else "float z"
    written.check_open(of_text("float[N,S,3] x, float[S,3] y, bool[N,1,1] c", node, kind), 2, 5)


@pytest.mark.parametrize(
    ("inputs", "node", "output", "reason"),
    [
        ("int64[3] x, float[3] y", "Pow(x, y)", "int64 z", "power of computed floats"),
        ("float[3] x", "Cast <to = 16> (x)", "bfloat16 z", "to=bfloat16"),
        ("int32[3] x", "Cast <to = 13> (x)", "uint64 z", "to=uint64: negative numbers"),
        ("uint32[3] x", 'BitShift <direction = "LEFT"> (x, x)', "uint32 z", "how far it shifts is computed"),
        ("uint8[3] x, uint8[3] y", "Add(x, y)", "uint8 z", "does not wrap around"),
    ],
)
def test_refused(inputs: str, node: str, output: str, reason: str) -> None:
    model = of_text(inputs, node, output)
    with pytest.raises(Unsupported, match=reason):
        written.interpreted(model, t.feeds(model, 3))

"""Dimensions that stay open: one pair of files, executed at many sizes and held against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import ncnn_written as written
import numpy as np
import onnx_ir as ir
import pytest
import target_testing as testing

from retarget import catalog
from retarget.errors import RetargetError
from retarget.facts import EmitFacts
from retarget.spec import DimRange
from retarget.targets.ncnn import files
from retarget.targets.ncnn.emit import PARAM
from retarget.targets.ncnn.open_sizes import opened
from retarget.targets.ncnn.program import Blob, Layer, Program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from retarget.protocols import Array, Feeds

RANGE = DimRange(1, 4, 9)
SIZES = (1, 2, 3, 4, 6, 9)


def check(text: str | ir.Model, *points: dict[str, int], atol: float = 1e-5, **shapes: DimRange) -> list[files.Line]:
    """Write the graph, and hold what it gives at ``points`` against the oracle; nothing may be fixed. Its layers."""
    model = testing.model(text) if isinstance(text, str) else text
    with TemporaryDirectory() as folder:
        facts = written.written(model, Path(folder), "fp32", **shapes)
        assert not facts.sizes, facts.notes
        with catalog.target_run("ncnn").open(Path(folder), facts, parity=True, threads=1) as runner:
            for number, sizes in enumerate(points):
                feeds = fed(facts, sizes, number)
                expected, found = testing.oracle(model, feeds), runner.run(feeds)
                assert list(found) == list(expected)
                for name, right in expected.items():
                    assert found[name].shape == right.shape, sizes
                    testing.assert_near(found[name], right, atol)
        return files.read(Path(folder) / PARAM)


def fed(facts: EmitFacts, sizes: dict[str, int], seed: int) -> Feeds:
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for entry in facts.inputs:
        shape, dtype = entry.spec.at(sizes), entry.spec.dtype
        random = rng.integers(0, 8, shape) if "int" in dtype else rng.standard_normal(shape)
        made[entry.name] = random.astype(dtype)
    return made


def each(*symbols: str, sizes: tuple[int, ...] = SIZES) -> list[dict[str, int]]:
    """All of one size, and each another."""
    same = [dict.fromkeys(symbols, size) for size in sizes]
    other = [
        {symbol: sizes[(place + step) % len(sizes)] for place, symbol in enumerate(symbols)}
        for step in range(len(sizes))
    ]
    return [*same, *other]


def fixed(text: str, **shapes: DimRange) -> tuple[dict[str, int], str]:
    """Which dimensions of the graph have one size in the files, and what is said of them."""
    with TemporaryDirectory() as folder:
        facts = written.written(testing.model(text), Path(folder), "fp32", **shapes)
        return dict(facts.sizes), "; ".join(facts.notes)


def test_what_goes_element_by_element() -> None:
    check("g (float[N,S,8] x, float[S,1] y) => (float[N,S,8] z) { a = Add(x, y)  z = Mul(a, x) }", *each("N", "S"),
          N=RANGE, S=RANGE)  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "perm", "to"),
    [
        ("0,-1,2,4", "0,2,1,3", "0,2,-1,4"),
        ("-1,8", "1,0", "2,-1"),
        ("0,0,2,4", "2,0,1,3", "2,-1,4"),
        ("0,0,2,2,2", "0,3,1,4,2", "0,2,-1"),
    ],
)
def test_reshapes(shape: str, perm: str, to: str) -> None:
    check(
        f"""g (float[N,S,8] x) => (float[A,B,C] z) {{
            shape = Constant<value = int64[{len(shape.split(","))}] {{{shape}}}>()
            to = Constant<value = int64[{len(to.split(","))}] {{{to}}}>()
            a = Reshape(x, shape)
            b = Transpose<perm = [{perm}]>(a)
            c = Reshape(b, to)
            z = Neg(c)
        }}""".replace("[A,B,C]", f"[{','.join('ABCD'[: len(to.split(','))])}]"),
        *each("N", "S"), N=RANGE, S=RANGE,
    )  # fmt: skip


def test_a_size_that_is_read_from_another_value() -> None:
    """What joined the axes of an image knows neither of them: they are read from where they were apart."""
    layers = check(
        """g (float[N,4,H,W] x, float[4,4] w_a) => (float[N,4,H,W] z) {
            flat = Constant<value = int64[3] {0,4,-1}>()
            a = Reshape(x, flat)
            b = Transpose<perm = [0,2,1]>(a)
            c = MatMul(b, w_a)
            d = Transpose<perm = [0,2,1]>(c)
            shape = Shape(x)
            e = Reshape(d, shape)
            z = Neg(e)
        }""",
        *each("N", "H", "W"), N=RANGE, H=RANGE, W=RANGE,
    )  # fmt: skip
    assert any(len(line.bottoms) > 1 and "1" in line.params.get(6, "") for line in layers if line.type == "Reshape")


def test_positions_that_are_cut_from_a_table() -> None:
    check(
        """g (float[N,S,8] x, float[9,8] w_p) => (float[N,S,8] z) {
            one = Constant<value = int64[1] {1}>()
            zero = Constant<value = int64[1] {0}>()
            two = Constant<value = int64[1] {2}>()
            shape = Shape(x)
            end = Slice(shape, one, two)
            p = Slice(w_p, zero, end, zero)
            z = Add(x, p)
        }""",
        *each("N", "S"), N=RANGE, S=RANGE,
    )  # fmt: skip


def test_positions_around_the_middle_of_a_table() -> None:
    """Distances of all from all, on both sides, as a Conformer looks them up: twice the size less one."""
    check(
        """g (float[N,2,S,8] x, float[1,2,8,39] w_t) => (float[N,2,S,P] z) {
            middle = Constant<value_ints = [20]>()  one = Constant<value_ints = [1]>()
            axis = Constant<value_ints = [3]>()  size = Shape<start = 2, end = 3>(x)
            first = Sub(middle, size)
            both = Add(middle, size)
            last = Sub(both, one)
            part = Slice(w_t, first, last, axis)
            z = MatMul(x, part)
        }""",
        *each("N", "S"), N=RANGE, S=RANGE,
    )  # fmt: skip


def test_a_mask_of_the_sequence() -> None:
    check(
        """g (float[N,2,S,S] x, float[1,1,9,9] w_m) => (float[N,2,S,S] z) {
            from = Constant<value = int64[2] {0,0}>()
            axes = Constant<value = int64[2] {2,3}>()
            at = Constant<value = int64[1] {2}>()
            to = Constant<value = int64[1] {4}>()
            zero = Constant<value = int64[1] {0}>()
            shape = Shape(x)
            end = Slice(shape, at, to, zero)
            m = Slice(w_m, from, end, axes)
            z = Add(x, m)
        }""",
        *each("N", "S"), N=RANGE, S=RANGE,
    )  # fmt: skip


@pytest.mark.parametrize("part", ["1:9", "0:-1", "-2:9", "-3:-1", "2:4"])
def test_slices(part: str) -> None:
    start, end = part.split(":")
    least = DimRange(5, 6, 12)
    check(
        f"""g (float[N,S,8] x) => (float[N,P,8] z) {{
            start = Constant<value = int64[1] {{{start}}}>()
            end = Constant<value = int64[1] {{{end if end != "9" else 1000}}}>()
            axis = Constant<value = int64[1] {{1}}>()
            a = Slice(x, start, end, axis)
            z = Neg(a)
        }}""",
        *each("N", "S", sizes=(5, 6, 7, 12)), N=DimRange(1, 4, 12), S=least,
    )  # fmt: skip


def test_more_from_the_end_than_there_is() -> None:
    check(
        """g (float[N,S,8] x) => (float[N,P,8] z) {
            start = Constant<value = int64[1] {-3}>()
            end = Constant<value = int64[1] {1000}>()
            axis = Constant<value = int64[1] {1}>()
            a = Slice(x, start, end, axis)
            z = Neg(a)
        }""",
        *each("N", "S", sizes=(1, 2, 3, 4, 30)), N=DimRange(1, 4, 30), S=DimRange(1, 10, 30),
    )  # fmt: skip


def test_a_mask_that_is_expanded() -> None:
    check(
        """g (float[N,S] x) => (float[N,2,S,S] z) {
            shape = Shape(x)
            n = Slice(shape, w0, w1)
            s = Slice(shape, w1, w2)
            to = Concat<axis = 0>(n, w2, s, s)
            a = Unsqueeze(x, w12)
            b = Expand(a, to)
            z = Neg(b)
        }""".replace("{\n", """{
            w0 = Constant<value = int64[1] {0}>()
            w1 = Constant<value = int64[1] {1}>()
            w2 = Constant<value = int64[1] {2}>()
            w12 = Constant<value = int64[2] {1,2}>()
        """, 1),
        *each("N", "S"), N=RANGE, S=RANGE,
    )  # fmt: skip


CNN = """
g (float[N,3,H,W] x, float[8,3,3,3] w_a, float[8,8,3,3] w_b, float[8,5] w_c) => (float[N,5] z, float[N,8,P,Q] y) {
    a = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w_a)
    b = Relu(a)
    c = Conv<pads = [1,1,1,1]>(b, w_b)
    y = Add(c, b)
    d = GlobalAveragePool(y)
    e = Flatten(d)
    z = MatMul(e, w_c)
}"""


def test_a_cnn() -> None:
    wide = DimRange(4, 8, 20)
    check(CNN, *[
        {"N": n, "H": h, "W": w} for n, h, w in ((1, 4, 4), (4, 8, 8), (9, 20, 20), (1, 7, 12), (3, 11, 5))
    ], N=RANGE, H=wide, W=wide)  # fmt: skip


def test_sizes_that_must_be_halved() -> None:
    """Only multiples of 4 can be added to what was halved and doubled again."""
    wide = DimRange(4, 8, 20)
    check("""g (float[N,3,H,W] x, float[4,3,3,3] w_a, float[4,4,3,3] w_b) => (float[N,4,H,W] z) {
        a = Conv<pads = [1,1,1,1]>(x, w_a)
        b = MaxPool<kernel_shape = [2,2], strides = [2,2]>(a)
        c = MaxPool<kernel_shape = [2,2], strides = [2,2]>(b)
        scales = Constant<value = float[4] {1.0, 1.0, 4.0, 4.0}>()
        d = Conv<pads = [1,1,1,1]>(c, w_b)
        e = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(d, , scales)
        z = Add(a, e)
    }""", *[
        {"N": n, "H": h, "W": w} for n, h, w in ((1, 4, 4), (4, 8, 8), (9, 20, 20), (1, 8, 12), (3, 16, 4))
    ], N=RANGE, H=wide, W=wide)  # fmt: skip


PAIRS = """g (float[N,S,4] x, float[8,4] w_a) => (float[N,T,U] z) {{
    n = Shape<start = 0, end = 1>(x)  s = Shape<start = 1, end = 2>(x)
    by = Constant<value_ints = [{by}]>()  wide = Constant<value_ints = [{wide}]>()
    part = Div(s, by)  to = Concat<axis = 0>(n, part, wide)
    a = Reshape(x, to)
    {rest}
}}"""


def test_what_differs_between_sizes_that_have_a_divisor_in_common() -> None:
    """Of all even sizes half have an odd number of pairs, to which one is added: none of 8, 16 and 32 is such."""
    rest = """two = Constant<value_ints = [2]>()  odd = Mod(part, two)
    front = Constant<value_ints = [0, 0, 0, 0]>()  last = Constant<value_ints = [0]>()
    pads = Concat<axis = 0>(front, odd, last)  z = Pad(a, pads)"""
    sizes, notes = fixed(PAIRS.format(by=2, wide=8, rest=rest), N=RANGE, S=DimRange(8, 16, 32))
    assert sizes == {"S": 16}
    assert "is written with other layers" in notes


def test_sizes_that_must_be_multiples(tmp_path: Path) -> None:
    """Sizes that the model cannot have are refused; those of a batch that it can are not."""
    model = testing.model(PAIRS.format(by=4, wide=16, rest="z = Neg(a)"))
    batch, length = DimRange(2, 4, 8), DimRange(8, 16, 32)
    facts = written.written(model, tmp_path, "fp32", N=batch, S=length)
    assert not facts.sizes
    assert [note for note in facts.notes if note.startswith("S is a multiple of 4 in the files: the model cannot")]
    feeds = [fed(facts, {"N": n, "S": s}, s) for n, s in ((2, 8), (3, 12), (8, 28))]
    written.check(model, *feeds, N=batch, S=length)
    with pytest.raises(RetargetError, match="S is 14, and the files are for multiples of 4"):
        testing.run("ncnn", tmp_path, facts, fed(facts, {"N": 2, "S": 14}, 0))


def test_what_is_even_or_odd_when_it_is_halved() -> None:
    """A half, rounded down, is padded to even: 32, 64 and primes that are one more than a multiple of 4 need none."""
    sizes, notes = fixed(
        """g (float[1,3,8,W] x, float[4,3,2,2] w_a) => (float[1,4,4,V] z) {
            a = Conv<strides = [2,2]>(x, w_a)  w = Shape<start = 3, end = 4>(a)
            two = Constant<value_ints = [2]>()  odd = Mod(w, two)
            none = Constant<value_ints = [0,0,0,0,0,0,0]>()  pads = Concat<axis = 0>(none, odd)
            [pad] z = Pad(a, pads)
        }""",
        W=DimRange(32, 32, 64),
    )
    assert sizes == {"W": 32}
    assert "'pad'" in notes


def test_two_dimensions_of_which_one_has_a_size_that_another_has_not() -> None:
    """MobileViT's patches: 37 is rounded up to 10 of them along one axis, and 41 to 11, which are not halved."""
    wide = DimRange(32, 32, 64)
    model = testing.model("""g (float[N,3,H,W] x, float[2,3,3,3] w_a, float[2,2,3,3] w_b) => (float[N,2,P,Q] z) {
        a = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w_a)
        b = Conv<pads = [1,1,1,1], strides = [2,2]>(a, w_b)
        two = Constant<value_ints = [2]>()  all = Shape(b)
        n = Shape<start = 0, end = 1>(b)  h = Shape<start = 2, end = 3>(b)  w = Shape<start = 3, end = 4>(b)
        down = Div(h, two)  right = Div(w, two)  channels = Mul(n, two)  lines = Mul(channels, down)
        patches = Concat<axis = 0>(lines, two, right, two)
        c = Reshape(b, patches)
        d = Transpose<perm = [0,2,1,3]>(c)
        e = Softmax<axis = 3>(d)
        f = Transpose<perm = [0,2,1,3]>(e)
        z = Reshape(f, all)
    }""")
    check(
        model, *({"N": n, "H": h, "W": w} for n, h, w in ((1, 32, 32), (2, 64, 40), (4, 48, 64))),
        N=RANGE, H=wide, W=wide,
    )  # fmt: skip


def test_an_image_resized_to_the_size_of_another() -> None:
    wide = DimRange(4, 9, 20)
    check("""g (float[N,3,H,W] x, float[4,3,3,3] w_a) => (float[N,4,H,W] z) {
        a = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w_a)
        from = Constant<value = int64[1] {2}>()
        to = Constant<value = int64[1] {4}>()
        first = Constant<value = int64[2] {0, 0}>()
        zero = Constant<value = int64[1] {0}>()
        shape = Shape(x)
        own = Shape(a)
        head = Slice(own, zero, from)
        tail = Slice(shape, from, to)
        sizes = Concat<axis = 0>(head, tail)
        z = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(a, , , sizes)
    }""", *[
        {"N": n, "H": h, "W": w} for n, h, w in ((1, 4, 4), (4, 9, 9), (9, 20, 20), (1, 8, 12), (3, 15, 4))
    ], N=RANGE, H=wide, W=wide)  # fmt: skip


def test_what_is_pooled_to_one_element_and_resized_to_the_size_of_an_image() -> None:
    """As DeepLab's pyramid has it: whatever the size is, each result is that one element."""
    wide = DimRange(4, 9, 20)
    check("""g (float[N,3,H,W] x, float[4,3,1,1] w_a) => (float[N,7,H,W] z) {
        a = GlobalAveragePool(x)
        b = Conv(a, w_a)
        c = Relu(b)
        first = Constant<value = int64[2] {0, 0}>()
        two = Constant<value = int64[1] {2}>()
        four = Constant<value = int64[1] {4}>()
        zero = Constant<value = int64[1] {0}>()
        shape = Shape(x)
        own = Shape(c)
        head = Slice(own, zero, two)
        tail = Slice(shape, two, four)
        sizes = Concat<axis = 0>(head, tail)
        d = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(c, , , sizes)
        z = Concat<axis = 1>(d, x)
    }""", *[
        {"N": n, "H": h, "W": w} for n, h, w in ((1, 4, 4), (4, 9, 9), (9, 20, 20), (1, 8, 12), (3, 15, 4))
    ], N=RANGE, H=wide, W=wide)  # fmt: skip


def test_two_sizes_that_are_divided_until_they_are_alike() -> None:
    """16 to 48 are 2 to 6 when they are divided by 8: sizes near one another are the same then."""
    wide = DimRange(16, 32, 48)
    check("""g (float[N,3,H,W] x, float[4,3,4,4] w_a, float[8,4,2,2] w_b, float[8,8] w_c) => (float[N,8,P,Q] z) {
        a = Conv<strides = [4,4]>(x, w_a)
        b = Conv<strides = [2,2]>(a, w_b)
        c = Transpose<perm = [0,2,3,1]>(b)
        d = MatMul(c, w_c)
        e = Transpose<perm = [0,3,1,2]>(d)
        z = Add(e, b)
    }""", *[
        {"N": n, "H": h, "W": w} for n, h, w in ((1, 16, 16), (4, 32, 32), (9, 48, 48), (1, 48, 16), (3, 16, 40))
    ], N=RANGE, H=wide, W=wide)  # fmt: skip


def test_a_size_that_is_computed_with() -> None:
    """The variance of a signal as PyTorch has it, divided by one less than there are; and the area of an image."""
    check(
        """g (float[N,S] x) => (float[N,1] y, float[N,S] z) {
            axis = Constant<value_ints = [1]>()
            mean = ReduceMean(x, axis)
            apart = Sub(x, mean)
            squares = Mul(apart, apart)
            sum = ReduceSum(squares, axis)
            size = Shape<start = 1, end = 2>(x)
            number = Cast<to = 1>(size)
            one = Constant<value_float = 1.0>()
            less = Sub(number, one)
            y = Div(sum, less)
            z = Div(x, number)
        }""",
        *each("N", "S", sizes=(2, 3, 4, 6, 9)), N=RANGE, S=DimRange(2, 4, 9),
    )  # fmt: skip
    check(
        """g (float[N,2,H,W] x) => (float[N,2,H,W] z) {
            height = Shape<start = 2, end = 3>(x)  width = Shape<start = 3, end = 4>(x)
            area = Mul(height, width)
            number = Cast<to = 1>(area)
            z = Mul(x, number)
        }""",
        *each("N", "H", "W"), N=RANGE, H=RANGE, W=RANGE,
    )  # fmt: skip


@pytest.mark.parametrize("step", [1, -1])
def test_positions_of_ids(step: int) -> None:
    """The length is read from the ids, which have rows, for a table that has none; turned around it is its end."""
    first, last = ("zero", "length") if step > 0 else ("length_less", "step")
    layers = check(
        f"""g (int64[N,S] ids, float[8,6] w_words, float[16,6] w_places) => (float[N,S,6] z) {{
            zero = Constant<value = int64 {{0}}>()
            step = Constant<value = int64 {{{step}}}>()
            sizes = Shape<start = 1, end = 2>(ids)
            length = Squeeze(sizes)
            length_less = Add(length, step)
            places = Range({first}, {last}, step)
            p = Gather(w_places, places)
            w = Gather(w_words, ids)
            z = Add(w, p)
        }}""",
        *each("N", "S"), N=RANGE, S=RANGE,
    )  # fmt: skip
    assert "Crop" in [line.type for line in layers]


def test_a_token_in_front_of_each_row() -> None:
    check(
        """g (float[N,S,8] x, float[1,1,8] w_c) => (float[N,P,8] z) {
            zero = Constant<value = int64[1] {0}>()
            one = Constant<value = int64[1] {1}>()
            rest = Constant<value = int64[2] {1,8}>()
            shape = Shape(x)
            n = Slice(shape, zero, one)
            to = Concat<axis = 0>(n, rest)
            c = Expand(w_c, to)
            z = Concat<axis = 1>(c, x)
        }""",
        *each("N", "S"), N=RANGE, S=RANGE,
    )  # fmt: skip


def test_what_mixes_rows() -> None:
    check(
        """g (float[N,S,8] x, float[8,6] w_a) => (float[N,S,6] z, float[S,8] y) {
            flat = Constant<value = int64[2] {-1,8}>()
            axis = Constant<value = int64[1] {0}>()
            six = Constant<value = int64[1] {6}>()
            y = ReduceMean<keepdims = 0>(x, axis)
            a = Reshape(x, flat)
            b = Softmax<axis = 0>(a)
            c = MatMul(b, w_a)
            sizes = Shape<start = 0, end = 2>(x)
            to = Concat<axis = 0>(sizes, six)
            z = Reshape(c, to)
        }""",
        *each("N", "S"), N=RANGE, S=RANGE,
    )  # fmt: skip


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_recurrent_layer(direction: str) -> None:
    both = 2 if direction == "bidirectional" else 1
    check(
        f"""g (float[T,N,8] x, float[{both},16,8] w_w, float[{both},16,4] w_r)
            => (float[T,{both},N,4] z, float[{both},N,4] h) {{
            z, h = LSTM<hidden_size = 4, direction = "{direction}">(x, w_w, w_r)
        }}""",
        *each("N", "T"), N=RANGE, T=RANGE,
    )  # fmt: skip


def test_what_cannot_stay_open_is_said() -> None:
    sizes, notes = fixed(
        """g (float[N,S] x) => (float[N,S] z) {
            shape = Shape(x)
            one = Constant<value = int64[1] {1}>()
            two = Constant<value = int64[1] {2}>()
            s = Slice(shape, one, two)
            f = Cast<to = 1>(s)
            root = Sqrt(f)
            [scaled] z = Div(x, root)
        }""",
        N=RANGE, S=RANGE,
    )  # fmt: skip
    assert sizes == {"S": 4}
    assert "S is 4 in the files" in notes
    assert "'scaled'" in notes


def test_a_size_that_the_model_cannot_have_fixes_the_dimension() -> None:
    """There is no sixth position in a sequence of five."""
    sizes, notes = fixed(
        """g (float[N,S,4] x) => (float[N,S,4] y) {
            size = Shape <start = 1, end = 2> (x) zero = Constant <value_int = 0> () one = Constant <value_int = 1> ()
            count = Squeeze(size) places = Range(zero, count, one)
            sixth = Constant <value_ints = [5]> () place = Gather(places, sixth) factor = Cast <to = 1> (place)
            y = Mul(x, factor)
        }""",
        S=DimRange(2, 6, 9),
    )
    assert sizes == {"S": 6}
    assert "the model cannot have" in notes


def test_programs_that_differ() -> None:
    """Another layer at another size: the dimension has one."""

    def lower(sizes: Mapping[str, int]) -> Program | str:
        fed, made = Blob((sizes["S"],)), Blob((sizes["S"],))
        layers = [
            Layer("Input", (), (fed,), {0: sizes["S"]}),
            Layer("ReLU" if sizes["S"] > 5 else "AbsVal", (fed,), (made,), origin="it"),
        ]
        return Program(layers, {"x": [fed]}, {"y": made})

    made = opened(lower, {"S": DimRange(2, 4, 8)})
    assert made.sizes == {"S": 4}
    assert "another layer in place of" in made.fixed["S"]
    assert made.program.layers[1].type == "AbsVal"


def test_sizes_that_the_files_are_not_for_are_refused(tmp_path: Path) -> None:
    """A constant that is cut to size ends there, and ncnn would compute with what stands behind it."""
    model = testing.model("""g (float[N,8] x) => (float[N,8] z) {
        z = Neg(x)
    }""")
    facts = written.written(model, tmp_path, "fp32", N=DimRange(2, 4, 9))
    for size in (1, 10):
        feeds = {"x": np.zeros((size, 8), np.float32)}
        with pytest.raises(RetargetError, match=f"N is {size}, and the files are for 2 to 9"):
            testing.run("ncnn", tmp_path, facts, feeds)


def test_the_smallest_size_is_looked_at_too() -> None:
    """At all others there are two windows, and a Reshape to two would read behind one."""
    text = """g (float[2,8,S] x, float[16,2,2] w_k) => (float[2,16,T] y) {
        y = Conv <group = 4, strides = [2], pads = [0, 1]> (x, w_k)
    }"""
    model, range_ = testing.model(text), DimRange(2, 3, 4)
    with TemporaryDirectory() as folder:
        facts = written.written(model, Path(folder), "fp32", S=range_)
    sizes = [facts.sizes["S"]] if facts.sizes else [2, 3, 4]
    written.check(model, *(fed(facts, {"S": size}, size) for size in sizes), S=range_)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("start = Constant<value_ints = [1]>()  a = Slice(x, start, end, axis)", "cannot be written with S=1"),
        ("stop = Constant<value_ints = [-1]>()  a = Slice(x, zero, stop, axis)", "cannot be written with S=1"),
        (
            """n = Constant<value = int64[1,1,3] {0,0,0}>()  u = Constant<value = float[1,1,3] {1.0, 2.0, 3.0}>()
            [put] a = ScatterElements<axis = 1>(x, n, u)""",
            "nothing is left by Crop of 'put'",
        ),
    ],
)
def test_what_is_empty_of_one_element_fixes_the_dimension(nodes: str, reason: str) -> None:
    """Of two and more something is left, and they stay open."""
    text = f"""g (float[1,S,3] x) => (float[1,T,3] z) {{
        zero = Constant<value_ints = [0]>()  axis = Constant<value_ints = [1]>()
        end = Constant<value_ints = [999]>()
        {nodes}
        z = Neg(a)
    }}"""
    sizes, notes = fixed(text, S=RANGE)
    assert sizes == {"S": 4}
    assert reason in notes
    assert "it may stay open where the smallest size is larger" in notes
    check(text, *each("S", sizes=(2, 3, 6, 9)), S=DimRange(2, 4, 9))


def test_what_is_computed_to_be_empty_of_one_element_fixes_the_dimension() -> None:
    """Two rows are one below the other there, and the second begins where S says."""
    sizes, notes = fixed(
        """g (float[2,S,3] x) => (float[2,S,3] z) {
            n = Constant<value = int64[2,1,3] {0,0,0,0,0,0}>()
            u = Constant<value = float[2,1,3] {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}>()
            [put] z = ScatterElements<axis = 1>(x, n, u)
        }""",
        S=RANGE,
    )
    assert sizes == {"S": 4}
    assert "nothing is left by Crop of 'put'" in notes


def test_what_is_the_same_at_all_sizes_but_the_smallest_fixes_the_dimension() -> None:
    """A quarter of 5 to 8, rounded up, is 2, and ends of slices that are computed of that would stay so at 1 to 4."""
    sizes, notes = fixed(
        """g (float[1,8,S] x, float[8,8,4] w_a) => (float[1,T,8] z) {
            [quarter] a = Conv<strides = [4], pads = [0,3]>(x, w_a)  t = Transpose<perm = [0,2,1]>(a)
            u = Shape<start = 1, end = 2>(t)  pads = Constant<value_ints = [0,1,0,0,1,0]>()  b = Pad(t, pads)
            zero = Constant<value_ints = [0]>()  axis = Constant<value_ints = [1]>()
            z = Slice(b, zero, u, axis)
        }""",
        S=DimRange(1, 8, 8),
    )
    assert sizes == {"S": 8}
    assert "has another size with 1 alone" in notes


def test_a_batch_that_is_held_otherwise_at_another_size_fixes_it() -> None:
    """8 are 2 rows, and not 3: what holds at 2 says nothing of 3, where all is one row."""
    text = """g (float[N,S,4,2,1] x) => (float[8,1,1,T] y) {
        to = Constant <value_ints = [8, 1, 1, -1]> () y = Reshape(x, to)
    }"""
    sizes, notes = fixed(text, N=DimRange(1, 2, 3), S=DimRange(2, 3, 4))
    assert sizes == {"N": 2}
    assert "the batch is held otherwise" in notes


def test_five_axes_of_which_the_first_is_one_at_some_size_fix_it() -> None:
    """The other four are dims of the blob then; of two elements the first two axes are one of them."""
    text = """g (float[N,4,2,4,5] x) => (float[M,4,2,4,5] y) {
        one = Constant <value_ints = [1]> () end = Constant <value_ints = [9]> () zero = Constant <value_ints = [0]> ()
        y = Slice(x, one, end, zero)
    }"""
    sizes, _ = fixed(text, N=DimRange(1, 2, 3))
    assert sizes == {"N": 2}

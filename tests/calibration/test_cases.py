"""Generated feeds are held against what the graph can take: ONNX Runtime raises for an index out of range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from retarget.calibration.cases import generate, parity_cases
from retarget.calibration.data import open_samples
from retarget.errors import RetargetError
from retarget.session import Session
from retarget.spec import DimRange, TensorSpec, batch_symbol

HEADER = '<ir_version: 10, opset_import: ["": 23]>\n'
IMAGE = TensorSpec.parse("x=float32[N,2]")
RELU = "m (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }"
SHAPES = {"N": DimRange(1, 3, 5)}


def parse(text: str) -> ir.Model:
    return ir.from_onnx_text(HEADER + text)


def drawn(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)


def test_without_data_all_sizes_are_generated() -> None:
    cases = parity_cases(parse(RELU), [IMAGE], SHAPES, None, "generated")
    assert [(case.name, case.sizes, case.origin) for case, _ in cases] == [
        ("min", {"N": 1}, "generated"),
        ("opt", {"N": 3}, "generated"),
        ("max", {"N": 5}, "generated"),
    ]
    assert [feeds["x"].shape for _, feeds in cases] == [(1, 2), (3, 2), (5, 2)]
    again = parity_cases(parse(RELU), [IMAGE], SHAPES, None, "generated")
    for (_, one), (_, two) in zip(cases, again, strict=True):
        np.testing.assert_array_equal(one["x"], two["x"])


def test_equal_sizes_are_one_case() -> None:
    spec = TensorSpec.parse("x=float32[4,2]")
    cases = parity_cases(parse("m (float[4, 2] x) => (float[4, 2] y) { y = Relu(x) }"), [spec], {}, None, "generated")
    assert [(case.name, case.sizes) for case, _ in cases] == [("min", {})]


def test_a_symbol_without_a_range_has_the_default_one() -> None:
    cases = parity_cases(parse(RELU), [IMAGE], {}, None, "generated")
    assert [case.sizes for case, _ in cases] == [{"N": 1}, {"N": 8}]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_samples_are_batched_then_tiled_or_cut(tmp_path: Path, count: int) -> None:
    x = drawn(count, 2)
    np.savez(tmp_path / "d.npz", x=x)
    samples = open_samples(tmp_path / "d.npz", [IMAGE], function=None, limit=None)
    found = parity_cases(parse(RELU), [IMAGE], SHAPES, samples, "samples")
    cases = {case.name: (case, feeds) for case, feeds in found}
    data = [feeds["x"] for name, (_, feeds) in cases.items() if name.startswith("data")]
    np.testing.assert_array_equal(np.concatenate(data), x)
    assert {len(rows) for rows in data} <= {3, count % 3}
    assert all(case.origin == "samples" for case, _ in cases.values())
    sizes = [case.sizes["N"] for case, _ in cases.values()]
    assert {1, 3, 5} <= set(sizes)
    np.testing.assert_array_equal(cases["max"][1]["x"], np.resize(x, (5, 2)))
    if "min" in cases:
        np.testing.assert_array_equal(cases["min"][1]["x"], x[:1])


def test_at_other_dimensions_floats_stay_those_of_the_data(tmp_path: Path) -> None:
    spec = TensorSpec.parse("x=float32[N,T]")
    x = 100 + drawn(4, 6)
    np.savez(tmp_path / "d.npz", x=x)
    shapes = {"N": DimRange(1, 2, 2), "T": DimRange(3, 6, 9)}
    samples = open_samples(tmp_path / "d.npz", [spec], function=None, limit=None)
    model = parse("m (float[N, T] x) => (float[N, T] y) { y = Relu(x) }")
    cases = parity_cases(model, [spec], shapes, samples, "calibration")
    assert [(case.name, case.sizes, case.origin) for case, _ in cases] == [
        ("data0", {"N": 2, "T": 6}, "calibration"),
        ("data1", {"N": 2, "T": 6}, "calibration"),
        ("min", {"N": 1, "T": 3}, "generated"),
        ("max", {"N": 2, "T": 9}, "generated"),
    ]
    np.testing.assert_array_equal(cases[2][1]["x"], x[:1, :3])
    np.testing.assert_array_equal(cases[3][1]["x"], np.concatenate([x[:2], x[:2, :3]], axis=1))


def test_the_largest_batch_is_held_at_the_opt_of_the_rest(tmp_path: Path) -> None:
    spec = TensorSpec.parse("x=float32[N,T]")
    shapes = {"N": DimRange(1, 1, 4), "T": DimRange(3, 6, 9)}
    model = parse("m (float[N, T] x) => (float[N, T] y) { y = Relu(x) }")
    drawn_cases = parity_cases(model, [spec], shapes, None, "generated")
    assert [(case.name, case.sizes) for case, _ in drawn_cases] == [
        ("min", {"N": 1, "T": 3}),
        ("opt", {"N": 1, "T": 6}),
        ("max", {"N": 4, "T": 9}),
        ("rows", {"N": 4, "T": 6}),
    ]
    x = drawn(2, 6)
    np.savez(tmp_path / "d.npz", x=x)
    samples = open_samples(tmp_path / "d.npz", [spec], function=None, limit=None)
    case, feeds = parity_cases(model, [spec], shapes, samples, "samples")[-1]
    assert (case.name, case.origin) == ("rows", "samples")
    np.testing.assert_array_equal(feeds["x"], np.resize(x, (4, 6)))
    # Without a batch there are no rows.
    one = parse("m (float[2, T] x) => (float[2, T] y) { y = Relu(x) }")
    names = [
        case.name for case, _ in parity_cases(one, [TensorSpec.parse("x=float32[2,T]")], shapes, None, "generated")
    ]
    assert names == ["min", "opt", "max"]


def test_at_other_dimensions_integers_and_masks_are_generated(tmp_path: Path) -> None:
    """Cut, a mask might leave nothing, and numbers that belong together would not."""
    specs = [TensorSpec.parse(text) for text in ("x=float32[2,T]", "mask=float32[2,T]", "ids=int64[2,T]")]
    np.savez(tmp_path / "d.npz", x=drawn(2, 4), mask=np.array([[0, 0, 0, 1]] * 2, "f"), ids=np.full((2, 4), 7))
    samples = open_samples(tmp_path / "d.npz", specs, function=None, limit=None)
    model = parse("m (float[2,T] x, float[2,T] mask, int64[2,T] ids) => (float[2,T] y) { y = Relu(x) }")
    (_, data), *others = parity_cases(model, specs, {"T": DimRange(2, 4, 6)}, samples, "calibration")
    assert [case.origin for case, _ in others] == ["generated", "generated"]
    for case, feeds in others:
        np.testing.assert_array_equal(feeds["x"], np.tile(data["x"], 2)[:, : case.sizes["T"]])
        assert feeds["mask"][:, 0].tolist() == [1, 1]
        assert set(feeds["ids"].ravel().tolist()) != {7}


def test_data_beyond_the_shapes_is_the_users_error(tmp_path: Path) -> None:
    spec = TensorSpec.parse("x=float32[N,T]")
    np.savez(tmp_path / "d.npz", x=drawn(4, 12))
    samples = open_samples(tmp_path / "d.npz", [spec], function=None, limit=None)
    model = parse("m (float[N, T] x) => (float[N, T] y) { y = Relu(x) }")
    with pytest.raises(RetargetError, match="the data has T = 12, shapes allow T = 3:6:9"):
        parity_cases(model, [spec], {"T": DimRange(3, 6, 9)}, samples, "samples")


def test_too_few_rows_for_the_smallest_batch_are_left_out_or_tiled(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=drawn(5, 2))
    for limit, expected in ((5, [4, 5, 6]), (2, [4, 5, 6])):
        samples = open_samples(tmp_path / "d.npz", [IMAGE], function=None, limit=limit)
        cases = parity_cases(parse(RELU), [IMAGE], {"N": DimRange(4, 5, 6)}, samples, "samples")
        assert sorted(len(feeds["x"]) for _, feeds in cases) == expected
        assert all(case.origin == "samples" for case, _ in cases)


@pytest.mark.parametrize(
    ("inputs", "outputs", "batch"),
    [
        ("a=float32[N,2] b=float32[N]", "y=float32[N,T]", "N"),
        ("a=float32[N,2] scale=float32[]", "y=float32[N]", "N"),
        ("a=float32[N,2] step=int64[]", "y=float32[N]", "N"),
        ("a=float32[N,2] anchors=float32[9,2]", "y=float32[N] z=float32[N]", "N"),
        ("a=float32[N,2] anchors=float32[A,2]", "y=float32[N,A]", "N"),
        ("a=float32[N,2]", "y=float32[M]", None),
        ("a=float32[4,2]", "y=float32[4]", None),
        ("a=float32[N,2]", "y=float32[N] loss=float32[]", None),
        ("scale=float32[]", "y=float32[N]", None),
        ("nodes=float32[N,2] edges=int64[2,E]", "y=float32[N]", None),
        ("a=float32[N,2] state=float32[1,N,2]", "y=float32[N]", None),
        ("distances=float32[N,N]", "y=float32[N]", None),
    ],
)
def test_the_batch_is_what_all_outputs_and_the_inputs_with_rows_share(
    inputs: str, outputs: str, batch: str | None
) -> None:
    specs = [[TensorSpec.parse(text) for text in texts.split()] for texts in (inputs, outputs)]
    assert batch_symbol(*specs) == batch


def test_rows_are_tiled_beside_a_scalar_that_stays(tmp_path: Path) -> None:
    x, scale = drawn(3, 2), np.float32(0.25)
    np.savez(tmp_path / "d.npz", x=x, scale=scale)
    specs = [IMAGE, TensorSpec.parse("scale=float32[]")]
    model = parse("m (float[N, 2] x, float scale) => (float[N, 2] y) { y = Mul(x, scale) }")
    samples = open_samples(tmp_path / "d.npz", specs, function=None, limit=None)
    cases = {case.name: (case, feeds) for case, feeds in parity_cases(model, specs, SHAPES, samples, "samples")}
    assert {name: case.origin for name, (case, _) in cases.items()} == dict.fromkeys(("data0", "min", "max"), "samples")
    for name, rows in (("data0", x), ("min", x[:1]), ("max", np.resize(x, (5, 2)))):
        feeds = cases[name][1]
        np.testing.assert_array_equal(feeds["x"], rows)
        np.testing.assert_array_equal(feeds["scale"], scale)
        with Session(model) as session:
            np.testing.assert_array_equal(session.run(feeds)["y"], rows * scale)


def table(name: str, rows: int, width: int = 4) -> str:
    return f"float[{rows}, {width}] {name} = {{{', '.join(str(i / 7) for i in range(rows * width))}}}"


TEXT = f"""m (int64[N, T] ids, int64[N, T] types, int64[N, T] attention, int64[N, T] position)
  => (float[N, T, 4] y) <{table("words", 97)}, {table("kinds", 2)}, {table("places", 30)}> {{
    ids32 = Cast <to = 6> (ids)
    flat_shape = Constant <value = int64[1] {{-1}}> ()
    flat = Reshape(ids32, flat_shape)
    flat_words = Gather(words, flat)
    batched = Gather(words, ids32)
    kind = Gather(kinds, types)
    two = Constant <value_int = 2> ()
    shifted = Add(position, two)
    place = Gather(places, shifted)
    zero = Constant <value_int = 0> ()
    real = Greater(attention, zero)
    axis = Constant <value = int64[1] {{-1}}> ()
    column = Unsqueeze(real, axis)
    empty = Constant <value_float = 0.0> ()
    sum = Add(batched, kind)
    all = Add(sum, place)
    y = Where(column, all, empty)
}}"""


def test_integers_are_within_the_tables_that_they_index() -> None:
    model = parse(TEXT)
    specs = [TensorSpec.parse(f"{name}=int64[N,T]") for name in ("ids", "types", "attention", "position")]
    shapes = {"N": DimRange(1, 8, 64), "T": DimRange(1, 16, 32)}
    cases = parity_cases(model, specs, shapes, None, "generated")
    with Session(model) as session:
        for _, feeds in cases:
            session.run(feeds)
    _, largest = cases[-1]
    assert (largest["ids"].min(), largest["ids"].max()) == (0, 96)
    assert set(np.unique(largest["types"])) == {0, 1}
    assert (largest["position"].min(), largest["position"].max()) == (0, 27)
    mask = largest["attention"]
    assert set(np.unique(mask)) == {0, 1}
    assert (mask.sum(axis=1) >= 1).all()
    assert (np.diff(mask, axis=1) <= 0).all()


def test_parts_of_an_input_are_within_the_tables_that_they_index() -> None:
    """Columns that PyTorch's exporter picks, of which each has a table of its own."""
    values = generate(
        parse(f"""m (int64[N,2] cats) => (float[N,2] a, float[N,2] b) <{table("large", 90, 2)},
            {table("small", 3, 2)}, int64 first = {{0}}, int64[1,1] second = {{1}}> {{
            one = Gather<axis = 1>(cats, first)
            a = Gather(large, one)
            two = GatherElements<axis = 1>(cats, second)
            b = Gather(small, two)
        }}"""),
        TensorSpec.parse("cats=int64[N,2]"),
        (200, 2),
        0,
    )
    assert (values.min(), values.max()) == (0, 2)


@pytest.mark.parametrize(
    "numbers",
    [
        "l = Less(ids, none) m = Add(ids, size) n = Where(l, m, ids)",
        """f = Cast <to = 1> (ids) l = Less(f, zero) o = Not(l) a = Cast <to = 7> (l) b = Cast <to = 7> (o)
        m = Add(ids, size) p = Mul(a, m) q = Mul(ids, b) n = Add(p, q)""",
    ],
    ids=["where", "tf2onnx"],
)
def test_numbers_that_may_count_from_the_end(numbers: str) -> None:
    constants = f"{table('table', 90, 2)}, int64 none = {{0}}, int64 size = {{90}}, float zero = {{0}}"
    model = parse(f"m (int64[N,T] ids) => (float[N,T,2] y) <{constants}> {{ {numbers} y = Gather(table, n) }}")
    values = generate(model, TensorSpec.parse("ids=int64[N,T]"), (100, 20), 0)
    assert (values.min(), values.max()) == (0, 89)


@pytest.mark.parametrize(("dtype", "rows", "top"), [("float", 90, 89), ("float16", 4096, 2048), ("bfloat16", 300, 256)])
def test_floats_that_only_become_token_numbers_are_whole(dtype: str, rows: int, top: int) -> None:
    constants = f"{table('table', rows, 2)}, int64[1] last = {{-1}}"
    model = parse(f"""m ({dtype}[N,T] ids) => (float[N,T,1,2] y) <{constants}> {{
        column = Unsqueeze(ids, last) number = Cast <to = 7> (column) y = Gather(table, number) }}""")
    spec = TensorSpec.parse(f"ids={'float32' if dtype == 'float' else dtype}[N,T]")
    values = generate(model, spec, (400, 400), 0).astype(np.float64)
    np.testing.assert_array_equal(values, np.round(values))
    assert (values.min(), values.max()) == (0, top)
    assert len(np.unique(values)) == top + 1


@pytest.mark.parametrize(
    "text",
    [
        "(float[N] x) => (float[N] y, float[N,2] z) { y = Relu(x) n = Cast <to = 7> (x) z = Gather(table, n) }",
        "(float[N] x) => (int64[N] n) { n = Cast <to = 7> (x) }",
        "(float[N] x) => (float[N] y, float[N,2] z) { y = Identity(x) n = Cast <to = 7> (y) z = Gather(table, n) }",
        "(float[N] x) => (float[N] y) { n = Cast <to = 9> (x) y = Cast <to = 1> (n) }",
    ],
    ids=["computed too", "no table", "given back", "truth"],
)
def test_floats_that_are_more_than_token_numbers_are_floats(text: str) -> None:
    inputs, rest = text.split(" {", 1)
    values = generate(
        parse(f"m {inputs} <{table('table', 90, 2)}> {{{rest}"), TensorSpec.parse("x=float32[N]"), (50,), 0
    )
    assert not np.array_equal(values, np.round(values))


def test_a_table_in_a_subgraph_counts() -> None:
    model = parse(f"""m (bool flag, int64[N] ids) => (float[M, 2] y) <{table("table", 3, 2)}> {{
        y = If (flag) <
            then_branch = g1 () => (float[M, 2] a) {{ a = Gather(table, ids) }},
            else_branch = g2 () => (float[M, 2] b) {{ b = Gather(table, ids) }}
        >
    }}""")
    values = generate(model, TensorSpec.parse("ids=int64[N]"), (200,), 0)
    assert (values.min(), values.max()) == (0, 2)
    assert generate(model, TensorSpec.parse("flag=bool[]"), (), 0) == np.True_


@pytest.mark.parametrize(
    ("spec", "shape", "low", "high"),
    [
        ("x=uint8[N,3]", (1000, 3), 0, 255),
        ("x=int8[N,3]", (100, 3), 0, 9),
        ("lengths=int32[N]", (100,), 1, 9),
        ("attention_mask=int64[N,T]", (100, 9), 0, 1),
        ("key_mask=float32[N,T]", (100, 9), 0, 1),
        ("flags=bool[N,T]", (100, 9), 0, 1),
    ],
)
def test_without_a_graph_the_name_and_the_dtype_decide(spec: str, shape: tuple[int, ...], low: int, high: int) -> None:
    parsed = TensorSpec.parse(spec)
    values = generate(None, parsed, shape, 0)
    assert values.dtype == np.dtype(parsed.dtype)
    assert (values.astype(np.int64).min(), values.astype(np.int64).max()) == (low, high)


def test_sizes_and_lengths_of_sequences_are_one() -> None:
    model = parse("m (int64[2] s, float[N] x) => (float[A, B] y) { y = Reshape(x, s) }")
    assert generate(model, TensorSpec.parse("s=int64[2]"), (2,), 0).tolist() == [1, 1]


def test_floats_are_normal_and_inputs_differ() -> None:
    spec = TensorSpec.parse("x=float16[N]")
    values = generate(None, spec, (20000,), 0)
    assert values.dtype == np.float16
    assert abs(float(values.astype(np.float64).mean())) < 0.03
    assert float(values.astype(np.float64).std()) == pytest.approx(1, abs=0.03)
    other = generate(None, TensorSpec.parse("z=float16[N]"), (20000,), 0)
    assert not np.array_equal(values, other)
    assert not np.array_equal(values, generate(None, spec, (20000,), 1))

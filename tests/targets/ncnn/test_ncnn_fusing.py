"""Each rule on a program of its own: the layers before and after, and the same numbers of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import ncnn
import ncnn_written
import numpy as np
import pytest
import target_testing as t
from node_models import floats
from target_testing import assert_near

from retarget.targets.ncnn import files
from retarget.targets.ncnn.fusing import fused
from retarget.targets.ncnn.ops.shape import NAMES, ORDERS
from retarget.targets.ncnn.program import MASK, NO_HALF, SIZES, Blob, Dims, Layer, Param, Program, Weight

if TYPE_CHECKING:
    from retarget.protocols import Array


def sizes(*dims: int) -> dict[int, Param]:
    """Those of a Reshape, an Input or a MemoryData."""
    return dict(zip(SIZES[len(dims)], dims, strict=True))


class Writing:
    """A program, layer by layer, of one input `x`."""

    def __init__(self, *dims: int, rows: int = 1) -> None:
        self.program = Program()
        self.x = Blob(dims, rows)
        self.program.layers.append(Layer("Input", (), (self.x,), sizes(*dims)))
        self.program.inputs["x"] = [self.x]

    def add(
        self,
        kind: str,
        bottoms: Sequence[Blob],
        dims: Dims,
        params: Mapping[int, Param] | None = None,
        weights: Sequence[Weight] = (),
    ) -> Blob:
        top = Blob(dims, max((blob.rows for blob in bottoms), default=1))
        self.program.layers.append(Layer(kind, tuple(bottoms), (top,), dict(params or {}), tuple(weights)))
        return top

    def constant(self, array: Array) -> Blob:
        return self.add("MemoryData", [], array.shape, {**sizes(*array.shape), 21: 1}, [Weight(array, tagged=False)])

    def reshape(self, blob: Blob, *dims: int) -> Blob:
        return self.add("Reshape", [blob], dims, sizes(*dims))

    def convolution(self, blob: Blob, channels: int, *, has_bias: bool = False) -> Blob:
        weight = floats(channels, blob.dims[0], 3, 3, scale=0.3)
        weights = [Weight(weight), *([Weight(floats(channels, seed=5), tagged=False)] if has_bias else [])]
        params = {0: channels, 1: 3, 4: 1, 5: int(has_bias), 6: weight.size}
        return self.add("Convolution", [blob], (channels, *blob.dims[1:]), params, weights)

    def inner_product(self, blob: Blob, outputs: int) -> Blob:
        weight = floats(outputs, blob.size, scale=0.3)
        return self.add("InnerProduct", [blob], (outputs,), {0: outputs, 2: weight.size}, [Weight(weight)])

    def gemm(self, blob: Blob, outputs: int) -> Blob:
        weight = floats(outputs, blob.dims[1], scale=0.3)
        params = {3: 1, 5: 1, 6: 1, 8: outputs, 9: blob.dims[1], 10: -1}
        return self.add("Gemm", [blob], (blob.dims[0], outputs), params, [Weight(weight)])

    def permute(self, blob: Blob, order: int, *dims: int) -> Blob:
        return self.add("Permute", [blob], dims, {0: order})

    def heads(self, blob: Blob, count: int) -> Blob:
        """[count, positions, size] of [positions, count * size]"""
        positions, width = blob.dims
        split = self.reshape(blob, positions, count, width // count)
        return self.permute(split, 2, count, positions, width // count)

    def turned(self, blob: Blob, count: int) -> Blob:
        """[count, size, positions] of [positions, count * size], as ONNX's graphs come here."""
        positions, width = blob.dims
        return self.reshape(self.permute(blob, 1, width, positions), count, width // count, positions)

    def attended(self, q: Blob, k_turned: Blob, v: Blob, scale: float = 0.5, mask: Blob | None = None) -> Blob:
        scores = self.add("MatMul", [q, k_turned], (*q.dims[:2], k_turned.dims[2]))
        scores = scores if scale == 1 else self.binary(MUL, scores, scale)
        scores = scores if mask is None else self.binary(ADD, scores, mask)
        looks = self.add("Softmax", [scores], scores.dims, {0: 2, 1: 1})
        return self.add("MatMul", [looks, v], (*q.dims[:2], v.dims[2]))

    def side_by_side(self, blob: Blob) -> Blob:
        heads, positions, size = blob.dims
        return self.reshape(self.permute(blob, 2, positions, heads, size), positions, heads * size)

    def binary(self, kind: int, left: Blob, right: Blob | float) -> Blob:
        if isinstance(right, Blob):
            dims = tuple(np.broadcast_shapes(left.dims, right.dims))
            return self.add("BinaryOp", [left, right], dims, {0: kind})
        return self.add("BinaryOp", [left], left.dims, {0: kind, 1: 1, 2: right})

    def ending(self, *outputs: Blob) -> Program:
        self.program.outputs = {f"y{number}": blob for number, blob in enumerate(outputs)}
        return self.program


ADD, MUL = 0, 2


def finished(program: Program) -> Program:
    copy = Program(program.layers, program.inputs, dict(program.outputs))
    return copy.finished({name: name for name in (*program.inputs, *program.outputs)})


def executed(program: Program) -> list[Array]:
    with TemporaryDirectory() as folder:
        param, weights = Path(folder) / "param", Path(folder) / "bin"
        blob = program.inputs["x"][0]
        files.write(finished(program).layers, param, weights, half=False)
        net = ncnn.Net()
        net.opt.num_threads = 1
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        assert net.load_param(str(param)) == 0
        assert net.load_model(str(weights)) == 0
        extractor = net.create_extractor()
        fed = ncnn.Mat(floats(blob.rows, *blob.dims, scale=1.0, seed=9), batch_index=0).clone()
        extractor.input("x", fed)
        found: list[Array] = []
        for name in program.outputs:
            code, mat = extractor.extract(name)
            assert code == 0
            found.append(np.array(mat.numpy(batch_index=0), np.float32))
        return found


def types(program: Program) -> list[str]:
    return [layer.type for layer in finished(program).layers if layer.type not in ("Input", "MemoryData", "Split")]


def check(program: Program, before: str, after: str) -> Layer:
    """Hold the layers and the numbers before and after; the last layer."""
    assert types(program) == before.split()
    right = executed(program)
    made = fused(program)
    assert types(made) == after.split()
    for found, expected in zip(executed(made), right, strict=True):
        assert expected.std() > 0.05
        assert_near(found, expected, 1e-5)
    assert types(program) == before.split(), "what was given has changed"
    return made.layers[-1]


# ---- Reshapes


def test_reshapes_in_a_row_are_one() -> None:
    at = Writing(4, 6)
    check(at.ending(at.reshape(at.reshape(at.x, 24), 2, 12)), "Reshape Reshape", "Reshape")


def test_a_reshape_back_is_none() -> None:
    at = Writing(4, 6)
    back = at.reshape(at.reshape(at.x, 24), 4, 6)
    check(at.ending(at.add("TanH", [back], (4, 6))), "Reshape Reshape TanH", "TanH")


def test_a_reshape_that_others_read_stays() -> None:
    at = Writing(4, 6)
    flat = at.reshape(at.x, 24)
    wide = at.reshape(flat, 2, 12)
    ends = [at.add("TanH", [blob], blob.dims) for blob in (flat, wide)]
    check(at.ending(*ends), "Reshape Reshape TanH TanH", "Reshape Reshape TanH TanH")


def test_rows_that_move_there_and_back_stay() -> None:
    at = Writing(4, 6, rows=3)
    whole = Blob((12, 6))
    at.program.layers.append(Layer("Reshape", (at.x,), (whole,), {0: 6, 1: 12, 12: 0}))
    back = Blob((24,), 3)
    at.program.layers.append(Layer("Reshape", (whole,), (back,), {0: 24, 1: -1, 13: 0}))
    last = check(at.ending(at.add("TanH", [back], (24,))), "Reshape Reshape TanH", "Reshape TanH")
    assert last.bottoms[0].rows == 3


def test_rows_that_move_twice_move_once() -> None:
    at = Writing(4, 6, rows=3)
    whole = Blob((12, 6))
    at.program.layers.append(Layer("Reshape", (at.x,), (whole,), {0: 6, 1: 12, 12: 0}))
    check(at.ending(at.add("TanH", [at.reshape(whole, 72)], (72,))), "Reshape Reshape TanH", "Reshape TanH")


@pytest.mark.parametrize(("dims", "first", "second"), [((2, 3, 4), 1, 2), ((2, 3, 4), 3, 5), ((2, 3, 4, 5), 8, 15)])
def test_permutes_in_a_row_are_one(dims: tuple[int, ...], first: int, second: int) -> None:
    def after(sizes: tuple[int, ...], order: int) -> list[int]:
        names = NAMES[len(sizes)]
        return [sizes[names.index(letter)] for letter in reversed(ORDERS[len(sizes)].split()[order])]

    at = Writing(*dims, rows=2)
    once = at.permute(at.x, first, *after(dims, first))
    check(at.ending(at.permute(once, second, *after(once.dims, second))), "Permute Permute", "Permute")


def test_a_permute_back_is_none() -> None:
    at = Writing(2, 3, 4)
    back = at.permute(at.permute(at.x, 3, 3, 4, 2), 4, 2, 3, 4)
    check(at.ending(at.add("TanH", [back], back.dims)), "Permute Permute TanH", "TanH")


# ---- biases


@pytest.mark.parametrize("rows", [1, 3])
def test_a_bias_goes_into_an_inner_product(rows: int) -> None:
    at = Writing(6, rows=rows)
    added = at.binary(ADD, at.constant(floats(5)), at.inner_product(at.x, 5))
    check(at.ending(added), "InnerProduct BinaryOp", "InnerProduct")


@pytest.mark.parametrize("rows", [1, 3])
def test_a_bias_goes_into_a_gemm(rows: int) -> None:
    at = Writing(4, 6, rows=rows)
    added = at.binary(ADD, at.gemm(at.x, 5), at.constant(floats(1, 5)))
    check(at.ending(added), "Gemm BinaryOp", "Gemm")


@pytest.mark.parametrize("rows", [1, 3])
def test_a_bias_goes_into_a_convolution(rows: int) -> None:
    at = Writing(2, 6, 6, rows=rows)
    added = at.binary(ADD, at.convolution(at.x, 5), at.constant(floats(5, 1, 1)))
    check(at.ending(added), "Convolution BinaryOp", "Convolution")


def test_a_number_is_a_bias() -> None:
    at = Writing(2, 6, 6)
    check(at.ending(at.binary(ADD, at.convolution(at.x, 5), 0.75)), "Convolution BinaryOp", "Convolution")


def test_what_is_added_along_another_axis_stays() -> None:
    at = Writing(4, 6)
    added = at.binary(ADD, at.gemm(at.x, 4), at.constant(floats(4, 1)))
    check(at.ending(added), "Gemm BinaryOp", "Gemm BinaryOp")


def test_a_second_bias_stays() -> None:
    at = Writing(2, 6, 6)
    added = at.binary(ADD, at.convolution(at.x, 5, has_bias=True), at.constant(floats(5, 1, 1)))
    check(at.ending(added), "Convolution BinaryOp", "Convolution BinaryOp")


# ---- activations

ACTIVATIONS = [
    ("ReLU", {}),
    ("ReLU", {0: 0.1}),
    ("Clip", {0: 0.0, 1: 2.0}),
    ("Clip", {1: 2.0}),
    ("Sigmoid", {}),
    ("Mish", {}),
    ("HardSwish", {0: 1 / 6, 1: 0.5}),
]


@pytest.mark.parametrize(("kind", "params"), ACTIVATIONS, ids=lambda each: str(each))
def test_an_activation_goes_into_the_layer_in_front(kind: str, params: Mapping[int, Param]) -> None:
    at = Writing(2, 6, 6, rows=2)
    shown = at.convolution(at.x, 5)
    check(at.ending(at.add(kind, [shown], shown.dims, params)), f"Convolution {kind}", "Convolution")
    at = Writing(6)
    product = at.inner_product(at.x, 5)
    check(at.ending(at.add(kind, [product], product.dims, params)), f"InnerProduct {kind}", "InnerProduct")


def test_a_bias_and_an_activation_go_in_both() -> None:
    at = Writing(2, 6, 6)
    added = at.binary(ADD, at.convolution(at.x, 5), at.constant(floats(5, 1, 1)))
    check(at.ending(at.add("ReLU", [added], added.dims)), "Convolution BinaryOp ReLU", "Convolution")


def test_what_is_kept_from_float16_stays_apart() -> None:
    """A bias of 1e6 and a bound of 3e38 are infinite there."""
    at = Writing(4, 5, 6)
    added = at.add("BinaryOp", [at.convolution(at.x, 3)], (3, 5, 6), {0: 0, 1: 1, 2: 1e6, MASK: NO_HALF})
    clipped = at.add("Clip", [at.convolution(added, 3)], (3, 5, 6), {0: -3e38, 1: 3e38, MASK: NO_HALF})
    apart = "Convolution Tile BinaryOp Convolution Tile Clip"
    check(at.ending(clipped), apart, apart)


def test_a_constant_of_each_row_is_no_bias() -> None:
    """Which is one for all rows."""
    at = Writing(2, 6, 6, rows=3)
    each = Blob((5, 1, 1), 3)
    given = at.constant(floats(3, 5, 1, 1))
    at.program.layers.append(Layer("Reshape", (given,), (each,), {**sizes(-1, 5, 1, 1), 13: 0}))
    check(
        at.ending(at.binary(ADD, at.convolution(at.x, 5), each)),
        "Reshape Convolution BinaryOp",
        "Reshape Convolution BinaryOp",
    )


def test_what_two_read_keeps_its_activation_apart() -> None:
    at = Writing(2, 6, 6)
    shown = at.convolution(at.x, 5)
    relu = at.add("ReLU", [shown], shown.dims)
    check(at.ending(relu, shown), "Convolution ReLU", "Convolution ReLU")


# ---- gates


def test_swish() -> None:
    at = Writing(4, 6, rows=2)
    gate = at.add("Sigmoid", [at.x], (4, 6))
    check(at.ending(at.binary(MUL, at.x, gate)), "Sigmoid BinaryOp", "Swish")


def test_hard_swish_goes_into_a_convolution() -> None:
    at = Writing(2, 6, 6)
    shown = at.convolution(at.x, 5)
    gate = at.add("HardSigmoid", [shown], shown.dims, {0: 1 / 6, 1: 0.5})
    check(at.ending(at.binary(MUL, gate, shown)), "Convolution HardSigmoid BinaryOp", "Convolution")


def test_a_gate_of_another_value_stays() -> None:
    at = Writing(4, 6)
    gate = at.add("Sigmoid", [at.add("TanH", [at.x], (4, 6))], (4, 6))
    check(at.ending(at.binary(MUL, at.x, gate)), "TanH Sigmoid BinaryOp", "TanH Sigmoid BinaryOp")


def test_mish() -> None:
    at = Writing(4, 6)
    squashed = at.add("TanH", [at.add("BNLL", [at.x], (4, 6))], (4, 6))
    check(at.ending(at.binary(MUL, at.x, squashed)), "BNLL TanH BinaryOp", "Mish")


@pytest.mark.parametrize(
    ("formula", "layer"),
    [
        ("a = Sigmoid(c) y = Mul(c, a)", "Convolution Swish"),
        ("a = Softplus(c) b = Tanh(a) y = Mul(b, c)", "Convolution"),
        ("a = HardSigmoid <alpha = 0.25> (c) y = Mul(a, c)", "Convolution"),
    ],
)
def test_gates_as_models_have_them(formula: str, layer: str) -> None:
    model = t.model(f"""g (float[N,4,6,6] x, float[8,4,3,3] w_c) => (float[N,8,4,4] y) {{
        c = Conv(x, w_c)
        {formula}
    }}""")
    assert ncnn_written.layers(model) == layer.split()
    ncnn_written.check(model, *(t.feeds(model, n) for n in (1, 3)))


# ---- norms


def normalized(at: Writing, multiplied: Blob | None = None) -> Blob:
    square = at.binary(MUL, at.x, at.x)
    mean = at.add("Reduction", [square], (*at.x.dims[:-1], 1), {0: 3, 1: 0, 3: [len(at.x.dims) - 1], 4: 1, 5: 1})
    root = at.add("UnaryOp", [at.binary(ADD, mean, 1e-5)], mean.dims, {0: 5})
    inverse = at.add("Power", [root], mean.dims, {0: -1.0, 1: 1.0, 2: 0.0})
    return at.binary(MUL, multiplied or at.x, inverse)


LENGTH = "BinaryOp Reduction BinaryOp UnaryOp Power BinaryOp"


@pytest.mark.parametrize("rows", [1, 2])
def test_rms_norm(rows: int) -> None:
    at = Writing(6, 8, rows=rows)
    check(at.ending(normalized(at)), LENGTH, "RMSNorm")
    at = Writing(3, 6, 8, rows=rows)
    check(at.ending(at.binary(MUL, at.constant(floats(1, 1, 8)), normalized(at))), f"{LENGTH} BinaryOp", "RMSNorm")


def test_a_norm_of_another_value_stays() -> None:
    at = Writing(6, 8)
    made = normalized(at, at.add("TanH", [at.x], (6, 8)))
    check(at.ending(made), f"TanH {LENGTH}", f"TanH {LENGTH}")


# ---- attention

PLAIN = "MatMul BinaryOp Softmax MatMul"


def operands(at: Writing, positions: int = 6) -> tuple[Blob, Blob, Blob]:
    """Queries, keys turned, and values, of three heads."""
    q, k, v = (at.gemm(at.x, 12) for _ in range(3))
    assert q.dims == (positions, 12)
    return at.heads(q, 3), at.turned(k, 3), at.heads(v, 3)


MADE = "Gemm Gemm Gemm Reshape Permute Permute Reshape Reshape Permute"
AFTER = "Gemm Gemm Gemm Reshape Permute Reshape Permute"


@pytest.mark.parametrize("rows", [1, 2])
def test_attention_is_one_layer(rows: int) -> None:
    at = Writing(6, 8, rows=rows)
    q, k, v = operands(at)
    last = check(at.ending(at.attended(q, k, v)), f"{MADE} {PLAIN}", f"{AFTER} Reshape Permute SDPA")
    assert last.params[6] == 0.5


@pytest.mark.parametrize("mask", [(1, 6, 6), (3, 6, 6), (1, 1, 6)])
@pytest.mark.parametrize("rows", [1, 2])
def test_masked_attention_is_one_layer(rows: int, mask: tuple[int, ...]) -> None:
    at = Writing(6, 8, rows=rows)
    q, k, v = operands(at)
    made = at.attended(q, k, v, mask=at.constant(floats(*mask)))
    before = f"{MADE} MatMul BinaryOp BinaryOp Softmax MatMul"
    moves = "" if mask[0] == 3 else "Reshape " if mask[1] == 6 else "Reshape Tile "
    check(at.ending(made), before, f"{AFTER} Reshape Permute {moves}BinaryOp SDPA")


def test_a_query_that_may_look_at_nothing_is_the_same_as_before() -> None:
    """Its scores are all the lowest number: what SDPA divides by a scale would be infinite."""
    at = Writing(6, 8)
    q, k, v = operands(at)
    lowest = np.full((1, 6, 6), np.finfo(np.float32).min, np.float32)
    made = fused(at.ending(at.attended(q, k, v, mask=at.constant(lowest))))
    assert "SDPA" in types(made)
    (found,) = executed(made)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("order", [1, 3])
def test_keys_that_are_turned_otherwise(order: int) -> None:
    at = Writing(3, 6, 4)
    source = at.add(
        "TanH", [at.x if order == 1 else at.permute(at.x, 2, 6, 3, 4)], (3, 6, 4) if order == 1 else (6, 3, 4)
    )
    made = at.attended(at.x, at.permute(source, order, 3, 4, 6), at.x)
    given = "" if order == 1 else "Permute "
    check(at.ending(made), f"{given}TanH Permute {PLAIN}", f"{given}TanH {given}SDPA")


def test_factors_of_queries_and_keys_are_one() -> None:
    at = Writing(3, 6, 4)
    keys = at.permute(at.add("TanH", [at.x], (3, 6, 4)), 1, 3, 4, 6)
    made = at.attended(at.binary(MUL, at.x, 0.5), at.binary(MUL, keys, 0.25), at.x, scale=1)
    last = check(at.ending(made), "TanH Permute BinaryOp BinaryOp MatMul Softmax MatMul", "TanH SDPA")
    assert last.params[6] == 0.125


def test_scores_that_others_read_stay() -> None:
    at = Writing(3, 6, 4)
    scores = at.add("MatMul", [at.x, at.permute(at.x, 1, 3, 4, 6)], (3, 6, 6))
    looks = at.add("Softmax", [scores], scores.dims, {0: 2, 1: 1})
    kept = "Permute MatMul Softmax MatMul"
    check(at.ending(at.add("MatMul", [looks, at.x], (3, 6, 4)), scores), kept, kept)


@pytest.mark.parametrize("mask", [None, (1, 6, 6), (3, 6, 6)])
@pytest.mark.parametrize("rows", [1, 2])
def test_attention_with_its_projections_is_one_layer(rows: int, mask: tuple[int, ...] | None) -> None:
    at = Writing(6, 8, rows=rows)
    q, k, v = operands(at)
    made = at.attended(q, k, v, mask=None if mask is None else at.constant(floats(*mask)))
    last = at.binary(ADD, at.gemm(at.side_by_side(made), 8), at.constant(floats(1, 8)))
    program = fused(at.ending(last))
    assert types(program) == ["Reshape", "MultiHeadAttention"] if mask == (1, 6, 6) else ["MultiHeadAttention"]
    assert_near(executed(program)[0], executed(at.program)[0], 1e-5)


def test_attention_to_others_with_its_projections_is_one_layer() -> None:
    at = Writing(6, 8)
    other = at.add("TanH", [at.x], (6, 8))
    q, k, v = at.heads(at.gemm(at.x, 12), 3), at.turned(at.gemm(other, 12), 3), at.heads(at.gemm(other, 12), 3)
    program = fused(at.ending(at.gemm(at.side_by_side(at.attended(q, k, v)), 8)))
    assert types(program) == ["TanH", "MultiHeadAttention"]
    assert len(program.layers[-1].bottoms) == 2
    assert_near(executed(program)[0], executed(at.program)[0], 1e-5)


def test_one_product_of_queries_keys_and_values() -> None:
    at = Writing(6, 8)
    whole = at.gemm(at.x, 36)
    parts = tuple(Blob((6, 12)) for _ in range(3))
    at.program.layers.append(Layer("Slice", (whole,), parts, {0: [-233] * 3, 1: 1}))
    made = at.attended(at.heads(parts[0], 3), at.turned(parts[1], 3), at.heads(parts[2], 3))
    program = fused(at.ending(at.gemm(at.side_by_side(made), 8)))
    assert types(program) == ["MultiHeadAttention"]
    assert_near(executed(program)[0], executed(at.program)[0], 1e-5)


def test_projections_to_another_width_stay() -> None:
    at = Writing(6, 8)
    program = fused(at.ending(at.gemm(at.side_by_side(at.attended(*operands(at))), 7)))
    assert types(program)[-4:] == ["SDPA", "Permute", "Reshape", "Gemm"]


def test_keys_that_several_heads_share_are_there_once() -> None:
    at = Writing(4, 6, 8)
    few = at.add("TanH", [at.add("Crop", [at.x], (2, 6, 8), {9: [0], 10: [2], 11: [0]})], (2, 6, 8))
    tiled = at.add("Tile", [at.reshape(few, 2, 1, 48)], (2, 2, 48), {2: [1, 2, 1]})
    many = at.reshape(tiled, 4, 6, 8)
    values = at.reshape(at.add("Tile", [at.reshape(few, 2, 1, 48)], (2, 2, 48), {2: [1, 2, 1]}), 4, 6, 8)
    program = fused(at.ending(at.attended(at.x, at.permute(many, 1, 4, 8, 6), values)))
    assert types(program) == ["Crop", "TanH", "SDPA"]
    assert program.layers[-1].bottoms[1].dims == (2, 6, 8)
    assert_near(executed(program)[0], executed(at.program)[0], 1e-5)


def test_heads_that_are_there_in_turns_stay() -> None:
    at = Writing(4, 6, 8)
    few = at.add("TanH", [at.add("Crop", [at.x], (2, 6, 8), {9: [0], 10: [2], 11: [0]})], (2, 6, 8))
    keys, values = (at.reshape(at.add("Tile", [at.reshape(few, 2, 48)], (4, 48), {2: [2, 1]}), 4, 6, 8) for _ in "kv")
    program = fused(at.ending(at.attended(at.x, at.permute(keys, 1, 4, 8, 6), values)))
    assert types(program).count("Tile") == 2
    assert_near(executed(program)[0], executed(at.program)[0], 1e-5)


# ---- RotaryEmbed


def rotated(at: Writing, cosine: Array, sine: Array) -> Blob:
    axis = len(at.x.dims) - 1
    half = (*at.x.dims[:-1], 4)
    first = at.add("Crop", [at.x], half, {9: [0], 10: [4], 11: [axis]})
    second = at.add("UnaryOp", [at.add("Crop", [at.x], half, {9: [4], 10: [-233], 11: [axis]})], half, {0: 1})
    turned = at.add("Concat", [second, first], at.x.dims, {0: axis})
    one, other = at.binary(MUL, at.x, at.constant(cosine)), at.binary(MUL, turned, at.constant(sine))
    return at.binary(ADD, one, other)


ROTATION = "Crop Crop UnaryOp Concat BinaryOp BinaryOp BinaryOp"


@pytest.mark.parametrize("dims", [(6, 8), (3, 6, 8)])
@pytest.mark.parametrize("rows", [1, 2])
def test_rotary_embedding(rows: int, dims: tuple[int, ...]) -> None:
    at = Writing(*dims, rows=rows)
    shape = (1,) * (len(dims) - 2) + (6, 4)
    cosine, sine = (np.concatenate([floats(*shape, seed=seed)] * 2, -1) for seed in (2, 3))
    check(at.ending(rotated(at, cosine, sine)), ROTATION, "RotaryEmbed")


def test_angles_that_differ_between_the_halves_stay() -> None:
    at = Writing(3, 6, 8)
    check(at.ending(rotated(at, floats(1, 6, 8, seed=2), floats(1, 6, 8, seed=3))), ROTATION, ROTATION)

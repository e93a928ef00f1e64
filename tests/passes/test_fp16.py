"""The oracle is the float32 model in ONNX Runtime, its optimizations off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pass_testing as testing
import pytest
from onnx.reference import ReferenceEvaluator

from retarget.calibration.observers import observe
from retarget.compare import snr_db
from retarget.errors import RetargetError
from retarget.passes.fp16 import CastFloat16

if TYPE_CHECKING:
    from retarget.protocols import Array


class Cast:
    """A model in float32 and in float16, run by ONNX Runtime with its optimizations off and on."""

    def __init__(
        self,
        text: str,
        constants: Mapping[str, Array] | None = None,
        *,
        feeds: Mapping[str, Array] | None = None,
        calibrated: bool = True,
        io: str = "float32",
        sizes: Mapping[str, int] | None = None,
        modified: bool = True,
    ) -> None:
        self.model = testing.parse(text, constants)
        feeds = feeds or testing.feeds_for(self.model, sizes or {"N": 3})
        expected = testing.outputs(self.model, feeds)
        interface = [value.name for value in (*self.model.graph.inputs, *self.model.graph.outputs)]
        ranges = observe(self.model, [feeds], threads=1) if calibrated else None
        self.cast = CastFloat16(ranges, io)
        assert self.cast(self.model).modified == modified
        proto = ir.to_proto(self.model)
        onnx.checker.check_model(proto, full_check=True)
        assert [value.name for value in (*self.model.graph.inputs, *self.model.graph.outputs)] == interface
        half = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in feeds.items()}
        for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
            options = ort.SessionOptions()
            options.graph_optimization_level = level
            options.intra_op_num_threads = 1
            options.log_severity_level = 4
            session = ort.InferenceSession(proto.SerializeToString(), options)
            self.outputs: list[Array] = session.run(None, dict(half if io == "float16" else feeds))
            for before, after in zip(expected, self.outputs, strict=True):
                assert after.shape == before.shape
                assert io == "float16" or after.dtype == before.dtype
                if before.dtype.kind != "f":
                    np.testing.assert_array_equal(before, after)
        floats = [(b, a) for b, a in zip(expected, self.outputs, strict=True) if b.dtype.kind == "f"]
        self.snr = min((snr_db(before, after.astype(before.dtype)) for before, after in floats), default=300.0)
        ops = testing.ops(self.model)
        assert not self.cast(self.model).modified, "a second run changes something"
        assert testing.ops(self.model) == ops

    @property
    def ops(self) -> list[str]:
        return testing.ops(self.model)

    @property
    def kept(self) -> dict[str, str]:
        return {one.op: one.reason for one in self.cast.kept}

    def dtype(self, name: str) -> str:
        values = [*self.model.graph.inputs, *(v for node in self.model.graph for v in node.outputs)]
        values += self.model.graph.initializers.values()
        return next(str(value.dtype) for value in values if value.name == name)


def f32(values: float | list[float]) -> Array:
    return np.array(values, np.float32)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.float32(scale) * np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


LINEAR = "m (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w)\n b = Relu(a)\n y = MatMul(b, v) }"


def test_casts_stand_only_at_the_borders() -> None:
    cast = Cast(LINEAR, {"w": drawn(8, 8), "v": drawn(8, 8, seed=1)})
    assert cast.ops == ["Cast", "MatMul", "Relu", "MatMul", "Cast"]
    assert cast.snr > 50
    assert cast.cast.kept == ()
    assert {cast.dtype(name) for name in ("a", "b", "w", "v")} == {"FLOAT16"}


def test_inputs_and_outputs_can_be_float16() -> None:
    cast = Cast(LINEAR, {"w": drawn(8, 8), "v": drawn(8, 8, seed=1)}, io="float16")
    assert cast.ops == ["MatMul", "Relu", "MatMul"]
    assert [cast.dtype("x"), cast.dtype("y"), cast.outputs[0].dtype.name.upper()] == ["FLOAT16"] * 3
    assert cast.snr > 50


def test_weights_are_converted_when_they_are_read() -> None:
    model = testing.parse(LINEAR, {"w": drawn(8, 8), "v": drawn(8, 8, seed=1)})
    CastFloat16()(model)
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert tensor.nbytes == 128
    np.testing.assert_array_equal(tensor.numpy(), drawn(8, 8).astype(np.float16))


def overflowing(layers: int = 4) -> tuple[str, dict[str, Array]]:
    """Convolutions whose activations are scaled up by 6e4 and back: the same function, beyond float16 inside."""
    body: list[str] = []
    constants: dict[str, Array] = {}
    for layer in range(layers):
        inner = f"x{layer}" if layer else "x"
        up, down = (6e4, 1 / 6e4) if layer in (1, 2) else (1.0, 1.0)
        constants[f"w{layer}"] = drawn(8, 8, 3, 3, seed=layer, scale=up / 8)
        constants[f"b{layer}"] = drawn(8, seed=layer + 50, scale=up / 10)
        constants[f"v{layer}"] = drawn(8, 8, 1, 1, seed=layer + 90, scale=down / 3)
        body += [
            f"c{layer} = Conv<pads = [1, 1, 1, 1]>({inner}, w{layer}, b{layer})",
            f"r{layer} = Relu(c{layer})",
            f"d{layer} = Conv(r{layer}, v{layer})",
            f"x{layer + 1} = Relu(d{layer})",
        ]
    body.append(f"y = Conv(x{layers}, v0)")
    return f"m (float[N, 8, 9, 9] x) => (float[N, 8, 9, 9] y) {{ {chr(10).join(body)} }}", constants


def test_activations_beyond_float16_stay_in_float32() -> None:
    text, constants = overflowing()
    guarded = Cast(text, constants)
    model = testing.parse(text, constants)
    feeds = testing.feeds_for(model, {"N": 3})
    (expected,) = testing.outputs(model, feeds)
    CastFloat16()(model)
    assert snr_db(expected, in_numpy(model, feeds)) < 30
    assert snr_db(expected, in_numpy(guarded.model, feeds)) >= 60
    assert guarded.snr >= 60
    assert len(guarded.cast.kept) == 6
    assert all("float16 ends at 65504" in one.reason for one in guarded.cast.kept)
    # Into the first layer, around the second and third, out of the last.
    assert guarded.ops.count("Cast") == 6


def in_numpy(model: ir.Model, feeds: Mapping[str, Array]) -> Array:
    """ONNX Runtime's CPU computes float16 in float32, where nothing overflows; numpy really rounds every step."""
    with np.errstate(all="ignore"):
        results = ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds))
    assert isinstance(results, list)
    array: Array = results[0]
    return array


def test_nothing_passes_through_float16_between_nodes_in_float32() -> None:
    text = """m (float[N, 4] x) => (float[N, 2, 2] y) {
        a = Mul(x, big)
        s = Constant <value = int64[3] {-1, 2, 2}> ()
        r = Reshape(a, s)
        t = Transpose <perm = [0, 2, 1]> (r)
        y = Mul(t, small)
    }"""
    cast = Cast(text, {"big": f32([6e4]), "small": f32([1 / 6e4])}, feeds={"x": drawn(3, 4) + 3}, modified=True)
    assert "Cast" not in cast.ops
    text = """m (float[N, 4] x, int64 axis) => (float[N, 4] y) {
        a = CumSum(x, axis)
        b = Identity(a)
        y = CumSum(b, axis)
    }"""
    feeds: dict[str, Array] = {"x": drawn(3, 4), "axis": np.array(1)}
    between = Cast(text, feeds=feeds, modified=False)
    assert between.kept == {
        "CumSum": "rounding errors add up along the axis",
        "Identity": "it lies between nodes in float32",
    }


def test_an_output_that_is_also_used_inside() -> None:
    text = "m (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Tanh(x)\n z = Sin(y) }"
    cast = Cast(text)
    assert cast.ops.count("Cast") == 3
    assert cast.snr > 50


def test_an_input_that_is_an_output() -> None:
    cast = Cast("m (float[N, 4] x) => (float[N, 4] x, float[N, 4] z) { z = Tanh(x) }")
    assert cast.snr > 50


def test_a_constant_that_is_an_output_stays_as_it_is() -> None:
    done = Cast(
        """
        g (float[N,4] x) => (float[N,4] y, float[3] c) {
          y = Relu(x)
          c = Constant <value = float[3] {0.1, 0.2, 70000.0}> ()
        }"""
    )
    assert not done.cast.kept
    np.testing.assert_array_equal(done.outputs[1], np.array([0.1, 0.2, 70000.0], np.float32))


def test_nodes_without_float_outputs_take_what_comes() -> None:
    text = """m (float[N, 4] x) => (int64[2] s, bool[N, 4] c, int64[N] i, float[N, 4] y) {
        s = Shape(x)
        h = Tanh(x)
        half = Constant <value_float = 0.0> ()
        c = Greater(h, half)
        i = ArgMax <axis = 1, keepdims = 0> (h)
        y = Neg(h)
    }"""
    cast = Cast(text)
    assert cast.ops.count("Cast") == 2
    assert cast.cast.kept == ()


MASKED = """m (float[N, 2, 4, 8] q, float[N, 2, 8, 4] k, int64[N, 1, 1, 4] mask) => (float[N, 2, 4, 4] y) {
    s = MatMul(q, k)
    m = Cast <to = 1> (mask)
    one = Constant <value_float = 1.0> ()
    inverse = Sub(one, m)
    fill = Mul(inverse, lowest)
    masked = Add(s, fill)
    y = Softmax <axis = -1> (masked)
}"""


@pytest.mark.parametrize("lowest", [np.finfo(np.float32).min, -1e9, -1e4])
def test_masks_are_not_values(lowest: float) -> None:
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], np.int64).reshape(3, 1, 1, 4)
    feeds: dict[str, Array] = {"q": drawn(3, 2, 4, 8), "k": drawn(3, 2, 8, 4, seed=1), "mask": mask}
    cast = Cast(MASKED, {"lowest": f32(lowest)}, feeds=feeds)
    assert cast.cast.kept == ()
    assert cast.snr > 50
    assert (cast.outputs[0][0, :, :, 2:] == 0).all()


def test_a_mask_that_is_returned_is_a_value() -> None:
    text = "m (float[N, 4] x, bool[N, 4] c) => (float[N, 4] y) { y = Where(c, x, lowest) }"
    feeds: dict[str, Array] = {"x": drawn(3, 4), "c": np.eye(3, 4, dtype=bool)}
    cast = Cast(text, {"lowest": f32(float(np.finfo(np.float32).min))}, feeds=feeds, modified=False)
    assert cast.snr == 300
    assert list(cast.kept) == ["Where"]


def test_infinities_of_a_mask_go_through() -> None:
    text = "m (float[N, 4] x, bool[N, 4] c) => (float[N, 4] y) { w = Where(c, x, lowest)\n y = Softmax(w) }"
    feeds: dict[str, Array] = {"x": drawn(3, 4), "c": ~np.eye(3, 4, dtype=bool)}
    cast = Cast(text, {"lowest": f32(-np.inf)}, feeds=feeds)
    assert cast.cast.kept == ()
    assert cast.snr > 50


def test_small_numbers_stay() -> None:
    text = """m (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
        p = Softmax(x)
        y = Log(p)
        e = Add(p, epsilon)
        z = Div(x, e)
    }"""
    x = drawn(3, 4, scale=8)
    cast = Cast(text, {"epsilon": f32([1e-12])}, feeds={"x": x}, modified=False)
    assert {"Softmax", "Log", "Add", "Div"} <= set(cast.kept)
    assert "zero in float16" in cast.kept["Log"]
    assert cast.snr > 60


@pytest.mark.parametrize(("shift", "kept"), [(1.0, False), (0.0, True)])
def test_an_epsilon_that_is_lost_anyway_keeps_nothing(shift: float, kept: bool) -> None:
    text = "m (float[N, 4] x) => (float[N, 4] y) { a = Add(x, epsilon)\n y = Sqrt(a) }"
    x = np.abs(drawn(3, 4)) * (shift > 0) + f32(shift)
    cast = Cast(text, {"epsilon": f32([1e-6])}, feeds={"x": x}, modified=not kept)
    assert ("Add" in cast.kept) == kept
    assert cast.snr > 50


def test_a_tensor_below_the_smallest_normal_number_stays() -> None:
    cast = Cast(
        "m (float[N, 4] x) => (float[N, 4] y) { a = Mul(x, w)\n b = Relu(a)\n y = Mul(b, v) }",
        {"w": f32([1e-5]), "v": f32([1e4])},
        feeds={"x": drawn(3, 4) / 4},
        modified=False,
    )
    assert set(cast.kept) == {"Mul", "Relu"}
    assert cast.snr > 100


ANGLES = """m (int64[N, T] position, float[N, T, 8] x) => (float[N, T, 8] y) {
    f = Cast <to = 1> (position)
    axis = Constant <value = int64[1] {-1}> ()
    column = Unsqueeze(f, axis)
    angle = Mul(column, frequencies)
    c = Cos(angle)
    y = Mul(x, c)
}"""


def test_angles_are_computed_in_float32_from_the_start() -> None:
    feeds: dict[str, Array] = {"position": np.arange(3000).reshape(2, 1500), "x": drawn(2, 1500, 8)}
    constants = {"frequencies": (10000.0 ** -(np.arange(8) / 8)).astype(np.float32)}
    cast = Cast(ANGLES, constants, feeds=feeds)
    assert set(cast.kept) == {"Cast", "Unsqueeze", "Mul", "Cos"}
    assert cast.snr > 55
    assert cast.dtype("frequencies") == "FLOAT"


def test_whole_numbers_that_become_integers_are_exact() -> None:
    text = """m (int64[N] x) => (int64[N] y) {
        f = Cast <to = 1> (x)
        g = Add(f, one)
        y = Cast <to = 7> (g)
    }"""
    model = testing.parse(text, {"one": f32([1])})
    feeds: dict[str, Array] = {"x": np.array([1, 4097, 9999])}
    ranges = observe(model, [feeds], threads=1)
    one = CastFloat16(ranges)
    assert not one(model).modified
    assert len(one.kept) == 3
    assert testing.outputs(model, feeds)[0].tolist() == [2, 4098, 10000]


def test_sums_inside_an_operator_are_bounded() -> None:
    text = "m (float[N, 4, 64, 64] x) => (float[N, 4, 1, 1] y) { y = GlobalAveragePool(x) }"
    kept = Cast(text, feeds={"x": drawn(1, 4, 64, 64) + 100}, modified=False)
    assert list(kept.kept) == ["GlobalAveragePool"]
    assert "sum over 4096 elements" in kept.kept["GlobalAveragePool"]
    assert not Cast(text, feeds={"x": drawn(1, 4, 64, 64)}).kept


QUANTIZED = """
g (float[N,4] x) => (float[N,4] y) <float s = {0.05}, int8 z = {0}, int8[4,4] w> {
  xq = QuantizeLinear(x, s, z)
  xd = DequantizeLinear(xq, s, z)
  wd = DequantizeLinear(w, s, z)
  m = MatMul(xd, wd)
  r = Relu(m)
  rq = QuantizeLinear(r, s, z)
  rd = DequantizeLinear(rq, s, z)
  t = Tanh(rd)
  u = MatMul(t, wd)
  y = Sigmoid(u)
}
"""


def test_what_is_quantized_already_keeps_its_integer_kernels() -> None:
    """The second MatMul has only its weights in integers: it is float16."""
    weights = np.random.default_rng(0).integers(-20, 20, (4, 4)).astype(np.int8)
    done = Cast(QUANTIZED, {"w": weights})
    assert {name for name, reason in done.kept.items() if "quantized" in reason} == {"MatMul", "Relu", "Tanh"}
    for name, user in (("xd", "MatMul"), ("m", "Relu"), ("r", "QuantizeLinear")):
        value = next(out for node in done.model.graph for out in node.outputs if out.name == name)
        assert [node.op_type for node, _ in value.uses()] == [user]
    assert [n.inputs[0].dtype for n in done.model.graph if n.op_type == "MatMul" and n.inputs[0]] == [
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
    ]
    assert done.snr > 40


def test_operands_that_are_float32_by_definition_stay() -> None:
    text = """m (float[N, 2, 4, 4] x) => (float[N, 2, 8, 8] y) {
        y = Resize <mode = "linear"> (x, , scales)
    }"""
    cast = Cast(text, {"scales": f32([1, 1, 2, 2])})
    assert cast.dtype("scales") == "FLOAT"
    assert cast.ops == ["Cast", "Resize", "Cast"]
    assert cast.snr > 50


def test_a_constant_for_both_types() -> None:
    text = """m (float[N, 4] x, int64 axis) => (float[N, 4] y, float[N, 4] z) {
        y = Mul(x, w)
        a = CumSum(w, axis)
        z = Add(x, a)
    }"""
    feeds: dict[str, Array] = {"x": drawn(3, 4), "axis": np.array(1)}
    cast = Cast(text, {"w": drawn(3, 4, seed=4)}, feeds=feeds)
    assert (cast.dtype("w"), cast.dtype("w_fp16")) == ("FLOAT", "FLOAT16")
    assert cast.snr > 50


def test_types_in_attributes() -> None:
    text = """m (float[N, 4] x, int64[N, 4] i) => (float[N, 4] y) {
        s = Shape(x)
        fill = ConstantOfShape <value = float[1] {0.5}> (s)
        zero = ConstantOfShape (s)
        f = Cast <to = 1> (i)
        a = Add(x, fill)
        b = Add(a, zero)
        y = Mul(b, f)
    }"""
    feeds: dict[str, Array] = {"x": drawn(3, 4), "i": np.arange(12).reshape(3, 4)}
    cast = Cast(text, feeds=feeds)
    assert cast.snr > 50
    assert {cast.dtype(name) for name in ("fill", "zero", "f")} == {"FLOAT16"}
    assert cast.ops.count("Cast") == 3


BRANCHES = """m (float[N, 4] x, bool flag) => (float[N, 4] y) {
    a = Tanh(x)
    b = If (flag) <
        then_branch = g1 () => (float[N, 4] p) { p = Mul(a, w) },
        else_branch = g2 () => (float[N, 4] a) { }
    >
    y = Mul(b, w)
}"""


@pytest.mark.parametrize("flag", [False, True])
def test_bodies_stay_in_float32(flag: bool) -> None:
    text = BRANCHES.replace("g2 () => (float[N, 4] a) { }", "g2 () => (float[N, 4] q) { q = Add(a, x) }")
    feeds: dict[str, Array] = {"x": drawn(3, 4), "flag": np.array(flag)}
    cast = Cast(text, {"w": drawn(4, seed=3)}, feeds=feeds)
    assert cast.kept == {"If": "its subgraphs stay in float32"}
    assert cast.snr > 50
    assert (cast.dtype("a"), cast.dtype("b"), cast.dtype("w")) == ("FLOAT16", "FLOAT", "FLOAT")


@pytest.mark.parametrize("flag", [False, True])
def test_a_body_that_returns_an_outer_value(flag: bool) -> None:
    feeds: dict[str, Array] = {"x": drawn(3, 4), "flag": np.array(flag)}
    text = BRANCHES.replace("g2 () => (float[N, 4] a) { }", "g2 () => (float[N, 4] q) { q = Identity(a) }")
    model = testing.parse(text, {"w": drawn(4, seed=3)})
    (expected,) = testing.outputs(model, feeds)
    branch = next(node for node in model.graph if node.op_type == "If").attributes["else_branch"].as_graph()
    outer = next(node for node in model.graph if node.op_type == "Tanh").outputs[0]
    branch.outputs[0] = outer
    branch.remove(branch[0], safe=False)
    CastFloat16()(model)
    assert branch.outputs[0].dtype == ir.DataType.FLOAT
    assert branch.outputs[0] is not outer
    assert expected.shape == (3, 4)


def test_input_and_output_that_do_not_fit_are_refused_for_io_float16() -> None:
    model = testing.parse("m (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    ranges = observe(model, [{"x": drawn(3, 4, scale=1e5)}], threads=1)
    with pytest.raises(RetargetError, match="io: float16 is too narrow: 'x' reaches"):
        CastFloat16(ranges, "float16")(model)
    with pytest.raises(RetargetError, match="io: 'int8' is not a type"):
        CastFloat16(ranges, "int8")


def test_operators_without_a_definition_stay() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>\n'
        "m (float[N, 4] x) => (float[N, 4] y) { a = Tanh(x)\n b = com.microsoft.QuickGelu(a)\n y = Tanh(b) }"
    )
    one = CastFloat16()
    one(model)
    assert [(kept.op, kept.reason) for kept in one.kept if kept.op == "QuickGelu"] == [
        ("QuickGelu", "the definition of com.microsoft.QuickGelu is not known")
    ]
    feeds = {"x": drawn(3, 4)}
    assert testing.outputs(model, feeds)[0].dtype == np.float32


def test_recurrent_layers_and_norms() -> None:
    text = """m (float[T, N, 4] x) => (float[T, N, 6] y) {
        h, last, cell = LSTM <hidden_size = 6> (x, w, r, b)
        axis = Constant <value = int64[1] {1}> ()
        s = Squeeze(h, axis)
        y = LayerNormalization(s, scale)
    }"""
    constants = {
        "w": drawn(1, 24, 4), "r": drawn(1, 24, 6, seed=1), "b": drawn(1, 48, seed=2), "scale": drawn(6, seed=3),
    }  # fmt: skip
    cast = Cast(text, constants, sizes={"N": 3, "T": 5})
    assert cast.snr > 40
    assert not cast.kept

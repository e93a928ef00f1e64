"""The oracle is plain numpy, or the same model loaded by ONNX Runtime from a file without our wrapper."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from retarget import session
from retarget.errors import RetargetError, ToolchainFailure
from retarget.session import Session

if TYPE_CHECKING:
    from retarget.protocols import Array

HEADER = '<ir_version: 10, opset_import: ["": 23]>\n'


def parse(text: str) -> ir.Model:
    return ir.from_onnx_text(HEADER + text)


def linear(weight: ir.TensorProtocol, *, name: str = "w") -> ir.Model:
    """y = x @ w, then relu; the product is called ``product``."""
    model = parse("linear (float[N, K] x) => (float[N, M] y) { product = MatMul(x, x)\n y = Relu(product) }")
    node = model.graph[0]
    value = ir.Value(
        name=name, const_value=weight, shape=ir.Shape(weight.shape.numpy()), type=ir.TensorType(weight.dtype)
    )
    model.graph.register_initializer(value)
    node.replace_input_with(1, value)
    return model


def drawn(*shape: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_close(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=1e-4, atol=1e-4)


def test_runs_a_model_in_memory() -> None:
    weight, x = drawn(8, 5), drawn(3, 8, seed=1)
    with Session(linear(ir.tensor(weight))) as runner:
        assert runner.input_names == ("x",)
        assert runner.output_names == ("y",)
        assert_close(runner.run({"x": x})["y"], np.maximum(x @ weight, 0))


def test_extra_outputs_and_a_choice_of_outputs() -> None:
    weight, x = drawn(8, 5), drawn(3, 8, seed=1)
    with Session(linear(ir.tensor(weight)), extra_outputs=["product", "x", "w"]) as runner:
        values = runner.run({"x": x})
        assert_close(values["product"], x @ weight)
        np.testing.assert_array_equal(values["x"], x)
        np.testing.assert_array_equal(values["w"], weight)
        assert set(runner.run({"x": x}, ["product"])) == {"product"}
        assert set(runner.run({"x": x}, ["x"])) == {"x"}


def test_extra_outputs_of_a_file(tmp_path: Path) -> None:
    weight, x = drawn(64, 5), drawn(3, 64, seed=1)
    ir.save(linear(ir.tensor(weight)), tmp_path / "m.onnx", external_data="m.data")
    with Session(tmp_path / "m.onnx", extra_outputs=["product"]) as runner:
        assert_close(runner.run({"x": x})["product"], x @ weight)
    with Session(tmp_path / "m.onnx") as runner:
        assert_close(runner.run({"x": x})["y"], np.maximum(x @ weight, 0))


def test_a_session_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    ir.save(linear(ir.tensor(drawn(64, 5))), tmp_path / "m.onnx", external_data="m.data")
    model = ir.load(tmp_path / "m.onnx")
    tensor = model.graph.initializers["w"].const_value
    before = ir.to_proto(model).SerializeToString()
    with Session(model, extra_outputs=["product"]):
        pass
    assert model.graph.initializers["w"].const_value is tensor
    assert ir.to_proto(model).SerializeToString() == before


def test_weights_of_two_folders_one_behind_a_symlink(tmp_path: Path) -> None:
    x = drawn(2, 64, seed=5)
    one, two = drawn(64, 64, seed=1), drawn(64, 64, seed=2)
    for name, weight in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        ir.save(linear(ir.tensor(weight), name="w"), tmp_path / name / "m.onnx", external_data="m.data")
    (tmp_path / "link").symlink_to(tmp_path / "two")
    model = ir.load(tmp_path / "one" / "m.onnx")
    other = ir.load(tmp_path / "link" / "m.onnx").graph.initializers["w"].const_value
    assert other is not None
    value = ir.Value(name="w2", const_value=other, shape=ir.Shape([64, 64]), type=ir.TensorType(other.dtype))
    model.graph.register_initializer(value)
    second = ir.node("MatMul", [model.graph[1].outputs[0], value])
    second.outputs[0].name = "z"
    model.graph.append(second)
    model.graph.outputs.append(second.outputs[0])
    with Session(model) as runner:
        assert_close(runner.run({"x": x})["z"], np.maximum(x @ one, 0) @ two)


def test_weights_in_memory_beyond_the_limit_are_spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "INLINE_LIMIT", 1000)
    weight, x = drawn(64, 48), drawn(3, 64, seed=1)
    runner = Session(
        linear(ir.LazyTensor(lambda: ir.Tensor(weight), dtype=ir.DataType.FLOAT, shape=ir.Shape((64, 48))))
    )
    spill = runner._spill
    assert spill is not None
    assert (spill / "weights").stat().st_size == weight.nbytes
    assert_close(runner.run({"x": x})["y"], np.maximum(x @ weight, 0))
    runner.close()
    assert not spill.exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's counters of anonymous memory")
def test_mapped_weights_are_not_copied(tmp_path: Path) -> None:
    size = 4096
    ir.save(linear(ir.tensor(drawn(size, size))), tmp_path / "m.onnx", external_data="m.data")
    gc.collect()

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

    before = anonymous()
    with Session(ir.load(tmp_path / "m.onnx")) as runner:
        runner.run({"x": drawn(2, size)})
        assert anonymous() - before < size * size * 4 / 4


def test_scalars_stay_scalars_beside_bfloat16() -> None:
    with Session(parse("m (float x) => (bfloat16 y) { y = Cast <to = 16> (x) }")) as runner:
        assert runner.run({"x": np.array(1.5, np.float32)})["y"].shape == ()


def test_bfloat16_goes_in_and_out() -> None:
    model = parse(
        "m (bfloat16[N, 3] x, float[N, 3] z) => (bfloat16[N, 3] y, float[N, 3] w) { y = Identity(x)\n w = Neg(z) }"
    )
    x = drawn(2, 3).astype(ml_dtypes.bfloat16)
    with Session(model) as runner:
        values = runner.run({"x": x, "z": drawn(2, 3)})
    assert values["y"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(values["y"].astype(np.float32), x.astype(np.float32))
    np.testing.assert_array_equal(values["w"], -drawn(2, 3))


def test_what_onnxruntime_executes_can_be_saved(tmp_path: Path) -> None:
    model = parse("m (float[N, 3] x) => (float[N, 3] y) { a = Identity(x)\n b = Identity(a)\n y = Relu(b) }")
    with Session(model, optimize=True, save_optimized=tmp_path / "executed.onnx"):
        pass
    assert [node.op_type for node in onnx.load(tmp_path / "executed.onnx").graph.node] == ["Relu"]


def test_settings_say_how_it_ran() -> None:
    with Session(parse("m (float[N] x) => (float[N] y) { y = Relu(x) }"), threads=2, optimize=True) as runner:
        assert runner.settings == f"ONNX Runtime {ort.__version__}, CPU, optimizations on, 2 threads"


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "m: input 'x' is not fed"),
        ({"x": np.zeros((1, 3), np.float32), "q": np.zeros(1)}, "m has no input 'q'"),
        ({"x": np.zeros((1, 3))}, "input 'x': expected float32, found float64"),
        ({"x": np.zeros(3, np.float32)}, r"input 'x': expected rank 2 \[N,3\], found shape \[3\]"),
        ({"x": np.zeros((1, 4), np.float32)}, r"input 'x': expected shape \[N,3\], found \[1, 4\]"),
    ],
)
def test_a_feed_that_does_not_fit_is_the_users_error(feeds: dict[str, Array], message: str) -> None:
    model = parse("m (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }")
    with Session(model) as runner, pytest.raises(RetargetError, match=message):
        runner.run(feeds)


def test_unknown_names_are_the_users_errors(tmp_path: Path) -> None:
    model = parse("m (float[N] xs) => (float[N] ys) { ys = Relu(xs) }")
    with pytest.raises(RetargetError, match="no value 'zs'"):
        Session(model, extra_outputs=["zs"])
    with Session(model) as runner, pytest.raises(RetargetError, match="no output 'yz'"):
        runner.run({"xs": drawn(3)}, ["yz"])
    with pytest.raises(RetargetError, match="no such file"):
        Session(tmp_path / "missing.onnx")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    ir.save(linear(ir.tensor(drawn(64, 64))), tmp_path / "m.onnx", external_data="m.data")
    model = ir.load(tmp_path / "m.onnx")
    (tmp_path / "m.data").unlink()
    with pytest.raises(RetargetError, match=r"m\.data: no such file"):
        Session(model)


def test_a_failure_names_the_node() -> None:
    model = parse("m (float[N, 3] x, int64[1] s) => (float[M] y) { [reshape_it] y = Reshape(x, s) }")
    with Session(model) as runner, pytest.raises(ToolchainFailure) as caught:
        runner.run({"x": drawn(2, 3), "s": np.array([5])})
    assert "node 'reshape_it' (Reshape)" in caught.value.message
    assert "onnxruntime_src" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_model_that_is_refused_is_a_toolchain_failure() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 23, "made.up": 1]>\nm (float[N] x) => (float[N] y) { y = made.up.Op(x) }'
    )
    with pytest.raises(ToolchainFailure, match=r"cannot load m: .*made\.up"):
        Session(model)


def test_closing_twice_is_fine() -> None:
    runner = Session(parse("m (float[N] x) => (float[N] y) { y = Relu(x) }"))
    runner.close()
    runner.close()
    assert runner.settings

"""Weights stored as float16, executed as parity asks for it and as a user does, with what float16 the CPU has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import digits_net
import msgspec
import ncnn_written
import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t
from zoo_prepared import prepared

from retarget import catalog
from retarget.compare import snr_db
from retarget.spec import DimRange
from retarget.targets.ncnn import sidecar
from retarget.targets.ncnn.emit import BIN

if TYPE_CHECKING:
    from retarget.protocols import Feeds

MLP = """g (float[N,32] x, float[32,512] w_a, float[512] w_b, float[512,8] w_c) => (float[N,8] y) {
    [first] a = Gemm(x, w_a, w_b)
    [relu] b = Relu(a)
    [second] y = MatMul(b, w_c)
}"""


def test_weights_take_half_the_bytes_and_biases_do_not(tmp_path: Path) -> None:
    model = t.model(MLP)
    feeds = t.feeds(model, 4)
    bytes_of = {}
    for precision in ("fp32", "fp16"):
        (tmp_path / precision).mkdir()
        facts = ncnn_written.written(model, tmp_path / precision, precision)
        bytes_of[precision] = (tmp_path / precision / BIN).stat().st_size
        assert facts.precision.weights == {"fp32": "float32", "fp16": "float16"}[precision]
        for parity in (True, False):
            found = t.run("ncnn", tmp_path / precision, facts, feeds, parity=parity)["y"]
            assert snr_db(t.oracle(model, feeds)["y"], found) > (100 if precision == "fp32" and parity else 60)
    weights = 32 * 512 + 512 * 8
    assert bytes_of["fp32"] - bytes_of["fp16"] >= 2 * weights


@pytest.mark.parametrize("value", [65504.0, 70000.0, -1e6])
def test_what_is_too_large_for_float16_stays_float32(value: float, tmp_path: Path) -> None:
    model = t.model(MLP)
    weight = model.graph.initializers["w_c"]
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[3, 2] = value
    weight.const_value = ir.tensor(array, name="w_c")
    facts = ncnn_written.written(model, tmp_path, "fp16")
    feeds = t.feeds(model, 3)
    right, found = t.oracle(model, feeds)["y"], t.run("ncnn", tmp_path, facts, feeds)["y"]
    assert np.isfinite(found).all()
    assert snr_db(right, found) > 40


@pytest.mark.parametrize("parity", [True, False])
@pytest.mark.parametrize(
    "name",
    ["digits", "bert", *(pytest.param(name, marks=pytest.mark.stress) for name in ("resnet", "mobilenet_v2", "vit"))],
)
def test_models_keep_40_db(name: str, parity: bool, tmp_path: Path) -> None:
    if name == "digits":
        model, shapes = ir.from_proto(digits_net.digits_model()), {"N": DimRange(1, 2, 8)}
        feeds: Sequence[Feeds] = [digits_net.rows(digits_net.CALIBRATION, 0, count) for count in (1, 5)]
    else:
        (tmp_path / "source").mkdir()
        source = prepared("zoo", name, [{"N": 1}, {"N": 3}], tmp_path / "source")
        model, shapes, feeds = source.model, dict(source.family.shapes), source.feeds
    facts = ncnn_written.written(model, tmp_path, "fp16", **shapes)
    for fed in feeds:
        found = t.run("ncnn", tmp_path, facts, fed, parity=parity)
        for output, right in t.oracle(model, fed).items():
            assert snr_db(right, found[output]) > 40


def test_what_is_kept_from_16_bits_is_given_floats(tmp_path: Path) -> None:
    """ncnn hands a masked layer 16 bits as they are. On ARM it has float16 by default; here bfloat16 shows it."""
    model = t.model("""g (float[N,7] x, int64[N,7] ids) => (int64[N] y, int64[N,7] z, float[N,7] w) {
        lowest = Constant <value_float = -3e38>()
        a = Softmax(x)
        [first] y = ArgMax <axis = 1, keepdims = 0> (a)
        f = Cast <to = 1> (ids)
        g = Sqrt(f)
        [whole] z = Cast <to = 7> (g)
        s = Sigmoid(x)
        [mask] m = Mul(s, lowest)
        w = Add(m, a)
    }""")
    facts = ncnn_written.written(model, tmp_path)
    feeds = {"x": 3 * t.normal(3, 7), "ids": (np.arange(21) % 6).reshape(3, 7) ** 2}
    with catalog.target_run("ncnn").open(tmp_path, facts, parity=True, threads=1) as runner:
        right = runner.run(feeds)
    _blobs_of_16_bits(tmp_path)
    with catalog.target_run("ncnn").open(tmp_path, facts, parity=True, threads=1) as runner:
        found = runner.run(feeds)
    np.testing.assert_array_equal(found["y"], right["y"])
    np.testing.assert_array_equal(found["z"], right["z"])
    t.assert_near(found["w"], right["w"], 0.02)


@pytest.mark.parametrize("name", ["bert", pytest.param("swin", marks=pytest.mark.stress)])
def test_models_hold_in_blobs_of_16_bits(name: str, tmp_path: Path) -> None:
    """As ARM has them by default, with float16; bfloat16, which is here, has 8 bits."""
    (tmp_path / "source").mkdir()
    source = prepared("zoo", name, [{"N": 1}, {"N": 3}], tmp_path / "source")
    facts = ncnn_written.written(source.model, tmp_path, "fp32", **dict(source.family.shapes))
    _blobs_of_16_bits(tmp_path)
    for fed in source.feeds:
        found = t.run("ncnn", tmp_path, facts, fed)
        for output, right in t.oracle(source.model, fed).items():
            assert snr_db(right, found[output]) > 30


def _blobs_of_16_bits(artifact: Path) -> None:
    says = sidecar.read(artifact / sidecar.FILE)
    sidecar.write(msgspec.structs.replace(says, parity_options={"use_bf16_storage": True}), artifact / sidecar.FILE)

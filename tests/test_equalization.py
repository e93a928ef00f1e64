"""Preparing passes are kept where int8 gains by them on data that they have not seen, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from digits_net import CALIBRATION, digits_model, rows

from retarget.compare import snr_db
from retarget.equalization import PASSES, WORTH_DB, equalize

if TYPE_CHECKING:
    from retarget.facts import PassFact
    from retarget.protocols import Array

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
net (float[N,8,6,6] x) => (float[N,4,6,6] y) {
  a = Conv<pads = [1, 1, 1, 1], group = 8>(x, w1, b1)
  r = Relu(a)
  y = Conv(r, w2)
}
"""


def net(imbalance: float) -> ir.Model:
    """A depthwise convolution whose channels differ by e^±``imbalance``, and one that takes that back."""
    rng = np.random.default_rng(0)
    factor = np.exp(np.linspace(-imbalance, imbalance, 8)).astype("f")
    arrays = {
        "w1": rng.normal(0, 0.3, (8, 1, 3, 3)).astype("f") * factor[:, None, None, None],
        "b1": rng.normal(0, 0.3, 8).astype("f") * factor,
        "w2": rng.normal(0, 0.3, (4, 8, 1, 1)).astype("f") / factor[:, None, None],
    }
    proto = onnx.parser.parse_model(TEXT)
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def batches(count: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(8, 8, 6, 6)).astype("f")} for _ in range(count)]


def outputs(model: ir.Model, feeds: Mapping[str, Array]) -> Array:
    found: Array = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(["y"], dict(feeds))[0]
    return found


def prepared(imbalance: float, count: int = 4) -> tuple[ir.Model, ir.Model, dict[str, PassFact]]:
    model, data = net(imbalance), batches(count)
    changed, facts = equalize(model, data, {"data0": data[0]}, strict=True)
    assert facts.checked
    return model, changed, {one.name: one for one in facts.passes}


def weights(model: ir.Model) -> list[Array]:
    arrays = []
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        arrays.append(value.const_value.numpy())
    return arrays


@pytest.mark.parametrize("count", [1, 4])
def test_uneven_channels_gain(count: int) -> None:
    model, changed, passes = prepared(3.0, count)
    assert list(passes) == list(PASSES)
    done = passes["equalize_channels"]
    assert done.status == "changed"
    assert done.gain_db is not None
    assert done.gain_db > 6
    feeds = batches(5)[-1]
    assert snr_db(outputs(model, feeds), outputs(changed, feeds)) > 90
    # By the end all channels have about as much to say.
    spread = np.abs(changed.graph.initializers["w1"].const_value.numpy()).max(axis=(1, 2, 3))  # type: ignore[union-attr]
    before = np.abs(model.graph.initializers["w1"].const_value.numpy()).max(axis=(1, 2, 3))  # type: ignore[union-attr]
    assert spread.max() / spread.min() < 0.1 * before.max() / before.min()


def test_what_gains_nothing_is_left_out_and_says_so() -> None:
    model = ir.from_proto(digits_model())  # trained: what its channels differ by is of use
    data = [{"image": rows(CALIBRATION, start, start + 16)["image"]} for start in range(0, 64, 16)]
    changed, facts = equalize(model, data, {"data0": data[0]}, strict=True)
    passes = {one.name: one for one in facts.passes}
    assert {one.status for one in passes.values()} <= {"dropped", "unchanged"}
    dropped = [one for one in passes.values() if one.status == "dropped"]
    assert dropped
    for one in dropped:
        assert one.gain_db is not None
        assert one.gain_db < WORTH_DB
        assert one.reason == f"int8 measures no better with it ({one.gain_db:+.1f} dB)"
        assert (one.nodes_after, one.bytes_after) == (one.nodes_before, one.bytes_before)
    for before, after in zip(weights(model), weights(changed), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_model_with_nothing_to_equalize_is_as_it_was() -> None:
    text = '<ir_version: 10, opset_import: ["" : 23]> net (float[N,4] x) => (float[N,4] y) { y = Relu(x) }'
    model = ir.from_proto(onnx.parser.parse_model(text))
    feeds = {"x": np.ones((2, 4), "f")}
    changed, facts = equalize(model, [feeds], {"data0": feeds}, strict=True)
    assert [one.status for one in facts.passes] == ["unchanged"] * len(PASSES)
    assert all(one.gain_db is None for one in facts.passes)
    assert [node.op_type for node in changed.graph] == ["Relu"]

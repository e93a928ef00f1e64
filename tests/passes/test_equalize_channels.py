from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from pass_testing import feeds_for, outputs, parse, run_pass

from retarget.compare import snr_db
from retarget.passes.equalize_channels import DEAD, EqualizeChannels

if TYPE_CHECKING:
    from pathlib import Path

    from retarget.protocols import Array

RNG = np.random.default_rng(0)


def weight(*shape: int) -> NDArray[np.float32]:
    return RNG.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)


def wild(channels: int, span: float = 3.0) -> NDArray[np.float32]:
    return np.exp(RNG.uniform(-span, span, channels)).astype(np.float32)


def peaks(model: ir.Model, name: str, axis: int) -> NDArray[np.float64]:
    """Largest magnitude of an initializer for each entry of ``axis``."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    array = np.abs(tensor.numpy().astype(float))
    found: NDArray[np.float64] = array.max(axis=tuple(other for other in range(array.ndim) if other != axis))
    return found


PAIR = """
g (float[N,3,8,8] x) => (float[N,5,8,8] z) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  r = Relu(a)
  z = Conv <pads = [1, 1, 1, 1]> (r, w2)
}
"""


def test_pair_before_and_after() -> None:
    factor = wild(6)
    w1, b1, w2 = weight(6, 3, 3, 3), weight(6), weight(5, 6, 3, 3)
    constants = {
        "w1": w1 * factor[:, None, None, None],
        "b1": b1 * factor,
        "w2": w2 / factor[:, None, None],
    }
    one = EqualizeChannels()
    ran = run_pass(one, PAIR, constants)
    assert ran.ops == ["Conv", "Relu", "Conv"]
    assert 0 < ran.error < 1e-5
    made, read = peaks(ran.model, "w1", 0), peaks(ran.model, "w2", 1)
    np.testing.assert_allclose(made / read, np.full(6, np.median(made / read)), rtol=1e-3)

    # Nagel et al., eq. 11, but for a factor that is common to all channels.
    before, after = np.abs(w1 * factor[:, None, None, None]).max((1, 2, 3)), np.abs(constants["w2"]).max((0, 2, 3))
    expected = np.sqrt(after / before)
    found = peaks(ran.model, "w1", 0) / before
    np.testing.assert_allclose(found / np.median(found), expected / np.median(expected), rtol=1e-3)


HOMOGENEOUS = {
    "LeakyRelu": "r = LeakyRelu <alpha = 0.2> (a)",
    "PRelu": "r = PRelu(a, slope)",
    "Clip as Relu": "r = Clip(a, zero)",
    "MaxPool": "r = MaxPool <kernel_shape = [2, 2]> (a)",
    "AveragePool": "q = Relu(a) r = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (q)",
    "Pad": "r = Pad(a, pads)",
    "Pad reflect": 'r = Pad <mode = "reflect"> (a, pads)',
    "Resize": 'r = Resize <mode = "linear"> (a, , twice)',
    "Add of a constant": "q = Add(a, t) r = Relu(q)",
    "Sub of a number": "q = Sub(half, a) r = Relu(q)",
    "Mul by a constant": "q = Mul(a, t) r = Relu(q)",
    "Concat": "q = Relu(a) r = Concat <axis = 2> (a, q)",
    "Slice": "r = Slice(a, start, end, axes)",
    "transposed twice": "p = Transpose <perm = [0, 2, 3, 1]> (a) q = Relu(p) r = Transpose <perm = [0, 3, 1, 2]> (q)",
    "residual": "q = Relu(a) p = Conv(q, w3) s = Add(q, p) r = Relu(s)",
    "two readers": "q = Relu(a) p = Conv(q, w3) s = Relu(p) r = Add(q, s)",
    "depthwise": "q = Relu(a) p = Conv <group = 6> (q, w4) r = Relu(p)",
    "depthwise with a multiplier": "q = Relu(a) p = Conv <group = 6> (q, w5) s = Relu(p) r = Conv(s, w6)",
    "grouped": "q = Relu(a) p = Conv <group = 2> (q, w7) r = Relu(p)",
    "ConvTranspose": "q = Relu(a) p = ConvTranspose(q, w3) r = Relu(p)",
    "grouped ConvTranspose": "q = Relu(a) p = ConvTranspose <group = 2> (q, w7) r = Relu(p)",
}
SMALL: Mapping[str, Array] = {
    "slope": np.linspace(-0.3, 0.4, 6, dtype="f").reshape(6, 1, 1),
    "zero": np.array(0, "f"),
    "half": np.array(0.5, "f"),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "twice": np.array([1, 1, 2, 2], "f"),
    "t": np.linspace(-0.5, 0.7, 6, dtype="f").reshape(1, 6, 1, 1),
    "start": np.array([1]),
    "end": np.array([7]),
    "axes": np.array([2]),
    "w3": RNG.normal(0, 0.4, (6, 6, 1, 1)).astype("f"),
    "w4": RNG.normal(0, 1, (6, 1, 1, 1)).astype("f"),
    "w5": RNG.normal(0, 1, (12, 1, 1, 1)).astype("f"),
    "w6": RNG.normal(0, 0.3, (6, 12, 1, 1)).astype("f"),
    "w7": RNG.normal(0, 0.6, (6, 3, 1, 1)).astype("f"),
}


@pytest.mark.parametrize("body", HOMOGENEOUS.values(), ids=HOMOGENEOUS)
def test_what_commutes_with_a_factor(body: str) -> None:
    text = f"""
    g (float[N,3,8,8] x) => (float[N,C,H,W] z) {{
      a = Conv(x, w1, b1)
      {body}
      z = Conv(r, w2)
    }}
    """
    used = {name: array for name, array in SMALL.items() if f" {name}" in body or f"({name}" in body}
    factor = wild(6)
    constants = {
        "w1": weight(6, 3, 1, 1) * factor[:, None, None, None],
        "b1": weight(6) * factor,
        "w2": weight(5, 6, 1, 1) / factor[:, None, None],
    }
    one = EqualizeChannels()
    model = parse(text, constants | used)
    feeds = feeds_for(model, {"N": 2})
    (before,) = outputs(model, feeds)
    assert one(model).modified
    assert not one.refused
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (after,) = outputs(model, feeds)
    assert 100 < snr_db(before, after) < 300
    before_spread, after_spread = spread(constants["w1"], 0), spread(array_of(model, "w1"), 0)
    assert after_spread < before_spread / 2
    assert not one(model).modified


def array_of(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def spread(array: Array, axis: int) -> float:
    """How far apart the largest weights of the channels are."""
    most = np.abs(array.astype(float)).max(axis=tuple(other for other in range(array.ndim) if other != axis))
    return float(most.max() / most.min())


def test_flatten_and_gemm() -> None:
    text = """
    g (float[N,3,4,4] x) => (float[N,5] z) {
      a = Conv(x, w1, b1)
      r = Relu(a)
      p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
      f = Flatten(p)
      h = Gemm <transB = 1> (f, w2, b2)
      s = Relu(h)
      z = Gemm(s, w3)
    }
    """
    factor, inner = wild(6), wild(7)
    constants = {
        "w1": weight(6, 3, 1, 1) * factor[:, None, None, None],
        "b1": weight(6) * factor,
        "w2": weight(7, 24) / np.repeat(factor, 4) * inner[:, None],
        "b2": np.array(0.3, "f"),
        "w3": weight(7, 5) / inner[:, None],
    }
    ran = run_pass(EqualizeChannels(), text, constants)
    assert ran.modified
    assert ran.error < 1e-5
    assert array_of(ran.model, "b2").shape == (7,), "one number for each channel now"
    rows = peaks(ran.model, "w2", 1).reshape(6, 4).max(axis=1)
    ratio = peaks(ran.model, "w1", 0) / rows
    np.testing.assert_allclose(ratio, np.full(6, np.median(ratio)), rtol=1e-3)


def test_matmul_and_bias_of_any_rank() -> None:
    text = """
    g (float[N,5,4] x) => (float[N,5,3] z) {
      m = MatMul(x, w1)
      a = Add(b1, m)
      r = Relu(a)
      z = MatMul(r, w2)
    }
    """
    factor = wild(8)
    constants = {"w1": weight(4, 8) * factor, "b1": weight(8) * factor, "w2": weight(8, 3) / factor[:, None]}
    ran = run_pass(EqualizeChannels(), text, constants)
    assert ran.modified
    assert ran.error < 1e-5
    assert spread(array_of(ran.model, "w1"), 1) < spread(constants["w1"], 1) / 2


def test_dead_channels_stay_finite_and_do_not_take_the_range() -> None:
    w1, b1, w2 = weight(6, 3, 3, 3), np.full(6, 0.5, "f"), weight(5, 6, 3, 3)
    w1[0] = 0
    w2[:, 1] = 0
    w1[2] *= 1e-8
    ran = run_pass(EqualizeChannels(), PAIR, {"w1": w1, "b1": b1, "w2": w2})
    assert ran.error < 1e-5
    for name in ("w1", "b1", "w2"):
        assert np.isfinite(array_of(ran.model, name)).all()
    assert np.abs(array_of(ran.model, "b1")).max() <= 0.5 * 1.0001
    np.testing.assert_array_equal(array_of(ran.model, "w1")[0], 0)


def test_factors_are_bounded() -> None:
    w1, w2 = weight(6, 3, 3, 3), weight(5, 6, 3, 3)
    w1[2] *= 1e-20
    w1[3] *= 1e-5
    constants = {"w1": w1, "w2": w2}
    ran = run_pass(EqualizeChannels(), PAIR.replace(", b1)", ")"), constants)
    assert ran.modified
    factor = peaks(ran.model, "w1", 0) / np.abs(w1.astype(float)).max(axis=(1, 2, 3))
    assert factor[3] > 100
    assert factor[2] == pytest.approx(1)
    assert factor.max() < 1 / DEAD


@pytest.mark.parametrize(
    ("reason", "body", "extra"),
    [
        ("Sigmoid '' does not commute", "r = Sigmoid(a)", ""),
        ("Clip '' does not commute", "r = Clip(a, zero, half)", ""),
        ("Softmax '' does not commute", "r = Relu(a) q = Softmax(a)", ""),
        ("Mul '' does not commute", "r = Mul(a, a)", ""),
        ("Add '' does not commute", "r = Add(a, y)", ", float[N,6,8,8] y"),
        ("Max '' does not commute", "r = Max(a, half)", ""),
        ("ReduceMean '' does not commute", "r = ReduceMean(a, channel)", ""),
        ("Pad '' does not commute", "r = Pad(a, pads, half)", ""),
        ("Reshape '' does not commute", "q = Reshape(a, mixed) r = Reshape(q, back)", ""),
        ("read elsewhere too", "q = Relu(a) r = Conv(q, w2)", ""),
    ],
)
def test_refused(reason: str, body: str, extra: str) -> None:
    text = f"""
    g (float[N,3,8,8] x{extra}) => (float[N,C,H,W] z) {{
      a = Conv(x, w1)
      {body}
      z = Conv(r, w2)
    }}
    """
    more = {
        "zero": np.array(0, "f"),
        "half": np.array(0.5, "f"),
        "channel": np.array([1]),
        "pads": SMALL["pads"],
        "mixed": np.array([0, 12, 4, 8]),
        "back": np.array([0, 6, 8, 8]),
    }
    used = {name: array for name, array in more.items() if f" {name}" in body}
    columns = 1 if "Reduce" in body else 6
    constants = {"w1": weight(6, 3, 1, 1) * wild(6)[:, None, None, None], "w2": weight(6, columns, 1, 1)}
    one = EqualizeChannels()
    ran = run_pass(one, text, constants | used)
    assert not ran.modified
    assert any(reason in why for _, why in one.refused) or not one.refused


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("'r' is a graph output", ("z) {", "z, float[N,6,8,8] r) {")),
        ("has no constant float weight", ("(float[N,3,8,8] x)", "(float[N,3,8,8] x, float[5,6,3,3] w2)")),
        ("has no constant float weight", ("(float[N,3,8,8] x)", "(float[N,3,8,8] x, float[6,3,3,3] w1)")),
    ],
)
def test_values_that_cannot_change(reason: str, change: tuple[str, str]) -> None:
    text = PAIR.replace(*change)
    constants = {"w1": weight(6, 3, 3, 3) * wild(6)[:, None, None, None], "b1": weight(6), "w2": weight(5, 6, 3, 3)}
    given = {name: array for name, array in constants.items() if f"] {name})" not in text}
    model = parse(text, given)
    one = EqualizeChannels()
    assert not one(model).modified
    assert all(reason in why for _, why in one.refused)


def test_value_that_a_subgraph_reads() -> None:
    text = """
    g (float[N,3,8,8] x, bool c) => (float[N,5,8,8] z, float[M,K,L,O] e) {
      a = Conv(x, w1)
      r = Relu(a)
      z = Conv(r, w2)
      e = If (c) <
        then_branch = yes () => (float[M,K,L,O] y) { y = Exp(r) },
        else_branch = no () => (float[M,K,L,O] n) { n = Neg(r) }
      >
    }
    """
    constants = {"w1": weight(6, 3, 1, 1) * wild(6)[:, None, None, None], "w2": weight(5, 6, 1, 1)}
    one = EqualizeChannels()
    assert not run_pass(one, text, constants).modified
    assert one.refused == [("r", "'r' is read in a subgraph")]


# ---- what it is for


def unbalanced(model: ir.Model, span: float, seed: int = 0) -> ir.Model:
    """``model`` computing the same with the channels between one Conv and the next rescaled by e^±``span``."""
    proto = ir.to_proto(model)
    rng = np.random.default_rng(seed)
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def change(name: str, factor: NDArray[np.float64]) -> None:
        array = onnx.numpy_helper.to_array(held[name]) * factor
        held[name].CopyFrom(onnx.numpy_helper.from_array(array.astype("f"), name))

    pairs = 0
    for node in proto.graph.node:
        if node.op_type != "Conv":
            continue
        (reader,) = readers[node.output[0]]
        while reader.op_type in ("Relu", "MaxPool"):
            (reader,) = readers[reader.output[0]]
        if reader.op_type == "Conv":
            channels = held[node.input[1]].dims[0]
            factor = np.exp(rng.uniform(-span, span, channels))
            change(node.input[1], factor[:, None, None, None])
            change(node.input[2], factor)
            change(reader.input[1], 1 / factor[:, None, None])
            pairs += 1
    assert pairs
    return ir.from_proto(proto)


@cache
def digits() -> tuple[ir.Model, Array, Array]:
    """A small CNN trained on sklearn's digits, images and labels that it has not seen: 98.5 % are right."""
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.nn import functional

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = (data.images[order, None] / 16).astype("f"), data.target[order]
    threads = torch.get_num_threads()
    # Threads that wait for each other over such small tensors take several times as long on a busy machine.
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
        )
        optimizer = torch.optim.Adam(net.parameters())
        for epoch in range(8):
            optimizer.param_groups[0]["lr"] = 4e-3 * (1 - epoch / 8)
            for rows in torch.randperm(1200).reshape(-1, 50):
                optimizer.zero_grad()
                loss = functional.cross_entropy(net(torch.tensor(images)[rows]), torch.tensor(labels)[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    torch.set_num_threads(threads)
    text = """
    g (float[N,1,8,8] x) => (float[N,10] y) {
      a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
      b = Relu(a)
      c = Conv <pads = [1, 1, 1, 1]> (b, w2, b2)
      d = Relu(c)
      p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)
      e = Conv <pads = [1, 1, 1, 1]> (p, w5, b5)
      q = Relu(e)
      f = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (q)
      h = Flatten(f)
      y = Gemm <transB = 1> (h, w9, b9)
    }
    """
    state = net.state_dict()
    constants = {f"{kind[0]}{at}": state[f"{at}.{kind}"].numpy() for at in (0, 2, 5, 9) for kind in ("weight", "bias")}
    return parse(text, constants), images[1200:], labels[1200:]


def accuracy(model: ir.Model, images: Array, labels: Array) -> float:
    (scores,) = outputs(model, {"x": images})
    return float((scores.argmax(axis=1) == labels).mean())


def quantized(model: ir.Model, images: Array, folder: Path, *, per_channel: bool) -> ir.Model:
    """By ONNX Runtime's own quantizer with its default, min-max."""
    from onnxruntime import quantization

    class Rows(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(np.split(images, len(images) // 32))

        def get_next(self) -> dict[str, Array] | None:
            rows = next(self.left, None)
            return None if rows is None else {"x": rows}

    proto = ir.to_proto(model)
    onnx.save(proto, folder / "float.onnx")
    quantization.quantize_static(folder / "float.onnx", folder / "int8.onnx", Rows(), per_channel=per_channel)
    return ir.load(folder / "int8.onnx")


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_unbalanced_digits_come_back(tmp_path: Path, per_channel: bool) -> None:
    model, images, labels = digits()
    hard = unbalanced(model, 3)
    assert accuracy(hard, images, labels) >= 0.98
    calibration = images[:256]
    ruined = accuracy(quantized(hard, calibration, tmp_path, per_channel=per_channel), images, labels)
    assert ruined < 0.96

    before = outputs(hard, {"x": images})[0]
    assert EqualizeChannels()(hard).modified
    assert snr_db(before, outputs(hard, {"x": images})[0]) > 100
    assert accuracy(quantized(hard, calibration, tmp_path, per_channel=per_channel), images, labels) >= 0.98

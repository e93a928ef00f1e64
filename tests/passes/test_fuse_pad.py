from __future__ import annotations

import numpy as np
import pytest
from pass_testing import run_pass

from retarget.passes.fuse_pad import FusePad

W = np.random.default_rng(0).normal(0, 0.2, (3, 2, 3, 3)).astype("f")
PADS = np.array([0, 0, 1, 2, 0, 0, 1, 0])


def conv(attributes: str = "", pad: str = "Pad(x, pads)") -> str:
    body = f"p = {pad} c = Conv {attributes} (p, w)"
    return f"g (float[N,2,8,8] x) => (float y) {{ {body} y = ReduceSum <keepdims = 0> (c) }}"


def pool(op: str, attributes: str) -> str:
    body = f"p = Pad(x, pads, value) c = {op} <kernel_shape = [3, 3]{attributes}> (p)"
    return f"g (float[N,2,8,8] x) => (float y) {{ {body} y = ReduceSum <keepdims = 0> (c) }}"


def test_convolution() -> None:
    ran = run_pass(FusePad(), conv(), {"pads": PADS, "w": W})
    assert ran.ops == ["Conv", "ReduceSum"]
    assert ran.model.graph.node(0).attributes.get_ints("pads") == (1, 2, 1, 0)
    assert ran.error < 1e-4


def test_convolution_that_pads_itself() -> None:
    ran = run_pass(FusePad(), conv("<pads = [1, 1, 1, 1]>"), {"pads": PADS, "w": W})
    assert ran.model.graph.node(0).attributes.get_ints("pads") == (2, 3, 2, 1)
    assert ran.error < 1e-4


def test_axes_and_value() -> None:
    constants = {"pads": np.array([1, 2, 3, 4]), "value": np.zeros((), "f"), "axes": np.array([-1, 2]), "w": W}
    ran = run_pass(FusePad(), conv(pad="Pad(x, pads, value, axes)"), constants)
    assert ran.model.graph.node(0).attributes.get_ints("pads") == (2, 1, 4, 3)
    assert ran.error < 1e-4


@pytest.mark.parametrize("attributes", ["", ", pads = [1, 0, 0, 0], count_include_pad = 1"])
def test_average_pool_counts_the_padding(attributes: str) -> None:
    ran = run_pass(FusePad(), pool("AveragePool", attributes), {"pads": PADS, "value": np.zeros((), "f")})
    assert ran.ops == ["AveragePool", "ReduceSum"]
    assert ran.error < 1e-4


def test_max_pool() -> None:
    constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "value": np.array(-np.inf, "f")}
    ran = run_pass(FusePad(), pool("MaxPool", ""), constants)
    assert ran.ops == ["MaxPool", "ReduceSum"]
    assert ran.error == 0


@pytest.mark.parametrize(
    ("reason", "text", "constants"),
    [
        ("does not pad with a constant", conv(pad='Pad <mode = "reflect"> (x, pads)'), {"pads": PADS, "w": W}),
        ("automatic", conv('<auto_pad = "SAME_UPPER">'), {"pads": PADS, "w": W}),
        ("other axes", conv(), {"pads": np.array([1, 0, 1, 2, 0, 0, 1, 0]), "w": W}),
        ("other axes", conv(), {"pads": -PADS, "w": W}),
        (
            "read elsewhere",
            conv()
            .replace("y = ReduceSum", "k = Relu(p) y = ReduceSum")
            .replace("float y", "float y, float[N,2,10,10] k"),
            {"pads": PADS, "w": W},
        ),
        ("does not pad with 1.0", conv(pad="Pad(x, pads, one)"), {"pads": PADS, "one": np.ones((), "f"), "w": W}),
        ("does not pad with 0.0", pool("MaxPool", ""), {"pads": PADS, "value": np.zeros((), "f")}),
        (
            "one padding counts",
            pool("AveragePool", ", pads = [1, 1, 1, 1]"),
            {"pads": PADS, "value": np.zeros((), "f")},
        ),
        (
            "all of the window",
            pool("AveragePool", ", pads = [1, 0, 0, 0], count_include_pad = 1"),
            {"pads": 2 * PADS, "value": np.zeros((), "f")},
        ),
        ("beyond the padding", pool("AveragePool", ", ceil_mode = 1"), {"pads": PADS, "value": np.zeros((), "f")}),
    ],
)
def test_refused(reason: str, text: str, constants: dict[str, np.ndarray]) -> None:
    one = FusePad()
    assert not run_pass(one, text, constants).modified
    assert reason in one.refused[0][1]


def test_padding_that_is_computed() -> None:
    text = conv().replace("(float[N,2,8,8] x)", "(float[N,2,8,8] x, int64[8] pads)")
    feeds = {"x": np.ones((1, 2, 8, 8), "f"), "pads": PADS}
    assert not run_pass(FusePad(), text, {"w": W}, feeds=feeds).modified

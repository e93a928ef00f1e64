from __future__ import annotations

import numpy as np
import pytest
from pass_testing import run_pass

from retarget.passes.fuse_layer_norm import FuseLayerNorm

RNG = np.random.default_rng(0)
CONSTANTS = {
    "axes": np.array([-1]),
    "first": np.array([1]),
    "both": np.array([1, 2]),
    "two": np.array(2, "f"),
    "eps": np.array(1e-3, "f"),
    "scale": RNG.normal(1, 0.2, 8).astype("f"),
    "bias": RNG.normal(0, 1, 8).astype("f"),
    "table": RNG.normal(1, 0.2, (4, 8)).astype("f"),
    "number": np.array(3, "f"),
}
MEAN = "m = ReduceMean(x, axes) d = Sub(x, m)"
VARIANCE = "p = Mul(d, d) v = ReduceMean(p, axes) e = Add(v, eps) r = Sqrt(e)"
WHOLE = f"{MEAN} {VARIANCE} q = Div(d, r) s = Mul(q, scale) y = Add(s, bias)"


def graph(body: str, outputs: str = "float[N,4,8] y") -> tuple[str, dict[str, np.ndarray]]:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return f"g (float[N,4,8] x) => ({outputs}) {{ {body} }}", {k: v for k, v in CONSTANTS.items() if k in words}


@pytest.mark.parametrize(
    "body",
    [
        WHOLE,
        WHOLE.replace("Mul(d, d)", "Pow(d, two)"),
        WHOLE.replace("q = Div(d, r)", "i = Reciprocal(r) q = Mul(d, i)"),
        WHOLE.replace("q = Div(d, r)", "i = Reciprocal(r) q = Mul(i, d)"),
        WHOLE.replace("Mul(q, scale)", "Mul(scale, q)").replace("Add(s, bias)", "Add(bias, s)"),
        WHOLE.replace("Add(v, eps)", "Add(eps, v)"),
    ],
)
def test_fused(body: str) -> None:
    ran = run_pass(FuseLayerNorm(), *graph(body))
    assert ran.ops == ["LayerNormalization"]
    node = ran.model.graph.node(0)
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-3)
    assert node.attributes.get_int("axis") == -1
    assert ran.error < 1e-5


def test_without_scale_and_bias() -> None:
    ran = run_pass(FuseLayerNorm(), *graph(f"{MEAN} {VARIANCE} y = Div(d, r)"))
    assert ran.ops == ["LayerNormalization"]
    assert ran.error < 1e-5


def test_several_axes() -> None:
    body = WHOLE.replace("axes", "both").replace("scale", "table").replace("bias", "table")
    ran = run_pass(FuseLayerNorm(), *graph(body))
    assert ran.ops == ["LayerNormalization"]
    assert ran.model.graph.node(0).attributes.get_int("axis") == -2
    assert ran.error < 1e-5


def test_scale_over_other_axes_stays_outside() -> None:
    ran = run_pass(FuseLayerNorm(), *graph(WHOLE.replace("scale", "number").replace("bias", "table")))
    assert ran.ops == ["LayerNormalization", "Mul", "Add"]
    assert ran.error < 1e-5


def test_axes_that_are_not_last() -> None:
    one = FuseLayerNorm()
    assert not run_pass(one, *graph(WHOLE.replace("axes", "first"))).modified
    assert one.refused[0][1] == "the axes are not the last ones"


@pytest.mark.parametrize(
    "body",
    [
        WHOLE.replace("p, axes", "p, first"),
        WHOLE.replace("Mul(d, d)", "Mul(d, x)"),
        WHOLE.replace("Sub(x, m)", "Sub(m, x)"),
        WHOLE.replace("Div(d, r)", "Div(x, r)"),
        WHOLE.replace("Div(d, r)", "Div(r, d)"),
        WHOLE.replace("Pow", "Mul").replace("Sqrt(e)", "Exp(e)"),
    ],
)
def test_other_formulas(body: str) -> None:
    assert not run_pass(FuseLayerNorm(), *graph(body)).modified


@pytest.mark.parametrize("inside", ["d", "v", "e", "r", "p"])
def test_values_inside_that_are_outputs(inside: str) -> None:
    shape = "float[N,4,8]" if inside in "dp" else "float[N,4,1]"
    assert not run_pass(FuseLayerNorm(), *graph(WHOLE, f"float[N,4,8] y, {shape} {inside}")).modified


def test_deviation_that_others_read() -> None:
    assert not run_pass(FuseLayerNorm(), *graph(f"{WHOLE} z = Relu(d)", "float[N,4,8] y, float[N,4,8] z")).modified


def test_normalized_axis_of_unknown_size() -> None:
    body, constants = graph(f"{MEAN} {VARIANCE} y = Div(d, r)")
    one = FuseLayerNorm()
    ran = run_pass(one, body.replace("4,8", "4,S"), constants, sizes=({"N": 2, "S": 8},))
    assert not ran.modified
    assert one.refused[0][1] == "the normalized axes have no fixed size"

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
from pass_testing import run_pass

from retarget.passes.fuse_conv_bn import FuseConvBn

if TYPE_CHECKING:
    from retarget.protocols import Array

RNG = np.random.default_rng(0)


def norm(channels: int) -> dict[str, Array]:
    return {
        "scale": RNG.uniform(0.5, 2, channels).astype("f"),
        "bias": RNG.standard_normal(channels).astype("f"),
        "mean": RNG.standard_normal(channels).astype("f"),
        "var": RNG.uniform(0.5, 2, channels).astype("f"),
    }


def weight(*shape: int) -> Array:
    return RNG.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype("f")


CONV_BN = """
g (float[N,4,8,8] x) => (float[N,6,6,6] z) {
  y = Conv(x, w, b)
  z = BatchNormalization <epsilon = 0.001> (y, scale, bias, mean, var)
}
"""


def test_conv_with_bias() -> None:
    ran = run_pass(FuseConvBn(), CONV_BN, {"w": weight(6, 4, 3, 3), "b": weight(6), **norm(6)})
    assert ran.ops == ["Conv"]
    assert 0 < ran.error < 1e-5
    assert len(ran.model.graph.initializers) == 2, "the vectors of the normalization are gone"


def test_conv_without_bias() -> None:
    ran = run_pass(FuseConvBn(), CONV_BN.replace(", b)", ")"), {"w": weight(6, 4, 3, 3), **norm(6)})
    assert ran.ops == ["Conv"]
    assert ran.error < 1e-5


def test_attributes_and_name_of_the_convolution_stay() -> None:
    text = """
    g (float[N,4,8,8] x) => (float[N,6,4,4] z) {
      y = Conv <group = 2, strides = [2, 2], pads = [1, 1, 1, 1]> (x, w)
      z = BatchNormalization(y, scale, bias, mean, var)
    }
    """
    ran = run_pass(FuseConvBn(), text, {"w": weight(6, 2, 3, 3), **norm(6)})
    (conv,) = ran.model.graph
    assert conv.attributes.get_ints("strides") == (2, 2)
    assert conv.attributes.get_int("group") == 2
    assert ran.error < 1e-5


@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(group: int) -> None:
    text = f"""
    g (float[N,4,5,5] x) => (float[N,6,7,7] z) {{
      y = ConvTranspose <group = {group}> (x, w, b)
      z = BatchNormalization(y, scale, bias, mean, var)
    }}
    """
    ran = run_pass(FuseConvBn(), text, {"w": weight(4, 6 // group, 3, 3), "b": weight(6), **norm(6)})
    assert ran.ops == ["ConvTranspose"]
    assert ran.error < 1e-5


def test_multiplication_and_addition_by_channel() -> None:
    text = """
    g (float[N,4,8,8] x) => (float[N,6,8,8] z) {
      y = Conv(x, w)
      a = Mul(s, y)
      c = Add(a, t)
      d = Div(c, s)
      z = Sub(d, u)
    }
    """
    constants = {
        "w": weight(6, 4, 1, 1),
        "s": RNG.uniform(0.5, 2, (6, 1, 1)).astype("f"),
        "t": RNG.standard_normal((1, 6, 1, 1)).astype("f"),
        "u": np.array(0.25, "f"),
    }
    ran = run_pass(FuseConvBn(), text, constants)
    assert ran.ops == ["Conv"]
    assert ran.error < 1e-5


def test_large_weights_stay_unread() -> None:
    text = CONV_BN.replace("float[N,4,8,8]", "float[N,64,8,8]").replace("float[N,6,6,6]", "float[N,128,6,6]")
    ran = run_pass(FuseConvBn(), text, {"w": weight(128, 64, 3, 3), "b": weight(128), **norm(128)})
    (conv,) = ran.model.graph
    assert conv.inputs[1] is not None
    assert isinstance(conv.inputs[1].const_value, ir.LazyTensor)
    assert ran.error < 1e-5


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("read elsewhere", ("z = Batch", "k = Relu(y)\n  z = Batch")),
        ("read elsewhere", ("=> (float[N,6,6,6] z)", "=> (float[N,6,6,6] z, float[N,6,6,6] y)")),
        ("weight is not constant", ("(float[N,4,8,8] x)", "(float[N,4,8,8] x, float[6,4,3,3] w)")),
        ("variance is not constant", ("(float[N,4,8,8] x)", "(float[N,4,8,8] x, float[6] var)")),
        ("bias is not constant", ("(float[N,4,8,8] x)", "(float[N,4,8,8] x, float[6] b)")),
    ],
)
def test_refused(reason: str, change: tuple[str, str]) -> None:
    text = CONV_BN.replace(*change)
    if "k = " in text:
        text = text.replace("z) {", "z, float[N,6,6,6] k) {")
    constants = {"w": weight(6, 4, 3, 3), "b": weight(6), **norm(6)}
    fed = text[: text.index("=>")]
    one = FuseConvBn()
    ran = run_pass(one, text, {name: array for name, array in constants.items() if f" {name}" not in fed})
    assert not ran.modified
    assert [reason in why for _, why in one.refused] == [True]


def test_running_statistics_that_are_read() -> None:
    text = """
    g (float[N,4,8,8] x) => (float[N,6,6,6] z, float[6] m, float[6] v) {
      y = Conv(x, w)
      z, m, v = BatchNormalization <training_mode = 1> (y, scale, bias, mean, var)
    }
    """
    one = FuseConvBn()
    assert not run_pass(one, text, {"w": weight(6, 4, 3, 3), **norm(6)}).modified
    assert one.refused[0][1] == "BatchNormalization in training mode"


@pytest.mark.parametrize("shape", [(6,), (6, 6), (1, 1, 6, 1), (2, 6, 1, 1)])
def test_constant_along_another_axis(shape: tuple[int, ...]) -> None:
    text = "g (float[2,4,8,8] x) => (float[2,6,6,6] z) { y = Conv(x, w)\n z = Mul(y, s) }"
    ran = run_pass(FuseConvBn(), text, {"w": weight(6, 4, 3, 3), "s": weight(*shape)})
    assert not ran.modified


def test_constant_divided_by_a_convolution() -> None:
    text = "g (float[N,4,8,8] x) => (float[N,6,6,6] z) { y = Conv(x, w)\n a = Div(s, y)\n z = Sub(s, a) }"
    ran = run_pass(FuseConvBn(), text, {"w": weight(6, 4, 3, 3), "s": np.array(2, "f")})
    assert not ran.modified


def test_affine_can_be_left_alone() -> None:
    text = "g (float[N,4,8,8] x) => (float[N,6,6,6] z) { y = Conv(x, w)\n z = Mul(y, s) }"
    constants = {"w": weight(6, 4, 3, 3), "s": np.array(2, "f")}
    assert run_pass(FuseConvBn(), text, constants).ops == ["Conv"]
    assert not run_pass(FuseConvBn(affine=False), text, constants).modified

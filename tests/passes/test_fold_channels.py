from __future__ import annotations

import numpy as np
import pytest
from pass_testing import run_pass

from retarget.passes.fold_channels import FoldChannels

RNG = np.random.default_rng(0)
CONSTANTS = {
    "w": RNG.standard_normal((6, 4, 3, 3)).astype("f"),
    "grouped": RNG.standard_normal((6, 2, 3, 3)).astype("f"),
    "depthwise": RNG.standard_normal((4, 1, 3, 3)).astype("f"),
    "b": RNG.standard_normal(6).astype("f"),
    "channel": RNG.uniform(0.5, 2, (1, 4, 1, 1)).astype("f"),
    "short": RNG.uniform(0.5, 2, (4, 1, 1)).astype("f"),
    "last": RNG.standard_normal((1, 1, 1, 4)).astype("f"),
    "vector": RNG.uniform(0.5, 2, 4).astype("f"),
    "number": np.array(0.3, "f"),
    "zeros": np.array([1, 0, 1, 1], "f").reshape(4, 1, 1),
    "spatial": RNG.standard_normal((1, 1, 8, 7)).astype("f"),
    "swapped": np.array([3, 2, 1, 0]),
    "turned": np.array([2, 0, 3, 1]),
    "some": np.array([0, 0, 1, 2]),
}
NCHW = "Transpose <perm = [0, 3, 1, 2]>"
PADS = "pads = [1, 1, 1, 1]"


def model(body: str, out: str = "float[N,6,H,W] y") -> tuple[str, dict[str, np.ndarray]]:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return f"g (float[N,4,8,7] x) => ({out}) {{ {body} }}", {k: v for k, v in CONSTANTS.items() if k in words}


@pytest.mark.parametrize(
    "body",
    [
        f"a = Mul(x, channel) y = Conv <{PADS}> (a, w, b)",
        f"a = Mul(short, x) y = Conv <{PADS}> (a, w)",
        f"a = Div(x, channel) y = Conv <{PADS}> (a, w)",
        "a = Mul(x, number) y = Conv <auto_pad = 'SAME_UPPER'> (a, w, b)".replace("'", '"'),
        f"a = Mul(x, channel) y = Conv <group = 2, {PADS}> (a, grouped, b)",
        f"a = Gather <axis = 1> (x, swapped) y = Conv <{PADS}> (a, w, b)",
        f"a = Gather <axis = 1> (x, turned) y = Conv <{PADS}, strides = [2, 2]> (a, w)",
        "a = Add(x, channel) y = Conv(a, w)",
        "a = Sub(x, channel) y = Conv(a, w, b)",
        "a = Sub(x, number) y = Conv <dilations = [2, 2]> (a, w, b)",
        "a = Add(channel, x) y = Conv <group = 2> (a, grouped, b)",
        "s = Sub(x, channel) g = Gather <axis = 1> (s, turned) m = Mul(g, short) y = Conv(m, w, b)",
    ],
)
def test_folds_all(body: str) -> None:
    ran = run_pass(FoldChannels(), *model(body))
    assert ran.ops == ["Conv"]
    assert ran.error < 1e-4


def test_through_a_transpose() -> None:
    body = f"s = Sub(x, last) g = Gather <axis = -1> (s, turned) m = Mul(g, vector) a = {NCHW} (m) y = Conv(a, w, b)"
    text, constants = model(body)
    ran = run_pass(FoldChannels(), text.replace("[N,4,8,7] x", "[N,8,7,4] x"), constants)
    assert ran.ops == ["Transpose", "Conv"]
    assert ran.error < 1e-4


def test_channels_are_those_behind_the_transpose() -> None:
    """A constant along the height is not one of each channel."""
    body = f"m = Mul(x, short) a = {NCHW} (m) y = Conv(a, w, b)"
    text, constants = model(body)
    assert not run_pass(FoldChannels(), text.replace("[N,4,8,7] x", "[N,4,7,4] x"), constants).modified


def test_depthwise() -> None:
    body = f"a = Mul(x, channel) y = Conv <group = 4, {PADS}> (a, depthwise)"
    ran = run_pass(FoldChannels(), *model(body, "float[N,4,8,7] y"))
    assert ran.ops == ["Conv"]
    assert ran.error < 1e-5


def test_shift_stays_where_zeros_are_padded_and_all_else_goes() -> None:
    body = f"s = Sub(x, channel) g = Gather <axis = 1> (s, swapped) m = Mul(g, short) y = Conv <{PADS}> (m, w, b)"
    ran = run_pass(FoldChannels(), *model(body))
    assert ran.ops == ["Sub", "Conv"]
    assert ran.error < 1e-4


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"a = Add(x, channel) y = Conv <{PADS}> (a, w)", "pads with zeros"),
        ("a = Gather <axis = 1> (x, some) y = Conv(a, w)", "some of the channels"),
        (f"a = Gather <axis = 1> (x, swapped) y = Conv <group = 2, {PADS}> (a, grouped)", "groups"),
        ("a = Div(x, zeros) y = Conv(a, w)", "division by zero"),
        ("a = Add(x, channel) y = Conv <pads = [0, 0, 0, 1]> (a, w)", "pads with zeros"),
    ],
)
def test_refuses(body: str, reason: str) -> None:
    fold = FoldChannels()
    assert not run_pass(fold, *model(body)).modified
    assert any(reason in text for _, text in fold.refused)


@pytest.mark.parametrize(
    "body",
    [
        "a = Mul(x, spatial) y = Conv(a, w)",
        "a = Div(channel, x) y = Conv(a, w)",
        "a = Sub(number, x) y = Conv(a, w)",
        "a = Mul(x, x) y = Conv(a, w)",
    ],
)
def test_leaves_alone_what_is_not_of_each_channel(body: str) -> None:
    assert not run_pass(FoldChannels(), *model(body)).modified


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (f"a = Gather <axis = 1> (x, swapped) y = Conv <{PADS}> (a, w)", "N,5,8,7"),
        ("a = Mul(x, channel) y = Conv(a, w)", "N,1,8,7"),
        ("a = Sub(x, short) y = Conv(a, w)", "N,1,8,7"),
        ("a = Mul(x, channel) y = Conv(a, w)", "4,8,7"),
        (f"a = Gather <axis = 3> (x, swapped) t = {NCHW} (a) y = Conv(t, w)", "N,8,7,6"),
    ],
)
def test_leaves_alone_what_has_other_channels_in_front(body: str, shape: str) -> None:
    """Colours of pixels that have transparency too, and gray that becomes colours."""
    text, constants = model(body)
    fold = FoldChannels()
    assert not run_pass(fold, text.replace("N,4,8,7", shape), constants).modified
    assert any("other channels" in reason for _, reason in fold.refused)


def test_read_elsewhere_too() -> None:
    body = "a = Mul(x, channel) y = Conv(a, w) z = Relu(a)"
    fold = FoldChannels()
    assert not run_pass(fold, *model(body, "float[N,6,H,W] y, float[N,4,8,7] z")).modified
    assert any("read elsewhere" in text for _, text in fold.refused)

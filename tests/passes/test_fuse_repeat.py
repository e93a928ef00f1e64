from __future__ import annotations

import numpy as np
import pytest
from pass_testing import run_pass

from retarget.passes.fuse_repeat import FuseRepeat

CONSTANTS = {
    "two": np.array([2]),
    "three": np.array([3]),
    "last": np.array([-1]),
    "rows": np.array([1, 1, 1, 2, 1]),
    "cols": np.array([1, 1, 1, 1, 3]),
    "first": np.array([1, 1, 2, 1, 1]),
    "both": np.array([1, 2, 1, 2, 1]),
    "taller": np.array([-1, 5, 8, 6]),
    "wider": np.array([-1, 5, 4, 18]),
    "channels_last": np.array([-1, 8, 6, 5]),
    "wide_last": np.array([-1, 8, 18, 5]),
    "other": np.array([-1, 5, 6, 8]),
    "larger": np.array([-1, 8, 6, 10]),
}


def model(body: str, out: str) -> tuple[str, dict[str, np.ndarray]]:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return f"g (float[N,5,4,6] x) => ({out}) {{ {body} }}", {k: v for k, v in CONSTANTS.items() if k in words}


TALLER = "u = Unsqueeze(x, three) t = Tile(u, rows) "


@pytest.mark.parametrize(
    ("body", "out"),
    [
        (TALLER + "y = Reshape(t, taller)", "float[N,5,8,6] y"),
        ("u = Unsqueeze(x, last) t = Tile(u, cols) y = Reshape(t, wider)", "float[N,5,4,18] y"),
    ],
)
def test_one_axis(body: str, out: str) -> None:
    ran = run_pass(FuseRepeat(), *model(body, out))
    assert ran.ops == ["Resize"]
    assert ran.error == 0


def test_transpose_between_goes_behind() -> None:
    body = TALLER + "p = Transpose <perm = [0, 2, 3, 4, 1]> (t) y = Reshape(p, channels_last)"
    ran = run_pass(FuseRepeat(), *model(body, "float[N,8,6,5] y"))
    assert ran.ops == ["Resize", "Transpose"]
    assert ran.error == 0


def test_both_axes_as_tf2onnx_writes_them() -> None:
    body = (
        TALLER + "p = Transpose <perm = [0, 2, 3, 4, 1]> (t) a = Reshape(p, channels_last)"
        " v = Unsqueeze(a, three) w = Tile(v, trice) y = Reshape(w, wide_last)"
    )
    text, constants = model(body, "float[N,8,18,5] y")
    ran = run_pass(FuseRepeat(), text, constants | {"trice": np.array([1, 1, 1, 3, 1])})
    assert ran.ops == ["Resize", "Transpose"]
    assert ran.error == 0


def test_whoever_asks_for_the_shape_is_no_reader() -> None:
    body = (
        TALLER + "p = Transpose <perm = [0, 2, 3, 4, 1]> (t) a = Reshape(p, channels_last) z = Shape(a)"
        " v = Unsqueeze(a, three) w = Tile(v, trice) y = Reshape(w, wide_last)"
    )
    text, constants = model(body, "float[N,8,18,5] y, int64[4] z")
    ran = run_pass(FuseRepeat(), text, constants | {"trice": np.array([1, 1, 1, 3, 1])})
    assert ran.counts["Tile"] == 0
    assert ran.error == 0


@pytest.mark.parametrize(
    ("body", "out"),
    [
        (TALLER + "y = Reshape(t, other)", "float[N,5,6,8] y"),
        ("u = Unsqueeze(x, two) t = Tile(u, both) y = Reshape(t, larger)", "float[N,8,6,10] y"),
        ("u = Unsqueeze(x, three) t = Tile(u, first) y = Reshape(t, taller)", "float[N,5,8,6] y"),
        (TALLER + "y = Reshape(t, taller) z = Relu(t)", "float[N,5,8,6] y, float[N,5,4,2,6] z"),
    ],
)
def test_stays(body: str, out: str) -> None:
    assert not run_pass(FuseRepeat(), *model(body, out)).modified

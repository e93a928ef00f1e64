"""Transforms of signals for ncnn against ONNX Runtime, with the batch as rows and without."""

from __future__ import annotations

import ncnn_written as written
import pytest
import target_testing
from node_models import floats

BATCHES = pytest.mark.parametrize("batch", [1, 3])


@BATCHES
@pytest.mark.parametrize(
    ("source", "result", "attributes", "length", "axis"),
    [
        ("8,1", "8,2", "", 0, -2),
        ("7,2", "7,2", "<inverse = 1>", 0, -2),
        ("7,1", "4,2", "<onesided = 1>", 0, -2),
        ("8,1", "12,2", "", 12, -2),
        ("8,2", "6,2", "", 6, -2),
        ("8,5,2", "8,5,2", "", 0, 1),
        ("8,2", "8,2", "", 0, 0),
        ("5,2", "8,1", "<inverse = 1, onesided = 1>", 0, -2),
        ("5,2", "9,1", "<inverse = 1, onesided = 1>", 9, -2),
    ],
)
def test_dft(batch: int, source: str, result: str, attributes: str, length: int, axis: int) -> None:
    body = f"a = Constant <value = int64 {{{axis}}}> ()"
    body += f" l = Constant <value = int64 {{{length}}}> ()" if length else ""
    body += f" y = DFT {attributes} (x, {'l' if length else ''}, a)"
    model = target_testing.model(f"g (float[{batch},{source}] x) => (float[{batch},{result}] y) {{ {body} }}")
    written.check(model, {"x": floats(batch, *map(int, source.split(",")))})


@BATCHES
@pytest.mark.parametrize("window", ["float[8] k", "float[8] w_k", ""])
@pytest.mark.parametrize(("onesided", "parts"), [(1, 1), (0, 1), (0, 2)])
def test_stft(batch: int, window: str, onesided: int, parts: int) -> None:
    count = 5 if onesided else 8
    operand = window.split()[1] if window else ", l"
    model = target_testing.model(
        f"g (float[{batch},32,{parts}] x{', ' + window if window else ''}) => (float[{batch},9,{count},2] y) {{"
        " s = Constant <value = int64 {3}> () l = Constant <value = int64 {8}> ()"
        f" y = STFT <onesided = {onesided}> (x, s, {operand}) }}"
    )
    feeds = {"x": floats(batch, 32, parts)}
    if window.endswith(" k"):
        feeds["k"] = floats(8)
    written.check(model, feeds)


def test_what_runtimes_do_not_agree_on_is_refused() -> None:
    body = "a = Constant <value = int64 {-2}> () l = Constant <value = int64 {20}> ()"
    body += " y = DFT <inverse = 1, onesided = 1> (x, l, a)"
    model = target_testing.model(f"g (float[1,5,2] x) => (float[1,20,1] y) {{ {body} }}")
    assert "runtimes differ" in written.refused(model)


@BATCHES
def test_a_result_of_another_shape_than_the_model_says_is_refused(batch: str | int) -> None:
    """ONNX's shape inference takes the default of onesided for 0."""
    body = "s = Constant <value = int64 {3}> () l = Constant <value = int64 {8}> () y = STFT (x, s, , l)"
    model = target_testing.model(f"g (float[{batch},32,1] x) => (float[{batch},9,8,2] y) {{ {body} }}")
    assert "the model says that it is" in written.refused(model)

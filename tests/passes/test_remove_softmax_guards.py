from __future__ import annotations

import numpy as np
import pytest
from pass_testing import run_pass

from retarget.passes.remove_softmax_guards import RemoveSoftmaxGuards

LOW = np.finfo("f").min
CONSTANTS = {
    "zero": np.zeros((), "f"),
    "low": np.array(LOW, "f"),
    "inf": np.array(-np.inf, "f"),
    "one": np.ones((), "f"),
    "scale": np.array(0.5, "f"),
    "triangle": np.triu(np.full((4, 4), LOW, "f"), 1),
    "masked": np.triu(np.full((4, 4), -np.inf, "f"), 1),
}
GUARD = "s = Softmax(z) n = IsNaN(s) y = Where(n, zero, s)"
SCORES = "a = MatMul(q, k)"


def graph(body: str) -> tuple[str, dict[str, np.ndarray]]:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    inputs = "float[N,4,8] q, float[N,8,4] k, bool[N,1,4] m, float[N,1,4] f"
    return f"g ({inputs}) => (float[N,4,4] y) {{ {body} }}", {
        name: array for name, array in CONSTANTS.items() if name in words
    }


@pytest.mark.parametrize(
    "scores",
    [
        "z = MatMul(q, k)",
        f"{SCORES} z = Mul(a, scale)",
        f"{SCORES} w = Where(m, zero, low) z = Add(a, w)",
        f"{SCORES} w = Where(m, zero, low) z = Add(w, a)",
        f"{SCORES} z = Where(m, a, low)",
        f"{SCORES} z = Add(a, triangle)",
        f"{SCORES} b = Mul(a, scale) w = Where(m, zero, low) c = Add(b, w) z = Add(c, triangle)",
        f"{SCORES} c = Cast <to = 1> (m) d = Mul(a, scale) z = Add(d, c)",
    ],
)
def test_rows_that_cannot_be_empty(scores: str) -> None:
    ran = run_pass(RemoveSoftmaxGuards(), *graph(f"{scores} {GUARD}"))
    assert ran.counts["IsNaN"] == 0
    assert ran.ops[-1] == "Softmax"
    assert ran.error == 0


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (f"{SCORES} w = Where(m, zero, inf) z = Add(a, w)", "the mask may be -inf for a whole row"),
        (f"{SCORES} z = Where(m, a, inf)", "the mask may be -inf for a whole row"),
        (f"{SCORES} z = Add(a, masked)", "the mask may be -inf for a whole row"),
        (f"{SCORES} z = Add(a, f)", "the mask may be -inf for a whole row"),
        (f"{SCORES} b = Log(a) z = Mul(b, scale)", "the scores are not a product of finite tensors"),
        (f"{SCORES} z = Div(a, f)", "the scores are not a product of finite tensors"),
    ],
)
def test_rows_that_may_be_empty(scores: str, reason: str) -> None:
    one = RemoveSoftmaxGuards()
    assert not run_pass(one, *graph(f"{scores} {GUARD}")).modified
    assert [why for _, why in one.refused if why == reason] == [reason]


def test_the_guard_that_stays_is_needed() -> None:
    text, constants = graph(f"{SCORES} z = Where(m, a, inf) {GUARD}")
    ones = {"q": np.ones((1, 4, 8), "f"), "k": np.ones((1, 8, 4), "f"), "f": np.ones((1, 1, 4), "f")}
    ran = run_pass(RemoveSoftmaxGuards(), text, constants, feeds={**ones, "m": np.zeros((1, 1, 4), bool)})
    assert not ran.modified


def test_promise_that_every_row_sees_something() -> None:
    text, constants = graph(f"{SCORES} z = Add(a, masked) {GUARD}")
    ran = run_pass(RemoveSoftmaxGuards(every_row_sees_something=True), text, constants)
    assert ran.ops == ["MatMul", "Add", "Softmax"]
    assert ran.error == 0


@pytest.mark.parametrize(
    "body",
    [
        "z = MatMul(q, k) s = Softmax(z) n = IsNaN(s) y = Where(n, one, s)",
        "z = MatMul(q, k) s = Softmax(z) n = IsNaN(z) y = Where(n, zero, s)",
        "z = MatMul(q, k) s = Softmax(z) n = IsNaN(s) y = Where(n, s, zero)",
        "z = MatMul(q, k) s = Sigmoid(z) n = IsNaN(s) y = Where(n, zero, s)",
    ],
)
def test_other_nodes(body: str) -> None:
    assert not run_pass(RemoveSoftmaxGuards(), *graph(body)).modified

from __future__ import annotations

import time
from itertools import pairwise

from retarget.bench import FEWEST_ROUNDS, ROUNDS, interleave


def test_calls_take_turns_and_slow_is_slower_than_fast() -> None:
    order: list[str] = []

    def fast() -> None:
        order.append("fast")
        time.sleep(0.001)

    def slow() -> None:
        order.append("slow")
        time.sleep(0.004)

    timings = interleave({"fast": fast, "slow": slow}, 0.2)

    assert timings["slow"].p50 > 2 * timings["fast"].p50
    assert timings["fast"].p50 <= timings["fast"].p90 <= timings["fast"].p99
    assert timings["fast"].calls >= timings["slow"].calls >= ROUNDS == 20
    changes = sum(one != other for one, other in pairwise(order))
    assert 40 <= changes <= 41  # 20 rounds, each with a turn of both, after a warm-up of both


def test_what_takes_long_is_called_less_often() -> None:
    timings = interleave({"slow": lambda: time.sleep(0.001)}, 1e-6)
    assert timings["slow"].calls == FEWEST_ROUNDS
    assert interleave({"fast": lambda: None}, 0.01)["fast"].calls > ROUNDS


def test_a_drift_is_called_unstable() -> None:
    calls = 0

    def slower_and_slower() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.002 * calls)

    assert not interleave({"x": slower_and_slower}, 0.05)["x"].stable


def test_calls_that_take_now_this_long_and_now_that_are_called_unstable() -> None:
    calls = 0

    def now_and_then_slow() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.02 if calls % 4 == 0 else 0.001)

    assert not interleave({"x": now_and_then_slow}, 0.02)["x"].stable

"""Interleaved latency: artifacts take turns, so that drift of the machine falls on all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

WARM_UP_CALLS = 3
MAX_CALLS = 2000
ROUNDS, FEWEST_ROUNDS = 20, 5
LONGEST = 5
"""Times the budget after which no further round begins, once there are ``FEWEST_ROUNDS``."""
STABLE = 0.10
"""Medians of the first and second half of the calls may differ by this share."""
SPREAD = 3
"""How many times as long as the fastest tenth of the calls the slowest may take: beyond that other programs, or threads
that wait for each other while those run, are what was timed."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call. ``stable``: the medians of both halves of the calls agree within ``STABLE``, and the fastest
    and the slowest tenth within ``SPREAD``."""

    p50: float
    p90: float
    p99: float
    calls: int
    stable: bool


@dataclass
class _Turn:
    call: Callable[[], object]
    rounds: int = 1
    seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        for _ in range(self.rounds):
            begin = time.perf_counter()
            self.call()
            self.seconds.append(time.perf_counter() - begin)


def interleave(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
    """Time each of ``calls`` for about ``seconds``, round-robin, after a warm-up.

    Each turn makes as many calls as fit a twentieth of the budget, at least one, so that caches are warm within a turn
    and a slow artifact does not starve a fast one of calls. Where one call takes more than that, or other programs take
    the processors, there are fewer rounds.
    """
    turns = {name: _Turn(call) for name, call in calls.items()}
    for turn in turns.values():
        turn.rounds = WARM_UP_CALLS
        turn.run()
        slice_calls = seconds / ROUNDS / max(min(turn.seconds), 1e-9)
        turn.rounds = int(np.clip(slice_calls, 1, MAX_CALLS // ROUNDS))
        turn.seconds.clear()

    was_enabled = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + LONGEST * seconds * len(turns)
        for done in range(ROUNDS):
            if done >= FEWEST_ROUNDS and time.perf_counter() > end:
                break
            for turn in turns.values():
                turn.run()
    finally:
        if was_enabled:
            gc.enable()
    return {name: _timing(turn.seconds) for name, turn in turns.items()}


def _timing(seconds: list[float]) -> Timing:
    milliseconds = np.asarray(seconds) * 1e3
    p10, p50, p90, p99 = (float(np.percentile(milliseconds, q)) for q in (10, 50, 90, 99))
    first, second = (float(np.median(half)) for half in np.array_split(milliseconds, 2))
    stable = abs(first - second) <= STABLE * p50 and p90 <= SPREAD * p10
    return Timing(p50, p90, p99, len(seconds), stable)

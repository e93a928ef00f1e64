"""Latency of files that are executed side by side: in turns of a few milliseconds, each file opened several times."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

NOISE = 0.03
"""Latencies that differ by less are the same, whatever the measured noise."""
TURN_MS, TURNS, OPENINGS = 2.0, 15, 3
"""The least that a turn of a file takes, the least number of turns, and how often each file is opened."""


class Latency(msgspec.Struct, frozen=True):
    """Of calls in turns. Ratios are medians over the turns, so that what slows a turn slows all of its files."""

    ms: dict[str, float]
    slower: dict[str, float]
    """retarget's by each other one's."""
    noise: float
    """The share by which the openings of one file differ from the first of them: where its memory lies is chance."""

    def exceeds(self, peer: str) -> bool:
        """Whether retarget's is above the ``peer``'s, noise aside."""
        return self.slower[peer] > 1 + max(NOISE, self.noise)


def latency(open_: Mapping[str, Callable[[], Callable[[], object]]], threads: int, seconds: float) -> Latency:
    """Of every file, for about so many ``seconds`` of each; ``open_`` gives what executes one.

    One thread is timed by the processor's clock, which other work on the machine hardly changes.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    opened = {(who, index): make() for index in range(OPENINGS) for who, make in open_.items()}

    def turn(which: tuple[str, int], calls: int) -> float:
        started = clock()
        for _ in range(calls):
            opened[which]()
        return (clock() - started) / calls * 1e3

    fastest = min(turn(which, 1) for which in opened for _ in range(3))
    calls = max(1, round(TURN_MS / fastest))
    turns = max(TURNS, round(seconds * 1e3 / (calls * fastest * OPENINGS)))
    order = list(opened)
    taken: dict[tuple[str, int], list[float]] = {which: [] for which in order}
    for _ in range(turns):
        for which in order:
            taken[which].append(turn(which, calls))
        order.append(order.pop(0))
    # [openings, turns]
    times = {who: np.asarray([taken[who, index] for index in range(OPENINGS)]) for who in open_}
    apart = [np.median(one / one[0], axis=1) for one in times.values()]
    own = np.median(times["retarget"], axis=0)
    return Latency(
        {who: float(np.median(one)) for who, one in times.items()},
        {who: float(np.median(own / np.median(one, axis=0))) for who, one in times.items() if who != "retarget"},
        float(max(np.abs(one - 1).max() for one in apart)),
    )

"""Time and memory of one piece of work in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import msgspec


class Cost(msgspec.Struct, frozen=True):
    """What a piece of work took; ``error`` instead where it failed. Memory is anonymous, above that before."""

    seconds: float = 0.0
    peak_mb: float = 0.0
    error: str | None = None


class Peak:
    """The largest anonymous memory while it is entered, above that before, sampled every 2 ms."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._before = self._most = anonymous_bytes()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self._most = max(self._most, anonymous_bytes())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._most = max(self._most, anonymous_bytes())
        self._stop.set()
        self._thread.join()

    @property
    def megabytes(self) -> float:
        """So far."""
        return (self._most - self._before) / 1e6


def anonymous_bytes() -> int:
    """Of this process; the high-water mark of all memory where the system does not tell them apart."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def cost(work: Callable[[], object]) -> Cost:
    """Do ``work`` once, here; for a process that does nothing else."""
    started = time.perf_counter()
    with Peak() as peak:
        work()
    return Cost(time.perf_counter() - started, peak.megabytes)


def in_process(module: str, arguments: Sequence[str], timeout: float, interpreter: Path = Path(sys.executable)) -> Cost:
    """The cost that ``interpreter -m module arguments`` prints as JSON on its last line."""
    command = [str(interpreter), "-W", "ignore", "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return Cost(error=f"over {timeout:.0f} s")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return Cost(error=lines[-1][:70] if lines else f"exit {done.returncode}")
    return msgspec.convert(json.loads(done.stdout.strip().splitlines()[-1]), Cost)

"""Time and memory of one piece of work in a process of its own."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Self

import msgspec
import psutil


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


def anonymous_bytes(process: int | Literal["self"] = "self") -> int:
    """Of this process or another; this one's high-water mark of all memory where the system does not tell them apart.

    Raises ``OSError`` for another process that is gone.
    """
    status = Path(f"/proc/{process}/status")
    if process == "self" and not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = status.read_text().splitlines()
    # A process that has ended and was not waited for has no such line.
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


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


@dataclass(frozen=True)
class Watched:
    """A whole process, with what it started: the time until it ended, its largest anonymous memory, what it wrote."""

    seconds: float
    cpu_seconds: float
    """Of all processors and both modes, which other work on the machine hardly changes."""
    peak_mb: float
    status: int | None
    """None: it was killed at the time limit."""
    output: str
    errors: str


def watch(
    command: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Watched:
    """Run ``command`` in ``folder``, its processes' memory summed every 10 ms, and rarely once it takes long."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started, worked = time.perf_counter(), _children_seconds()
        peak, looked = 0, 0.0
        late = False
        with psutil.Popen(list(command), stdout=output, stderr=errors, env=environment, cwd=folder) as process:
            tree: list[psutil.Process] = [process]
            pause = 0.01
            while process.poll() is None:
                now = time.perf_counter()
                if now - started > 10:
                    pause = 0.05
                if now - looked > 20 * pause:
                    looked = now
                    with contextlib.suppress(psutil.NoSuchProcess):
                        tree = [process, *process.children(recursive=True)]
                if late := now - started > timeout:
                    for one in reversed(tree):
                        with contextlib.suppress(psutil.NoSuchProcess):
                            one.kill()
                    process.wait()
                    break
                peak = max(peak, sum(map(_anonymous, tree)))
                time.sleep(pause)
            took = time.perf_counter() - started
        worked = _children_seconds() - worked
        return Watched(took, worked, peak / 1e6, None if late else process.returncode, _text(output), _text(errors))


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _anonymous(process: psutil.Process) -> int:
    try:
        return anonymous_bytes(process.pid)
    except OSError:  # it ended meanwhile
        return 0


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()

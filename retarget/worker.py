"""The parent's half of a worker: starts it, feeds it, watches its time and memory, and puts its death into words."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from retarget.ended import ended
from retarget.memory import anonymous_bytes
from retarget.progress import Sink
from retarget.wire import Done, Failed, Progress, Reply, Request

logger = logging.getLogger(__name__)

TICK_S = 0.05
"""How often time and memory are looked at."""
SILENT_S = 2.0
"""How long a worker may live that has closed its pipe: one that ends is reaped long before."""
TREE_TICKS = 10
"""How many ticks pass between searches for programs that a step started: a search reads all of ``/proc``."""
LOG_LIMIT = 1 << 30
"""Bytes of output beyond which a step has gone mad."""

_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Limits:
    """What one step may take. None: no limit."""

    memory_bytes: int | None = None
    """Anonymous memory of the worker and of the programs that it starts; mapped files do not count."""
    seconds: float | None = None


@dataclass(frozen=True)
class Answer:
    """How a request ended. ``peak_anonymous`` is the largest that was seen, every ``TICK_S``."""

    result: Done | Failed
    peak_anonymous: int

    @property
    def peak_rss(self) -> int | None:
        """None where the worker did not live to tell."""
        return self.result.peak_rss


class Worker:
    """One process that runs the steps of one toolchain, one at a time.

    ``run`` may be called from any thread, ``kill`` from another at the same time. The process is killed by the kernel
    when the thread that made the ``Worker`` ends: make it in one that lasts.
    """

    def __init__(self, toolchain: str, *, threads: int, log: Path) -> None:
        """Start the process. ``log`` takes what it says before its first request."""
        self.toolchain = toolchain
        self._killing = threading.Lock()
        request_end, self._requests = os.pipe()
        self._replies, reply_end = os.pipe()
        self._buffer = b""
        self._silent_since: float | None = None
        """When the pipe was found closed at the worker's end."""
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    # -P: a folder that the user happens to stand in is no place to import from.
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "retarget.worker_child",
                        *map(str, (request_end, reply_end, os.getpid())),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=_environment(threads),
                    pass_fds=(request_end, reply_end),
                    # Its own session: Ctrl-C in the terminal is for the parent, which ends the whole group.
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._requests)
            os.close(self._replies)
            raise
        finally:
            os.close(request_end)
            os.close(reply_end)
        logger.debug("started worker %d for %s", self._process.pid, toolchain)

    @property
    def pid(self) -> int:
        """Of the process, which leads a group of its own."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can take another request."""
        with self._killing:
            return self._process.poll() is None

    def run(self, request: Request, step: str, limits: Limits, progress: Sink) -> Answer:
        """Run one step, called ``step`` in messages, and wait for its end. A worker that breaks a limit is killed."""
        deadline = None if limits.seconds is None else time.monotonic() + limits.seconds
        tree = _Tree(self.pid)
        log = Path(request.log)
        peak = 0
        with contextlib.suppress(BrokenPipeError):
            # It died before: what follows finds that out and says so.
            self._send(msgspec.json.encode(request) + b"\n")
        while True:
            ended = not self.alive
            try:
                for reply in self._receive(0 if ended else TICK_S):
                    if not isinstance(reply, Progress):
                        return Answer(reply, max(peak, reply.anonymous))
                    progress(reply.done, reply.total, reply.text)
            except msgspec.DecodeError as error:
                self.kill()
                return _dead(
                    f"{self.toolchain} wrote over its worker's pipe while running '{step}': {error}",
                    "code in it writes to a file descriptor that it did not open",
                    peak,
                )
            if ended:
                return self._obituary(step, peak)
            if self._silent_since is not None and time.monotonic() - self._silent_since > SILENT_S:
                self.kill()
                return _dead(
                    f"{self.toolchain} closed its worker's pipe while running '{step}'",
                    "code in it closes file descriptors that it did not open",
                    peak,
                )
            used = tree.anonymous_bytes()
            peak = max(peak, used)
            broken = _broken(limits, deadline, used, log)
            if broken is not None:
                self.kill()
                return _dead(f"{self.toolchain} was stopped: '{step}' {broken[0]}", broken[1], peak)

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        with self._killing:
            # Until it is reaped its id, and so its group's, belongs to nobody else.
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def close(self) -> None:
        """End the process and give back its pipes; nobody may be in ``run`` any more."""
        self.kill()
        os.close(self._requests)
        os.close(self._replies)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._requests, line) :]

    def _receive(self, seconds: float) -> list[Reply]:
        """The replies that are there, after waiting for at most ``seconds``."""
        ready, _, _ = select.select([self._replies], [], [], seconds)
        while ready:
            piece = os.read(self._replies, 1 << 16)
            if not piece:
                # Closed: the process is ending, or can say no more.
                self._silent_since = self._silent_since or time.monotonic()
                time.sleep(seconds / 10)
                break
            self._buffer += piece
            ready, _, _ = select.select([self._replies], [], [], 0)
        *lines, self._buffer = self._buffer.split(b"\n")
        return [msgspec.json.decode(line, type=Reply) for line in lines]

    def _obituary(self, step: str, peak: int) -> Answer:
        status = self._process.returncode
        # What it had started lives in its group, and would go on without it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        words, hint = ended(status)
        return _dead(f"{self.toolchain} {words} while running '{step}'", hint, peak)


def _broken(limits: Limits, deadline: float | None, used: int, log: Path) -> tuple[str, str | None] | None:
    """Which limit is broken, and what to do about it."""
    if deadline is not None and time.monotonic() > deadline:
        return f"took longer than {limits.seconds:g} s", "--timeout SECONDS gives it longer"
    if limits.memory_bytes is not None and used > limits.memory_bytes:
        took = f"took {_size(used)} of memory, over the limit of {_size(limits.memory_bytes)}"
        return took, "--memory SIZE gives it more"
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        return f"wrote more than {_size(LOG_LIMIT)} of output", None
    return None


class _Tree:
    """A worker and the programs that it started: all processes of its session."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._members = [leader]
        self._ticks = 0

    def anonymous_bytes(self) -> int:
        """Of all of them together."""
        self._ticks += 1
        if self._ticks % TREE_TICKS == 0:
            self._members = [self._leader, *_session(self._leader)]
        return sum(map(anonymous_bytes, self._members))


def _session(leader: int) -> list[int]:
    """The other processes of the session that ``leader`` leads."""
    if sys.platform != "linux":
        import psutil

        try:
            return [child.pid for child in psutil.Process(leader).children(recursive=True)]
        except psutil.Error:
            return []
    members = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and int(entry.name) != leader:
            with contextlib.suppress(OSError):
                # After the name, which may hold anything up to its bracket: state, ppid, pgrp, session.
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == leader:
                    members.append(int(entry.name))
    return members


def _environment(threads: int) -> dict[str, str]:
    return {
        **os.environ,
        **dict.fromkeys(_THREADS, str(threads)),
        # Sets of strings in one order: the same input makes the same artifact.
        "PYTHONHASHSEED": "0",
        # Where Python stood when native code crashed, in the log.
        "PYTHONFAULTHANDLER": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _dead(message: str, hint: str | None, peak: int) -> Answer:
    failed = Failed(kind="ToolchainFailure", message=message, hint=hint, bug=False, peak_rss=None, anonymous=peak)
    return Answer(failed, peak)


def _size(count: int) -> str:
    """``1.5 GB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"

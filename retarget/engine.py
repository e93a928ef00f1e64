"""Runs a plan: what the store has is cached, the rest runs in workers, side by side, with outcomes as steps end."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn, Self, TypeAlias

from retarget.errors import Terminated
from retarget.processor import cores
from retarget.protocols import Artifact, Outcome, Step, StepError
from retarget.store import Damaged, Staging, Store, StoreError
from retarget.wire import Failed, Request
from retarget.worker import Limits, Worker

__all__ = ["Event", "Limits", "Terminated", "run", "terminable"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """Something to show while steps run. ``total`` 0: nobody knows how much there is."""

    kind: Literal["started", "progress", "ended"]
    step: Step
    done: int = 0
    total: int = 0
    text: str = ""
    outcome: Outcome | None = None
    """Of a step that ended."""


_Message: TypeAlias = "Event | Future[Outcome]"


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM raises ``Terminated`` in the main thread, so that everything is cleaned up as on Ctrl-C."""

    def terminate(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def step_function(step: Step) -> str:
    """Where the function of ``step`` stands: imported by a worker only."""
    return f"retarget.steps:{step.kind}"


def run(
    steps: Sequence[Step],
    store: Store,
    *,
    jobs: int,
    limits: Limits,
    progress: Callable[[Event], None],
    function_of: Callable[[Step], str] = step_function,
) -> Generator[Outcome, None, None]:
    """Make the artifacts of ``steps``, which stand in an order in which they can run; yield outcomes as they come.

    A failed step skips those that need it, and the others go on. Steps of different toolchains run side by side, at
    most ``jobs`` of them; a ``bench`` step runs alone. ``progress`` is called in the caller's thread. Close the
    generator (``contextlib.closing``) or exhaust it: either ends all workers and the lease. Raises ``StoreError``.
    """
    _check_order(steps)
    with (
        store.lease(step.key for step in steps),
        _Build(steps, store, jobs, limits, function_of) as build,
    ):
        yield from build.outcomes(progress)


class _Build:
    """One run. All but ``_execute`` happens in the caller's thread."""

    def __init__(
        self,
        steps: Sequence[Step],
        store: Store,
        jobs: int,
        limits: Limits,
        function_of: Callable[[Step], str],
    ) -> None:
        self._waiting = list(steps)
        self._store = store
        self._jobs = jobs
        self._limits = limits
        self._function_of = function_of
        toolchains = len({step.toolchain for step in steps if step.kind != "bench"})
        self._side_by_side = max(1, min(jobs, toolchains))
        self._cached = _cached(steps, store)
        self._ended: dict[str, Outcome] = {}
        """By step id."""
        self._running: dict[Future[Outcome], Step] = {}
        self._workers: dict[str, Worker] = {}
        self._messages: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._closing = False
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="retarget-step")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        # Workers first: the threads wait for them.
        for worker in self._workers.values():
            worker.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers.values():
            worker.close()

    def outcomes(self, progress: Callable[[Event], None]) -> Iterator[Outcome]:
        """Yield each step's outcome."""
        while self._waiting or self._running:
            step = self._next()
            if step is not None:
                self._waiting.remove(step)
                outcome = self._without_running(step)
                if outcome is None:
                    progress(Event("started", step))
                    self._start(step)
                    continue
            else:
                message = self._messages.get()
                if isinstance(message, Event):
                    progress(message)
                    continue
                step = self._running.pop(message)
                outcome = message.result()
            self._ended[step.id] = outcome
            progress(Event("ended", step, outcome=outcome))
            yield outcome

    def _next(self) -> Step | None:
        """The first step that can begin, or end, now."""
        running = self._running.values()
        busy = {step.toolchain for step in running}
        keys = {step.key for step in running}
        alone = any(step.kind == "bench" for step in running)
        for step in self._waiting:
            if step.key in keys or any(source.id not in self._ended for source in step.inputs.values()):
                continue
            if self._without_running(step) is not None:
                return step
            free = not running if step.kind == "bench" else not alone and len(running) < self._jobs
            if free and step.toolchain not in busy:
                return step
        return None

    def _without_running(self, step: Step) -> Outcome | None:
        """The outcome of a step that need not run, or cannot. Its inputs have ended."""
        if (artifact := self._cached.get(step.key)) is not None:
            return Outcome(step, "cached", 0.0, artifact=artifact)
        for other in self._ended.values():
            # Two steps of one key are one piece of work.
            if other.step.key == step.key:
                return replace(other, step=step, status="cached" if other.artifact else other.status, seconds=0.0)
        inputs = self._inputs(step)
        if len(inputs) == len(step.inputs):
            return None
        if not step.partial or not inputs:
            missing = next(source for role, source in step.inputs.items() if role not in inputs)
            return Outcome(step, "skipped", 0.0, error=self._cause(missing))
        artifact = self._store.get(_key(step, inputs))
        return None if artifact is None else Outcome(step, "cached", 0.0, artifact=artifact)

    def _inputs(self, step: Step) -> dict[str, Artifact]:
        """The artifacts that could be made, by role."""
        made = {role: self._ended[source.id].artifact for role, source in step.inputs.items()}
        return {role: artifact for role, artifact in made.items() if artifact is not None}

    def _cause(self, source: Step) -> StepError:
        """Why a step that needs ``source`` is skipped: the first thing that went wrong."""
        outcome = self._ended[source.id]
        error = outcome.error
        if error is not None and error.kind == "Skipped":
            return error
        reason = f": {error.message.partition(chr(10))[0]}" if error is not None else ""
        verb = "failed" if outcome.status == "failed" else "was skipped"
        return StepError("Skipped", f"'{source.id}' {verb}{reason}", log=error.log if error is not None else None)

    def _start(self, step: Step) -> None:
        with contextlib.ExitStack() as stack:
            staging = stack.enter_context(self._store.stage())
            worker = self._worker(step, staging)
            future = self._pool.submit(self._execute, step, worker, staging, stack.pop_all())
        self._running[future] = step
        future.add_done_callback(self._messages.put)

    def _worker(self, step: Step, staging: Staging) -> Worker:
        """The warm worker of the step's toolchain; a new one if it has none or it died."""
        worker = self._workers.get(step.toolchain)
        if worker is not None and worker.alive:
            return worker
        if worker is not None:
            worker.close()
        threads = cores() if step.kind == "bench" else max(1, cores() // self._side_by_side)
        worker = self._workers[step.toolchain] = Worker(step.toolchain, threads=threads, log=staging.log)
        return worker

    def _execute(self, step: Step, worker: Worker, staging: Staging, owned: contextlib.ExitStack) -> Outcome:
        """In a thread of the pool: run the step, commit what it made."""
        started = time.monotonic()
        inputs = self._inputs(step)
        key = _key(step, inputs)
        with owned, self._store.scratch(key) as scratch:
            request = Request(
                function=self._function_of(step),
                toolchain=step.toolchain,
                kind=step.kind,
                options=dict(step.options),
                inputs={role: str(artifact.path) for role, artifact in inputs.items()},
                files={role: str(path.absolute()) for role, path in step.files.items()},
                out=str(staging.out),
                log=str(staging.log),
                temporary=str(staging.temporary),
                scratch=None if scratch is None else str(scratch),
                python=None if step.python is None else str(step.python),
                memory_bytes=self._limits.memory_bytes,
            )
            answer = worker.run(
                request,
                step.id,
                self._limits,
                lambda done, total, text: self._messages.put(Event("progress", step, done, total, text)),
            )
            result = answer.result
            error = artifact = None
            if isinstance(result, Failed):
                error = self._error(result, key, staging)
            else:
                artifact = self._store.commit(
                    staging,
                    replace(step, key=key),
                    facts=result.facts,
                    versions=result.versions,
                    code=_relative(result.code, step.code_root),
                )
        skipped = error is not None and error.kind == "MissingToolchain" and step.optional
        return Outcome(
            step,
            "ran" if error is None else "skipped" if skipped else "failed",
            time.monotonic() - started,
            peak_rss=result.peak_rss,
            peak_anonymous=answer.peak_anonymous,
            artifact=artifact,
            error=error,
        )

    def _error(self, failed: Failed, key: str, staging: Staging) -> StepError:
        if failed.kind == "StoreError":
            raise StoreError(failed.message, failed.hint)
        if self._closing:
            # We killed it; nobody is told of it any more.
            return StepError(failed.kind, failed.message, failed.hint, failed.bug)
        self._store.check_space(failed.message)
        log = self._store.keep_log(staging, key)
        return StepError(failed.kind, failed.message, failed.hint, failed.bug, log)


def _check_order(steps: Sequence[Step]) -> None:
    """Raise ``ValueError`` for a step that would wait for ever."""
    before: set[str] = set()
    for step in steps:
        for source in step.inputs.values():
            if source.id not in before:
                raise ValueError(f"'{step.id}' needs '{source.id}', which does not stand before it")
        before.add(step.id)


def _cached(steps: Sequence[Step], store: Store) -> dict[str, Artifact]:
    """Key to artifact of the steps that need not run. Those that a step which runs consumes are verified."""
    cached: dict[str, Artifact] = {}
    consumed: set[str] = set()
    for step in reversed(steps):
        artifact = store.get(step.key)
        if artifact is not None and step.key in consumed:
            try:
                store.verified(step.key)
            except Damaged as error:
                logger.warning("%s is made again: %s", step.id, error.message)
                artifact = None
                cached.pop(step.key, None)
        if artifact is not None:
            cached[step.key] = artifact
        else:
            consumed.update(source.key for source in step.inputs.values())
    return cached


def _key(step: Step, inputs: Mapping[str, Artifact]) -> str:
    """The step's key, or another one if it runs with fewer ``inputs`` than it was planned with."""
    missing = sorted(step.inputs.keys() - inputs.keys())
    return hashlib.sha256("\0".join([step.key, *missing]).encode()).hexdigest() if missing else step.key


def _relative(code: Mapping[str, str], root: Path | None) -> dict[str, str]:
    """``code`` by names relative to ``root`` where it holds them; nothing for a step that runs none of the user's."""
    if root is None:
        return {}
    root = root.absolute()
    return {
        Path(name).relative_to(root).as_posix() if Path(name).is_relative_to(root) else name: digest
        for name, digest in code.items()
    }

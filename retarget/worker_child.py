"""The worker process: runs step functions, one request a line, and answers with what they said or how they failed.

Started as ``python -m retarget.worker_child REQUESTS REPLIES PARENT`` (two file descriptors and a process id) in a
clean interpreter, because a library that was loaded before a fork is a library in an unknown state. JSON lines travel
on pipes of their own: descriptors 1 and 2 are the step's log, whoever writes to them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import gc
import importlib
import importlib.metadata
import math
import os
import queue
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import msgspec

from retarget import __version__, catalog, dependencies, memory, progress, whose
from retarget.digests import file_digest
from retarget.errors import RetargetError
from retarget.facts import Fact
from retarget.protocols import StepRequest
from retarget.wire import Done, Failed, Progress, Reply, Request

StepFunction: TypeAlias = Callable[[StepRequest], Fact]


# ---- the process


def main(arguments: list[str]) -> None:
    """Serve requests until the parent closes its end or dies."""
    requests, replies, parent = (int(argument) for argument in arguments)
    for descriptor in (requests, replies):
        # Programs that a step starts must not keep the pipes open.
        os.set_inheritable(descriptor, False)
    _die_with(parent)
    code: dict[str, str] = {}
    """Digests of the user's own source files that were executed."""
    whose.watch(lambda path: code.update({str(path): file_digest(path)}))
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, lines), daemon=True).start()

    def say(reply: Reply) -> None:
        line = msgspec.json.encode(reply) + b"\n"
        while line:
            line = line[os.write(replies, line) :]

    progress.connect(lambda done, total, text: say(Progress(done, total, text)))
    while True:
        say(_serve(msgspec.json.decode(lines.get(), type=Request), code))
        gc.collect()


def _read(requests: int, lines: queue.SimpleQueue[bytes]) -> None:
    with open(requests, "rb") as file:
        for line in file:
            lines.put(line)
    # The parent is gone, or is done with us and all that we started. No destructors: those of native libraries crash
    # and hang, and nobody is there to read of it.
    os.killpg(0, signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Be killed when the thread that started us ends. Elsewhere than on Linux, `_read` sees the pipe close."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _serve(request: Request, code: dict[str, str]) -> Done | Failed:
    place, path = Path.cwd(), list(sys.path)
    memory.reset_peak()
    dependencies.take()
    with _output_to(request.log), _temporary_files_in(request.temporary):
        try:
            facts = _run(request)
            files, elsewhere = dependencies.take()
            # What a framework generated there and then executed, as TensorFlow does, is not the user's.
            for generated in [path for path in code if Path(request.temporary) in Path(path).parents]:
                del code[generated]
            read = [path for path in files if Path(request.temporary) not in path.parents]
            return Done(
                facts=facts,
                versions={**_versions(), **elsewhere},
                code={**code, **{str(path): file_digest(path) for path in read}},
                peak_rss=memory.peak_rss(),
                anonymous=memory.anonymous_bytes(os.getpid()),
            )
        except BaseException as error:  # noqa: BLE001 - all of them are the step's failure, SystemExit too
            with contextlib.suppress(OSError):
                # A log that a full disk does not take is not what failed.
                traceback.print_exc()
            return _failure(error, request)
        finally:
            os.chdir(place)
            sys.path[:] = path


def _run(request: Request) -> dict[str, object]:
    module, _, name = request.function.partition(":")
    function: StepFunction = getattr(importlib.import_module(module), name)
    fact = function(
        StepRequest(
            kind=request.kind,
            options=request.options,  # type: ignore[arg-type]  # decoded from JSON
            inputs={role: Path(folder) for role, folder in request.inputs.items()},
            files={role: Path(file) for role, file in request.files.items()},
            out=Path(request.out),
            python=None if request.python is None else Path(request.python),
            scratch=None if request.scratch is None else Path(request.scratch),
            memory_bytes=request.memory_bytes,
        )
    )
    facts = _finite(msgspec.to_builtins(fact))
    assert isinstance(facts, dict)
    return facts


def _finite(value: object) -> object:
    """``value`` with NaN and infinities as strings, which JSON has no numbers for; `Manifest.facts_as` reads them."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


@contextlib.contextmanager
def _output_to(log: str) -> Iterator[None]:
    """Send descriptors 1 and 2 into ``log``, and away from it at the end, so that a removed log takes no space."""
    _redirect(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        yield
    finally:
        # Native code's own buffers, then Python's. Output that a full disk does not take is no failure of the step.
        ctypes.CDLL(None).fflush(None)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        _redirect(os.devnull, os.O_WRONLY)


@contextlib.contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """Python's temporary files and those of native code go into ``folder``: a step that is killed leaves none behind,
    and it is the store's disk that they fill."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _redirect(path: str, flags: int) -> None:
    target = os.open(path, flags, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


# ---- failures


def _failure(error: BaseException, request: Request) -> Failed:
    kind, message, hint, bug = describe(error, request)
    return Failed(
        kind=kind,
        message=message,
        hint=hint,
        bug=bug,
        peak_rss=memory.peak_rss(),
        anonymous=memory.anonymous_bytes(os.getpid()),
    )


def describe(error: BaseException, request: Request) -> tuple[str, str, str | None, bool]:
    """Class name, message, hint, and whether it is a bug of retarget."""
    if isinstance(error, RetargetError):
        return type(error).__name__, error.message, error.hint, False
    if isinstance(error, MemoryError):
        return (
            "ToolchainFailure",
            f"{request.toolchain} asked for more memory than there is",
            "free memory, lower --jobs or the maximum sizes in `shapes`; --memory SIZE stops such a step early",
            False,
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return (
            "StoreError",
            f"{error.filename or request.out}: {os.strerror(error.errno)}",
            "free some with `retarget cache gc`, or choose another place with --store DIR",
            False,
        )
    if isinstance(error, ImportError) and (missing := _requirement(error, request.toolchain)) is not None:
        distribution, extra = missing
        package = f"'retarget[{extra}]'" if extra else distribution
        return "MissingToolchain", f"{request.toolchain} needs {distribution}: {error}", f"pip install {package}", False
    return whose.foreign(error, request.toolchain)


def _requirement(error: ImportError, toolchain: str) -> tuple[str, str | None] | None:
    """The distribution that ``toolchain`` says it needs and whose module could not be imported, and its extra."""
    if toolchain in catalog.TARGETS:
        requires, extra = catalog.target(toolchain).requires, catalog.target(toolchain).extra
    elif toolchain in catalog.FRONTENDS:
        requires, extra = catalog.frontend(toolchain).requires, catalog.frontend(toolchain).extra
    else:
        return None
    module = (error.name or "").partition(".")[0]
    installed = {_plain(distribution): modules for distribution, modules in _modules().items()}
    for requirement in requires:
        found = re.match(r"[\w.-]+", requirement)
        if found is not None and module in {_plain(found[0]), *installed.get(_plain(found[0]), ())}:
            return found[0], extra
    return None


# ---- what it used


def _versions() -> dict[str, str]:
    """Version of each distribution of which a module is loaded."""
    loaded = {name.partition(".")[0] for name in sys.modules}
    named = [dist for dist, modules in _modules().items() if not loaded.isdisjoint(modules)]
    return {"retarget": __version__, **{dist: _version(dist) for dist in named}}


_version = functools.cache(importlib.metadata.version)


@functools.cache
def _modules() -> dict[str, set[str]]:
    """Distribution to its top-level modules."""
    modules: dict[str, set[str]] = {}
    for module, distributions in importlib.metadata.packages_distributions().items():
        for distribution in distributions:
            modules.setdefault(distribution, set()).add(module)
    return modules


def _plain(distribution: str) -> str:
    return re.sub(r"[-_.]+", "_", distribution).lower()


if __name__ == "__main__":
    main(sys.argv[1:])

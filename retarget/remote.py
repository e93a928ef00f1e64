"""A frontend in the user's own interpreter, and what is installed there: ``toolchains: {pytorch: {python: ...}}``.

The framework runs in a process of its own (`retarget.worker_remote`), a child of the step's worker: the limits, the
end and the accounting of that worker hold for both. It needs Python 3.8, the framework, ``numpy`` and ``onnx``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from retarget import catalog, errors, worker_remote
from retarget.crossing import pack, unpack
from retarget.dependencies import depends_on, ran_with
from retarget.ended import ended
from retarget.errors import MissingToolchain, RetargetError, ToolchainFailure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from retarget.protocols import Feeds, Outputs
    from retarget.source import Exported, Source

OLDEST = (3, 8)
"""The oldest Python that a frontend runs in."""

_TICK_S = 0.2
"""How often it is seen to that the process lives, while nothing is heard of it."""
_SILENT_S = 2.0
"""How long it may live when its pipe is closed: one that ends is reaped long before."""
_START_S = 60.0
"""How long an interpreter may take to say its versions: it may lie on another machine's disk."""
_HINT = "give the path of an interpreter, as in /home/me/envs/train/bin/python"

_PROBE = r"""
import json, os, re, sys
found = {"python": "%d.%d.%d" % sys.version_info[:3]}
for folder in sys.path:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        continue
    for name in names:
        match = re.match(r"([A-Za-z0-9][\w.]*)-([^-]+)(-py\d[\d.]*)?\.(dist|egg)-info$", name)
        if match:
            found.setdefault(re.sub(r"[-_.]+", "-", match.group(1)).lower(), match.group(2))
sys.stdout.write("\n" + json.dumps(found))
"""
"""Runs in any Python since 2.7: one that is too old says how old."""


def fingerprint(python: Path) -> dict[str, str]:
    """The version of an interpreter, as ``python``, and of each distribution installed for it, by its plain name.

    For a plan's keys: there is no path in it. It imports nothing there, and takes some 80 ms. Raises ``RetargetError``
    where ``python`` is no file, cannot be run, is no Python or one older than 3.8.
    """
    python = python.absolute()
    if python.is_dir():
        inside = python / "bin" / "python"
        raise RetargetError(f"{python}: a folder", f"write {inside}" if inside.exists() else _HINT)
    if not python.exists():
        raise RetargetError(f"{python}: no such file", _HINT)
    if not os.access(python, os.X_OK):
        raise RetargetError(f"{python}: not an executable file", _HINT)
    try:
        ran = subprocess.run(
            [python, "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            timeout=_START_S,
            check=False,
        )
        found = json.loads(ran.stdout.decode(errors="replace").strip().rpartition("\n")[2])
        version = tuple(int(part) for part in found["python"].split("."))
    except subprocess.TimeoutExpired as error:
        raise RetargetError(f"{python}: did not say its version within {_START_S:g} s", _HINT) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RetargetError(f"{python}: not a Python interpreter", _HINT) from error
    if version < OLDEST:
        raise MissingToolchain(
            f"{python}: is Python {found['python']}, and a framework runs in 3.8 or newer",
            "make an environment of a newer Python with the same version of the framework",
        )
    return cast("dict[str, str]", found)


class RemoteFrontend:
    """Frontend ``frontend`` run by ``python``; a ``FrontendExport``.

    The process is started with the first request and lives until ``close``: use it in a ``with``. What it executes of
    the user's own code, and the versions that it ran with, are told to ``dependencies``. Its arrays pass through
    files in a folder under ``tempfile.gettempdir()``, each removed when it is read.

    Methods raise the ``RetargetError`` that the frontend raises there; ``MissingToolchain`` with the command for
    that interpreter where the framework is not installed; ``ToolchainFailure`` for an exception of a library's, and
    where the process dies.
    """

    def __init__(self, python: Path, frontend: str) -> None:
        if not catalog.frontend(frontend).requires:
            raise RetargetError(
                f"{frontend} needs no framework, so it runs in no other interpreter",
                f"leave {frontend} out of `toolchains`",
            )
        self._python = python.absolute()
        self._frontend = frontend
        self._process: _Process | None = None

    def export(self, source: Source, example: Feeds | None, out: Path) -> Exported:
        """As ``FrontendExport.export``: the process writes into ``out`` itself."""
        return cast("Exported", self._ask("export", source=source, example=example, out=out.absolute()))

    def reference(self, source: Source, exported: Exported) -> RemoteRunner:
        """As ``FrontendExport.reference``. The runner lives in this frontend's process."""
        opened = cast("dict[str, object]", self._ask("open", source=source, exported=exported))
        settings = f"{opened['settings']}, Python {opened['python']}"
        return RemoteRunner(functools.partial(self._ask, runner=opened["runner"]), settings)

    def close(self) -> None:
        """End the process. Safe to call twice."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, do: str, **given: object) -> object:
        if self._process is None:
            self._process = _Process(self._python, self._frontend)
        try:
            answer = self._process.ask(do, given)
        except ToolchainFailure:
            self.close()
            raise
        for file in cast("list[str]", answer["code"]):
            depends_on(Path(file))
        if "failed" in answer:
            raise _error(cast("dict[str, object]", answer["failed"]))
        versions = cast("dict[str, str]", answer["versions"])
        ran_with({f"{self._frontend}/{name}": version for name, version in versions.items()})
        return unpack(answer["done"])


class RemoteRunner:
    """The source framework itself in its own interpreter; a ``Runner``."""

    def __init__(self, ask: functools.partial[object], settings: str) -> None:
        self._ask = ask
        self.settings = settings

    def run(self, feeds: Feeds) -> Outputs:
        return cast("Outputs", self._ask("run", feeds=feeds))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._ask("close")


class _Process:
    """The other interpreter: a request at a time."""

    def __init__(self, python: Path, frontend: str) -> None:
        self._words = f"{frontend} in {python}"
        self._buffer = b""
        self._folder = Path(tempfile.mkdtemp(prefix="remote-"))
        request_end, self._requests = os.pipe()
        self._replies, reply_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    *(python, worker_remote.__file__),
                    *map(str, (request_end, reply_end, frontend)),
                    ",".join(catalog.frontend(frontend).requires),
                ],
                stdin=subprocess.DEVNULL,
                env=_environment(),
                # The worker's own session and group: what ends or counts that ends and counts this.
                pass_fds=(request_end, reply_end),
            )
        except OSError as error:
            os.close(self._requests)
            os.close(self._replies)
            shutil.rmtree(self._folder)
            raise RetargetError(f"{python}: cannot be run ({error.strerror})", _HINT) from error
        finally:
            os.close(request_end)
            os.close(reply_end)

    def ask(self, do: str, given: Mapping[str, object]) -> dict[str, object]:
        """The answer to a request. Raises ``ToolchainFailure`` where the process ends instead."""
        request = {"do": do, "folder": str(self._folder), "given": pack(given, self._folder)}
        line = json.dumps(request).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):
            # It died before: what follows finds that out and says so.
            while line:
                line = line[os.write(self._requests, line) :]
        while b"\n" not in self._buffer:
            gone = self._process.poll() is not None
            ready, _, _ = select.select([self._replies], [], [], 0 if gone else _TICK_S)
            piece = os.read(self._replies, 1 << 16) if ready else b""
            self._buffer += piece
            if ready and not piece and not self._ends(_SILENT_S):
                raise ToolchainFailure(
                    f"{self._words} closed its pipe during '{do}'",
                    "code in it closes file descriptors that it did not open",
                )
            if gone and not piece:
                words, hint = ended(self._process.returncode)
                raise ToolchainFailure(f"{self._words} {words} during '{do}'", hint)
        reply, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return cast("dict[str, object]", json.loads(reply))
        except ValueError as error:
            raise ToolchainFailure(
                f"{self._words} wrote over its pipe during '{do}': {error}",
                "code in it writes to a file descriptor that it did not open",
            ) from error

    def close(self) -> None:
        os.close(self._requests)
        if not self._ends(_SILENT_S):
            # Native code keeps it from seeing that its pipe was closed.
            self._process.kill()
            self._process.wait()
        os.close(self._replies)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ends(self, seconds: float) -> bool:
        """Whether it ends within that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None


def _environment() -> dict[str, str]:
    """The worker's, less what makes another Python take that one's library for its own."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "__PYVENV_LAUNCHER__")}


def _error(failed: dict[str, object]) -> Exception:
    if "errno" in failed:
        number = cast("int", failed["errno"])
        return OSError(number, os.strerror(number), failed["file"])
    kind: type[RetargetError] = getattr(errors, str(failed["kind"]))
    return kind(str(failed["message"]), cast("str | None", failed["hint"]))

"""Runs a frontend in the user's own interpreter: Python 3.8 or newer, an old framework, and no retarget.

Started by path as ``PYTHON .../worker_remote.py REQUESTS REPLIES FRONTEND REQUIRES`` (two file descriptors, a name,
and distributions with commas between) by `retarget.remote`. JSON lines travel on pipes of their own: descriptors 1
and 2 are the step's log, whoever writes to them. Arrays travel as files (`retarget.crossing`).

Nothing of retarget is installed there. ``Away`` serves from this very folder the few modules that are written for
it: Python 3.8, and no import of retarget's but each other. So the same ``export.py`` runs here and there.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.path and sys.path[0] == __file__.rpartition("/")[0]:
    # Python puts a script's own folder first: there lie modules called `graph` and `lock`.
    del sys.path[0]

import contextlib
import ctypes
import errno
import importlib
import importlib.machinery
import importlib.util
import json
import os
import platform
import queue
import re
import signal
import threading
import traceback
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from retarget.protocols import Runner

AWAY = (
    *("crossing", "errors", "litert", "masks", "ort_words", "protobuf", "repeats", "source", "spec", "user_code"),
    *("whose", "zips"),
)
"""The modules of retarget that are served, beside those of frontends."""
HERE_ONLY = ("load",)
"""The modules of a frontend that are not."""

PACKAGE = Path(__file__).resolve().parent


# ---- retarget's modules, where retarget is not installed


def away_module(name: str) -> Path | None:
    """The file of module ``name``; the folder of a package, which is served empty; None where it is not served."""
    first, *rest = name.split(".")
    path = PACKAGE.joinpath(*rest)
    if first != "retarget":
        return None
    if not rest or rest == ["convert"] or (rest[0] == "convert" and len(rest) == 2 and path.is_dir()):
        return path
    file = path.with_name(path.name + ".py")
    served = rest[0] in AWAY if len(rest) == 1 else rest[0] == "convert" and rest[-1] not in HERE_ONLY
    return file if served and file.is_file() else None


class Away:
    """A finder of retarget's modules for ``sys.meta_path``."""

    @staticmethod
    def find_spec(
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG004 - the protocol's
        target: ModuleType | None = None,  # noqa: ARG004 - the protocol's
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "retarget" and not name.startswith("retarget."):
            return None
        file = away_module(name)
        if file is None:
            raise ImportError(
                f"{name} is not there: what runs in another interpreter imports of retarget only its own frontend's "
                f"modules and {', '.join(AWAY)}",
                name=name,
            )
        if file.suffix == ".py":
            return importlib.util.spec_from_file_location(name, str(file), loader=_Source(name, str(file)))
        return importlib.machinery.ModuleSpec(name, None, is_package=True)


class _Source(importlib.machinery.SourceFileLoader):
    """Leaves no compiled files beside the sources: they are not that interpreter's to write to."""

    def set_data(self, path: str, data: object, *, _mode: int = 0o666) -> None:
        pass


# ---- the process


def main(arguments: list[str]) -> None:
    """Serve requests until the parent closes its end or dies."""
    requests, replies = int(arguments[0]), int(arguments[1])
    for descriptor in (requests, replies):
        # Programs that a framework starts must not keep the pipes open.
        os.set_inheritable(descriptor, False)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    sys.meta_path.insert(0, Away)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, lines), daemon=True).start()
    server = _Server(arguments[2], [name for name in arguments[3].split(",") if name])
    while True:
        reply = json.dumps(server.answer(json.loads(lines.get().decode()))).encode() + b"\n"
        while reply:
            reply = reply[os.write(replies, reply) :]


def _read(requests: int, lines: queue.SimpleQueue[bytes]) -> None:
    with open(requests, "rb") as file:
        for line in file:
            lines.put(line)
    # The parent is gone, or is done with us. No destructors: those of native libraries crash and hang.
    os._exit(0)


class _Server:
    """Answers requests for one frontend."""

    def __init__(self, frontend: str, requires: list[str]) -> None:
        from retarget import whose

        self._frontend = frontend
        self._requires = requires
        self._runners: dict[int, Runner] = {}
        self._code: list[str] = []
        whose.watch(lambda path: self._code.append(str(path)))

    def answer(self, request: Mapping[str, object]) -> dict[str, object]:
        """``{"done": ...}`` or ``{"failed": ...}``, and the user's files that were executed since the last answer."""
        from retarget.crossing import pack, unpack

        try:
            given = unpack(request["given"])
            assert isinstance(given, dict)
            done = getattr(self, "_" + str(request["do"]))(**given)
            answer: dict[str, object] = {"done": pack(done, Path(str(request["folder"]))), "versions": self._versions()}
        except BaseException as error:  # noqa: BLE001 - all of them are the request's failure, SystemExit too
            with contextlib.suppress(OSError):
                # A log that a full disk does not take is not what failed.
                traceback.print_exc()
            answer = {"failed": self._failure(error)}
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        answer["code"], self._code[:] = list(dict.fromkeys(self._code)), []
        return answer

    def _export(self, source: object, example: object, out: Path) -> object:
        return self._module().export(source, example, out)

    def _open(self, source: object, exported: object) -> object:
        runner: Runner = self._module().reference(source, exported)
        runner.__enter__()
        number = len(self._runners)
        self._runners[number] = runner
        return {"runner": number, "settings": runner.settings, "python": platform.python_version()}

    def _run(self, runner: int, feeds: Mapping[str, object]) -> object:
        return self._runners[runner].run(feeds)  # type: ignore[arg-type]  # arrays that crossed

    def _close(self, runner: int) -> None:
        self._runners[runner].__exit__(None, None, None)

    def _module(self) -> ModuleType:
        return importlib.import_module(f"retarget.convert.{self._frontend}.export")

    # ---- what is here, and what failed

    def _versions(self) -> dict[str, str]:
        """Of Python and of the libraries that were loaded."""
        loaded = {name: sys.modules.get(_module_of(name)) for name in (*self._requires, "onnx", "numpy")}
        versions = {name: getattr(module, "__version__", None) for name, module in loaded.items()}
        return {"python": platform.python_version(), **{name: str(text) for name, text in versions.items() if text}}

    def _failure(self, error: BaseException) -> dict[str, object]:
        """How the host raises it again."""
        from retarget import whose
        from retarget.errors import MissingToolchain, RetargetError

        if isinstance(error, ImportError) or (
            isinstance(error, MissingToolchain) and isinstance(error.__cause__, ImportError)
        ):
            missing = self._missing(error if isinstance(error, ImportError) else error.__cause__)  # type: ignore[arg-type]
            if missing:
                words = error.message if isinstance(error, MissingToolchain) else f"{self._frontend} needs {missing[0]}"
                return _failed(
                    "MissingToolchain",
                    f"{words}, which {sys.executable} does not have",
                    f"{sys.executable} -m pip install {' '.join(missing)}",
                )
        if isinstance(error, RetargetError):
            # A subclass of a frontend's own is known to the host as its nearest ancestor that all know.
            kind = next(known.__name__ for known in type(error).__mro__ if known.__module__ == "retarget.errors")
            return _failed(kind, error.message, error.hint)
        if isinstance(error, MemoryError):
            return _failed(
                "ToolchainFailure",
                f"{self._frontend} in {sys.executable} asked for more memory than there is",
                "free memory, or lower --jobs or the maximum sizes in `shapes`",
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return {"errno": error.errno, "file": str(error.filename or ".")}
        _, message, hint, ours = whose.foreign(error, self._frontend)
        if ours:
            here = ", ".join(f"{name} {version}" for name, version in self._versions().items())
            return _failed(
                "ToolchainFailure",
                f"retarget's reader of {self._frontend} failed under {here}: {message}",
                "its traceback is in the log; another version of the framework may do better",
            )
        return _failed("ToolchainFailure", message, hint)

    def _missing(self, error: ImportError) -> list[str]:
        """The distributions to install where ``error`` is that a module is not there at all; else none."""
        missing = (error.name or "").partition(".")[0]
        if not isinstance(error, ModuleNotFoundError) or not missing or missing == "retarget":
            return []
        needed = [name for name in (*self._requires, "onnx", "numpy") if not _is_there(name)]
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        own = [file for file in frames if not file.startswith("<frozen importlib")]
        if any(_module_of(name) == missing for name in needed):
            return needed
        # A module that retarget's own code asks for; what a library or the user's code lacks is theirs to say.
        return [missing, *needed] if own and Path(own[-1]).parent.joinpath("export.py").is_file() else []


def _failed(kind: str, message: str, hint: str | None) -> dict[str, object]:
    return {"kind": kind, "message": message, "hint": hint}


def _is_there(distribution: str) -> bool:
    try:
        return importlib.util.find_spec(_module_of(distribution)) is not None
    except (ImportError, ValueError):
        return False


def _module_of(distribution: str) -> str:
    """The module of a distribution whose module is called as it is."""
    return re.split(r"[^\w.-]", distribution)[0].replace("-", "_")


if __name__ == "__main__":
    main(sys.argv[1:])

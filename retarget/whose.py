"""Whose code a source file is, and so whose failure an exception: retarget's, a library's, or the user's.

Standard library alone, Python 3.8: this serves in the user's own interpreter too (`retarget.worker_remote`).
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType

_HINT = "the log has all of it"


def foreign(error: BaseException, toolchain: str) -> tuple[str, str, str | None, bool]:
    """An exception that nobody promised: class name, message, hint, and whether it is a bug of retarget.

    It is a library's, the user's own code's, or ours. ``toolchain`` is whose it is where native code raised it.
    """
    text = f"{type(error).__name__}: {str(error).strip()}" if str(error).strip() else type(error).__name__
    text = text.partition("\n")[0]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _in_stdlib(frame.filename)]
    place = frames[-1] if frames else None
    library = type(error).__module__.partition(".")[0]
    if place is not None and is_user_code(place.filename):
        return "ToolchainFailure", f"{place.filename}:{place.lineno}: {text}", _HINT, False
    if place is not None and not _inside(place.filename, _RETARGET):
        library = _library(place.filename)
    elif library in ("builtins", "retarget", "__main__") or library in _STDLIB_MODULES:
        if type(error) is not RuntimeError:
            return type(error).__name__, text, None, True
        # What native bindings make of a C++ exception; retarget itself never raises it.
        library = toolchain
    return "ToolchainFailure", f"{library}: {text}", _HINT, False


def watch(ran: Callable[[Path], None]) -> None:
    """From now on call ``ran`` with each of the user's own source files as it is executed.

    That is so whether or not ``sys.modules`` keeps the module.
    """

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event != "exec" or not isinstance(executed := arguments[0], CodeType):
            return
        if is_user_code(executed.co_filename):
            path = Path(executed.co_filename).absolute()
            # A string may be executed under an invented name: there is no file to depend on.
            if path.is_file():
                ran(path)

    sys.addaudithook(hook)


def is_user_code(filename: str) -> bool:
    """Whether a source file is neither retarget's nor the standard library's nor an installed package's."""
    return not filename.startswith("<") and not _inside(filename, _RETARGET + _SITE + _STDLIB)


def _library(filename: str) -> str:
    """The top-level package of a file in site-packages."""
    for folder in _SITE:
        if filename.startswith(folder + os.sep):
            name = Path(filename[len(folder) + 1 :]).parts[0]
            return name[: -len(".py")] if name.endswith(".py") else name
    return Path(filename).stem


def _folders(*paths: str | None) -> tuple[str, ...]:
    return tuple({form for path in paths if path for form in (path, os.path.realpath(path))})


_RETARGET = _folders(str(Path(__file__).parent))
_SITE = _folders(
    sysconfig.get_path("purelib"),
    sysconfig.get_path("platlib"),
    *site.getsitepackages(),
    site.getusersitepackages(),
)
_STDLIB = _folders(sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
_STDLIB_MODULES = getattr(sys, "stdlib_module_names", frozenset(sys.builtin_module_names))
"""Python 3.8 and 3.9 do not say all of them."""


def _inside(filename: str, folders: tuple[str, ...]) -> bool:
    return any(filename.startswith(folder + os.sep) for folder in folders)


def _in_stdlib(filename: str) -> bool:
    return filename.startswith("<frozen") or (_inside(filename, _STDLIB) and not _inside(filename, _SITE))

"""Functions in the user's own files: ``file.py:function`` for data, metrics and factories."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from typing import TYPE_CHECKING, cast

from retarget.errors import RetargetError, ToolchainFailure, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def load_function(path: Path, name: str) -> Callable[..., object]:
    """The function ``name`` of the Python file ``path``, which may import its neighbours.

    Raises ``RetargetError`` when the file is missing, raises while it is imported, or has no such function.
    """
    if not path.is_file():
        raise RetargetError(f"{path}: no such file")
    path = path.resolve()
    # Two files of one name are two modules; dataclasses and pickle look their module up by name.
    module_name = f"_retarget_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise RetargetError(f"{path}: not a Python file", "write FILE.py:FUNCTION")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        sys.path.insert(0, str(path.parent))
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise blame(path, "importing the file", error) from error
        finally:
            sys.path.remove(str(path.parent))
    function = getattr(module, name, None)
    if function is None or not callable(function):
        names = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise RetargetError(f"{path}: no function '{name}'", did_you_mean(name, names or ("no functions",)))
    return cast("Callable[..., object]", function)


def blame(path: Path, doing: str, error: Exception) -> ToolchainFailure:
    """An exception of the user's own code as one line with the last line of ``path`` that took part in it."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path.resolve())
    ]
    place = f"{path}:{lines[-1]}" if lines else str(path)
    if isinstance(error, SyntaxError) and error.lineno is not None:
        place = f"{path}:{error.lineno}"
    words = " ".join(str(error).split())
    return ToolchainFailure(
        f"{place}: {doing} raised {type(error).__name__}{': ' + words if words else ''}",
        "this is code of your own: its traceback is in the log",
    )

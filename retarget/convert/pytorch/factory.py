"""Call the user's factory: the function that builds the module which a checkpoint belongs to."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

from retarget.errors import RetargetError, ToolchainFailure, did_you_mean

_EXAMPLE = "write FILE.py:FUNCTION, a function that returns the torch.nn.Module"


def build(file: Path, function: str, arguments: Mapping[str, object]) -> nn.Module:
    """What ``function`` of ``file`` returns. Raises ``RetargetError`` unless that is a module."""
    if not file.is_file():
        raise RetargetError(f"factory {file}: no such file", _EXAMPLE)
    with _importable(file.parent):
        try:
            source = _imported(file)
        except Exception as error:
            raise ToolchainFailure(f"factory {file} cannot be imported: {_cause(error, file)}", _EXAMPLE) from error
        maker = getattr(source, function, None)
        if not callable(maker):
            known = [name for name, value in vars(source).items() if callable(value) and not name.startswith("_")]
            raise RetargetError(
                f"factory {file}: has no function '{function}'", did_you_mean(function, known or [_EXAMPLE])
            )
        try:
            module = maker(**arguments)
        except Exception as error:
            raise ToolchainFailure(
                f"factory {file}:{function} failed: {_cause(error, file)}",
                "it is called with `factory_args` of the model's options as keyword arguments, or with none",
            ) from error
    if not isinstance(module, nn.Module):
        raise RetargetError(
            f"factory {file}:{function} returned {type(module).__name__}, not a torch.nn.Module", _EXAMPLE
        )
    return module


def _imported(file: Path) -> ModuleType:
    name = f"retarget_factory_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise RetargetError(f"factory {file}: not a Python file", _EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and annotations look their own module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the factory import its neighbours, as if it were run as a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _cause(error: Exception, file: Path) -> str:
    """``ValueError: no weights (model.py:12)``: the last line of the user's own file in the traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    where = f" ({file.name}:{line})" if line else ""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {' '.join(message.split())}{where}"

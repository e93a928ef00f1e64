"""The one place that imports coremltools.

It imports every framework that it finds (PyTorch, TensorFlow, scikit-learn, transformers), for its own frontends: up to
17 s and 800 MB in an environment that has them. None of that is needed here, so while it is imported they are hidden.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_FRAMEWORKS = ("libsvm", "sklearn", "tensorflow", "torch", "transformers", "xgboost")


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Make ``import`` of these fail, also where they are imported already."""
    kept = {name: sys.modules[name] for name in names if name in sys.modules}
    # None: what importlib takes as "not to be found".
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(kept)


# Its native parts for macOS are missing elsewhere, which it says once for each of them.
logging.getLogger("coremltools").setLevel(logging.ERROR)

if "coremltools" in sys.modules:
    import coremltools as ct
else:
    with _hidden(_FRAMEWORKS):
        import coremltools as ct

from coremltools import proto  # noqa: E402
from coremltools.converters.mil.mil import Builder as mb  # noqa: E402, N813 - what all of its users call it
from coremltools.converters.mil.mil import Function, Operation, Program, Var, types  # noqa: E402
from coremltools.converters.mil.mil import get_new_symbol as new_symbol  # noqa: E402
from coremltools.converters.mil.mil.passes import pass_pipeline  # noqa: E402
from coremltools.optimize.coreml import _quantization_passes  # noqa: E402


def _quietly(items: Iterable[T], **bar: object) -> Iterable[T]:  # noqa: ARG001 - what tqdm is told
    """In place of tqdm, which would draw bars on stderr, also where that is a file."""
    return items


for module in (pass_pipeline, _quantization_passes):
    module.tqdm = _quietly

__all__ = ["Function", "Operation", "Program", "Var", "ct", "mb", "new_symbol", "proto", "types"]

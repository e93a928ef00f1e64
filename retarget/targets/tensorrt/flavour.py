"""What differs between TensorRT and TensorRT-RTX, in one table: light, so no library is imported.

An engine of one does not load in the other. Everything else, from the parser to the runner, is one code that
takes the library's module as an argument.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from retarget.errors import MissingToolchain
from retarget.targets.tensorrt import gpu


@dataclass(frozen=True)
class Flavour:
    target: str
    """The target's name in recipes."""
    title: str
    """The product's name, for people."""
    module: str
    """Python module and distribution, which have one name."""
    extra: str
    builds_without_gpu: bool
    """Whether engines are built for capabilities that are named, rather than for the machine's own GPU."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Operator to why it is refused although the parser takes it: the builder crashes or rejects it."""

    def version(self) -> str | None:
        """Of the installed library, None where there is none; the library is not imported."""
        try:
            return importlib.metadata.version(self.module)
        except importlib.metadata.PackageNotFoundError:
            return None

    def unavailable(self) -> tuple[str, str] | None:
        """Why engines cannot be built here, as (reason, hint); None if they can."""
        if sys.platform not in {"linux", "win32"}:
            return f"{self.title} is for Linux and Windows only", "build this target on Linux"
        if self.version() is None:
            return f"{self.module} is not installed", f"pip install 'retarget[{self.extra}]'"
        reason = None if self.builds_without_gpu else gpu.missing()
        if reason is not None:
            return reason, (
                "TensorRT builds engines for the GPU of the machine that builds them: build there, "
                "or use the target tensorrt_rtx, which needs none"
            )
        return None

    def not_executable(self) -> str | None:
        """Why engines cannot be executed here; None if they can."""
        if self.version() is None:
            return f"{self.module} is not installed"
        return gpu.missing()

    def require(self) -> None:
        """Raise ``MissingToolchain`` where engines cannot be built."""
        problem = self.unavailable()
        if problem is not None:
            raise MissingToolchain(*problem)


TENSORRT = Flavour("tensorrt", "TensorRT", "tensorrt", "tensorrt", builds_without_gpu=False)

TENSORRT_RTX = Flavour(
    "tensorrt_rtx",
    "TensorRT-RTX",
    "tensorrt_rtx",
    "tensorrt-rtx",
    builds_without_gpu=True,
    broken={
        "Attention": "the builder of TensorRT-RTX 1.7 crashes on it without a GPU, in float32 and float16",
        "NonMaxSuppression": "TensorRT-RTX 1.7 parses it and has no implementation of it",
    },
)

"""Execute ``model.mlpackage``: by Core ML on a Mac, elsewhere by the interpreter, whose results are `interpreted`."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from retarget.adapt import Adapted
from retarget.facts import EmitFacts
from retarget.protocols import Runner
from retarget.targets.coreml.emit import FILE
from retarget.targets.coreml.interpreter.evaluate import Interpreter
from retarget.targets.coreml.interpreter.program import read

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs


def open(artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> Runner:  # noqa: A001 - the protocol's name
    """The interpreter in the types of the package, float16 rounded at every operation."""
    del parity, threads
    return Adapted(Interpreted(artifact / FILE, facts), facts.inputs, facts.outputs, facts.sizes)


class Interpreted:
    """The package in the interpreter, by the artifact's own names and types; a ``Runner``."""

    settings = "interpreter of ML Programs, numpy"

    def __init__(self, path: Path, facts: EmitFacts) -> None:
        self._interpreter = Interpreter(read(path))
        self._shapes = {entry.artifact_name: len(entry.spec.shape) for entry in (*facts.inputs, *facts.outputs)}

    def run(self, feeds: Feeds) -> Outputs:
        """All outputs by name. A scalar is an array of one element in the package."""
        fed = {name: array.reshape(array.shape or (1,)) for name, array in feeds.items()}
        found = self._interpreter.run(fed)
        return {
            name: np.asarray(array).reshape(()) if self._shapes.get(name) == 0 else array
            for name, array in found.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

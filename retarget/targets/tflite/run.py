"""Execute ``model.tflite`` with LiteRT on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from retarget.adapt import Adapted
from retarget.facts import EmitFacts
from retarget.litert import Loaded
from retarget.protocols import Runner
from retarget.targets.tflite.emit import FILE

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs


def open(artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> Runner:  # noqa: A001 - the protocol's name
    """With the kernels that the recipe names, which compute the same for parity and otherwise."""
    del parity
    compiled = Compiled(artifact / FILE, kernels=facts.settings["kernels"], threads=threads)
    return Adapted(compiled, facts.inputs, facts.outputs, facts.sizes)


class Compiled:
    """The model in LiteRT's interpreter, by the artifact's own names and types; a ``Runner``."""

    def __init__(self, path: Path, *, kernels: str, threads: int) -> None:
        self._loaded = Loaded(str(path), kernels, threads)
        self._inputs, self._outputs = self._loaded.borders()
        self.settings = self._loaded.settings

    def run(self, feeds: Feeds) -> Outputs:
        """All outputs by name. Raises ``ToolchainFailure`` where a kernel fails."""
        found = self._loaded.run(
            {self._inputs[name]: array for name, array in feeds.items()}, list(self._outputs.values())
        )
        return dict(zip(self._outputs, found, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded.close()

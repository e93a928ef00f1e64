"""TFLite's own interpreter as the reference. Syntax and library of Python 3.8.

It computes with the builtin kernels, without delegates, unless told otherwise: `retarget.litert` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from retarget.convert.tflite.read import Signature, Subgraph
from retarget.errors import RetargetError
from retarget.litert import Loaded

if TYPE_CHECKING:
    from typing import Self

    from retarget.protocols import Feeds, Outputs

THREADS = 2


class Interpreter:
    """One signature of a file, with the user's names for its inputs and outputs; a ``Runner``."""

    def __init__(
        self,
        path: Path,
        graph: Subgraph,
        signature: Signature,
        inputs: Sequence[str],
        outputs: Sequence[str],
        kernels: str,
    ) -> None:
        self._loaded = Loaded(str(path), kernels, THREADS)
        self.settings = self._loaded.settings
        self._inputs = dict(zip(inputs, graph.inputs))
        self._outputs = dict(zip(outputs, graph.outputs))
        self._signature = signature
        self._tensors = len(graph.tensors)

    def shapes(self) -> dict[int, list[int]]:
        """Tensor → its shape as the kernels find it, -1 where a size is open. Executes nothing."""
        if self._signature.subgraph != 0:
            return {}  # the interpreter prepares such a graph only to run it
        return {
            each["index"]: [int(size) for size in each.get("shape_signature", each["shape"])]
            for each in self._loaded.details()
            if each["index"] < self._tensors  # behind these are the kernels' own
        }

    def run(self, feeds: Feeds) -> Outputs:
        """Outputs by name. Raises ``RetargetError`` for feeds that do not fit, ``ToolchainFailure`` from a kernel."""
        for name in self._inputs:
            if name not in feeds:
                raise RetargetError(f"input '{name}' is not fed", f"feed {', '.join(self._inputs)}")
        if self._signature.subgraph:
            return self._run_one_of_many(feeds)
        found = self._loaded.run(
            {index: feeds[name] for name, index in self._inputs.items()}, list(self._outputs.values())
        )
        return dict(zip(self._outputs, found))

    def _run_one_of_many(self, feeds: Feeds) -> Outputs:
        named = {self._signature.inputs[index]: feeds[name] for name, index in self._inputs.items()}
        found = self._loaded.call(self._signature.key, named)
        return {name: found[self._signature.outputs[index]] for name, index in self._outputs.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded.close()

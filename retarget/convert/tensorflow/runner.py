"""TensorFlow itself as the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retarget.convert.tensorflow.framework import quiet, settings
from retarget.errors import RetargetError

if TYPE_CHECKING:
    from types import TracebackType

    from retarget.protocols import Array, Feeds, Outputs


class TensorFlowRunner:
    """``call`` gets a feed for each of ``inputs`` by name and gives the outputs in their order; a ``Runner``."""

    def __init__(self, call: Callable[[Feeds], Sequence[Array]], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._call = call
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self.settings = settings()

    def run(self, feeds: Feeds) -> Outputs:
        """The outputs by name. Raises ``RetargetError`` where TensorFlow does."""
        missing = [name for name in self._inputs if name not in feeds]
        if missing:
            raise RetargetError(f"input '{missing[0]}' is not fed", f"feed {', '.join(self._inputs)}")
        arrays = {name: np.asarray(feeds[name]) for name in self._inputs}
        try:
            with quiet():
                results = self._call(arrays)
        except Exception as error:
            shapes = ", ".join(f"{name}{list(array.shape)}" for name, array in arrays.items())
            raise RetargetError(
                f"TensorFlow itself fails on {shapes}: {said(error)}",
                "check the inputs and shapes of the recipe against what the model takes",
            ) from error
        return {name: np.asarray(array) for name, array in zip(self._outputs, results)}

    def __enter__(self) -> TensorFlowRunner:  # noqa: PYI034 - Python 3.8
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


_TRACE = ("Graph execution error", "Detected at", "Node:", "in user code", "File ")
"""How the lines begin that say where, before those that say what."""


def said(error: Exception) -> str:
    """What went wrong, in one line: the first of TensorFlow's message that is none of its trace."""
    message = str(getattr(error, "message", "") or error)
    lines = [line.strip() for line in message.splitlines() if line.strip()] or [type(error).__name__]
    line = next((line for line in lines if not line.startswith(_TRACE)), lines[0])
    return line if len(line) <= 300 else f"{line[:297]}..."

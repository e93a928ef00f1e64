"""Feeds of any number of rows, run on what takes one number of rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs, Runner


class InRows:
    """``runner``, which takes ``rows`` rows a call, as one that takes any number, by as many calls as that needs.

    ``batched`` names the inputs whose axis 0 is the batch, of one length; every output has it as its axis 0. ``name``
    is what the notes call it.
    """

    def __init__(self, runner: Runner, batched: Sequence[str], rows: int, *, name: str) -> None:
        self._runner = runner
        self._batched = batched
        self.rows = rows
        self._name = name
        self.settings = runner.settings
        self.filled = 0
        """Rows that were fed again to fill up a call, and whose outputs were cut off."""

    def run(self, feeds: Feeds) -> Outputs:
        count = len(feeds[self._batched[0]])
        pieces = []
        for start in range(0, count, self.rows):
            taken = np.arange(start, start + self.rows) % count
            part = {name: array[taken] if name in self._batched else array for name, array in feeds.items()}
            pieces.append(self._runner.run(part))
        self.filled += -count % self.rows
        return {name: np.concatenate([piece[name] for piece in pieces])[:count] for name in pieces[0]}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of it."""
        if not self.filled:
            return ()
        rows = f"{self.filled} row{'' if self.filled == 1 else 's'}"
        return (f"{self._name} takes batches of {self.rows} alone: {rows} fed again to fill them up do not count",)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, value, trace)

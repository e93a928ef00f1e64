"""What a long step says of how far it is. Outside a worker it goes nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Sink: TypeAlias = Callable[[int, int, str], None]


def progress(done: int, total: int, text: str) -> None:
    """Say that ``done`` of ``total`` (0: nobody knows) is behind us, and what comes now, in a few words."""
    if _sink is not None:
        _sink(done, total, text)


def connect(sink: Sink | None) -> None:
    """Send what ``progress`` says to ``sink``; None disconnects. A worker does this once."""
    global _sink
    _sink = sink


_sink: Sink | None = None

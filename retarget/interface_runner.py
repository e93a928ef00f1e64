"""The source framework as a runner that speaks the user's view: what an artifact is held against."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from retarget.interface import Interface, Normalize, inverse

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds, Outputs, Runner
    from retarget.spec import TensorSpec


def wrap(runner: Runner, interface: Interface, inputs: Sequence[TensorSpec]) -> Runner:
    """``runner``, which speaks the source's view, as one that speaks the user's. ``inputs`` are the source's specs."""
    return _Wrapped(runner, interface, interface.normalized(inputs)) if interface.changes else runner


class _Wrapped:
    def __init__(self, runner: Runner, interface: Interface, raw: str | None) -> None:
        self._runner = runner
        self._interface = interface
        self._raw = raw

    @property
    def settings(self) -> str:
        """The runner's own, which it may only know after its first run."""
        return self._runner.settings

    def run(self, feeds: Feeds) -> Outputs:
        """The runner's outputs in the user's layouts, for feeds in the user's layouts and pixels."""
        outputs = self._runner.run(source_feeds(feeds, self._interface, self._raw))
        return {
            name: _turned(array, inverse(self._interface.permutation(name, array.ndim)))
            for name, array in outputs.items()
        }

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, value, trace)


def source_feeds(feeds: Feeds, interface: Interface, raw: str | None) -> dict[str, Array]:
    """``feeds`` of the user's view in the source's. ``raw`` is the input that ``normalize`` is of."""
    given = {name: _turned(array, interface.permutation(name, array.ndim)) for name, array in feeds.items()}
    if interface.normalize is not None and raw is not None and raw in given:
        pixels = given[raw]
        given[raw] = normalized(pixels, interface.normalize, interface.channel_axis(raw, pixels.ndim))
    return given


def normalized(pixels: Array, normalize: Normalize, axis: int) -> Array:
    """``pixels`` as float32 as the model was trained on them; ``axis`` is that of the channels."""
    last = np.moveaxis(pixels.astype(np.float64), axis, -1)
    if normalize.swap_channels:
        last = last[..., ::-1]
    mean, std = normalize.channels(last.shape[-1])
    done = (last * normalize.factor - np.array(mean)) / np.array(std)
    return np.ascontiguousarray(np.moveaxis(done, -1, axis).astype(np.float32))


def _turned(array: Array, perm: tuple[int, ...] | None) -> Array:
    return array if perm is None else np.ascontiguousarray(array.transpose(perm))

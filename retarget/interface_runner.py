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
        self.settings = runner.settings

    def run(self, feeds: Feeds) -> Outputs:
        """The runner's outputs in the user's layouts, for feeds in the user's layouts and pixels."""
        given = {name: self._taken(name, array) for name, array in feeds.items()}
        outputs = self._runner.run(given)
        return {
            name: _turned(array, inverse(self._interface.permutation(name, array.ndim)))
            for name, array in outputs.items()
        }

    def _taken(self, name: str, array: Array) -> Array:
        turned = _turned(array, self._interface.permutation(name, array.ndim))
        normalize = self._interface.normalize
        if normalize is None or name != self._raw:
            return turned
        return normalized(turned, normalize, self._interface.channel_axis(name, array.ndim))

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, value, trace)


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

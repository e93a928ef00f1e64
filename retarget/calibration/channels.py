"""Statistics of single channels, in one pass over the data: what a factor or an offset of each channel is chosen by."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retarget.calibration.observers import PACK_LIMIT
from retarget.errors import RetargetError, ToolchainFailure
from retarget.graph import initializer_bytes
from retarget.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import onnx_ir as ir

    from retarget.protocols import Feeds

    Values: TypeAlias = Mapping[str, int]

Floats: TypeAlias = NDArray[np.float64]


def channel_absmax(model: ir.Model, values: Values, feeds: Iterable[Feeds], *, threads: int = 2) -> dict[str, Floats]:
    """Largest magnitude for each channel, by name; ``values`` says which axis of each holds the channels.

    One batch's values are held at a time. Raises ``RetargetError`` when there are no feeds.
    """
    found: dict[str, Floats] = {}
    for name, rows in _channels(model, values, feeds, threads):
        most = np.abs(rows).max(axis=1, initial=0)
        found[name] = np.maximum(found[name], most) if name in found else most
    return found


def channel_means(model: ir.Model, values: Values, feeds: Iterable[Feeds], *, threads: int = 2) -> dict[str, Floats]:
    """Mean over all samples and positions for each channel, by name; as `channel_absmax`."""
    sums: dict[str, Floats] = {}
    counts: dict[str, int] = {}
    for name, rows in _channels(model, values, feeds, threads):
        sums[name] = sums.get(name, 0) + rows.sum(axis=1, dtype=np.float64)
        counts[name] = counts.get(name, 0) + rows.shape[1]
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def _channels(
    model: ir.Model, values: Values, feeds: Iterable[Feeds], threads: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(name, array of [channels, everything else]) of each value, a batch at a time."""
    names = list(values)
    fed = False
    with _opened(model, names, threads) as session:
        for batch in feeds:
            fed = True
            outputs = session.run(batch, names)
            for name in names:
                array = np.moveaxis(outputs.pop(name).astype(np.float32, copy=False), values[name], 0)
                yield name, array.reshape(array.shape[0], -1)
    if not fed:
        raise RetargetError("there are no samples to take channels' statistics of")


def _opened(model: ir.Model, names: Sequence[str], threads: int) -> Session:
    if initializer_bytes(model) < PACK_LIMIT:
        try:
            return Session(model, extra_outputs=names, optimize=True, threads=threads, arena=False)
        except ToolchainFailure:
            # ONNX Runtime 1.31 turns int8 activations to uint8, and leaves the type behind a Reshape as it was. What
            # is wrong with the model itself fails once more.
            return Session(model, extra_outputs=names, threads=threads, arena=False)
    return Session(model, extra_outputs=names, threads=threads, arena=False)

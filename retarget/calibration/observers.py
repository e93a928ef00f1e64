"""Statistics of every float tensor in one pass over the data, in memory that does not grow with it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retarget import graph
from retarget.calibration.ranges import Ranges, TensorRange
from retarget.errors import RetargetError
from retarget.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from retarget.protocols import Array, Feeds

GROUP_BYTES = 1 << 30
"""Activations that one session keeps at a time; a model with more runs in several sessions, group by group."""

PACK_LIMIT = 512 << 20
"""ONNX Runtime's optimizations copy the weights of a session: only below this many bytes are they worth it."""

_CHUNK = 1 << 18
_PAGE = 256
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


class Observer:
    """Counts the values of one tensor by the upper 16 bits of their float32 form.

    Counts are kept in pages of 256 bins, made when they are first needed: a tensor uses a few dozen of the 256.
    """

    def __init__(self) -> None:
        self.min = np.inf
        self.max = -np.inf
        self.nan_count = 0
        self.inf_count = 0
        self._pages: dict[int, NDArray[np.int64]] = {}

    def add(self, values: Array) -> None:
        """Count ``values``, of any shape and float dtype."""
        # A float64 beyond float32 is an infinity there, and is counted as one.
        with np.errstate(over="ignore", invalid="ignore"):
            flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            self._add(flat[start : start + _CHUNK])

    def _add(self, chunk: NDArray[np.float32]) -> None:
        finite = chunk
        low, high = float(chunk.min()), float(chunk.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            self.nan_count += int(np.isnan(chunk).sum())
            self.inf_count += int(np.isinf(chunk).sum())
            finite = chunk[np.isfinite(chunk)]
            if not finite.size:
                return
            low, high = float(finite.min()), float(finite.max())
        self.min, self.max = min(self.min, low), max(self.max, high)
        # The upper half of each float where the machine is little-endian, as every one that ONNX Runtime runs on is.
        counts = np.bincount(finite.view(np.uint16)[1::2], minlength=1 << 16).reshape(-1, _PAGE)
        for page in np.flatnonzero(counts.any(axis=1)):
            self._count(int(page), counts[page])

    def _count(self, page: int, counts: NDArray[np.int64]) -> None:
        if page in self._pages:
            self._pages[page] += counts
        else:
            self._pages[page] = counts.astype(np.int64)

    def merge(self, other: Observer) -> None:
        """Add what ``other`` has seen: exactly as if this observer had seen it."""
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)
        self.nan_count += other.nan_count
        self.inf_count += other.inf_count
        for page, counts in other._pages.items():
            self._count(page, counts)

    @property
    def seen(self) -> bool:
        """Whether any value was counted."""
        return bool(self._pages or self.nan_count or self.inf_count)

    def result(self) -> TensorRange:
        """The statistics so far; a tensor without finite values has the range 0 to 0."""
        pages = sorted(self._pages)
        found = [(np.flatnonzero(self._pages[page]), page) for page in pages]
        return TensorRange(
            min=self.min if pages else 0.0,
            max=self.max if pages else 0.0,
            nan_count=self.nan_count,
            inf_count=self.inf_count,
            bins=np.concatenate(
                [np.empty(0, np.uint16), *((used + page * _PAGE).astype(np.uint16) for used, page in found)]
            ),
            counts=np.concatenate([np.empty(0, np.int64), *(self._pages[page][used] for used, page in found)]),
        )


def observe(
    model: ir.Model, feeds: Iterable[Feeds], *, values: Sequence[str] | None = None, threads: int = 2
) -> Ranges:
    """Run ``model`` on ``feeds``, once each, and count ``values``: by default every float tensor of the main graph.

    Raises ``RetargetError`` when there are no feeds.
    """
    names = observable(model) if values is None else list(values)
    observers = {name: Observer() for name in names}
    samples = 0
    with ExitStack() as stack:
        sessions: list[tuple[Session, list[str]]] = []
        for batch in feeds:
            if not sessions:
                optimize = graph.initializer_bytes(model) < PACK_LIMIT
                sessions = [
                    (
                        stack.enter_context(Session(model, extra_outputs=group, optimize=optimize, threads=threads)),
                        group,
                    )
                    for group in _groups(model, names, batch)
                ]
            for session, group in sessions:
                for name, array in session.run(batch, group).items():
                    if _is_float(array):
                        observers[name].add(array)
            samples += _samples(batch)
    if not samples:
        raise RetargetError("there are no samples to calibrate with")
    # A value whose type the graph does not tell may turn out an integer; it has no range.
    return Ranges({name: one.result() for name, one in observers.items() if one.seen}, samples)


def observable(model: ir.Model) -> list[str]:
    """Names of the float tensors that depend on the inputs: the inputs themselves and what nodes compute."""
    values = [
        *model.graph.inputs,
        *(value for node in model.graph if node.op_type != "Constant" for value in node.outputs),
    ]
    return [
        value.name
        for value in values
        if value.name
        and (value.type is None or isinstance(value.type, ir.TensorType))
        and (value.dtype is None or value.dtype in _FLOATS)
    ]


def _groups(model: ir.Model, names: Sequence[str], batch: Feeds) -> Iterator[list[str]]:
    """``names`` in runs whose values take at most ``GROUP_BYTES`` at the sizes of ``batch``."""
    sizes: dict[str, int] = {}
    known = {value.name: value for value in model.graph.inputs}
    for name, array in batch.items():
        if name in known:
            dims = zip(known[name].shape or (), array.shape, strict=False)
            sizes |= {dim.value: size for dim, size in dims if isinstance(dim, ir.SymbolicDim) and dim.value}
    known |= {value.name: value for node in model.graph for value in node.outputs}
    group: list[str] = []
    held = 0
    for name in names:
        size = 4 * ((graph.numel(known[name], sizes) if name in known else None) or 0)
        if group and held + size > GROUP_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    yield group


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _samples(batch: Feeds) -> int:
    """Rows of a batch: the first dimension that all inputs share, else the batch is one sample."""
    firsts = {array.shape[0] if array.ndim else 1 for array in batch.values()}
    return firsts.pop() if len(firsts) == 1 else 1

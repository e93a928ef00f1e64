"""Statistics of every float tensor in one pass over the data, in memory that does not grow with it.

The model runs once for each batch with the tensors as outputs, which are counted side by side and freed one by one.
What is a copy of another tensor, or a clipped one, is neither computed for it nor counted: its statistics follow.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retarget import graph
from retarget.calibration.ranges import Ranges, TensorRange
from retarget.calibration.statistics import rows
from retarget.errors import RetargetError
from retarget.memory import anonymous_bytes
from retarget.processor import cores
from retarget.session import Session
from retarget.spec import batch_symbol, batched_inputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from retarget.protocols import Array, Feeds, Outputs

PIECE_BYTES = 64 << 20
"""A batch is cut into pieces whose observed values take no more, unless a single row does."""

GROUP_BYTES = 1 << 30
"""Observed values that one session computes; where a row has more, it runs in several sessions, group by group."""

PACK_LIMIT = 512 << 20
"""ONNX Runtime's optimizations copy the weights of a session: only below this many bytes are they worth it."""

CHECKPOINT_S = 20.0
"""How often what was counted so far is written down."""

_CHUNK = 1 << 18
_PAGE = 256
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
_COPYING = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


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
        counts = np.bincount(finite.view(np.uint16)[1::2])
        pages = np.zeros((-(-len(counts) // _PAGE), _PAGE), np.int64)
        pages.reshape(-1)[: len(counts)] = counts
        for page in np.flatnonzero(pages.any(axis=1)):
            self._count(int(page), pages[page])

    def _count(self, page: int, counts: NDArray[np.int64]) -> None:
        if page in self._pages:
            self._pages[page] += counts
        else:
            self._pages[page] = counts.copy()

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


# ---- a model


def observe(
    model: ir.Model,
    feeds: Iterable[Feeds],
    *,
    values: Sequence[str] | None = None,
    threads: int | None = None,
    memory_bytes: int | None = None,
    checkpoint: Path | None = None,
) -> Ranges:
    """Run ``model`` on ``feeds``, once each, and count ``values``: by default every float tensor of the main graph.

    ``threads``: all cores if None. ``memory_bytes`` is what this process may take of anonymous memory: with less of
    it left, fewer values are computed at a time, in more runs. ``checkpoint`` is a file that keeps what was counted:
    where it is there already, the same feeds go on from it. Raises ``RetargetError`` when there are no feeds.
    """
    names = observable(model) if values is None else list(values)
    threads = cores() if threads is None else threads
    followers = _followers(model, names)
    group_bytes = GROUP_BYTES if memory_bytes is None else _left(model, memory_bytes)
    counting = _Counting(model, [name for name in names if name not in followers], threads, group_bytes)
    kept: Ranges | None = None
    written = time.monotonic()
    with counting:
        for index, batch in enumerate(feeds):
            if index == 0 and checkpoint is not None:
                kept = _resumable(checkpoint, batch)
            if kept is not None and index < kept.batches:
                continue
            counting.add(batch)
            if checkpoint is not None and time.monotonic() - written > CHECKPOINT_S:
                _write(counting.ranges(kept), checkpoint)
                written = time.monotonic()
    counted = counting.ranges(kept)
    if not counted.samples:
        raise RetargetError("there are no samples to calibrate with")
    tensors = dict(counted)
    for name, follower in followers.items():
        if follower.source in tensors:
            tensors[name] = follower.of(tensors[follower.source])
    return Ranges({name: tensors[name] for name in names if name in tensors}, counted.samples, counted.batches)


class _Counting:
    """The sessions that compute ``names``, opened for the first batch, and what was counted of their outputs."""

    def __init__(self, model: ir.Model, names: Sequence[str], threads: int, group_bytes: int) -> None:
        self._model = model
        self._threads = threads
        self._group_bytes = group_bytes
        self._observers = {name: Observer() for name in names}
        self._batched: tuple[str, ...] = ()
        self._rows = 0
        self._sessions: list[tuple[Session, list[str]]] = []
        self._samples = self._batches = 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        self._pool = self._stack.enter_context(ThreadPoolExecutor(self._threads, thread_name_prefix="count"))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, batch: Feeds) -> None:
        """Run the model on ``batch`` and count."""
        if not self._sessions:
            self._open(batch)
        for piece in _pieces(batch, self._batched, self._rows):
            for session, group in self._sessions:
                outputs = session.run(piece, group)
                # Numpy counts without holding Python's lock.
                for _ in self._pool.map(lambda name, outputs=outputs: self._count(name, outputs), group):
                    pass
        self._samples += rows(batch)
        self._batches += 1

    def _open(self, batch: Feeds) -> None:
        """Decide how many rows and values are computed at a time, and make the sessions."""
        inputs, outputs = (
            tuple(map(graph.value_spec, ends)) for ends in (self._model.graph.inputs, self._model.graph.outputs)
        )
        sizes = _sizes(self._model, batch)
        symbol = batch_symbol(inputs, outputs)
        if symbol is not None:
            row = sum(_bytes(self._model, self._observers, {**sizes, symbol: 1}).values())
            self._rows = max(1, min(PIECE_BYTES, self._group_bytes) // max(row, 1))
            self._batched = batched_inputs(inputs, symbol)
            sizes[symbol] = min(sizes[symbol], self._rows)
        for group in _groups(_bytes(self._model, self._observers, sizes), self._group_bytes):
            # No arena: it would keep the memory of outputs that are counted and freed.
            session = Session(
                self._model,
                extra_outputs=group,
                optimize=_optimized(self._model),
                threads=self._threads,
                arena=False,
            )
            self._sessions.append((self._stack.enter_context(session), group))

    def _count(self, name: str, outputs: Outputs) -> None:
        array = outputs.pop(name)
        # A value whose type the graph does not tell may turn out an integer; it has no range.
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            self._observers[name].add(array)

    def ranges(self, before: Ranges | None) -> Ranges:
        """What was counted, with what was counted ``before``."""
        tensors = {name: one.result() for name, one in self._observers.items() if one.seen}
        ranges = Ranges(tensors, self._samples, self._batches)
        return ranges if before is None else before.merged(ranges)


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


# ---- values that follow from others


@dataclass(frozen=True)
class _Follower:
    """A value that holds what ``source`` holds, clipped to each of ``bounds`` in turn."""

    source: str
    bounds: tuple[tuple[float, float], ...]

    def of(self, source: TensorRange) -> TensorRange:
        for low, high in self.bounds:
            source = source.clipped(low, high)
        return source


def _followers(model: ir.Model, names: Sequence[str]) -> dict[str, _Follower]:
    """Those of ``names`` that follow from others of them, which follow from none."""
    steps = {}
    for node in model.graph:
        clips, source = _bounds(node), node.inputs[0] if node.inputs else None
        # A float64 is rounded when it is counted, a bound is not.
        if clips is not None and source is not None and source.dtype in _FLOATS - {ir.DataType.DOUBLE}:
            steps[node.outputs[0].name] = source.name, clips
    wanted = set(names)
    followers = {}
    for name in names:
        place: str | None = name
        passed: tuple[tuple[float, float], ...] = ()
        while place in steps:
            place, bounds = steps[place]
            passed = (*bounds, *passed)
            if place is not None and place in wanted:
                followers[name] = _Follower(place, passed)
    return followers


def _bounds(node: ir.Node) -> tuple[tuple[float, float], ...] | None:
    """What ``node`` clips its first input to, maybe nothing; None if it does something else."""
    if node.domain or node.op_type not in _COPYING | {"Relu", "Clip"}:
        return None
    if node.op_type in _COPYING:
        return ()
    if node.op_type == "Relu":
        return ((0.0, np.inf),)
    ends = [-np.inf, np.inf]
    for index, end in enumerate(node.inputs[1:]):
        if end is not None:
            tensor = ir.convenience.get_const_tensor(end)
            if tensor is None:
                return None
            ends[index] = float(tensor.numpy().reshape(-1)[0])
    return ((ends[0], ends[1]),)


# ---- checkpoints


def _resumable(checkpoint: Path, first: Feeds) -> Ranges | None:
    """What ``checkpoint`` has of feeds that begin with ``first``; None where it is of batches of another size."""
    try:
        kept = Ranges.load(checkpoint)
    except RetargetError:
        # Not there yet.
        return None
    return kept if kept.samples == kept.batches * rows(first) else None


def _write(ranges: Ranges, checkpoint: Path) -> None:
    """Replace the file by a whole one at once: we may be killed at any moment."""
    whole = checkpoint.with_suffix(".new")
    with whole.open("wb") as file:
        ranges.write(file)
        file.flush()
        os.fsync(file.fileno())
    whole.replace(checkpoint)


# ---- sizes


def _left(model: ir.Model, memory_bytes: int) -> int:
    """Bytes of values that fit below a limit of our memory: half of what is left, the rest is the runtime's own."""
    copies = 2 * graph.initializer_bytes(model) if _optimized(model) else 0
    return max(0, (memory_bytes - anonymous_bytes(os.getpid()) - copies) // 2)


def _optimized(model: ir.Model) -> bool:
    return graph.initializer_bytes(model) < PACK_LIMIT


def _sizes(model: ir.Model, batch: Feeds) -> dict[str, int]:
    """The size of each symbolic dimension of the inputs in ``batch``."""
    return {
        dim.value: size
        for value in model.graph.inputs
        if value.name is not None and value.name in batch
        for dim, size in zip(value.shape or (), batch[value.name].shape, strict=False)
        if isinstance(dim, ir.SymbolicDim) and dim.value
    }


def _bytes(model: ir.Model, names: Iterable[str], sizes: Mapping[str, int]) -> dict[str, int]:
    """How much each of ``names`` takes; 0 where the graph does not tell."""
    values = {value.name: value for value in model.graph.inputs}
    values |= {value.name: value for node in model.graph for value in node.outputs}
    return {name: 4 * (graph.numel(values.get(name), sizes) or 0) for name in names}


def _groups(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Names in runs that take at most ``limit`` bytes together."""
    group: list[str] = []
    held = 0
    for name, size in sizes.items():
        if group and held + size > limit:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    yield group


def _pieces(batch: Feeds, batched: Sequence[str], rows: int) -> Iterator[Feeds]:
    """``batch`` cut along the first axis of the inputs ``batched``, into at most ``rows`` each."""
    count = len(batch[batched[0]]) if batched else 0
    if count <= rows:
        yield batch
        return
    for start in range(0, count, rows):
        yield {name: array[start : start + rows] if name in batched else array for name, array in batch.items()}

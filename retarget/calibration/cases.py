"""Parity cases: the feeds on which every artifact is held against the source framework.

The data itself; all dimensions at min, at opt and at max (no product), and at opt with the largest batch. Samples are
tiled or cropped along the batch. Where another dimension changes, floats are tiled or cropped along it too, so that
they stay in the range that int8 was calibrated for; integers and masks are generated. What is generated comes from a
fixed seed and looks at what the graph does with an input: an index stays within the table that it indexes, a mask
leaves something unmasked in every row.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from retarget.calibration.roles import Role, role
from retarget.errors import RetargetError
from retarget.facts import Case
from retarget.graph import value_spec
from retarget.masks import padded
from retarget.spec import DEFAULT_RANGE, batch_symbol, batched_inputs, symbols

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from retarget.calibration.data import Samples
    from retarget.facts import DataOrigin
    from retarget.protocols import Array, Feeds
    from retarget.spec import DimRange, TensorSpec

MAX_DATA_CASES = 16
"""Batches of the data that become cases of their own: the reference outputs of all are kept."""

EXTENTS = ("min", "opt", "max")
SEED = 2026


def parity_cases(
    model: ir.Model,
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, DimRange],
    samples: Samples | None,
    origin: DataOrigin,
) -> list[tuple[Case, Feeds]]:
    """Feeds at the data's own sizes, at min, opt and max, and at opt with the largest batch, each size once.

    The last is for what has all dimensions but the batch at one size only: its rows are held against the source too.

    ``origin`` says what ``samples`` are; a case that could not be made from them is ``generated``.
    Raises ``RetargetError`` when the data has a size that ``shapes`` excludes.
    """
    ranges = {symbol: shapes.get(symbol, DEFAULT_RANGE) for symbol in dict.fromkeys([*shapes, *symbols(inputs)])}
    batch = batch_symbol(inputs, [value_spec(value) for value in model.graph.outputs])
    data = _data(inputs, ranges, samples, batch) if samples is not None else []
    cases: list[tuple[Case, Feeds]] = [
        (Case(name=f"data{index}", sizes=one.sizes, origin=origin), one.feeds)
        for index, one in enumerate(one for one in data if not one.short)
    ]
    pool = _Pool(data, batch, batched_inputs(inputs, batch) if batch else ())
    roles = {spec.name: role(model, spec) for spec in inputs}
    wanted = {name: {symbol: int(getattr(size, name)) for symbol, size in ranges.items()} for name in EXTENTS}
    if batch:
        wanted["rows"] = wanted["opt"] | {batch: ranges[batch].max}
    for name, sizes in wanted.items():
        if any(case.sizes == sizes for case, _ in cases):
            continue
        feeds = pool.at(sizes)
        found: DataOrigin = origin if feeds else "generated"
        if feeds is None:
            floats = pool.floats_at([spec for spec in inputs if not roles[spec.name].mask], sizes)
            drawn = [spec for spec in inputs if spec.name not in floats]
            feeds = {**floats, **{spec.name: _draw(spec, roles[spec.name], spec.at(sizes), SEED) for spec in drawn}}
        cases.append((Case(name=name, sizes=sizes, origin=found), feeds))
    return cases


def generate(model: ir.Model | None, spec: TensorSpec, shape: tuple[int, ...], seed: int) -> Array:
    """One input of ``shape`` that depends on nothing but its arguments; without a model, its name and dtype decide."""
    return _draw(spec, role(model, spec), shape, seed)


# ---- from data


@dataclass(frozen=True)
class _Sized:
    sizes: dict[str, int]
    feeds: Feeds
    short: bool
    """Too few rows for the model: they only serve to be tiled."""


def _data(
    inputs: Sequence[TensorSpec], ranges: Mapping[str, DimRange], samples: Samples, batch: str | None
) -> list[_Sized]:
    found: list[_Sized] = []
    size = ranges[batch].opt if batch else None
    for feeds in itertools.islice(samples.batches(size), MAX_DATA_CASES):
        bound = {
            dim: length
            for spec in inputs
            for dim, length in zip(spec.shape, feeds[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }
        short = batch is not None and bound[batch] < ranges[batch].min
        for symbol, length in bound.items():
            extent = ranges[symbol]
            if not (extent.min <= length <= extent.max or (short and symbol == batch)):
                raise RetargetError(
                    f"the data has {symbol} = {length}, shapes allow {symbol} = {extent}",
                    f"widen shapes: {symbol}, or give other data",
                )
        sizes = {symbol: bound.get(symbol, extent.opt) for symbol, extent in ranges.items()}
        found.append(_Sized(sizes, feeds, short))
    return found


class _Pool:
    """The rows of all data whose sizes are those of the first, the batch aside."""

    def __init__(self, data: Sequence[_Sized], batch: str | None, batched: Sequence[str]) -> None:
        self._batch = batch
        self._batched = frozenset(batched)
        self._rest = self._without_batch(data[0].sizes) if data else None
        alike = [one for one in data if self._without_batch(one.sizes) == self._rest]
        self._rows: dict[str, list[Array]] = {}
        for one in alike if batch else alike[:1]:
            for name, array in one.feeds.items():
                self._rows.setdefault(name, []).append(array)

    def _without_batch(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {symbol: size for symbol, size in sizes.items() if symbol != self._batch}

    def at(self, sizes: Mapping[str, int]) -> Feeds | None:
        """Rows repeated or cut to the batch of ``sizes``; None when other sizes differ, or without a batch.

        An input without rows is the one of the first sample.
        """
        if self._rest is None or self._batch is None or self._without_batch(sizes) != self._rest:
            return None
        wanted = np.arange(sizes[self._batch])
        feeds: dict[str, Array] = {}
        for name, parts in self._rows.items():
            if name in self._batched:
                rows = np.concatenate(parts)
                feeds[name] = rows[wanted % len(rows)]
            else:
                feeds[name] = parts[0]
        return feeds

    def floats_at(self, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> Feeds:
        """Those of ``inputs`` that are floats in the data, repeated or cut along every axis to ``sizes``."""
        feeds: dict[str, Array] = {}
        for spec in inputs:
            parts = self._rows.get(spec.name, [])
            if not parts or "float" not in spec.dtype:
                continue
            array = np.concatenate(parts) if spec.name in self._batched else parts[0]
            for axis, size in enumerate(spec.at(sizes)):
                array = array.take(np.arange(size) % array.shape[axis], axis)
            feeds[spec.name] = array
        return feeds


# ---- generated


def _draw(spec: TensorSpec, found: Role, shape: tuple[int, ...], seed: int) -> Array:
    rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    dtype = np.dtype(ml_dtypes.bfloat16 if spec.dtype == "bfloat16" else spec.dtype)
    if found.mask:
        return padded(rng, shape).astype(dtype)
    high = found.high
    if dtype.kind not in "iub":
        if not found.whole:
            return rng.standard_normal(shape, dtype=np.float32).astype(dtype)
        # Beyond that a float may be rounded to what the table ends at.
        high = min(high, 2 ** (ml_dtypes.finfo(dtype).nmant + 1))
    return rng.integers(min(found.low, high), high, size=shape, endpoint=True).astype(dtype)

"""Samples to feed: ``.npz``, a folder of ``.npy``, of images or of sound, ``file.py:function``.

An array of the input's own rank holds samples along its first axis, which are fed in batches; one rank more means
whole inputs along the first axis. Nothing is loaded that is not asked for: stored members of an ``.npz`` and
``.npy`` files are mapped, compressed members are streamed.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypeAlias

import ml_dtypes
import numpy as np

from retarget.calibration.arrays import folder_items, folder_names, function_items, open_npz
from retarget.calibration.audio import SoundReader
from retarget.calibration.folders import media_files, read_labels
from retarget.calibration.images import ImageReader
from retarget.errors import RetargetError, did_you_mean
from retarget.preprocess import check_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from retarget.calibration.arrays import ArrayFile, Item
    from retarget.preprocess import Classes, Media, Preprocess
    from retarget.protocols import Array
    from retarget.spec import TensorSpec

    Batch: TypeAlias = dict[str, Array]
    OpenItems: TypeAlias = Callable[[], Iterator[Item]]

HINT = "an array holds samples along its first axis, or whole inputs along one more axis in front"


def open_samples(
    path: Path,
    specs: Sequence[TensorSpec],
    *,
    function: str | None,
    limit: int | None,
    extra: Sequence[str] = (),
    preprocess: Preprocess | None = None,
    classes: Classes | None = None,
) -> Samples:
    """The samples in ``path`` for the inputs ``specs``; ``extra`` names further arrays, such as labels.

    ``limit`` takes the first ones only. ``preprocess`` is for a folder of images or sound, whose labels are integers
    that ``folders.read_labels`` finds by the one name in ``extra`` and ``classes``. Raises ``RetargetError`` that names
    the array or file, what was expected and what was found, when one is missing, does not fit its input or is empty.
    """
    if not path.exists():
        raise RetargetError(f"{path}: no such file or folder")
    if function is not None:
        return _Items(path, specs, limit, extra, lambda: function_items(path, function, [s.name for s in specs], extra))
    if path.is_dir():
        media = check_folder(path, preprocess)
        if media is not None and preprocess is not None:
            return _open_media(path, media, specs, limit, extra, preprocess, classes)
        names = [spec.name for spec in specs] + list(extra)
        stems = folder_names(path, names)
        return _Items(path, specs, limit, extra, lambda: folder_items(path, names, stems), count=len(stems))
    if path.suffix != ".npz":
        raise RetargetError(
            f"{path}: not a form of data that is known",
            "give an .npz, a folder with <input>/0000.npy or of images, or file.py:function",
        )
    return _Table(path, specs, limit, extra, open_npz(path))


def _open_media(
    path: Path,
    media: Media,
    specs: Sequence[TensorSpec],
    limit: int | None,
    extra: Sequence[str],
    preprocess: Preprocess,
    classes: Classes | None,
) -> Samples:
    if len(specs) != 1:
        raise RetargetError(
            f"{path}: a folder of {media} feeds one input, and the model has {len(specs)}: "
            f"{', '.join(spec.name for spec in specs)}",
            "give arrays of all inputs, as .npz or file.py:function",
        )
    (spec,) = specs
    reader = (ImageReader if media == "images" else SoundReader)(spec, preprocess)
    files = media_files(path, media)
    labels = {name: read_labels(path, files, name, classes) for name in extra}

    def items() -> Iterator[Item]:
        for index, file in enumerate(files):
            numbers = {name: np.asarray(found.numbers[index]) for name, found in labels.items()}
            yield {spec.name: reader.read(file), **numbers}

    samples = _Items(path, specs, limit, extra, items, count=len(files))
    samples.classes = next((found.counted for found in labels.values()), None)
    return samples


class Samples:
    """Samples in order. Iterating again starts at the first one."""

    count: int | None
    """How many samples ``batches`` gives; None for a function that has not been exhausted yet."""
    classes: int | None = None
    """How many classes there are, where labels are the places of their names in order."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec], limit: int | None, extra: Sequence[str]) -> None:
        if limit is not None and limit < 1:
            raise RetargetError(f"{path}: {limit} samples were asked for", "ask for 1 or more")
        self._path = path
        self._specs = {spec.name: spec for spec in specs}
        self._limit = limit
        self._extra = tuple(extra)
        self._notes: dict[str, None] = {}
        self._whole: set[str] = set()
        """Inputs whose array has one more axis in front."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed on the way, such as a dtype; complete when all batches have been taken."""
        return tuple(self._notes)

    def batches(self, size: int | None) -> Iterator[Batch]:
        """Feeds of ``size`` samples each, the last one maybe of fewer; ``extra`` arrays are among them.

        A first dimension that is fixed in the spec wins over ``size``; None means that, or 1. Whole inputs come
        one at a time. Raises ``RetargetError`` for NaN and infinities and for values that do not fit the dtype.
        """
        first = 0
        for batch, samples in self._raw(size):
            sizes: dict[str, int] = {}
            yield {name: self._fit(name, array, first, sizes) for name, array in batch.items()}
            first += samples
        if not first:
            raise RetargetError(f"{self._path}: there are no samples", HINT)

    def _raw(self, size: int | None) -> Iterator[tuple[Batch, int]]:
        """Batches as they are stored, and how many samples each holds."""
        raise NotImplementedError

    def _fit(self, name: str, array: Array, first: int, sizes: dict[str, int]) -> Array:
        spec = self._specs.get(name)
        if spec is None:
            return array
        place = f"{self._path}: '{name}'"
        if not _matches(array.shape, spec.shape, sizes):
            known = ", ".join(f"{symbol} = {size}" for symbol, size in sizes.items())
            raise RetargetError(
                f"{place}: expected {spec.type}{f' with {known}' if known else ''}, found shape {list(array.shape)}",
                HINT,
            )
        array = self._cast(place, array, spec)
        if array.dtype.kind == "f":
            finite = np.isfinite(array)
            if not finite.all():
                index = np.argwhere(~finite)[0]
                value = array[tuple(index)]
                row = first + (int(index[0]) if array.ndim and len(array) > 1 else 0)
                raise RetargetError(
                    f"{place}: sample {row} holds {value} at {[int(i) for i in index]} of its batch",
                    "leave out or repair that sample: it would spoil every statistic",
                )
        return array

    def _cast(self, place: str, array: Array, spec: TensorSpec) -> Array:
        expected = np.dtype(ml_dtypes.bfloat16 if spec.dtype == "bfloat16" else spec.dtype)
        found = array.dtype
        if found == expected:
            return array
        kinds = found.kind + expected.kind
        wide = kinds in ("ff", "fV")
        whole = found.kind in "iub" and expected.kind in "iub"
        if not wide and not whole:
            raise RetargetError(
                f"{place}: expected {spec.dtype}, found {found.name}",
                "convert it as in training: images are often scaled and normalised there",
            )
        with np.errstate(over="ignore"):
            converted: Array = array.astype(expected)
        if whole and not np.array_equal(converted.astype(found), array):
            raise RetargetError(
                f"{place}: values from {array.min()} to {array.max()} ({found.name}) do not fit {spec.dtype}"
            )
        self._notes[f"'{spec.name}' was converted from {found.name} to {spec.dtype}"] = None
        return converted

    def _per_step(self, size: int | None) -> int:
        """How many rows a batch has: the fixed first dimension of the inputs, else ``size``, else 1."""
        specs = (spec for spec in self._specs.values() if spec.name not in self._whole)
        fixed = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)}
        if len(fixed) > 1:
            raise RetargetError(
                f"{self._path}: inputs have different first dimensions ({', '.join(map(str, sorted(fixed)))}), "
                "so their samples cannot be batched",
                "give whole inputs, with one more axis in front",
            )
        return fixed.pop() if fixed else (size or 1)


class _Table(Samples):
    """Arrays that each hold all samples."""

    def __init__(
        self,
        path: Path,
        specs: Sequence[TensorSpec],
        limit: int | None,
        extra: Sequence[str],
        arrays: Mapping[str, ArrayFile],
    ) -> None:
        super().__init__(path, specs, limit, extra)
        for name in (*self._specs, *extra):
            if name not in arrays:
                raise RetargetError(f"{path}: no array '{name}'", did_you_mean(name, arrays or ("no arrays",)))
        self._arrays = {name: arrays[name] for name in (*self._specs, *extra)}
        self._whole = {spec.name for spec in specs if self._is_whole(spec)}
        # A scalar input with a scalar array is the same for all samples.
        self._constant = {spec.name for spec in specs if not spec.shape and not arrays[spec.name].shape}
        lengths = {name: array.shape[0] for name, array in self._arrays.items() if name not in self._constant}
        for name, length in lengths.items():
            if not length:
                raise RetargetError(f"{path}: array '{name}' is empty", HINT)
        if not lengths:
            raise RetargetError(f"{path}: no array has an axis of samples", HINT)
        self._rows = self._per_step(1)
        steps = {name: self._steps(name, length) for name, length in lengths.items()}
        if len(set(steps.values())) > 1:
            found = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
            raise RetargetError(f"{path}: arrays hold different numbers of samples: {found}")
        available = next(iter(steps.values()))
        self.count = available if limit is None else min(limit, available)
        if limit is not None and limit > available:
            self._notes[f"{limit} samples were asked for, {path.name} holds {available}"] = None

    def _steps(self, name: str, length: int) -> int:
        rows = self._whole and name in self._specs and name not in self._whole
        return length // self._rows if rows else length

    def _is_whole(self, spec: TensorSpec) -> bool:
        shape = self._arrays[spec.name].shape
        if len(shape) == len(spec.shape):
            own = shape[1:], spec.shape[1:]
        elif len(shape) == len(spec.shape) + 1:
            own = shape[1:], spec.shape
        else:
            own = (-1,), ()
        if not _matches(*own, {}):
            wanted = ",".join(map(str, spec.shape[1:]))
            raise RetargetError(
                f"{self._path}: array '{spec.name}' has shape {list(shape)}, "
                f"expected [samples{',' if wanted else ''}{wanted}] for {spec}",
                HINT,
            )
        return len(shape) == len(spec.shape) + 1

    def _raw(self, size: int | None) -> Iterator[tuple[Batch, int]]:
        assert self.count is not None
        if self._whole:
            for index in range(self.count):
                yield {name: self._one(name, index) for name in self._arrays}, 1
            return
        step = self._per_step(size)
        fixed = any(spec.shape and isinstance(spec.shape[0], int) for spec in self._specs.values())
        if fixed and self.count < step:
            raise RetargetError(f"{self._path}: {self.count} samples do not fill the model's batch of {step}", HINT)
        for start in range(0, self.count, step):
            stop = min(start + step, self.count)
            if fixed and stop - start < step:
                self._notes[f"the last {stop - start} samples do not fill the model's batch of {step}"] = None
                return
            yield {name: self._slice(name, start, stop) for name in self._arrays}, stop - start

    def _one(self, name: str, index: int) -> Array:
        if name in self._whole:
            return np.asarray(self._arrays[name].read(index, index + 1)[0])
        if name in self._specs:
            return self._slice(name, index * self._rows, (index + 1) * self._rows)
        return self._slice(name, index, index + 1)

    def _slice(self, name: str, start: int, stop: int) -> Array:
        if name in self._constant:
            return self._arrays[name].read_all()
        return self._arrays[name].read(start, stop)


class _Items(Samples):
    """One dict of arrays a sample: files of a folder, or what a function yields."""

    def __init__(
        self,
        path: Path,
        specs: Sequence[TensorSpec],
        limit: int | None,
        extra: Sequence[str],
        items: OpenItems,
        *,
        count: int | None = None,
    ) -> None:
        super().__init__(path, specs, limit, extra)
        self._open = items
        self.count = count if count is None or limit is None else min(count, limit)

    def _raw(self, size: int | None) -> Iterator[tuple[Batch, int]]:
        step = self._per_step(size)
        fixed = any(spec.shape and isinstance(spec.shape[0], int) for spec in self._specs.values())
        pending: list[Item] = []
        seen = 0
        for item in itertools.islice(self._open(), self._limit):
            if self._is_whole(item, seen):
                if pending:
                    raise RetargetError(f"{self._path}: sample {seen} is a whole input, those before it are not", HINT)
                seen += 1
                # A label that is a scalar becomes a batch of one.
                yield {n: array if n in self._specs or array.ndim else array[None] for n, array in item.items()}, 1
                continue
            if pending and _shapes(pending[0]) != _shapes(item):
                if fixed and len(pending) < step:
                    raise RetargetError(f"{self._path}: sample {seen} has another shape than those of its batch", HINT)
                yield self._stacked(pending), len(pending)
                pending = []
            pending.append(item)
            seen += 1
            if len(pending) == step:
                yield self._stacked(pending), step
                pending = []
        if pending and fixed and len(pending) < step:
            self._notes[f"the last {len(pending)} samples do not fill the model's batch of {step}"] = None
            seen -= len(pending)
        elif pending:
            yield self._stacked(pending), len(pending)
        self.count = seen

    def _is_whole(self, item: Item, index: int) -> bool:
        ranks = {name: item[name].ndim - len(spec.shape) for name, spec in self._specs.items()}
        if all(difference == 0 for difference in ranks.values()):
            return True
        for name, difference in ranks.items():
            if difference != -1:
                spec = self._specs[name]
                raise RetargetError(
                    f"{self._path}: sample {index} of '{name}' has shape {list(item[name].shape)}, "
                    f"expected {list(spec.shape)} or that without its first axis",
                    HINT,
                )
        return False

    def _stacked(self, items: Sequence[Item]) -> Batch:
        return {name: np.stack([item[name] for item in items]) for name in items[0]}


def _matches(shape: Sequence[int], dims: Sequence[int | str], sizes: dict[str, int]) -> bool:
    """Whether ``shape`` is one of ``dims``: fixed sizes are equal, a symbol has one size, noted in ``sizes``."""
    if len(shape) != len(dims):
        return False
    return all(
        size == (dim if isinstance(dim, int) else sizes.setdefault(dim, size)) and size > 0
        for size, dim in zip(shape, dims, strict=True)
    )


def _shapes(item: Item) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in item.items()}

"""Input and output adaptation: a runtime speaks the artifact's names, axes and types, the user speaks their own.

``emit`` writes how the two stand to each other (``EmitFacts.inputs`` and ``outputs``); every target's runner is
wrapped in ``Adapted``, so no target adapts by itself and nothing is narrowed without a look at the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Self

import ml_dtypes
import numpy as np

from retarget.errors import RetargetError, ToolchainFailure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retarget.facts import IoEntry
    from retarget.protocols import Array, Feeds, Outputs, Runner
    from retarget.spec import TensorSpec


NO_SIZES: Mapping[str, int] = MappingProxyType({})


class Adapted:
    """``runner``, which speaks the artifact's names, axes and types, as a runner that speaks the user's.

    ``sizes`` are the symbolic dimensions that the artifact has at one size only.
    """

    def __init__(
        self,
        runner: Runner,
        inputs: Sequence[IoEntry],
        outputs: Sequence[IoEntry],
        sizes: Mapping[str, int] = NO_SIZES,
    ) -> None:
        self._runner = runner
        self._inputs = inputs
        self._outputs = outputs
        self._sizes = sizes
        self.settings = runner.settings

    def run(self, feeds: Feeds) -> Outputs:
        """Outputs by the user's names. Raises ``RetargetError`` for feeds that do not fit the specs."""
        return from_artifact(self._runner.run(to_artifact(feeds, self._inputs, self._sizes)), self._outputs)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, value, trace)


def to_artifact(feeds: Feeds, entries: Sequence[IoEntry], sizes: Mapping[str, int] = NO_SIZES) -> Outputs:
    """``feeds`` in the artifact's names, axes and types.

    Raises ``RetargetError`` for a missing or unknown input, a type or shape that is not the spec's, another size of a
    dimension in ``sizes``, and a value that the artifact's type cannot hold.
    """
    known = {entry.name for entry in entries}
    if unknown := sorted(set(feeds) - known):
        raise RetargetError(f"there is no input '{unknown[0]}'", f"the inputs are: {', '.join(sorted(known))}")
    adapted: Outputs = {}
    for entry in entries:
        if entry.name not in feeds:
            raise RetargetError(f"input '{entry.name}' is not fed", f"give it as {entry.spec.type}")
        array = feeds[entry.name]
        _check(array, entry.spec)
        _check_sizes(array, entry.spec, sizes)
        if entry.permutation is not None:
            array = np.ascontiguousarray(array.transpose(entry.permutation))
        adapted[entry.artifact_name] = (
            _converted(array, entry.artifact_dtype, entry.name)
            if entry.scale is None
            else _quantized(array, entry, entry.scale)
        )
    return adapted


def from_artifact(outputs: Outputs, entries: Sequence[IoEntry]) -> Outputs:
    """The artifact's ``outputs`` in the user's names, axes and types. Raises ``ToolchainFailure`` if one is missing."""
    adapted: Outputs = {}
    for entry in entries:
        if entry.artifact_name not in outputs:
            raise ToolchainFailure(f"the artifact gave no output '{entry.artifact_name}'")
        array = outputs[entry.artifact_name]
        if entry.scale is not None:
            array = _dequantized(array, entry, entry.scale)
        if entry.permutation is not None:
            array = np.ascontiguousarray(array.transpose(np.argsort(entry.permutation)))
        adapted[entry.name] = _converted(array, entry.spec.dtype, entry.name)
    return adapted


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The numpy type of a spec's dtype name."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _check(array: Array, spec: TensorSpec) -> None:
    if array.dtype != numpy_dtype(spec.dtype):
        raise RetargetError(
            f"input '{spec.name}' is fed {array.dtype}, not {spec.dtype}", f"feed an array of {spec.type}"
        )
    fits = array.ndim == len(spec.shape) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise RetargetError(
            f"input '{spec.name}' is fed the shape {list(array.shape)}, not {spec.type}",
            f"feed an array of {spec.type}",
        )


def _check_sizes(array: Array, spec: TensorSpec, sizes: Mapping[str, int]) -> None:
    for dim, size in zip(spec.shape, array.shape, strict=True):
        if isinstance(dim, str) and sizes.get(dim, size) != size:
            raise RetargetError(
                f"input '{spec.name}' is fed {dim}={size}, and the artifact was built for {dim}={sizes[dim]} alone",
                f"feed {dim}={sizes[dim]}, or build again with --shape {dim}={size}",
            )


def _quantized(array: Array, entry: IoEntry, scale: float) -> Array:
    """The codes of ``array``: values beyond what the codes reach are clipped, as quantization means it."""
    values = array.astype(np.float32)
    if np.isnan(values).any():
        raise RetargetError(
            f"'{entry.name}' holds NaN, for which {entry.artifact_dtype} has no code",
            "the artifact is quantized here: feed numbers, or keep inputs and outputs float32",
        )
    limits = np.iinfo(entry.artifact_dtype)
    with np.errstate(over="ignore"):
        codes: NDArray[np.float32] = np.rint(values / np.float32(scale)) + np.float32(entry.zero_point or 0)
    return codes.clip(limits.min, limits.max).astype(numpy_dtype(entry.artifact_dtype))


def _dequantized(codes: Array, entry: IoEntry, scale: float) -> Array:
    distance = codes.astype(np.int32) - (entry.zero_point or 0)
    return np.multiply(distance, np.float32(scale), dtype=np.float32)


def _converted(array: Array, dtype: str, name: str) -> Array:
    """``array`` as ``dtype``; rounding is what the artifact's type means, losing range is an error."""
    to = numpy_dtype(dtype)
    if array.dtype == to:
        return array
    if to.kind in "iu" and array.dtype.kind in "iu" and array.size:
        limits, low, high = np.iinfo(to.name), int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise RetargetError(
                f"'{name}' holds {low if low < limits.min else high}, which {dtype} cannot hold",
                f"the artifact has {dtype} here: feed values from {limits.min} to {limits.max}",
            )
    with np.errstate(over="ignore"):
        converted = array.astype(to)
    if to.kind == "f" and array.dtype.kind in "iu" and array.size:
        whole = 1 << (np.finfo(to.name).nmant + 1)
        low, high = int(array.min()), int(array.max())
        if low < -whole or high > whole:
            raise RetargetError(
                f"'{name}' holds {low if low < -whole else high}, beyond what {dtype} holds each integer of",
                f"the artifact has {dtype} here: feed values from {-whole} to {whole}",
            )
    if _is_float(array.dtype) and _is_float(to) and not np.array_equal(np.isfinite(array), np.isfinite(converted)):
        raise RetargetError(
            f"'{name}' holds {np.abs(array[np.isfinite(array)]).max()}, which is beyond {dtype}",
            f"the artifact has {dtype} here: scale the values, or keep this tensor float32",
        )
    return converted


def _is_float(dtype: np.dtype[np.generic]) -> bool:
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16

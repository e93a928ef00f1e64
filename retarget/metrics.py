"""Accuracy over evaluation data: ``top1``, ``top5``, or a function of the user's. The higher, the better."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from retarget.errors import RetargetError, did_you_mean
from retarget.user_code import blame, load_function

if TYPE_CHECKING:
    from pathlib import Path

    from retarget.protocols import Array, Outputs

_TOP = {"top1": 1, "top5": 5}


class Metric(Protocol):
    """Takes batches, gives one number."""

    samples: int

    def add(self, outputs: Outputs, labels: Array) -> None:
        """The outputs of one batch and its labels."""

    def value(self) -> float:
        """The metric over all that was added. Raises ``RetargetError`` when that is nothing."""


def open_metric(name: str, path: Path | None = None) -> Metric:
    """``top1`` or ``top5``; with ``path``, the function ``name`` of that file.

    The function is called once, as ``function(outputs, labels) -> float``: ``outputs`` maps each output's name to
    its values over the whole set, stacked along axis 0, and ``labels`` holds the labels in the same order.
    """
    if path is not None:
        return Custom(path, name)
    if name not in _TOP:
        raise RetargetError(f"unknown metric '{name}'", f"{did_you_mean(name, _TOP)}; or write FILE.py:FUNCTION")
    return TopK(name, _TOP[name])


class TopK:
    """Share of rows whose label is among the ``k`` best classes.

    Scores are the model's first output, [rows, classes] or with further axes in between; a row for each label.
    Equal scores rank by class number, as argmax does: a model that gives the same score to every class is not right.
    """

    def __init__(self, name: str, k: int) -> None:
        self.samples = 0
        self._name = name
        self._k = k
        self._correct = 0

    def add(self, outputs: Outputs, labels: Array) -> None:
        output, scores = next(iter(outputs.items()))
        if scores.ndim < 2:
            raise RetargetError(
                f"{self._name} needs scores [rows, classes], output '{output}' has shape {list(scores.shape)}",
                "give a metric of your own: metric: FILE.py:FUNCTION",
            )
        rows = scores.reshape(-1, scores.shape[-1]).astype(np.float64)
        if labels.size != len(rows) or labels.dtype.kind not in "iu":
            raise RetargetError(
                f"{self._name} needs {len(rows)} integer labels for output '{output}' {list(scores.shape)}, "
                f"found {labels.dtype.name} {list(labels.shape)}"
            )
        wanted = labels.reshape(-1).astype(np.int64)
        if wanted.min() < 0 or wanted.max() >= rows.shape[1]:
            raise RetargetError(
                f"{self._name}: label {wanted[(wanted < 0) | (wanted >= rows.shape[1])][0]} is none of the "
                f"{rows.shape[1]} classes of output '{output}'"
            )
        own = np.take_along_axis(rows, wanted[:, None], axis=1)
        earlier = np.arange(rows.shape[1])[None] < wanted[:, None]
        # A class whose score is NaN is ahead of all, and is never the right one.
        ahead = ~(rows < own) & ~((rows == own) & ~earlier)
        self._correct += int(((ahead.sum(axis=1) < self._k) & ~np.isnan(own[:, 0])).sum())
        self.samples += len(rows)

    def value(self) -> float:
        if not self.samples:
            raise RetargetError(f"{self._name}: there are no samples to evaluate")
        return self._correct / self.samples


class Custom:
    """A function of the user's over the whole set; the outputs are kept in memory until then."""

    def __init__(self, path: Path, function: str) -> None:
        self.samples = 0
        self._path = path
        self._function = function
        self._call = load_function(path, function)
        self._outputs: dict[str, list[Array]] = {}
        self._labels: list[Array] = []

    def add(self, outputs: Outputs, labels: Array) -> None:
        for name, array in outputs.items():
            self._outputs.setdefault(name, []).append(np.atleast_1d(array))
        self._labels.append(np.atleast_1d(labels))
        self.samples += len(self._labels[-1])

    def value(self) -> float:
        if not self.samples:
            raise RetargetError(f"{self._function}: there are no samples to evaluate")
        outputs = {name: np.concatenate(parts) for name, parts in self._outputs.items()}
        try:
            value = self._call(outputs, np.concatenate(self._labels))
        except Exception as error:
            raise blame(self._path, f"{self._function}()", error) from error
        if not isinstance(value, (int, float, np.integer, np.floating)) or not math.isfinite(value):
            raise RetargetError(
                f"{self._path}: {self._function}() returned {value!r}",
                "return one finite number, the higher the better",
            )
        return float(value)

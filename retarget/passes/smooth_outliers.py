"""Move outlying channels of activations into the weights that read them (Xiao et al. 2022, "SmoothQuant", eq. 3-4).

Given::

    q = MatMul(LayerNormalization(x, scale, bias), w)

Result::

    q = MatMul(LayerNormalization(x, s·scale, s·bias), w / s)       s = r^(1 - alpha) / a^alpha for each channel

a is the largest magnitude that calibration saw in a channel, r that of the weights that read it. An activation has one
int8 scale, so a channel far beyond the others costs them their resolution; a weight has one for each output. Alpha says
which of the two takes how much. It is chosen for each value by the noise that rounding both makes in the layers'
outputs, estimated from a and the weights; a value that gains less than `WORTH_DB` at any alpha is left alone. The
function stays as it is but for rounding. Normalizations, multiplications by a constant and linear layers can take the
factor, whatever positively homogeneous stands behind them (`retarget.passes.channels`). Where a normalization's output
is added to a residual stream as well, as in BERT, there is nothing to take it: those values stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retarget.passes.channels import Channels, Layer, find_channels
from retarget.passes.rewriting import rank

Floats: TypeAlias = NDArray[np.float64]

WORTH_DB = 6.0
"""Estimated gain below which a value is left as it is. Of models without outliers estimates went to 4.1 dB, and what
they gained was -10 to +4: the estimate knows no value larger than the samples', and not what else is rounded on the
way. Outliers 30 times as large as the others are worth more than 20 dB."""

ALPHAS = np.linspace(0, 1, 21)

DEAD = 1e-6
"""A channel smaller than this share of the largest is not scaled."""

_STEPS = 255.0
_TYPICAL = 3.0
"""A channel's largest magnitude by its root mean square, about."""


def smoothable(model: ir.Model) -> dict[str, int]:
    """Values whose channels can be scaled, by name, and the axis that holds the channels: what to calibrate."""
    found = {}
    for channels in _found(model):
        for sink in channels.sinks:
            if sink.value.name:
                found[sink.value.name] = _axis(sink.layer, sink.value)
    return found


class SmoothOutliers(ir.passes.InPlacePass):
    """See the module. ``channel_absmax`` holds the largest magnitudes of the values of `smoothable`, by name.

    ``alpha``: one for all values instead of the best for each. What was smoothed is not smoothed again by a second run,
    as the magnitudes are those from before it. ``gains_db`` holds the estimated gain of each value of the last run.
    """

    def __init__(self, channel_absmax: Mapping[str, Floats], alpha: float | None = None) -> None:
        super().__init__()
        self._absmax = dict(channel_absmax)
        self._alpha = alpha
        self.gains_db: dict[str, float] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.gains_db = {}
        for channels in _found(model):
            names = [sink.value.name or "" for sink in channels.sinks]
            if any(name not in self._absmax for name in names):
                continue
            factor, gain = self._best(channels)
            if factor is None:
                continue
            channels.scale(factor)
            self.gains_db[channels.name] = gain
            for name in set(names):
                del self._absmax[name]
        return ir.passes.PassResult(model, bool(self.gains_db))

    def _best(self, channels: Channels) -> tuple[Floats | None, float]:
        """The factor for each channel and its estimated gain in dB; None where there is none worth having."""
        readings = [
            _Reading.of(sink.layer, self._absmax[sink.value.name or ""].astype(np.float64)) for sink in channels.sinks
        ]
        seen = np.max([one.seen.reshape(channels.count, -1).max(axis=1) for one in readings], axis=0)
        read = np.max([one.weights().reshape(channels.count, -1).max(axis=1) for one in readings], axis=0)
        alive = (seen > DEAD * seen.max()) & (read > DEAD * read.max())
        if not alive.any() or not np.isfinite(seen).all():
            return None, 0.0

        def factor(alpha: float) -> Floats:
            power = np.zeros(channels.count)
            power[alive] = (1 - alpha) * np.log(read[alive]) - alpha * np.log(seen[alive])
            power[alive] -= np.median(power[alive])
            scaled: Floats = np.exp(power)
            return scaled

        def noise(scaled: Floats) -> float:
            return sum(one.noise(np.repeat(scaled, one.seen.size // channels.count)) for one in readings)

        before = noise(np.ones(channels.count))
        candidates = [factor(float(alpha)) for alpha in (ALPHAS if self._alpha is None else [self._alpha])]
        noises = [noise(candidate) for candidate in candidates]
        best = int(np.argmin(noises))
        if before <= 0 or noises[best] <= 0:
            return None, 0.0
        gain = 10 * float(np.log10(before / noises[best]))
        return (candidates[best], gain) if self._alpha is not None or gain >= WORTH_DB else (None, 0.0)


@dataclass(frozen=True, eq=False)
class _Reading:
    """What a layer makes of its inputs: all that the noise at its outputs hangs on."""

    seen: Floats
    """Largest magnitude of each input."""
    peaks: Floats
    """[groups, outputs a group, inputs a group]: the largest weight of the taps."""
    energy: Floats
    """Likewise: the sum of their squares."""
    taps: int

    @staticmethod
    def of(layer: Layer, seen: Floats) -> _Reading:
        matrices = layer.matrices(layer.weight()).astype(np.float64)
        return _Reading(seen, np.abs(matrices).max(axis=-1), np.square(matrices).sum(axis=-1), matrices.shape[-1])

    def weights(self) -> Floats:
        """The largest weight that reads each input."""
        most: Floats = self.peaks.max(axis=1).reshape(-1)
        return most

    def noise(self, factor: Floats) -> float:
        """Expected power of the rounding errors at the outputs, by that of the signal, with inputs times ``factor``.

        Rounding in steps of d makes noise of power d²/12. All inputs share a scale, as do all weights of an output.
        """
        size = self.energy.shape[0], 1, -1
        by = factor.reshape(size)
        power = np.square(self.seen / _TYPICAL).reshape(size)
        step = 2 * (self.seen * factor).max() / _STEPS
        rounded_inputs = step**2 / 12 * (self.energy / by**2).sum()
        steps = 2 * (self.peaks / by).max(axis=2, keepdims=True) / _STEPS
        rounded_weights = (steps**2 / 12 * self.taps * power * by**2).sum()
        signal = (self.energy * power).sum()
        return float((rounded_inputs + rounded_weights) / signal) if signal > 0 else 0.0


def _found(model: ir.Model) -> list[Channels]:
    found = find_channels(model, affine=True)
    return [channels for channels in found if channels.blocked is None and (channels.sources or channels.affine)]


def _axis(layer: Layer, value: ir.Value) -> int:
    return 1 if "Conv" in layer.node.op_type else (rank(value) or 1) - 1

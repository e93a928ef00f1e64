"""Cross-layer equalization (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", eq. 9-12): channels of very different ranges share one int8 scale badly, so they are made alike.

Given::

    y = Conv(Relu(Conv(x, w1, b1)), w2, b2)

Result::

    y = Conv(Relu(Conv(x, s·w1, s·b1)), w2 / s, b2)         s = √(r2 / r1) for each channel between the two

r1 is the largest weight that makes the channel, r2 the largest that reads it; both are √(r1 r2) afterwards. Chains
(also through depthwise convolutions) and values that several layers make or read are solved by going round until
nothing changes. The function stays as it is but for rounding. Left alone: channels that anything not positively
homogeneous reads (Relu6 among them: its bound would have to be one of each channel), and graph outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from retarget.passes.channels import Channels, Floats, Layer, find_channels
from retarget.passes.rewriting import Array

DEAD = 1e-6
"""A channel whose weights are all smaller than this share of the layer's largest is left as it is: it carries nothing.
So factors stay below its inverse."""

NOTICEABLE = 1.01
"""Factors that all stay below this (and above its inverse) are not worth a new weight."""

_SWEEPS = 100
_SETTLED = 1e-4


class EqualizeChannels(ir.passes.InPlacePass):
    """See the module. ``refused`` holds (value, reason) of the last run, ``factors`` those applied by value."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[tuple[str, str]] = []
        self.factors: dict[str, Floats] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [channels for channels in find_channels(model) if channels.sources or channels.blocked]
        self.refused = [(channels.name, channels.blocked) for channels in found if channels.blocked is not None]
        self.factors = {}
        for chain in _chains([channels for channels in found if channels.blocked is None]):
            for channels, factor in zip(chain, _solve(chain), strict=True):
                if np.abs(np.log(factor)).max(initial=0) > np.log(NOTICEABLE):
                    channels.scale(factor)
                    self.factors[channels.name] = factor
        return ir.passes.PassResult(model, bool(self.factors))


def _chains(found: Sequence[Channels]) -> list[list[Channels]]:
    """Channels that share a layer are solved together; one chain at a time bounds the memory."""
    chain_of: dict[Layer, list[Channels]] = {}
    for channels in found:
        layers = [*channels.sources, *(sink.layer for sink in channels.sinks)]
        chain = [channels]
        for other in {id(chain_of[layer]): chain_of[layer] for layer in layers if layer in chain_of}.values():
            chain = other + chain
        for each in chain:
            chain_of |= dict.fromkeys([*each.sources, *(sink.layer for sink in each.sinks)], chain)
    return list({id(chain): chain for chain in chain_of.values()}.values())


def _solve(chain: Sequence[Channels]) -> list[Floats]:
    """The factor of each channel that equalizes all of ``chain``."""
    layers = dict.fromkeys(
        layer for channels in chain for layer in (*channels.sources, *(sink.layer for sink in channels.sinks))
    )
    peaks = {layer: np.abs(layer.matrices(layer.weight())).max(axis=-1).astype(np.float64) for layer in layers}
    factors = [np.ones(channels.count) for channels in chain]
    biases = [channels.biases() for channels in chain]
    for _ in range(_SWEEPS):
        moved = 0.0
        for index, channels in enumerate(chain):
            step = _step(channels, peaks, factors[index], biases[index])
            moved = max(moved, float(np.abs(np.log(step)).max(initial=0)))
            factors[index] = factors[index] * step
            for layer in channels.sources:
                peaks[layer] *= step.reshape(layer.groups, -1, 1)
            for sink in channels.sinks:
                peaks[sink.layer] /= np.repeat(step, sink.spread).reshape(sink.layer.groups, 1, -1)
        if moved < _SETTLED:
            break
    return factors


def _step(channels: Channels, peaks: dict[Layer, Array], factor: Floats, biases: Floats) -> Floats:
    """The factor, on top of ``factor``, that equalizes one value's channels for the weights as they are now."""
    made, read = np.zeros(channels.count), np.zeros(channels.count)
    for layer in channels.sources:
        made = np.maximum(made, peaks[layer].max(axis=2).reshape(-1))
    for sink in channels.sinks:
        read = np.maximum(read, peaks[sink.layer].max(axis=1).reshape(channels.count, -1).max(axis=1))
    alive = (made > DEAD * made.max()) & (read > DEAD * read.max())
    if not alive.any():
        return np.ones(channels.count)
    step = np.zeros(channels.count)
    step[alive] = np.log(read[alive] / made[alive]) / 2
    # A factor common to all channels changes no quantization: the ranges of activations stay where they were.
    step[alive] -= np.median(step[alive])
    # A channel of tiny weights and a large bias (a dead one after BatchNormalization) is a constant: enlarged, it
    # would take the range of the activation from all others.
    bound = np.full(channels.count, np.inf)
    biased = biases > 0
    bound[biased] = biases.max(initial=0) / (biases * factor)[biased]
    step = np.where(step > 0, np.minimum(step, np.maximum(np.log(bound), 0)), step)
    step_factor: Floats = np.exp(step)
    return step_factor

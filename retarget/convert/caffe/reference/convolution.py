"""Convolution, Deconvolution and Im2col, of any number of spatial axes (``base_conv_layer``, ``im2col`` of Caffe).

Each is a sum over the taps of the kernel of a matrix product with the input as that tap sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from retarget.convert.caffe.net import Blob, Layer, Message
from retarget.convert.caffe.reference.checks import (
    Wide,
    at_least,
    canonical,
    narrow,
    positive,
    shaped,
    show,
    weights,
    wide,
    wrong,
)


@dataclass(frozen=True)
class Window:
    """Sizes along each spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """From the first tap to the last, both counted."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def taps(self) -> Iterator[tuple[int, ...]]:
        """Indices into the kernel, in the order of memory."""
        return product(*map(range, self.kernel))

    def seen(self, tap: tuple[int, ...], sizes: Sequence[int]) -> tuple[slice, ...]:
        """Where ``tap`` stands, for ``sizes`` windows side by side, in the padded image."""
        return tuple(
            slice(at * d, at * d + (size - 1) * s + 1, s)
            for at, d, s, size in zip(tap, self.dilation, self.stride, sizes, strict=True)
        )


def convolution(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Each input convolved with the same weights [num_output, C / group, *kernel]."""
    parameters = layer.message.message("convolution_param")
    return [_convolve(layer, parameters, blob, parameters.integer("group", 1)) for blob in inputs]


def depthwise(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """A Convolution of as many groups as channels, whatever ``group`` says."""
    parameters = layer.message.message("convolution_param")
    return [_convolve(layer, parameters, blob, at_least(layer, blob, 3).shape[1]) for blob in inputs]


def deconvolution(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """The transpose of a Convolution: weights [C, num_output / group, *kernel], each tap adds to where it stands."""
    parameters = layer.message.message("convolution_param")
    group = parameters.integer("group", 1)
    return [_deconvolve(layer, parameters, blob, group) for blob in inputs]


def im2col(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """[N, C, *sizes] to [N, C * taps, *windows]."""
    parameters = layer.message.message("convolution_param")
    at = canonical(layer, parameters.integer("axis", 1), inputs[0].ndim)
    batch = inputs[0].reshape(-1, *inputs[0].shape[at:])
    window = read_window(layer, parameters, batch.ndim - 2)
    sizes = _windows(layer, window, batch.shape[2:])
    padded = _padded(batch, window)
    columns = np.stack([padded[(slice(None), slice(None), *window.seen(tap, sizes))] for tap in window.taps()], axis=2)
    return [columns.reshape(*inputs[0].shape[:at], -1, *sizes)]


def read_window(layer: Layer, parameters: Message, axes: int) -> Window:
    """``kernel_size`` once, once an axis, or ``kernel_h`` and ``kernel_w``; ``stride`` and ``pad`` likewise."""
    kernel = _per_axis(layer, parameters, "kernel_size", "kernel", axes, 0)
    stride = _per_axis(layer, parameters, "stride", "stride", axes, 1)
    pad = _per_axis(layer, parameters, "pad", "pad", axes, 0)
    dilation = _per_axis(layer, parameters, "dilation", None, axes, 1)
    for name, values, least in (
        ("kernel_size", kernel, 1),
        ("stride", stride, 1),
        ("pad", pad, 0),
        ("dilation", dilation, 1),
    ):
        if any(value < least for value in values):
            raise wrong(layer, f"{name} must be at least {least}, not {show(values)}")
    return Window(kernel, stride, pad, dilation)


def _per_axis(
    layer: Layer, parameters: Message, name: str, sides: str | None, axes: int, default: int
) -> tuple[int, ...]:
    if sides is not None and (f"{sides}_h" in parameters or f"{sides}_w" in parameters):
        if name in parameters or axes != 2:
            raise wrong(layer, f"{sides}_h and {sides}_w are for two spatial axes, and without {name}")
        return parameters.integer(f"{sides}_h", default), parameters.integer(f"{sides}_w", default)
    values = parameters.integers(name)
    if len(values) not in (0, 1, axes):
        raise wrong(layer, f"{name} is given {len(values)} times for {axes} spatial axes")
    return values if len(values) == axes else (values[0] if values else default,) * axes


def _windows(layer: Layer, window: Window, sizes: Sequence[int]) -> tuple[int, ...]:
    """How many windows fit, along each axis."""
    found = tuple(
        (size + 2 * p - reach) // s + 1
        for size, p, reach, s in zip(sizes, window.pad, window.reach, window.stride, strict=True)
    )
    if any(count < 1 for count in found):
        raise wrong(layer, f"a kernel that reaches over {show(window.reach)} does not fit an input of {show(sizes)}")
    return found


def _padded(batch: Blob, window: Window) -> Blob:
    return np.pad(batch, ((0, 0), (0, 0), *((p, p) for p in window.pad)))


def _grouped(layer: Layer, channels: int, outputs: int, group: int) -> None:
    if group < 1 or channels % group or outputs % group:
        raise wrong(layer, f"{channels} channels to {outputs} outputs do not divide into {group} groups")


def _at(kernel: Wide, tap: tuple[int, ...]) -> Wide:
    """The matrices [group, rows, columns] of one tap."""
    found: Wide = kernel[(slice(None),) * 3 + tap]
    return found


def _convolve(layer: Layer, parameters: Message, blob: Blob, group: int) -> Blob:
    at = canonical(layer, parameters.integer("axis", 1), blob.ndim)
    batch = blob.reshape(-1, *blob.shape[at:])
    channels, outputs = batch.shape[1], positive(layer, parameters, "num_output")
    _grouped(layer, channels, outputs, group)
    window = read_window(layer, parameters, batch.ndim - 2)
    bias = parameters.flag("bias_term", default=True)
    blobs = weights(layer, 2 if bias else 1)
    kernel = shaped(layer, blobs[0], (group, outputs // group, channels // group, *window.kernel), "weights")
    sizes = _windows(layer, window, batch.shape[2:])
    top = np.empty((len(batch), outputs, *sizes), np.float32)
    padded = _padded(batch, window)
    term = shaped(layer, blobs[1], (outputs, *(1 for _ in sizes)), "biases") if bias else np.zeros(1)
    for number, picture in enumerate(padded):
        # One image at a time, for memory's sake.
        total: Wide = np.zeros((group, outputs // group, int(np.prod(sizes))))
        for tap in window.taps():
            seen = wide(picture[(slice(None), *window.seen(tap, sizes))]).reshape(group, channels // group, -1)
            factor = _at(kernel, tap)
            total += factor * seen if channels == group else factor @ seen
        top[number] = total.reshape(outputs, *sizes) + term
    return top.reshape(*blob.shape[:at], outputs, *sizes)


def _deconvolve(layer: Layer, parameters: Message, blob: Blob, group: int) -> Blob:
    at = canonical(layer, parameters.integer("axis", 1), blob.ndim)
    batch = blob.reshape(-1, *blob.shape[at:])
    channels, outputs = batch.shape[1], positive(layer, parameters, "num_output")
    _grouped(layer, channels, outputs, group)
    window = read_window(layer, parameters, batch.ndim - 2)
    bias = parameters.flag("bias_term", default=True)
    blobs = weights(layer, 2 if bias else 1)
    kernel = shaped(layer, blobs[0], (group, channels // group, outputs // group, *window.kernel), "weights")
    sizes = batch.shape[2:]
    full = tuple(s * (size - 1) + reach for s, size, reach in zip(window.stride, sizes, window.reach, strict=True))
    if any(size - 2 * p < 1 for size, p in zip(full, window.pad, strict=True)):
        raise wrong(layer, f"a pad of {show(window.pad)} leaves nothing of {show(full)}")
    inner = tuple(slice(p, size - p) for p, size in zip(window.pad, full, strict=True))
    term = shaped(layer, blobs[1], (outputs, *(1 for _ in sizes)), "biases") if bias else np.zeros(1)
    tops = []
    for picture in batch:
        total: Wide = np.zeros((outputs, *full))
        seen = wide(picture).reshape(group, channels // group, -1)
        for tap in window.taps():
            factor = np.swapaxes(_at(kernel, tap), 1, 2)
            added = factor * seen if channels == group else factor @ seen
            total[(slice(None), *window.seen(tap, sizes))] += added.reshape(outputs, *sizes)
        tops.append(narrow(total[(slice(None), *inner)] + term))
    top = np.stack(tops)
    return top.reshape(*blob.shape[:at], *top.shape[1:])

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
    return [_convolve(layer, blob, _group(layer)) for blob in inputs]


def depthwise(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """A Convolution of as many groups as channels, whatever ``group`` says."""
    return [_convolve(layer, blob, at_least(layer, blob, 3).shape[1]) for blob in inputs]


def deconvolution(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """The transpose of a Convolution: weights [C, num_output / group, *kernel], each tap adds to where it stands."""
    return [_deconvolve(layer, blob, _group(layer)) for blob in inputs]


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


def _group(layer: Layer) -> int:
    return layer.message.message("convolution_param").integer("group", 1)


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


@dataclass(frozen=True)
class _Filter:
    """What both directions begin with."""

    batch: Blob
    """[N, C, *sizes]."""
    leading: tuple[int, ...]
    """The axes before the channels, that N stands for."""
    window: Window
    outputs: int
    group: int
    taps: Sequence[tuple[tuple[int, ...], Wide]]
    """Each tap and its matrices [group, outputs / group, C / group]."""
    term: Wide
    """[outputs, 1, …]."""

    def apply(self, matrices: Wide, picture: Blob) -> Wide:
        """[C, *sizes] by the matrices of one tap: [outputs, *sizes]."""
        seen = wide(picture).reshape(self.group, matrices.shape[2], -1)
        # Depthwise: a matrix product of single rows would be slow.
        found = matrices * seen if matrices.shape[2] == 1 else matrices @ seen
        return found.reshape(self.outputs, *picture.shape[1:])

    def tops(self, pictures: Sequence[Wide]) -> Blob:
        top = np.stack([narrow(picture + self.term) for picture in pictures])
        return top.reshape(*self.leading, *top.shape[1:])


def _read(layer: Layer, blob: Blob, group: int, *, transposed: bool = False) -> _Filter:
    parameters = layer.message.message("convolution_param")
    at = canonical(layer, parameters.integer("axis", 1), blob.ndim)
    batch = blob.reshape(-1, *blob.shape[at:])
    channels, outputs = batch.shape[1], positive(layer, parameters, "num_output")
    if group < 1 or channels % group or outputs % group:
        raise wrong(layer, f"{channels} channels to {outputs} outputs do not divide into {group} groups")
    window = read_window(layer, parameters, batch.ndim - 2)
    biased = parameters.flag("bias_term", default=True)
    blobs = weights(layer, 2 if biased else 1)
    rows, columns = (channels, outputs) if transposed else (outputs, channels)
    kernel = shaped(layer, blobs[0], (group, rows // group, columns // group, *window.kernel), "weights")
    matrices = kernel.reshape(*kernel.shape[:3], -1)
    matrices = matrices.transpose(3, 0, 2, 1) if transposed else matrices.transpose(3, 0, 1, 2)
    term = np.zeros(outputs) if not biased else shaped(layer, blobs[1], (outputs,), "biases")
    return _Filter(
        batch,
        blob.shape[:at],
        window,
        outputs,
        group,
        # In memory as a matrix product wants them.
        list(zip(window.taps(), np.ascontiguousarray(matrices), strict=True)),
        term.reshape(outputs, *(1 for _ in window.kernel)),
    )


def _convolve(layer: Layer, blob: Blob, group: int) -> Blob:
    given = _read(layer, blob, group)
    sizes = _windows(layer, given.window, given.batch.shape[2:])
    tops = []
    # One image at a time, for memory's sake.
    for picture in _padded(given.batch, given.window):
        total: Wide = np.zeros((given.outputs, *sizes))
        for tap, matrices in given.taps:
            total += given.apply(matrices, picture[(slice(None), *given.window.seen(tap, sizes))])
        tops.append(total)
    return given.tops(tops)


def _deconvolve(layer: Layer, blob: Blob, group: int) -> Blob:
    given = _read(layer, blob, group, transposed=True)
    window, sizes = given.window, given.batch.shape[2:]
    full = tuple(s * (size - 1) + reach for s, size, reach in zip(window.stride, sizes, window.reach, strict=True))
    if any(size - 2 * p < 1 for size, p in zip(full, window.pad, strict=True)):
        raise wrong(layer, f"a pad of {show(window.pad)} leaves nothing of {show(full)}")
    inner = tuple(slice(p, size - p) for p, size in zip(window.pad, full, strict=True))
    tops = []
    for picture in given.batch:
        total: Wide = np.zeros((given.outputs, *full))
        for tap, matrices in given.taps:
            total[(slice(None), *window.seen(tap, sizes))] += given.apply(matrices, picture)
        tops.append(total[(slice(None), *inner)])
    return given.tops(tops)

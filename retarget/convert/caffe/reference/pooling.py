"""Pooling and SPP (``pooling_layer``, ``spp_layer``). Caffe rounds the number of windows up, and clips the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retarget.convert.caffe.net import Blob, Layer, Message
from retarget.convert.caffe.reference.checks import Wide, choice, image, narrow, positive, show, wide, wrong

METHODS = {"MAX": 0, "AVE": 1, "STOCHASTIC": 2}
LOWEST = np.finfo(np.float32).min
"""What Caffe begins a maximum with."""


@dataclass(frozen=True)
class Side:
    """One spatial axis of a pooling."""

    size: int
    kernel: int
    stride: int
    pad: int
    count: int
    """How many windows."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where windows begin; before 0 in the padding."""
        return np.arange(self.count) * self.stride - self.pad

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How long windows are, the padding counted, what lies beyond it not: what AVE divides by."""
        return np.minimum(self.starts + self.kernel, self.size + self.pad) - self.starts

    @property
    def after(self) -> int:
        """How far the last window reaches beyond the image."""
        return max(0, int(self.starts[-1]) + self.kernel - self.size)


def pooling(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """The largest or the mean of each window; a second top has the place of the largest within its plane.

    Outside of training a stochastic pooling is the mean that its elements are the weights of.
    """
    blob = image(layer, inputs[0])
    parameters = layer.message.message("pooling_param")
    method = choice(layer, parameters, "pool", METHODS)
    rows, columns = _sides(layer, parameters, blob)
    _check_stochastic(layer, method, rows, columns)
    if len(layer.tops) > 2 or (len(layer.tops) == 2 and method != "MAX"):
        raise wrong(layer, f"{method} pooling has no {len(layer.tops)} tops")
    top = narrow(pool(wide(blob), rows, columns, method))
    return [top, _places(blob, rows, columns)] if len(layer.tops) == 2 else [top]


def spp(layer: Layer, inputs: Sequence[Blob]) -> list[Blob]:
    """Spatial pyramid pooling: level n pools into 2^n times 2^n bins, and all bins of all levels stand in a row."""
    blob = image(layer, inputs[0])
    parameters = layer.message.message("spp_param")
    method = choice(layer, parameters, "pool", METHODS)
    height = positive(layer, parameters, "pyramid_height")
    levels = []
    for level in range(height):
        bins = [_bins(size, 2**level) for size in blob.shape[2:]]
        _check_pads(layer, bins)
        rows, columns = (_side(layer, *each) for each in bins)
        _check_stochastic(layer, method, rows, columns)
        levels.append(narrow(pool(wide(blob), rows, columns, method)))
    if height == 1:
        return levels
    return [np.concatenate([level.reshape(len(blob), -1) for level in levels], axis=1)]


def pool(values: Wide, rows: Side, columns: Side, method: str) -> Wide:
    """[N, C, H, W] to [N, C, rows.count, columns.count]. ``method``: one of ``METHODS``, or SUM.

    A maximum, like a sum, may be taken axis by axis.
    """
    if method == "STOCHASTIC":
        total, squares = (pool(each, rows, columns, "SUM") for each in (values, values**2))
        return np.divide(squares, total, out=np.zeros_like(total), where=total > 0)
    reduced = values
    for axis, side in ((2, rows), (3, columns)):
        beyond = [(0, 0)] * 4
        beyond[axis] = (side.pad, side.after)
        padded = np.pad(reduced, beyond, constant_values=LOWEST if method == "MAX" else 0)
        taps = [
            padded[(slice(None),) * axis + (slice(tap, tap + (side.count - 1) * side.stride + 1, side.stride),)]
            for tap in range(side.kernel)
        ]
        reduced = taps[0].copy()
        for tap in taps[1:]:
            reduced = np.maximum(reduced, tap) if method == "MAX" else reduced + tap
    if method == "AVE":
        reduced = reduced / np.outer(rows.lengths, columns.lengths)
    return reduced


def same_size(size: int, kernel: int) -> Side:
    """An axis pooled by an odd ``kernel`` at every place."""
    return Side(size, kernel, 1, (kernel - 1) // 2, size)


def _sides(layer: Layer, parameters: Message, blob: Blob) -> tuple[Side, Side]:
    if parameters.flag("global_pooling"):
        for name in ("kernel_size", "kernel_h", "kernel_w"):
            if name in parameters:
                raise wrong(layer, f"global_pooling takes no {name}")
        rows, columns = ((size, size, 1, 0) for size in blob.shape[2:])
        return _side(layer, *rows), _side(layer, *columns)
    window = [
        _pair(layer, parameters, *names)
        for names in (("kernel_size", "kernel", 0), ("stride", "stride", 1), ("pad", "pad", 0))
    ]
    rows, columns = (
        (size, kernel, stride, pad) for size, kernel, stride, pad in zip(blob.shape[2:], *window, strict=True)
    )
    _check_pads(layer, (rows, columns))
    floor = choice(layer, parameters, "round_mode", {"CEIL": 0, "FLOOR": 1}) == "FLOOR"
    floor = floor or not parameters.flag("ceil_mode", default=True)
    # With a pad on either axis, both are looked at for a window that would begin beyond the image.
    padded = bool(rows[3] or columns[3])
    return _side(layer, *rows, floor=floor, padded=padded), _side(layer, *columns, floor=floor, padded=padded)


def _pair(layer: Layer, parameters: Message, name: str, sides: str, default: int) -> tuple[int, int]:
    if f"{sides}_h" in parameters or f"{sides}_w" in parameters:
        if name in parameters:
            raise wrong(layer, f"takes {name} or {sides}_h and {sides}_w, not both")
        return parameters.integer(f"{sides}_h", default), parameters.integer(f"{sides}_w", default)
    value = parameters.integer(name, default)
    return value, value


def _check_pads(layer: Layer, sides: Sequence[tuple[int, int, int, int]]) -> None:
    for _, kernel, _, pad in sides:
        if pad and pad >= kernel:
            raise wrong(layer, f"a pad of {pad} is not smaller than the kernel of {kernel}")


def _side(
    layer: Layer, size: int, kernel: int, stride: int, pad: int, *, floor: bool = False, padded: bool | None = None
) -> Side:
    if kernel < 1 or stride < 1 or pad < 0:
        raise wrong(layer, f"kernel {kernel}, stride {stride} and pad {pad} make no window")
    room = size + 2 * pad - kernel
    count = (room // stride if floor else -(-room // stride)) + 1
    if (bool(pad) if padded is None else padded) and (count - 1) * stride >= size + pad:
        count -= 1
    if count < 1:
        raise wrong(layer, f"a kernel of {kernel} does not fit a size of {show((size,))}")
    return Side(size, kernel, stride, pad, count)


def _check_stochastic(layer: Layer, method: str, rows: Side, columns: Side) -> None:
    if method == "STOCHASTIC" and (rows.pad or columns.pad):
        raise wrong(layer, "only MAX and AVE pooling take a pad")


def _bins(size: int, bins: int) -> tuple[int, int, int, int]:
    kernel = -(-size // bins)
    return size, kernel, kernel, (kernel * bins - size + 1) // 2


def _places(blob: Blob, rows: Side, columns: Side) -> Blob:
    """Index of the first largest value of each window, counted along the rows of its plane."""
    beyond = ((0, 0), (0, 0), (rows.pad, rows.after), (columns.pad, columns.after))
    padded = np.pad(blob, beyond, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (rows.kernel, columns.kernel), axis=(2, 3))
    windows = windows[:, :, :: rows.stride, :: columns.stride][:, :, : rows.count, : columns.count]
    first = windows.reshape(*windows.shape[:4], -1).argmax(axis=-1)
    row = rows.starts[:, None] + first // columns.kernel
    column = columns.starts[None, :] + first % columns.kernel
    return narrow(row * columns.size + column)

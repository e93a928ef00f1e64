"""Sliding windows: how a layer says their size, step and padding, and how many of them an axis holds."""

from __future__ import annotations

from collections.abc import Sequence

from retarget.convert.caffe.build import Dimension, wrong
from retarget.convert.caffe.net import Layer, Message

LARGEST = 2**31 - 1
"""Caffe's sizes are ints; ONNX Runtime's kernels and paddings too."""


def per_axis(
    layer: Layer, parameters: Message, name: str, axes: int, default: int | None, *, smallest: int = 1
) -> tuple[int, ...]:
    """What ``parameters`` say for each of ``axes`` spatial axes: once for all, one each, or as ``…_h`` and ``…_w``.

    ``name``: ``kernel_size``, ``stride``, ``pad`` or ``dilation``. ``default`` None: it must be there.
    """
    short = "kernel" if name == "kernel_size" else name
    height, width = f"{short}_h", f"{short}_w"
    if height in parameters or width in parameters:
        if axes != 2:
            raise wrong(layer, f"{height} and {width} are for two spatial axes, here are {axes}")
        missing = 0 if smallest == 0 else -1
        values: Sequence[int] = (parameters.integer(height, missing), parameters.integer(width, missing))
        if -1 in values:
            raise wrong(layer, f"has only one of {height} and {width}")
    else:
        values = parameters.integers(name)
        if not values:
            if default is None:
                raise wrong(layer, f"has no {name}")
            values = (default,)
        if len(values) == 1:
            values = tuple(values) * axes
    if len(values) != axes:
        raise wrong(layer, f"has {len(values)} values of {name} for {axes} spatial axes")
    for value in values:
        if not smallest <= value <= LARGEST:
            raise wrong(layer, f"{name} is {value}", f"{name} is an integer from {smallest}")
    return tuple(values)


def count(size: Dimension, window: int, step: int, padding: int, *, ceil: bool = False) -> Dimension:
    """How many windows of ``window`` elements, ``step`` apart, an axis of ``size`` and ``padding`` in all holds.

    ``ceil``: one that begins inside and ends outside counts as well.
    """
    rest = padding - window + (step - 1 if ceil else 0)
    if isinstance(size, int):
        return (size + rest) // step + 1
    if step == 1 and rest + 1 == 0:
        return size
    inner = f"{size} {'-' if rest < 0 else '+'} {abs(rest)}" if rest else size
    if step == 1:
        return f"{size} {'-' if rest + 1 < 0 else '+'} {abs(rest + 1)}"
    return f"({inner})//{step} + 1"

"""Pooling along one to three axes, one axis after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from retarget.targets.coreml.interpreter.call import Call, OpFunction, Tensor
from retarget.targets.coreml.interpreter.ops.windows import Window, padded, windows


def max_pool(call: Call) -> Tensor:
    x, found = _operands(call)
    return _pooled(padded(x, found, -np.inf), found, np.maximum)


def avg_pool(call: Call) -> Tensor:
    """Pads count as zeros, or not at all; what lies behind the pads where sizes are rounded up never counts."""
    x, found = _operands(call)
    total = _pooled(padded(x, found, 0), found, np.add)
    for axis, window in enumerate(found):
        counts = _counts(window, call.flag("exclude_padding_from_average", False))
        total /= counts.astype(total.dtype).reshape(-1, *[1] * (len(found) - 1 - axis))
    return total


def l2_pool(call: Call) -> Tensor:
    """Roots of the sums of squares."""
    x, found = _operands(call)
    return np.sqrt(_pooled(padded(np.square(x), found, 0), found, np.add))


def _operands(call: Call) -> tuple[Tensor, list[Window]]:
    x = call.array("x")
    found = windows(call, x.shape[2:], call.integers("kernel_sizes"))
    call.hold((*x.shape[:2], *(each.steps for each in found)))
    return x, found


def _pooled(x: Tensor, found: list[Window], join: Callable[..., Tensor]) -> Tensor:
    for axis, window in enumerate(found, 2):
        at = (slice(None),) * axis
        total = x[(*at, window.of_tap(0))].copy()
        for tap in range(1, window.taps):
            join(total, x[(*at, window.of_tap(tap))], out=total)
        x = total
    return x


def _counts(window: Window, only_elements: bool) -> Tensor:
    """How many elements, or elements and pads, are under the window at each place."""
    first = window.begin if only_elements else 0
    behind = window.begin + window.size + (0 if only_elements else window.end)
    starts = np.arange(window.steps) * window.stride
    return np.minimum(starts + window.taps, behind) - np.maximum(starts, first)


OPS: Mapping[str, OpFunction] = {"max_pool": max_pool, "avg_pool": avg_pool, "l2_pool": l2_pool}

"""Normalizations, each by the mean or the square sum of some of the elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, OpFunction, Tensor


def batch_norm(call: Call) -> Tensor:
    x = call.array("x")
    shape = _channels(x)
    scale = 1 / np.sqrt(call.array("variance") + np.float32(call.number("epsilon", 1e-5)))
    result = (x - call.array("mean").reshape(shape)) * scale.reshape(shape)
    return _scaled(call, result, shape)


def instance_norm(call: Call) -> Tensor:
    x = call.array("x")
    return _scaled(call, _centred(x, tuple(range(2, x.ndim)), call.number("epsilon", 1e-5)), _channels(x))


def layer_norm(call: Call) -> Tensor:
    x = call.array("x")
    axes = call.axes("axes", x.ndim, range(x.ndim))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return _scaled(call, _centred(x, tuple(axes), call.number("epsilon", 1e-5)), shape)


def l2_norm(call: Call) -> Tensor:
    """Over the last three axes together."""
    x = call.array("x")
    if x.ndim < 3:
        raise ToolchainFailure(f"x has {x.ndim} axes, at least 3 are expected")
    squares = np.square(x).sum((-3, -2, -1), keepdims=True)
    return np.asarray(x / np.sqrt(squares + np.float32(call.number("epsilon", 1e-6))))


def local_response_norm(call: Call) -> Tensor:
    """By the squares of ``size`` neighbours among the channels: of an even number there is one more in front."""
    x, size = call.array("x"), call.integer("size")
    squares = np.pad(np.square(x), [(0, 0), (size // 2, (size - 1) // 2), *[(0, 0)] * (x.ndim - 2)])
    total = np.zeros_like(x)
    for offset in range(size):
        total += squares[:, offset : offset + x.shape[1]]
    alpha, beta, k = (np.float32(call.number(*each)) for each in (("alpha", 1e-4), ("beta", 0.75), ("k", 1.0)))
    return np.asarray(x / np.power(k + alpha / np.float32(size) * total, beta))


def _centred(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred: Tensor = x - x.mean(axes, keepdims=True)
    spread: Tensor = np.sqrt(np.square(centred).mean(axes, keepdims=True) + np.float32(epsilon))
    centred /= spread
    return centred


def _channels(x: Tensor) -> list[int]:
    return [-1, *[1] * (x.ndim - 2)]


def _scaled(call: Call, result: Tensor, shape: Sequence[int]) -> Tensor:
    for name, apply in (("gamma", np.multiply), ("beta", np.add)):
        given = call.optional(name)
        if given is not None:
            result = apply(result, given.reshape(shape))
    return result


OPS: Mapping[str, OpFunction] = {
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "l2_norm": l2_norm,
    "local_response_norm": local_response_norm,
}

"""Normalizations by mean and variance, and by other norms.

What ONNX computes in float32 whatever the operand's type is computed so here, unless MIL has an operation for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retarget.targets.coreml.call import FLOATS, Builder, Call, Op
from retarget.targets.coreml.library import Var, new_symbol
from retarget.targets.coreml.ops.elementwise import MIL_NAMES
from retarget.targets.coreml.ops.parts import known, reshaped
from retarget.targets.coreml.values import Operand, Refusal, Result, dtype_of

if TYPE_CHECKING:
    from retarget.protocols import Array

LARGEST_ERROR = 0.05
"""Of an epsilon in float16, relative to what it is meant to be. Below 6e-8 nothing is left of it."""


# ---- by given mean and variance


def batch_normalization(call: Call) -> Result | Sequence[Result]:
    """A factor and a term for each channel."""
    if call.attributes.get_int("training_mode", 0):
        return _batch_statistics(call)
    x, epsilon = call.var(0), call.attributes.get_float("epsilon", 1e-5)
    if not all(call.is_constant(index) for index in range(1, 5)):
        root = call.mil.sqrt(x=call.mil.add(x=call.var(4), y=epsilon))
        factor = call.mil.real_div(x=call.var(1), y=root)
        term = call.mil.sub(x=call.var(2), y=call.mil.mul(x=call.var(3), y=factor))
        return _scaled(call, x, factor, term)
    given = [call.array(index, "its statistics") for index in range(1, 5)]
    scale, bias, mean, variance = (each.astype(np.float64) for each in given)
    # Of volumes it ends the process.
    if 3 <= x.rank <= 4 and call.dtype(0) == np.float32:
        gamma, beta, mean32, variance32 = (each.astype(np.float32) for each in given)
        return call.mil.batch_norm(x=x, mean=mean32, variance=variance32, gamma=gamma, beta=beta, epsilon=epsilon)
    slope = scale / np.sqrt(variance + epsilon)
    return _scaled(call, x, slope.astype(call.dtype(0)), (bias - mean * slope).astype(call.dtype(0)))


def _batch_statistics(call: Call) -> Sequence[Result]:
    """What it does when it trains: by the batch's own mean and variance, which the next ones are moved towards."""
    mil, x = _single(call)
    axes = [axis for axis in range(x.rank) if axis != 1]
    momentum, epsilon = call.attributes.get_float("momentum", 0.9), call.attributes.get_float("epsilon", 1e-5)
    centred, mean = _centred(mil, x, axes)
    variance = mil.reduce_mean(x=mil.mul(x=centred, y=centred), axes=axes, keep_dims=True)
    normal = _like(call, mil.mul(x=centred, y=mil.rsqrt(x=variance, epsilon=epsilon)))
    moved: list[Result] = []
    for index, current in ((3, mean), (4, variance)):
        if index - 2 >= len(call.outputs) or not call.outputs[index - 2]:
            moved.append(None)
            continue
        own = call.var(index)
        kept = mil.mul(x=mil.cast(x=own, dtype="fp32"), y=momentum)
        next_one = mil.add(x=kept, y=mil.mul(x=mil.squeeze(x=current, axes=axes), y=1.0 - momentum))
        moved.append(mil.cast(x=next_one, dtype=MIL_NAMES[dtype_of(own).name]))
    return [_scaled(call, normal, call.operand(1), call.operand(2)), *moved]


def _scaled(call: Call, x: Var, factor: Operand, term: Operand) -> Var:
    """``x`` times ``factor`` plus ``term``, each [channels]."""
    product = call.mil.mul(x=x, y=_along_channels(call, factor, x.rank))
    return call.mil.add(x=product, y=_along_channels(call, term, x.rank))


def _along_channels(call: Call, vector: Operand, rank: int) -> Var | Array:
    """A vector [channels] in the node's type, as it broadcasts with values of ``rank`` axes."""
    if isinstance(vector, np.ndarray):
        return vector.astype(call.dtype(0)).reshape(-1, *(1,) * (rank - 2))
    if not isinstance(vector, Var):
        raise Refusal("its factors are weights of another kind")
    alike = _like(call, vector)
    return call.mil.expand_dims(x=alike, axes=list(range(1, rank - 1))) if rank > 2 else alike


# ---- by mean and variance


def layer_normalization(call: Call) -> Sequence[Result]:
    axis, epsilon = call.axis(-1), call.attributes.get_float("epsilon", 1e-5)
    axes = list(range(axis, call.rank(0)))
    scale, bias = (_normalized_constant(call, index, axis) for index in (1, 2))
    x = call.var(0)
    if scale is not None and (bias is not None or not call.has(2)):
        result = _normalized(call, x, axes, epsilon, scale, bias)
    else:
        result = call.mil.mul(x=_normalized(call, x, axes, epsilon), y=call.var(1))
        result = call.mil.add(x=result, y=call.var(2)) if call.has(2) else result
    return [result, *_statistics(call, axes, epsilon)]


def _normalized_constant(call: Call, index: int, axis: int) -> Array | None:
    """A constant operand of the shape of what is normalized; None where it is no constant, or has another one."""
    sizes = [known(dim) for dim in call.shape(0)[axis:]]
    if not call.has(index) or not call.is_constant(index) or None in sizes:
        return None
    array = call.array(index, "its scale")
    shape = tuple(size for size in sizes if size is not None)
    fits = array.ndim <= len(shape) and np.broadcast_shapes(array.shape, shape) == shape
    return np.ascontiguousarray(np.broadcast_to(array, shape)) if fits else None


def _statistics(call: Call, axes: list[int], epsilon: float) -> Sequence[Result]:
    """The mean, and the inverse of the standard deviation, of those of both that are used."""
    if not any(call.outputs[1:]):
        return [None] * (len(call.outputs) - 1)
    mil, x = _single(call)
    centred, mean = _centred(mil, x, axes)
    variance = mil.reduce_mean(x=mil.mul(x=centred, y=centred), axes=axes, keep_dims=True)
    both = [mean, mil.rsqrt(x=variance, epsilon=epsilon)]
    name = "fp32" if call.attributes.get_int("stash_type", 1) == 1 else MIL_NAMES[call.dtype(0).name]
    used = zip(both, call.outputs[1:], strict=False)
    return [mil.cast(x=each, dtype=name) if is_used else None for each, is_used in used]


def _normalized(
    call: Call, x: Var, axes: list[int], epsilon: float, scale: Array | None = None, bias: Array | None = None
) -> Var:
    """``x`` with mean 0 and variance 1 over ``axes``, scaled."""

    def build(mil: Builder, x: Var, epsilon: float | np.float32, *scales: Array | None) -> Var:
        gamma, beta = scales
        return mil.layer_norm(x=x, axes=axes, gamma=gamma, beta=beta, epsilon=epsilon)

    return _with_epsilon(call, build, x, epsilon, scale, bias)


def _with_epsilon(call: Call, build: Callable[..., Var], x: Var, epsilon: float, *scales: Array | None) -> Var:
    """What ``build`` makes of ``x`` and of numbers of one type, in which ``epsilon`` is still the same.

    Until iOS17 that is the type of ``x``; since then it may be another one.
    """
    wide = [None if each is None else each.astype(np.float32) for each in scales]
    if dtype_of(x) == np.float32:
        return build(call.mil, x, np.float32(epsilon), *wide)
    if call.ios >= 17:
        return build(call.mil, x, np.float32(epsilon), *wide)
    if abs(float(np.float16(epsilon)) - epsilon) <= LARGEST_ERROR * epsilon:
        return build(call.mil, x, epsilon, *(None if each is None else each.astype(np.float16) for each in scales))
    mil = Builder(half=False)
    return _like(call, build(mil, mil.cast(x=x, dtype="fp32"), np.float32(epsilon), *wide))


def rms_normalization(call: Call) -> Var:
    mil, x = _single(call)
    axes = list(range(call.axis(-1), call.rank(0)))
    power = mil.reduce_mean(x=mil.mul(x=x, y=x), axes=axes, keep_dims=True)
    inverse = mil.rsqrt(x=power, epsilon=call.attributes.get_float("epsilon", 1e-5))
    return call.mil.mul(x=_like(call, mil.mul(x=x, y=inverse)), y=call.var(1))


def instance_normalization(call: Call) -> Var:
    x, epsilon = call.var(0), call.attributes.get_float("epsilon", 1e-5)
    if x.rank < 3:
        raise Refusal(f"its operand has {x.rank} axes, and so nothing to take a mean of")
    if x.rank in (3, 4) and all(call.is_constant(index) for index in (1, 2)):

        def build(mil: Builder, x: Var, epsilon: float | np.float32, gamma: Array, beta: Array) -> Var:
            return mil.instance_norm(x=x, gamma=gamma, beta=beta, epsilon=epsilon)

        return _with_epsilon(call, build, x, epsilon, call.array(1, "its scale"), call.array(2, "its bias"))
    # The GPU ends the process over the fifth axis of a volume.
    return _by_groups(call, call.sizes(0, [1])[0], epsilon)


def group_normalization(call: Call) -> Var:
    return _by_groups(call, call.attributes.get_int("num_groups", 1), call.attributes.get_float("epsilon", 1e-5))


def _by_groups(call: Call, groups: int, epsilon: float) -> Var:
    x, (channels,) = call.var(0), call.sizes(0, [1])
    batch, _, *rest = call.shape(0)
    sizes = [known(dim) for dim in rest]
    each = new_symbol() if None in sizes else channels // groups * math.prod(size for size in sizes if size is not None)
    parted = reshaped(call, x, (batch, groups, each))
    normal = reshaped(call, _normalized(call, parted, [2], epsilon), call.shape(0), x)
    return _scaled(call, normal, call.operand(1), call.operand(2))


def mean_variance_normalization(call: Call) -> Var:
    mil, x = _single(call)
    axes = [axis % x.rank for axis in call.attributes.get_ints("axes", (0, 2, 3))]
    centred, _ = _centred(mil, x, axes)
    deviation = mil.sqrt(x=mil.reduce_mean(x=mil.mul(x=centred, y=centred), axes=axes, keep_dims=True))
    return _like(call, mil.real_div(x=centred, y=mil.add(x=deviation, y=1e-9)))


def _single(call: Call) -> tuple[Builder, Var]:
    """Operand 0 as float32, and what to compute with it."""
    mil, x = Builder(half=False), call.var(0)
    return mil, x if dtype_of(x) == np.float32 else mil.cast(x=x, dtype="fp32")


def _like(call: Call, x: Var) -> Var:
    """``x`` in the type of operand 0."""
    return x if dtype_of(x) == call.dtype(0) else call.mil.cast(x=x, dtype=MIL_NAMES[call.dtype(0).name])


def _centred(mil: Builder, x: Var, axes: list[int]) -> tuple[Var, Var]:
    mean = mil.reduce_mean(x=x, axes=axes, keep_dims=True)
    return mil.sub(x=x, y=mean), mean


# ---- by other norms


def lp_normalization(call: Call) -> Var:
    x, order = call.var(0), call.attributes.get_int("p", 2)
    reduce = call.mil.reduce_l2_norm if order == 2 else call.mil.reduce_l1_norm
    norm = reduce(x=x, axes=[call.axis(-1)], keep_dims=True)
    # What is zero everywhere stays so.
    return call.mil.real_div(x=x, y=call.mil.select(cond=call.mil.equal(x=norm, y=0.0), a=1.0, b=norm))


def lrn(call: Call) -> Var:
    size = call.attributes.get_int("size", 1)
    if size % 2 == 0:
        raise Refusal(f"size={size}: Core ML does not say on which side of a channel it takes one neighbour more")
    if call.rank(0) not in (3, 4):
        raise Refusal(f"its operand has {call.rank(0)} axes, and Core ML's takes 3 or 4")
    names = {"alpha": ("alpha", 1e-4), "beta": ("beta", 0.75), "k": ("bias", 1.0)}
    numbers = {name: call.attributes.get_float(*each) for name, each in names.items()}
    if call.ios >= 17:
        return call.mil.local_response_norm(
            x=call.var(0), size=size, **{name: np.float32(number) for name, number in numbers.items()}
        )
    return call.mil.local_response_norm(x=call.var(0), size=size, **numbers)


OPS: Mapping[str, Op] = {
    "BatchNormalization": Op(batch_normalization, FLOATS),
    "GroupNormalization": Op(group_normalization, FLOATS),
    "InstanceNormalization": Op(instance_normalization, FLOATS),
    "LRN": Op(lrn, FLOATS),
    "LayerNormalization": Op(layer_normalization, FLOATS),
    "LpNormalization": Op(lp_normalization, FLOATS),
    "MeanVarianceNormalization": Op(mean_variance_normalization, FLOATS),
    "RMSNormalization": Op(rms_normalization, FLOATS),
}

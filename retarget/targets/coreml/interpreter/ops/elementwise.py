"""What works on each element alone: arithmetic, comparison, selection, casts and activation functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.call import Call, NotInterpreted, OpFunction
from retarget.targets.coreml.interpreter.declared import HELD, TensorType

if TYPE_CHECKING:
    from retarget.targets.coreml.interpreter.call import Tensor


# ---- functions of one operand


def _unary(function: Callable[[Tensor], Tensor], *, integers: bool = False) -> OpFunction:
    """An operation on floats, and on integers where that says so."""

    def op(call: Call) -> Tensor:
        x = call.array("x")
        if x.dtype.kind != "f" and not integers:
            raise NotInterpreted(f"x is {x.dtype.name}: how the result becomes one is not documented")
        return function(x)

    return op


def _relu(x: Tensor) -> Tensor:
    return np.maximum(x, np.float32(0))


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + np.exp(-x))


def _silu(x: Tensor) -> Tensor:
    return x * _sigmoid(x)


def _softplus(x: Tensor) -> Tensor:
    return np.logaddexp(np.float32(0), x)


_GRID = 512
_FURTHEST = 6
"""Beyond it, erf is 1 in float64."""
_POINTS = np.arange(_FURTHEST * _GRID + 1) / _GRID
_ERF = np.array([math.erf(point) for point in _POINTS])
_SLOPE = 2 / math.sqrt(math.pi) * np.exp(-(_POINTS**2))


def error_function(x: Tensor) -> Tensor:
    """erf of each element, exact to some 1e-16: numpy has none.

    A Taylor polynomial of degree 4 around the nearest of points that are 1/512 apart.
    """
    size = np.minimum(np.abs(x.astype(np.float64)), _FURTHEST)
    index = np.rint(np.nan_to_num(size) * _GRID).astype(np.intp)
    a = _POINTS[index]
    d = size - a
    series = d * (1 + d * (-a + d * ((2 * a * a - 1) / 3 + d * a * (3 - 2 * a * a) / 6)))
    return np.asarray(np.copysign(_ERF[index] + _SLOPE[index] * series, x), x.dtype)


def gelu(call: Call) -> Tensor:
    x = call.array("x")
    match call.text("mode", "EXACT"):
        case "EXACT":
            # In float64: where erf comes near to -1, next to nothing would be left of float32's digits.
            wide = x.astype(np.float64)
            return (wide * (1 + error_function(wide / math.sqrt(2))) / 2).astype(np.float32)
        case "TANH_APPROXIMATION":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            return np.asarray(x * (1 + np.tanh(inner)) / 2)
        case "SIGMOID_APPROXIMATION":
            return x * _sigmoid(1.702 * x)
        case mode:
            raise NotInterpreted(f"mode is '{mode}'")


# ---- functions of one operand and numbers


def _epsilon(call: Call, default: float) -> np.float32:
    """What is added to x: the default is of the type of x, where a small one can be 0."""
    declared = call.outputs[0]
    if not call.has("epsilon") and isinstance(declared, TensorType) and declared.dtype == np.float16:
        return np.float32(np.float16(default))
    return np.float32(call.number("epsilon", default))


def log(call: Call) -> Tensor:
    return np.asarray(np.log(call.array("x") + _epsilon(call, 1e-45)))


def inverse(call: Call) -> Tensor:
    return 1 / (call.array("x") + _epsilon(call, 1e-4))


def rsqrt(call: Call) -> Tensor:
    return np.asarray(1 / np.sqrt(call.array("x") + _epsilon(call, 1e-12)))


def clip(call: Call) -> Tensor:
    alpha, beta = call.number("alpha"), call.number("beta")
    if call.opset >= 17 and alpha >= beta:
        raise ToolchainFailure(f"alpha is {alpha}, beta {beta}: since iOS17 alpha is the smaller one")
    return np.minimum(np.maximum(call.array("x"), np.float32(alpha)), np.float32(beta))


def threshold(call: Call) -> Tensor:
    return np.maximum(call.array("x"), call.array("alpha"))


def clamped_relu(call: Call) -> Tensor:
    x, alpha, beta = call.array("x"), call.number("alpha"), call.number("beta")
    if beta < 0:
        raise NotInterpreted(f"beta is {beta}: what is documented and what coremltools computes differ below 0")
    return np.minimum(np.where(x >= 0, x, alpha * x), np.float32(beta))


def elu(call: Call) -> Tensor:
    x = call.array("x")
    return np.where(x > 0, x, call.number("alpha") * np.expm1(np.minimum(x, np.float32(0))))


def leaky_relu(call: Call) -> Tensor:
    x = call.array("x")
    return np.where(x >= 0, x, call.number("alpha") * x)


def linear_activation(call: Call) -> Tensor:
    return call.number("alpha") * call.array("x") + call.number("beta")


def scaled_tanh(call: Call) -> Tensor:
    return np.asarray(call.number("alpha") * np.tanh(call.number("beta") * call.array("x")))


def sigmoid_hard(call: Call) -> Tensor:
    line = call.number("alpha") * call.array("x") + call.number("beta")
    return np.asarray(np.clip(line, 0, 1))


def thresholded_relu(call: Call) -> Tensor:
    x = call.array("x")
    return np.where(x >= call.number("alpha"), x, np.float32(0))


def prelu(call: Call) -> Tensor:
    x = call.array("x")
    return np.where(x > 0, x, _per_channel(call, "alpha", x) * x)


def softplus_parametric(call: Call) -> Tensor:
    x = call.array("x")
    return _per_channel(call, "alpha", x) * _softplus(x * _per_channel(call, "beta", x))


def _per_channel(call: Call, name: str, x: Tensor) -> Tensor:
    """A vector with a number for each of the second axis of ``x``, to broadcast with it."""
    vector = call.array(name)
    if x.ndim < 2 or vector.shape != x.shape[1:2]:
        raise ToolchainFailure(f"parameter '{name}' is {list(vector.shape)}, x {list(x.shape)}")
    return vector.reshape(-1, *(1,) * (x.ndim - 2))


# ---- functions of two operands


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> OpFunction:
    return lambda call: function(*_pair(call))


def _pair(call: Call) -> tuple[Tensor, Tensor]:
    x, y = call.array("x"), call.array("y")
    if x.dtype != y.dtype:
        raise ToolchainFailure(f"x is {x.dtype.name}, y {y.dtype.name}: they are to be of one type")
    return x, y


def _divided(function: Callable[[Tensor, Tensor], Tensor]) -> OpFunction:
    """Of a division that rounds downwards, the quotient or what is left."""

    def op(call: Call) -> Tensor:
        x, y = _pair(call)
        if x.dtype.kind != "f" and not y.all():
            raise NotInterpreted("an integer is divided by 0: what that gives differs between processors")
        return function(x, y)

    return op


def real_div(call: Call) -> Tensor:
    x, y = _pair(call)
    if x.dtype.kind != "f":
        raise NotInterpreted(f"x is {x.dtype.name}: how the quotient becomes one is not documented")
    return x / y


def pow(call: Call) -> Tensor:  # noqa: A001 - its name in MIL
    x, y = _pair(call)
    if x.dtype.kind != "f" and (y < 0).any():
        raise NotInterpreted("an integer to the power of a negative one")
    return np.power(x, y)


# ---- selection and types


def select(call: Call) -> Tensor:
    return np.where(call.stored("cond"), call.stored("a"), call.stored("b"))


_CAST = {
    "bool": "bool",
    "fp16": "float16",
    "fp32": "float32",
    **{name: name for name in ("int8", "int16", "int32", "uint8", "uint16")},
}
"""What ``dtype`` can be."""


def cast(call: Call) -> Tensor:
    """Floats lose their fractions; a float that the integers do not reach is refused, as each processor has its own."""
    x, name, declared = call.array("x"), call.text("dtype"), call.outputs[0]
    if name not in _CAST:
        raise NotInterpreted(f"dtype is '{name}'")
    if not isinstance(declared, TensorType) or declared.element != _CAST[name]:
        raise ToolchainFailure(f"the output is declared {declared}, dtype is '{name}'")
    if _CAST[name] == "float16":
        return x.astype(np.float32)  # it is rounded, or not, as each float16 output is
    dtype = HELD[_CAST[name]]
    if x.dtype.kind == "f" and dtype.kind in "iu":
        whole, limits = np.trunc(x), np.iinfo(dtype.name)
        if not ((whole >= limits.min) & (whole <= limits.max)).all():
            raise NotInterpreted(f"a float is outside of {name}: what it becomes differs between processors")
    return x.astype(dtype)


OPS: Mapping[str, OpFunction] = {
    "abs": _unary(np.abs, integers=True),
    "acos": _unary(np.arccos),
    "add": _binary(np.add),
    "asin": _unary(np.arcsin),
    "atan": _unary(np.arctan),
    "atanh": _unary(np.arctanh),
    "cast": cast,
    "ceil": _unary(np.ceil),
    "clamped_relu": clamped_relu,
    "clip": clip,
    "cos": _unary(np.cos),
    "cosh": _unary(np.cosh),
    "elu": elu,
    "equal": _binary(np.equal),
    "erf": _unary(error_function),
    "exp": _unary(np.exp),
    "exp2": _unary(np.exp2),
    "floor": _unary(np.floor),
    "floor_div": _divided(np.floor_divide),
    "gelu": gelu,
    "greater": _binary(np.greater),
    "greater_equal": _binary(np.greater_equal),
    "inverse": inverse,
    "leaky_relu": leaky_relu,
    "less": _binary(np.less),
    "less_equal": _binary(np.less_equal),
    "linear_activation": linear_activation,
    "log": log,
    "logical_and": _binary(np.logical_and),
    "logical_not": _unary(np.logical_not, integers=True),
    "logical_or": _binary(np.logical_or),
    "logical_xor": _binary(np.logical_xor),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "mod": _divided(np.mod),
    "mul": _binary(np.multiply),
    "not_equal": _binary(np.not_equal),
    "pow": pow,
    "prelu": prelu,
    "real_div": real_div,
    "relu": _unary(_relu),
    "relu6": _unary(lambda x: np.minimum(_relu(x), np.float32(6))),
    "round": _unary(np.round),
    "rsqrt": rsqrt,
    "scaled_tanh": scaled_tanh,
    "select": select,
    "sigmoid": _unary(_sigmoid),
    "sigmoid_hard": sigmoid_hard,
    "sign": _unary(np.sign, integers=True),
    "silu": _unary(_silu),
    "sin": _unary(np.sin),
    "sinh": _unary(np.sinh),
    "softplus": _unary(_softplus),
    "softplus_parametric": softplus_parametric,
    "softsign": _unary(lambda x: x / (1 + np.abs(x))),
    "sqrt": _unary(np.sqrt),
    "square": _unary(np.square, integers=True),
    "sub": _binary(np.subtract),
    "tan": _unary(np.tan),
    "tanh": _unary(np.tanh),
    "threshold": threshold,
    "thresholded_relu": thresholded_relu,
}

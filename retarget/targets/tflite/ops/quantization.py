"""QuantizeLinear and DequantizeLinear: no operators by themselves where integers flow between kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from retarget import graph
from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.layout import Way
from retarget.targets.tflite.program import Codes, Constant, Quantization
from retarget.targets.tflite.values import Refusal, Value, quantization_of

if TYPE_CHECKING:
    from retarget.protocols import Array


def quantize_linear(call: Call) -> Value | Constant:
    """The same value, known by its integers from here on. Its float form is what the integers mean."""
    quantization = quantization_of(call.node)
    operand = call.operand(0)
    if quantization is None:
        raise Refusal("activations have a scale for each channel, or a computed one")
    _check_integers(call, quantization)
    if isinstance(operand, Constant):
        kind = call.lowering.integers
        rounding = _quantize(quantization, kind.name)
        return _meant(operand.then(("quantized", quantization), rounding, operand.shape, kind), quantization)
    if operand.quantization == quantization:
        return operand
    lowering = call.lowering
    rounded = Value(operand.shape, operand.dtype, quantization, image=operand.image)
    layout = call.layout if operand.rank >= 3 else next(iter(operand.forms))[0]
    source = lowering.form(operand, layout, codes=operand.quantization is not None)
    made = lowering.new(operand.shape, operand.dtype, layout, quantization, operand.image)
    ((key, tensor),) = made.forms.items()
    lowering.add("QUANTIZE", (source,), tensor, None, call.node.name or "")
    rounded.forms[key] = tensor
    return rounded


def dequantize_linear(call: Call) -> Value | Constant:
    """What the integers mean. Of a constant: the float array, with the integers kept behind it."""
    operand = call.operand(0)
    if isinstance(operand, Constant) and operand.codes is None:
        return _constant(call, operand)
    of = operand.quantization if isinstance(operand, Value) else operand.codes and operand.codes.quantization
    if of is None:
        raise Refusal("its operand is not the result of a QuantizeLinear")
    if quantization_of(call.node) != of:
        raise Refusal("its scale or zero point is not that of the QuantizeLinear in front of it")
    return operand


def _check_integers(call: Call, quantization: Quantization) -> None:
    """Raise ``Refusal`` for integers that are not those of the precision that is written."""
    dtype, integers = call.node.outputs[0].dtype, call.lowering.integers.name
    name = integers if dtype is None else graph.dtype_name(dtype)
    if name.removeprefix("u") != integers or (name, integers) == ("uint16", "int16"):
        raise Refusal(f"it rounds to {name}, and activations of this precision are {integers}")
    if integers == "int16" and any(quantization.zero_points):
        raise Refusal("its zero point is not 0: the kernels of int16 have no other")


def _constant(call: Call, integers: Constant) -> Constant:
    if call.attributes.get_int("block_size", 0):
        raise Refusal("weights have a scale for each block, and the kernels take one for each channel")
    scale = call.array(1, "the scale").astype(np.float32).reshape(-1)
    zero = call.array(2, "the zero point").reshape(-1) if call.has(2) else np.zeros(scale.size, integers.dtype)
    axis = call.attributes.get_int("axis", 1) % max(len(integers.shape), 1) if scale.size > 1 else 0
    shift = 128 if integers.dtype == np.uint8 else 0
    signed = integers
    if shift:
        signed = integers.then("signed", lambda a: (a.astype(np.int16) - 128).astype(np.int8), integers.shape, _INT8)
    quantization = Quantization(
        tuple(float(each) for each in scale),
        tuple(int(each) - shift for each in np.broadcast_to(zero, scale.shape)),
        axis,
    )
    return _meant(signed, quantization)


def _meant(integers: Constant, quantization: Quantization) -> Constant:
    """What ``integers`` stand for, and they behind it."""
    scales, zeros = np.array(quantization.scales, np.float32), np.array(quantization.zero_points, np.int32)

    def dequantized(array: Array) -> Array:
        along = [1] * array.ndim
        if scales.size > 1:
            along[quantization.axis] = -1
        shape = along if scales.size > 1 else ()
        product: Array = np.multiply(
            (array.astype(np.int32) - zeros.reshape(shape)).astype(np.float32), scales.reshape(shape)
        )
        return product

    wide = integers.then(("dequantized", quantization), dequantized, integers.shape, _FLOAT)
    return Constant(wide.shape, wide.dtype, wide.key, wide.make, Codes(integers, quantization))


def _quantize(quantization: Quantization, integers: str) -> Callable[[Array], Array]:
    """Half to even, as QuantizeLinear has it."""
    (scale,), (zero,), limits = quantization.scales, quantization.zero_points, np.iinfo(integers)

    def rounded(array: Array) -> Array:
        steps = np.rint(np.divide(array.astype(np.float32), np.float32(scale))) + zero
        codes: Array = np.clip(steps, limits.min, limits.max).astype(integers)
        return codes

    return rounded


_INTEGERS = frozenset({"int8", "uint8", "int16", "int32"})
_FLOAT, _INT8 = np.dtype(np.float32), np.dtype(np.int8)

OPS: Mapping[str, Op] = {
    "DequantizeLinear": Op(dequantize_linear, Way.EITHER, operands=(0,), dtypes=_INTEGERS | {"float32"}),
    "QuantizeLinear": Op(quantize_linear, Way.EITHER, operands=(0,)),
}

"""Values on the way from ONNX to TFLite, their types, and why a node cannot be taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir

from retarget.targets.tflite.layout import Layout
from retarget.targets.tflite.program import Constant, Quantization, Shape, Tensor
from retarget.targets.walk import Refusal as Refusal

NARROW = {"int64": "int32", "uint32": "int32", "uint64": "int32", "float64": "float32"}
"""Types that are computed in a narrower one; constants are held against it, and the runner holds inputs against it."""

TYPES = frozenset({"float32", "int32", "int8", "uint8", "int16", "bool"})
"""Types of computed values, after narrowing."""

MOST_AXES = 8
"""Most kernels take no more, and some end the process where there are."""


@dataclass(eq=False)
class Value:
    """A computed value, its shape in ONNX's order of axes."""

    shape: Shape
    dtype: np.dtype[np.generic]
    """Of the value itself: float32 also where integers stand for it."""
    quantization: Quantization | None = None
    """Where integers stand for it: what they mean."""
    forms: dict[tuple[Layout, bool], Tensor] = field(default_factory=dict)
    """The tensors that hold it, by layout and by whether they hold the integers."""
    image: Shape | None = None
    """Of rows that were flattened with the channels last: [channels, ...] of what they were. LAST is that order."""
    is_counted: bool = False
    """Whether its first axis is only as long as the data make it; ``shape`` then has the most that it can be."""

    def counted(self) -> Self:
        """This value, with a first axis as long as the data make it."""
        self.is_counted = True
        for tensor in self.forms.values():
            tensor.open_axes = (0,)
        return self

    @property
    def rank(self) -> int:
        return len(self.shape)


Operand: TypeAlias = Value | Constant

Result: TypeAlias = Value | Constant | None


def limit_axes(rank: int) -> None:
    """Raise ``Refusal`` for more axes than kernels take."""
    if rank > MOST_AXES:
        raise Refusal(f"there are {rank} axes, and the kernels take {MOST_AXES}")


def broadcast(*shapes: Shape) -> Shape:
    """What values of ``shapes`` broadcast to. Raises ``Refusal``: a constant may fit one size of an open dimension."""
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        raise Refusal(f"{' and '.join(str(list(shape)) for shape in shapes)} do not broadcast") from None


def narrow(constant: Constant) -> Constant:
    """``constant`` in the type that TFLite has for it. Raises ``Refusal`` for integers that it cannot hold."""
    name = NARROW.get(constant.dtype.name)
    if name is None:
        return constant.cast("float32") if constant.dtype == ml_dtypes.bfloat16 else constant
    if name == "int32" and constant.size:
        array, limits = constant.array(), np.iinfo(np.int32)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise Refusal("a constant holds integers that int32 cannot")
    return constant.cast(name)


def constant_of(tensor: ir.TensorProtocol) -> Constant:
    """An initializer, read when it is needed."""
    shape = tensor.shape.numpy()
    return Constant(tuple(shape), tensor.dtype.numpy(), id(tensor), lambda: np.asarray(tensor.numpy()))


def quantization_of(node: ir.Node) -> Quantization | None:
    """What a Quantize- or DequantizeLinear of one constant scale means, in signed integers; None for all others."""
    operands = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs[1:3]]
    if not operands or operands[0] is None or operands[0].size != 1:
        return None
    zero, shift = 0, 0
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if operands[1] is None:
            return None
        zero = int(operands[1].numpy().item())
        shift = 128 if operands[1].dtype == ir.DataType.UINT8 else 0
    elif node.attributes.get_int("output_dtype", 0) in (0, ir.DataType.UINT8):
        shift = 128
    return Quantization.of(operands[0].numpy().item(), zero - shift)

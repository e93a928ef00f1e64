"""What will stand in the file, as plain data: tensors, constants that are made when they are written, operators."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from retarget.protocols import Array

Shape: TypeAlias = tuple[int, ...]
Activation: TypeAlias = Literal["NONE", "RELU", "RELU_N1_TO_1", "RELU6"]
"""Names of the schema's ``ActivationFunctionType`` that kernels fuse."""

SMALL = 1 << 10
"""Constants of at most so many bytes are equal when their bytes are."""


@dataclass(frozen=True)
class Quantization:
    """``real = scale * (code - zero_point)``: one scale for all, or one for each index of ``axis``."""

    scales: tuple[float, ...]
    """float32 values."""
    zero_points: tuple[int, ...]
    axis: int = 0

    @classmethod
    def of(cls, scale: float, zero_point: int) -> Self:
        """One scale for the whole tensor."""
        return cls((float(np.float32(scale)),), (int(zero_point),))

    @property
    def per_channel(self) -> bool:
        return len(self.scales) > 1


@dataclass(frozen=True)
class Codes:
    """The integers behind a constant, of which the float form is made."""

    integers: Constant
    quantization: Quantization
    """Its ``axis`` is one of ``integers``."""


@dataclass(frozen=True, eq=False)
class Constant:
    """An array that is made when it is asked for: a model's weights are never all in memory.

    ``key``: constants of equal keys hold equal arrays.
    """

    shape: Shape
    dtype: np.dtype[np.generic]
    key: Hashable
    make: Callable[[], Array]
    codes: Codes | None = None
    """Where it stands for dequantized integers."""

    @classmethod
    def of(cls, array: ArrayLike, dtype: str | None = None) -> Self:
        """A small array, kept as it is."""
        held = np.asarray(array, dtype)
        # The same in every lowering of a model, which are held against each other.
        content = held.tobytes() if held.nbytes <= SMALL else _digest(held)
        return cls(held.shape, held.dtype, (held.dtype.name, held.shape, content), lambda: held)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def array(self) -> Array:
        """The array, made anew."""
        made = self.make()
        assert made.shape == self.shape, (made.shape, self.shape)
        return made if made.dtype == self.dtype else made.astype(self.dtype)

    def then(
        self, what: Hashable, change: Callable[[Array], Array], shape: Shape, dtype: np.dtype[np.generic] | None = None
    ) -> Constant:
        """The array with ``change`` applied, which ``what`` names: equal names mean equal changes."""
        return Constant(shape, dtype or self.dtype, (self.key, what), lambda: change(self.array()))

    def transposed(self, perm: Sequence[int]) -> Constant:
        order = tuple(perm)
        if order == tuple(range(len(order))):
            return self
        shape = tuple(self.shape[axis] for axis in order)
        return self.then(("transposed", order), lambda array: np.ascontiguousarray(array.transpose(order)), shape)

    def reshaped(self, shape: Sequence[int]) -> Constant:
        to = tuple(shape)
        return self if to == self.shape else self.then(("reshaped", to), lambda array: array.reshape(to), to)

    def cast(self, dtype: str) -> Constant:
        to = np.dtype(dtype)
        return self if to == self.dtype else self.then(("cast", to.str), lambda a: a.astype(to), self.shape, to)


def _digest(array: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).digest()


@dataclass(eq=False)
class Tensor:
    """A tensor of the file. ``shape`` is that at the sizes it was lowered for, in the order that it is stored in."""

    shape: Shape
    dtype: np.dtype[np.generic]
    name: str = ""
    """Unique in the file; the writer numbers those without one."""
    quantization: Quantization | None = None
    constant: Constant | None = None
    open_axes: tuple[int, ...] = ()
    """Axes whose size may be changed when the model is loaded."""
    is_variable: bool = False
    """Whether it is state that a kernel keeps between steps."""
    value: str | None = None
    """The ONNX value that it is."""
    layout: Literal["first", "last"] = "first"
    """How it is stored, against the order of axes in ONNX."""


@dataclass(frozen=True)
class Options:
    """An operator's options: the name of their table in the schema, and fields by the names in the schema's classes.

    A text is the name of an enumeration's member, such as ``RELU6`` of ``fusedActivationFunction``.
    """

    table: str
    fields: Mapping[str, int | float | bool | str | tuple[int, ...]] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    """Sizes that may be open, and for which alone the operator is right. They are not written."""


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator. ``code`` is its name in the schema's ``BuiltinOperator``."""

    code: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Options | None = None
    origin: str = ""
    """The ONNX node that it was made of."""
    custom: str | None = None
    """The name of a custom operator; ``code`` is then ``CUSTOM``."""
    custom_options: bytes = b""


@dataclass
class Program:
    """One subgraph: operators in the order of execution, inputs and outputs with the user's names."""

    operators: list[Operator] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor, inputs first, then in the order in which operators name them."""
        found = dict.fromkeys(self.inputs.values())
        for operator in self.operators:
            found.update(dict.fromkeys(tensor for tensor in operator.inputs if tensor is not None))
            found.update(dict.fromkeys(operator.outputs))
        found.update(dict.fromkeys(self.outputs.values()))
        return tuple(found)

    def without_unused(self) -> Program:
        """The same without operators whose outputs nothing reads."""
        live = set(self.outputs.values())
        kept: list[Operator] = []
        for operator in reversed(self.operators):
            # What writes a state is read by the kernel that keeps it.
            if any(tensor in live or tensor.is_variable for tensor in operator.outputs):
                kept.append(operator)
                live.update(tensor for tensor in operator.inputs if tensor is not None)
        return Program(kept[::-1], self.inputs, self.outputs)

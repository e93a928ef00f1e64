"""One operation of a program as its op function sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.errors import NotExecutable, ToolchainFailure
from retarget.targets.coreml.interpreter.declared import TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retarget.protocols import Array
    from retarget.targets.coreml.interpreter.declared import ValueType
    from retarget.targets.coreml.interpreter.program import Block


class NotInterpreted(NotExecutable):
    """An operation, or a mode of one, of which it is not certain what Core ML computes: it is never guessed."""

    def __init__(self, message: str, hint: str | None = "on a Mac, Core ML itself executes the package") -> None:
        super().__init__(message, hint)


@dataclass(frozen=True)
class Dictionary:
    """Labels and what belongs to each: two vectors of one length."""

    keys: Array
    values: Array


Tensor: TypeAlias = "NDArray[np.floating]"
"""A tensor to compute with. Integers and truths go by this name, too: which of them it is shows only when it runs."""

Value: TypeAlias = "Array | list[Array] | Dictionary"
"""What a name in a program stands for. Strings are arrays, too: of no axes where there is one."""

Result: TypeAlias = "Value | tuple[Value, ...]"

OpFunction: TypeAlias = "Callable[[Call], Result]"
"""Computes the outputs of an operation: float16 ones as float32, what is declared anything else as just that.

It may raise ``NotInterpreted``, and what numpy raises for operands that do not fit together.
"""


@dataclass(frozen=True)
class Call:
    """One operation with its operands: parameters by name, those that a program leaves out are absent.

    ``ToolchainFailure`` is raised for a parameter that is missing and has no default, or is of another kind.
    """

    type: str
    operands: Mapping[str, tuple[Value, ...]]
    outputs: tuple[ValueType, ...]
    opset: int
    """15 for iOS15 to 18 for iOS18."""
    blocks: tuple[Block, ...] = ()
    evaluate: Callable[[Block, Sequence[Value]], tuple[Value, ...]] | None = None

    # ---- tensors

    def has(self, name: str) -> bool:
        """Whether the parameter is given."""
        return bool(self.operands.get(name))

    def array(self, name: str) -> Tensor:
        """A tensor to compute with: one of float16 as float32."""
        return widened(self.stored(name))

    def optional(self, name: str) -> Tensor | None:
        """``array``, or None where the parameter is not given."""
        return self.array(name) if self.has(name) else None

    def arrays(self, name: str) -> list[Tensor]:
        """All the tensors of a parameter that takes several."""
        return [widened(each) for each in self.all_stored(name)]

    def stored(self, name: str) -> Tensor:
        """A tensor as it is held, float16 also: for what moves elements and does not compute with them."""
        values = self.all_stored(name)
        if len(values) != 1:
            raise ToolchainFailure(f"parameter '{name}' is {len(values)} values rather than one")
        return values[0]

    def all_stored(self, name: str) -> list[Tensor]:
        """``stored`` of a parameter that takes several."""
        found: list[Tensor] = []
        for value in self.values(name):
            if not isinstance(value, np.ndarray):
                raise ToolchainFailure(f"parameter '{name}' is a {type(value).__name__.lower()} rather than a tensor")
            found.append(value)  # type: ignore[arg-type]  # `Tensor` says so
        return found

    def values(self, name: str) -> tuple[Value, ...]:
        """Whatever a parameter is given, tensors and others."""
        values = self.operands.get(name, ())
        if not values:
            raise ToolchainFailure(f"parameter '{name}' is missing")
        return values

    # ---- single numbers and words

    def number(self, name: str, default: float | None = None) -> float:
        """A number, such as ``epsilon``."""
        if default is not None and not self.has(name):
            return default
        return float(self._one(name, "biuf", "a number"))

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number, such as ``axis``."""
        if default is not None and not self.has(name):
            return default
        return int(self._one(name, "iu", "an integer"))

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """A vector of whole numbers, such as ``axes``; a scalar is a vector of one."""
        if default is not None and not self.has(name):
            return list(default)
        return [int(number) for number in self._vector(name, "iu", "integers")]

    def numbers(self, name: str, default: Sequence[float] | None = None) -> list[float]:
        """A vector of numbers; a scalar is a vector of one."""
        if default is not None and not self.has(name):
            return list(default)
        return [float(number) for number in self._vector(name, "biuf", "numbers")]

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false, such as ``keep_dims``."""
        if default is not None and not self.has(name):
            return default
        return bool(self._one(name, "b", "true or false"))

    def flags(self, name: str, default: Sequence[bool] | None = None) -> list[bool]:
        """A vector of true and false, such as ``begin_mask``."""
        if default is not None and not self.has(name):
            return list(default)
        return [bool(flag) for flag in self._vector(name, "b", "true or false")]

    def text(self, name: str, default: str | None = None) -> str:
        """A word, such as ``mode``."""
        if default is not None and not self.has(name):
            return default
        return str(self._one(name, "U", "a string"))

    def _one(self, name: str, kinds: str, what: str) -> Array:
        array = self._of_kind(name, kinds, what)
        if array.size != 1:
            raise ToolchainFailure(f"parameter '{name}' is {list(array.shape)}, {what} is expected")
        return array.reshape(())

    def _vector(self, name: str, kinds: str, what: str) -> Array:
        array = self._of_kind(name, kinds, what)
        if array.ndim > 1:
            raise ToolchainFailure(f"parameter '{name}' is {list(array.shape)}, a vector of {what} is expected")
        return array.reshape(-1)

    def _of_kind(self, name: str, kinds: str, what: str) -> Array:
        array = self.stored(name)
        if array.dtype.kind not in kinds:
            raise ToolchainFailure(f"parameter '{name}' is {array.dtype.name}, {what} is expected")
        return array

    # ---- axes, types and blocks

    def axis(self, name: str, rank: int, default: int | None = None) -> int:
        """An axis of a tensor of ``rank`` axes, from the front; a negative one counts from the end."""
        return self._position(name, self.integer(name, default), rank)

    def axes(self, name: str, rank: int, default: Sequence[int] | None = None) -> list[int]:
        """Distinct axes of a tensor of ``rank`` axes, from the front, in the order that is given."""
        axes = [self._position(name, axis, rank) for axis in self.integers(name, default)]
        if len(set(axes)) != len(axes):
            raise ToolchainFailure(f"parameter '{name}' names an axis twice: {axes}")
        return axes

    @staticmethod
    def _position(name: str, axis: int, rank: int) -> int:
        if not -rank <= axis < rank:
            raise ToolchainFailure(f"parameter '{name}' is {axis}, of a tensor of {rank} axes")
        return axis % rank

    def dtype(self, output: int = 0) -> np.dtype[np.generic]:
        """What an op function returns as ``output``: the declared type of elements, float32 for float16."""
        declared = self.outputs[output]
        if not isinstance(declared, TensorType):
            raise ToolchainFailure(f"output {output} is declared {declared}, a tensor is expected")
        return np.dtype(np.float32) if declared.dtype == np.float16 else declared.dtype

    def hold(self, shape: Sequence[int], output: int = 0) -> None:
        """Raise ``ToolchainFailure`` if ``output`` is not declared as of ``shape``: before so much memory is taken."""
        declared = self.outputs[output]
        if not isinstance(declared, TensorType) or not declared.fits(tuple(shape)):
            raise ToolchainFailure(f"output {output} is declared {declared}, it would be {list(shape)}")

    def run_block(self, block: Block, operands: Sequence[Value]) -> tuple[Value, ...]:
        """What one of ``blocks`` gives for its inputs; it sees what is computed around it, too."""
        if self.evaluate is None:
            raise ToolchainFailure("it has no blocks")
        return self.evaluate(block, operands)


def widened(array: Tensor) -> Tensor:
    """float16 as float32, which arithmetic is done in; everything else as it is."""
    return array.astype(np.float32) if array.dtype == np.float16 else array

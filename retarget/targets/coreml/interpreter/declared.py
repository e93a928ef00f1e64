"""The types of MIL values, and in what numpy holds them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import ml_dtypes
import numpy as np

Shape: TypeAlias = tuple[int | None, ...]
"""Sizes of the axes; None: not known before the program runs."""

BITS = MappingProxyType({"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6})
"""Integers narrower than a byte, which are stored packed: the lowest bits of a byte first."""

HELD: MappingProxyType[str, np.dtype[np.generic]] = MappingProxyType(
    {
        "bool": np.dtype(np.bool_),
        "string": np.dtype(np.str_),
        "float16": np.dtype(np.float16),
        "bfloat16": np.dtype(ml_dtypes.bfloat16),
        "float32": np.dtype(np.float32),
        "float64": np.dtype(np.float64),
        **{f"int{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
        **{f"uint{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
        **{name: np.dtype(np.int8 if name == "int4" else np.uint8) for name in BITS},
    }
)
"""MIL's types of elements, by the names that messages of errors use, to what holds an unpacked one."""


@dataclass(frozen=True)
class TensorType:
    """A tensor; a scalar is one without axes."""

    element: str
    """One of ``HELD``."""
    shape: Shape | None
    """None: not even the number of axes is known."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """What holds its elements."""
        return HELD[self.element]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a value of ``shape`` is one of this type."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            declared is None or declared == size for declared, size in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        sizes = "…" if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.element}[{sizes}]"


@dataclass(frozen=True)
class ListType:
    element: ValueType
    length: int | None

    def __str__(self) -> str:
        return f"list<{self.element}>"


@dataclass(frozen=True)
class TupleType:
    elements: tuple[ValueType, ...]

    def __str__(self) -> str:
        return f"tuple<{', '.join(str(element) for element in self.elements)}>"


@dataclass(frozen=True)
class DictionaryType:
    key: ValueType
    value: ValueType

    def __str__(self) -> str:
        return f"dictionary<{self.key}, {self.value}>"


@dataclass(frozen=True)
class StateType:
    wrapped: ValueType

    def __str__(self) -> str:
        return f"state<{self.wrapped}>"


ValueType: TypeAlias = TensorType | ListType | TupleType | DictionaryType | StateType

"""One ONNX node as its op function sees it, and coremltools' builder as op functions use it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.targets.coreml.compressed import stored
from retarget.targets.coreml.library import Var, mb
from retarget.targets.coreml.values import (
    BYTES,
    NARROW,
    WIDE,
    Codes,
    Dim,
    Joined,
    Open,
    Operand,
    Refusal,
    Result,
    dtype_of,
    is_known,
    narrow,
)
from retarget.targets.walk import OneNode

if TYPE_CHECKING:
    from retarget.protocols import Array
    from retarget.targets.coreml.lowering import Lowering

Lower: TypeAlias = "Callable[[Call], Result | Sequence[Result]]"

FLOATS = frozenset({"float32", "float16"})
NUMBERS = FLOATS | {"int32"}
ANY = NUMBERS | {"bool"}

_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Op:
    """How an ONNX operator is lowered."""

    lower: Lower
    dtypes: frozenset[str] = FLOATS
    """What the first operand may be, after narrowing."""
    moves: bool = False
    """Its result is among the elements of its operands: bool, which MIL does not move, is moved as int32. Operands that
    are not bool are left as they are."""
    small: bool = False
    """Whether integers of 8 and 16 bits, which are computed in 32, come out right: where nothing can overflow."""


class Builder:
    """coremltools' builder. What it does not take is a `Refusal` in its own words.

    Numbers of Python become the node's type of floats: a float32 constant beside float16 operands is an error to it.
    """

    def __init__(self, half: bool) -> None:
        self._float = np.float16 if half else np.float32

    def __getattr__(self, name: str) -> Callable[..., Any]:  # the builder has no types
        build = getattr(mb, name)

        def built(**operands: object) -> Any:
            try:
                return build(**{key: self._taken(operand) for key, operand in operands.items() if operand is not None})
            except Refusal:
                raise
            except (ArithmeticError, AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
                words = " ".join(str(error).split()) or type(error).__name__
                raise Refusal(f"coremltools does not build `{name}`: {words}") from error

        return built

    def _taken(self, operand: object) -> object:
        if isinstance(operand, bool | np.bool_):
            return operand
        if isinstance(operand, float):
            return self._float(operand)
        if isinstance(operand, np.ndarray) and operand.dtype.name not in BYTES:
            return narrow(operand)
        return operand


@dataclass(eq=False)
class Call(OneNode[Operand]):
    """One ONNX node as its op function sees it."""

    lowering: Lowering
    node: ir.Node
    op: Op
    operands: tuple[Operand | None, ...]

    @property
    def ios(self) -> int:
        """The deployment target's number: 15 to 18."""
        return self.lowering.ios

    @cached_property
    def mil(self) -> Builder:
        return Builder(half=any(dtype == np.float16 for dtype in self._dtypes))

    @property
    def _dtypes(self) -> list[np.dtype[np.generic]]:
        return [self._dtype(operand) for operand in self.operands if operand is not None]

    @staticmethod
    def _dtype(operand: Operand) -> np.dtype[np.generic]:
        return dtype_of(operand) if isinstance(operand, Var) else operand.dtype

    # ---- operands

    def var(self, index: int) -> Var:
        """Operand ``index`` as a MIL value, in a type that MIL computes with, also where it is constant."""
        operand = self.operand(index)
        if isinstance(operand, Joined):
            raise Refusal(f"operand {index} has {len(operand.shape)} axes, and Core ML has at most 5")
        if isinstance(operand, Codes):
            return stored(operand, self.lowering.target, self.mil)
        if isinstance(operand, Var):
            small = dtype_of(operand).name in WIDE
            return self.mil.cast(x=operand, dtype="int32") if small else operand
        return self.mil.const(val=narrow(operand))

    def is_constant(self, index: int) -> bool:
        operand = self.operand(index)
        return isinstance(operand, np.ndarray) or (isinstance(operand, Var) and operand.val is not None)

    def array(self, index: int, what: str) -> Array:
        """Operand ``index``, which must be constant; ``what`` it is, in words. Integers are as wide as in ONNX."""
        operand = self.operand(index)
        if isinstance(operand, Var) and operand.val is not None:
            return np.asarray(operand.val)
        if not isinstance(operand, np.ndarray):
            raise Refusal(f"{what} is computed: only a constant can be written")
        return operand

    def numbers(self, index: int, what: str) -> list[int]:
        """The integers of a constant operand."""
        return [int(number) for number in self.array(index, what).reshape(-1)]

    def dtype(self, index: int) -> np.dtype[np.generic]:
        """The type of operand ``index`` as MIL computes it."""
        found = self._dtype(self.operand(index))
        return np.dtype(NARROW.get(found.name) or WIDE.get(found.name) or found)

    def shape(self, index: int) -> tuple[Dim, ...]:
        """The dimensions of operand ``index``: numbers, and coremltools' symbols where they are open."""
        return tuple(int(dim) if isinstance(dim, int | np.integer) else dim for dim in self.operand(index).shape)

    def rank(self, index: int) -> int:
        return len(self.operand(index).shape)

    def sizes(self, index: int, axes: Sequence[int] | None = None) -> tuple[int, ...]:
        """The sizes of operand ``index``, along ``axes`` or all. Raises ``Open`` where one is not known."""
        shape = self.shape(index)
        found = []
        for axis in range(len(shape)) if axes is None else axes:
            dim = shape[axis]
            if not isinstance(dim, int):
                raise Open(
                    f"axis {axis % len(shape)} of operand {index} must have one size", self._symbols(index, axis)
                )
            found.append(dim)
        return tuple(found)

    def axis(self, default: int, index: int = 0) -> int:
        """The attribute `axis`, counted from the front of operand ``index``."""
        return self.attributes.get_int("axis", default) % max(self.rank(index), 1)

    def _symbols(self, index: int, axis: int) -> frozenset[str]:
        """The symbolic dimensions that ``axis`` of operand ``index`` hangs on: all, where that is not known."""
        return symbols_behind(self.node.inputs[index], self.lowering.free, axis)

    # ---- results

    def declared(self, index: int = 0) -> tuple[int, ...] | None:
        """The sizes that ONNX says of output ``index``; None if it does not say all."""
        return graph.static_shape(self.node.outputs[index], self.lowering.sizes)

    def needs(self, ios: int, what: str) -> None:
        """Raise ``Refusal`` where the deployment target is older than ``ios``."""
        if self.ios < ios:
            raise Refusal(
                f"{what} needs minimum_deployment_target iOS{ios} or newer, and {self.lowering.target} is asked for"
            )

    def check_types(self) -> None:
        """Raise ``Refusal`` for operands of types or sizes that MIL does not take."""
        for index, operand in enumerate(self.operands):
            if operand is None:
                continue
            found = self._dtype(operand)
            if index == 0:
                name = self.dtype(0).name
                if name not in self.op.dtypes:
                    raise Refusal(f"{found.name} is not among {', '.join(sorted(self.op.dtypes))}")
                # What comes from outside, and what an operator computed, is an int32 already.
                value = self.node.inputs[0]
                own = found.name if value is None else graph.dtype_name(value.dtype)
                if own in WIDE and not (self.op.small or self.op.moves):
                    raise Refusal(f"{own} is computed as int32, which does not wrap around as it would")
            if any(is_known(dim) and dim == 0 for dim in operand.shape) and not isinstance(operand, np.ndarray):
                raise Refusal(f"operand {index} is empty, and Core ML has no empty tensors")


def symbols_behind(value: ir.Value | None, free: Sequence[str], axis: int | None = None) -> frozenset[str]:
    """Which of the symbols ``free`` the shape of ``value``, or its size along ``axis``, hangs on.

    All of them, where its dimensions do not say.
    """
    if value is None or value.shape is None:
        return frozenset(free)
    found: set[str] = set()
    for dim in value.shape if axis is None else (value.shape[axis],):
        if isinstance(dim, int):
            continue
        named = set(_NAME.findall(str(dim.value or ""))) & set(free)
        if not named:
            return frozenset(free)
        found |= named
    return frozenset(found) or frozenset(free)

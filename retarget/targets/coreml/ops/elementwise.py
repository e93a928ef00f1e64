"""Operators that treat each element alone, or two elements at the same place."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from retarget.targets.coreml.call import ANY, FLOATS, NUMBERS, Call, Op
from retarget.targets.coreml.library import Var
from retarget.targets.coreml.values import Result


def unary(name: str) -> Callable[[Call], Result]:
    """An operator that MIL has under ``name``, with the one operand ``x``."""

    def lower(call: Call) -> Var:
        return getattr(call.mil, name)(x=call.var(0))

    return lower


def binary(name: str) -> Callable[[Call], Result]:
    """An operator that MIL has under ``name``, with the operands ``x`` and ``y``."""

    def lower(call: Call) -> Var:
        return getattr(call.mil, name)(x=call.var(0), y=call.var(1))

    return lower


def identity(call: Call) -> Result:
    return call.operand(0)


OPS: Mapping[str, Op] = {
    "Add": Op(binary("add"), NUMBERS),
    "Identity": Op(identity, ANY, moves=True),
    "Mul": Op(binary("mul"), NUMBERS),
    "Relu": Op(unary("relu"), FLOATS),
    "Sub": Op(binary("sub"), NUMBERS),
}

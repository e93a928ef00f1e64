"""The tables of the format by their names: a typed face of the classes that come with the runtime."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
from ai_edge_litert import schema_py_generated as generated

from retarget.targets.tflite.program import Options

Table: TypeAlias = Any
"""An object of the generated classes, which have no types."""

VERSION = 3
IDENTIFIER = b"TFL3"
PLACEHOLDER = 127
"""What stands for a code that is too large for the byte that codes once had."""

_ENUMS = {
    "fusedActivationFunction": generated.ActivationFunctionType,
    "padding": generated.Padding,
    "mode": generated.MirrorPadMode,
    "kernelType": generated.LSTMKernelType,
    "weightsFormat": generated.FullyConnectedOptionsWeightsFormat,
    "reduceFunction": generated.ReduceWindowFunction,
    **dict.fromkeys(
        ("quantizedBiasType", "inDataType", "outDataType", "outType", "outputType", "idxOutType"), generated.TensorType
    ),
}
"""Fields that are given as names, and where the numbers of those stand."""


def number_of(dtype: np.dtype[np.generic]) -> int:
    """The number of a type of numbers in ``TensorType``."""
    return _number(generated.TensorType, dtype.name.upper())


@cache
def names_of_types() -> dict[int, str]:
    """Number in ``TensorType`` to numpy's name of the type."""
    return {number: name.lower() for name, number in vars(generated.TensorType).items() if not name.startswith("_")}


@cache
def names_of_operators() -> dict[int, str]:
    """Number in ``BuiltinOperator`` to the name."""
    return {number: name for name, number in vars(generated.BuiltinOperator).items() if not name.startswith("_")}


def operator_code(code: str, version: int, custom: str | None) -> Table:
    """An entry of the table of operators; ``code`` is a name in ``BuiltinOperator``."""
    number = _number(generated.BuiltinOperator, code)
    return generated.OperatorCodeT(min(number, PLACEHOLDER), custom, version, number)


def give_options(operator: Table, options: Options) -> None:
    """Put ``options`` into an operator of the generated classes, in whichever of its two fields knows their table."""
    table = getattr(generated, f"{options.table}T", None)
    assert table is not None, f"there are no {options.table}"
    made = table()
    for name, value in options.fields.items():
        assert hasattr(made, name), f"{options.table} has no field {name}"
        if isinstance(value, str):
            value = _number(_ENUMS[name], value)
        setattr(made, name, np.array(value, np.int32) if isinstance(value, tuple) else value)
    if hasattr(generated.BuiltinOptions, options.table):
        operator.builtinOptionsType, operator.builtinOptions = getattr(generated.BuiltinOptions, options.table), made
    else:
        operator.builtinOptions2Type, operator.builtinOptions2 = _number(generated.BuiltinOptions2, options.table), made


def _number(enum: type, name: str) -> int:
    number = getattr(enum, name, None)
    assert isinstance(number, int), f"{enum.__name__} has no {name}"
    return number

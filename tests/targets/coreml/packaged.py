"""Packages made by coremltools' builder just as they are built: nothing is folded, fused or dropped on the way."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retarget.targets.coreml.library import Function, Program, Var, ct, mb, types

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

gc.freeze()  # coremltools collects garbage after each conversion: not among all that was imported

OPSETS = {15: ct.target.iOS15, 16: ct.target.iOS16, 17: ct.target.iOS17, 18: ct.target.iOS18}

_CASTS = {"float16": "fp16", "bool": "bool", "int8": "int8", "uint8": "uint8", "int16": "int16", "uint16": "uint16"}
"""What a model's input cannot be, to what makes it of one that is of 32 bits."""


def saved(
    path: Path,
    fed: Feeds,
    build: Callable[[Mapping[str, Var]], Var],
    opset: int,
    shapes: Mapping[str, Any] | None = None,
) -> Feeds:
    """Write the package that ``build`` makes of values like ``fed``; what is to be fed to it: of 32 bits, no scalars.

    ``build`` returns the output. ``shapes`` are those of inputs that are not as ``fed``, with symbols.
    """
    given = {name: np.asarray(array) for name, array in fed.items()}
    wide = {name: widened(array) for name, array in given.items()}
    placeholders = {
        name: mb.placeholder(
            (shapes or {}).get(name, array.shape), types.fp32 if array.dtype.kind == "f" else types.int32, name=name
        )
        for name, array in wide.items()
    }
    program = Program()
    with Function(placeholders, opset_version=OPSETS[opset]) as function:
        values: dict[str, Var] = {}
        for name, array in given.items():
            value = function.inputs[name]
            cast = _CASTS.get(array.dtype.name)
            value = value if array.ndim else mb.squeeze(x=value)
            values[name] = value if cast is None else mb.cast(x=value, dtype=cast)
        function.set_outputs([build(values)])
    program.add_function("main", function)
    convert(program, opset).save(str(path))
    return wide


def widened(array: Array) -> Array:
    """As a model's input: float32 or int32, and with an axis."""
    return np.atleast_1d(array).astype(np.float32 if array.dtype.kind == "f" else np.int32)


def convert(program: Program, opset: int) -> Any:
    """The model of a program, its operations as they are."""
    with warnings.catch_warnings():
        # The library leaves it to Python to remove the folder that it writes weights to.
        warnings.simplefilter("ignore", ResourceWarning)
        return ct.convert(
            program,
            convert_to="mlprogram",
            pass_pipeline=ct.PassPipeline.EMPTY,
            minimum_deployment_target=OPSETS[opset],
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )

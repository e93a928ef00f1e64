"""The activation functions that RNN, GRU and LSTM name, and their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import onnx_ir as ir

from retarget.targets.walk import Refusal

DEFAULTS: Mapping[str, tuple[float | None, ...]] = {
    "affine": (None, None),
    "elu": (1.0,),
    "hardsigmoid": (0.2, 0.5),
    "leakyrelu": (0.01,),
    "relu": (),
    "scaledtanh": (None, None),
    "sigmoid": (),
    "softplus": (),
    "softsign": (),
    "tanh": (),
}
"""ONNX's functions, and what alpha and beta are where they are not given; None: they must be."""


def numbers_of(node: ir.Node, names: Sequence[str]) -> list[Mapping[str, float]]:
    """Those of each of the functions ``names``: the attributes have numbers only for the functions that take some.

    Raises ``Refusal`` for a function that ONNX does not have, and where a number is missing.
    """
    alphas, betas = (iter(node.attributes.get_floats(f"activation_{key}", ())) for key in ("alpha", "beta"))
    found: list[Mapping[str, float]] = []
    for name in names:
        defaults = DEFAULTS.get(name.lower())
        if defaults is None:
            raise Refusal(f"activations={name}: it is not known")
        numbers = {}
        for key, given, default in zip(("alpha", "beta"), (alphas, betas), defaults, strict=False):
            number = next(islice(given, 1), default)
            if number is None:
                raise Refusal(f"activations={name}: activation_{key} is not given")
            numbers[key] = number
        found.append(numbers)
    return found

"""One MIL operation as a test calls it: by itself, and as coremltools folds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import packaged
import torch

from retarget.targets.coreml.interpreter.call import Call, Tensor
from retarget.targets.coreml.interpreter.declared import TensorType
from retarget.targets.coreml.interpreter.ops import OPS
from retarget.targets.coreml.library import Function, mb

RANDOM = np.random.default_rng(11)


def floats(*shape: int) -> Tensor:
    return RANDOM.standard_normal(shape).astype(np.float32)


def results(op: str, opset: int = 17, declared: tuple[str, ...] = ("float32",), /, **given: Any) -> tuple[Any, ...]:
    """All that an operation gives; a tuple is a parameter that takes several."""
    operands = {
        name: tuple(np.asarray(each) for each in value) if isinstance(value, tuple) else (np.asarray(value),)
        for name, value in given.items()
    }
    with np.errstate(all="ignore"):
        found = OPS[op](Call(op, operands, tuple(TensorType(each, None) for each in declared), opset))
    return found if isinstance(found, tuple) else (found,)


def result(op: str, opset: int = 17, declared: str = "float32", /, **given: Any) -> Any:
    (found,) = results(op, opset, (declared,), **given)
    return found


def inferred(op: str, opset: int = 17, /, **given: Any) -> Any:
    """What coremltools itself makes of constants."""
    with Function({}, opset_version=packaged.OPSETS[opset]):
        made = getattr(mb, op)(**given)
        if op.startswith("constexpr_"):
            return (made[0] if isinstance(made, tuple | list) else made).op.materialized_val_inference()
        return made.val


def assert_close(found: Any, right: Any, rtol: float = 2e-6) -> None:
    expected = np.asarray(right)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * max(1.0, float(np.abs(expected).max())))


def tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(array)

"""The one place that imports openvino, and its types in our words."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache

# Importing openvino sends an event to a server on the web. Without this package it uses its own stub, which does not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as openvino  # noqa: E402

from retarget.errors import ToolchainFailure  # noqa: E402

_DTYPES = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "boolean": "bool"} | {
    f"{short}{bits}": f"{name}{bits}" for short, name in (("i", "int"), ("u", "uint")) for bits in (4, 8, 16, 32, 64)
}


@cache
def core() -> openvino.Core:
    """One core a process: making it loads and looks for device plugins."""
    return openvino.Core()


def scopes(model: openvino.Model, place: str = "") -> Iterator[tuple[str, openvino.Model]]:
    """``model`` and the bodies of its conditions and loops, at any depth, each with the names that lead to it."""
    yield place, model
    for node in model.get_ordered_ops():
        bodies: list[openvino.Model] = []
        if isinstance(node, openvino.op.if_op):
            bodies = [node.get_function(0), node.get_function(1)]
        elif isinstance(node, openvino.op.loop | openvino.op.tensor_iterator):
            bodies = [node.get_function()]
        for index, body in enumerate(bodies):
            yield from scopes(body, f"{place}{node.get_friendly_name()}[{index}]/")


def set_shapes(model: openvino.Model, shapes: Sequence[openvino.PartialShape]) -> None:
    """Give the inputs their shapes, and infer all others. Raises ``RuntimeError`` where they do not fit.

    Not ``Model.reshape``: it folds Converts too, those between QuantizeLinear and DequantizeLinear among them, and
    the plugin then computes in float what it would compute in int8.
    """
    for parameter, shape in zip(model.get_parameters(), shapes, strict=True):
        parameter.set_partial_shape(shape)
    model.validate_nodes_and_infer_types()


def dtype_name(short: str) -> str:
    """The name that specs use for OpenVINO's own: ``float32`` for ``f32``."""
    return _DTYPES.get(short, short)


def failure(what: str, error: Exception) -> ToolchainFailure:
    """``what``, and the last thing that OpenVINO says, without the C++ files and checks that it went through."""
    return ToolchainFailure(f"{what}: {words(error)}")


def words(error: Exception) -> str:
    """What OpenVINO means, in one line."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines()]
    told = " ".join(line for line in lines if line and not line.startswith(_NOISE))
    if "No conversion rule found" in told:
        return "OpenVINO has no conversion for it"
    return _PLACE.sub("", told).strip() or type(error).__name__


_NOISE = (
    "Check 'false' failed",
    "Conversion is failed",
    "FrontEnd API failed",
    "Model wasn't fully converted",
    "Summary:",
)
_PLACE = re.compile(
    r"\S+ with a message: |Exception from \S+ ?|Check '.*?' failed at \S+ ?"
    r"|While validating ONNX node '.*?>': ?|While validating node '.*?' with friendly_name '.*?': ?"
)

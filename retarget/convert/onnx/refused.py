"""Why ONNX Runtime refuses a file that is valid: the node, and what to do about it."""

from __future__ import annotations

import re

import onnx_ir as ir

from retarget import graph
from retarget.convert.normal_form import infer_shapes

_UNKNOWN = re.compile(r"(?P<domain>[\w.-]+):(?P<op>\w+)\(-?\d+\) is not a registered function/op")
_NO_KERNEL = re.compile(r"Could not find an implementation for (?P<op>\w+)\(\d+\) node with name '(?P<name>[^']*)'")


def hint(model: ir.Model, refusal: str, place: str) -> str | None:
    """What to do about ``refusal``, ONNX Runtime's words on ``model``; None where they are of another kind."""
    if unknown := _UNKNOWN.search(refusal):
        return (
            f"{_where(model, unknown['op'])} is of the domain '{unknown['domain']}', which ONNX Runtime does not have; "
            "what cannot be executed cannot be verified: export the model with operators of ONNX alone"
        )
    if lacking := _NO_KERNEL.search(refusal):
        infer_shapes(model, place)
        dtype = _dtype(model, lacking["op"], lacking["name"])
        instead = "at another opset" if dtype in ("float32", "unknown") else "in float32"
        return (
            f"ONNX Runtime has no CPU kernel of {_where(model, lacking['op'])} for {dtype}; "
            f"what cannot be executed cannot be verified: export the model {instead}"
        )
    return None


def _where(model: ir.Model, op: str) -> str:
    name = next((node.name for node in graph.all_nodes(model) if node.op_type == op and node.name), None)
    return f"{op} (node '{name}')" if name else op


def _dtype(model: ir.Model, op: str, name: str) -> str:
    """What the node computes in: the type of its first input."""
    for node in graph.all_nodes(model):
        if (node.op_type, node.name or "") == (op, name) and node.inputs and node.inputs[0] is not None:
            return graph.dtype_name(node.inputs[0].dtype)
    return "unknown"

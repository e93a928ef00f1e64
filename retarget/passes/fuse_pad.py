"""Pad by zeros in front of a convolution or pooling → the ``pads`` of that node.

Given::   Conv(Pad(x, [0, 0, 1, 1, 0, 0, 1, 1]), w)
Result::  Conv(x, w, pads=[1, 1, 1, 1])

AveragePool must count the padding, because the zeros of a Pad count; MaxPool pads with -inf, so its Pad must as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from retarget.passes.rewriting import Rewriting, Rule, Verdict, ints, node, own, producer, rank, replace, scalar


class FusePad(Rewriting):
    """See the module."""

    def rules(self) -> Mapping[str, Rule]:
        return dict.fromkeys(("Conv", "AveragePool", "MaxPool"), _fuse)


def _fuse(window: ir.Node) -> Verdict:
    pad = producer(window.inputs[0], "Pad")
    if pad is None:
        return False
    if not own(window, pad):
        return "the padded tensor is read elsewhere too"
    if window.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "its own padding is automatic"
    if any(out.uses() or out.is_graph_output() for out in window.outputs[1:]):
        return "indices count in the padded tensor"
    size = rank(pad.inputs[0])
    amounts = _amounts(pad, size)
    if size is None or amounts is None:
        return "the padding is not constant"
    if pad.attributes.get_string("mode", "constant") != "constant":
        return "it does not pad with a constant"
    begin, end = amounts[:size], amounts[size:]
    if any(begin[:2] + end[:2]) or min(amounts) < 0:
        return "it pads or crops other axes than those of the window"
    value = scalar(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else 0.0
    if value != (-math.inf if window.op_type == "MaxPool" else 0.0):
        return f"{window.op_type} does not pad with {value}"
    inner = window.attributes.get_ints("pads", (0,) * (2 * (size - 2)))
    counts: int = window.attributes.get_int("count_include_pad", 0)
    if window.op_type == "AveragePool" and any(inner) and not counts:
        return "one padding counts and the other does not"
    ceil: int = window.attributes.get_int("ceil_mode", 0)
    if window.op_type != "Conv" and ceil:
        return "windows beyond the padding"
    pads = [one + other for one, other in zip(begin[2:] + end[2:], inner, strict=True)]
    if window.op_type == "MaxPool" and any(2 * p > k for p, k in zip(pads, _kernel(window) * 2, strict=True)):
        return "runtimes refuse more padding than half the window"
    if window.op_type == "AveragePool" and any(p >= k for p, k in zip(pads, _kernel(window) * 2, strict=True)):
        return "runtimes refuse padding under all of the window"
    made = node(window.op_type, [pad.inputs[0], *window.inputs[1:]], like=window)
    made.attributes.update(window.attributes)
    made.attributes.pop("auto_pad", None)
    made.attributes["pads"] = ir.AttrInt64s("pads", pads)
    if window.op_type == "AveragePool":
        made.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    replace(window, made)
    return True


def _amounts(pad: ir.Node, size: int | None) -> list[int] | None:
    """Padding at the beginning of each axis, then at the end of each."""
    pads = ints(pad.inputs[1])
    if pads is None or size is None:
        return None
    if len(pad.inputs) < 4 or pad.inputs[3] is None:
        return pads if len(pads) == 2 * size else None
    axes = ints(pad.inputs[3])
    if axes is None:
        return None
    amounts = [0] * (2 * size)
    for place, axis in enumerate(axes):
        amounts[axis % size] = pads[place]
        amounts[axis % size + size] = pads[place + len(axes)]
    return amounts


def _kernel(window: ir.Node) -> list[int]:
    return list(window.attributes.get_ints("kernel_shape", ()))

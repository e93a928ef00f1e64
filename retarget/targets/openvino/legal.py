"""Nodes that OpenVINO's ONNX reader takes and then computes wrongly, each found by the conformance suite or
by a sweep over attributes beside it.

What OpenVINO refuses by itself is not here: it says so when it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from retarget.targets.legal import Rule


def _resize(node: ir.Node) -> str | None:
    attributes = node.attributes
    if attributes.get_int("antialias", 0):
        return "antialias=1: OpenVINO does not filter, and says nothing"
    if attributes.get_int("exclude_outside", 0) and attributes.get_string("mode", "nearest") == "cubic":
        return "exclude_outside=1: OpenVINO counts the samples outside all the same"
    policy = attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        return f"keep_aspect_ratio_policy={policy}: OpenVINO stretches all the same"
    return None


@dataclass(frozen=True)
class _Axis:
    """One axis that a window slides over. ``size`` is None where it is open."""

    size: int | None
    stride: int
    reach: int
    """Of the window, dilation included."""
    begin: int
    end: int

    def last_start(self, size: int) -> int:
        """Where the last window starts under ceil_mode, counted from the first padding."""
        return -(-(size + self.begin + self.end - self.reach) // self.stride) * self.stride

    def starts_beyond(self) -> bool:
        """Whether the last window lies beyond the input and its first padding, for some size if it is open."""
        if self.size is None:
            return self.stride + self.end > self.reach
        return self.last_start(self.size) >= self.size + self.begin

    def overhangs(self) -> bool:
        """Whether the last window that counts reaches beyond the padded input, for some size if it is open."""
        if self.size is None:
            return self.stride > 1
        last = self.last_start(self.size) - (self.stride if self.starts_beyond() else 0)
        return last + self.reach > self.size + self.begin + self.end


def _axes(node: ir.Node) -> list[_Axis]:
    attributes = node.attributes
    kernel = attributes.get_ints("kernel_shape", ())
    rank = len(kernel)
    strides = attributes.get_ints("strides", [1] * rank)
    dilations = attributes.get_ints("dilations", [1] * rank)
    pads = attributes.get_ints("pads", [0] * (2 * rank))
    source = node.inputs[0]
    sizes = [None] * rank if source is None or source.shape is None else list(source.shape)[2:]
    return [
        _Axis(size if isinstance(size, int) else None, stride, dilation * (length - 1) + 1, begin, end)
        for size, stride, dilation, length, begin, end in zip(
            sizes, strides, dilations, kernel, pads[:rank], pads[rank:], strict=True
        )
    ]


def _max_pool(node: ir.Node) -> str | None:
    if node.attributes.get_int("ceil_mode", 0) and any(axis.starts_beyond() for axis in _axes(node)):
        return "ceil_mode=1: OpenVINO keeps a last window that lies beyond the input"
    return None


def _average_pool(node: ir.Node) -> str | None:
    attributes = node.attributes
    if not (attributes.get_int("ceil_mode", 0) and attributes.get_int("count_include_pad", 0)):
        return None
    axes = _axes(node)
    if any(axis.begin or axis.end for axis in axes) and any(axis.overhangs() for axis in axes):
        return "ceil_mode=1 with count_include_pad=1: OpenVINO divides the last window by too much"
    return None


def _lstm(node: ir.Node) -> str | None:
    peepholes = len(node.inputs) > 7 and node.inputs[7] is not None
    return "peephole weights: OpenVINO ignores them, and says nothing" if peepholes else None


def _dft(node: ir.Node) -> str | None:
    # What is left is brought to axis 1 and two sides by ``emit``.
    onesided = node.attributes.get_int("onesided", 0)
    if node.attributes.get_int("inverse", 0) and onesided:
        return "inverse=1 with onesided=1: OpenVINO drops the last axis"
    if dft_axis(node) is None:
        return "an axis that is computed, or of an unknown rank: OpenVINO takes axis 1 whatever is asked for"
    if onesided and dft_length(node) is None:
        return "onesided=1 over an open axis: OpenVINO returns an axis too many"
    return None


def dft_axis(node: ir.Node) -> int | None:
    """The axis of a DFT, counted from the first; None where it is not known."""
    source, axis = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    if source is None or source.shape is None:
        return None
    if axis is None:
        return len(source.shape) - 2
    tensor = ir.convenience.get_const_tensor(axis)
    return None if tensor is None else int(tensor.numpy().item()) % len(source.shape)


def dft_length(node: ir.Node) -> int | None:
    """Over how many elements a DFT goes; None where that is not known."""
    source, length = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    if length is not None:
        tensor = ir.convenience.get_const_tensor(length)
        return None if tensor is None else int(tensor.numpy().item())
    axis = dft_axis(node)
    if source is None or source.shape is None or axis is None:
        return None
    size = source.shape[axis]
    return size if isinstance(size, int) else None


def _conv_transpose(node: ir.Node) -> str | None:
    source = node.inputs[0]
    padded = node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
    fixed = source is not None and source.shape is not None and source.shape.is_static()
    return "auto_pad=SAME with open dimensions: OpenVINO does not pad" if padded and not fixed else None


def _prelu(node: ir.Node) -> str | None:
    source, slope = node.inputs
    if slope is None or slope.shape is None or len(slope.shape) != 1 or slope.shape[0] == 1:
        return None
    # What is left is made clear to OpenVINO by ``emit``.
    if ir.convenience.get_const_tensor(slope) is None or source is None or source.shape is None:
        return "a computed slope of one axis: OpenVINO takes it for the channels"
    return None


LEGAL: Mapping[str, Rule] = {
    "AveragePool": Rule(when=_average_pool),
    "ConvTranspose": Rule(when=_conv_transpose),
    "DFT": Rule(when=_dft),
    "LSTM": Rule(when=_lstm),
    "MaxPool": Rule(when=_max_pool),
    "PRelu": Rule(when=_prelu),
    "Resize": Rule(when=_resize),
}

"""Channels that layers share: where a positive factor of each channel moves from what makes a value into what reads it.

y = f(s · x) = s · f(x) holds for s > 0 when f is Relu, a pooling, an addition of two such values …: f is positively
homogeneous. All values between the layers that make them (`sources`) and the layers that read them (`sinks`) then
take the same factor, which the weights of the former are multiplied and those of the latter divided by: the model
computes what it did. One walk over a graph in its order finds all of them; whatever else reads a value, or a graph
output, blocks its channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retarget.passes.rewriting import (
    Array,
    computed,
    dims,
    graphs,
    initializer,
    ints,
    is_constant,
    rank,
    rewire,
    scalar,
)

Floats: TypeAlias = NDArray[np.float64]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer with constant weights, read as ``groups`` matrices of outputs by inputs with some taps each.

    Conv has its outputs in the weight's first axis, ConvTranspose and MatMul their inputs; Gemm says which.
    """

    node: ir.Node
    groups: int
    outputs: int
    inputs: int
    outputs_first: bool

    def matrices(self, weight: Array) -> Array:
        """``weight`` as [groups, outputs a group, inputs a group, taps]."""
        first, second = weight.shape[:2]
        parts = weight.reshape(self.groups, first // self.groups, second, -1)
        return parts if self.outputs_first else parts.swapaxes(1, 2)

    def weight(self) -> Array:
        """The weight as it is stored."""
        value = self.node.inputs[1]
        assert value is not None
        assert value.const_value is not None
        return value.const_value.numpy()

    def scale(self, outputs: Floats | None, inputs: Floats | None) -> None:
        """Multiply the weight by ``outputs`` [outputs] and ``inputs`` [inputs], the bias by ``outputs``."""
        left = np.ones(self.outputs) if outputs is None else outputs
        right = np.ones(self.inputs) if inputs is None else inputs
        grid = left.reshape(self.groups, -1, 1) * right.reshape(self.groups, 1, -1)
        if not self.outputs_first:
            grid = grid.swapaxes(1, 2)
        grid = grid.reshape(-1, grid.shape[2])
        _multiply(self.node, 1, lambda weight: weight * grid.reshape(*grid.shape, *(1,) * (weight.ndim - 2)))
        if outputs is not None and len(self.node.inputs) > 2 and self.node.inputs[2] is not None:
            # A Gemm's may be a scalar or a matrix: its last axis is the output's.
            _multiply(self.node, 2, lambda bias: bias * outputs)


@dataclass(frozen=True, eq=False)
class Offset:
    """Constant input ``index`` of an Add, Sub or normalization, which goes with the channels on ``axis`` (< 0)."""

    node: ir.Node
    index: int
    axis: int
    spread: int

    def magnitudes(self, channels: int) -> Floats:
        """Largest magnitude for each channel."""
        return _per_channel(_constant(self.node, self.index), self.axis, channels, self.spread)

    def scale(self, factor: Floats) -> None:
        entries = np.repeat(factor, self.spread).reshape(-1, *(1,) * (-self.axis - 1))
        _multiply(self.node, self.index, lambda array: array * entries)


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads channels, each of which is ``spread`` neighbouring inputs of it: more than 1 after Flatten."""

    layer: Layer
    value: ir.Value
    spread: int


@dataclass(eq=False)
class Channels:
    """Values that take one factor for each channel, with all that makes and reads them."""

    count: int
    sources: list[Layer] = field(default_factory=list)
    affine: list[Offset] = field(default_factory=list)
    """Scales of normalizations, and of multiplications that nothing homogeneous stands before."""
    offsets: list[Offset] = field(default_factory=list)
    """Constants that are added on the way, and the biases of normalizations."""
    sinks: list[Reader] = field(default_factory=list)
    values: list[ir.Value] = field(default_factory=list)
    blocked: str | None = None

    @property
    def name(self) -> str:
        """The first value that a layer reads."""
        return self.sinks[0].value.name or "" if self.sinks else ""

    def scale(self, factor: Floats) -> None:
        """Multiply what makes the values by ``factor`` [count], divide what reads them by it."""
        for layer in self.sources:
            layer.scale(factor, None)
        for offset in (*self.affine, *self.offsets):
            offset.scale(factor)
        for sink in self.sinks:
            sink.layer.scale(None, np.repeat(1 / factor, sink.spread))

    def biases(self) -> Floats:
        """Largest magnitude, for each channel, of what is added to it on the way."""
        most = np.zeros(self.count)
        for layer in self.sources:
            if len(layer.node.inputs) > 2 and layer.node.inputs[2] is not None:
                most = np.maximum(most, _per_channel(_constant(layer.node, 2), -1, self.count, 1))
        for offset in self.offsets:
            most = np.maximum(most, offset.magnitudes(self.count))
        return most

    def _absorb(self, other: Channels) -> None:
        self.sources += other.sources
        self.affine += other.affine
        self.offsets += other.offsets
        self.sinks += other.sinks
        self.values += other.values
        self.blocked = self.blocked or other.blocked


def find_channels(model: ir.Model, *, affine: bool = False) -> list[Channels]:
    """All channels that some layer reads, in the order of the graph; the blocked ones say why.

    ``affine``: normalizations with constant scale, and multiplications by a constant, are sources too.
    """
    found: list[Channels] = []
    for graph in graphs(model):
        found += _Walk(graph, affine).found()
    return [channels for channels in found if channels.sinks]


# ---- the walk


@dataclass(frozen=True)
class _Place:
    """Where the channels of a value stand: each takes ``spread`` neighbouring entries of ``axis`` (≥ 0)."""

    axis: int
    spread: int


class _Walk:
    """One graph, its nodes in order: so all that makes a value is known before what reads it."""

    def __init__(self, graph: ir.Graph, affine: bool) -> None:
        self.graph = graph
        self.affine = affine
        self.places: dict[ir.Value, _Place] = {}
        self.channels: dict[ir.Value, Channels] = {}

    def found(self) -> list[Channels]:
        for node in self.graph:
            self._visit(node)
        for value in self.places:
            if value.is_graph_output():
                self._block(value, f"'{value.name}' is a graph output")
            elif any(user.graph is not self.graph for user, _ in value.uses()):
                self._block(value, f"'{value.name}' is read in a subgraph")
        return list({id(channels): channels for channels in self.channels.values()}.values())

    def _visit(self, node: ir.Node) -> None:
        layer = _layer(node)
        if isinstance(layer, Layer):
            self._read(node, layer)
            return
        read = [value for value in node.inputs if value is not None and value in self.places]
        place = self._passed_on(node, read) if read else None
        if place is not None:
            self._pass_on(node, read, place)
            return
        for value in read:
            self._block(value, layer or f"{node.op_type} '{node.name}' does not commute with a factor")
        if self.affine:
            self._start_affine(node)

    def _passed_on(self, node: ir.Node, read: list[ir.Value]) -> _Place | None:
        """Where the channels stand in the output; None where the node does not commute with a factor."""
        rule = _HOMOGENEOUS.get(node.op_type) if not node.domain else None
        if rule is None or rank(node.outputs[0]) is None or any(out.uses() for out in node.outputs[1:]):
            return None
        fits = self._agree(node, read) if node.op_type in _SEVERAL else read == [node.inputs[0]]
        return rule(node, self.places[read[0]]) if fits else None

    def _agree(self, node: ir.Node, read: list[ir.Value]) -> bool:
        """Whether all inputs take one factor: channels at one place, or constants where those fit."""
        place, size, count = self.places[read[0]], rank(read[0]), self.channels[read[0]].count
        constants = node.op_type in ("Add", "Sub", "Mul", "Div", "PRelu")
        if node.op_type in ("Mul", "Div", "PRelu") and (len(read) > 1 or len(node.inputs) != 2):
            return False
        if node.op_type in ("Div", "PRelu") and node.inputs[0] is not read[0]:
            return False
        for value in node.inputs:
            if value is not None and value in self.places:
                if self.places[value] != place or rank(value) != size or self.channels[value].count != count:
                    return False
            elif not constants or not is_constant(value) or (rank(value) or 0) > (size or 0):
                return False
        return True

    def _pass_on(self, node: ir.Node, read: list[ir.Value], place: _Place) -> None:
        merged, out = self._merge(read), node.outputs[0]
        self._start(out, place, merged)
        if node.op_type in ("Add", "Sub"):
            axis = place.axis - (rank(out) or 0)
            merged.offsets += [
                Offset(node, index, axis, place.spread) for index, value in enumerate(node.inputs) if is_constant(value)
            ]

    def _start(self, value: ir.Value, place: _Place, channels: Channels) -> None:
        self.places[value], self.channels[value] = place, channels
        channels.values.append(value)

    def _read(self, node: ir.Node, layer: Layer) -> None:
        for index, value in enumerate(node.inputs):
            if value is None or value not in self.places:
                continue
            place, channels = self.places[value], self.channels[value]
            axis = 1 if "Conv" in node.op_type else (rank(value) or 0) - 1
            if index or place.axis != axis or channels.count * place.spread != layer.inputs:
                self._block(value, f"{node.op_type} '{node.name}' does not read its channels")
            else:
                channels.sinks.append(Reader(layer, value, place.spread))
        out = node.outputs[0]
        size = rank(out)
        if size is None:
            return
        self._start(out, _Place(1 if "Conv" in node.op_type else size - 1, 1), Channels(layer.outputs, [layer]))

    def _start_affine(self, node: ir.Node) -> None:
        if node.domain or node.op_type not in ("LayerNormalization", "RMSNormalization", "Mul"):
            return
        out = node.outputs[0]
        size = rank(out)
        at = 1 if node.op_type != "Mul" or is_constant(node.inputs[1]) else 0
        shape = dims(node.inputs[at])
        if size is None or not _is_vector(node.inputs[at]) or any(other.uses() for other in node.outputs[1:]):
            return
        assert shape is not None
        # A vector of one entry for each channel, perhaps with axes of size 1 behind: [C] or [C, 1, 1].
        at_axis = next((axis for axis in range(-len(shape), 0) if shape[axis] != 1), -1)
        count = shape[at_axis]
        if not isinstance(count, int) or (node.op_type != "Mul" and (len(shape) != 1 or at_axis != -1)):
            return
        if (dims(out) or (None,))[at_axis] != count or (node.op_type == "Mul" and rank(node.inputs[1 - at]) != size):
            return
        made = Channels(count, affine=[Offset(node, at, at_axis, 1)])
        if node.op_type == "LayerNormalization" and len(node.inputs) > 2 and node.inputs[2] is not None:
            if not _is_vector(node.inputs[2]):
                return
            made.offsets.append(Offset(node, 2, -1, 1))
        self._start(out, _Place(size + at_axis, 1), made)

    def _merge(self, values: list[ir.Value]) -> Channels:
        merged = self.channels[values[0]]
        for value in values[1:]:
            other = self.channels[value]
            if other is merged:
                continue
            if len(other.values) > len(merged.values):
                merged, other = other, merged
            for each in other.values:
                self.channels[each] = merged
            merged._absorb(other)
        return merged

    def _block(self, value: ir.Value, reason: str) -> None:
        self.channels[value].blocked = self.channels[value].blocked or reason


def _layer(node: ir.Node) -> Layer | str | None:
    """``node`` as a layer, why it is none although it is a linear operator, or None."""
    if node.domain or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or not is_constant(weight) or weight.dtype not in _FLOATS or rank(weight) is None:
        return f"{node.op_type} '{node.name}' has no constant float weight"
    if len(weight.uses()) > 1:
        return f"the weight of {node.op_type} '{node.name}' is read elsewhere too"
    if bias is not None and not is_constant(bias):
        return f"{node.op_type} '{node.name}' has a bias that is not constant"
    first, second = (size if isinstance(size, int) else 0 for size in (dims(weight) or ())[:2])
    groups = node.attributes.get_int("group", 1)
    if node.op_type == "Conv":
        return Layer(node, groups, first, second * groups, outputs_first=True)
    if node.op_type == "ConvTranspose":
        return Layer(node, groups, second * groups, first, outputs_first=False)
    if rank(weight) != 2 or node.attributes.get_int("transA", False):
        return f"{node.op_type} '{node.name}' is not a product with one matrix from the right"
    if node.attributes.get_int("transB", 0):
        return Layer(node, 1, first, second, outputs_first=True)
    return Layer(node, 1, second, first, outputs_first=False)


# ---- where the channels stand after a homogeneous operator

_Rule: TypeAlias = Callable[[ir.Node, _Place], _Place | None]


def _same(node: ir.Node, place: _Place) -> _Place | None:
    return place if rank(node.inputs[0]) is not None else None


def _broadcast(_node: ir.Node, place: _Place) -> _Place | None:
    """Several inputs, none of a higher rank than the one with the channels."""
    return place


def _clip(node: ir.Node, place: _Place) -> _Place | None:
    """Only as Relu: a bound other than 0 does not take the factor."""
    bounds = [*node.inputs[1:], None, None][:2]
    return place if bounds[1] is None and (bounds[0] is None or scalar(bounds[0]) == 0) else None


def _pool(_node: ir.Node, place: _Place) -> _Place | None:
    return place if place.axis == 1 else None


def _pad(node: ir.Node, place: _Place) -> _Place | None:
    """Zeros, or what stands at the border; not in the axis of the channels."""
    pads, filled = ints(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return None
    if node.attributes.get_string("mode", "constant") == "constant" and filled is not None and scalar(filled) != 0:
        return None
    return place if pads[place.axis] == pads[place.axis + len(pads) // 2] == 0 else None


def _resize(node: ir.Node, place: _Place) -> _Place | None:
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    if before is None or after is None or not isinstance(before[place.axis], int):
        return None
    return place if before[place.axis] == after[place.axis] else None


def _transpose(node: ir.Node, place: _Place) -> _Place | None:
    size = rank(node.inputs[0])
    if size is None:
        return None
    perm = list(node.attributes.get_ints("perm", tuple(reversed(range(size)))))
    return _Place(perm.index(place.axis), place.spread)


def _reshape(node: ir.Node, place: _Place) -> _Place | None:
    """Channel c takes the entries c·k … c·k + k - 1 of an axis: k times as many when the axes behind it are merged."""
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None:
        return None
    own, behind = before[place.axis], _product(before[place.axis + 1 :])
    if not isinstance(own, int) or behind is None:
        return None
    for axis in range(len(after)):
        size, rest = after[axis], _product(after[axis + 1 :])
        if isinstance(size, int) and rest and behind % rest == 0 and size * rest == own * behind:
            return _Place(axis, place.spread * (behind // rest))
    return None


def _product(sizes: tuple[int | str | None, ...]) -> int | None:
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def _reduce(node: ir.Node, place: _Place) -> _Place | None:
    size, axes = rank(node.inputs[0]), ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if size is None or not axes:
        return None
    gone = {axis % size for axis in axes}
    if place.axis in gone:
        return None
    before = 0 if node.attributes.get_int("keepdims", 1) else sum(axis < place.axis for axis in gone)
    return _Place(place.axis - before, place.spread)


def _gather(node: ir.Node, place: _Place) -> _Place | None:
    size, indices = rank(node.inputs[0]), rank(node.inputs[1])
    if size is None or indices is None:
        return None
    axis = node.attributes.get_int("axis", 0) % size
    if axis == place.axis:
        return None
    return _Place(place.axis + (indices - 1 if axis < place.axis else 0), place.spread)


def _slice(node: ir.Node, place: _Place) -> _Place | None:
    size, axes = rank(node.inputs[0]), ints(node.inputs[3]) if len(node.inputs) > 3 else None
    return None if size is None or axes is None or place.axis in {axis % size for axis in axes} else place


def _concat(node: ir.Node, place: _Place) -> _Place | None:
    size = rank(node.outputs[0])
    return None if size is None or node.attributes.get_int("axis", 0) % size == place.axis else place


_HOMOGENEOUS: Mapping[str, _Rule] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "Abs", "Identity", "Neg"), _same),
    **dict.fromkeys(("Add", "Sub", "Sum", "Max", "Min", "Mul", "Div", "PRelu"), _broadcast),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"), _pool),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"), _reduce),
    "Clip": _clip,
    "Concat": _concat,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Transpose": _transpose,
}
"""Operators for which f(s·x) = s·f(x), s > 0; constants may be added, multiplied or divided by."""

_SEVERAL = frozenset({"Add", "Sub", "Sum", "Max", "Min", "Mul", "Div", "PRelu", "Concat"})
"""Those whose other inputs have to agree; all others take the channels as their first input alone."""


# ---- constants


def _is_vector(value: ir.Value | None) -> bool:
    """Whether ``value`` is a float constant with at most one axis that is larger than 1."""
    shape = dims(value)
    if value is None or shape is None or not is_constant(value) or value.dtype not in _FLOATS:
        return False
    return len(shape) > 0 and sum(size != 1 for size in shape) <= 1


def _constant(node: ir.Node, index: int) -> Array:
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _per_channel(array: Array, axis: int, channels: int, spread: int) -> Floats:
    """Largest magnitude of each channel of an array that may still have to be broadcast along ``axis`` (< 0)."""
    size = np.abs(np.asarray(array, np.float64))
    if size.ndim < -axis or size.shape[axis] == 1:
        return np.full(channels, size.max(initial=0))
    moved = np.moveaxis(size, axis, 0).reshape(channels, spread, -1)
    most: Floats = moved.max(axis=(1, 2), initial=0)
    return most


def _multiply(node: ir.Node, index: int, make: Callable[[Floats], Floats]) -> None:
    """Let ``make``, in float64, change constant input ``index``; in place unless something else reads it too."""
    value = node.inputs[index]
    assert value is not None
    assert value.const_value is not None
    held = value.const_value

    def apply(array: Array) -> Array:
        return make(array.astype(np.float64)).astype(array.dtype)

    # Only what is small can change its shape, by broadcasting.
    shape = list(make(np.ones(held.shape.numpy())).shape)
    tensor = computed(value, apply, shape)
    if len(value.uses()) > 1:
        rewire(node, index, initializer(node, f"{value.name}_scaled", tensor))
    else:
        value.const_value, value.shape = tensor, ir.Shape(shape)

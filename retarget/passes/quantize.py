"""Round activations and weights to a scheme's integers: Quantize- and DequantizeLinear where its runtime wants them.

Given::

    c = Conv(x, w, b);  y = Relu(c)                              # the scheme has uint8 activations and int32 biases

Result::

    x_q = QuantizeLinear(x, s, z);  x_dq = DequantizeLinear(x_q, s, z)
    c = Conv(x_dq, DequantizeLinear<axis = 0>(w_q, w_s, w_z), DequantizeLinear<axis = 0>(b_q, s * w_s))
    y_float = Relu(c);  y_q = QuantizeLinear(y_float, t, u);  y = DequantizeLinear(y_q, t, u)

The nodes themselves stay as they are: a runtime that knows the pattern computes in integers, every other one the same
numbers in float. A value is quantized once, whoever reads it, but where a node needs it in another scale; inputs and
outputs of the model keep names and types.
Weights are read one at a time for their scales, and rounded when they are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget.facts import KeptNode
from retarget.passes.library import InferShapes, LiftConstants
from retarget.passes.quantize_anchors import Anchor, find_anchors, name_of
from retarget.passes.quantize_rules import Plan, decide
from retarget.passes.quantize_scales import (
    Levels,
    activation_levels,
    bias_floor,
    fill_scales,
    quantize_bias,
    quantize_weight,
)
from retarget.passes.rewriting import computed, constant, is_constant, rewire
from retarget.schemes import Grid, QuantScheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TYPES = {"uint8": ir.DataType.UINT8, "int8": ir.DataType.INT8, "int16": ir.DataType.INT16}


def candidates(model: ir.Model, scheme: QuantScheme) -> tuple[str, ...]:
    """Names of the nodes that ``scheme`` quantizes where their ranges are known, in the order of the graph."""
    return tuple(name_of(node) for node in find_anchors(model.graph, scheme)[0])


class Quantize(ir.passes.InPlacePass):
    """See the module. ``choose`` gives the clipping range of a value by name, None where it was never seen.

    ``keep`` names nodes that stay in float32. After a run ``quantized`` names the nodes of ``candidates`` that now
    compute in integers, ``kept`` all other nodes with floats, each with the reason, and ``ranges`` holds scale and
    zero point of every rounded activation under the name that it had.

    ``integer_io``: the float inputs and outputs are rounded as well, for a runtime that takes and gives the integers.
    """

    def __init__(
        self,
        scheme: QuantScheme,
        choose: Callable[[str, Grid], tuple[float, float] | None],
        keep: Collection[str] = (),
        *,
        integer_io: bool = False,
    ) -> None:
        super().__init__()
        self.scheme = scheme
        self.choose = choose
        self.keep = frozenset(keep)
        self.integer_io = integer_io
        self.quantized: tuple[str, ...] = ()
        self.kept: tuple[KeptNode, ...] = ()
        self.ranges: Mapping[str, tuple[float, int]] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = LiftConstants()(model).modified
        if any(output.dtype is None for node in model.graph for output in node.outputs):
            modified |= InferShapes()(model).modified
        ranges = _Ranges(self.choose, self.scheme.grid)
        plan = decide(model.graph, self.scheme, ranges, self.keep, integer_io=self.integer_io)
        self.quantized = tuple(name_of(node) for node in plan.anchors)
        self.kept = tuple(
            KeptNode(name=name_of(node), op=node.op_type, reason=plan.kept[node])
            for node in model.graph
            if node in plan.kept
        )
        levels = _levels(plan, ranges, self.scheme.grid, self.scheme.headroom)
        self.ranges = {
            value.name or "": (levels[value].scale, levels[value].zero_point)
            for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs))
            if value in levels
        }
        if plan.rounded:
            _Rewrite(model.graph, self.scheme, plan, levels).run()
        return ir.passes.PassResult(model, modified or bool(plan.rounded))


class _Ranges:
    """Range of a value: of a constant its own, of an activation what was chosen, within what its maker lets pass."""

    def __init__(self, choose: Callable[[str, Grid], tuple[float, float] | None], grid: Grid) -> None:
        self._choose = choose
        self._grid = grid
        self._found: dict[ir.Value, tuple[float, float] | None] = {}

    def __call__(self, value: ir.Value) -> tuple[float, float] | None:
        if value not in self._found:
            self._found[value] = self._find(value)
        return self._found[value]

    def _find(self, value: ir.Value) -> tuple[float, float] | None:
        if is_constant(value):
            assert value.const_value is not None
            array = value.const_value.numpy()
            return (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        chosen = self._choose(value.name or "", self._grid)
        if chosen is None:
            return None
        low, high = chosen
        maker = value.producer()
        if maker is not None and not maker.domain and maker.op_type in ("Relu", "Clip"):
            bounds = _bounds(maker)
            low, high = max(low, bounds[0]), min(high, bounds[1])
        return low, high


def _bounds(node: ir.Node) -> tuple[float, float]:
    """What a Relu or Clip lets pass, zero included."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    found = [np.inf * -1, np.inf]
    for at in (1, 2):
        array = constant(node.inputs[at]) if len(node.inputs) > at else None
        if array is not None and array.size == 1:
            found[at - 1] = float(array.item())
    return min(found[0], 0.0), max(found[1], 0.0)


def _levels(plan: Plan, ranges: _Ranges, grid: Grid, headroom: float) -> dict[ir.Value, Levels]:
    """Scale and zero point of every rounded value: one for the values that share them, of the union of their ranges."""
    first: dict[ir.Value, ir.Value] = {}

    def root(value: ir.Value) -> ir.Value:
        while (next_one := first.get(value, value)) is not value:
            value = next_one
        return value

    for group in plan.shared:
        for value in group[1:]:
            first[root(value)] = root(group[0])
    members: dict[ir.Value, list[ir.Value]] = defaultdict(list)
    for value in plan.rounded:
        members[root(value)].append(value)
    levels: dict[ir.Value, Levels] = {}
    for values in members.values():
        fixed = next((plan.fixed[value] for value in values if value in plan.fixed), None)
        if fixed is None:
            found = [one for one in map(ranges, values) if one is not None]
            low, high = min(low for low, _ in found), max(high for _, high in found)
            shared = activation_levels(low * headroom, high * headroom, grid)
        else:
            shared = Levels(*fixed)
        levels |= dict.fromkeys(values, shared)
    return levels


class _Rewrite:
    def __init__(self, graph: ir.Graph, scheme: QuantScheme, plan: Plan, levels: Mapping[ir.Value, Levels]) -> None:
        self.graph = graph
        self.scheme = scheme
        self.plan = plan
        self.levels = levels
        self.type = _TYPES[scheme.activation]
        self.names = {value.name for node in graph.all_nodes() for value in node.outputs}
        self.names |= {value.name for value in graph.inputs} | set(graph.initializers)
        self.node_names = {node.name for node in graph.all_nodes()}
        self.constants: dict[tuple[str, float], ir.Value] = {}

    def run(self) -> None:
        self._weights()
        places: dict[ir.Value, list[tuple[ir.Node, int]]] = defaultdict(list)
        for node, anchor in self.plan.anchors.items():
            for at in anchor.activations:
                self._note(places, node, at)
        for node, positions in self.plan.carried.items():
            for at in positions:
                self._note(places, node, at)
        # In the order of the graph, for the names not to depend on how a set is ordered.
        order = [*self.graph.inputs, *self.graph.initializers.values(), *(v for n in self.graph for v in n.outputs)]
        for value in order:
            if value in self.plan.rounded:
                self._round(value, places[value])
        for (node, at), end in self.plan.again.items():
            self._round_again(node, at, end)

    def _note(self, places: dict[ir.Value, list[tuple[ir.Node, int]]], node: ir.Node, at: int) -> None:
        value = node.inputs[at]
        assert value is not None
        places[value].append((node, at))

    # ---- activations

    def _round(self, value: ir.Value, places: list[tuple[ir.Node, int]]) -> None:
        """Quantize and dequantize ``value`` for the int8 nodes; for all if what makes it are integers."""
        name = value.name or ""
        made = value in self.plan.made
        uses = list(value.uses()) if made else places
        output_at: list[int] = []
        if made and not value.is_graph_input():
            output_at = [at for at, output in enumerate(self.graph.outputs) if output is value]
        if is_constant(value):
            quantized = self._constant(value, self.levels[value])
            after: ir.Node | None = None
        else:
            levels = self._level_inputs(value)
            after = self._insert("QuantizeLinear", value.producer(), [value, *levels], f"{name}_quantize")
            quantized = after.outputs[0]
            quantized.name, quantized.dtype, quantized.shape = self._fresh(f"{name}_q"), self.type, value.shape
        node = self._insert("DequantizeLinear", after, [quantized, *self._level_inputs(value)], f"{name}_dequantize")
        result = node.outputs[0]
        result.dtype, result.shape = ir.DataType.FLOAT, value.shape
        result.name = self._fresh(f"{name}_dq")
        for user, at in uses:
            rewire(user, at, result)
        if output_at:
            value.name = self._fresh(f"{name}_float")
            result.name = name
            for at in output_at:
                self.graph.outputs[at] = result

    def _level_inputs(self, value: ir.Value) -> list[ir.Value]:
        """Scale and zero point, one pair of constants for all values that have the same."""
        levels = self.levels[value]
        scale = self._known("scale", levels.scale, np.asarray(levels.scale, np.float32), f"{value.name}_scale")
        zero = np.asarray(levels.zero_point, self.type.numpy())
        return [scale, self._known("zero", levels.zero_point, zero, f"{self.scheme.activation}_{levels.zero_point}")]

    def _round_again(self, node: ir.Node, at: int, end: ir.Value) -> None:
        """Bring what ``node`` takes at that position to the levels of ``end``."""
        value = node.inputs[at]
        assert value is not None
        name = f"{value.name}_of_{name_of(node)}"
        if is_constant(value):
            quantized = self._constant(value, self.levels[end])
            after: ir.Node | None = None
        else:
            after = self._insert("QuantizeLinear", value.producer(), [value, *self._level_inputs(end)], f"{name}_again")
            quantized = after.outputs[0]
            quantized.name, quantized.dtype, quantized.shape = self._fresh(f"{name}_q"), self.type, value.shape
        made = self._insert(
            "DequantizeLinear", after, [quantized, *self._level_inputs(end)], f"{name}_dequantize"
        ).outputs[0]
        made.name, made.dtype, made.shape = self._fresh(f"{name}_dq"), ir.DataType.FLOAT, value.shape
        rewire(node, at, made)

    def _constant(self, value: ir.Value, levels: Levels) -> ir.Value:
        """The integers of a constant of arithmetic."""
        grid, dtype = self.scheme.grid, self.type.numpy()
        assert value.const_value is not None

        def quantize(array: NDArray[np.generic]) -> NDArray[np.generic]:
            integers = np.rint(array.astype(np.float32) / np.float32(levels.scale)) + levels.zero_point
            return np.asarray(np.clip(integers, grid.low, grid.high).astype(dtype))

        shape = [int(size) for size in value.const_value.shape.numpy()]
        return self._initializer(f"{value.name}_q", computed(value, quantize, shape, self.type))

    # ---- weights and biases

    def _weights(self) -> None:
        """Quantize each weight once for each axis that it is used along, with scales that suit all its biases."""
        users: dict[tuple[ir.Value, int], list[Anchor]] = defaultdict(list)
        for anchor in self.plan.anchors.values():
            if anchor.weight is not None:
                weight = anchor.node.inputs[anchor.weight]
                assert weight is not None
                users[weight, anchor.axis].append(anchor)
        for (weight, axis), anchors in users.items():
            self._weight(weight, axis, anchors)

    def _weight(self, weight: ir.Value, axis: int, anchors: list[Anchor]) -> None:
        assert weight.const_value is not None
        low = self.scheme.weight_low
        found = self.plan.scales[weight, axis]
        floor = np.zeros(len(found), np.float64)
        biases: dict[Anchor, NDArray[np.float32]] = {}
        for anchor in anchors if self.scheme.bias == "int32" else ():
            if anchor.bias is not None:
                node, at = anchor.bias
                bias = node.inputs[at]
                assert bias is not None
                assert bias.const_value is not None
                biases[anchor] = np.asarray(bias.const_value.numpy(), np.float32).reshape(-1)
                needed = bias_floor(biases[anchor], self._input_scale(anchor))
                floor = np.maximum(floor, needed.reshape(anchor.groups, -1).max(axis=0))
        scales = fill_scales(found, floor)
        shape = [int(size) for size in weight.const_value.shape.numpy()]
        integers = computed(
            weight,
            lambda array: quantize_weight(array.astype(np.float32, copy=False), scales, axis, low),
            shape,
            ir.DataType.INT8,
        )
        name = weight.name or ""
        result = self._dequantized(name, integers, scales, axis, zero=True)
        for anchor in anchors:
            assert anchor.weight is not None
            rewire(anchor.node, anchor.weight, result)
            if anchor in biases:
                self._bias(anchor, biases[anchor], scales)

    def _bias(self, anchor: Anchor, bias: NDArray[np.float32], scales: NDArray[np.float32]) -> None:
        assert anchor.bias is not None
        node, at = anchor.bias
        value = node.inputs[at]
        assert value is not None
        products = np.tile(scales, anchor.groups) * np.float32(self._input_scale(anchor))
        integers = ir.Tensor(quantize_bias(bias, products))
        rewire(node, at, self._dequantized(value.name or "", integers, products, 0, zero=False))

    def _input_scale(self, anchor: Anchor) -> float:
        value = anchor.node.inputs[anchor.activations[0]]
        assert value is not None
        return self.levels[value].scale

    def _dequantized(
        self, name: str, integers: ir.TensorProtocol, scales: NDArray[np.float32], axis: int, *, zero: bool
    ) -> ir.Value:
        inputs = [self._initializer(f"{name}_q", integers), self._initializer(f"{name}_scale", ir.Tensor(scales))]
        if zero:
            zeros = np.zeros(len(scales), np.int8)
            inputs.append(self._known("zeros", len(scales), zeros, f"int8_zeros_{len(scales)}"))
        node = self._insert("DequantizeLinear", None, inputs, f"{name}_dequantize", axis)
        result = node.outputs[0]
        result.name, result.dtype = self._fresh(f"{name}_dq"), ir.DataType.FLOAT
        result.shape = ir.Shape([int(size) for size in integers.shape.numpy()])
        return result

    # ---- parts of the graph

    def _insert(
        self, op: str, after: ir.Node | None, inputs: list[ir.Value], name: str, axis: int | None = None
    ) -> ir.Node:
        node = ir.node(op, inputs, {} if axis is None else {"axis": axis}, name=_unused(name, self.node_names))
        if after is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(after, node)
        return node

    def _known(self, kind: str, key: float, array: NDArray[np.generic], name: str) -> ir.Value:
        if (kind, key) not in self.constants:
            self.constants[kind, key] = self._initializer(name, ir.Tensor(array))
        return self.constants[kind, key]

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        name = self._fresh(name)
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def _fresh(self, name: str) -> str:
        return _unused(name, self.names)


def _unused(name: str, taken: set[str | None]) -> str:
    """``name`` or, if that is taken, ``name_1``, ``name_2`` …; taken from now on."""
    found, count = name, 1
    while found in taken:
        found, count = f"{name}_{count}", count + 1
    taken.add(found)
    return found

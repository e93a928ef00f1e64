"""Which nodes of a graph compute in integers under a scheme, which values are rounded for it, and why the rest stays.

1. *Anchors* (`quantize_anchors`) are what int8 is for: nodes with a constant weight, and products of two activations
   where the scheme has them. Their inputs are rounded.
2. The result of an anchor is rounded behind the nodes that the runtime runs inside its kernel (bias, Relu …), and only
   where its kernel has no float output or where somebody wants it rounded.
3. From a rounded value int8 spreads backwards: always through nodes that only move values, as rounding before and
   after them is the same; through arithmetic where all that it takes comes out of int8 nodes anyway. So the Add of a
   residual network is quantized between convolutions, and the Add of a transformer in front of a normalization is not.
4. Values that a node moves, and those of arithmetic that needs one scale, share the levels. What such arithmetic takes
   in levels of its own that are fixed is rounded again in front of it, and so are constants: one that several nodes
   read must not tie them together.
5. Where the inputs and outputs of the model are to be integers too, they are rounded, whoever reads or makes them.
6. Nodes in subgraphs, in other types than float32 and around Quantize/DequantizeLinear of the model's own stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget.errors import RetargetError
from retarget.passes.quantize_anchors import (
    ASKED,
    QUANTIZED,
    Anchor,
    find_anchors,
    name_of,
    sole_user,
    touches_quantization,
)
from retarget.passes.quantize_scales import weight_scales
from retarget.passes.rewriting import dims, is_constant, scalar, subgraphs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retarget.schemes import QuantScheme

NO_GAIN = "its neighbours compute in float32, int8 would gain nothing"
SUMMED = "its result starts a sum in float32, which would carry its rounding on"
MASK_FLOOR = -1e7
"""Ranges from below it hold masks, which leave no levels for the values."""

_SELECTING = frozenset({"Gather", "Slice", "Split"})
"""Movers whose output may have a smaller range than the input: they never ask for what is not rounded anyway."""

_ALL_INPUTS = frozenset({"Add", "Concat", "Max", "Min", "Mul", "PRelu", "Sub"})
"""Arithmetic of several tensors; the first input is the tensor of all others."""

_MAPS = frozenset({"Conv", "ConvTranspose"})
"""Anchors whose results are worth rounding for the arithmetic behind them, although the kernel could give floats:
those of the others are small beside the products that made them, and are rounded for other products only."""

Range = Callable[[ir.Value], tuple[float, float] | None]


@dataclass
class Plan:
    """What becomes of a graph."""

    anchors: dict[ir.Node, Anchor] = field(default_factory=dict)
    carried: dict[ir.Node, tuple[int, ...]] = field(default_factory=dict)
    """Arithmetic and movers between int8 nodes → positions of the inputs that are rounded, constants too."""
    fused: set[ir.Node] = field(default_factory=set)
    """What runs inside the kernels of anchors and arithmetic."""
    rounded: set[ir.Value] = field(default_factory=set)
    """What gets a QuantizeLinear: activations, and constants of arithmetic."""
    made: set[ir.Value] = field(default_factory=set)
    """Those of ``rounded`` that an int8 kernel makes as integers: floats would have to be made of them."""
    shared: list[tuple[ir.Value, ...]] = field(default_factory=list)
    """Values of ``rounded`` that have the same levels."""
    again: dict[tuple[ir.Node, int], ir.Value] = field(default_factory=dict)
    """Node and position of an input → the value whose levels it is rounded to there, beside its own if it has any."""
    fixed: dict[ir.Value, tuple[float, int]] = field(default_factory=dict)
    """Scale and zero point that the scheme gives."""
    scales: dict[tuple[ir.Value, int], NDArray[np.float32]] = field(default_factory=dict)
    """Weight and axis of its channels → the scale that its values ask for, 0 for a channel of zeros."""
    kept: dict[ir.Node, str] = field(default_factory=dict)


def decide(
    graph: ir.Graph,
    scheme: QuantScheme,
    range_of: Range,
    keep: Collection[str] = (),
    *,
    integer_io: bool = False,
) -> Plan:
    """Hold every node of ``graph`` against the rules of the module. ``range_of`` is None where nothing is known.

    Raises ``RetargetError`` for an input or output that is to be an integer and has no range.
    """
    plan = _spread(graph, scheme, range_of, keep, _outer(graph) if integer_io else ())
    for node in graph:
        if node not in plan.anchors and node not in plan.carried and node not in plan.fused and _computes_floats(node):
            plan.kept.setdefault(node, _reason(node, scheme, keep))
    return plan


# ---- how int8 spreads


def _outer(graph: ir.Graph) -> list[ir.Value]:
    """The float inputs and outputs that are not quantized yet, inputs first."""
    found = [value for value in graph.inputs if any(user.op_type != "QuantizeLinear" for user, _ in value.uses())]
    found += [value for value in graph.outputs if (maker := value.producer()) and maker.op_type != "DequantizeLinear"]
    return [value for value in found if value.dtype == ir.DataType.FLOAT]


def _spread(
    graph: ir.Graph, scheme: QuantScheme, range_of: Range, keep: Collection[str], outer: Sequence[ir.Value]
) -> Plan:
    """What int8 spreads to, without the anchors that would have to be rounded for nothing but a sum in float32."""
    left: dict[ir.Node, str] = {}
    while True:
        spread = _Spread(graph, scheme, range_of, keep, left, outer)
        plan = spread.run()
        if not (summed := spread.summed()):
            return plan
        left |= dict.fromkeys(summed, SUMMED)


class _Spread:
    def __init__(
        self,
        graph: ir.Graph,
        scheme: QuantScheme,
        range_of: Range,
        keep: Collection[str],
        left: Mapping[ir.Node, str],
        outer: Sequence[ir.Value],
    ) -> None:
        self.scheme = scheme
        self.range_of = range_of
        self.nodes = list(graph)
        self.keep = keep
        self.left = left
        self.outer = outer
        """Inputs and outputs of the model that are to be integers."""
        self.ends: dict[ir.Node, tuple[ir.Value, frozenset[ir.Node]]] = {}
        """Of anchors and arithmetic: the value that all that runs inside the kernel ends in, and what that is."""
        self.reach: set[ir.Value] = set()
        """Values that are, or could be, what an int8 kernel makes."""
        self.able: dict[ir.Node, tuple[int, ...]] = {}
        """Arithmetic that int8 may spread through → positions of the inputs that are rounded."""
        self.plan = Plan()

    def run(self) -> Plan:
        self._find_ends()
        self._find_anchors()
        self._find_outer()
        self._find_reach()
        self._find_rounded()
        self._find_shared()
        return self.plan

    def _find_ends(self) -> None:
        anchors, self.plan.kept = find_anchors(self.nodes, self.scheme, self.keep)
        self.plan.anchors = anchors
        inside: set[ir.Node] = set()
        for node in self.nodes:
            anchor = anchors.get(node)
            if node in inside or (anchor is None and node.op_type not in self.scheme.arithmetic) or node.domain:
                continue
            end, fused = node.outputs[0], []
            if anchor is not None and anchor.bias is not None and anchor.bias[0] is not node:
                fused.append(anchor.bias[0])
                end = anchor.bias[0].outputs[0]
            # The levels of a fixed output are those of the operator's own result.
            while node.op_type not in self.scheme.fixed and (user := self._fused_user(node, end)) is not None:
                fused.append(user)
                end = user.outputs[0]
            inside.update(fused)
            self.ends[node] = end, frozenset(fused)

    def _fused_user(self, node: ir.Node, value: ir.Value) -> ir.Node | None:
        """The activation function of ``value`` that runs inside the kernel of ``node``."""
        user = sole_user(value)
        if user is None or user.op_type not in self.scheme.fused or user.domain or name_of(user) in self.keep:
            return None
        if not self._fuses(node, user):
            return None
        low = user.inputs[1] if len(user.inputs) > 1 else None
        if user.op_type == "Clip" and node.op_type in self.scheme.rounded and scalar(low) != 0:
            # A kernel that only gives integers clips by them: at 0 exactly, elsewhere up to half a step off.
            return None
        constants = all(other is None or other is value or is_constant(other) for other in user.inputs)
        return user if constants and user.inputs[0] is value and not touches_quantization(user) else None

    def _fuses(self, node: ir.Node, user: ir.Node) -> bool:
        """Whether the kernel of ``node`` is one that activation functions such as ``user`` run inside of."""
        anchor, scheme = self.plan.anchors.get(node), self.scheme
        if scheme.fusing is not None and (
            node.op_type not in scheme.fusing or (anchor is not None and anchor.weight is None)
        ):
            return False
        return user.op_type != "Clip" or scheme.clips is None or _clip(user) in scheme.clips

    def _find_anchors(self) -> None:
        """Leave out anchors whose ranges are not known, or are not for them."""
        for node, anchor in list(self.plan.anchors.items()):
            needed: list[ir.Value | None] = [node.inputs[at] for at in anchor.activations]
            if node.op_type in self.scheme.rounded:
                needed.append(self.ends[node][0])
            inputs = _values(node, anchor.activations)
            reason = (
                self.left.get(node)
                or self._without_range(needed)
                or self._behind_apart(inputs)
                or self._below_zero(node)
                or self._not_finite(anchor)
            )
            if reason is not None:
                del self.plan.anchors[node]
                self.plan.kept[node] = reason

    def _behind_apart(self, values: Iterable[ir.Value]) -> str | None:
        """Why one of ``values`` is not rounded: what it comes from, as it is or moved, must not be."""
        for value in values:
            maker = value.producer()
            while maker is not None and self._moves(maker) and maker.inputs[0] is not None:
                maker = maker.inputs[0].producer()
            if maker is not None and not maker.domain and maker.op_type in self.scheme.apart:
                return f"it is behind a {maker.op_type}, whose result {self.scheme.name} does not round"
        return None

    def _below_zero(self, node: ir.Node) -> str | None:
        data = node.inputs[0]
        found = self.range_of(data) if data is not None and node.op_type in self.scheme.positive else None
        if data is None or found is None or found[0] >= 0:
            return None
        word = self.scheme.word
        return f"{self.scheme.name} has no {word} {node.op_type} of values below zero, and those of '{data.name}' are"

    def _not_finite(self, anchor: Anchor) -> str | None:
        """Read the weight for its scales, which are not finite where one of its elements is not."""
        if anchor.weight is None:
            return None
        weight = anchor.node.inputs[anchor.weight]
        assert weight is not None
        assert weight.const_value is not None
        if (weight, anchor.axis) not in self.plan.scales:
            array = np.asarray(weight.const_value.numpy(), np.float32)
            self.plan.scales[weight, anchor.axis] = weight_scales(array, anchor.axis, self.scheme.weight_low)
        operands = [self.plan.scales[weight, anchor.axis]]
        if anchor.bias is not None:
            bias = anchor.bias[0].inputs[anchor.bias[1]]
            assert bias is not None
            assert bias.const_value is not None
            operands.append(np.asarray(bias.const_value.numpy(), np.float32))
        return None if all(np.isfinite(array).all() for array in operands) else "its weight or bias is not finite"

    def _without_range(self, values: Iterable[ir.Value | None]) -> str | None:
        for value in values:
            found = self.range_of(value) if value is not None else None
            if value is not None and found is None:
                return f"no range of '{value.name}' was recorded"
            if found is not None and not (math.isfinite(found[0]) and math.isfinite(found[1])):
                return f"the range of '{value.name if value else ''}' is not finite"
        return None

    def _find_outer(self) -> None:
        if reason := self._without_range(self.outer):
            raise RetargetError(
                f"inputs and outputs cannot be integers: {reason}", "set `io: float32`, or calibrate with finite values"
            )
        self.plan.rounded.update(self.outer)
        self.plan.made.update(self.outer)
        self.reach.update(self.outer)

    # ---- forwards: what could be integers

    def _find_reach(self) -> None:
        for node, anchor in self.plan.anchors.items():
            self.reach.update(_values(node, anchor.activations))
        for node in self.nodes:
            if node in self.plan.anchors:
                if node.op_type in self.scheme.rounded or node.op_type in _MAPS:
                    self.reach.add(self.ends[node][0])
            elif node in self.ends and node not in self.plan.kept:
                able = self._able(node)
                if isinstance(able, str):
                    self.plan.kept[node] = able
                else:
                    self.able[node] = able
                    self.reach.add(self.ends[node][0])
                    if node.op_type in self.scheme.fixed:
                        self.plan.fixed[node.outputs[0]] = self.scheme.fixed[node.op_type]
            elif self._moves(node) and node.inputs[0] in self.reach:
                self.reach.update(node.outputs)
            if self._moves(node) and node.inputs[0] in self.plan.fixed:
                self.plan.fixed |= dict.fromkeys(node.outputs, self.plan.fixed[node.inputs[0]])

    def _able(self, node: ir.Node) -> tuple[int, ...] | str:
        """The positions to be rounded if int8 may spread through this arithmetic, else why it may not."""
        if name_of(node) in self.keep:
            return ASKED
        if not _is_float32(node):
            return "it does not compute in float32"
        if touches_quantization(node):
            return QUANTIZED
        if node.op_type == "Resize":
            mode = node.attributes.get_string("mode", "nearest")
            if mode != "linear":
                return NO_GAIN if mode == "nearest" else f"{self.scheme.name} has no {self.scheme.word} {mode} Resize"
        count = len(node.inputs) if node.op_type in _ALL_INPUTS else 1
        positions = tuple(at for at in range(count) if node.inputs[at] is not None)
        values = _values(node, positions)
        end = self.ends[node][0]
        # What a Concat takes is rounded with its output anyway.
        if not any(value in self.reach for value in values) or not (
            node.op_type == "Concat"
            or all(value in self.reach or is_constant(value) or _is_small(value, values) for value in values)
        ):
            return NO_GAIN
        reason = self._without_range([*values, end]) or self._behind_apart(values)
        if reason is not None:
            return reason
        if any(low <= MASK_FLOOR for low, _ in filter(None, map(self.range_of, [*values, end]))):
            return "the masks in its range would leave no levels for the values"
        if node.op_type in self.scheme.same_scale:
            fixed = {self.plan.fixed.get(value) for value in values if not is_constant(value)}
            if len(fixed) == 1 and (levels := fixed.pop()) is not None and self._holds(levels, values):
                self.plan.fixed[end] = levels
        return positions

    def _holds(self, levels: tuple[float, int], values: Iterable[ir.Value]) -> bool:
        """Whether these scale and zero point cut off none of the constants among ``values``."""
        scale, zero = levels
        lowest, highest = ((end - zero) * scale for end in (self.scheme.low, self.scheme.high))
        found = [one for one in map(self.range_of, filter(is_constant, values)) if one is not None]
        return all(lowest <= low and high <= highest for low, high in found)

    def _moves(self, node: ir.Node) -> bool:
        if node.op_type not in self.scheme.moving or node.domain or name_of(node) in self.keep or not _is_float32(node):
            return False
        if not node.inputs or is_constant(node.inputs[0]) or touches_quantization(node):
            return False
        match node.op_type:
            case "MaxPool":
                return len(node.outputs) == 1
            case "Pad":
                fill = node.inputs[2] if len(node.inputs) > 2 else None
                return node.attributes.get_string("mode", "constant") != "constant" or (
                    fill is None or scalar(fill) == 0
                )
            case "Resize":
                return node.attributes.get_string("mode", "nearest") == "nearest"
            case _:
                return True

    # ---- backwards: what shall be integers

    def _find_rounded(self) -> None:
        plan = self.plan
        for node, anchor in plan.anchors.items():
            plan.rounded.update(_values(node, anchor.activations))
            if node.op_type in self.scheme.rounded:
                plan.rounded.add(self.ends[node][0])
        order: dict[ir.Value | None, int] = {self.ends[node][0]: at for at, node in enumerate(plan.anchors)}
        before = -1
        while before != len(plan.carried):
            before = len(plan.carried)
            for node in reversed(self.nodes):
                if node in plan.carried:
                    continue
                positions: tuple[int, ...] | None = None
                if node in self.able:
                    if self.ends[node][0] in plan.rounded:
                        positions = self._without_merged(node, order)
                elif self._moves(node) and self._asks(node):
                    positions = (0,)
                if positions is not None:
                    plan.carried[node] = positions
                    plan.rounded.update(value for value in _values(node, positions) if not self._apart(node, value))

    def summed(self) -> list[ir.Node]:
        """Anchors without a float output that are read by a sum with a constant in float32, and by nothing in int8.

        So begins the residual stream of a transformer, where the rounding would stay in all that is added later: of a
        small ViT the patch embedding, 0.7 % of the multiply-accumulates, made half of the int8 error.
        """
        return [
            node
            for node in self.plan.anchors
            if node.op_type in self.scheme.rounded and self._only_summed(self.ends[node][0])
        ]

    def _only_summed(self, value: ir.Value) -> bool:
        pending, found = [value], False
        while pending:
            for user, _ in pending.pop().uses():
                if user in self.plan.anchors or user in self.plan.carried:
                    return False
                if user.op_type == "Add" and not user.domain and any(map(is_constant, user.inputs)):
                    found = True
                elif user.op_type == "Concat" or self._moves(user):
                    pending += user.outputs
        return found

    def _asks(self, node: ir.Node) -> bool:
        """Whether this mover shall move integers."""
        data, rounded = node.inputs[0], self.plan.rounded
        if self._without_range([data]) is not None or not any(value in rounded for value in node.outputs):
            return False
        return node.op_type not in _SELECTING or self._is_rounded(data)

    def _is_rounded(self, value: ir.Value | None) -> bool:
        """Whether ``value`` is what was rounded already, as it is or moved: to round it again there changes nothing."""
        while value is not None and value not in self.plan.rounded:
            maker = value.producer()
            if maker is None or not self._moves(maker):
                return False
            value = maker.inputs[0]
        return value is not None

    def _without_merged(self, node: ir.Node, order: Mapping[ir.Value | None, int]) -> tuple[int, ...]:
        """The positions to be rounded, without that of the input whose kernel does this sum as well.

        ``order`` numbers the results of anchors.
        """
        positions = self.able[node]
        if self.scheme.residual != "skip" or node.op_type != "Add":
            return positions
        own = [at for at in positions if node.inputs[at] in order and sole_user(node.inputs[at]) is node]
        # A kernel can only take what is there when it runs: the sum goes to the later one.
        merged = max(own, key=lambda at: order[node.inputs[at]], default=None)
        return tuple(at for at in positions if at != merged)

    # ---- levels

    def _find_shared(self) -> None:
        plan = self.plan
        for node in plan.anchors:
            plan.fused |= self.ends[node][1]
            if not self.scheme.rounds:
                plan.made.add(self.ends[node][0])
        for node, positions in plan.carried.items():
            if node in self.able:
                end, fused = self.ends[node]
                plan.fused |= fused
                plan.made.add(end)
                if node.op_type in self.scheme.same_scale:
                    self._share(node, positions, end)
            else:
                plan.made.update(node.outputs)
                plan.rounded.update(node.outputs)
                plan.shared.append((*_values(node, positions), *node.outputs))
        plan.made &= plan.rounded
        for node in (*plan.anchors, *plan.carried, *plan.fused):
            plan.kept.pop(node, None)

    def _share(self, node: ir.Node, positions: tuple[int, ...], end: ir.Value) -> None:
        """One scale for ``end`` and what the node takes; what cannot share it is rounded again to that of ``end``."""
        plan = self.plan
        shared = [end]
        for at in positions:
            value = node.inputs[at]
            assert value is not None
            if self._apart(node, value) or plan.fixed.get(value) != plan.fixed.get(end):
                plan.again[node, at] = end
            else:
                shared.append(value)
        plan.shared.append(tuple(shared))

    def _apart(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether ``value`` is a constant that ``node`` needs in its own output's scale."""
        return node.op_type in self.scheme.same_scale and is_constant(value)


def _values(node: ir.Node, positions: Iterable[int]) -> list[ir.Value]:
    return [value for at in positions if (value := node.inputs[at]) is not None]


def _clip(node: ir.Node) -> tuple[float | None, float | None]:
    """The bounds of a Clip, None for one that is computed; infinite where it has none."""
    low, high = (node.inputs[at] if len(node.inputs) > at else None for at in (1, 2))
    return -math.inf if low is None else scalar(low), math.inf if high is None else scalar(high)


def _is_small(value: ir.Value, others: Iterable[ir.Value]) -> bool:
    """Whether ``value`` is stretched over another of these, along an axis at least: quantizing it costs little."""
    one = dims(value)
    for other in map(dims, others):
        if one is None or other is None:
            continue
        if len(one) < len(other) or any(
            left == 1 != right for left, right in zip(one[::-1], other[::-1], strict=False)
        ):
            return True
    return False


def _is_float32(node: ir.Node) -> bool:
    return all(value.dtype == ir.DataType.FLOAT for value in (*_values(node, (0,)), *node.outputs))


# ---- words


def _computes_floats(node: ir.Node) -> bool:
    if node.op_type in ("Constant", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
        return False
    return any(value.dtype is not None and value.dtype.is_floating_point() for value in node.outputs)


def _reason(node: ir.Node, scheme: QuantScheme, keep: Collection[str]) -> str:
    if name_of(node) in keep:
        return ASKED
    if any(subgraphs(attribute) for attribute in node.attributes.values()):
        return "its subgraphs stay in float32"
    if node.domain:
        return f"{scheme.name} has no {scheme.word} {node.domain}.{node.op_type}"
    if touches_quantization(node):
        return QUANTIZED
    if node.op_type in (*scheme.fused, *scheme.arithmetic):
        return NO_GAIN
    mode = node.attributes.get_string("mode", "nearest") if node.op_type == "Resize" else "nearest"
    if node.op_type in scheme.moving and mode == "nearest":
        return NO_GAIN
    return f"{scheme.name} has no {scheme.word} {'' if mode == 'nearest' else f'{mode} '}{node.op_type}"

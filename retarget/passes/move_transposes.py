"""Move Transposes through the graph until they meet and cancel.

Given::   Transpose(Relu(Add(Transpose(x, p), Transpose(y, p))), p⁻¹)
Result::  Relu(Add(x, y))

Models from channels-last frameworks hold a pair around each convolution. Nodes that do not care about the order of
axes, or whose axes can be renumbered, form regions; a region is turned as a whole into the layout of the Transposes
that enter it when that leaves fewer of them. Each turn removes at least one Transpose, so this ends, and costs one
visit a node.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from retarget.passes.rewriting import (
    Array,
    computed,
    constant,
    dims,
    forward,
    graph_of,
    initializer,
    insert,
    ints,
    is_constant,
    node,
    only_user,
    own,
    producer,
    rank,
    replace,
    rewire,
)

Perm: TypeAlias = tuple[int, ...]

ELEMENTWISE = frozenset(
    {
        "Abs",
        "Acos",
        "Acosh",
        "Add",
        "And",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Mean",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "PRelu",
        "Pow",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Sum",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "Where",
        "Xor",
    }
)
"""Element i of the output depends on element i of the inputs, which may be broadcast."""

REDUCTIONS = frozenset(
    f"Reduce{what}" for what in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
)


class MoveTransposes(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for graph in model.graphs():
            modified |= _merge(graph)
            modified |= _pick(graph)
            # A region that was turned may have brought Transposes to the border of the next one.
            while _turn(graph):
                modified = True
                _merge(graph)
                _pick(graph)
            modified |= _absorb(graph)
            modified |= _reorder_rows(graph)
            modified |= _measure(graph)
        return ir.passes.PassResult(model, modified)


# ---- neighbours


def _merge(graph: ir.Graph) -> bool:
    """Two Transposes in a row → one or none."""
    modified = False
    for second in graph:
        if second.op_type != "Transpose" or second.domain:
            continue
        first = producer(second.inputs[0], "Transpose")
        if first is None or first.inputs[0] is None:
            continue
        x, both = first.inputs[0], tuple(_perm(first)[axis] for axis in _perm(second))
        if both == tuple(range(len(both))):
            modified |= forward(second, x)
        else:
            replace(second, node("Transpose", [x], {"perm": both}, like=second))
            modified = True
    return modified


def _absorb(graph: ir.Graph) -> bool:
    """A reduction that drops its axes hides the order of those: Reduce(Transpose(x)) → Reduce(x)."""
    modified = False
    for reduce in graph:
        if reduce.op_type not in REDUCTIONS or reduce.domain:
            continue
        transpose = producer(reduce.inputs[0], "Transpose")
        gone = None if transpose is None else _hidden(reduce, _perm(transpose))
        if transpose is None or gone is None:
            continue
        value = initializer(reduce, f"{reduce.outputs[0].name}_axes", np.array(gone, np.int64))
        rewire(reduce, 1, value)
        rewire(reduce, 0, transpose.inputs[0])
        modified = True
    return modified


def _pick(graph: ir.Graph) -> bool:
    """What takes one place along an axis, and leaves the others in order: Gather(Transpose(x), i) → Gather(x, i).

    So does the loop of a recurrent layer, which takes a step at a time of what comes by sequences.
    """
    modified = False
    for transpose in graph:
        if transpose.op_type != "Transpose" or transpose.domain:
            continue
        perm = _perm(transpose)
        for gather, at in tuple(transpose.outputs[0].uses()):
            if at == 0 and _picks(gather, perm):
                axis = perm[gather.attributes.get_int("axis", 0)]
                gather.attributes["axis"] = ir.AttrInt64("axis", axis)
                rewire(gather, 0, transpose.inputs[0])
                modified = True
    return modified


def _picks(gather: ir.Node, perm: Perm) -> bool:
    """Whether ``gather`` takes one place of Transpose(x, perm), and what it gives is in the order that x has."""
    if gather.op_type != "Gather" or gather.domain or rank(gather.inputs[1]) != 0:
        return False
    gone = perm[gather.attributes.get_int("axis", 0)]
    kept = [axis for axis in perm if axis != gone]
    return kept == sorted(kept)


def _measure(graph: ir.Graph) -> bool:
    """A tensor need not be transposed to be asked for its shape: Shape(Transpose(x)) → Gather(Shape(x)).

    So between two recurrent layers, the second of which takes the batch for its initial state from the first.
    """
    modified = False
    for transpose in graph:
        if transpose.op_type != "Transpose" or transpose.domain or transpose.outputs[0].is_graph_output():
            continue
        users = list(dict.fromkeys(use.node for use in transpose.outputs[0].uses()))
        if not users or any((user.op_type, user.domain, user.graph) != ("Shape", "", graph) for user in users):
            continue
        x, perm = transpose.inputs[0], _perm(transpose)
        for user in users:
            end = user.attributes.get_int("end", len(perm))
            kept = np.array(perm[user.attributes.get_int("start", 0) : end], np.int64)
            shape = insert(user, ir.node("Shape", inputs=[x]))
            shape.type, shape.shape = user.outputs[0].type, ir.Shape([len(perm)])
            order = initializer(user, f"{user.outputs[0].name}_order", kept)
            replace(user, node("Gather", [shape, order], {"axis": 0}, like=user))
        modified = True
    return modified


def _reorder_rows(graph: ir.Graph) -> bool:
    """A dense layer takes its inputs in any order: MatMul(Flatten(Transpose(x)), w) → MatMul(Flatten(x), w')."""
    modified = False
    for reshape in graph:
        transpose = producer(reshape.inputs[0], "Transpose") if reshape.op_type == "Reshape" else None
        if transpose is None or transpose.inputs[0] is None or not own(reshape, transpose):
            continue
        perm = _perm(transpose)
        dense = _dense(reshape, perm)
        found = None if dense is None else _weight(dense)
        if dense is None or found is None:
            continue
        reader, at, weight = found
        sizes = [size for size in (dims(reshape.inputs[0]) or ())[1:] if isinstance(size, int)]
        rewire(reader, at, _with_rows(dense, weight, sizes, perm))
        rewire(reshape, 0, transpose.inputs[0])
        modified = True
    return modified


def _dense(reshape: ir.Node, perm: Perm) -> ir.Node | None:
    """The dense layer that alone reads what ``reshape`` makes of all axes but the first of Transpose(x, perm)."""
    sizes, flat = dims(reshape.inputs[0]), dims(reshape.outputs[0])
    if reshape.op_type != "Reshape" or reshape.domain or sizes is None or flat is None or len(flat) != 2 or perm[0]:
        return None
    rest = [size for size in sizes[1:] if isinstance(size, int)]
    if len(rest) != len(sizes) - 1 or flat[1] != math.prod(rest):
        return None
    value = reshape.outputs[0]
    while (step := only_user(value, "QuantizeLinear") or only_user(value, "DequantizeLinear")) is not None:
        if step.inputs[0] is not value or rank(step.inputs[1]) != 0:
            return None
        value = step.outputs[0]
    dense = only_user(value, "MatMul") or only_user(value, "Gemm")
    if dense is None or dense.inputs[0] is not value or dense.attributes.get_int("transA", False):
        return None
    return None if _weight(dense) is None else dense


def _weight(dense: ir.Node) -> tuple[ir.Node, int, ir.Value] | None:
    """What reads the constant that the weight of ``dense`` is, at which input, and that; also of dequantized codes."""
    reader, at = dense, 1
    dequantize = producer(dense.inputs[1], "DequantizeLinear")
    if dequantize is not None:
        rows = 1 if dense.attributes.get_int("transB", False) else 0
        axis = dequantize.attributes.get_int("axis", 1) % 2
        if rank(dequantize.inputs[1]) not in (0, 1) or (rank(dequantize.inputs[1]) and axis == rows):
            return None
        if not own(dense, dequantize):
            return None
        reader, at = dequantize, 0
    weight = reader.inputs[at]
    return (reader, at, weight) if weight is not None and is_constant(weight) and len(weight.uses()) == 1 else None


def _with_rows(dense: ir.Node, weight: ir.Value, sizes: list[int], perm: Perm) -> ir.Value:
    """``weight``, whose rows are in the order of ``sizes``, for what has the order of before Transpose(x, perm)."""
    order = [perm.index(axis) - 1 for axis in range(1, len(perm))]
    turned: int = dense.attributes.get_int("transB", False)

    def reorder(array: Array) -> Array:
        rows = array.T if turned else array
        moved = rows.reshape(*sizes, -1).transpose(*order, len(sizes)).reshape(rows.shape)
        return moved.T if turned else moved

    shape = [size for size in dims(weight) or () if isinstance(size, int)]
    return initializer(dense, f"{weight.name}_turned", computed(weight, reorder, shape))


def _hidden(reduce: ir.Node, perm: Perm) -> list[int] | None:
    """The axes that ``reduce`` drops of x in y = Transpose(x, perm), if the others stand in the same order in both."""
    axes = ints(reduce.inputs[1]) if len(reduce.inputs) > 1 else None
    keeps: int = reduce.attributes.get_int("keepdims", 1)
    if not axes or keeps:
        return None
    gone = {perm[axis] for axis in axes}
    kept = [axis for axis in perm if axis not in gone]
    return sorted(gone) if kept == sorted(kept) else None


def _perm(transpose: ir.Node) -> Perm:
    given = transpose.attributes.get_ints("perm", ())
    return tuple(given) or tuple(reversed(range(rank(transpose.inputs[0]) or 0)))


def _inverse(perm: Perm) -> Perm:
    return tuple(perm.index(axis) for axis in range(len(perm)))


# ---- regions


@dataclass
class _Region:
    """Connected nodes whose tensors all have ``size`` axes and can be turned together."""

    size: int
    nodes: dict[ir.Node, None] = field(default_factory=dict)

    def entering(self) -> list[ir.Value]:
        values = (value for member in self.nodes for value in _turned_inputs(member))
        return [value for value in dict.fromkeys(values) if value.producer() not in self.nodes]

    def leaving(self) -> list[ir.Value]:
        values = (out for member in self.nodes for out in member.outputs)
        return [value for value in values if value.is_graph_output() or any(self.outside(value))]

    def outside(self, value: ir.Value) -> Iterable[ir.Node]:
        return (user for user, _ in value.uses() if user not in self.nodes)


def _turn(graph: ir.Graph) -> bool:
    """Turn each region that has fewer Transposes afterwards."""
    seen: set[ir.Node] = set()
    modified = False
    for transpose in [each for each in graph if each.op_type == "Transpose" and not each.domain]:
        for user, _ in tuple(transpose.outputs[0].uses()):
            if user in seen or not _can_turn(user, graph):
                continue
            region = _grow(user, graph)
            seen.update(region.nodes)
            perm = _profitable(region)
            if perm is not None:
                _turn_region(region, perm)
                modified = True
    return modified


def _grow(seed: ir.Node, graph: ir.Graph) -> _Region:
    region = _Region(rank(seed.outputs[0]) or 0)
    pending = [seed]
    while pending:
        current = pending.pop()
        if current in region.nodes or not _can_turn(current, graph) or rank(current.outputs[0]) != region.size:
            continue
        region.nodes[current] = None
        pending += [maker for value in _turned_inputs(current) if (maker := value.producer()) is not None]
        pending += [user for out in current.outputs for user, _ in out.uses()]
    return region


def _profitable(region: _Region) -> Perm | None:
    """The permutation of entering Transposes whose removal saves most, if it saves any."""
    entering, leaving = region.entering(), region.leaving()
    makers = [producer(value, "Transpose") for value in entering]
    counted = Counter(_perm(maker) for maker in makers if maker is not None)
    if not counted:
        return None
    perm = counted.most_common(1)[0][0]
    saved = 0
    for value, maker in zip(entering, makers, strict=True):
        alone = not value.is_graph_output() and not any(region.outside(value))
        if maker is None:
            saved -= not _is_reshape(value, _inverse(perm))
        elif _perm(maker) == perm:
            saved += alone
        else:
            saved -= not alone
    for value in leaving:
        users = list(region.outside(value))
        if value.is_graph_output() or not all(_swallows(user, perm) for user in users):
            saved -= 1
        saved += sum(user.op_type == "Transpose" and _perm(user) == _inverse(perm) for user in users)
    return perm if saved > 0 else None


def _swallows(user: ir.Node, perm: Perm) -> bool:
    """Whether a Transpose in front of ``user`` would not stay."""
    if user.domain:
        return False
    if (
        user.op_type == "Transpose"
        or _picks(user, perm)
        or (user.op_type in REDUCTIONS and _hidden(user, perm) is not None)
    ):
        return True
    return _dense(user, perm) is not None


def _turn_region(region: _Region, perm: Perm) -> None:
    """Let all nodes compute in the layout x of y = Transpose(x, perm); Transposes stand at the borders."""
    inverse = _inverse(perm)
    for value in region.leaving():
        _turn_back(region, value, perm)
    for value in region.entering():
        inside = [(user, at) for user, at in value.uses() if user in region.nodes]
        first = next(user for user in region.nodes if any(user is reader for reader, _ in inside))
        turned = _reshape(first, value, inverse) or ir.node("Transpose", inputs=[value], attributes={"perm": inverse})
        maker = value.producer()
        if maker is not None and maker.graph is first.graph:
            graph_of(first).insert_after(maker, turned)
        else:
            graph = graph_of(first)
            graph.insert_before(graph[0], turned)
        turned.outputs[0].type, turned.outputs[0].shape = value.type, _permuted(value.shape, inverse)
        for user, at in inside:
            user.replace_input_with(at, turned.outputs[0])
    for member in region.nodes:
        _renumber(member, perm)
        for out in member.outputs:
            out.shape = _permuted(out.shape, inverse)


def _is_reshape(value: ir.Value, perm: Perm) -> bool:
    """Whether Transpose(value, perm) moves nothing in memory: of all but axes of size 1, the order stays."""
    sizes = dims(value)
    if sizes is None or sum(not isinstance(size, int) for size in sizes) > 1:
        return False
    kept = [axis for axis in perm if sizes[axis] != 1]
    return kept == sorted(kept)


def _reshape(near: ir.Node, value: ir.Value, perm: Perm) -> ir.Node | None:
    """The Reshape that does what Transpose(value, perm) would, where there is one."""
    sizes = dims(value)
    if sizes is None or not _is_reshape(value, perm):
        return None
    shape = [size if isinstance(size, int) else -1 for size in (sizes[axis] for axis in perm)]
    return ir.node("Reshape", [value, initializer(near, f"{value.name}_turned", np.array(shape, np.int64))])


def _turn_back(region: _Region, value: ir.Value, perm: Perm) -> None:
    """Let those outside the region read ``value`` through a Transpose."""
    maker = value.producer()
    assert maker is not None
    back = ir.node("Transpose", inputs=[value], attributes={"perm": perm})
    graph_of(maker).insert_after(maker, back)
    out = back.outputs[0]
    out.type, out.shape = value.type, value.shape
    for user, at in tuple(value.uses()):
        if user not in region.nodes and user is not back:
            user.replace_input_with(at, out)
    if value.is_graph_output():
        outputs = graph_of(maker).outputs
        outputs[outputs.index(value)] = out
        out.name, value.name = value.name, f"{value.name}_turned"


def _permuted(shape: ir.Shape | None, perm: Perm) -> ir.Shape | None:
    return None if shape is None else ir.Shape([shape[axis] for axis in perm])


# ---- nodes


def _can_turn(member: ir.Node, graph: ir.Graph) -> bool:
    """Whether the axes of ``member`` can be renumbered: all ranks known and equal but for constants."""
    if member.domain or member.graph is not graph:
        return False
    size = rank(member.outputs[0])
    if not size or size < 2 or any(rank(out) != size for out in member.outputs):
        return False
    if member.op_type in ELEMENTWISE:
        return all(
            (rank(value) == size and not is_constant(value)) or constant(value, 1 << 22) is not None
            for value in member.inputs
            if value is not None and rank(value) != 0
        )
    ready = _RENUMBER.get(member.op_type)
    return ready is not None and rank(member.inputs[0]) == size and ready.possible(member)


def _turned_inputs(member: ir.Node) -> list[ir.Value]:
    """The inputs that hold a tensor in the region's layout: not constants and not numbers."""
    count = len(member.inputs) if member.op_type in ELEMENTWISE or member.op_type == "Concat" else 1
    return [value for value in member.inputs[:count] if value is not None and not is_constant(value) and rank(value)]


def _renumber(member: ir.Node, perm: Perm) -> None:
    """Change what in ``member`` speaks of axes: axis a of y is axis perm[a] of x."""
    if member.op_type in ELEMENTWISE:
        for at, value in enumerate(member.inputs):
            array = constant(value, 1 << 22)
            if value is not None and array is not None and array.ndim:
                wide = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
                turned = np.transpose(wide, _inverse(perm))
                rewire(member, at, initializer(member, f"{value.name}_turned", np.ascontiguousarray(turned)))
        return
    _RENUMBER[member.op_type].apply(member, perm)


@dataclass(frozen=True)
class _Axes:
    """Whether and how a node's axes are renumbered."""

    possible: Callable[[ir.Node], bool]
    apply: Callable[[ir.Node, Perm], None]


def _axis_attribute(default: int | None) -> _Axes:
    def apply(member: ir.Node, perm: Perm) -> None:
        axis = member.attributes.get_int("axis", default)
        assert axis is not None
        member.attributes["axis"] = ir.AttrInt64("axis", perm[axis])

    return _Axes(lambda member: not any(map(is_constant, member.inputs[: _DATA.get(member.op_type)])), apply)


_DATA: Mapping[str, int | None] = {
    "Concat": None,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "Split", "QuantizeLinear", "DequantizeLinear", "Gather"), 1),
}
"""How many inputs are tensors in the layout; None: all."""


def _axes_input(at: int) -> _Axes:
    """Axes in input ``at``; where it is absent, all of them in order."""

    def possible(member: ir.Node) -> bool:
        given = member.inputs[at] if len(member.inputs) > at else None
        if member.op_type in REDUCTIONS and not member.attributes.get_int("keepdims", 1):
            return False
        return not is_constant(member.inputs[0]) and (given is None or ints(given) is not None)

    def apply(member: ir.Node, perm: Perm) -> None:
        given = member.inputs[at] if len(member.inputs) > at else None
        axes = ints(given)
        if axes is None:
            if member.op_type in REDUCTIONS:
                return  # all axes, or none: in any order
            count = _listed(member)
            axes = list(range(count))
        value = initializer(member, f"{member.outputs[0].name}_axes", np.array([perm[axis] for axis in axes], np.int64))
        if len(member.inputs) <= at:
            member.resize_inputs(at + 1)
        rewire(member, at, value)

    return _Axes(possible, apply)


def _of_few(inner: _Axes) -> _Axes:
    """``inner``, where scales are one number, or one for each place along an axis: not one for each block."""

    def possible(member: ir.Node) -> bool:
        return inner.possible(member) and (rank(member.inputs[1]) or 0) < 2

    def apply(member: ir.Node, perm: Perm) -> None:
        if rank(member.inputs[1]):
            inner.apply(member, perm)

    return _Axes(possible, apply)


def _gathered() -> _Axes:
    """Gather of a list of places along an axis."""
    inner = _axis_attribute(0)
    return _Axes(lambda member: inner.possible(member) and ints(member.inputs[1]) is not None, inner.apply)


def _listed(member: ir.Node) -> int:
    """How many axes Slice's starts or Pad's pads speak of."""
    count = rank(member.inputs[0]) or 0
    if member.op_type == "Pad":
        return count
    starts = member.inputs[1]
    length = None if starts is None or starts.shape is None else starts.shape[0]
    return length if isinstance(length, int) else count


_RENUMBER: Mapping[str, _Axes] = {
    **dict.fromkeys(REDUCTIONS, _axes_input(1)),
    "Slice": _axes_input(3),
    "Pad": _axes_input(3),
    "Concat": _axis_attribute(None),
    "Split": _axis_attribute(0),
    "Gather": _gathered(),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _of_few(_axis_attribute(1))),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _axis_attribute(-1)),
}

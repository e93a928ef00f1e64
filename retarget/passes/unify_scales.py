"""Give what an integer kernel takes and gives one scale, where it moves or compares integers without a look at scales.

Given::

    a = DequantizeLinear(qa, 0.1, 3);  b = DequantizeLinear(qb, 0.2, 0)
    q = QuantizeLinear(Concat(a, b), 0.15, 1)

Result::

    a = DequantizeLinear(qa, 0.2, 0);  b = DequantizeLinear(qb, 0.2, 0)        # and where qa is made, the same
    q = QuantizeLinear(Concat(a, b), 0.2, 0)

`Quantize` makes its models so: this is for those that were quantized elsewhere. Integers that are tied together,
through any number of such nodes, get the scale of the widest range among them, so that no more is cut off than before.

1. What cannot have another scale keeps its own: integers that the model takes or gives as they are, those that an
   operator reads without a DequantizeLinear, and the results of operators whose kernels have a fixed scale. Where they
   meet another scale a DequantizeLinear and a QuantizeLinear are put in between.
2. Constants are rounded again from what they mean. Scales of weights stay.
3. The scale of an int32 bias is that of the input times those of the weight, in float32: where it is not, also in a
   model in which nothing else is changed, the bias is rounded again.

The kernels are those of TensorFlow Lite: an operator computes in integers if all that it takes comes out of
DequantizeLinear and all that reads its result, perhaps behind a Relu or Clip, is QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from retarget.passes.library import LiftConstants
from retarget.passes.quantize_scales import Levels, quantize_bias
from retarget.passes.rewriting import (
    Array,
    computed,
    constant,
    initializer,
    insert,
    is_constant,
    node,
    producer,
    rewire,
    sole_use,
)
from retarget.schemes import TFLITE

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ALL_INPUTS = frozenset({"Concat", "Max", "Min"})
_FUSED = ("Relu", "Clip")
_ACTIVATIONS = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16})


class UnifyScales(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = LiftConstants()(model).modified
        modified |= _Ties(model.graph).unify()
        for each in list(model.graph):
            modified |= _correct_bias(each)
        return ir.passes.PassResult(model, modified)


@dataclass(eq=False)
class _Integers:
    """A tensor of integers: what it means, what makes it of floats and what makes floats of it."""

    value: ir.Value
    levels: Levels
    dtype: ir.DataType
    held: bool
    """Whether its levels must stay."""
    constant: bool
    ends: list[ir.Node] = field(default_factory=list)
    """The QuantizeLinear that makes it and each DequantizeLinear that reads it."""


_Way: TypeAlias = tuple[_Integers, ir.Node, int]
"""Integers, and the node and position of an input where they come in as floats."""


class _Ties:
    """Which integers need one scale, because of which nodes."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.known: dict[ir.Value, _Integers | None] = {}
        self.taken: dict[tuple[ir.Node, int], _Integers] = {}
        """Node that needs one scale and position of an input → the integers that it takes there."""
        self.given: list[tuple[_Integers, ir.Node, _Integers]] = []
        """Integers in whose scale a value comes to a QuantizeLinear, that node and what it makes."""
        self.first: dict[_Integers, _Integers] = {}

    def unify(self) -> bool:
        """Whether anything had to be changed."""
        for quantize in self.graph:
            if _is(quantize, "QuantizeLinear") and (made := self._integers(quantize.outputs[0])) is not None:
                self._tie(quantize, made)
        groups: dict[_Integers, list[_Integers]] = {}
        for one in self.first:
            groups.setdefault(self._root(one), []).append(one)
        wanted = {one: levels for group in groups.values() for levels in [_widest(group)] for one in group}
        modified = False
        for one, levels in wanted.items():
            if one.levels != levels and not one.held:
                _give(one, levels)
                modified = True
        for (user, at), source in self.taken.items():
            modified |= _between(user, at, source, wanted[source])
        for source, quantize, made in self.given:
            modified |= _between(quantize, 0, made, wanted[made] if source is made else source.levels)
        return modified

    # ---- what is tied

    def _tie(self, quantize: ir.Node, made: _Integers) -> None:
        value = quantize.inputs[0]
        assert value is not None
        moved, way = False, self._source(value)
        while way is None and (mover := self._mover(value)) is not None:
            assert mover.inputs[0] is not None
            moved, value = True, mover.inputs[0]
            way = self._source(value)
        if way is not None:
            if moved and way.dtype == made.dtype:
                self._join(way, made)
                self.given.append((way, quantize, made))
            return
        found = self._taken_by(value)
        if found and all(source.dtype == made.dtype for source, _, _ in found):
            for source, user, at in found:
                self._join(source, made)
                self.taken[user, at] = source
            self.given.append((made, quantize, made))

    def _taken_by(self, value: ir.Value) -> list[_Way]:
        """What the node that makes ``value`` takes, if it needs one scale and works on integers; else nothing."""
        maker = value.producer()
        floats = (not _is(user, "QuantizeLinear") and not self._moves(user) for user, _ in value.uses())
        if value.is_graph_output() or any(floats):
            return []
        if maker is not None and _is(maker, *_FUSED) and (inner := maker.inputs[0]) is not None and sole_use(inner):
            maker = inner.producer()
        if maker is None or not _is(maker, *TFLITE.same_scale):
            return []
        if maker.op_type == "Resize" and maker.attributes.get_string("mode", "nearest") == "cubic":
            return []
        found: list[_Way] = []
        for at in range(len(maker.inputs)) if maker.op_type in _ALL_INPUTS else (0,):
            operand = maker.inputs[at]
            while operand is not None and (mover := self._mover(operand)) is not None:
                operand = mover.inputs[0]
            source = None if operand is None else self._source(operand)
            if source is None:
                return []
            found.append((source, maker, at))
        return found

    def _mover(self, value: ir.Value) -> ir.Node | None:
        maker = value.producer()
        return maker if maker is not None and self._moves(maker) else None

    def _moves(self, maker: ir.Node) -> bool:
        if maker.op_type == "Resize" and maker.attributes.get_string("mode", "nearest") != "nearest":
            return False
        if maker.op_type == "Pad" and len(maker.inputs) > 2 and maker.inputs[2] is not None:
            fill = constant(maker.inputs[2])
            if fill is None or fill.any():
                return False
        if maker.op_type == "MaxPool" and len(maker.outputs) > 1:
            return False
        return _is(maker, *TFLITE.moving) and maker.inputs[0] is not None

    def _source(self, value: ir.Value) -> _Integers | None:
        """The integers that ``value`` is dequantized from."""
        dequantize = producer(value, "DequantizeLinear")
        return None if dequantize is None or dequantize.inputs[0] is None else self._integers(dequantize.inputs[0])

    def _integers(self, value: ir.Value) -> _Integers | None:
        """What stands behind ``value``; None where it has a scale for each channel, or several scales."""
        if value not in self.known:
            self.known[value] = self._read(value)
        return self.known[value]

    def _read(self, value: ir.Value) -> _Integers | None:
        users = [user for user, _ in value.uses()]
        readers = [user for user in users if _is(user, "DequantizeLinear") and user.graph is self.graph]
        maker = producer(value, "QuantizeLinear")
        ends = [*([] if maker is None else [maker]), *readers]
        found = {_levels(one) for one in ends}
        if len(found) != 1 or (levels := found.pop()) is None or value.dtype not in _ACTIVATIONS:
            return None
        assert value.dtype is not None
        made = None if maker is None or maker.inputs[0] is None else maker.inputs[0].producer()
        held = (
            len(readers) < len(users)
            or value.is_graph_output()
            or (maker is None and not is_constant(value))
            or (made is not None and _is(made, *TFLITE.fixed))
            # A constant that others read too, as a weight perhaps.
            or (is_constant(value) and not (len(readers) == 1 and sole_use(readers[0].outputs[0])))
        )
        return _Integers(value, levels, value.dtype, held, is_constant(value), ends)

    def _root(self, one: _Integers) -> _Integers:
        while (next_one := self.first.setdefault(one, one)) is not one:
            one = next_one
        return one

    def _join(self, one: _Integers, other: _Integers) -> None:
        self.first[self._root(other)] = self._root(one)


def _is(each: ir.Node, *ops: str) -> bool:
    return each.op_type in ops and not each.domain


def _levels(each: ir.Node) -> Levels | None:
    """Scale and zero point of a Quantize- or DequantizeLinear; None unless there is one of each, constant."""
    scale = constant(each.inputs[1])
    zero = np.zeros((), np.int32)
    if len(each.inputs) > 2 and each.inputs[2] is not None:
        given = constant(each.inputs[2])
        if given is None:
            return None
        zero = given.astype(np.int32)
    if scale is None or scale.size != 1 or zero.size != 1 or scale.dtype != np.float32:
        return None
    return Levels(float(scale.item()), int(zero.item()))


def _ends(levels: Levels, dtype: ir.DataType) -> tuple[float, float]:
    info = np.iinfo(dtype.numpy())
    return (info.min - levels.zero_point) * levels.scale, (info.max - levels.zero_point) * levels.scale


def _widest(group: Sequence[_Integers]) -> Levels:
    """Levels that reach as far as any of ``group``: those of one of them that does, else new ones.

    Integers that keep their levels come first, as what they are tied to then needs nothing in between.
    """
    dtype = group[0].dtype
    low = min(_ends(one.levels, dtype)[0] for one in group)
    high = max(_ends(one.levels, dtype)[1] for one in group)
    for one in sorted(group, key=lambda one: not one.held):
        reach = _ends(one.levels, dtype)
        if reach[0] <= low and high <= reach[1]:
            return one.levels
    info = np.iinfo(dtype.numpy())
    steps = info.max - info.min
    # One step less than there are: wherever zero falls between two integers, both ends are still reached.
    scale = np.nextafter(np.float32((high - low) / (steps - 1)), np.float32(np.inf))
    return Levels(float(scale), int(info.min + np.ceil(-low / float(scale))))


def _give(one: _Integers, levels: Levels) -> None:
    """Let the integers have ``levels``: in every node that makes or reads them, and in a constant itself."""
    if one.constant:
        before, dtype = one.levels, one.dtype.numpy()
        info = np.iinfo(dtype)

        def again(codes: Array) -> Array:
            means = (codes.astype(np.float64) - before.zero_point) * before.scale
            return np.asarray(np.clip(np.rint(means / levels.scale) + levels.zero_point, info.min, info.max), dtype)

        assert one.value.const_value is not None
        tensor = computed(one.value, again, one.value.const_value.shape.numpy())
        codes = initializer(one.ends[0], f"{one.value.name}_unified", tensor)
        for each in one.ends:
            rewire(each, 0, codes)
    ends = _level_constants(one.ends[0], levels, one.dtype, one.value.name or "")
    for each in one.ends:
        _set(each, 1, ends[0])
        _set(each, 2, ends[1])
    one.levels = levels


def _between(user: ir.Node, at: int, integers: _Integers, levels: Levels) -> bool:
    """Round what ``user`` takes to ``levels``, where that is not what ``integers`` have."""
    if integers.levels == levels:
        return False
    value = user.inputs[at]
    assert value is not None
    name = f"{value.name}_of_{user.name}_{at}"
    ends = _level_constants(user, levels, integers.dtype, name)
    quantize = node("QuantizeLinear", [value, *ends], like=user)
    codes = insert(user, quantize)
    quantize.name, codes.name = f"{name}_quantize", f"{name}_q"
    codes.dtype, codes.shape = integers.dtype, value.shape
    dequantize = node("DequantizeLinear", [codes, *ends], like=user)
    result = insert(user, dequantize, like=value)
    dequantize.name, result.name = f"{name}_dequantize", f"{name}_dq"
    rewire(user, at, result)
    return True


def _set(each: ir.Node, at: int, value: ir.Value) -> None:
    if len(each.inputs) <= at:
        each.resize_inputs(at + 1)
    rewire(each, at, value)


def _level_constants(near: ir.Node, levels: Levels, dtype: ir.DataType, name: str) -> tuple[ir.Value, ir.Value]:
    zero = np.array(levels.zero_point, dtype.numpy())
    return (
        initializer(near, f"{name}_scale", np.array(levels.scale, np.float32)),
        initializer(near, f"{name}_zero", zero),
    )


# ---- biases


def _correct_bias(each: ir.Node) -> bool:
    """Round the int32 bias of ``each`` again if its scale is not that of the products."""
    found = _bias(each)
    scales = None if found is None else _product_scales(each)
    if found is None or scales is None:
        return False
    user, at, bias = found
    codes, held = bias.inputs[0], constant(bias.inputs[1])
    if codes is None or codes.const_value is None or codes.dtype != ir.DataType.INT32 or held is None:
        return False
    zero = constant(bias.inputs[2]) if len(bias.inputs) > 2 else None
    integers = codes.const_value.numpy().astype(np.int64)
    # Those of a transposed convolution repeat with its groups.
    if (zero is not None and zero.any()) or integers.ndim != 1 or integers.size % scales.size:
        return False
    wanted = np.tile(scales, integers.size // scales.size)
    if np.array_equal(np.broadcast_to(held.reshape(-1), wanted.shape), wanted):
        return False
    means = (integers * held.reshape(-1).astype(np.float64)).astype(np.float32)
    if np.abs(means / wanted.astype(np.float64)).max(initial=0) >= 2**31:
        return False
    again = node(
        "DequantizeLinear",
        [
            initializer(bias, f"{codes.name}_again", quantize_bias(means, wanted)),
            initializer(bias, f"{codes.name}_again_scale", wanted),
        ],
        {"axis": 0},
        like=bias,
    )
    name = bias.outputs[0].name
    result = insert(bias, again, like=bias.outputs[0])
    again.name, result.name = f"{bias.name}_again_of_{user.name}", f"{name}_again_of_{user.name}"
    rewire(user, at, result)
    return True


def _bias(product: ir.Node) -> tuple[ir.Node, int, ir.Node] | None:
    """The node where the bias of ``product`` comes in, the position there and the DequantizeLinear that makes it."""
    if _is(product, "Conv", "ConvTranspose", "Gemm") and len(product.inputs) > 2:
        user, at = product, 2
    elif _is(product, "MatMul") and sole_use(product.outputs[0]):
        user, position = next(iter(product.outputs[0].uses()))
        at = 1 - position
        if not _is(user, "Add") or user.graph is not product.graph:
            return None
    else:
        return None
    bias = producer(user.inputs[at], "DequantizeLinear")
    return None if bias is None else (user, at, bias)


def _product_scales(product: ir.Node) -> NDArray[np.float32] | None:
    """The scales of the accumulator: those of the input times those of the weight. None if one is not known."""
    ends = [producer(value, "DequantizeLinear") for value in product.inputs[:2]]
    if ends[0] is None or ends[1] is None or (levels := _levels(ends[0])) is None:
        return None
    scales = constant(ends[1].inputs[1])
    if scales is None or scales.dtype != np.float32 or scales.ndim > 1:
        return None
    return np.asarray(scales, np.float32).reshape(-1) * np.float32(levels.scale)

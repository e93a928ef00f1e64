"""What the graph does with an input: indexes a table, masks, counts, or computes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget.lookups import counted_from_the_end

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from retarget.spec import TensorSpec

FREE = 9
"""Largest value of an integer input that the graph puts no bound to."""

_PASSING = frozenset(
    {
        "Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice",
        "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Ops whose first input's values arrive unchanged at their outputs (a Concat passes all of its inputs)."""

_MASKING = frozenset(["And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Where", "Xor"])
_SIZES = frozenset({("Expand", 1), ("Range", 0), ("Range", 1), ("Range", 2), ("Reshape", 1), ("Tile", 1), ("TopK", 1)})
"""(Op, input) that take an integer as a size or a count: 1 fits everywhere."""

_SIZES_OF_SEQUENCES = frozenset({("LSTM", 4), ("GRU", 4), ("RNN", 4)})
_AXIS_ZERO = frozenset({("Gather", 1), ("GatherElements", 1)})


@dataclass(frozen=True)
class Role:
    """Integers, and floats that are ``whole``, are drawn from ``low`` to ``high``, both included; a mask is ones, then
    zeros along its last axis."""

    low: int = 0
    high: int = FREE
    mask: bool = False
    whole: bool = False


def role(model: ir.Model | None, spec: TensorSpec) -> Role:
    """How input ``spec`` is used in ``model``; from its name and dtype alone where the graph does not say."""
    integer = spec.dtype.lstrip("u").startswith("int")
    named = "mask" in spec.name.lower()
    if spec.dtype == "bool" or (named and not integer):
        return Role(high=1, mask=True)
    value = next((one for one in model.graph.inputs if one.name == spec.name), None) if model is not None else None
    if not integer and (value is None or not _becomes_integers(value)):
        return Role()
    uses = _follow(value) if value is not None else _Uses()
    if uses.highest is not None:
        high = max(uses.highest, 0)
        return Role(low=min(max(uses.lowest, 0), high), high=high, whole=True)
    if not integer:
        return Role()
    if uses.counts:
        return Role(low=1, high=1)
    if spec.dtype == "uint8" and not named:
        return Role(high=255)
    if len(spec.shape) <= 1:
        # A length, a step of time, a class.
        return Role(low=1)
    return Role(high=1, mask=True) if named or uses.masks else Role()


@dataclass
class _Uses:
    lowest: int = 0
    highest: int | None = None
    """Largest index that is in range of every table; None when nothing is indexed."""
    masks: bool = False
    counts: bool = False

    def index(self, size: int, offset: int) -> None:
        top = size - 1 - offset
        self.highest = top if self.highest is None else min(self.highest, top)
        self.lowest = max(self.lowest, -offset)


def _follow(source: ir.Value) -> _Uses:
    """Walk from an input through ops that keep its values, plus a constant offset, to where they are used."""
    uses = _Uses()
    counted = _counted_from_the_end(source)
    queue = deque([(source, 0)])
    seen: set[tuple[int, int]] = set()
    while queue:
        value, offset = queue.popleft()
        if (id(value), offset) in seen:
            continue
        seen.add((id(value), offset))
        for size in counted.get(value, ()):
            uses.index(size, offset)
        for node, position in value.uses():
            if node.op_type in _PASSING and (position == 0 or node.op_type == "Concat"):
                uses.masks |= node.op_type == "Cast" and _to_float_or_bool(node)
                queue.extend((output, offset) for output in node.outputs)
            elif node.op_type in ("Add", "Sub") and (shift := _scalar(node.inputs[1 - position])) is not None:
                if node.op_type == "Add" or position == 0:
                    queue.append((node.outputs[0], offset + (shift if node.op_type == "Add" else -shift)))
            else:
                _use(node, position, offset, uses)
    return uses


def _becomes_integers(source: ir.Value) -> bool:
    """Whether nothing is done with a float input but to cast it to integers, as Keras does in front of an Embedding."""
    queue = deque([source])
    found = False
    while queue:
        value = queue.popleft()
        if value.is_graph_output():
            return False
        for node, position in value.uses():
            to = ir.DataType(node.attributes.get_int("to", 0)) if node.op_type == "Cast" else None
            if to is not None and to.is_integer():
                found = True
            elif node.op_type in _PASSING and (position == 0 or node.op_type == "Concat") and to != ir.DataType.BOOL:
                queue.extend(node.outputs)
            else:
                return False
    return found


def _counted_from_the_end(source: ir.Value) -> Mapping[ir.Value, Sequence[int]]:
    """The sizes of the tables that a value indexes, with the size added where it is negative."""
    found: dict[ir.Value, list[int]] = {}
    for node in source.graph.all_nodes() if source.graph is not None else ():
        table = node.inputs[0] if node.op_type == "Gather" else None
        size = None if table is None or table.shape is None else table.shape[node.attributes.get_int("axis", 0)]
        numbers = counted_from_the_end(node.inputs[1], size) if isinstance(size, int) else None
        if numbers is not None and isinstance(size, int):
            found.setdefault(numbers, []).append(size)
    return found


def _use(node: ir.Node, position: int, offset: int, uses: _Uses) -> None:
    key = (node.op_type, position)
    if key in _AXIS_ZERO:
        table = node.inputs[0]
        axis = node.attributes.get_int("axis", 0)
        if table is not None and table.shape is not None and isinstance(size := table.shape[axis], int):
            uses.index(size, offset)
    elif key == ("OneHot", 0):
        depth = _scalar(node.inputs[1])
        if depth is not None:
            uses.index(depth, offset)
    elif key == ("GatherND", 1):
        table = node.inputs[0]
        sizes = [size for size in (table.shape or ()) if isinstance(size, int)] if table is not None else []
        if sizes:
            uses.index(min(sizes), offset)
    elif key in _SIZES or key in _SIZES_OF_SEQUENCES or (node.op_type == "Slice" and position > 0):
        uses.counts = True
    elif node.op_type in _MASKING:
        uses.masks = True


def _to_float_or_bool(node: ir.Node) -> bool:
    to = ir.DataType(node.attributes.get_int("to", 0))
    return to == ir.DataType.BOOL or to.is_floating_point()


def _scalar(value: ir.Value | None) -> int | None:
    """The one integer that ``value`` holds for certain."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size != 1:
        return None
    array = np.asarray(tensor.numpy())
    return int(array.reshape(-1)[0]) if array.dtype.kind in "iuf" else None

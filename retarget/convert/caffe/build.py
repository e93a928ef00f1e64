"""What layers are lowered with: the graph under construction, and values that know their shape as Caffe has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retarget.convert.caffe.net import Layer
from retarget.errors import Unsupported

Shape: TypeAlias = tuple[int | str, ...]
"""A ``str`` is a symbolic dimension: the user may leave the batch, and at times more, open."""
Attribute: TypeAlias = "int | float | str | Sequence[int] | Sequence[float] | ir.TensorProtocol"


@dataclass(frozen=True)
class Value:
    """A blob in the graph that is being built."""

    value: ir.Value
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)


class Builder:
    """Adds nodes and constants to one graph; names are the layers', numbered where a layer makes several."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._prefix = ""
        self._count = 0

    def begin(self, layer: Layer) -> None:
        """What follows is made for ``layer``."""
        self._prefix, self._count = layer.name, 0

    def op(
        self,
        op_type: str,
        inputs: Sequence[Value | ir.Value | None],
        shape: Shape | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: Attribute,
    ) -> Value:
        """A node with one output of ``shape``; None: of the first input's."""
        return self.ops(op_type, inputs, [shape if shape is not None else _shape_of(inputs[0])], dtype, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[Value | ir.Value | None],
        shapes: Sequence[Shape],
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: Attribute,
    ) -> list[Value]:
        """A node with an output for each of ``shapes``."""
        name = self._name()
        outputs = [
            ir.Value(name=name if index == 0 else f"{name}_{index}", type=ir.TensorType(dtype), shape=ir.Shape(shape))
            for index, shape in enumerate(shapes)
        ]
        node = ir.node(
            op_type,
            [each.value if isinstance(each, Value) else each for each in inputs],
            attributes=attributes,
            outputs=outputs,
            name=name,
        )
        self._graph.append(node)
        return [Value(output, shape) for output, shape in zip(outputs, shapes, strict=True)]

    def constant(self, array: NDArray[np.generic]) -> Value:
        """An initializer."""
        value = ir.Value(name=self._name(), const_value=ir.tensor(array), shape=ir.Shape(array.shape))
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        self._graph.register_initializer(value)
        return Value(value, tuple(array.shape))

    def integers(self, *values: int) -> Value:
        """A constant of int64[len(values)]: axes, shapes, starts."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> Value:
        """A scalar float32 constant."""
        return self.constant(np.array(value, np.float32))

    def _name(self) -> str:
        self._count += 1
        return self._prefix if self._count == 1 else f"{self._prefix}/{self._count}"


def refuse(layer: Layer, reason: str, hint: str | None = None) -> Unsupported:
    """The error for a layer that has no exact form in ONNX, with its name and line."""
    return Unsupported(f"{layer.place}: {reason}", hint)


def static(layer: Layer, value: Value, axes: Sequence[int] | None = None) -> tuple[int, ...]:
    """The sizes of ``axes``, all of them by default. Raises ``Unsupported`` for an open dimension."""
    sizes = [value.shape[axis] for axis in (range(value.rank) if axes is None else axes)]
    for size in sizes:
        if not isinstance(size, int):
            raise refuse(layer, f"needs a fixed size where '{size}' is open", f"give `{size}` one size in `inputs`")
    return tuple(size for size in sizes if isinstance(size, int))


def _shape_of(value: Value | ir.Value | None) -> Shape:
    assert isinstance(value, Value)
    return value.shape

"""What layers are lowered with: the graph under construction, and values that know their shape as Caffe has it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from retarget.convert.caffe import blobs
from retarget.convert.caffe.net import Blob, Layer, Message
from retarget.errors import RetargetError, Unsupported, did_you_mean

Dimension: TypeAlias = int | str
"""A ``str`` is a symbolic dimension, or an expression of one: the user may leave the batch, and at times more, open."""
Shape: TypeAlias = tuple[Dimension, ...]
Attribute: TypeAlias = "int | float | str | Sequence[int] | Sequence[float] | ir.TensorProtocol | ir.Graph"


@dataclass(frozen=True)
class Value:
    """A blob in the graph that is being built."""

    value: ir.Value
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)


class Builder:
    """Adds nodes and constants to one graph, called ``<layer>/<operator>`` until the layer is done."""

    def __init__(self, graph: ir.Graph, reserved: Iterable[str] = ()) -> None:
        """``reserved``: names that no node's output and no constant may take, those of the graph's outputs."""
        self._graph = graph
        self._taken = {*reserved, *(value.name or "" for value in graph.inputs)}
        self._nodes: set[str] = set()
        self._finished: set[ir.Value] = set()
        self._prefix = self._place = ""

    def begin(self, layer: Layer) -> None:
        """What follows is made for ``layer``."""
        self._prefix, self._place = layer.name or layer.type, layer.place

    def finish(self, layer: Layer, tops: Mapping[str, Value]) -> None:
        """Call what ``layer`` made as Caffe does: values as its tops, or as itself where computed in place.

        Names that are taken are left to those who have them.
        """
        for top, made in tops.items():
            node, old = made.value.producer(), made.value.name or ""
            if node is None or made.value in self._finished:
                continue
            self._finished.add(made.value)
            for new in (top, layer.name):
                if new and new not in self._taken:
                    self._taken.remove(old)
                    self._taken.add(new)
                    made.value.name = new
                    break
            if layer.name and layer.name not in self._nodes:
                self._nodes.add(layer.name)
                node.name = layer.name

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
        outputs = [self._value(op_type, shape, dtype) for shape in shapes]
        node = ir.node(
            op_type,
            [each.value if isinstance(each, Value) else each for each in inputs],
            attributes=attributes,
            outputs=outputs,
            name=self._name(op_type, self._nodes),
        )
        self._graph.append(node)
        return [Value(output, shape) for output, shape in zip(outputs, shapes, strict=True)]

    def constant(self, array: NDArray[np.generic], what: str = "constant") -> Value:
        """An initializer, called ``<layer>/<what>``."""
        value = self._value(what, array.shape, ir.DataType.from_numpy(array.dtype))
        value.const_value = ir.tensor(array)
        self._graph.register_initializer(value)
        return Value(value, tuple(array.shape))

    def weight(self, layer: Layer, index: int, *shape: int) -> Value:
        """Blob ``index`` of ``layer`` in ``shape``, as ``weights`` gives it."""
        named = blobs.expected(layer)
        what = named[index].replace(" ", "_") if index < len(named) else f"blob_{index}"
        return self.constant(weights(layer, index, *shape), what)

    def integers(self, *values: int) -> Value:
        """A constant of int64[len(values)]: axes, shapes, starts."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> Value:
        """A scalar float32 constant."""
        with np.errstate(over="ignore"):
            return self.constant(np.array(value, np.float32))

    def reshape(self, value: Value, shape: Shape, dtype: ir.DataType = ir.DataType.FLOAT) -> Value:
        """``value`` in ``shape``: a copied dimension where an open one stays in its place, -1 for one that moves.

        Raises ``Unsupported`` if more than one moves.
        """
        if shape == value.shape:
            return value
        copied = [isinstance(dim, str) and value.shape[axis : axis + 1] == (dim,) for axis, dim in enumerate(shape)]
        target = [0 if copy else -1 if isinstance(dim, str) else dim for dim, copy in zip(shape, copied, strict=True)]
        if target.count(-1) > 1:
            raise Unsupported(
                f"{self._place}: reshapes {show(value.shape)} to {show(shape)}, more than one of them open",
                "give all dimensions but the first one size, as in --input or in `inputs` of the recipe",
            )
        return self.op("Reshape", [value, self.integers(*target)], shape, dtype)

    def output(self, blob: Value, name: str) -> None:
        """Make ``blob`` the graph's next output, called ``name``, which must be one of those reserved.

        Through an Identity where it is an input, a constant, or an output already.
        """
        value = blob.value
        if value.producer() is None or value.is_graph_output():
            value = self.op("Identity", [blob]).value
        value.name = name
        self._graph.outputs.append(value)

    def _value(self, what: str, shape: Shape, dtype: ir.DataType) -> ir.Value:
        return ir.Value(name=self._name(what, self._taken), type=ir.TensorType(dtype), shape=ir.Shape(shape))

    def _name(self, what: str, taken: set[str]) -> str:
        """``<layer>/<what>``, with the lowest number that makes it one of its own."""
        first = name = f"{self._prefix}/{what}"
        count = 1
        while name in taken:
            count += 1
            name = f"{first}_{count}"
        taken.add(name)
        return name


Lowering: TypeAlias = Callable[[Layer, Sequence[Value], Builder], Sequence[Value]]
"""What a layer type becomes: the layer and its bottoms to a value for each top, or more, of which the last are unused.

A family of layers is a module of ``layers`` with a table ``LAYERS`` from type to such functions.
"""


def refuse(layer: Layer, reason: str, hint: str | None = None) -> Unsupported:
    """The error for a layer that has no exact form in ONNX, with its name and line."""
    return Unsupported(f"{layer.place}: {reason}", hint or "replace the layer, or cut the net before it")


def wrong(layer: Layer, reason: str, hint: str | None = None) -> RetargetError:
    """The error for a layer that Caffe itself would not take."""
    return RetargetError(f"{layer.place}: {reason}", hint)


def exactly(layer: Layer, inputs: Sequence[Value], count: int) -> Sequence[Value]:
    """``inputs``. Raises ``RetargetError`` if they are not ``count``."""
    if len(inputs) != count:
        raise wrong(layer, f"takes {count} bottom{'s' if count != 1 else ''}, has {len(inputs)}")
    return inputs


def only(layer: Layer, inputs: Sequence[Value]) -> Value:
    """The one of ``inputs``. Raises ``RetargetError`` if there are more or none."""
    return exactly(layer, inputs, 1)[0]


def of_rank(layer: Layer, value: Value, rank: int) -> Value:
    """``value``. Raises ``RetargetError`` if it has not ``rank`` dimensions."""
    if value.rank != rank:
        raise wrong(layer, f"needs a bottom of {rank} dimensions, has one of {value.rank}")
    return value


def choice(layer: Layer, parameters: Message, field: str, names: Sequence[str], default: str) -> str:
    """The value of the enum ``field``; ``names``: its values as numbered. Raises ``RetargetError`` for another."""
    word = parameters.word(field, default)
    name = names[int(word)] if word.isdecimal() and int(word) < len(names) else word
    if name not in names:
        raise wrong(layer, f"{field} is {word}", did_you_mean(word, names))
    return name


def alike(layer: Layer, *shapes: Sequence[Dimension], but: int | None = None) -> None:
    """Raise unless ``shapes`` are the same, axis ``but`` aside.

    A size beside an open dimension is ``Unsupported``: ONNX would broadcast where Caffe refuses. Two open ones that
    are called differently may be the same.
    """
    listed = " and ".join(show(shape) for shape in shapes)
    for other in shapes[1:]:
        if len(other) != len(shapes[0]):
            raise wrong(layer, f"its bottoms differ: {listed}")
        for axis, (here, there) in enumerate(zip(shapes[0], other, strict=True)):
            if axis == but or here == there or (isinstance(here, str) and isinstance(there, str)):
                continue
            if isinstance(here, int) and isinstance(there, int):
                raise wrong(layer, f"its bottoms differ: {listed}")
            raise refuse(layer, f"its bottoms differ: {listed}", _give(here if isinstance(here, str) else str(there)))


def static(layer: Layer, value: Value, axes: Sequence[int] | None = None) -> tuple[int, ...]:
    """The sizes of ``axes``, all of them by default. Raises ``Unsupported`` for an open dimension."""
    if axes is not None and any(not -value.rank <= axis < value.rank for axis in axes):
        raise wrong(layer, f"a bottom of {show(value.shape)} has too few dimensions")
    sizes = [value.shape[axis] for axis in (range(value.rank) if axes is None else axes)]
    for size in sizes:
        if not isinstance(size, int):
            raise refuse(layer, f"needs a fixed size where '{symbol(size)}' is open", _give(size))
    return tuple(size for size in sizes if isinstance(size, int))


def weights(layer: Layer, index: int, *shape: int) -> Blob:
    """Blob ``index`` in ``shape``, whatever the shape that it was saved in (4-D with leading ones, where old).

    Raises ``RetargetError`` where it is missing or has another number of elements.
    """
    if index >= len(layer.blobs):
        raise wrong(
            layer,
            f"needs {index + 1} weight blob{'s' if index else ''}, the caffemodel has {len(layer.blobs)} for it",
            "give the caffemodel that belongs to this prototxt; layers are matched by name",
        )
    blob = layer.blobs[index]
    if blob.size != math.prod(shape):
        raise wrong(
            layer,
            f"weight blob {index} has {show(blob.shape)}, the net needs {show(shape)}",
            "give the caffemodel that belongs to this prototxt, and the input size that it was trained for",
        )
    return blob.reshape(shape)


def canonical_axis(layer: Layer, axis: int, rank: int) -> int:
    """``axis`` counted from the front. Raises ``RetargetError`` if there is no such axis."""
    if not -rank <= axis < rank:
        raise wrong(layer, f"axis {axis} of a blob of {rank} dimension{'s' if rank != 1 else ''}")
    return axis % rank


def product(dims: Iterable[Dimension]) -> Dimension:
    """The product of ``dims``; an expression such as ``N*4`` if one of them is open."""
    size, symbols = 1, []
    for dim in dims:
        if isinstance(dim, int):
            size *= dim
        else:
            symbols.append(dim if dim.isidentifier() else f"({dim})")
    if not symbols or size == 0:
        return size
    return "*".join([*symbols, *([str(size)] if size != 1 else [])])


def symbol(dim: str) -> str:
    """The user's symbol in an expression, such as H in ``(H - 1)//2 + 1``; several are joined by commas."""
    return ", ".join(dict.fromkeys(name for name in re.findall(r"[A-Za-z_]\w*", dim) if name != "min"))


def _give(dim: str) -> str:
    return f"give '{symbol(dim)}' one size, as in --input or in `inputs` of the recipe"


def show(shape: Sequence[Dimension]) -> str:
    """``[N,3,224,224]``."""
    return f"[{','.join(map(str, shape))}]"


def _shape_of(value: Value | ir.Value | None) -> Shape:
    assert isinstance(value, Value)
    return value.shape

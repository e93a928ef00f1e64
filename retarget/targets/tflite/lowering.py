"""Walk an ONNX graph and write each node as TFLite operators.

An op function (``ops``) gets a `Call`: it thinks in ONNX's axes and floats. In which layout the values are stored, and
whether as floats or as the integers behind them, is the affair of `Call.emit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from retarget import graph
from retarget.errors import ToolchainFailure
from retarget.protocols import EmitJob
from retarget.session import Session
from retarget.targets import legal
from retarget.targets.tflite import fusing
from retarget.targets.tflite.arrangement import steps
from retarget.targets.tflite.layout import (
    FIRST_AXES,
    Arranged,
    Layout,
    Way,
    Wish,
    between,
    order,
    rejoins,
    stays,
    stored,
)
from retarget.targets.tflite.movement import Movement, Step
from retarget.targets.tflite.program import (
    Activation,
    Codes,
    Constant,
    Operator,
    Options,
    Program,
    Quantization,
    Shape,
    Tensor,
)

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

NARROW = {"int64": "int32", "uint32": "int32", "uint64": "int32", "float64": "float32"}
"""Types that are computed in a narrower one; constants are held against it, and the runner holds inputs against it."""

TYPES = frozenset({"float32", "int32", "int8", "uint8", "int16", "bool"})
"""Types of computed values, after narrowing."""

LARGE = 1 << 24
"""Constants of more bytes are folded when they are written, not before."""

MOST_AXES = 8
"""Most kernels take no more, and some end the process where there are."""

WEIGHTS = 16
"""Constants of at least so many elements are stored as float16 where the precision is that."""


class Refusal(Exception):
    """Why a node cannot be taken."""


@dataclass(eq=False)
class Value:
    """A computed value, its shape in ONNX's order of axes."""

    shape: Shape
    dtype: np.dtype[np.generic]
    """Of the value itself: float32 also where integers stand for it."""
    quantization: Quantization | None = None
    """Where integers stand for it: what they mean."""
    forms: dict[tuple[Layout, bool], Tensor] = field(default_factory=dict)
    """The tensors that hold it, by layout and by whether they hold the integers."""
    image: Shape | None = None
    """Of rows that were flattened with the channels last: [channels, ...] of what they were. LAST is that order."""
    is_counted: bool = False
    """Whether its first axis is only as long as the data make it; ``shape`` then has the most that it can be."""

    def counted(self) -> Self:
        """This value, with a first axis as long as the data make it."""
        self.is_counted = True
        for tensor in self.forms.values():
            tensor.open_axes = (0,)
        return self

    @property
    def rank(self) -> int:
        return len(self.shape)


Operand: TypeAlias = Value | Constant
Result: TypeAlias = Value | Constant | None
Int8: TypeAlias = Literal["no", "moves", "computes", "reads"]
"""What an op function can do with the integers behind its operands. ``moves``: its results are among its operands'
values, all of one quantization. ``computes``: the kernel rounds its result to what the QuantizeLinear behind it says.
``reads``: its result is no float, and the same for integers of one quantization."""


@dataclass(frozen=True)
class Op:
    """How an ONNX operator is lowered."""

    lower: Callable[[Call], Result | Sequence[Result]]
    way: Way | Callable[[ir.Node], Way] = Way.FIRST
    operands: tuple[int, ...] | None = None
    """Those that are stored in the node's layout, None for all; others are stored as ONNX has them."""
    dtypes: frozenset[str] = frozenset({"float32"})
    """What the first operand may be, after narrowing."""
    fuses: bool = False
    """Whether the activation function behind the node is written into it (`Call.activation`)."""
    biased: Callable[[Call], bool] | bool = False
    """Whether a row that is added behind the node is, too (`Call.bias`)."""
    int8: Int8 | Callable[[Call], Int8] = "no"
    fixed: Quantization | None = None
    """The only quantization that the int8 kernel gives its result."""
    int16: bool = True
    """Whether what ``int8`` says holds for integers of 16 bits, too."""

    def wish(self, node: ir.Node) -> Wish:
        return Wish(self.way if isinstance(self.way, Way) else self.way(node), self.operands)


@dataclass(eq=False)
class Lowering:
    """One run over a graph. Sizes of symbolic dimensions are ``sizes``, and all shapes are concrete."""

    model: ir.Model
    job: EmitJob
    sizes: Mapping[str, int]
    ops: Mapping[str, Op]
    arrangement: Mapping[ir.Node, Arranged]
    border: Mapping[str, Layout]
    program: Program = field(default_factory=Program)
    refusals: list[legal.Refusal] = field(default_factory=list)
    env: dict[ir.Value, Operand | None] = field(default_factory=dict)
    """None: of a node that was refused, and so unknown."""
    constants: dict[object, Tensor] = field(default_factory=dict)
    done: set[ir.Node] = field(default_factory=set)
    """Nodes that were written into others."""
    halves: dict[Hashable, bool] = field(default_factory=dict)
    """Constants by their keys: whether float16 holds them. Runs over one model share it."""

    def run(self) -> Program:
        """The program; what could not be taken stands in ``refusals``, and the program is then not whole."""
        for value in self.model.graph.inputs:
            self._input(value)
        self.done.update(each for node, how in self.arrangement.items() for each in how.moving if each is not node)
        self.walk(self.model.graph)
        if not self.refusals:
            for value in self.model.graph.outputs:
                self._output(value)
        self.program = self.program.without_unused()
        return self.program

    # ---- nodes

    def walk(self, nodes: ir.Graph) -> list[Operand | None]:
        """Write a graph's nodes here. Its outputs are None where they hang on what was refused."""
        for value in nodes.initializers.values():
            if value.const_value is not None:
                self.env[value] = constant_of(value.const_value)
        for node in nodes:
            if node not in self.done:
                self._node(node)
        return [self.env.get(value) for value in nodes.outputs]

    def _node(self, node: ir.Node) -> None:
        name = legal.operator(node)
        if name == "Constant" and (tensor := ir.convenience.get_const_tensor(node.outputs[0])) is not None:
            self.env[node.outputs[0]] = constant_of(tensor)
            return
        op = self.ops.get(name)
        if op is None:
            self._refuse(node, "there is no such operator in the target")
            return
        if moving := self.arrangement.get(node, Arranged()).moving:
            self._move(node, op, moving)
            return
        operands = [None if value is None else self.env[value] for value in node.inputs]
        if any(value is not None and operand is None for value, operand in zip(node.inputs, operands, strict=True)):
            # What it needs was refused: nothing can be said of it but what its own types say.
            self._forget(node)
            return
        call = Call(self, node, op, tuple(operands))
        try:
            results = _fold(node, operands) if all(isinstance(each, Constant) for each in operands if each) else None
            if results is None:
                call.check_types()
                made = op.lower(call)
                results = list(made) if isinstance(made, Sequence) else [made]
        except Refusal as refusal:
            self._refuse(node, str(refusal))
            return
        self.done.update(call.absorbed)
        for value, result in zip(call.tail.outputs, results, strict=False):
            self._bind(value, result)

    def _move(self, node: ir.Node, op: Op, moving: Sequence[ir.Node]) -> None:
        """Write Reshapes and Transposes as one, of which ``node`` is the last."""
        source, taken = moving[0].inputs[0], steps(moving, self.sizes)
        operand = None if source is None else self.env[source]
        if operand is None:
            self._forget(node)
            return
        assert taken is not None, "shapes that are known at one size are known at all"
        if isinstance(operand, Constant):
            for kind, numbers in taken:
                operand = operand.reshaped(numbers) if kind == "reshape" else operand.transposed(numbers)
            self._bind(node.outputs[0], operand)
            return
        call = Call(self, node, op, (operand,))
        try:
            call.check_types()
        except Refusal as refusal:
            self._refuse(node, str(refusal))
            return
        self._bind(node.outputs[0], call.move(operand, taken))

    def _bind(self, value: ir.Value, result: Result) -> None:
        if result is None:
            if value.uses() or value.is_graph_output():
                raise AssertionError(f"'{value.name}' is used, and nothing was made for it")
            return
        declared = graph.static_shape(value, self.sizes)
        if declared is not None and declared != result.shape:
            raise AssertionError(f"'{value.name}' is {result.shape}, and ONNX has {declared}")
        if isinstance(result, Value):
            for (layout, codes), tensor in result.forms.items():
                if tensor.value is None and not tensor.name:
                    tensor.value, tensor.layout = value.name, layout.value
                    del codes
        self.env[value] = result

    def _refuse(self, node: ir.Node, reason: str) -> None:
        self.refusals.append(legal.refusal(node, reason))
        self._forget(node)

    def _forget(self, node: ir.Node) -> None:
        """Take for the outputs of ``node`` what ONNX says of them, so that what follows is judged too."""
        for value in node.outputs:
            shape = graph.static_shape(value, self.sizes)
            name = NARROW.get(graph.dtype_name(value.dtype), graph.dtype_name(value.dtype))
            if shape is None or name not in TYPES:
                self.env[value] = None
            else:
                self.env[value] = self.new(shape, np.dtype(name), Layout.FIRST)

    # ---- the border

    def _input(self, value: ir.Value) -> None:
        name = value.name or ""
        shape = graph.static_shape(value, self.sizes)
        own = graph.dtype_name(value.dtype)
        dtype = NARROW.get(own, own)
        if shape is None or dtype not in TYPES:
            self.refusals.append((name, "input", f"TFLite has no inputs of {own}"))
            self.env[value] = None
            return
        layout = self.border.get(name, Layout.FIRST)
        quantization = self.quantized_by(value) if self.job.io in ("int8", "int16") and dtype == "float32" else None
        made = self.new(shape, np.dtype(dtype), layout, quantization)
        (tensor,) = made.forms.values()
        tensor.name, tensor.value, tensor.layout = name, name, layout.value
        self.program.inputs[name] = tensor
        self.env[value] = made

    def _output(self, value: ir.Value) -> None:
        name = value.name or ""
        held = self.env[value]
        assert held is not None
        if isinstance(held, Constant):
            held = self.computed(held)
        layout = self.border.get(name, Layout.FIRST)
        codes = self.job.io in ("int8", "int16") and held.quantization is not None
        tensor = self.form(held, layout, codes=codes)
        taken = {*self.program.inputs.values(), *self.program.outputs.values()}
        if tensor in taken or tensor.constant is not None:
            copy = Tensor(tensor.shape, tensor.dtype, quantization=tensor.quantization, open_axes=tensor.open_axes)
            sizes = (-1, *tensor.shape[1:]) if held.is_counted else tensor.shape
            self.add("RESHAPE", (tensor, self.ints(sizes)), copy, Options("ReshapeOptions"), f"output {name}")
            tensor = copy
        tensor.name, tensor.value, tensor.layout = name, name, layout.value
        self.program.outputs[name] = tensor

    def quantized_by(self, value: ir.Value) -> Quantization | None:
        """What every use of ``value`` quantizes it to; None where they differ or one takes it as it is."""
        found: set[Quantization] = set()
        for use in value.uses():
            quantization = quantization_of(use.node) if use.node.op_type == "QuantizeLinear" and use.idx == 0 else None
            if quantization is None:
                return None
            found.add(quantization)
        return found.pop() if len(found) == 1 and not value.is_graph_output() else None

    # ---- tensors

    def new(
        self,
        shape: Shape,
        dtype: np.dtype[np.generic],
        layout: Layout,
        quantization: Quantization | None = None,
        image: Shape | None = None,
    ) -> Value:
        """A value that nothing has written yet, as floats or, with ``quantization``, as integers."""
        layout = layout if len(shape) >= FIRST_AXES or image is not None else Layout.FIRST
        kind = dtype if quantization is None else self.integers
        tensor = Tensor(stored(shape, layout), kind, quantization=quantization, layout=layout.value)
        return Value(shape, dtype, quantization, {(layout, quantization is not None): tensor}, image)

    @property
    def integers(self) -> np.dtype[np.generic]:
        """The type of the integers that stand for activations."""
        return np.dtype(np.int16 if self.job.precision == "int16x8" else np.int8)

    def form(self, value: Value, layout: Layout, *, codes: bool = False) -> Tensor:
        """The tensor that holds ``value`` in ``layout``, made of another one where there is none yet."""
        if value.rank < FIRST_AXES and value.image is None:
            layout = Layout.FIRST
        wanted = (layout, codes)
        if wanted not in value.forms:
            if (layout, not codes) in value.forms:
                value.forms[wanted] = self._recoded(value, value.forms[layout, not codes], codes=codes)
            else:
                source = next((key for key in value.forms if key[1] == codes), next(iter(value.forms)))
                if source[1] != codes:
                    value.forms[source[0], codes] = self._recoded(value, value.forms[source], codes=codes)
                value.forms[wanted] = self._turned(value, value.forms[source[0], codes], source[0], layout)
        return value.forms[wanted]

    def _recoded(self, value: Value, tensor: Tensor, *, codes: bool) -> Tensor:
        made = Tensor(
            tensor.shape,
            self.integers if codes else value.dtype,
            quantization=value.quantization if codes else None,
            value=tensor.value,
            layout=tensor.layout,
        )
        assert value.quantization is not None
        code, table = ("QUANTIZE", "QuantizeOptions") if codes else ("DEQUANTIZE", "DequantizeOptions")
        return self.add(code, (tensor,), made, Options(table), tensor.value or "")

    def _turned(self, value: Value, tensor: Tensor, source: Layout, layout: Layout) -> Tensor:
        if value.image is not None:
            return self._unflattened(value, tensor, layout)
        made = Tensor(
            stored(value.shape, layout),
            tensor.dtype,
            quantization=tensor.quantization,
            value=tensor.value,
            layout=layout.value,
        )
        # perm of the Transpose from the order that is stored to the one that is wanted
        perm = tuple(order(source, value.rank).index(axis) for axis in order(layout, value.rank))
        return self.transposed(tensor, perm, made)

    def _unflattened(self, value: Value, tensor: Tensor, layout: Layout) -> Tensor:
        assert value.image is not None
        assert layout is Layout.FIRST, "rows are flattened with the channels last where they are made"
        channels, *spatial = value.image
        last = (value.shape[0], *spatial, channels)
        image = Tensor(last, tensor.dtype, quantization=tensor.quantization)
        self.add("RESHAPE", (tensor, self.ints(last)), image, Options("ReshapeOptions"), tensor.value or "")
        turned = Tensor((value.shape[0], channels, *spatial), tensor.dtype, quantization=tensor.quantization)
        rank = len(last)
        self.transposed(image, (0, rank - 1, *range(1, rank - 1)), turned)
        rows = Tensor(value.shape, tensor.dtype, quantization=tensor.quantization, value=tensor.value)
        return self.add("RESHAPE", (turned, self.ints(value.shape)), rows, Options("ReshapeOptions"), "")

    def transposed(self, tensor: Tensor, perm: Sequence[int], made: Tensor) -> Tensor:
        """Write ``made``, which is ``tensor`` with its axes as ``perm`` says; without moving data where none moves."""
        if stays(tensor.shape, perm):
            shape = self.ints(made.shape)
            return self.add("RESHAPE", (tensor, shape), made, Options("ReshapeOptions"), made.value or "")
        return self.add("TRANSPOSE", (tensor, self.ints(perm)), made, Options("TransposeOptions"), made.value or "")

    def constant(self, constant: Constant, *, halved: bool = True) -> Tensor:
        """The tensor of ``constant``, one for all equal constants; with precision fp16 float16, widened when loaded.

        ``halved``: whether the kernel takes what was widened, which is no constant to it.
        """
        key = (constant.key, constant.shape, halved)
        if key not in self.constants:
            narrowed = narrow(constant)
            if halved and self._is_halved(narrowed):
                half = Tensor(narrowed.shape, np.dtype(np.float16), constant=narrowed.cast("float16"))
                wide = Tensor(narrowed.shape, narrowed.dtype)
                self.constants[key] = self.add("DEQUANTIZE", (half,), wide, Options("DequantizeOptions"), "")
            else:
                self.constants[key] = Tensor(narrowed.shape, narrowed.dtype, constant=narrowed)
        return self.constants[key]

    def codes(self, codes: Codes, bits: str = "int8") -> Tensor:
        """The tensor of a constant's integers, with what they mean."""
        key = (codes.integers.key, codes.quantization, bits)
        if key not in self.constants:
            integers = codes.integers.cast(bits)
            self.constants[key] = Tensor(
                integers.shape, integers.dtype, quantization=codes.quantization, constant=integers
            )
        return self.constants[key]

    def computed(self, constant: Constant) -> Value:
        """``constant`` where an operator takes it as it takes a computed value."""
        return Value(constant.shape, narrow(constant).dtype, None, {(Layout.FIRST, False): self.constant(constant)})

    def ints(self, numbers: Sequence[int]) -> Tensor:
        """A constant of one axis, int32: axes, sizes, permutations."""
        return self.constant(Constant.of(list(numbers), "int32"))

    def _is_halved(self, constant: Constant) -> bool:
        if self.job.precision != "fp16" or constant.dtype != np.float32 or constant.size < WEIGHTS:
            return False
        if constant.key not in self.halves:
            self.halves[constant.key] = bool(np.all(np.abs(constant.array()) <= np.finfo(np.float16).max))
        return self.halves[constant.key]

    def add(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        output: Tensor | Sequence[Tensor],
        options: Options | None,
        origin: str,
    ) -> Tensor:
        """Append an operator; returns its (first) output."""
        outputs = (output,) if isinstance(output, Tensor) else tuple(output)
        self.program.operators.append(Operator(code, tuple(inputs), outputs, options, origin))
        return outputs[0]


@dataclass(eq=False)
class Call:
    """One ONNX node as its op function sees it."""

    lowering: Lowering
    node: ir.Node
    op: Op
    operands: tuple[Operand | None, ...]

    # ---- what there is

    @cached_property
    def layout(self) -> Layout:
        """How the values that it works on are stored."""
        return self.lowering.arrangement.get(self.node, Arranged()).operands

    @cached_property
    def results(self) -> Layout:
        """How its results are to be stored: as its operands are, except by nodes that are about the order of axes."""
        return self.lowering.arrangement.get(self.node, Arranged()).results

    @property
    def attributes(self) -> ir._graph_containers.Attributes:
        return self.node.attributes

    def has(self, index: int) -> bool:
        """Whether operand ``index`` is given."""
        return index < len(self.operands) and self.operands[index] is not None

    def operand(self, index: int) -> Operand:
        operand = self.operands[index] if index < len(self.operands) else None
        if operand is None:
            raise Refusal(f"operand {index} is missing")
        return operand

    def value(self, index: int) -> Value:
        """Operand ``index`` as a computed value, also where it is constant."""
        operand = self.operand(index)
        return self.lowering.computed(operand) if isinstance(operand, Constant) else operand

    def fixed(self, index: int, what: str) -> Constant:
        """Operand ``index``, which must be constant; ``what`` it is, in words."""
        operand = self.operand(index)
        if not isinstance(operand, Constant):
            raise Refusal(f"{what} is computed: only a constant can be written")
        return operand

    def array(self, index: int, what: str) -> Array:
        """The numbers of a small constant operand."""
        return self.fixed(index, what).array()

    def numbers(self, index: int, what: str) -> list[int]:
        """The integers of a constant operand."""
        return [int(number) for number in self.array(index, what).reshape(-1)]

    @cached_property
    def _added(self) -> tuple[ir.Node, Constant] | None:
        """The Add behind the node, and the row that it adds, where the kernel can do that."""
        found = fusing.addition(self.node) if self._is_biased else None
        if found is None:
            return None
        reader, value = found
        row, out = self.lowering.env.get(value), graph.static_shape(self.node.outputs[0], self.lowering.sizes)
        if not isinstance(row, Constant) or not out or row.shape != (*(1,) * (len(row.shape) - 1), out[-1]):
            return None
        return None if len(row.shape) > len(out) else (reader, row.reshaped((out[-1],)))

    @property
    def _is_biased(self) -> bool:
        return self.op.biased if isinstance(self.op.biased, bool) else self.op.biased(self)

    @property
    def bias(self) -> Constant | None:
        """The row that the kernel is to add to its result."""
        return None if self._added is None else self._added[1]

    @cached_property
    def absorbed(self) -> tuple[ir.Node, ...]:
        """The nodes behind this one that are written into it, in their order."""
        added = () if self._added is None else self._added[:1]
        function = fusing.activation(added[0] if added else self.node) if self.op.fuses else None
        return added if function is None else (*added, function)

    @property
    def tail(self) -> ir.Node:
        """The last of the ONNX nodes that are written here."""
        return self.absorbed[-1] if self.absorbed else self.node

    @property
    def activation(self) -> Activation:
        """The function that the kernel is to apply to its result."""
        return (self.absorbed and fusing.activation_of(self.tail)) or "NONE"

    @cached_property
    def quantization(self) -> Quantization | None:
        """What the QuantizeLinear behind the node rounds its first result to; None where there is none."""
        return self.lowering.quantized_by(self.tail.outputs[0])

    @cached_property
    def able(self) -> Int8:
        """What the op function can do with the integers behind this node's operands."""
        return self.op.int8(self) if callable(self.op.int8) else self.op.int8

    @cached_property
    def int8(self) -> bool:
        """Whether this node works on the integers behind its operands (of 8 bits, or 16)."""
        if self.able == "no" or (self.lowering.job.precision == "int16x8" and not self.op.int16):
            return False
        found: set[Quantization] = set()
        for operand in self.operands:
            if isinstance(operand, Value) and operand.dtype == np.float32:
                if operand.quantization is None:
                    return False
                found.add(operand.quantization)
        if not found:
            return False
        if self.able == "computes":
            wanted = self.quantization
            return wanted is not None and (self.op.fixed is None or wanted == self.op.fixed)
        return len(found) == 1

    def check_types(self) -> None:
        """Raise ``Refusal`` for operands of types that the kernels do not take."""
        for index, operand in enumerate(self.operands):
            if operand is None:
                continue
            name = NARROW.get(operand.dtype.name, operand.dtype.name)
            if name not in TYPES and operand.dtype != ml_dtypes.bfloat16:
                raise Refusal(f"operand {index} is {operand.dtype.name}, which TFLite does not compute with")
            if index == 0 and name not in self.op.dtypes:
                raise Refusal(f"{operand.dtype.name} is not among {', '.join(sorted(self.op.dtypes))}")

    # ---- axes

    def position(self, axis: int, rank: int) -> int:
        """Where ONNX's ``axis`` (which may count from the end) of a value of ``rank`` axes is stored."""
        return order(self.layout, rank).index(axis % rank)

    def placed(self, per_axis: Sequence[int]) -> list[int]:
        """Numbers, one for each axis in ONNX's order, in the order that is stored."""
        return list(stored(per_axis, self.layout))

    def ints(self, numbers: Sequence[int]) -> Tensor:
        """A constant of one axis, int32."""
        return self.lowering.ints(numbers)

    # ---- writing

    def emit(
        self,
        code: str,
        inputs: Sequence[Operand | Array | float | Tensor | None],
        shape: Sequence[int],
        dtype: np.dtype[np.generic] | type[np.generic] | None = None,
        options: Options | None = None,
        *,
        layout: Layout | None = None,
    ) -> Value:
        """Write one operator with one result of ``shape``, in ONNX's order of axes.

        Constants and values of fewer axes than the result are aligned as ONNX broadcasts them. A float result of a node
        that works on integers is rounded as the node's own.
        """
        tensors = [self.tensor(each, len(shape), layout) for each in inputs]
        result = self.result(shape, dtype or self._dtype(inputs), layout)
        (made,) = result.forms.values()
        self.lowering.add(code, tensors, made, options, self.node.name or "")
        return result.counted() if any(isinstance(each, Value) and each.is_counted for each in inputs) else result

    def result(
        self, shape: Sequence[int], dtype: np.dtype[np.generic] | type[np.generic], layout: Layout | None = None
    ) -> Value:
        """A value that this node writes: integers where it works on them, see ``emit``."""
        _limit(len(shape))
        quantization = None
        if self.int8 and np.dtype(dtype) == np.float32:
            quantization = self.quantization if self.able == "computes" else self.moved
        # Rows that are flattened with the channels last stay so: what writes them works on each element alone.
        images = (each.image for each in self.operands if isinstance(each, Value) and each.shape == tuple(shape))
        layout = layout or self.results
        image = next(images, None) if layout is Layout.LAST else None
        return self.lowering.new(tuple(shape), np.dtype(dtype), layout, quantization, image)

    @property
    def moved(self) -> Quantization:
        """What the integers mean that this node moves."""
        return next(each.quantization for each in self.operands if isinstance(each, Value) and each.quantization)

    def tensor(
        self, operand: Operand | Array | float | Tensor | None, rank: int | None = None, layout: Layout | None = None
    ) -> Tensor | None:
        """The tensor that an operator of this node reads ``operand`` from, next to others of ``rank`` axes."""
        layout = layout or self.layout
        match operand:
            case None | Tensor():
                return operand
            case Value():
                _limit(operand.rank)
                rank = operand.rank if rank is None else rank
                is_last = layout is Layout.LAST and rank >= FIRST_AXES
                if is_last and operand.rank < rank and math.prod(operand.shape) != 1:
                    operand = self.reshape(operand, (1,) * (rank - operand.rank) + operand.shape, layout=Layout.FIRST)
                codes = self.int8 and operand.quantization is not None
                return self.lowering.form(operand, layout, codes=codes)
            case Constant():
                return self._constant(operand, len(operand.shape) if rank is None else rank, layout)
            case _:
                kind = None if isinstance(operand, np.ndarray | np.generic) else "float32"
                return self._constant(Constant.of(operand, kind), np.ndim(operand) if rank is None else rank, layout)

    def _constant(self, constant: Constant, rank: int, layout: Layout) -> Tensor:
        def aligned(of: Constant) -> Constant:
            if layout is Layout.FIRST or of.size == 1 or rank < FIRST_AXES:
                return of
            full = of.reshaped((1,) * (rank - len(of.shape)) + of.shape)
            return full.transposed(order(layout, rank))

        if self.int8 and constant.codes is not None:
            codes = constant.codes
            if codes.quantization.per_channel:
                raise Refusal("a constant operand has a scale for each channel, and the kernel takes one")
            return self.lowering.codes(Codes(aligned(codes.integers), codes.quantization), self.lowering.integers.name)
        return self.lowering.constant(aligned(constant))

    def _dtype(self, inputs: Sequence[object]) -> np.dtype[np.generic]:
        for each in inputs:
            if isinstance(each, Value):
                return each.dtype
        return narrow(next(each for each in inputs if isinstance(each, Constant))).dtype

    # ---- what many op functions need

    def reshape(self, value: Value, shape: Sequence[int], *, layout: Layout | None = None) -> Value:
        """``value`` with another shape, in the node's layouts where they allow it, as ONNX has it otherwise."""
        to = tuple(shape)
        if to == value.shape:
            return value
        read, written = layout or self.layout, layout or self.results
        if value.image is not None or not rejoins(value.shape, read, to, written):
            read = written = Layout.FIRST
        kept = value.quantization if self.int8 else None
        made = self.lowering.new(to, value.dtype, written, kept)
        (tensor,) = made.forms.values()
        source = self.lowering.form(value, read, codes=kept is not None)
        options = Options("ReshapeOptions")
        sizes = (-1, *to[1:]) if value.is_counted else tensor.shape
        self.lowering.add("RESHAPE", (source, self.ints(sizes)), tensor, options, self.node.name or "")
        return made.counted() if value.is_counted else made

    def move(self, value: Value, taken: Sequence[Step]) -> Value:
        """``value`` after Reshapes and Transposes, in the node's layouts: no more than one TRANSPOSE is written."""
        movement = Movement.of(value.shape, taken)
        if movement is None:
            for kind, to in taken:
                value = self.reshape(value, to, layout=Layout.FIRST) if kind == "reshape" else self.transpose(value, to)
            return value
        lowering, kept = self.lowering, value.quantization if self.int8 else None
        shape, image = movement.shape(movement.result), None
        if movement.image is not None and self.results is Layout.LAST:
            *behind, channels = movement.shape(movement.image)[1:]
            image = (channels, *behind)
        source = lowering.form(value, self.layout, codes=kept is not None)
        made = lowering.new(shape, value.dtype, self.results, kept, image)
        ((form, tensor),) = made.forms.items()
        if (route := movement.route(self.layout, self.results)) is not None:
            seen, perm = route
            turned = Tensor(tuple(movement.shape(seen)[axis] for axis in perm), source.dtype, quantization=kept)
            turned = tensor if turned.shape == tensor.shape else turned
            source = self._seen(source, Tensor(movement.shape(seen), source.dtype, quantization=kept))
            options, origin = Options("TransposeOptions"), self.node.name or ""
            source = lowering.add("TRANSPOSE", (source, self.ints(perm)), turned, options, origin)
        made.forms[form] = self._seen(source, tensor)
        return made

    def _seen(self, tensor: Tensor, shape: Tensor) -> Tensor:
        """``tensor`` in another shape, written to that tensor; itself if it is the same one."""
        if tensor.shape == shape.shape:
            return tensor
        options = Options("ReshapeOptions")
        return self.lowering.add("RESHAPE", (tensor, self.ints(shape.shape)), shape, options, self.node.name or "")

    def transpose(self, value: Value, perm: Sequence[int]) -> Value:
        """``value`` with its axes as ``perm`` says. Where the node's layouts are that far apart nothing is written."""
        _limit(value.rank)
        shape = tuple(value.shape[axis] for axis in perm)
        steps = between(perm, self.layout, self.results)
        kept = value.quantization if self.int8 else None
        source = self.lowering.form(value, self.layout, codes=kept is not None)
        made = self.lowering.new(shape, value.dtype, self.results, kept)
        ((form, tensor),) = made.forms.items()
        if steps == tuple(range(len(steps))):
            made.forms[form] = source
        else:
            self.lowering.transposed(source, steps, tensor)
        return made

    def unary(self, code: str, operand: Operand, options: Options | None = None) -> Value:
        """An operator of one operand and of its shape."""
        return self.emit(code, [operand], operand.shape, options=options)

    def binary(
        self, code: str, left: Operand | float, right: Operand | float, dtype: type[np.generic] | None = None
    ) -> Value:
        """An operator of two operands that broadcast; without a fused activation function."""
        shape = broadcast(*(() if isinstance(each, float | int) else each.shape for each in (left, right)))
        table = FUSING.get(code)
        return self.emit(code, [left, right], shape, dtype, Options(table) if table else None)

    def activated(self, value: Value) -> Value:
        """``value`` with the activation function of this node, by an operator of its own."""
        return value if self.activation == "NONE" else self.emit(self.activation, [value], value.shape)

    def cast(self, value: Value, dtype: str) -> Value:
        """``value`` as ``dtype``, which is one of TFLite's."""
        if value.dtype == np.dtype(dtype):
            return value
        return self.emit("CAST", [value], value.shape, np.dtype(dtype), Options("CastOptions"))


FUSING = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions", "DIV": "DivOptions"}
"""Operators with options for an activation function."""


def _limit(rank: int) -> None:
    """Raise ``Refusal`` for more axes than kernels take."""
    if rank > MOST_AXES:
        raise Refusal(f"there are {rank} axes, and the kernels take {MOST_AXES}")


def broadcast(*shapes: Shape) -> Shape:
    """What values of ``shapes`` broadcast to. Raises ``Refusal``: a constant may fit one size of an open dimension."""
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        raise Refusal(f"{' and '.join(str(list(shape)) for shape in shapes)} do not broadcast") from None


def narrow(constant: Constant) -> Constant:
    """``constant`` in the type that TFLite has for it. Raises ``Refusal`` for integers that it cannot hold."""
    name = NARROW.get(constant.dtype.name)
    if name is None:
        return constant.cast("float32") if constant.dtype == ml_dtypes.bfloat16 else constant
    if name == "int32" and constant.size:
        array, limits = constant.array(), np.iinfo(np.int32)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise Refusal("a constant holds integers that int32 cannot")
    return constant.cast(name)


def constant_of(tensor: ir.TensorProtocol) -> Constant:
    """An initializer, read when it is needed."""
    shape = tensor.shape.numpy()
    return Constant(tuple(shape), tensor.dtype.numpy(), id(tensor), lambda: np.asarray(tensor.numpy()))


def quantization_of(node: ir.Node) -> Quantization | None:
    """What a Quantize- or DequantizeLinear of one constant scale means, in signed integers; None for all others."""
    operands = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs[1:3]]
    if not operands or operands[0] is None or operands[0].size != 1:
        return None
    zero, shift = 0, 0
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if operands[1] is None:
            return None
        zero = int(operands[1].numpy().item())
        shift = 128 if operands[1].dtype == ir.DataType.UINT8 else 0
    elif node.attributes.get_int("output_dtype", 0) in (0, ir.DataType.UINT8):
        shift = 128
    return Quantization.of(operands[0].numpy().item(), zero - shift)


_NOT_FOLDED = frozenset({"Bernoulli", "DequantizeLinear", "If", "Loop", "Multinomial", "QuantizeLinear", "Scan"})
"""Integers must be known behind their floats, subgraphs read values around them, and the rest is random."""


def _fold(node: ir.Node, operands: Sequence[Operand | None]) -> list[Result] | None:
    """The results of a node without computed operands; None where it must be lowered all the same."""
    if node.op_type in _NOT_FOLDED or node.op_type.startswith("Random"):
        return None
    fed = {
        value.name or "": operand
        for value, operand in zip(node.inputs, operands, strict=True)
        if value is not None and isinstance(operand, Constant)
    }
    alone = legal.isolated(node, {"": graph.OPSET})
    if alone is None:
        return None
    for value in list(alone.graph.initializers.values()):
        # Small constants may have been folded from others: the operand is what counts.
        value.const_value = ir.tensor(fed[value.name or ""].array(), name=value.name)
    feeds = {value.name or "": fed[value.name or ""].array() for value in alone.graph.inputs}
    return [Constant.of(np.asarray(array)) for array in _computed(alone, feeds)]


def _computed(alone: ir.Model, feeds: Feeds) -> Sequence[Array]:
    """The outputs of a model of one node. ONNX's own evaluator is wrong in places, and asked only where it must be."""
    try:
        with Session(alone) as session:
            return list(session.run(feeds).values())
    except ToolchainFailure:  # ONNX Runtime lacks kernels of rare types
        return [np.asarray(array) for array in ReferenceEvaluator(ir.to_proto(alone)).run(None, dict(feeds))]

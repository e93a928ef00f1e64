"""Walk an ONNX graph and write each node as TFLite operators.

An op function (``ops``) gets a `Call`: it thinks in ONNX's axes and floats. In which layout the values are stored, and
whether as floats or as the integers behind them, is the affair of `Call.emit`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.protocols import EmitJob
from retarget.targets import legal
from retarget.targets.folding import folded, is_foldable
from retarget.targets.tflite.arrangement import steps
from retarget.targets.tflite.call import Call, Op
from retarget.targets.tflite.layout import FIRST_AXES, Arranged, Layout, order, stays, stored
from retarget.targets.tflite.program import Codes, Constant, Operator, Options, Program, Quantization, Shape, Tensor
from retarget.targets.tflite.values import (
    NARROW,
    TYPES,
    Operand,
    Refusal,
    Result,
    Value,
    constant_of,
    narrow,
    quantization_of,
)
from retarget.targets.walk import Walk

WEIGHTS = 16
"""Constants of at least so many elements are stored as float16 where the precision is that."""


@dataclass(eq=False)
class Lowering(Walk[Operand]):
    """One run over a graph. Sizes of symbolic dimensions are ``sizes``, and all shapes are concrete."""

    model: ir.Model
    job: EmitJob
    sizes: Mapping[str, int]
    ops: Mapping[str, Op]
    arrangement: Mapping[ir.Node, Arranged]
    border: Mapping[str, Layout]
    allowed: Mapping[str, Op] = field(default_factory=dict)
    """What writes an operator's nodes that ``ops`` has no form for."""
    program: Program = field(default_factory=Program)
    refusals: list[legal.Refusal] = field(default_factory=list)
    env: dict[ir.Value, Operand | None] = field(default_factory=dict)
    constants: dict[object, Tensor] = field(default_factory=dict)
    widened: dict[str, str] = field(default_factory=dict)
    """Nodes that are quantized, and compute in floats as no kernel of integers is right for them → their operators."""
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

    def visit(self, node: ir.Node) -> None:
        """As every walk; but a node may have been written into another, or be the last of several that are one."""
        if node in self.done:
            return
        if moving := self.arrangement.get(node, Arranged()).moving:
            self._move(node, self.ops[legal.operator(node)], moving)
        else:
            super().visit(node)

    def has_operator(self, name: str) -> bool:
        return name in self.ops or name in self.allowed

    def operand_of(self, tensor: ir.TensorProtocol) -> Operand:
        return constant_of(tensor)

    def write(self, node: ir.Node, operands: Sequence[Operand | None]) -> None:
        reasons: list[str] = []
        name = legal.operator(node)
        for op in [table[name] for table in (self.ops, self.allowed) if name in table]:
            try:
                self._written(Call(self, node, op, tuple(operands)))
            except Refusal as refusal:
                reasons.append(str(refusal))
            else:
                return
        raise Refusal("; and as a custom operator: ".join(reasons))

    def _written(self, call: Call) -> None:
        """Write one node, or fold it. Raises ``Refusal``."""
        node, operands = call.node, call.operands
        results = _fold(node, operands) if all(isinstance(each, Constant) for each in operands if each) else None
        if results is None:
            call.check_types()
            made = call.op.lower(call)
            results = list(made) if isinstance(made, Sequence) else [made]
            if call.is_widened and any(isinstance(each, Value) and each not in operands for each in results):
                self.widened[node.name or ""] = node.op_type
        self.done.update(call.absorbed)
        for value, result in zip(call.tail.outputs, results, strict=False):
            self._bind(value, result)

    def _move(self, node: ir.Node, op: Op, moving: Sequence[ir.Node]) -> None:
        """Write Reshapes and Transposes as one, of which ``node`` is the last."""
        source, taken = moving[0].inputs[0], steps(moving, self.sizes)
        operand = None if source is None else self.env[source]
        if operand is None:
            self.forget(node)
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
            self.refuse(node, str(refusal))
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
            for (layout, _), tensor in result.forms.items():
                if tensor.value is None and not tensor.name:
                    tensor.value, tensor.layout = value.name, layout.value
        self.env[value] = result

    def forget(self, node: ir.Node) -> None:
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
            source = next((key for key in value.forms if key[1] == codes), next(iter(value.forms)))
            if (layout, not codes) in value.forms:
                value.forms[wanted] = self._recoded(value, value.forms[layout, not codes], codes=codes)
            elif source[1] and not codes:
                # Turned as integers, which are a fourth of the bytes.
                turned = self.form(value, layout, codes=True)
                value.forms[wanted] = self._recoded(value, turned, codes=False)
            else:
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

    def constant(self, constant: Constant) -> Tensor:
        """The tensor of ``constant``, one for all equal constants; with precision fp16 float16, widened when loaded."""
        key = (constant.key, constant.shape)
        if key not in self.constants:
            narrowed = narrow(constant)
            if self._is_halved(narrowed):
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


def _fold(node: ir.Node, operands: Sequence[Operand | None]) -> list[Result] | None:
    """The results of a node without computed operands; None where it must be lowered all the same."""
    if not is_foldable(node):
        return None
    fed = {
        value.name or "": operand.array()
        for value, operand in zip(node.inputs, operands, strict=True)
        if value is not None and isinstance(operand, Constant)
    }
    results = folded(node, fed)
    return None if results is None else [Constant.of(array) for array in results]

"""Models of one operator between QuantizeLinear and DequantizeLinear, and what they mean, in float64.

The meaning is numpy's: dequantize, compute (by ONNX's own evaluator), round half to even, clip. No runtime is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from retarget import graph

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

Attribute: TypeAlias = int | float | str | list[int]
Precision: TypeAlias = Literal["int8", "int16x8"]


@dataclass(frozen=True)
class Data:
    """Integers that are computed, or ``held`` by the model."""

    shape: tuple[int, ...]
    scale: float = 0.05
    zero: int = 3
    held: bool = False


@dataclass(frozen=True)
class Weights:
    """int8, with a scale for each index of ``axis``, or one."""

    shape: tuple[int, ...]
    axis: int | None = 0


@dataclass(frozen=True)
class Bias:
    """int32, of the scale of the sums of operand 0 and the ``weights``; with 16 bits floats."""

    count: int


@dataclass(frozen=True)
class Levels:
    """What integers mean. Those of 16 bits have a 256th of the scale, and no zero."""

    scale: float
    zero: int


Numbers: TypeAlias = Sequence[int] | Sequence[float] | Sequence[Sequence[int]]
Operand: TypeAlias = Data | Weights | Bias | Numbers | None


@dataclass(frozen=True)
class Probe:
    """``activation``: what stands between the operator and the QuantizeLinear.

    ``results``: what they are rounded to: the levels of operand 0, or levels that are ``reached``, as they end a little
    before the results do. ``integers``: whether the file computes with integers, for int8 and for int16x8.
    """

    operands: Sequence[Operand]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    activation: Literal["", "Relu", "Clip"] = ""
    results: Levels | Literal["operand", "reached"] = "reached"
    integers: tuple[bool, bool] = (True, True)
    outputs: int = 1


@dataclass(frozen=True)
class Built:
    """A probe's model, what it is fed, and for each output the codes that are right and their levels."""

    model: ir.Model
    feeds: Feeds
    codes: Mapping[str, Array]
    levels: Mapping[str, Levels]


def built(operator: str, probe: Probe, precision: Precision, seed: int = 0) -> Built:
    """With activations in integers of 8 or of 16 bits."""
    return _Building(operator, probe, np.dtype(np.int16 if precision == "int16x8" else np.int8), seed).build()


def of_floats(operator: str, probe: Probe) -> tuple[ir.Model, Feeds, Array]:
    """With normal floats as activations: the model, what it is fed, and its result in float64."""
    built = _Building(operator, probe, np.dtype(np.float32), 0).build()
    return built.model, built.feeds, built.codes["y0"]


class _Building:
    def __init__(self, operator: str, probe: Probe, dtype: np.dtype[np.generic], seed: int) -> None:
        self.operator, self.probe, self.dtype = operator, probe, dtype
        self.rng = np.random.default_rng(seed)
        self.made = helper.make_graph([], "probe", [], [])
        self.feeds: dict[str, Array] = {}
        self.real: dict[str, Array] = {}
        """What operands of the operator are, in float64."""
        self.source: Levels | None = None
        self.scales = np.ones(1, np.float32)

    def build(self) -> Built:
        names = ["" if each is None else f"x{index}" for index, each in enumerate(self.probe.operands)]
        for name, operand in zip(names, self.probe.operands, strict=True):
            self._operand(name, operand)
        results = [f"t{index}" for index in range(self.probe.outputs)]
        node = helper.make_node(self.operator, names, results, name="probed")
        node.attribute.extend(helper.make_attribute(name, value) for name, value in self.probe.attributes.items())
        floats = self._computed(node)
        self.made.node.append(node)
        codes: dict[str, Array] = {}
        levels: dict[str, Levels] = {}
        for index, array in enumerate(floats):
            name, result = f"y{index}", results[index]
            self.made.output.append(helper.make_empty_tensor_value_info(name))
            if self.probe.activation:
                array = np.maximum(array, 0) if self.probe.activation == "Relu" else np.clip(array, 0, 6)
                bounds = [self._held(f"bound{limit}", np.float32(limit)) for limit in (0, 6)]
                result = self._add(
                    self.probe.activation, [result, *(bounds if self.probe.activation == "Clip" else [])], f"a{index}"
                )
            if array.dtype.kind != "f" or self.dtype == np.float32:
                self._add("Identity", [result], name)
                codes[name] = array
                continue
            levels[name] = self._levels(array)
            self._add("DequantizeLinear", [self._quantize(result, levels[name]), *self._ends(levels[name])], name)
            codes[name] = self._rounded(array, levels[name])
        opset = helper.make_opsetid("", graph.OPSET)
        proto = helper.make_model(self.made, opset_imports=[opset], ir_version=10)
        model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
        return Built(model, self.feeds, codes, levels)

    # ---- operands

    def _operand(self, name: str, operand: Operand) -> None:
        match operand:
            case None:
                return
            case Data():
                self._data(name, operand)
            case Weights():
                codes = self.rng.integers(-127, 128, operand.shape).astype(np.int8)
                along = [1] * codes.ndim
                count = 1 if operand.axis is None else operand.shape[operand.axis]
                if operand.axis is not None:
                    along[operand.axis] = -1
                self.scales = (0.002 + 0.01 * self.rng.random(count)).astype(np.float32)
                self._dequantize(name, codes, self.scales if count > 1 else self.scales[0], operand.axis or 0)
                self.real[name] = codes * self.scales.astype(np.float64).reshape(along)
            case Bias():
                assert self.source is not None
                scales = np.float32(self.source.scale) * self.scales
                integers = self.rng.integers(-3000, 3000, operand.count).astype(np.int32)
                if self.dtype == np.int8:
                    self._dequantize(name, integers, scales if scales.size > 1 else scales[0], 0)
                    self.real[name] = integers * scales.astype(np.float64)
                else:
                    bias = (integers * scales * (256 if self.dtype == np.int16 else 1)).astype(np.float32)
                    self._held(name, bias)
                    self.real[name] = bias.astype(np.float64)
            case _:
                kind = np.int64 if all(isinstance(each, int) for each in np.ravel(operand).tolist()) else np.float32
                array = np.array(operand, kind)
                self._held(name, array)
                self.real[name] = array.astype(np.float64) if kind is np.float32 else array

    def _data(self, name: str, data: Data) -> None:
        levels = Levels(float(np.float32(data.scale)), data.zero)
        if self.dtype == np.int16:
            levels = Levels(float(np.float32(data.scale / 256)), 0)
        self.source = self.source or levels
        if self.dtype == np.float32:
            self.feeds[name] = self.rng.standard_normal(data.shape).astype(np.float32)
            self.real[name] = self.feeds[name].astype(np.float64)
            self.made.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, data.shape))
            return
        info = np.iinfo(self.dtype.name)
        codes = self.rng.integers(info.min, info.max + 1, data.shape).astype(self.dtype)
        self.real[name] = (codes.astype(np.float64) - levels.zero) * levels.scale
        if data.held:
            self._dequantize(name, codes, np.float32(levels.scale), 0, levels.zero)
            return
        self.made.input.append(helper.make_tensor_value_info(f"{name}_in", onnx.TensorProto.FLOAT, data.shape))
        self.feeds[f"{name}_in"] = self.real[name].astype(np.float32)
        self._add("DequantizeLinear", [self._quantize(f"{name}_in", levels), *self._ends(levels)], name)

    def _dequantize(self, name: str, codes: Array, scale: Array | np.float32, axis: int, zero: int = 0) -> None:
        self._held(f"{name}_codes", codes)
        self._held(f"{name}_scale", scale)
        self._held(f"{name}_zero", np.full(np.shape(scale), zero, codes.dtype))
        node = helper.make_node("DequantizeLinear", [f"{name}_codes", f"{name}_scale", f"{name}_zero"], [name])
        node.attribute.append(helper.make_attribute("axis", axis))
        self.made.node.append(node)

    # ---- nodes

    def _quantize(self, name: str, levels: Levels) -> str:
        return self._add("QuantizeLinear", [name, *self._ends(levels)], f"{name}_q")

    def _ends(self, levels: Levels) -> list[str]:
        name = f"levels{len(self.made.initializer)}"
        zero = np.array(levels.zero, self.dtype)
        return [self._held(f"{name}_scale", np.float32(levels.scale)), self._held(f"{name}_zero", zero)]

    def _add(self, operator: str, inputs: Sequence[str], output: str) -> str:
        self.made.node.append(helper.make_node(operator, inputs, [output], name=f"{operator}_{output}"))
        return output

    def _held(self, name: str, array: Array | np.float32) -> str:
        self.made.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    # ---- what it means

    def _computed(self, node: onnx.NodeProto) -> list[Array]:
        """The operator's results in float64."""
        if node.op_type == "GlobalMaxPool":  # the evaluator drops axes
            (data,) = self.real.values()
            return [data.max(axis=tuple(range(2, data.ndim)), keepdims=True)]
        inputs = [helper.make_empty_tensor_value_info(name) for name in self.real]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        alone = helper.make_graph([node], "alone", inputs, outputs)
        model = helper.make_model(alone, opset_imports=[helper.make_opsetid("", graph.OPSET)])
        return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, self.real)]

    def _levels(self, array: Array) -> Levels:
        if isinstance(self.probe.results, Levels):
            held = self.probe.results
            return held if self.dtype == np.int8 else Levels(float(np.float32(held.scale / 256)), 0)
        if self.probe.results == "operand":
            assert self.source is not None
            return self.source
        info = np.iinfo(self.dtype.name)
        low, high = 0.95 * min(float(array.min()), 0.0), 0.95 * max(float(array.max()), 0.0)
        if self.dtype == np.int16:
            return Levels(float(np.float32(max(-low, high) / info.max)), 0)
        scale = float(np.float32((high - low) / (info.max - info.min)))
        return Levels(scale, int(np.clip(np.rint(info.min - low / scale), info.min, info.max)))

    def _rounded(self, array: Array, levels: Levels) -> Array:
        info = np.iinfo(self.dtype.name)
        steps = np.rint(array.astype(np.float64) / levels.scale) + levels.zero
        return np.asarray(np.clip(steps, info.min, info.max))

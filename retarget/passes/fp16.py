"""Cast a model to float16, but for what ``fp16_rules`` keeps in float32.

Given::

    float x;  y = Conv(x, w);  z = Exp(y);  u = Mul(z, s)         # z was recorded up to 1e6

Result::

    y = Conv(Cast<float16>(x), w16);  z = Exp(Cast<float>(y));  float u = Mul(z, s)

Every value has one type, that of the node which makes it; a Cast stands only where a value passes from one type to the
other, once a value. So there is none between two nodes in float32: a value beyond float16's range would come back
from such a trip as an infinity, and as NaN one operator later. Weights are converted one at a time when they are read.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from retarget.errors import RetargetError
from retarget.facts import KeptNode
from retarget.passes.fp16_rules import LARGEST, MASK, MASK_FLOOR, Rules, TensorRange, decide, is_float
from retarget.passes.library import InferShapes, LiftConstants

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

_HALF, _FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT

_TYPE_ATTRIBUTES: Mapping[str, str] = {
    "BlackmanWindow": "output_datatype",
    "Cast": "to",
    "EyeLike": "dtype",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
}
"""Where an operator's output type is an attribute."""


class CastFloat16(ir.passes.InPlacePass):
    """See the module. ``ranges`` are the recorded ones by value name; without one, only the constants are known.

    ``io`` is the type of the model's float inputs and outputs. After a run, ``kept`` names each node in float32 with
    the reason, ``converted`` counts those in float16. Raises ``RetargetError`` when ``io`` is float16 and an input or
    output does not fit.
    """

    def __init__(self, ranges: Mapping[str, TensorRange] | None = None, io: str = "float32") -> None:
        super().__init__()
        if io not in ("float32", "float16"):
            raise RetargetError(f"io: '{io}' is not a type of inputs and outputs", "float32 or float16")
        self.ranges = ranges or {}
        self.io = io
        self.kept: tuple[KeptNode, ...] = ()
        self.converted = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = LiftConstants()(model).modified
        if any(output.dtype is None for node in model.graph for output in node.outputs):
            modified |= InferShapes()(model).modified
        rules = decide(model, self.ranges)
        self.kept = tuple(
            KeptNode(name=node.name or node.outputs[0].name or "", op=node.op_type, reason=rules.kept[node])
            for node in model.graph
            if node in rules.kept
        )
        rewrite = _Rewrite(model.graph, rules, self.io == "float16")
        self.converted = len(rewrite.low)
        modified |= rewrite.run()
        return ir.passes.PassResult(model, modified)


class _Rewrite:
    def __init__(self, graph: ir.Graph, rules: Rules, half_io: bool) -> None:
        self.graph = graph
        self.rules = rules
        self.half_io = half_io
        self.low = [
            node
            for node, signature in rules.signatures.items()
            if node not in rules.kept and node not in rules.following and (signature.inputs or signature.outputs)
        ]
        self.half = {node.outputs[at] for node in self.low for at in rules.signatures[node].outputs}
        if half_io:
            self._check_io()
            self.half |= {value for value in graph.inputs if is_float(value)}
        self.names = {value.name for node in graph.all_nodes() for value in node.outputs}
        self.names |= {value.name for value in graph.inputs} | set(graph.initializers)
        self.inputs = set(graph.inputs)
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.changed = False

    def run(self) -> bool:
        wanted = self._demands()
        for node in self.low:
            self._set_type(node)
        for value in self.half:
            # A new type: setting its dtype would change that of the model which this one was cloned from, too.
            value.type = ir.TensorType(_HALF)
        self.changed = bool(self.low) or bool(self.half)
        for value, uses in wanted.items():
            for dtype, places in uses.items():
                if self._stored(value) == dtype:
                    continue
                replacement = self._as(value, dtype, only=len(uses) == 1)
                for node, at in places:
                    node.replace_input_with(at, replacement)
        self._outputs()
        self._returned_by_bodies()
        return self.changed

    def _check_io(self) -> None:
        for value in (*self.graph.inputs, *self.graph.outputs):
            if value in self.rules.wide:
                raise RetargetError(
                    f"io: float16 is too narrow: {self.rules.wide[value]}", "leave `io: float32`, the default"
                )

    # ---- which type every use needs

    def _demands(self) -> dict[ir.Value, dict[ir.DataType, list[tuple[ir.Node, int]]]]:
        """Type → places, of each float value that is used."""
        wanted: dict[ir.Value, dict[ir.DataType, list[tuple[ir.Node, int]]]] = {}
        low = set(self.low)
        for node in self.graph.all_nodes():
            follow = self._followed(node) if node in self.rules.following else None
            for at, value in enumerate(node.inputs):
                if (
                    value is None
                    or not is_float(value)
                    or (value.graph is not self.graph and node.graph is not self.graph)
                ):
                    continue
                if node in self.rules.following and at in self.rules.signatures[node].inputs:
                    dtype = follow or _FULL
                else:
                    dtype = _HALF if node in low and at in self.rules.signatures[node].inputs else _FULL
                wanted.setdefault(value, defaultdict(list))[dtype].append((node, at))
        return wanted

    def _followed(self, node: ir.Node) -> ir.DataType:
        """float16 if every float that the node takes is there in it."""
        values = [node.inputs[at] for at in self.rules.signatures[node].inputs]
        computed = [value for value in values if value is not None and not self._is_constant(value)]
        return _HALF if computed and all(value in self.half for value in computed) else _FULL

    def _is_main(self, value: ir.Value) -> bool:
        """Whether ``value`` is of the main graph; ``value.graph`` may be a body that returns it."""
        producer = value.producer()
        if producer is not None:
            return producer.graph is self.graph
        return value in self.inputs or self.graph.initializers.get(value.name or "") is value

    # ---- values in their other type

    def _is_constant(self, value: ir.Value) -> bool:
        return value.is_initializer() and not value.is_graph_input()

    def _stored(self, value: ir.Value) -> ir.DataType:
        return _HALF if value in self.half else _FULL

    def _as(self, value: ir.Value, dtype: ir.DataType, *, only: bool) -> ir.Value:
        self.changed = True
        if self._is_constant(value):
            return self._constant(value, only=only and not value.is_graph_output())
        if (value, dtype) not in self.casts:
            self.casts[value, dtype] = self._cast(value, dtype)
        return self.casts[value, dtype]

    def _constant(self, value: ir.Value, *, only: bool) -> ir.Value:
        """The constant in float16: itself when nothing needs it in float32."""
        tensor = value.const_value
        assert tensor is not None
        name = value.name if only else self._fresh(f"{value.name}_fp16")
        half = ir.LazyTensor(
            lambda: ir.Tensor(_to_half(tensor, mask=value in self.rules.masks)),
            dtype=_HALF,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
        )
        if only:
            value.const_value, value.type = half, ir.TensorType(_HALF)
            return value
        copy = ir.Value(name=name, shape=half.shape, type=ir.TensorType(_HALF), const_value=half)
        self.graph.register_initializer(copy)
        return copy

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = self._fresh(f"{value.name}_{'fp16' if dtype == _HALF else 'fp32'}")
        node = ir.node("Cast", [value], {"to": dtype}, name=f"cast_{name}")
        output = node.outputs[0]
        output.name, output.dtype, output.shape = name, dtype, value.shape
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return output

    def _outputs(self) -> None:
        """Give the graph's outputs their types; the user's name moves to the value that has it."""
        dtype = _HALF if self.half_io else _FULL
        for at, value in enumerate(self.graph.outputs):
            if value.dtype not in (_HALF, _FULL) or (value not in self.half and not is_float(value)):
                continue
            if self._stored(value) == dtype:
                continue
            cast = self.casts.get((value, dtype)) or self._cast(value, dtype)
            self.casts[value, dtype] = cast
            if value.is_graph_input():
                # An input that is returned as it is keeps its name; the output has the same, and no other type.
                continue
            name = value.name
            value.name = self._fresh(f"{name}_{'fp16' if dtype == _FULL else 'fp32'}")
            cast.name = name
            self.graph.outputs[at] = cast
            self.changed = True

    def _returned_by_bodies(self) -> None:
        """A body may return a value of the main graph as it is: then in float32, as all that bodies do."""
        for node in self.graph:
            for body in _bodies(node):
                for at, value in enumerate(body.outputs):
                    if value in self.half:
                        if (value, _FULL) not in self.casts:
                            self.casts[value, _FULL] = self._cast(value, _FULL)
                        body.outputs[at] = self.casts[value, _FULL]

    def _set_type(self, node: ir.Node) -> None:
        """What says the type of the output in an attribute."""
        if not self.rules.signatures[node].outputs:
            return
        if node.op_type == "ConstantOfShape":
            value = node.attributes.get_tensor("value", None)
            fill = value.numpy() if value is not None else np.zeros(1, np.float32)
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(np.asarray(fill).astype(np.float16)))
        elif (attribute := _TYPE_ATTRIBUTES.get(node.op_type)) and (
            attribute in node.attributes or node.op_type != "EyeLike"
        ):
            node.attributes[attribute] = ir.AttrInt64(attribute, _HALF)

    def _fresh(self, name: str) -> str:
        found, count = name, 1
        while found in self.names:
            found, count = f"{name}_{count}", count + 1
        self.names.add(found)
        return found


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The subgraphs of ``node``, and theirs."""
    for attribute in node.attributes.values():
        bodies: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            bodies = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies = attribute.as_graphs()
        for body in bodies:
            yield body
            for inner in body:
                yield from _bodies(inner)


def _to_half(tensor: ir.TensorProtocol, *, mask: bool) -> NDArray[np.float16]:
    array = np.asarray(tensor.numpy(), np.float32)
    if mask:
        array = np.where(array <= MASK_FLOOR, np.float32(MASK), array)
    # Infinities stay; the rules let no finite value beyond the range come here, but for those that round down to it.
    with np.errstate(over="ignore", under="ignore"):
        half = array.astype(np.float16)
    overflowed = np.isinf(half) & np.isfinite(array)
    return np.where(overflowed, np.copysign(np.float16(LARGEST), half), half) if overflowed.any() else half

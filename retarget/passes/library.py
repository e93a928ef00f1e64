"""Passes of onnx_ir, onnxscript and onnxsim as ours: truthful about change, and only what is exact and linear."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from retarget.graph import all_nodes, initializers
from retarget.passes.rewriting import dims, graphs, subgraphs

QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Never folded: they say what a target must execute."""


class Library(ir.passes.InPlacePass):
    """Library passes in order, as one pass whose ``modified`` is the truth.

    Some libraries report a change whenever they ran, some report none when they renamed: here the graph before and
    after is compared, nodes, wiring, attributes and constants by identity, which costs one visit a node.
    """

    def __init__(self, *steps: ir.passes.PassBase) -> None:
        super().__init__()
        self.steps = steps

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = snapshot(model)
        for step in self.steps:
            step(model)
        return ir.passes.PassResult(model, snapshot(model) != before)


class InlineFunctions(ir.passes.InPlacePass):
    """Replace calls of model-local functions by their bodies: emitters know operators, not functions."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = bool(model.functions)
        common.InlinePass()(model)
        model.functions.clear()  # also those that nothing called
        return ir.passes.PassResult(model, modified)


class LiftConstants(Library):
    """Constant nodes → initializers, of subgraphs too: one place where constants stand.

    Initializers that are inputs as well stay: they are defaults that a caller may feed.
    """

    def __init__(self) -> None:
        super().__init__(
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.LiftSubgraphInitializersToMainGraphPass(),
        )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        inner = (graph for graph in graphs(model) if graph is not model.graph)
        if any(graph.initializers for graph in inner) or any(node.op_type == "Constant" for node in all_nodes(model)):
            return super().call(model)
        return ir.passes.PassResult(model, False)


class RemoveUnused(Library):
    """Remove nodes, initializers and opset imports that nothing needs."""

    def __init__(self) -> None:
        super().__init__(common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass())


class DeduplicateConstants(Library):
    """One initializer where several hold the same bytes. Beyond ``limit`` elements only those that share a tensor."""

    def __init__(self, limit: int = 1024) -> None:
        super().__init__(_ShareTensors(), common.DeduplicateInitializersPass(size_limit=limit))


class _ShareTensors(ir.passes.InPlacePass):
    """Merge initializers that are one tensor, or one place of one data file: tied weights, without reading them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for graph in model.graphs():
            first: dict[object, ir.Value] = {}
            for name, value in list(graph.initializers.items()):
                if value.const_value is None or value.is_graph_input() or value.is_graph_output():
                    continue
                kept = first.setdefault(_place(value.const_value), value)
                if kept is not value:
                    value.replace_all_uses_with(kept)
                    graph.initializers.pop(name)
                    modified = True
        return ir.passes.PassResult(model, modified)


def _place(tensor: ir.TensorProtocol) -> object:
    if isinstance(tensor, ir.ExternalTensor):
        return (tensor.path, tensor.offset, tensor.length, tensor.dtype, tuple(tensor.shape))
    return id(tensor)


class MergeEqualNodes(Library):
    """One node where several compute the same of the same (common subexpressions)."""

    def __init__(self) -> None:
        super().__init__(common.CommonSubexpressionEliminationPass())


class InferShapes(ir.passes.InPlacePass):
    """Types and shapes of all values by ONNX's own inference, which follows shape-like constants too.

    Weights are only referred to while it runs, so its memory does not grow with them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        heavy = [(value, value.const_value) for value in initializers(model) if value.const_value is not None]
        heavy = [(value, tensor) for value, tensor in heavy if tensor.nbytes > INLINE]
        try:
            for value, tensor in heavy:
                value.const_value = _reference(tensor)
            proto = ir.to_proto(model)
        finally:
            for value, tensor in heavy:
                value.const_value = tensor
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
        return ir.passes.PassResult(model, _take_types(model.graph, inferred.graph))


INLINE = 1024
"""Bytes of the largest constant that shape inference gets to see: vectors of sizes and axes."""


def _reference(tensor: ir.TensorProtocol) -> ir.ExternalTensor:
    """A stand-in of the same type and shape, without data."""
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor("absent", 0, tensor.nbytes, tensor.dtype, shape=shape, name=tensor.name or "")


def _take_types(graph: ir.Graph, proto: onnx.GraphProto) -> bool:
    """Give the values of ``graph`` the types that ``proto`` has for their names."""
    infos = {info.name: info.type for info in (*proto.value_info, *proto.output)}
    modified = False
    for node, inferred in zip(graph, proto.node, strict=True):
        for out in node.outputs:
            kind = infos.get(out.name or "")
            if kind is not None and kind.HasField("tensor_type"):
                modified |= _take_type(out, kind)
        for attribute in inferred.attribute:
            inner = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            for subgraph, subproto in zip(subgraphs(node.attributes[attribute.name]), inner, strict=True):
                modified |= _take_types(subgraph, subproto)
    return modified


def _take_type(value: ir.Value, kind: onnx.TypeProto) -> bool:
    modified = False
    tensor = kind.tensor_type
    if tensor.HasField("shape"):
        inferred = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim
        )
        if inferred != dims(value):
            value.shape = ir.Shape(inferred)
            modified = True
    dtype = ir.DataType(tensor.elem_type)
    if dtype and dtype != value.dtype:
        value.type = ir.TensorType(dtype)
        modified = True
    return modified


class FixNames(Library):
    """Sorted topologically, names unique, no input that is an output and no output twice."""

    def __init__(self) -> None:
        super().__init__(common.TopologicalSortPass(), common.OutputFixPass(), common.NameFixPass())


class FoldConstants(ir.passes.InPlacePass):
    """Compute what does not depend on inputs (onnxscript), and follow Shape, Gather, Concat symbolically.

    Never Quantize/DequantizeLinear, never inputs beyond ``limit`` bytes (see ``fold_weights``), and no result beyond
    ``limit`` bytes unless the inputs were as large.
    """

    def __init__(self, limit: int = 1 << 20) -> None:
        super().__init__()
        self.limit = limit

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = snapshot(model)
        optimizer.fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=self.limit // 4,
            output_size_limit=self.limit // 4,
            should_fold=self._should_fold,
        )
        _detach_dropped(model)
        common.RemoveUnusedNodesPass()(model)
        LiftConstants()(model)  # some of what it folds comes as Constant nodes
        _forget_provenance(model)
        return ir.passes.PassResult(model, snapshot(model) != before)

    def _should_fold(self, node: ir.Node) -> bool | None:
        if node.op_type in QUANTIZATION:
            return False
        # A value that only feeds a QuantizeLinear pair is a quantized weight in the making: its float form may fold.
        tensors = [value.const_value for value in node.inputs if value is not None]
        if any(tensor is not None and tensor.nbytes > self.limit for tensor in tensors):
            return False
        return None


def _detach_dropped(model: ir.Model) -> None:
    """Take what nodes of dropped branches still hold: the weights of the branch not taken would count as used."""
    live = set(all_nodes(model))
    values = [*initializers(model), *model.graph.inputs, *(out for node in live for out in node.outputs)]
    for value in values:
        for node, index in tuple(value.uses()):
            if node not in live:
                node.replace_input_with(index, None)


def _forget_provenance(model: ir.Model) -> None:
    """Drop what the library notes on each folded value: names of all values that went in, which can grow long."""
    for value in initializers(model):
        value.metadata_props.pop(optimizer.FOLDED_FROM_KEY, None)
    for node in all_nodes(model):
        for out in node.outputs:
            out.metadata_props.pop(optimizer.FOLDED_FROM_KEY, None)


RULES: dict[str, tuple[rewriter.RewriteRule, ...]] = {
    "Clip": (rules.successive_clip_rule, rules.successive_relu_clip_rule),
    "Relu": (rules.successive_relu_rule, rules.successive_clip_relu_rule),
    "Min": (rules.min_min_rule, rules.max_min_rule),
    "Max": (rules.max_max_rule, rules.min_max_rule),
    "Slice": (rules.collapse_slice_rule, rules.collapse_slice2_rule),
    "ScatterND": (rules.no_op_dynamic_scatter_nd_rule, rules.no_op_static_scatter_nd_rule),
    "Cast": (rules.cast_constant_of_shape_rule, rules.cast_constant_of_shape_without_value_rule),
    "Unsqueeze": (rules.unsqueeze_unsqueeze_rule,),
    "Conv": (rules.remove_optional_bias_from_conv_rule,),
    "ConvTranspose": (rules.remove_optional_bias_from_conv_transpose_rule,),
    "Gemm": (rules.remove_optional_bias_from_gemm_rule, rules.fuse_batchnorm_into_gemm_rule),
}
"""onnxscript's rules by the operator that their pattern ends in.

Left out: `slice_split_rule` (it has two outputs, and its matcher scans the graph anew for each node: quadratic); the
rules that our own passes do more of or more safely (no-ops, casts, reshapes, transposes, batch normalization, padding).
"""


class RewriteKnownPatterns(ir.passes.InPlacePass):
    """onnxscript's rewrite rules for the operators that the model has: a rule costs a try at every node."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        present = {node.op_type for node in all_nodes(model)}
        chosen = [rule for op, group in RULES.items() if op in present for rule in group]
        if not chosen:
            return ir.passes.PassResult(model, False)
        before = snapshot(model)
        rewriter.RewritePass(chosen)(model)
        common.RemoveUnusedNodesPass()(model)
        LiftConstants()(model)
        return ir.passes.PassResult(model, snapshot(model) != before)


def snapshot(model: ir.Model) -> list[object]:
    """Nodes, wiring, attributes, names, types and shapes, and constants by identity: equal when nothing changed.

    One flat tuple a node: the collector of garbage looks at every container that is kept, over and over.
    """
    lines: list[object] = [sorted(model.opset_imports.items()), list(model.functions)]
    for graph in graphs(model):
        lines.append([_value(value) for value in (*graph.inputs, *graph.outputs)])
        # The tensors themselves are kept, so that no other can take the place that identifies one.
        lines.append([(name, _Same(value.const_value)) for name, value in graph.initializers.items()])
        for node in graph:
            line: list[object] = [node.domain, node.op_type, len(node.inputs)]
            line += [None if value is None else value.name for value in node.inputs]
            for value in node.outputs:
                line += _value(value)
            for name, attribute in node.attributes.items():
                line += (name, _attribute(attribute))
            lines.append(tuple(line))
    return lines


class _Same:
    """Equal only to itself, whatever it holds."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, held: object) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.held is other.held


def _value(value: ir.Value) -> tuple[object, ...]:
    shape = dims(value)
    return (value.name, value.dtype, None) if shape is None else (value.name, value.dtype, len(shape), *shape)


def _attribute(attribute: ir.Attr) -> object:
    if attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
        return _Same(attribute.value)
    return "graph" if any(subgraphs(attribute)) else attribute.value

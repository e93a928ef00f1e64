"""The one route to ONNX: a function of TensorFlow, its variables frozen, through tf2onnx.

tf2onnx copies the whole graph for each of its optimizers and writes all weights anew after each, which took 7.5 GB for
the 102 MB of a ResNet-50. So its parts are called one by one here, and its optimizers run without that.
It also says of what it cannot convert no more than a line in its log: what is left of that in its result is an error.
"""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from retarget.convert.tensorflow.framework import quiet, tf
from retarget.convert.tensorflow.operators import reason, refuse_changes
from retarget.convert.tensorflow.recurrent import use_recurrent_operators
from retarget.convert.tensorflow.reverse import reverse
from retarget.convert.tensorflow.runner import said
from retarget.errors import ToolchainFailure, Unsupported
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto
    from tf2onnx.graph import Graph, Node
    from tf2onnx.optimizer.optimizer_base import GraphOptimizerBase

with quiet():
    from tf2onnx import optimizer, tf_loader, tfonnx

    from retarget.convert.tensorflow.einsum import einsum

logger = logging.getLogger(__name__)

OPSET = 18
"""The newest that tf2onnx writes, in all of its versions of the last years."""

_LARGE = 1000
"""Bytes: smaller constants stay in the graph, as shapes and axes are among them."""

_PROTOBUF_LIMIT = 1_800_000_000
"""Bytes of weights: protobuf ends at 2 GB, and the graph itself takes some."""

_NOT_INLINED = ("_XlaMustCompile", "_noinline")
"""Marks of a function that grappler then leaves as a call."""

_PLACEHOLDERS = ("Placeholder", "PlaceholderWithDefault")

_HALF = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}

_ONNX_TYPES = {"float32": "FLOAT", "float64": "DOUBLE"}
"""The types whose names are others in ONNX."""


@dataclass(frozen=True)
class Frozen:
    """A ``GraphDef`` without variables, and the tensors (``node:0``) that are its inputs and outputs."""

    graph: tf.compat.v1.GraphDef
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: tuple[int, ...]
    """Of the outputs, as TensorFlow numbers them."""


def to_onnx(
    function: tf.types.experimental.ConcreteFunction,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    path: Path,
    place: str,
) -> list[str]:
    """Write ``function`` to ``path``, and its weights beside it where they pass 2 GB; gives what a user must know.

    ``inputs`` are those that the function takes, flat and in order, captured tensors left out; ``outputs`` name what it
    gives, flat and in order (``tf.nest``: dictionaries by their sorted keys). ``place`` names the model in errors.
    Raises ``Unsupported`` that lists every node without a form in ONNX, ``ToolchainFailure`` where tf2onnx fails.
    """
    return write(freeze(function, place), inputs, outputs, path, place)


def freeze(function: tf.types.experimental.ConcreteFunction, place: str) -> Frozen:
    """``function`` with the values of its variables in it. Raises ``ToolchainFailure`` where TensorFlow cannot."""
    captured = {tensor.name for tensor in function.graph.internal_captures}
    try:
        with quiet():
            # `convert_variables_to_constants_v2` as far as its graph: it would make a function of it again.
            graph = tf_loader.convert_variables_to_constants_large_model(function)
    except Exception as error:
        raise ToolchainFailure(f"{place}: TensorFlow cannot freeze its variables: {said(error)}") from error
    return Frozen(
        graph,
        tuple(tensor.name for tensor in function.inputs if tensor.name not in captured),
        tuple(tensor.name for tensor in function.outputs),
        tuple(tensor.dtype.as_datatype_enum for tensor in function.outputs),
    )


def write(frozen: Frozen, inputs: Sequence[TensorSpec], outputs: Sequence[str], path: Path, place: str) -> list[str]:
    """Write ``frozen`` to ``path`` with ``inputs`` and ``outputs`` as its border: see ``to_onnx``."""
    refuse_changes(frozen.graph, place)
    _let_inline(frozen.graph)
    fed, asked = _border(frozen, inputs)
    with quiet() as errors:
        model = _convert(frozen.graph, fed, asked, place)
    check_nodes(model.graph, errors, place)
    use_recurrent_operators(model)
    _rename(model.graph, dict(zip([*fed, *asked], [*(spec.name for spec in inputs), *outputs])))
    set_inputs(model.graph, inputs, place)
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    external = size > _PROTOBUF_LIMIT
    onnx.save_model(model, str(path), save_as_external_data=external, location=f"{path.name}.data")
    del model
    gc.collect()
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ToolchainFailure(f"{place}: tf2onnx wrote what is no valid ONNX: {said(error)}") from error
    return []


def _border(frozen: Frozen, inputs: Sequence[TensorSpec]) -> tuple[list[str], list[str]]:
    """Give each input a placeholder of the user's sizes, and each output a node of its own; gives the tensors of both.

    Inputs may be tensors within the graph, and outputs one and the same tensor, or an input.
    """
    nodes = {node.name: node for node in frozen.graph.node}
    fed = []
    for index, (tensor, spec) in enumerate(zip(frozen.inputs, inputs)):
        node = nodes[tensor.partition(":")[0]]
        if node.op not in _PLACEHOLDERS:
            node = frozen.graph.node.add(name=f"retarget_input_{index}")
            _rewire(frozen.graph, tensor, f"{node.name}:0")
        node.op = "Placeholder"
        del node.input[:]
        node.attr["dtype"].type = tf.as_dtype(spec.dtype).as_datatype_enum
        shape = node.attr["shape"].shape
        shape.Clear()
        for dim in spec.shape:
            shape.dim.add().size = dim if isinstance(dim, int) else -1
        fed.append(f"{node.name}:0")
    for node in frozen.graph.node:
        if node.op == "PlaceholderWithDefault":
            node.op = "Identity"
            node.attr["T"].CopyFrom(node.attr["dtype"])
            node.attr.pop("dtype")
            node.attr.pop("shape", None)
        # They hold the sizes from before.
        node.attr.pop("_output_shapes", None)
    asked = []
    for index, (tensor, dtype) in enumerate(zip(frozen.outputs, frozen.types)):
        source = fed[frozen.inputs.index(tensor)] if tensor in frozen.inputs else tensor
        node = frozen.graph.node.add(name=f"retarget_output_{index}", op="Identity", input=[source])
        node.attr["T"].type = dtype
        asked.append(f"{node.name}:0")
    return fed, asked


def _let_inline(graph: tf.compat.v1.GraphDef) -> None:
    """Take the marks from functions that keep them calls, which ONNX does not have.

    A grouped convolution of Keras 3 is such a function, for XLA to compile.
    """
    functions = graph.library.function
    for marked in itertools.chain(functions, graph.node, *(function.node_def for function in functions)):
        for mark in _NOT_INLINED:
            marked.attr.pop(mark, None)


def _rewire(graph: tf.compat.v1.GraphDef, old: str, new: str) -> None:
    # The first output of a node is also called after the node alone.
    names = {old, old[:-2]} if old.endswith(":0") else {old}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = new


def _convert(graph: tf.compat.v1.GraphDef, fed: Sequence[str], asked: Sequence[str], place: str) -> ModelProto:
    weights = _take_weights(graph)
    try:
        with tf.Graph().as_default():
            graph = tf_loader.tf_optimize(list(fed), list(asked), graph)
        _mark_weights(graph, weights)
        with tf.Graph().as_default() as imported:
            tf.import_graph_def(graph, name="")
            del graph
            lowered = tfonnx.process_tf_graph(
                imported,
                opset=OPSET,
                input_names=list(fed),
                output_names=list(asked),
                custom_op_handlers={"Erfc": (_erfc, []), "Einsum": (einsum, []), "ReverseV2": (reverse, [])},
                const_node_values=weights,
                continue_on_error=True,
            )
            lowered = optimizer.optimize_graph(lowered, catch_errors=False, optimizers=lean_optimizers())
            model: ModelProto = lowered.make_model("from TensorFlow")
            return model
    except Exception as error:
        raise ToolchainFailure(f"{place}: tf2onnx fails: {type(error).__name__}: {said(error)}") from error


# ---- weights, which neither TensorFlow's optimizer nor its graphs need to see


def _take_weights(graph: tf.compat.v1.GraphDef) -> dict[str, bytes]:
    """Make a placeholder of each large constant; gives the values by the node's name."""
    weights = {}
    for node in graph.node:
        tensor = node.attr["value"].tensor if node.op == "Const" else None
        if tensor is not None and len(tensor.tensor_content) > _LARGE:
            weights[node.name] = tensor.tensor_content
            node.op = "Placeholder"
            node.attr["shape"].shape.CopyFrom(tensor.tensor_shape)
            node.attr.pop("value")
    return weights


def _mark_weights(graph: tf.compat.v1.GraphDef, weights: Mapping[str, bytes]) -> None:
    """Make constants of those placeholders again, still without their values: tf2onnx has them by name."""
    for node in graph.node:
        if node.name in weights:
            node.op = "Const"
            tensor = node.attr["value"].tensor
            tensor.dtype = node.attr["dtype"].type
            tensor.tensor_shape.CopyFrom(node.attr["shape"].shape)
            node.attr.pop("shape")


# ---- operators that tf2onnx lacks


def _erfc(context: Graph, node: Node, name: str, arguments: Sequence[str]) -> None:  # noqa: ARG001 - tf2onnx's own call
    """``1 - Erf(x)``, or ``1 + Erf(-x)`` where ``x`` is a negative: so exact GELU is written, of ``-x / √2``."""
    dtype, shape = context.get_dtype(node.output[0]), context.get_shape(node.output[0])
    numpy_type = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    source, outputs = node.input[0], list(node.output)
    opposite = _opposite(context, source)
    context.remove_node(node.name)
    erf = context.make_node("Erf", [opposite or source], dtypes=[dtype], shapes=[shape])
    one = context.make_const(f"{name}_one", numpy_type.type(1))
    sign = "Add" if opposite else "Sub"
    context.make_node(sign, [one.output[0], erf.output[0]], outputs=outputs, dtypes=[dtype], shapes=[shape], name=name)


def _opposite(context: Graph, tensor: str) -> str | None:
    """What ``tensor`` is the negative of, where that can be seen: ``-x``, or a product with it."""
    node = context.get_node_by_output(tensor)
    if node is None or node.type not in ("Neg", "Mul"):
        return None
    if node.type == "Neg":
        return str(node.input[0])
    for index, factor in enumerate(node.inputs):
        if factor is not None and factor.type == "Neg":
            other = node.input[1 - index]
            dtype, shape = context.get_dtype(tensor), context.get_shape(tensor)
            return str(context.make_node("Mul", [factor.input[0], other], dtypes=[dtype], shapes=[shape]).output[0])
    return None


# ---- its optimizers, without copies


class _Lean:
    """One of tf2onnx's optimizers, which leaves the weights where they are."""

    def __init__(self, factory: Callable[[], GraphOptimizerBase]) -> None:
        self._optimizer = factory()

    @property
    def graph_been_opt(self) -> bool:
        return bool(self._optimizer.graph_been_opt)

    def optimize(self, graph: Graph, iteration: int) -> Graph:
        self._optimizer.opt_iteration = iteration
        graph = self._optimizer._optimize(graph)
        graph.delete_unused_nodes(graph.outputs)
        return graph


def lean_optimizers() -> dict[str, Callable[[], _Lean]]:
    """What ``optimizer.optimize_graph`` of tf2onnx is to be given."""
    return {name: partial(_Lean, factory) for name, factory in optimizer._get_optimizers().items()}


# ---- what came out


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def check_nodes(graph: GraphProto, errors: Iterable[logging.LogRecord], place: str) -> None:
    """Raise ``Unsupported`` that lists each node that is still TensorFlow's, or that tf2onnx failed on."""
    failures = dict(_failures(errors))
    wrong = [
        f"  {node.name} ({node.op_type}): {reason(node.op_type, failures.get(node.name))}"
        for node in _nodes(graph)
        if node.name in failures or not onnx.defs.has(node.op_type, OPSET, node.domain)
    ]
    if wrong:
        raise Unsupported(
            "\n".join([f"{place}: {len(wrong)} node{'s have' if len(wrong) > 1 else ' has'} no form in ONNX:", *wrong]),
            "replace these operations in the model, or export the part of it before or after them",
        )


def _failures(errors: Iterable[logging.LogRecord]) -> Iterator[tuple[str, str]]:
    """Name of each node that tf2onnx's log calls a failure, and why."""
    for record in errors:
        arguments = record.args if isinstance(record.args, tuple) else ()
        if not arguments or not isinstance(arguments[0], str):
            continue
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            yield arguments[0], f"tf2onnx fails on it: {said(record.exc_info[1])}"
        else:
            yield arguments[0], ""


def half_type(path: Path) -> str | None:
    """``float16`` or ``bfloat16`` where the model at ``path`` computes in that; None where it does not."""
    graph = onnx.load_model(str(path), load_external_data=False).graph
    types = {tensor.data_type for tensor in graph.initializer}
    for node in _nodes(graph):
        if node.op_type == "Cast":
            types.update(attribute.i for attribute in node.attribute if attribute.name == "to")
    return next((name for number, name in _HALF.items() if number in types), None)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors of the whole graph other names; what has one of those already gets another."""
    wanted = set(names.values())

    def new(name: str) -> str:
        return names.get(name) or (f"{name}__inner" if name in wanted else name)

    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = new(value.name)
    for node in graph.node:
        node.input[:] = map(new, node.input)
        node.output[:] = map(new, node.output)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _rename(body, names)


def set_inputs(graph: GraphProto, inputs: Sequence[TensorSpec], place: str) -> None:
    """Put the inputs into the order asked for, with the user's dimensions and with those inputs that nothing uses.

    Raises ``Unsupported`` for any other input.
    """
    known = {spec.name for spec in inputs}
    extra = [value.name for value in graph.input if value.name not in known]
    if extra:
        raise Unsupported(
            f"{place}: needs more inputs than it was asked for: {', '.join(extra)}",
            "name them among the inputs, or make them constants of the model",
        )
    del graph.input[:]
    for spec in inputs:
        number = onnx.TensorProto.DataType.Value(_ONNX_TYPES.get(spec.dtype, spec.dtype.upper()))
        graph.input.append(onnx.helper.make_tensor_value_info(spec.name, number, list(spec.shape)))
    for value in (*graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            # Names such as `unk__12`; the user's are inferred from the inputs.
            dim.ClearField("dim_param")

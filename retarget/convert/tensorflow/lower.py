"""The one route to ONNX: a function of TensorFlow, its variables frozen, through tf2onnx.

tf2onnx copies the whole graph for each of its optimizers and writes all weights anew after each, which took 7.5 GB for
the 102 MB of a ResNet-50. So its parts are called one by one here, and its optimizers run without that.
It also says of what it cannot convert no more than a line in its log: what is left of that in its result is an error.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from retarget.convert.tensorflow.framework import quiet, tf
from retarget.convert.tensorflow.runner import said
from retarget.errors import ToolchainFailure, Unsupported
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto
    from tf2onnx.graph import Graph, Node
    from tf2onnx.optimizer.optimizer_base import GraphOptimizerBase

with quiet():
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    from tf2onnx import optimizer, tf_loader, tfonnx

logger = logging.getLogger(__name__)

OPSET = 18
"""The newest that tf2onnx writes, in all of its versions of the last years."""

_PREFIX = "retarget_output_"


@dataclass(frozen=True)
class Frozen:
    """A ``GraphDef`` without variables, and the tensors (``node:0``) that are its inputs and outputs."""

    graph: tf.compat.v1.GraphDef
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


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
    """``function`` with the values of its variables in it. Raises ``Unsupported`` where it needs more than those."""
    captured = {tensor.name for tensor in function.graph.internal_captures}
    own = [tensor.name for tensor in function.inputs if tensor.name not in captured]
    try:
        with quiet():
            frozen = convert_variables_to_constants_v2(function, lower_control_flow=False)
    except Exception as error:
        raise ToolchainFailure(f"{place}: TensorFlow cannot freeze its variables: {said(error)}") from error
    left = [tensor for tensor in frozen.inputs if tensor.name not in own]
    if left:
        listing = "\n".join(f"  {tensor.op.name} ({tensor.dtype.name})" for tensor in left)
        raise Unsupported(
            f"{place}: uses what is neither an input nor a variable:\n{listing}",
            "tables and other resources have no form in ONNX: keep them outside the model",
        )
    return Frozen(frozen.graph.as_graph_def(), tuple(own), tuple(tensor.name for tensor in frozen.outputs))


def write(frozen: Frozen, inputs: Sequence[TensorSpec], outputs: Sequence[str], path: Path, place: str) -> list[str]:
    """Write ``frozen`` to ``path`` with ``inputs`` and ``outputs`` as its border: see ``to_onnx``."""
    notes: list[str] = []
    asked = _border(frozen, inputs)
    with quiet() as errors:
        model = _convert(frozen.graph, frozen.inputs, asked, inputs, outputs, place)
    _check_nodes(model.graph, errors, place)
    _set_inputs(model.graph, inputs, place)
    onnx.save_model(model, str(path))
    del model
    gc.collect()
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ToolchainFailure(f"{place}: tf2onnx wrote what is no valid ONNX: {said(error)}") from error
    return notes


def _border(frozen: Frozen, inputs: Sequence[TensorSpec]) -> list[str]:
    """Give the inputs the user's sizes, and each output a node of its own; gives the names of those.

    Outputs may be one and the same tensor, or an input, and can be renamed only where they are not.
    """
    specs = dict(zip(frozen.inputs, inputs))
    for node in frozen.graph.node:
        spec = specs.get(f"{node.name}:0")
        if spec is not None:
            shape = node.attr["shape"].shape
            shape.Clear()
            for dim in spec.shape:
                shape.dim.add().size = dim if isinstance(dim, int) else -1
            node.op = "Placeholder"
            del node.input[:]
        elif node.op == "PlaceholderWithDefault":
            node.op = "Identity"
            node.attr["T"].CopyFrom(node.attr["dtype"])
            for name in ("dtype", "shape"):
                node.attr.pop(name, None)
        # They hold the sizes from before.
        node.attr.pop("_output_shapes", None)
    types = _types(frozen)
    asked = []
    for index, tensor in enumerate(frozen.outputs):
        node = frozen.graph.node.add(name=f"{_PREFIX}{index}", op="Identity", input=[tensor])
        node.attr["T"].type = types[tensor]
        asked.append(f"{node.name}:0")
    return asked


def _types(frozen: Frozen) -> dict[str, int]:
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen.graph, name="")
        return {name: graph.get_tensor_by_name(name).dtype.as_datatype_enum for name in frozen.outputs}


def _convert(
    graph: tf.compat.v1.GraphDef,
    fed: Sequence[str],
    asked: Sequence[str],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    place: str,
) -> ModelProto:
    try:
        with tf.Graph().as_default():
            graph = tf_loader.tf_optimize(list(fed), list(asked), graph)
        with tf.Graph().as_default() as imported:
            tf.import_graph_def(graph, name="")
            del graph
            lowered = tfonnx.process_tf_graph(
                imported,
                opset=OPSET,
                input_names=list(fed),
                output_names=list(asked),
                custom_op_handlers={"Erfc": (_erfc, [])},
                tensors_to_rename=dict(zip([*fed, *asked], [*(spec.name for spec in inputs), *outputs])),
                continue_on_error=True,
            )
            lowered = optimizer.optimize_graph(lowered, catch_errors=False, optimizers=_lean_optimizers())
            model: ModelProto = lowered.make_model("from TensorFlow")
            return model
    except Exception as error:
        raise ToolchainFailure(f"{place}: tf2onnx fails: {type(error).__name__}: {said(error)}") from error


# ---- operators that tf2onnx lacks


def _erfc(context: Graph, node: Node, name: str, arguments: Sequence[str]) -> None:  # noqa: ARG001 - tf2onnx's own call
    """``Erfc(x) = 1 - Erf(x)``, of which exact GELU is made."""
    dtype, shape = context.get_dtype(node.output[0]), context.get_shape(node.output[0])
    numpy_type = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    source, outputs = node.input[0], list(node.output)
    context.remove_node(node.name)
    erf = context.make_node("Erf", [source], dtypes=[dtype], shapes=[shape])
    one = context.make_const(f"{name}_one", numpy_type.type(1))
    context.make_node("Sub", [one.output[0], erf.output[0]], outputs=outputs, dtypes=[dtype], shapes=[shape], name=name)


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


def _lean_optimizers() -> dict[str, Callable[[], _Lean]]:
    return {name: partial(_Lean, factory) for name, factory in optimizer._get_optimizers().items()}


# ---- what came out


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def _check_nodes(graph: GraphProto, errors: Iterable[logging.LogRecord], place: str) -> None:
    """Raise ``Unsupported`` that lists each node that is still TensorFlow's, or that tf2onnx failed on."""
    reasons = dict(_failures(errors))
    wrong = []
    for node in _nodes(graph):
        if node.name in reasons or not onnx.defs.has(node.op_type, OPSET, node.domain):
            reason = reasons.get(node.name) or "tf2onnx has no form of it in ONNX"
            wrong.append(f"  {node.name} ({node.op_type}): {reason}")
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


def _set_inputs(graph: GraphProto, inputs: Sequence[TensorSpec], place: str) -> None:
    """Put the inputs into the order asked for, with those that nothing uses. Raises ``Unsupported`` for any other."""
    found = {value.name: value for value in graph.input}
    extra = [name for name in found if name not in {spec.name for spec in inputs}]
    if extra:
        raise Unsupported(
            f"{place}: needs more inputs than it was asked for: {', '.join(extra)}",
            "name them among the inputs, or make them constants of the model",
        )
    del graph.input[:]
    for spec in inputs:
        dtype = onnx.TensorProto.DataType.Value(
            "FLOAT" if spec.dtype == "float32" else "DOUBLE" if spec.dtype == "float64" else spec.dtype.upper()
        )
        graph.input.append(onnx.helper.make_tensor_value_info(spec.name, dtype, list(spec.shape)))

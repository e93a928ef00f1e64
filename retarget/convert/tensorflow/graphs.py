"""Graphs without signatures: frozen ones, and those whose variables lie in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retarget.convert.tensorflow import forms
from retarget.convert.tensorflow.framework import quiet, tf
from retarget.convert.tensorflow.opened import DAMAGED, Opened, in_session, new_session
from retarget.convert.tensorflow.runner import said
from retarget.errors import RetargetError, did_you_mean
from retarget.source import Source

with quiet():
    from google.protobuf import text_format

_NOT_OUTPUTS = frozenset({"Assert", "NoOp", "Placeholder", "Const", "PlaceholderWithDefault"})
"""Operators that no other node takes from, in graphs of training too, and that are no output."""


def open_frozen_graph(source: Source) -> Opened:
    """A ``GraphDef`` whose weights are constants. Raises ``RetargetError``."""
    path = source.path
    definition = tf.compat.v1.GraphDef()
    try:
        with quiet():
            if path.suffix == ".pbtxt":
                text_format.Merge(path.read_text(encoding="utf-8"), definition)
            else:
                definition.ParseFromString(path.read_bytes())
            session = new_session(tf.Graph())
            with session.graph.as_default():
                tf.import_graph_def(definition, name="")
    except Exception as error:
        raise RetargetError(f"{path}: not a readable frozen graph ({said(error)})", DAMAGED) from error
    return _open(session, source)


def open_checkpoint(source: Source) -> Opened:
    """A graph and the values of its variables. Raises ``RetargetError``."""
    path = source.path
    prefix = forms.checkpoint_prefix(path)
    assert prefix is not None
    files = forms.checkpoint_files(prefix)
    for role, what in (("graph", "its graph"), ("index", "the index of its weights")):
        if role not in files:
            raise RetargetError(
                f"{path}: {prefix.name}.{'meta' if role == 'graph' else role}, {what}, is missing",
                "copy it beside the other files; a checkpoint of TensorFlow 2 has no graph: save a SavedModel instead",
            )
    session = new_session(tf.Graph())
    try:
        with quiet(), session.graph.as_default():
            saver = tf.compat.v1.train.import_meta_graph(str(files["graph"]), clear_devices=True)
            saver.restore(session, str(prefix))
    except Exception as error:
        raise RetargetError(f"{path}: not a readable checkpoint ({said(error)})", DAMAGED) from error
    return _open(session, source)


def _open(session: tf.compat.v1.Session, source: Source) -> Opened:
    operations = session.graph.get_operations()
    wanted_inputs = _names(source.options.get("inputs"))
    wanted_outputs = _names(source.options.get("outputs"))
    if wanted_outputs:
        outputs = {name: _tensor(session.graph, name, source.path) for name in wanted_outputs}
    else:
        outputs = {
            op.name if len(op.outputs) == 1 else f"{op.name}:{tensor.value_index}": tensor
            for op in operations
            for tensor in op.outputs
            if _is_output(op)
        }
    if wanted_inputs:
        inputs = {name: _tensor(session.graph, name, source.path) for name in wanted_inputs}
    else:
        inputs = {op.name: op.outputs[0] for op in operations if op.type == "Placeholder"}
    return in_session(session, inputs, outputs, ())


def _names(value: object) -> Sequence[str]:
    return [str(name) for name in value] if isinstance(value, (list, tuple)) else []


def _is_output(operation: tf.Operation) -> bool:
    return operation.type not in _NOT_OUTPUTS and not any(tensor.consumers() for tensor in operation.outputs)


def _tensor(graph: tf.Graph, name: str, path: Path) -> tf.Tensor:
    """The tensor ``node`` or ``node:1``. Raises ``RetargetError`` with the nearest name where there is none."""
    node, _, index = name.partition(":")
    try:
        operation = graph.get_operation_by_name(node)
        return operation.outputs[int(index or 0)]
    except (KeyError, IndexError, ValueError) as error:
        names = [op.name for op in graph.get_operations() if op.outputs]
        near = did_you_mean(node, names)
        raise RetargetError(
            f"{path}: has no tensor '{name}'", near if near.startswith("did") else "`node` or `node:1` names a tensor"
        ) from error

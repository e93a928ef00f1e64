"""Graphs without signatures: frozen ones, and those whose variables lie in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from retarget.convert.tensorflow import forms
from retarget.convert.tensorflow.framework import quiet, tf
from retarget.convert.tensorflow.opened import Opened, in_session, new_session, unreadable
from retarget.convert.tensorflow.operators import refuse_files
from retarget.errors import RetargetError, did_you_mean
from retarget.source import Source
from retarget.spec import DTYPES

with quiet():
    from google.protobuf import text_format


_LOOPS = frozenset({"Switch", "While", "StatelessWhile"})


def open_frozen_graph(source: Source) -> Opened:
    """A ``GraphDef`` whose weights are constants. Raises ``RetargetError``."""
    path = source.path
    definition = tf.compat.v1.GraphDef()
    try:
        with quiet():
            if forms.is_text(path):
                text_format.Merge(path.read_text(encoding="utf-8"), definition)
            else:
                definition.ParseFromString(path.read_bytes())
            session = new_session(tf.Graph())
            if not source.trust:
                refuse_files(definition, str(path), runs=[node.name for node in definition.node])
            with session.graph.as_default():
                tf.import_graph_def(definition, name="")
    except RetargetError:
        raise
    except Exception as error:
        raise unreadable(path, "frozen graph", error) from error
    return _open(session, source)


def open_checkpoint(source: Source) -> Opened:
    """A graph and the values of its variables. Raises ``RetargetError``."""
    path = source.path
    prefix = forms.checkpoint_prefix(path) or path.with_suffix("")
    files = forms.checkpoint_files(prefix)
    for role, what in (("graph", "its graph"), ("index", "the index of its weights")):
        if role not in files:
            raise RetargetError(
                f"{path}: {prefix.name}.{'meta' if role == 'graph' else role}, {what}, is missing",
                "copy it beside the other files; a checkpoint of TensorFlow 2 has no graph: save a SavedModel instead",
            )
    session = new_session(tf.Graph())
    meta = tf.compat.v1.MetaGraphDef()
    try:
        meta.ParseFromString(files["graph"].read_bytes())
        with quiet(), session.graph.as_default():
            saver = tf.compat.v1.train.import_meta_graph(meta, clear_devices=True)
    except Exception as error:
        raise unreadable(files["graph"], "graph", error) from error
    if saver is None:
        raise RetargetError(f"{files['graph']}: has no variables to read", "save it with tf.compat.v1.train.Saver")
    opened = _open(session, source)
    if not source.trust:
        refuse_files(meta.graph_def, str(path), runs=opened.runs, restores=[meta.saver_def.restore_op_name])
    try:
        with quiet(), session.graph.as_default():
            saver.restore(session, str(prefix))
    except Exception as error:
        raise unreadable(path, "checkpoint", error) from error
    return opened


def _open(session: tf.compat.v1.Session, source: Source) -> Opened:
    """The part of the graph between the inputs and outputs that the user names, or its placeholders and its ends."""
    operations, path = session.graph.get_operations(), source.path
    placeholders = [op.outputs[0] for op in operations if op.type == "Placeholder"]
    inputs = {spec.name: _tensor(session.graph, spec.name, path) for spec in source.inputs}
    named = source.options.get("outputs")
    if isinstance(named, (list, tuple)) and named:
        outputs = {str(name): _tensor(session.graph, str(name), path) for name in named}
        notes: tuple[str, ...] = ()
    else:
        outputs = _ends(operations, [*placeholders, *inputs.values()])
        notes = (f"the outputs are what no other node takes: {', '.join(outputs)}",)
    if not outputs:
        raise RetargetError(
            f"{path}: has no end that depends on a placeholder",
            "name its outputs in the model's options: `options: {outputs: [node]}`",
        )
    needed = _placeholders(operations, outputs.values(), inputs.values())
    if inputs and needed:
        names = ", ".join(tensor.op.name for tensor in needed)
        raise RetargetError(f"{path}: the outputs depend on what is not among the inputs: {names}", "name it too")
    return in_session(session, inputs or {tensor.op.name: tensor for tensor in needed}, outputs, notes, str(path))


def _ends(operations: Sequence[tf.Operation], inputs: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
    """What depends on one of ``inputs``, is of numbers and is taken by no node: no assignment, summary or loop."""
    reached = {tensor.ref() for tensor in inputs}
    ends = {}
    waiting = list(inputs)
    while waiting:
        for operation in waiting.pop().consumers():
            for tensor in operation.outputs:
                if tensor.ref() not in reached:
                    reached.add(tensor.ref())
                    waiting.append(tensor)
    for operation in operations:
        if operation.type == "Placeholder" or any(tensor.consumers() for tensor in operation.outputs):
            continue
        for tensor in operation.outputs:
            if tensor.dtype.name in DTYPES and tensor.ref() in reached:
                ends[_name(tensor)] = tensor
    # Loops end in each of their variables, counters among them; what is done with their results is the output.
    return {name: end for name, end in ends.items() if not _is_of_a_loop(end.op)} or ends


def _is_of_a_loop(operation: tf.Operation) -> bool:
    kind = str(operation.type)
    return kind == "Exit" or (kind == "Identity" and str(operation.inputs[0].op.type) in _LOOPS)


def _placeholders(
    operations: Sequence[tf.Operation], outputs: Iterable[tf.Tensor], cuts: Iterable[tf.Tensor]
) -> list[tf.Tensor]:
    """The placeholders that ``outputs`` depend on, other than through ``cuts``, in the order of the graph."""
    seen = {tensor.ref() for tensor in cuts}
    waiting = [tensor for tensor in outputs if tensor.ref() not in seen]
    order = {operation.name: place for place, operation in enumerate(operations)}
    found = []
    while waiting:
        tensor = waiting.pop()
        if tensor.ref() in seen:
            continue
        seen.add(tensor.ref())
        if tensor.op.type == "Placeholder":
            found.append(tensor)
        waiting.extend(tensor.op.inputs)
    return sorted(found, key=lambda tensor: order[tensor.op.name])


def _name(tensor: tf.Tensor) -> str:
    """``node``, or ``node:1`` where the node has several outputs."""
    return tensor.op.name if len(tensor.op.outputs) == 1 else str(tensor.name)


def _tensor(graph: tf.Graph, name: str, path: Path) -> tf.Tensor:
    """The tensor ``node`` or ``node:1``. Raises ``RetargetError`` with the nearest name where there is none."""
    node, _, index = name.partition(":")
    try:
        return graph.get_operation_by_name(node).outputs[int(index or 0)]
    except (KeyError, IndexError, ValueError) as error:
        near = did_you_mean(node, (op.name for op in graph.get_operations() if op.outputs))
        raise RetargetError(
            f"{path}: has no tensor '{name}'", near if near.startswith("did") else "`node` or `node:1` names a tensor"
        ) from error

"""SavedModels: of TensorFlow 2, which are functions of objects, and of TensorFlow 1, which are graphs in a session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retarget.convert.tensorflow import forms
from retarget.convert.tensorflow.framework import quiet, tf
from retarget.convert.tensorflow.lower import freeze
from retarget.convert.tensorflow.names import choose_signature
from retarget.convert.tensorflow.opened import (
    Opened,
    border,
    in_session,
    new_session,
    unreadable,
)
from retarget.convert.tensorflow.operators import refuse_files
from retarget.errors import DAMAGED, RetargetError
from retarget.source import Source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from retarget.protocols import Array, Feeds

with quiet():
    from google.protobuf import text_format
    from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

_SERVE = "serve"

_INITIALIZER = "__saved_model_init_op"
_INITIALIZERS = ("saved_model_main_op", "legacy_init_op")
"""The signature, and the collections of older files, whose operations are run once the variables are there."""


def open_saved_model(source: Source) -> Opened:
    """The signature that ``source`` names, or the default. Raises ``RetargetError``."""
    folder = source.path
    if not folder.is_dir():
        raise RetargetError(f"{folder}: is a part of a SavedModel", f"give the folder that holds it: {folder.parent}")
    meta = _meta_graph(folder)
    tags = list(meta.meta_info_def.tags)
    place = str(folder)
    signature = choose_signature(
        [name for name in meta.signature_def if not name.startswith("__")], source.signature, place
    )
    if not source.trust:
        _refuse_files(meta, signature, place)
    notes = (f"the signature is '{signature}'",)
    try:
        with quiet():
            if meta.HasField("object_graph_def"):
                return _of_objects(folder, tags, signature, notes)
            return _of_a_graph(folder, tags, signature, notes)
    except RetargetError:
        raise
    except Exception as error:
        raise unreadable(folder, "SavedModel", error) from error


def _meta_graph(folder: Path) -> meta_graph_pb2.MetaGraphDef:
    """The graph for serving, or the only one."""
    path = next(path for name in forms.SAVED_MODEL_FILES if (path := folder / name).is_file())
    content = saved_model_pb2.SavedModel()
    try:
        if forms.is_text(path):
            text_format.Merge(path.read_text(encoding="utf-8"), content)
        else:
            content.ParseFromString(path.read_bytes())
    except Exception as error:
        raise unreadable(path, "SavedModel", error) from error
    graphs = list(content.meta_graphs)
    serving = [graph for graph in graphs if _SERVE in graph.meta_info_def.tags] or graphs
    if len(serving) != 1:
        tags = "; ".join(", ".join(graph.meta_info_def.tags) or "no tag" for graph in graphs)
        raise RetargetError(
            f"{path}: holds {len(graphs)} graphs ({tags or 'none'}), and not one with the tag '{_SERVE}' alone",
            DAMAGED if not graphs else f"save the one to convert with the tag '{_SERVE}'",
        )
    return serving[0]


def _refuse_files(meta: meta_graph_pb2.MetaGraphDef, signature: str, place: str) -> None:
    if meta.HasField("object_graph_def"):
        # Any of them may be what makes or fills a resource, and is then called when the model is loaded.
        refuse_files(meta.graph_def, place, runs=(), calls=meta.object_graph_def.concrete_functions)
        return
    runs = [info.name for info in meta.signature_def[signature].outputs.values()]
    if _INITIALIZER in meta.signature_def:
        runs += [info.name for info in meta.signature_def[_INITIALIZER].outputs.values()]
    for collection in _INITIALIZERS:
        if collection in meta.collection_def:
            runs += meta.collection_def[collection].node_list.value
    refuse_files(meta.graph_def, place, runs=runs, restores=[meta.saver_def.restore_op_name])


def _of_objects(folder: Path, tags: Sequence[str], signature: str, notes: tuple[str, ...]) -> Opened:
    loaded = tf.saved_model.load(str(folder), tags=list(tags))
    function = loaded.signatures[signature]
    _, takes = function.structured_input_signature
    gives = function.structured_outputs
    # TensorFlow keeps both flat, by their sorted keys.
    inputs = tuple(border(name, takes[name]) for name in sorted(takes))
    outputs = tuple(border(name, gives[name]) for name in sorted(gives))

    def call(feeds: Feeds) -> Sequence[Array]:
        # `loaded` owns the variables: without it they are gone.
        assert loaded is not None
        results = function(**{spec.name: tf.constant(feeds[spec.name]) for spec in inputs})
        return [results[spec.name].numpy() for spec in outputs]

    return Opened(inputs, outputs, call, lambda: freeze(function, str(folder)), notes)


def _of_a_graph(folder: Path, tags: Sequence[str], signature: str, notes: tuple[str, ...]) -> Opened:
    session = new_session(tf.Graph())
    with session.graph.as_default():
        meta = tf.compat.v1.saved_model.load(session, list(tags), str(folder))
    chosen = meta.signature_def[signature]

    def tensors(infos: Mapping[str, meta_graph_pb2.TensorInfo]) -> dict[str, tf.Tensor]:
        return {name: session.graph.get_tensor_by_name(infos[name].name) for name in sorted(infos)}

    return in_session(session, tensors(chosen.inputs), tensors(chosen.outputs), notes, str(folder))

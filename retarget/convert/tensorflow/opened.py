"""A TensorFlow model ready to run and to freeze, in whatever form it was stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retarget.convert.tensorflow.framework import THREADS, quiet, tf
from retarget.convert.tensorflow.lower import Frozen
from retarget.convert.tensorflow.names import Border
from retarget.convert.tensorflow.runner import said
from retarget.errors import DAMAGED, RetargetError

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

_UNKNOWN = ("Op type not registered", "Unknown op", "no op named")
_NEWER = (
    "its operators come from a library, or a version of TensorFlow, that is not installed here: "
    "have it converted where it was made, with `toolchains: {tensorflow: {python: …}}`"
)


def unreadable(path: Path, what: str, error: Exception) -> RetargetError:
    """That ``path`` could not be read as ``what``, and why that may be."""
    line = said(error)
    hint = _NEWER if any(words in line for words in _UNKNOWN) else DAMAGED
    return RetargetError(f"{path}: not a readable {what} ({line})", hint)


@dataclass(frozen=True)
class Opened:
    """What a model takes and gives, how it is run as it stands, and how it is frozen."""

    inputs: tuple[Border, ...]
    outputs: tuple[Border, ...]
    call: Callable[[Feeds], Sequence[Array]]
    freeze: Callable[[], Frozen]
    notes: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    """Of a graph in a session: the nodes that are run."""


def border(name: str, tensor: tf.Tensor | tf.TensorSpec) -> Border:
    """``tensor`` as an input or output called ``name``."""
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    # A reference is a variable of TensorFlow 1.
    return Border(name, tensor.dtype.base_dtype.name, shape)


def in_session(
    session: tf.compat.v1.Session,
    inputs: Mapping[str, tf.Tensor],
    outputs: Mapping[str, tf.Tensor],
    notes: Sequence[str],
    place: str,
) -> Opened:
    """A graph of TensorFlow 1 with its variables in ``session``."""
    fed, fetched = list(inputs.values()), list(outputs.values())

    def call(feeds: Feeds) -> Sequence[Array]:
        results: Sequence[Array] = session.run(fetched, {tensor: feeds[name] for name, tensor in inputs.items()})
        return results

    def freeze() -> Frozen:
        names = list({tensor.op.name: None for tensor in fetched})
        try:
            with quiet():
                graph = tf.compat.v1.graph_util.convert_variables_to_constants(
                    session, session.graph.as_graph_def(), names
                )
        except Exception as error:
            raise RetargetError(
                f"{place}: TensorFlow cannot freeze its variables: {said(error)}",
                "a graph whose weights are not constants needs its checkpoint: give the folder with both",
            ) from error
        return Frozen(
            graph,
            tuple(tensor.name for tensor in fed),
            tuple(tensor.name for tensor in fetched),
            tuple(tensor.dtype.base_dtype.as_datatype_enum for tensor in fetched),
        )

    return Opened(
        tuple(border(name, tensor) for name, tensor in inputs.items()),
        tuple(border(name, tensor) for name, tensor in outputs.items()),
        call,
        freeze,
        tuple(notes),
        tuple(tensor.op.name for tensor in fetched),
    )


def new_session(graph: tf.Graph) -> tf.compat.v1.Session:
    """A session with fixed threads."""
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=THREADS, inter_op_parallelism_threads=THREADS)
    return tf.compat.v1.Session(graph=graph, config=config)

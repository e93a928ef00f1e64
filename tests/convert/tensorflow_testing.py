"""TensorFlow models as TensorFlow itself writes them, and what the tests of its frontend hold them to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

from retarget import graph
from retarget.compare import snr_db
from retarget.convert.tensorflow import Options, export, load
from retarget.convert.tensorflow.framework import quiet, tf
from retarget.session import Session
from retarget.source import Exported, Source
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from retarget.protocols import JSON, Array, Feeds

Floats: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"
Made: TypeAlias = "tuple[Exported, ir.Model]"


def source_of(
    path: Path,
    *inputs: str,
    outputs: tuple[str, ...] = (),
    signature: str | None = None,
    options: Mapping[str, JSON] | None = None,
    trust: bool = False,
) -> Source:
    """The model at ``path`` as a recipe would give it."""
    complete = msgspec.to_builtins(msgspec.convert(dict(options or {}), Options))
    specs = tuple(TensorSpec.parse(text) for text in inputs)
    return Source(path, specs, {}, outputs=outputs, signature=signature, options=complete, trust=trust)


def converted(source: Source, out: Path) -> Made:
    """Export and load."""
    out.mkdir(exist_ok=True)
    exported = export.export(source, None, out)
    model = load.load(out, source, exported)
    assert tuple(graph.value_spec(value) for value in model.graph.inputs) == exported.inputs
    assert tuple(value.name for value in model.graph.outputs) == exported.outputs
    return exported, model


def round_trip(source: Source, out: Path, feeds: Sequence[Feeds], *, least: float = 100.0) -> Made:
    """Export, load, run, and hold every output against TensorFlow's own at ``least`` dB."""
    exported, model = converted(source, out)
    seen: dict[str, Array] = {}
    with export.reference(source, exported) as runner, Session(model) as session:
        for feed in feeds:
            expected, actual = runner.run(feed), session.run(feed)
            assert tuple(expected) == exported.outputs
            for name, value in expected.items():
                assert value.dtype == actual[name].dtype, name
                assert value.shape == actual[name].shape, name
                assert snr_db(value, actual[name]) >= least, name
                assert value.size == 1 or value.std() > 0, name
                if name in seen and seen[name].shape == value.shape:
                    assert not np.array_equal(seen[name], value), name
                seen[name] = value
    return exported, model


def normal(*shape: int, seed: int = 0) -> Floats:
    """Normal float32."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f4")


def weights(*shape: int) -> Floats:
    """Such that what a layer gives is about as large as what it takes."""
    return normal(*shape, seed=7) / np.float32(np.sqrt(np.prod(shape[:-1])))


def save_function(
    function: Callable[..., object], folder: Path, *specs: tf.TensorSpec, **variables: tf.Variable
) -> Path:
    """A SavedModel whose only signature is ``function`` of ``specs``; it may use ``variables``."""
    module = tf.Module()
    for name, variable in variables.items():
        setattr(module, name, variable)
    with quiet():
        traced = tf.function(function, input_signature=specs)
        tf.saved_model.save(module, str(folder), signatures={"serving_default": traced})
    return folder


def save_graph(build: Callable[[], object], path: Path) -> Path:
    """A frozen graph: what ``build`` makes in a graph without variables."""
    with tf.Graph().as_default() as built:
        build()
    path.write_bytes(built.as_graph_def().SerializeToString())
    return path


def save_checkpoint(build: Callable[[], object], prefix: Path) -> Path:
    """A checkpoint of TensorFlow 1 of what ``build`` makes, its variables initialized; gives the folder."""
    prefix.parent.mkdir(exist_ok=True)
    with quiet(), tf.Graph().as_default():
        build()
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.train.Saver().save(session, str(prefix))
    return prefix.parent

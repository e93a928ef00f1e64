"""Keras models as Keras itself writes them, and what the tests of its frontend hold them to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx_ir as ir

from retarget import graph
from retarget.compare import snr_db
from retarget.convert.keras import Options, export, load
from retarget.convert.keras.framework import load_keras
from retarget.convert.tensorflow.framework import quiet
from retarget.passes import presets
from retarget.session import Session
from retarget.source import Exported, Source
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import JSON, Array, Feeds, Outputs

with quiet():
    keras: Any = load_keras("keras")

Made = tuple[Exported, ir.Model]
Build = Callable[[ModuleType], Any]
"""Makes a model with the Keras that it is given."""


def keras_2() -> Any:
    """Keras 2, to write real files of it."""
    with quiet():
        return load_keras("tf_keras")


def source_of(
    path: Path,
    *inputs: str,
    outputs: tuple[str, ...] = (),
    options: Mapping[str, JSON] | None = None,
    factory: tuple[Path, str] | None = None,
    trust: bool = False,
) -> Source:
    """The model at ``path`` as a recipe would give it."""
    complete = msgspec.to_builtins(msgspec.convert(dict(options or {}), Options))
    specs = tuple(TensorSpec.parse(text) for text in inputs)
    return Source(path, specs, {}, outputs=outputs, factory=factory, options=complete, trust=trust)


def save(model: Any, path: Path) -> Path:
    """``model`` with weights that make its outputs vary, in the form that the suffix says."""
    rng = np.random.default_rng(0)
    values = []
    for weight, value in zip(model.weights, model.get_weights(), strict=True):
        name = getattr(weight, "path", weight.name)
        if "gamma" in name or "variance" in name:
            value = rng.uniform(0.5, 1.5, value.shape)
        elif value.dtype.kind == "f" and value.ndim:
            value = rng.normal(0, 0.4, value.shape)
        values.append(value)
    model.set_weights(values)
    return save_as_it_is(model, path)


def save_as_it_is(model: Any, path: Path) -> Path:
    with quiet():
        model.save(str(path))
    return path


def save_weights(model: Any, path: Path) -> None:
    with quiet():
        model.save_weights(str(path))


def feeds_for(specs: Sequence[TensorSpec], batch: int) -> Feeds:
    """Numbers for each input: the first dimension ``batch``, other open ones some more."""
    rng = np.random.default_rng(batch)
    feeds: dict[str, Array] = {}
    for spec in specs:
        shape = spec.at({symbol: batch if symbol == "N" else batch + 5 for symbol in spec.symbols})
        values: Array = rng.standard_normal(shape) if "float" in spec.dtype else rng.integers(0, 5, shape)
        feeds[spec.name] = values.astype(spec.dtype)
    return feeds


def converted(source: Source, out: Path) -> Made:
    """Export and load."""
    out.mkdir(exist_ok=True)
    exported = export.export(source, None, out)
    model = load.load(out, source, exported)
    assert tuple(graph.value_spec(value) for value in model.graph.inputs) == exported.inputs
    assert tuple(value.name for value in model.graph.outputs) == exported.outputs
    return exported, model


def round_trip(source: Source, out: Path, feeds: Sequence[Feeds] = (), *, least: float = 100.0) -> Made:
    """Export, load, run, and hold every output against Keras's own at ``least`` dB."""
    exported, model = converted(source, out)
    seen: dict[str, Array] = {}
    with export.reference(source, exported) as runner, Session(model) as session:
        for feed in feeds or [feeds_for(exported.inputs, batch) for batch in (2, 3)]:
            expected, actual = runner.run(feed), session.run(feed)
            hold(expected, actual, exported.outputs, least)
            for name, value in expected.items():
                assert name not in seen or not np.array_equal(seen[name], value)
                seen[name] = value
    return exported, model


def hold(expected: Outputs, actual: Outputs, names: Sequence[str], least: float) -> None:
    """Each of ``actual`` is what was expected, which varies."""
    assert tuple(expected) == tuple(names)
    for name, value in expected.items():
        assert value.dtype == actual[name].dtype
        assert value.shape == actual[name].shape
        assert value.std() > 0
        assert snr_db(value, actual[name]) >= least


def transposes_left(model: ir.Model) -> int:
    """How many ``Transpose`` stand in ``model`` after the default passes."""
    for _, run in presets.build("default", {}):
        model = run(model).model
    return sum(node.op_type == "Transpose" for node in graph.all_nodes(model))

"""From a Keras file in any of its forms to a model, without running code from the file."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from retarget.convert.keras import legacy, safety
from retarget.convert.keras.document import Config, Document, read, write_copy, write_weights
from retarget.convert.keras.framework import generation, load_keras, name_of
from retarget.convert.tensorflow.framework import quiet, tf
from retarget.convert.tensorflow.runner import said
from retarget.errors import RetargetError, ToolchainFailure
from retarget.source import Source
from retarget.user_code import blame, load_function

_FACTORY = "a factory returns {name: class} of the classes that the file names, or the model that the weights are of"
_HALF = ("float16", "bfloat16")


@dataclass
class Loaded:
    """A Keras model, whichever Keras it is of, and what a user must know of it."""

    model: Any
    keras: ModuleType
    document: Document
    notes: list[str] = field(default_factory=list)


def load(source: Source) -> Loaded:
    """Read ``source``. Raises ``RetargetError``."""
    document = read(source.path)
    keras = load_keras(str(source.options.get("implementation", "keras")))
    given = _from_factory(source)
    if given is None and document.config is None:
        raise RetargetError(
            f"{source.path}: holds weights alone, not the model that they are of",
            "give --factory FILE.py:FUNCTION, a function that returns the model; or save the whole model with "
            "model.save('model.keras')",
        )
    with quiet(), tempfile.TemporaryDirectory(prefix="keras-") as folder:
        if given is None or isinstance(given, Mapping):
            loaded = _whole(source, document, keras, given or {}, Path(folder))
        else:
            loaded = _weights(source, document, keras, given, Path(folder))
    loaded.notes.insert(0, f"{document.form}, loaded by {name_of(keras)}")
    return loaded


def _whole(
    source: Source, document: Document, keras: ModuleType, custom: Mapping[str, Callable[..., Any]], folder: Path
) -> Loaded:
    """The model that the file describes, with its weights."""
    config = document.config
    if config is None:
        raise RetargetError(
            f"{source.path}: holds weights alone, and {_factory_name(source)} returns classes",
            "return the model that the weights are of",
        )
    running = generation(keras)
    if running == 2 and not document.legacy:
        raise RetargetError(
            f"{source.path}: is a {document.form}, which {name_of(keras)} does not read",
            "convert it with Keras 3 in the environment of the frontend",
        )
    config = _without_training(config)
    findings = safety.check(config, keras, custom, source.path, trust=source.trust)
    objects = {**custom, **{name: custom[found] for name, found in findings.used.items()}}
    notes: list[str] = []
    if running == 3:
        config = _in_float32(config, notes)
        if document.legacy:
            config = legacy.modernise(config, keras, objects, source.path)
            objects = {**legacy.custom_objects(keras, tf), **objects}
        elif not document.archive:
            config = legacy.name_operations(config, keras)
    path = write_copy(document, config, folder)
    settings = {"safe_mode": not source.trust} if "safe_mode" in _parameters(keras.models.load_model) else {}
    try:
        model = keras.models.load_model(str(path), custom_objects=dict(objects), compile=False, **settings)
    except Exception as error:
        raise _failed(source, f"{name_of(keras)} cannot load it", error) from error
    return Loaded(model, keras, document, notes)


def _weights(source: Source, document: Document, keras: ModuleType, model: object, folder: Path) -> Loaded:
    """The factory's model with the weights of the file; what the file says of its own model is not looked at."""
    if not isinstance(model, keras.Model):
        raise RetargetError(f"{_factory_name(source)} returned {type(model).__name__}, not a Keras model", _FACTORY)
    path = write_weights(document, folder)
    try:
        model.load_weights(str(path))
    except Exception as error:
        raise _failed(source, f"its weights do not fit the model of {_factory_name(source)}", error) from error
    return Loaded(model, keras, document)


# ---- the user's factory


def _from_factory(source: Source) -> object:
    """What the user's function returns; None where there is none."""
    if source.factory is None:
        return None
    file, name = source.factory
    function = load_function(file, name)
    arguments = source.options.get("factory_args") or {}
    assert isinstance(arguments, Mapping)
    try:
        with quiet():
            result = function(**arguments)
    except Exception as error:
        raise blame(file, f"{name}()", error) from error
    if isinstance(result, Mapping):
        for key, value in result.items():
            if not isinstance(key, str) or not callable(value):
                raise RetargetError(f"{_factory_name(source)} returned {key!r}: {type(value).__name__}", _FACTORY)
    elif not hasattr(result, "load_weights"):
        raise RetargetError(f"{_factory_name(source)} returned {type(result).__name__}", _FACTORY)
    return result


def _factory_name(source: Source) -> str:
    assert source.factory is not None
    return f"{source.factory[0]}:{source.factory[1]}"


# ---- the configuration


def _without_training(config: Config) -> Config:
    """Nothing of how models within were compiled: a loss may be of the user's own, and is not needed."""
    return {key: _each(value, _without_training) for key, value in config.items() if key != "compile_config"}


def _each(value: Any, change: Callable[[Config], Any]) -> Any:
    if isinstance(value, dict):
        return change(value)
    return [_each(item, change) for item in value] if isinstance(value, list) else value


def _in_float32(config: Config, notes: list[str]) -> Config:
    """Layers that compute in half precision compute in float32: their variables are in that already."""
    found: set[str] = set()

    def widen(value: Config) -> Any:
        name = value["config"].get("name") if isinstance(value.get("config"), dict) else None
        policy = value.get("class_name") in ("DTypePolicy", "FloatDTypePolicy", "Policy", "PolicyV1")
        if policy and isinstance(name, str) and name.startswith("mixed_"):
            found.add(name)
            return "float32"
        result = {}
        for key, item in value.items():
            if key == "dtype" and isinstance(item, str) and item.startswith("mixed_"):
                found.add(item)
                item = "float32"
            result[key] = _each(item, widen)
        return result

    changed: Config = widen(config)
    notes += [f"layers of the policy {name} compute in float32" for name in sorted(found)]
    return changed


# ---- small pieces


def _failed(source: Source, doing: str, error: Exception) -> ToolchainFailure:
    words = said(error)
    hint = "the file may be damaged, or of another version of Keras: `toolchains: {keras: {python: …}}` names another"
    return ToolchainFailure(f"{source.path}: {doing}: {type(error).__name__}: {words}", hint)


def _parameters(function: Callable[..., Any]) -> Iterator[str]:
    return iter(inspect.signature(function).parameters)

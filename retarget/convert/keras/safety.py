"""Look for code in the configuration of a model, before Keras sees any of it.

A configuration names classes and functions, and Keras builds what it names. What each name may stand for is listed
here: layers, initializers and the like of Keras itself, and the operations of ``keras.ops``. All else is either known
to run or load foreign code, or is the user's own and must come from a factory.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

from retarget.convert.keras.tensorflow_ops import OPERATOR_LAYERS, is_known
from retarget.errors import RetargetError

if TYPE_CHECKING:
    from retarget.protocols import JSON

DATA = frozenset({"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"})
"""What Keras writes for values that are no objects of its own."""

MODELS = frozenset({"Functional", "Model", "Sequential"})

_FOREIGN = {
    "TFSMLayer": "loads a SavedModel from a path",
    "TorchModuleWrapper": "carries a pickled PyTorch module, which is code",
    "JaxLayer": "carries functions of JAX, which are code",
    "FlaxLayer": "carries functions of JAX, which are code",
}
"""Layers of Keras that bring what is not of Keras."""

_RAW_OPERATORS = {
    "TensorFlowOpLayer": "carries a raw node of TensorFlow",
    "ClassMethod": "calls a method that it names",
    "InstanceMethod": "calls a method that it names",
    "InstanceProperty": "reads an attribute that it names",
}
"""Layers by which Keras 2 keeps calls of TensorFlow in a model, beside those that ``tensorflow_ops`` knows."""

_FILES = ("vocabulary", "idf_weights")
"""Settings of the layers for text that may be the path of a file instead of its content."""

SPACES = ("layers", "initializers", "regularizers", "constraints", "dtype_policies", "mixed_precision", "quantizers")
"""The parts of Keras whose classes a configuration may name; an earlier one is meant where two have a name."""

_FUNCTIONS = ("activations", "initializers", "regularizers", "constraints", "ops")
_KERAS = re.compile(r"(tensorflow\.(python\.)?)?(tf_)?keras(\..+)?")
_OPERATIONS = re.compile(r"keras\.(src\.)?ops(\.\w+)*")
CLASSES = {"ThresholdedReLU": "ReLU"}
"""Layers of Keras 2 that are another layer of Keras 3, with other settings."""

ONLY_KERAS_2 = frozenset({"LocallyConnected1D", "LocallyConnected2D", "CuDNNLSTM", "CuDNNGRU", "DenseFeatures"})
"""Layers that Keras 3 has no more, nor another for."""

_CALLS = frozenset({"Map", "Scan", "AssociativeScan", "WhileLoop", "ForiLoop", "Cond", "VectorizedMap", "Switch"})
"""Operations that call a function that they are given."""

_HINT = "if you know where the file comes from, --trust loads it and runs its code"


@dataclass
class Findings:
    """What a configuration holds that is not of Keras alone."""

    code: list[str] = field(default_factory=list)
    """Each as ``layer 'x' (Lambda) carries code``."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Class or function that is not of Keras → the layer that needs it."""
    used: dict[str, str] = field(default_factory=dict)
    """What the configuration calls an object of the user's → what the user calls it."""


def check(config: JSON, keras: ModuleType, custom: Mapping[str, object], path: object, *, trust: bool) -> Findings:
    """Raise ``RetargetError`` that lists every layer which carries code, unless ``trust``, or that needs a factory.

    ``custom`` are the user's own objects, which come from his own file.
    """
    findings = Findings()
    try:
        _walk(config, "", "", keras, custom, findings)
    except RecursionError as error:
        raise RetargetError(f"{path}: its configuration is nested too deep", "the file is damaged") from error
    if findings.code and not trust:
        heading = f"{path}: its configuration carries code, which loading the model would run:"
        raise RetargetError("\n".join([heading, *(f"  {line}" for line in findings.code)]), _HINT)
    if findings.unknown:
        names = ", ".join(sorted(findings.unknown))
        lines = [f"  {_place(layer)} needs '{name}'" for name, layer in sorted(findings.unknown.items())]
        raise RetargetError(
            "\n".join([f"{path}: {_many(len(findings.unknown))} not of Keras:", *lines]),
            f"give --factory FILE.py:FUNCTION, a function that returns {{name: class}} for {names}",
        )
    return findings


def _walk(
    config: JSON, key: str, layer: str, keras: ModuleType, custom: Mapping[str, object], findings: Findings
) -> None:
    """Look at everything below ``config``, which stands under ``key`` in the configuration of ``layer``."""
    if isinstance(config, list):
        for item in config:
            _walk(item, key, layer, keras, custom, findings)
    elif isinstance(config, dict):
        name = config.get("class_name")
        if isinstance(name, str):
            layer = _look_at(config, name, key, layer, keras, custom, findings)
        elif "spec_name" in config or "function_type" in config:
            _refuse(findings, layer, "an object without a class", "is nothing that Keras writes")
        for inner, item in config.items():
            _walk(item, inner, layer, keras, custom, findings)
    elif isinstance(config, str):
        _look_at_string(config, key, layer, keras, custom, findings)


def _look_at(
    config: Mapping[str, JSON],
    name: str,
    key: str,
    layer: str,
    keras: ModuleType,
    custom: Mapping[str, object],
    findings: Findings,
) -> str:
    """Judge one object. Gives the layer that the objects within it belong to."""
    inner = config.get("config")
    own = _layer_name(config)
    registered = config.get("registered_name")
    if name in DATA:
        return layer
    if name == "__lambda__":
        _refuse(findings, layer, "a lambda", "carries code")
    elif name == "function":
        if not isinstance(inner, str):
            _refuse(findings, layer, "a function", "carries code")
        elif (mine := custom_name((str(registered or ""), inner), custom)) is not None:
            findings.used.update(dict.fromkeys((str(registered or inner), inner), mine))
        elif not _is_function(inner, config.get("module"), keras):
            findings.unknown.setdefault(_full_name(config.get("module"), inner), layer)
    elif (mine := custom_name((str(registered or ""), name), custom)) is not None:
        findings.used.update(dict.fromkeys((str(registered or name), name), mine))
        return own or layer
    elif name == "Lambda" and _of_keras(config.get("module")):
        _look_at_lambda(inner, own or layer, findings)
        return own or layer
    elif name in OPERATOR_LAYERS:
        symbol = inner.get("function") if isinstance(inner, dict) else None
        if not (isinstance(symbol, str) and is_known(symbol)):
            _refuse(findings, own or layer, name, f"calls tf.{symbol}, which is none of the known functions")
        return own or layer
    elif name in _FOREIGN or name in _RAW_OPERATORS:
        _refuse(findings, own or layer, name, _FOREIGN.get(name) or _RAW_OPERATORS[name])
    elif name in _CALLS and _is_operation_module(config.get("module")):
        _refuse(findings, own or layer, name, "calls a function that it names")
    elif name in ONLY_KERAS_2 and _of_keras(config.get("module")):
        return own or layer
    elif find_class(config, CLASSES.get(name, name), key, keras) is None:
        findings.unknown.setdefault(_full_name(config.get("module"), str(registered or name)), own or layer)
    if isinstance(inner, dict):
        for setting in _FILES:
            if isinstance(inner.get(setting), str):
                _refuse(findings, own or layer, name, f"reads the file '{inner[setting]}'")
    return own or layer


def _look_at_lambda(inner: JSON, layer: str, findings: Findings) -> None:
    """A Lambda layer that only names a function is as good as its name, which the walk comes to."""
    settings = inner if isinstance(inner, dict) else {}
    for role in ("function", "output_shape", "mask"):
        value = settings.get(role)
        kind = settings.get("function_type" if role == "function" else f"{role}_type")
        named = isinstance(value, dict) and value.get("class_name") == "function"
        harmless = value is None and role != "function"
        shape = (
            role == "output_shape" and isinstance(value, list) and all(isinstance(n, (int, type(None))) for n in value)
        )
        if kind in ("lambda", None) and not (named or harmless or (shape and kind in (None, "raw"))):
            _refuse(findings, layer, "Lambda", "carries code")
            return


def _look_at_string(
    text: str, key: str, layer: str, keras: ModuleType, custom: Mapping[str, object], findings: Findings
) -> None:
    """A setting such as ``activation: relu`` names a function of Keras, or one of the user's own."""
    space = "activations" if key.endswith("activation") else None
    for kind in ("initializer", "regularizer", "constraint"):
        if key.endswith(f"_{kind}"):
            space = f"{kind}s"
    if space is None:
        return
    if text in custom:
        findings.used[text] = text
        return
    try:
        getattr(keras, space).get(text)
    except (ValueError, TypeError):
        findings.unknown.setdefault(text, layer)


# ---- what is of Keras


def find_class(config: Mapping[str, JSON], name: str, key: str, keras: ModuleType) -> type | None:
    """The class of Keras that an object of the configuration is of; None where it is of none."""
    module = config.get("module")
    if not _of_keras(module):
        return None
    if name in MODELS:
        model: type = getattr(keras, "Model" if name == "Functional" else name)
        return model
    bases = tuple(_bases(keras))
    if _is_operation_module(module):
        return _operation(str(module), name, keras)
    for space in sorted(SPACES, key=lambda space: not _stands_under(space, key, module)):
        found = getattr(getattr(keras, space, None), name, None)
        if inspect.isclass(found) and (
            issubclass(found, bases) or space in ("initializers", "regularizers", "constraints")
        ):
            return found
    if module is None and key == "layers":
        return _operation(None, name, keras)
    return None


def operation_module(name: str, keras: ModuleType) -> str | None:
    """The module of Keras's operation class ``name``: files of HDF5 leave it out."""
    found = _operation(None, name, keras)
    return None if found is None else found.__module__


def _bases(keras: ModuleType) -> Iterator[type]:
    yield keras.layers.Layer
    for space, name in (("dtype_policies", "DTypePolicy"), ("mixed_precision", "Policy"), ("quantizers", "Quantizer")):
        found = getattr(getattr(keras, space, None), name, None)
        if inspect.isclass(found):
            yield found


def _operation(module: str | None, name: str, keras: ModuleType) -> type | None:
    """An operation of ``keras.ops``, which only computes. It is looked for in modules that are loaded already."""
    base = getattr(keras, "Operation", None)
    if base is None:
        return None
    import sys

    places = [module] if module else sorted(name for name in sys.modules if name.startswith("keras.src.ops."))
    for place in places:
        found = vars(sys.modules[place]).get(name) if place in sys.modules else None
        if inspect.isclass(found) and issubclass(found, base) and found.__module__.startswith("keras.src.ops."):
            return found
    return None


def _is_function(name: str, module: JSON, keras: ModuleType) -> bool:
    if module not in (None, "builtins") and not _of_keras(module):
        return False
    return any(
        callable(getattr(getattr(keras, space, None), name, None)) for space in _FUNCTIONS if _may_be(space, module)
    )


def _may_be(space: str, module: JSON) -> bool:
    return module in (None, "builtins", "keras") or space in str(module).split(".")


def _of_keras(module: JSON) -> bool:
    return module is None or (isinstance(module, str) and _KERAS.fullmatch(module) is not None)


def _is_operation_module(module: JSON) -> bool:
    return isinstance(module, str) and _OPERATIONS.fullmatch(module) is not None


def _stands_under(space: str, key: str, module: JSON) -> bool:
    """Whether an object under ``key`` is of that part of Keras, where two parts have the name."""
    if isinstance(module, str) and space in module.split("."):
        return True
    return key.endswith(f"_{space[:-1]}") or (space == "dtype_policies" and key == "dtype")


def custom_name(names: tuple[str, ...], custom: Mapping[str, object]) -> str | None:
    """Which of the user's objects is meant: ``package>Name`` may be given as ``Name``."""
    for name in names:
        for choice in (name, name.rpartition(">")[2]):
            if choice and choice in custom:
                return choice
    return None


# ---- words


def _layer_name(config: Mapping[str, JSON]) -> str:
    inner = config.get("config")
    name = config.get("name") or (inner.get("name") if isinstance(inner, dict) else None)
    return name if isinstance(name, str) else ""


def _full_name(module: JSON, name: str) -> str:
    return name if module is None or module in ("builtins", "__main__") or ">" in name else f"{module}.{name}"


def _place(layer: str) -> str:
    return f"layer '{layer}'" if layer else "the model"


def _refuse(findings: Findings, layer: str, name: str, reason: str) -> None:
    # One line a layer: a Lambda and the lambda in it are one and the same.
    if not layer or not any(line.startswith(f"{_place(layer)} (") for line in findings.code):
        findings.code.append(f"{_place(layer)} ({name}) {reason}")


def _many(count: int) -> str:
    return "a class or function is" if count == 1 else f"{count} classes or functions are"

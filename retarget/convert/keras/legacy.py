"""A configuration written by Keras 2, in the words of Keras 3.

Keras 3 reads files of Keras 2 but for what it has renamed, left out or means otherwise. Each such thing is put right
here, or refused with the layer's name where Keras 3 has no equal.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from retarget.convert.keras.document import Config
from retarget.convert.keras.safety import CLASSES, MODELS, SPACES, find_class, operation_module
from retarget.convert.keras.tensorflow_ops import OPERATOR_LAYERS, make_layers
from retarget.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

_RECURRENT = frozenset({"LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"})
_RENAMED = {"LeakyReLU": ("alpha", "negative_slope"), "ThresholdedReLU": ("theta", "threshold")}
"""Layer → a setting and what Keras 3 calls it."""
_CLASSES = {**CLASSES, "Model": "Functional"}

_ANY = object()
_WITHOUT_EFFECT: dict[str, object] = {
    "groups": 1,
    "time_major": False,
    "softmax_robust_masking": False,
    "ragged": False,
    "sparse": False,
    "causal": False,
    **dict.fromkeys(
        ("implementation", "fused", "rng_type", "input_length", "vocabulary_size", "virtual_batch_size"), _ANY
    ),
    **dict.fromkeys(("query_shape", "key_shape", "value_shape", "batch_input_shape", "batch_size"), _ANY),
    **dict.fromkeys(("kernel_initializer", "kernel_regularizer", "kernel_constraint", "adjustment"), _ANY),
    **dict.fromkeys(("experimental_run_tf_function", "input_dtype", "expects_training_arg", "build_input_shape"), _ANY),
}
"""Settings that Keras 3 no longer takes → the value at which leaving them out changes nothing."""

_HARD_SIGMOID = "keras_2_hard_sigmoid"


def custom_objects(keras: ModuleType, tf: ModuleType) -> dict[str, Callable[..., Any]]:
    """What the rewritten configuration names beside Keras's own."""

    def hard_sigmoid(x: Any) -> Any:
        # Of slope 0.2; in Keras 3 it is 1/6.
        return tf.clip_by_value(0.2 * x + 0.5, 0.0, 1.0)

    return {_HARD_SIGMOID: hard_sigmoid, **make_layers(keras, tf)}


def modernise(config: Config, keras: ModuleType, custom: Mapping[str, object], place: object) -> Config:
    """``config`` as Keras 3 would write it. Raises ``Unsupported`` with each layer that has no equal there."""
    rewriter = _Rewriter(keras, custom)
    result = rewriter.value(config, "")
    if rewriter.lacking:
        raise Unsupported(
            "\n".join(
                [f"{place}: of Keras 2, and Keras 3 has no equal of:", *(f"  {line}" for line in rewriter.lacking)]
            ),
            "install tf_keras, which is Keras 2, and set the option `implementation: tf_keras`; or run the frontend "
            "in an environment of old versions, `toolchains: {keras: {python: …}}`",
        )
    return result  # type: ignore[no-any-return]


class _Rewriter:
    def __init__(self, keras: ModuleType, custom: Mapping[str, object]) -> None:
        self.keras = keras
        self.custom = {*custom, *OPERATOR_LAYERS}
        self.lacking: list[str] = []

    def value(self, value: Any, key: str) -> Any:
        if isinstance(value, list):
            return [self.value(item, key) for item in value]
        if not isinstance(value, dict):
            if value == "hard_sigmoid" and key.endswith("activation"):
                return {
                    "module": "builtins",
                    "class_name": "function",
                    "config": _HARD_SIGMOID,
                    "registered_name": _HARD_SIGMOID,
                }
            return value
        name = value.get("class_name")
        if isinstance(name, str) and isinstance(value.get("config"), (dict, list)):
            return self.build(value, name, key)
        return {inner: self.value(item, inner) for inner, item in value.items()}

    def build(self, value: Config, name: str, key: str) -> Any:
        settings = value["config"]
        if name in ("Policy", "PolicyV1"):
            return settings["name"]
        if isinstance(settings, list):
            # Of Sequential before Keras 2.2.3: its layers alone.
            settings = {"name": value.get("name", "sequential"), "layers": settings}
        cls = None if name in self.custom else find_class(value, _CLASSES.get(name, name), key, self.keras)
        kept = {
            inner: item for inner, item in value.items() if inner not in ("config", "compile_config", "build_config")
        }
        if cls is None and name not in self.custom:
            self.lacking.append(f"layer '{settings.get('name', value.get('name', ''))}' ({name})")
            return value
        shape = settings.get("batch_input_shape")
        if key == "layers" and shape is not None and name != "InputLayer":
            kept["batch_input_shape"] = shape
        settings = {
            inner: item if inner == "inbound_nodes" else self.value(item, inner) for inner, item in settings.items()
        }
        if cls is None:
            settings.pop("batch_input_shape", None)
            kept = {inner: item for inner, item in kept.items() if inner != "module"}
        elif name in MODELS:
            settings = self.model(settings)
            kept["module"] = "keras" if name == "Sequential" else "keras.src.models.functional"
        else:
            settings = self.settings(name, cls, settings, shape)
            kept["module"] = _public_module(cls, self.keras)
        kept.update({"class_name": _CLASSES.get(name, name), "config": settings})
        if cls is not None:
            kept["registered_name"] = None
        return kept

    def settings(self, name: str, cls: type, settings: Config, shape: object) -> Config:
        """The settings of an object of Keras itself."""
        if name in _RENAMED:
            old, new = _RENAMED[name]
            if old in settings:
                settings[new] = settings.pop(old)
        if name == "InputLayer" and shape is not None:
            settings["batch_shape"] = shape
        if name == "BatchNormalization" and isinstance(settings.get("axis"), list):
            settings["axis"] = settings["axis"][0]
        taken = _parameters(cls)
        for key in [key for key in settings if key not in taken]:
            value = settings.pop(key)
            harmless = _WITHOUT_EFFECT.get(key)
            if harmless is not _ANY and value is not None and value != harmless:
                self.lacking.append(f"layer '{settings.get('name', '')}' ({name}) with {key}={value}")
        return settings

    def model(self, settings: Config) -> Config:
        layers = settings.get("layers")
        if not isinstance(layers, list):
            return settings
        settings = {key: item for key, item in settings.items() if key != "build_input_shape"}
        if "input_layers" in settings:
            return _functional(settings)
        return {**settings, "layers": _with_input(layers)}


def _with_input(layers: list[Config]) -> list[Config]:
    """The layers of a sequential model, its input told by a layer and no longer by the first of them."""
    shapes = [layer.pop("batch_input_shape", None) for layer in layers]
    if not layers or shapes[0] is None:
        return layers
    settings = layers[0]["config"]
    dtype = "int32" if layers[0]["class_name"] == "Embedding" else settings.get("dtype", "float32")
    name = f"{settings['name']}_input"
    config = {"batch_shape": shapes[0], "dtype": dtype if isinstance(dtype, str) else "float32", "name": name}
    return [{"module": "keras.layers", "class_name": "InputLayer", "config": config, "registered_name": None}, *layers]


def _functional(settings: Config) -> Config:
    """The graph of a functional model: where each layer's inputs come from."""
    layers = settings["layers"]
    for layer in layers:
        layer.pop("batch_input_shape", None)
    names = _new_names([str(layer["name"]) for layer in layers])
    # Keras 2 counts the call by which a nested model was made, Keras 3 does not.
    first = {layer["name"]: int(_starts_with_input(layer)) for layer in layers}
    # Where it reads the outputs of a model, Keras 3 takes that call off all the same.
    nested = {layer["name"] for layer in layers if layer["class_name"] == "Functional"}
    graph = _Graph(names, first)
    for layer in layers:
        nodes = layer.get("inbound_nodes", [])
        layer["inbound_nodes"] = [graph.call(node, str(layer["class_name"])) for node in nodes]
    for layer in layers:
        layer["name"] = layer["config"]["name"] = names[layer["name"]]

    def border(value: Any) -> Any:
        if _is_reference(value):
            old = value[0]
            return [names[old], value[1] - first[old] + int(old in nested), value[2]]
        if isinstance(value, dict):
            return {key: border(item) for key, item in value.items()}
        return [border(item) for item in value]

    for key in ("input_layers", "output_layers"):
        settings[key] = border(settings[key])
    return settings


class _Graph:
    def __init__(self, names: Mapping[str, str], first: Mapping[str, int]) -> None:
        self.names = names
        self.first = first

    def call(self, node: Any, kind: str) -> Any:
        """One call of a layer, ``[["x", 0, 0, {"axis": 1}]]``, with its arguments apart from its settings."""
        if isinstance(node, dict) and set(node) == {"args", "kwargs"}:
            return node
        keywords = {key: self.tensors(item) for key, item in _keywords(node).items()}
        inputs = self.tensors(node)
        if isinstance(inputs, list) and kind not in OPERATOR_LAYERS:
            if kind in _RECURRENT and len(inputs) > 1 and "initial_state" not in keywords:
                keywords["initial_state"] = inputs[1:]
                inputs = inputs[:1]
            inputs = inputs[0] if len(inputs) == 1 else inputs
        if kind in OPERATOR_LAYERS and not isinstance(inputs, (dict, list)):
            # Keras 3 takes a number, as the first of `1 - x` is, by name alone.
            return {"args": [], "kwargs": {"inputs": inputs, **keywords}}
        return {"args": [inputs], "kwargs": keywords}

    def tensors(self, value: Any) -> Any:
        if _is_reference(value):
            name, index, tensor = value[:3]
            if name == "_CONSTANT_VALUE":
                return tensor
            history = [self.names[name], index - self.first[name], tensor]
            return {
                "class_name": "__keras_tensor__",
                "config": {"shape": [], "dtype": "float32", "keras_history": history},
            }
        if isinstance(value, dict):
            return {key: self.tensors(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.tensors(item) for item in value]
        return value


def _is_reference(value: object) -> bool:
    """Whether this is ``[layer, call, output]``, with the settings of the call or without."""
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and (value[0] == "_CONSTANT_VALUE" or isinstance(value[2], int))
    )


def _keywords(node: Any) -> Config:
    """The settings of a call, which stand with each of its inputs alike."""
    if _is_reference(node):
        return node[3] if len(node) == 4 else {}
    items = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    return _keywords(items[0]) if items else {}


def _starts_with_input(layer: Config) -> bool:
    inner = layer["config"].get("layers", []) if layer["class_name"] in MODELS else []
    return bool(inner) and inner[0]["class_name"] == "InputLayer"


def _new_names(names: list[str]) -> dict[str, str]:
    """Each with ``_`` for ``/``, which Keras 3 does not allow, and still unlike all others."""
    taken = {name for name in names if "/" not in name}
    new: dict[str, str] = {}
    for name in names:
        plain = name.replace("/", "_")
        while "/" in name and plain in taken:
            plain += "_"
        taken.add(plain)
        new[name] = plain
    return new


def _parameters(cls: type) -> set[str]:
    """What the constructor takes by name, in the class itself and those that it hands the rest to."""
    found: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            found.update(inspect.signature(vars(base)["__init__"]).parameters)
    return found - {"self", "args", "kwargs"}


def _public_module(cls: type, keras: ModuleType) -> str:
    for space in SPACES:
        if getattr(getattr(keras, space, None), cls.__name__, None) is cls:
            return f"keras.{space}"
    return cls.__module__


# ---- HDF5 of Keras 3


def name_operations(config: Config, keras: ModuleType) -> Config:
    """``config`` of an ``.h5`` file of Keras 3 with the modules of operations, such as ``keras.ops.add(x, y)``.

    Keras 3 leaves out modules in these files, takes an operation for the layer of that name, and fails.
    """

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(item) for item in value]
        if not isinstance(value, dict):
            return value
        result = {key: named(item) for key, item in value.items()}
        settings = result.get("config")
        # All layers have a type and most operations are not called like a layer.
        if (
            "inbound_nodes" in result
            and "module" not in result
            and isinstance(settings, dict)
            and "dtype" not in settings
        ):
            module = operation_module(str(result.get("class_name")), keras)
            if module is not None:
                result.update(module=module, registered_name=None)
        return result

    return named(config)  # type: ignore[no-any-return]

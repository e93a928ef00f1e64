"""A Keras model called by name: what it takes and gives, flat, and a function of TensorFlow that does it."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from retarget.convert.keras.document import write_weights
from retarget.convert.keras.mended import mended
from retarget.convert.keras.model import Loaded
from retarget.convert.tensorflow.framework import quiet, tf
from retarget.convert.tensorflow.names import Border, input_specs
from retarget.convert.tensorflow.runner import said
from retarget.errors import RetargetError, ToolchainFailure, Unsupported
from retarget.source import Source
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

_GIVE = "give each with --input, as in --input image=float32[N,224,224,3]"


@dataclass
class Called:
    """``model`` called with tensors by name, in prediction."""

    model: Any
    keras: ModuleType
    inputs: tuple[TensorSpec, ...]
    arrange: Callable[[Mapping[str, Any]], tuple[list[Any], dict[str, Any]]]
    """The arguments and keywords of a call, from the inputs by name."""
    output_layers: tuple[str, ...]
    place: str
    outputs: tuple[Border, ...] = field(default=())
    """Known once the model was traced."""

    def run(self, feeds: Feeds) -> Sequence[Array]:
        """The outputs, flat, for arrays of the inputs."""
        tensors = {spec.name: tf.constant(feeds[spec.name]) for spec in self.inputs}
        return [_dense(tensor).numpy() for _, tensor in self._leaves(self._call(tensors))]

    def trace(self) -> tf.types.experimental.ConcreteFunction:
        """The model as a function of flat inputs and outputs. Raises ``ToolchainFailure`` where Keras fails."""
        names = [spec.name for spec in self.inputs]
        signature = [
            tf.TensorSpec(
                [dim if isinstance(dim, int) else None for dim in spec.shape], spec.dtype, name=f"input_{index}"
            )
            for index, spec in enumerate(self.inputs)
        ]
        found: list[Border] = []

        def flat(*tensors: Any) -> list[Any]:
            leaves = list(self._leaves(self._call(dict(zip(names, tensors)))))
            found[:] = [_border(name, tensor) for name, tensor in leaves]
            # What is given back as it came would be no output of the function's own.
            return [tf.identity(_dense(tensor)) for _, tensor in leaves]

        try:
            with quiet(), mended(self.keras):
                function = tf.function(flat).get_concrete_function(*signature)
        except RetargetError:
            raise
        except Exception as error:
            shapes = ", ".join(str(spec) for spec in self.inputs)
            raise ToolchainFailure(
                f"{self.place}: Keras fails on {shapes}: {said(error)}",
                "check names, types and shapes of the inputs",
            ) from error
        self.outputs = tuple(found)
        return function

    def _call(self, tensors: Mapping[str, Any]) -> Any:
        arguments, keywords = self.arrange(tensors)
        return self.model(*arguments, training=False, **keywords)

    def _leaves(self, outputs: Any) -> Iterator[tuple[str, Any]]:
        found = list(_leaves(outputs, ""))
        if not isinstance(outputs, Mapping) and len(found) == len(self.output_layers):
            found = [(name, tensor) for name, (_, tensor) in zip(self.output_layers, found)]
        seen: dict[str, int] = {}
        for name, tensor in found:
            seen[name] = seen.get(name, 0) + 1
            # A layer that is called twice gives two outputs under one name.
            yield (name if seen[name] == 1 else f"{name}_{seen[name]}"), tensor


def called(loaded: Loaded, source: Source) -> Called:
    """``loaded`` with the inputs that the user names, or its own. Raises ``RetargetError``."""
    model, place = loaded.model, str(source.path)
    flat = getattr(model, "inputs", None)
    if not flat and isinstance(model, loaded.keras.Sequential):
        specs, arrange = _sequential(model, source)
    elif not flat:
        specs, arrange = _subclassed(model, loaded, source)
    else:
        # A sequential model has the list alone.
        structure = getattr(model, "input", flat[0] if len(flat) == 1 else flat)
        borders = tuple(_border(name, tensor) for name, tensor in _inputs(structure))
        specs = input_specs(borders, source.inputs, place)

        def arrange(tensors: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
            return [_fill(structure, tensors)], {}

    names = tuple(str(name) for name in getattr(model, "output_names", None) or ())
    if not names and isinstance(model, loaded.keras.Sequential) and model.layers:
        names = (str(model.layers[-1].name),)
    result = Called(model, loaded.keras, specs, arrange, names, place)
    if not flat:
        _complete(result, loaded)
    return result


# ---- models with an input of their own


def _inputs(structure: Any) -> Iterator[tuple[str, Any]]:
    """The symbolic inputs, which are called as their layers, in their order."""
    if isinstance(structure, Mapping):
        for key in structure:
            yield from _inputs(structure[key])
    elif isinstance(structure, (list, tuple)):
        for item in structure:
            yield from _inputs(item)
    else:
        yield _name(structure), structure


def _name(tensor: Any) -> str:
    # Up to TensorFlow 2.3 it is the name of an output of a node.
    return str(tensor.name).split(":")[0]


def _fill(structure: Any, tensors: Mapping[str, Any]) -> Any:
    """The same nest with a tensor in each place."""
    if isinstance(structure, Mapping):
        return {key: _fill(structure[key], tensors) for key in structure}
    if isinstance(structure, (list, tuple)):
        return [_fill(item, tensors) for item in structure]
    return tensors[_name(structure)]


# ---- models without


def _sequential(
    model: Any, source: Source
) -> tuple[tuple[TensorSpec, ...], Callable[[Mapping[str, Any]], tuple[list[Any], dict[str, Any]]]]:
    """The input of a sequential model with a layer that does not say what it gives: Keras makes no graph of it."""
    config = model.get_config()
    layers = config.get("layers") or [{}]
    first = layers[0].get("config", {}) if layers[0].get("class_name") == "InputLayer" else {}
    shape = first.get("batch_shape") or first.get("batch_input_shape") or config.get("build_input_shape")
    name, dtype = str(first.get("name", "input")), first.get("dtype", "float32")
    border = Border(name, dtype if isinstance(dtype, str) else "float32", None if shape is None else tuple(shape))
    return input_specs((border,), source.inputs, str(source.path)), lambda tensors: ([tensors[name]], {})


def _subclassed(
    model: Any, loaded: Loaded, source: Source
) -> tuple[tuple[TensorSpec, ...], Callable[[Mapping[str, Any]], tuple[list[Any], dict[str, Any]]]]:
    """Inputs of a model that is code: those that the user gives, in the order of its call or by its names."""
    if not source.inputs:
        raise RetargetError(f"{source.path}: a model of class {type(model).__name__} does not say its inputs", _GIVE)
    names = [spec.name for spec in source.inputs]
    parameters = [name for name in inspect.signature(model.call).parameters if name not in ("training", "mask")]
    config = loaded.document.config or {}
    built = config.get("build_config")
    shape = built.get("input_shape") if isinstance(built, Mapping) else None

    def arrange(tensors: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        if isinstance(shape, Mapping) and set(shape) == set(names):
            return [dict(tensors)], {}
        if set(names) <= set(parameters):
            first = parameters[0]
            # Keras wants the first argument in its place.
            rest = {name: tensors[name] for name in names if name != first}
            return ([tensors[first]] if first in tensors else []), rest
        values = [tensors[name] for name in names]
        if len(values) == 1 or len(parameters) >= len(values) > 1:
            return values, {}
        return [values], {}

    return tuple(source.inputs), arrange


def _complete(called: Called, loaded: Loaded) -> None:
    """Load the weights of layers that are made in the first call of a model: Keras leaves them out without a word."""
    model, arrays = called.model, loaded.document.arrays
    if len(model.variables) >= arrays:
        return
    called.trace()
    with quiet(), tempfile.TemporaryDirectory(prefix="keras-") as folder:
        try:
            model.load_weights(str(write_weights(loaded.document, Path(folder))))
        except Exception as error:
            raise ToolchainFailure(f"{called.place}: its weights do not fit the model: {said(error)}") from error
    if len(model.variables) < arrays:
        raise ToolchainFailure(
            f"{called.place}: holds {arrays} arrays of weights, and the model takes {len(model.variables)} of them",
            "give the factory's model the layers that the file is of",
        )


# ---- tensors


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The tensors of a nest with the name of each, such as ``logits`` or ``output_1``; absent ones are skipped."""
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaves(value[key], f"{path}_{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, path if len(value) == 1 else f"{path or 'output'}_{index}")
    elif value is None:
        return
    elif not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise Unsupported(f"output '{path or 'output'}' is a {type(value).__name__}, not a tensor")
    else:
        yield path or "output", value


def _dense(tensor: Any) -> Any:
    if isinstance(tensor, (tf.SparseTensor, tf.RaggedTensor)):
        raise Unsupported(
            f"an output is a {type(tensor).__name__}, which has no form in ONNX", "return plain tensors from the model"
        )
    return tensor


def _border(name: str, tensor: Any) -> Border:
    dtype = tensor.dtype
    shape = tensor.shape
    dims = None if getattr(shape, "rank", 0) is None else tuple(None if dim is None else int(dim) for dim in shape)
    return Border(name, dtype if isinstance(dtype, str) else tf.as_dtype(dtype).name, dims)

"""Keras files: their configuration, and the types of their weights. Keras is not asked."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from retarget.convert.keras import forms
from retarget.convert.tensorflow.names import Border
from retarget.distributions import version_of
from retarget.errors import MissingToolchain
from retarget.inspection import borders
from retarget.inspection.result import Inspection, most_first
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.convert.keras.document import Document
    from retarget.protocols import JSON

_NOT_WEIGHTS = ("/optimizer/", "/optimizer_weights/", "/seed_generator/")
"""What of a file is for training, or is the state of layers that draw random numbers."""
_GIVE = "give --factory FILE.py:FUNCTION, and its inputs with --input"


def inspect(path: Path) -> Inspection:
    """What the file says. Raises ``RetargetError`` where it is damaged, ``MissingToolchain`` without h5py."""
    if version_of("h5py") is None:
        raise MissingToolchain(f"{path}: its weights are in HDF5, which h5py reads", "pip install h5py")
    from retarget.convert.keras import document

    read = document.read(path)
    arrays = list(_arrays(read))
    weights: Counter[str] = Counter()
    for spec, size in arrays:
        weights[spec.dtype] += size
    config: JSON = read.config
    notes = []
    if not isinstance(config, dict):
        notes.append(f"it holds weights alone, not the model that they are of: {_GIVE}")
    layers = list(_layers(config))
    inputs, said = borders.specs(_inputs(config), "input", str(path))
    if config is not None and not inputs and not said:
        said = [f"a model of class {_class(config)} is code, and its inputs are not in the file: {_GIVE}"]
    ops = Counter(_class(layer) for layer in layers)
    if ops["Lambda"]:
        notes.append("its Lambda layers are code, which is run with --trust only")
    outputs = [name for name, _ in _ends(config, "output_layers")]
    if outputs:
        notes.append(f"gives what comes of {', '.join(outputs)}")
    return Inspection(
        path=str(path),
        what="Keras model" if read.config is not None else "Keras weights",
        version=read.form,
        bytes=path.stat().st_size,
        inputs=inputs,
        nodes=ops.total() if config is not None else None,
        ops=most_first(ops),
        parameters=sum(_count(spec) for spec, _ in arrays),
        weights=most_first(weights),
        tensors=() if config is not None else tuple(spec for spec, _ in arrays),
        notes=(*said, *notes),
    )


# ---- the configuration


def _layers(config: JSON) -> Iterator[JSON]:
    """The layers of a model and of models within it, the inputs aside."""
    for layer in _listed(config):
        if _listed(layer):
            yield from _layers(layer)
        elif _class(layer) != "InputLayer":
            yield layer


def _listed(config: JSON) -> list[JSON]:
    """The layers of a model; none of what is no model."""
    settings = config.get("config") if isinstance(config, dict) else None
    # Of Sequential before Keras 2.2.3: its layers alone.
    layers = settings.get("layers") if isinstance(settings, dict) else settings
    return layers if isinstance(layers, list) else []


def _class(config: JSON) -> str:
    return str(config.get("class_name", "?")) if isinstance(config, dict) else "?"


def _settings(config: JSON) -> dict[str, JSON]:
    settings = config.get("config") if isinstance(config, dict) else None
    return settings if isinstance(settings, dict) else {}


def _inputs(config: JSON) -> list[Border]:
    """The inputs in the order of the model's own; empty where the configuration does not say all of them."""
    layers = _listed(config)
    known = {str(_settings(each).get("name")): each for each in layers if _class(each) == "InputLayer"}
    named = [name for name, _ in _ends(config, "input_layers")]
    if _class(config) == "Sequential":
        named = [str(_settings(layers[0]).get("name"))] if layers and _class(layers[0]) == "InputLayer" else []
    found = [_border(name, _settings(known[name])) for name in named if name in known]
    return found if len(found) == len(named) else []


def _border(name: str, settings: Mapping[str, JSON]) -> Border:
    shape = settings.get("batch_shape") or settings.get("batch_input_shape")
    dtype = settings.get("dtype")
    dims = tuple(dim if isinstance(dim, int) else None for dim in shape) if isinstance(shape, list) else None
    return Border(name, dtype if isinstance(dtype, str) else "float32", dims)


def _ends(config: JSON, key: str) -> Iterator[tuple[str, JSON]]:
    """The layers that a nest of ``[layer, node, tensor]`` names, in its order."""
    waiting: list[JSON] = [_settings(config).get(key)]
    while waiting:
        nest = waiting.pop(0)
        if isinstance(nest, dict):
            waiting[:0] = nest.values()
        elif isinstance(nest, list) and len(nest) >= 3 and isinstance(nest[0], str) and isinstance(nest[1], int):
            yield nest[0], nest
        elif isinstance(nest, list):
            waiting[:0] = nest


# ---- the weights


def _arrays(read: Document) -> Iterator[tuple[TensorSpec, int]]:
    """Each array of weights and its bytes, in a file whose links were looked at already."""
    if read.archive:
        with zipfile.ZipFile(read.path) as archive, archive.open(forms.WEIGHTS) as file:
            yield from _arrays_in(file)
    else:
        with read.path.open("rb") as file:
            yield from _arrays_in(file)


def _arrays_in(content: IO[bytes]) -> Iterator[tuple[TensorSpec, int]]:
    import h5py

    found: list[tuple[TensorSpec, int]] = []

    def look(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not any(part in f"/{name}/" for part in _NOT_WEIGHTS):
            found.append((TensorSpec(name, str(item.dtype), tuple(item.shape)), int(item.nbytes)))

    with h5py.File(content if content.seekable() else io.BytesIO(content.read()), "r") as file:
        file.visititems(look)
    yield from found


def _count(spec: TensorSpec) -> int:
    count = 1
    for size in spec.at({}):
        count *= size
    return count

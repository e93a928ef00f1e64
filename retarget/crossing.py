"""How values cross to the user's own interpreter and back: as JSON, with arrays as ``.npy`` files beside it.

Both ends import this module, so it keeps to the syntax and library of Python 3.8; numpy is imported for arrays only.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from retarget.errors import MissingToolchain, RetargetError
from retarget.source import Exported, Source
from retarget.spec import DimRange, TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Array

_CLASSES: dict[str, Callable[..., object]] = {
    known.__name__: known for known in (Source, Exported, TensorSpec, DimRange)
}
_TAG = "is"
"""A JSON object with this key stands for something that JSON does not have; mappings are among them."""


def pack(value: object, folder: Path) -> object:
    """``value`` as what ``json`` can write; arrays go into new files in ``folder``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return {_TAG: type(value).__name__, "items": [pack(item, folder) for item in value]}
    if isinstance(value, Mapping):
        return {_TAG: "dict", "items": {key: pack(item, folder) for key, item in value.items()}}
    if isinstance(value, Path):
        return {_TAG: "Path", "path": str(value)}
    if type(value).__name__ in _CLASSES and dataclasses.is_dataclass(value):
        fields = {field.name: pack(getattr(value, field.name), folder) for field in dataclasses.fields(value)}
        return {_TAG: type(value).__name__, "items": fields}
    import numpy as np

    if isinstance(value, (np.ndarray, np.generic)):
        return {_TAG: "array", **_save(np.asarray(value), folder)}
    raise TypeError(f"a {type(value).__name__} does not cross to another interpreter")


def unpack(packed: object) -> object:
    """What ``pack`` was given; the files of its arrays are removed."""
    if not isinstance(packed, dict):
        return packed
    kind = packed[_TAG]
    if kind == "Path":
        return Path(packed["path"])
    if kind == "array":
        return _load(Path(packed["file"]), packed["dtype"])
    items = packed["items"]
    if kind in ("tuple", "list"):
        values = [unpack(item) for item in items]
        return tuple(values) if kind == "tuple" else values
    values_by_name = {key: unpack(item) for key, item in items.items()}
    return values_by_name if kind == "dict" else _CLASSES[kind](**values_by_name)


def _save(array: Array, folder: Path) -> dict[str, str]:
    import numpy as np

    if array.dtype.hasobject:
        raise RetargetError("an array of Python objects cannot cross to another interpreter", "give numbers")
    name = array.dtype.name
    if array.dtype.kind == "V":
        # A number type that numpy itself does not know, such as bfloat16: its bits cross.
        array = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    descriptor, file = tempfile.mkstemp(".npy", "array-", str(folder))
    with os.fdopen(descriptor, "wb") as stream:
        np.save(stream, array, allow_pickle=False)
    return {"file": file, "dtype": name}


def _load(file: Path, dtype: str) -> Array:
    import numpy as np

    array: Array = np.load(str(file), allow_pickle=False)
    file.unlink()
    return array if array.dtype.name == dtype else array.view(_number_type(dtype))


def _number_type(name: str) -> str:
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingToolchain(f"arrays of {name} need ml_dtypes", "pip install ml_dtypes") from error
    kind: str = getattr(ml_dtypes, name)
    return kind

"""The frontend of Keras: ``.keras`` archives and ``.h5`` files of Keras 3 and Keras 2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from zipfile import ZipFile

import msgspec

from retarget.convert.caffe.files import is_hdf5 as is_caffe
from retarget.convert.keras.forms import ARCHIVE, CONFIG, HDF5, HDF5_MAGIC, METADATA, ZIP_MAGIC
from retarget.zips import ZIP_ERRORS

requires: tuple[str, ...] = ("tensorflow", "keras", "h5py", "tf2onnx")
extra: str | None = "tensorflow"
layout: Literal["nchw", "nhwc"] = "nhwc"
suffixes: Mapping[str, str] = {".keras": ARCHIVE, ".h5": HDF5, ".hdf5": HDF5}
takes_weights = False


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a Keras model."""

    implementation: Literal["keras", "tf_keras"] = "keras"
    """``tf_keras`` loads the file with the package of that name, which is Keras 2: for old files of unusual layers."""
    factory_args: dict[str, bool | int | float | str | None] = {}
    """Keyword arguments for the factory."""


def matches(path: Path) -> str | None:
    """``Keras`` or ``Keras HDF5``, from the content of ``path``."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(8)
    if head == HDF5_MAGIC:
        return None if is_caffe(path) else HDF5
    return ARCHIVE if head.startswith(ZIP_MAGIC) and _is_archive(path) else None


def parts(path: Path) -> Mapping[str, Path]:  # noqa: ARG001
    """None: a Keras model is one file."""
    return {}


def _is_archive(path: Path) -> bool:
    try:
        with ZipFile(path) as archive:
            return {CONFIG, METADATA} <= set(archive.namelist())
    except ZIP_ERRORS:
        return False

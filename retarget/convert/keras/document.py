"""What stands in a Keras file besides its weights, read without Keras; and a copy of it that Keras may read.

Keras gets a copy, never the file: with the configuration that was looked through, with weights that lie in the file
itself, with nothing that only training needs, and with the suffix by which Keras tells formats apart.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict

import h5py

from retarget.convert.keras.forms import CONFIG, HDF5_MAGIC, METADATA, WEIGHTS, ZIP_MAGIC
from retarget.errors import DAMAGED, RetargetError
from retarget.zips import ZIP_ERRORS

Config = Dict[str, Any]
"""The configuration as JSON: nested mappings and lists, of any kind that somebody may have written."""

_HDF5_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError)
_CONFIG_LIMIT = 256 << 20
_MANY_TIMES = 100
"""Keras stores weights as they are. What is packed closer than this is no file of weights, but meant to fill memory."""


@dataclass(frozen=True)
class Document:
    """A Keras file. ``config`` is None where it holds weights alone."""

    path: Path
    version: str | None
    """Of the Keras that wrote it."""
    config: Config | None
    archive: bool
    """Whether it is a zip, not HDF5."""
    by_layer: bool = False
    """Whether the weights of an HDF5 file are listed by layer, as those of whole models and of Keras 2 are."""
    arrays: int = 0
    """How many arrays of weights there are, those of the optimizer left out; 0 where they are listed by layer."""

    @property
    def form(self) -> str:
        """``.keras of Keras 3.15.1``."""
        kind = ".keras" if self.archive else ".h5" if self.config is not None else "weights in .h5"
        return f"{kind} of Keras {self.version}" if self.version else kind

    @property
    def legacy(self) -> bool:
        """Whether Keras 2 or 1 wrote it. HDF5 files without a version are older than Keras 2.0.4."""
        return (self.version or "3" if self.archive else self.version or "1").split(".")[0] in ("1", "2")


def read(path: Path) -> Document:
    """Look into ``path``. Raises ``RetargetError`` where it is damaged, or is no Keras file."""
    if not path.is_file():
        raise RetargetError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(8)
    if head == HDF5_MAGIC:
        return _read_hdf5(path)
    if head.startswith(ZIP_MAGIC):
        return _read_archive(path)
    raise RetargetError(f"{path}: neither a zip nor HDF5, as .keras and .h5 files are", DAMAGED)


def write_copy(document: Document, config: Config, folder: Path) -> Path:
    """The model with ``config`` in place of its own, in ``folder``, under the suffix that Keras wants."""
    if document.archive:
        return _copy_archive(document.path, config, folder / "model.keras")
    return _copy_hdf5(document, config, folder / "model.h5")


def write_weights(document: Document, folder: Path) -> Path:
    """The weights alone, under the suffix by which Keras tells how they are listed."""
    if not document.archive:
        if document.by_layer:
            return _copy_hdf5(document, None, folder / "weights.h5")
        return _copied(document.path, folder / "model.weights.h5")
    target = folder / "model.weights.h5"
    try:
        with zipfile.ZipFile(document.path) as archive, archive.open(WEIGHTS) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except ZIP_ERRORS as error:
        raise _unreadable(document.path, error) from error
    return target


# ---- zip


def _read_archive(path: Path) -> Document:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            config = _json(path, CONFIG, archive.read(CONFIG))
            metadata = _json(path, METADATA, archive.read(METADATA))
            with archive.open(WEIGHTS) as file:
                arrays = _check_weights(path, file, archive.getinfo(WEIGHTS).file_size)
    except KeyError as error:
        raise RetargetError(f"{path}: {' '.join(str(part) for part in error.args)}", DAMAGED) from error
    except ZIP_ERRORS as error:
        raise _unreadable(path, error) from error
    version = metadata.get("keras_version")
    return Document(path, str(version) if version else None, config, archive=True, arrays=arrays)


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    counts = Counter(archive.namelist())
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise RetargetError(f"{path}: its member {twice[0]} is in it twice, so that two readers may see two files")
    for info in archive.infolist():
        if info.file_size > _MANY_TIMES * max(info.compress_size, 1 << 20):
            raise RetargetError(
                f"{path}: its member {info.filename} unpacks {info.compress_size} bytes to {info.file_size}", DAMAGED
            )
    for name in (CONFIG, METADATA):
        if name in counts and archive.getinfo(name).file_size > _CONFIG_LIMIT:
            raise RetargetError(f"{path}: its member {name} has {archive.getinfo(name).file_size} bytes", DAMAGED)


def _copy_archive(path: Path, config: Config, target: Path) -> Path:
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as copy:
            for info in archive.infolist():
                if info.filename == CONFIG:
                    copy.writestr(CONFIG, json.dumps(config))
                elif not info.is_dir():
                    with archive.open(info) as source, copy.open(info.filename, "w", force_zip64=True) as file:
                        shutil.copyfileobj(source, file, 1 << 20)
    except ZIP_ERRORS as error:
        raise _unreadable(path, error) from error
    return target


# ---- HDF5


def _read_hdf5(path: Path) -> Document:
    try:
        with path.open("rb") as content:
            arrays = _check_weights(path, content, path.stat().st_size)
        with h5py.File(path, "r") as file:
            text = _text(file.attrs.get("model_config"))
            weights = file.get("model_weights", file)
            version = _text(file.attrs.get("keras_version")) or _text(weights.attrs.get("keras_version"))
            by_layer = any(name.startswith("layer_names") for name in weights.attrs)
    except _HDF5_ERRORS as error:
        raise _unreadable(path, error) from error
    config = None if text is None else _json(path, "model_config", text)
    return Document(path, version, config, archive=False, by_layer=by_layer, arrays=0 if by_layer else arrays)


def _check_weights(path: Path, content: Any, size: int) -> int:  # a file object that h5py reads
    """How many arrays there are. Refuses those that lie in other files, or claim to be many times what is there."""
    found: list[tuple[str, int]] = []
    try:
        with h5py.File(content, "r") as file:
            _find_arrays(path, file, set(), found)
    except _HDF5_ERRORS as error:
        raise _unreadable(path, error) from error
    total = sum(stored for _, stored in found)
    if total > _MANY_TIMES * max(size, 1 << 20):
        raise RetargetError(f"{path}: its weights claim {total} bytes, and there are {size}", DAMAGED)
    return sum(not name.startswith("/optimizer/") for name, _ in found)


def _find_arrays(path: Path, group: h5py.Group, seen: set[int], found: list[tuple[str, int]]) -> None:
    """Add name and bytes of each array below ``group``."""
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise RetargetError(
                f"{path}: '{group.name.rstrip('/')}/{name}' is a link to '{link.path}', not data of the file",
                "Keras writes no links: get the file from who made it",
            )
        item = group[name]
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            raise RetargetError(f"{path}: '{item.name}' is in it twice", DAMAGED)
        seen.add(address)
        if isinstance(item, h5py.Group):
            _find_arrays(path, item, seen, found)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise RetargetError(
                    f"{path}: the data of '{item.name}' lie in another file",
                    "Keras writes no such files: get it from who made it",
                )
            found.append((str(item.name), int(item.nbytes)))


def _copy_hdf5(document: Document, config: Config | None, target: Path) -> Path:
    """Configuration and weights; what the optimizer kept, at times twice the weights, is left out."""
    try:
        with h5py.File(document.path, "r") as source, h5py.File(target, "w") as copy:
            weights = source.get("model_weights", source)
            place = copy.create_group("model_weights") if config is not None else copy
            for name, value in weights.attrs.items():
                if name != "model_config":
                    place.attrs[name] = value
            for name in weights:
                source.copy(weights[name], place, name)
            if config is not None:
                copy.attrs["keras_version"] = source.attrs.get("keras_version", b"1.0.0")
                copy.attrs["backend"] = source.attrs.get("backend", b"tensorflow")
                _put_text(copy, "model_config", json.dumps(config))
    except _HDF5_ERRORS as error:
        raise _unreadable(document.path, error) from error
    return target


def _put_text(file: h5py.File, name: str, text: str) -> None:
    # As fixed-length text an attribute ends at 64 KiB; of variable length it is kept in the heap.
    file.attrs.create(name, text, dtype=h5py.string_dtype())


def _copied(path: Path, target: Path) -> Path:
    shutil.copyfile(str(path), str(target))
    return target


# ---- small pieces


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value if isinstance(value, str) else None


def _json(path: Path, name: str, text: str | bytes) -> Config:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RetargetError(f"{path}: its {name} is not JSON ({error})", DAMAGED) from error
    if not isinstance(content, dict):
        raise RetargetError(f"{path}: its {name} is not a mapping", DAMAGED)
    return content


def _unreadable(path: Path, error: Exception) -> RetargetError:
    words = " ".join(str(error).split()) or type(error).__name__
    return RetargetError(f"{path}: cannot be read ({words})", DAMAGED)

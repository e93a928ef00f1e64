"""The files of a ``.mlpackage``: ``Manifest.json``, the model's specification, and weight files (MILBlob storage v2).

A weight file is little endian: a header of 64 bytes (number of blobs, version 2), then, each at a multiple of 64, a
record of 64 bytes (sentinel, type, bytes of data, where the data starts, how many of its last bits are padding) and
what it describes. Nothing is read before it is used, and what takes whole bytes is never copied.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf.message import DecodeError

from retarget.errors import DAMAGED, ToolchainFailure
from retarget.targets.coreml.interpreter.declared import BITS, HELD
from retarget.targets.coreml.library import proto

if TYPE_CHECKING:
    from retarget.protocols import Array

_ALIGNMENT = 64
_SENTINEL = 0xDEADBEEF
_VERSION = 2
_HEADER = struct.Struct("<II")
_RECORD = struct.Struct("<IIQQQ")

_BLOB_TYPES = {
    1: "float16",
    2: "float32",
    3: "uint8",
    4: "int8",
    5: "bfloat16",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}


class Package:
    """A ``.mlpackage`` on disk. Raises ``ToolchainFailure`` where its files are not what the format says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._weights: dict[str, WeightFile] = {}

    @cached_property
    def model_path(self) -> Path:
        """The specification, as the manifest has it."""
        place = self.path / "Manifest.json"
        try:
            manifest = json.loads(place.read_bytes())
            found = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        except OSError as error:
            raise ToolchainFailure(f"{place}: {error.strerror}", DAMAGED) from error
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise ToolchainFailure(f"{place}: it does not name the model's specification", DAMAGED) from error
        return _inside(self.path / "Data", found, place)

    @cached_property
    def spec(self) -> proto.Model_pb2.Model:
        """The model's specification."""
        spec = proto.Model_pb2.Model()
        try:
            spec.ParseFromString(self.model_path.read_bytes())
        except OSError as error:
            raise ToolchainFailure(f"{self.model_path}: {error.strerror}", DAMAGED) from error
        except DecodeError as error:
            raise ToolchainFailure(f"{self.model_path}: it is not a Core ML specification", DAMAGED) from error
        return spec

    def blob(self, file_name: str, offset: int, element: str, shape: tuple[int, ...]) -> Array:
        """The tensor whose record stands at ``offset`` of a weight file, such as ``@model_path/weights/weight.bin``."""
        if file_name not in self._weights:
            relative = file_name.removeprefix("@model_path/")
            self._weights[file_name] = WeightFile(_inside(self.model_path.parent, relative, self.model_path))
        return self._weights[file_name].read(offset, element, shape)


class WeightFile:
    """One weight file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            if size >= _ALIGNMENT:
                with path.open("rb") as file:
                    self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ToolchainFailure(f"{path}: {error.strerror}", DAMAGED) from error
        if size < _ALIGNMENT:
            raise ToolchainFailure(f"{path}: it is shorter than its header", DAMAGED)
        _, version = _HEADER.unpack_from(self._bytes)
        if version != _VERSION:
            raise ToolchainFailure(f"{path}: it is of version {version}, only {_VERSION} is known", DAMAGED)

    def read(self, offset: int, element: str, shape: tuple[int, ...]) -> Array:
        """The tensor whose record stands at ``offset``; a view of the file unless its elements are packed."""
        place = f"{self.path}: blob at byte {offset}"
        if offset % _ALIGNMENT or offset + _RECORD.size > len(self._bytes):
            raise ToolchainFailure(f"{place}: there is no blob in a file of {len(self._bytes)} bytes", DAMAGED)
        sentinel, code, size, start, padding = _RECORD.unpack_from(self._bytes, offset)
        if sentinel != _SENTINEL:
            raise ToolchainFailure(f"{place}: it starts with {sentinel:#010x} rather than {_SENTINEL:#010x}", DAMAGED)
        if _BLOB_TYPES.get(code) != element:
            held = _BLOB_TYPES.get(code, f"type {code}")
            raise ToolchainFailure(f"{place}: it holds {held}, the program declares {element}", DAMAGED)
        if start % _ALIGNMENT or start + size > len(self._bytes):
            raise ToolchainFailure(
                f"{place}: its {size} bytes at {start} do not lie in a file of {len(self._bytes)} bytes", DAMAGED
            )
        needed = math.prod(shape)
        bits = BITS.get(element, HELD[element].itemsize * 8)
        if size * 8 != needed * bits + padding or not 0 <= padding < 8:
            raise ToolchainFailure(
                f"{place}: it holds {size} bytes, {needed} elements of {element} are declared", DAMAGED
            )
        return restored(np.frombuffer(self._bytes, np.uint8, size, start), element, shape)


def restored(data: Array, element: str, shape: tuple[int, ...]) -> Array:
    """Bytes as the tensor that they hold. There are to be enough of them."""
    if element not in BITS:
        return data.view(HELD[element]).reshape(shape)
    width, count = BITS[element], math.prod(shape)
    bits = np.unpackbits(data.view(np.uint8), bitorder="little")[: count * width].reshape(count, width)
    whole = np.packbits(bits, axis=1, bitorder="little").reshape(count)
    if element == "int4":
        return ((whole ^ 8).astype(np.int8) - 8).astype(np.int8).reshape(shape)
    return whole.reshape(shape)


def _inside(root: Path, relative: object, place: Path) -> Path:
    """A file of the package; raise ``ToolchainFailure`` for a path that leads out of it, or is none."""
    parts = PurePosixPath(relative if isinstance(relative, str) and relative.isprintable() else "")
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise ToolchainFailure(f"{place}: {relative!r} is no path inside of the package", DAMAGED)
    return root / parts

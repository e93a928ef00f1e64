"""Weight files as coremltools' own writer makes them, and packages that are not what the format says."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import packaged
import pytest
from coremltools.converters.mil.mil.types.type_mapping import nptype_from_builtin
from coremltools.libmilstoragepython import _BlobStorageWriter

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.evaluate import Interpreter
from retarget.targets.coreml.interpreter.files import WeightFile
from retarget.targets.coreml.interpreter.program import read
from retarget.targets.coreml.library import Var, mb, proto, types

if TYPE_CHECKING:
    from retarget.protocols import Array

NARROW = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}
WHOLE = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
WEIGHT = np.arange(40, dtype=np.float32).reshape(10, 4)


def stored(path: Path, element: str, array: Array) -> int:
    """Where coremltools' writer puts the array."""
    writer = _BlobStorageWriter(str(path))
    if element in NARROW:
        array = array.astype(nptype_from_builtin(getattr(types, element)))
    if element == "float16":
        return int(writer.write_fp16_data(array.view(np.uint16)))
    return int(getattr(writer, "write_float_data" if element == "float32" else f"write_{element}_data")(array))


@pytest.mark.parametrize("element", [*NARROW, *WHOLE, "float16", "float32"])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 24, 77])
def test_weights_of_every_type(element: str, count: int, tmp_path: Path) -> None:
    random = np.random.default_rng(count)
    if element in NARROW:
        low = -8 if element == "int4" else 0
        right = random.integers(low, low + 2 ** NARROW[element], count).astype(np.int8 if low else np.uint8)
    elif element in WHOLE:
        limits = np.iinfo(element)
        right = random.integers(limits.min, limits.max, count, dtype=element, endpoint=True)
    else:
        right = random.standard_normal(count).astype(element)
    offset = stored(tmp_path / "weight.bin", element, right)
    found = WeightFile(tmp_path / "weight.bin").read(offset, element, (count,))
    assert found.dtype == right.dtype
    np.testing.assert_array_equal(found, right)


def test_bfloat16_weights(tmp_path: Path) -> None:
    right = np.array([1.5, -2.0, 3e38], ml_dtypes.bfloat16)
    (tmp_path / "weight.bin").write_bytes(blob(5, right.tobytes()))
    found = WeightFile(tmp_path / "weight.bin").read(64, "bfloat16", (3,))
    assert found.dtype == right.dtype
    assert found.tolist() == right.tolist()


def blob(
    code: int, data: bytes, *, sentinel: int = 0xDEADBEEF, version: int = 2, start: int = 128, padding: int = 0
) -> bytes:
    header = struct.pack("<II56x", 1, version)
    return header + struct.pack("<IIQQQ32x", sentinel, code, len(data), start, padding) + data


@pytest.mark.parametrize(
    ("content", "offset", "message"),
    [
        (b"", 64, "shorter than its header"),
        (b"\0" * 64, 64, "it is of version 0"),
        (blob(2, b"\0" * 8, version=1), 64, "it is of version 1"),
        (blob(2, b"\0" * 8, sentinel=7), 64, "starts with 0x00000007"),
        (blob(2, b"\0" * 8), 128, "there is no blob"),
        (blob(2, b"\0" * 8), 65, "there is no blob"),
        (blob(2, b"\0" * 8), 2**63, "there is no blob"),
        (blob(2, b"\0" * 8, start=64 * 5), 64, "8 bytes at 320 do not lie in a file of 136"),
        (blob(2, b"\0" * 8, start=2**63), 64, "do not lie in a file of 136"),
        (blob(2, b"\0" * 8)[:-1], 64, "do not lie in a file of 135"),
        (blob(1, b"\0" * 8), 64, "it holds float16, the program declares float32"),
        (blob(99, b"\0" * 8), 64, "it holds type 99"),
        (blob(2, b"\0" * 12), 64, "it holds 12 bytes, 2 elements of float32 are declared"),
        (blob(2, b"\0" * 9, padding=8), 64, "it holds 9 bytes"),
    ],
)
def test_damaged_weights(content: bytes, offset: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    path.write_bytes(content)
    with pytest.raises(ToolchainFailure, match=message) as failure:
        WeightFile(path).read(offset, "float32", (2,))
    assert str(path) in failure.value.message
    assert failure.value.hint


# ---- packages


def package(path: Path) -> Path:
    """``done = relu(x + weight)``, the weight in its file."""

    def build(values: Mapping[str, Var]) -> Var:
        return mb.relu(x=mb.add(x=values["x"], y=WEIGHT, name="sum"), name="done")

    packaged.saved(path, {"x": np.zeros((1, 4), np.float32)}, build, 17)
    return path


def run(path: Path) -> Array:
    return Interpreter(read(path)).run({"x": np.full((1, 4), -3.5, np.float32)})["done"]


def model_file(path: Path) -> Path:
    return path / "Data" / "com.apple.CoreML" / "model.mlmodel"


def weight_file(path: Path) -> Path:
    return path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def test_weights_are_views_of_the_file(tmp_path: Path) -> None:
    path = package(tmp_path / "m.mlpackage")
    np.testing.assert_array_equal(run(path), np.maximum(WEIGHT - 3.5, 0))
    operations = read(path).functions["main"].block.operations
    (weight,) = [each.value.read() for each in operations if each.type == "const"]
    assert isinstance(weight, np.ndarray)
    assert not weight.flags.owndata
    assert not weight.flags.writeable


def test_weights_are_read_where_they_are_used(tmp_path: Path) -> None:
    path = package(tmp_path / "m.mlpackage")
    weight_file(path).unlink()
    program = read(path)
    with pytest.raises(ToolchainFailure, match=r"weight\.bin: No such file"):
        Interpreter(program).run({"x": np.zeros((1, 4), np.float32)})


def _manifest(**changes: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        place = path / "Manifest.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | changes))

    return damage


def _root(relative: str) -> Callable[[Path], None]:
    return _manifest(rootModelIdentifier="a", itemInfoEntries={"a": {"path": relative}})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "Manifest.json").unlink(), r"Manifest\.json: No such file"),
        (lambda path: (path / "Manifest.json").write_bytes(b"{"), "does not name the model's specification"),
        (lambda path: (path / "Manifest.json").write_text("[" * 100_000), "does not name the model's specification"),
        (_manifest(rootModelIdentifier="none"), "does not name the model's specification"),
        (_manifest(itemInfoEntries=[]), "does not name the model's specification"),
        (_root("../../secret"), "is no path inside of the package"),
        (_root("/etc/passwd"), "is no path inside of the package"),
        (_root("a\0b"), "is no path inside of the package"),
        (_root("\ud800"), "is no path inside of the package"),
        (_root(""), "is no path inside of the package"),
        (_root("other"), "other: No such file"),
        (_root("com.apple.CoreML"), "Is a directory"),
        (lambda path: model_file(path).write_bytes(b"\xff" * 40), "is not a Core ML specification"),
        (lambda path: model_file(path).write_bytes(b""), "holds a None, only ML Programs are known"),
        (
            lambda path: weight_file(path).write_bytes(weight_file(path).read_bytes()[:200]),
            "do not lie in a file of 200",
        ),
    ],
)
def test_damaged_packages(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = package(tmp_path / "m.mlpackage")
    damage(path)
    with pytest.raises(ToolchainFailure, match=message):
        run(path)


def test_another_model_type_is_refused(tmp_path: Path) -> None:
    path = package(tmp_path / "m.mlpackage")
    spec = proto.Model_pb2.Model()
    spec.neuralNetwork.SetInParent()
    model_file(path).write_bytes(spec.SerializeToString())
    with pytest.raises(ToolchainFailure, match="it holds a neuralNetwork, only ML Programs are known"):
        read(path)

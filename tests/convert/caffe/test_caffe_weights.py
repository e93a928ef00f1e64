"""The wire reader: what tests write comes back, of any version and storage; damage is told, and costs no memory."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from caffe_files import Storage, Version, blob, caffemodel, field, saved_layer, varint
from damage import damage

from retarget.convert.caffe import weights
from retarget.errors import RetargetError

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 3, 2, 2)).astype(np.float16).astype(np.float32)
BIAS = RNG.standard_normal(4).astype(np.float16).astype(np.float32)


def reading(content: bytes, folder: Path) -> weights.Weights:
    path = folder / "net.caffemodel"
    path.write_bytes(content)
    return weights.read(path)


def refused(content: bytes, folder: Path) -> str:
    with pytest.raises(RetargetError) as caught:
        reading(content, folder)
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("storage", ["float", "unpacked", "double", "float16"])
@pytest.mark.parametrize("legacy", [False, True])
def test_reads_what_is_written(version: Version, storage: Storage, legacy: bool, tmp_path: Path) -> None:
    layers = [("conv", "Convolution", [WEIGHT, BIAS]), ("relu", "ReLU", [])]
    read = reading(caffemodel(layers, version=version, storage=storage, legacy=legacy, name="my net"), tmp_path)
    assert (read.name, read.version, read.parameters) == ("my net", f"V{version}", 52)
    assert [layer.name for layer in read.layers] == ["conv", "relu"]
    assert read.layers[0].type == ("conv", "4", "Convolution")[version]
    weight, bias = read.layers[0].blobs
    assert weight.dtype == bias.dtype == np.float32
    np.testing.assert_array_equal(weight, WEIGHT)
    np.testing.assert_array_equal(bias, BIAS.reshape((1, 1, 1, 4) if legacy else 4))


def test_packed_floats_are_views_of_the_file(tmp_path: Path) -> None:
    read = reading(caffemodel([("fc", "InnerProduct", [np.zeros((1000, 1000), np.float32)])]), tmp_path)
    array = read.layers[0].blobs[0]
    assert not array.flags.owndata
    assert not array.flags.writeable


@pytest.mark.parametrize("storage", ["float", "unpacked"])
def test_reading_takes_no_time(storage: Storage, tmp_path: Path) -> None:
    content = caffemodel([("fc", "InnerProduct", [np.ones((500, 1000), np.float32)])] * 1, storage=storage)
    start = time.process_time()
    reading(content, tmp_path)
    assert time.process_time() - start < 0.5  # a field a step would take that for a tenth of them


def test_numbers_may_lie_in_pieces(tmp_path: Path) -> None:
    one_by_one = b"".join(varint(5 << 3 | 5) + np.float32(value).tobytes() for value in (3, 4))
    shape = field(7, varint(1 << 3) + varint(5))  # a dimension that is not packed
    pieces = field(5, np.array([1, 2], "<f4").tobytes()) + one_by_one + field(5, np.array([5], "<f4").tobytes())
    layer = field(100, field(1, b"x") + field(2, b"PReLU") + field(7, pieces[:10] + shape + pieces[10:]))
    np.testing.assert_array_equal(reading(layer, tmp_path).layers[0].blobs[0], [1, 2, 3, 4, 5])


def test_gradients_and_unknown_fields_are_passed_over(tmp_path: Path) -> None:
    odd = field(6, b"\0" * 16) + field(9, b"\0" * 8) + varint(77 << 3 | 1) + b"\0" * 8 + varint(78 << 3) + b"\x05"
    layer = field(100, field(1, b"x") + field(2, b"PReLU") + field(7, odd + blob(BIAS)) + field(106, b"\x08\x04"))
    read = reading(field(1, b"n") + field(6, b"") + layer + field(1000, b"?"), tmp_path)
    np.testing.assert_array_equal(read.layers[0].blobs[0], BIAS)


def blob_with(dims: list[int], count: int) -> bytes:
    shape = field(7, field(1, b"".join(varint(dim) for dim in dims)))
    return field(100, field(1, b"x") + field(2, b"PReLU") + field(7, shape + field(5, b"\0" * 4 * count)))


@pytest.mark.parametrize(
    ("dims", "count"),
    [
        ([2**40, 2**40], 4),  # a product beyond int64, which wraps to 0
        ([2**63 - 1, 2**63 - 1], 1),
        ([-1, -4], 4),
        ([-1], 4),
        ([0, 5], 0),
        ([], 3),
        ([5], 4),
        ([2**62], 4),
        ([1] * 33, 1),
    ],
)
def test_absurd_shapes_are_refused(dims: list[int], count: int, tmp_path: Path) -> None:
    assert refused(blob_with(dims, count), tmp_path).startswith("net.caffemodel: blob 0 of layer 'x': ")


def test_a_scalar_needs_no_dimensions(tmp_path: Path) -> None:
    assert reading(blob_with([], 1), tmp_path).layers[0].blobs[0].shape == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "net.caffemodel: no layers in it"),
        (field(1, b"net"), "net.caffemodel: no layers in it"),
        (b'name: "net"\nlayer {', "net.caffemodel: a field of unknown wire type 6"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "net.caffemodel: weights in HDF5"),
        (field(100, field(1, b"x"))[:-1], "net.caffemodel: field 100 at byte 0 says 3 bytes, and 2 follow"),
        (varint(100 << 3 | 2) + b"\xff" * 11, "net.caffemodel: a number of more than 10 bytes before byte 12"),
        (varint(100 << 3 | 2) + varint(2**63) + b"x", "net.caffemodel: field 100 at byte 0 says 9,2"),
        (b"\x03", "net.caffemodel: a field of number 0"),
        (b"\x0b", "net.caffemodel: a field of unknown wire type 3"),
        (b"\x80", "net.caffemodel: the data ends within a number at byte 1"),
    ],
)
def test_damage_is_told(content: bytes, message: str, tmp_path: Path) -> None:
    assert refused(content, tmp_path).startswith(message)


def test_a_text_is_taken_for_a_prototxt(tmp_path: Path) -> None:
    (tmp_path / "net.caffemodel").write_text('name: "net"\nlayer {')
    with pytest.raises(RetargetError) as caught:
        weights.read(tmp_path / "net.caffemodel")
    assert caught.value.hint == "this is the text of a prototxt: give `NET.prototxt,NET.caffemodel`"


def test_odd_storage_is_refused(tmp_path: Path) -> None:
    def layer(content: bytes) -> bytes:
        return field(100, field(1, b"x") + field(2, b"PReLU") + field(7, field(7, field(1, b"\x01")) + content))

    assert refused(layer(varint(10 << 3) + b"\x03" + field(12, b"\0" * 4)), tmp_path).endswith(
        "numbers of type 3, which weights do not have"
    )
    assert refused(layer(field(5, b"\0" * 3)), tmp_path).endswith("its numbers are not of float32")
    assert refused(layer(varint(8 << 3 | 5) + b"\0" * 4), tmp_path).endswith("its numbers are not of float64")
    assert refused(layer(field(5, b"") * 2000), tmp_path).endswith("its numbers lie in more than 1,000 pieces")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match=r"cannot read .*No such file"):
        weights.read(tmp_path / "none.caffemodel")


def test_mean_images(tmp_path: Path) -> None:
    mean = RNG.standard_normal((3, 4, 5)).astype(np.float32)
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(blob(mean, legacy=True))
    np.testing.assert_array_equal(weights.read_mean(path), mean)
    path.write_bytes(blob(mean))
    np.testing.assert_array_equal(weights.read_mean(path), mean)
    path.write_bytes(blob(mean[0]))
    with pytest.raises(RetargetError, match=r"this has the shape \[4, 5\]"):
        weights.read_mean(path)
    path.write_bytes(blob(mean)[:-1])
    with pytest.raises(RetargetError, match="says 240 bytes, and 239 follow"):
        weights.read_mean(path)


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("kind", ["cut", "flip", "drop", "repeat"])
def test_damaged_files_are_read_or_refused(version: Version, kind: str, tmp_path: Path) -> None:
    rng = random.Random(version)
    whole = caffemodel(
        [("conv", "Convolution", [WEIGHT[:1, :1], BIAS[:2]]), ("fc", "InnerProduct", [BIAS])],
        version=version,
        storage="unpacked" if version else "float",
    )
    told = 0
    for _ in range(150):
        try:
            read = reading(damage(whole, kind, rng), tmp_path)
        except RetargetError as error:
            assert error.hint  # noqa: PT017 - others are read, as what is damaged may be a number
            told += 1
        else:
            assert read.parameters < len(whole)
    assert told > 10


@pytest.mark.parametrize(
    "piece",
    [
        field(100, b""),
        field(2, field(1, b"")),
        saved_layer("x", "PReLU", [BIAS[:1]]),
        field(100, field(7, b"") * 900),
        field(100, field(7, field(5, b"") * 900)),
        field(100, field(7, (varint(5 << 3 | 5) + b"\0" * 4) * 500)),
        field(100, field(7, field(12, b"\0\0" * 900) + varint(10 << 3) + b"\x02")),
        varint(50 << 3) + b"\x01",
        field(1, b"n" * 100),
    ],
)
def test_memory_is_bounded_by_the_file(piece: bytes, tmp_path: Path) -> None:
    content = piece * (12_000 // len(piece))
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        weights.read(path)
    except RetargetError as error:
        assert error.hint  # noqa: PT017
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 130 * len(content) + 100_000

"""Damaged TFLite files: the checked reader meets each with an error, before anything else follows their offsets."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from damage import damage

from retarget.catalog import frontend_export
from retarget.convert.tflite.read import read
from retarget.errors import RetargetError
from retarget.source import Source


class Writer:
    """A flatbuffer written from its end: just enough of the format for the tests, by nobody's library."""

    def __init__(self) -> None:
        self.data = b""

    def _put(self, data: bytes, align: int = 4) -> int:
        """Gives the distance of ``data`` from the end."""
        pad = -(len(self.data) + len(data)) % max(align, 8)
        self.data = data + b"\0" * pad + self.data
        return len(self.data)

    def blob(self, data: bytes, count: int | None = None) -> int:
        return self._put(struct.pack("<I", len(data) if count is None else count) + data)

    def text(self, text: str) -> int:
        return self._put(struct.pack("<I", len(text)) + text.encode() + b"\0")

    def ints(self, *numbers: int) -> int:
        return self.blob(struct.pack(f"<{len(numbers)}i", *numbers), len(numbers))

    def tables(self, *tables: int) -> int:
        size = 4 + 4 * len(tables)
        size += -(len(self.data) + size) % 8
        end = len(self.data) + size
        offsets = [end - 4 - 4 * at - table for at, table in enumerate(tables)]
        return self._put(struct.pack(f"<I{len(tables)}I", len(tables), *offsets))

    def table(self, **fields: tuple[str, int]) -> int:
        """``f3=("offset", at)``, ``f0=("<I", 3)``: every field takes 8 bytes."""
        numbers = {int(name[1:]): value for name, value in fields.items()}
        count = max(numbers, default=-1) + 1
        body = 8 * (1 + len(numbers))
        vtable = struct.pack("<HH", 4 + 2 * count, body)
        places = {number: 8 * (1 + at) for at, number in enumerate(sorted(numbers))}
        vtable += b"".join(struct.pack("<H", places.get(number, 0)) for number in range(count))
        vtable += b"\0" * (-len(vtable) % 8)
        end = len(self.data) + body + -(len(self.data) + body) % 8
        content = struct.pack("<i", len(vtable)).ljust(8, b"\0")
        for number in sorted(numbers):
            kind, value = numbers[number]
            if kind == "offset":
                content += struct.pack("<I", end - places[number] - value).ljust(8, b"\0")
            else:
                content += struct.pack(kind, value).ljust(8, b"\0")
        at = self._put(content)
        assert at == end
        self.data = vtable + self.data
        return at

    def finish(self, root: int) -> bytes:
        return struct.pack("<I", 8 + len(self.data) - root) + b"TFL3" + self.data


def model(**change: object) -> bytes:
    """y = x + [1, 2]: one Add, one constant, one signature; ``change`` replaces one number or vector."""
    given = {
        "version": 3, "x_shape": (1, 2), "signature": (-1, 2), "type": 0, "buffer": 1, "data": struct.pack("<2f", 1, 2),
        "inputs": (0,), "outputs": (2,), "reads": (0, 1), "writes": (2,), "opcode": 0, "code": 0, "map": 0,
        "subgraph": 0, "offset": 0, "size": 0, "w_shape": (2,), "w_name": "w", "second": False, "scales": 0,
    }  # fmt: skip
    given.update(change)
    w = Writer()

    def ints(name: str) -> int:
        return w.ints(*given[name])  # type: ignore[misc]

    def number(name: str) -> int:
        value = given[name]
        assert isinstance(value, int)
        return value

    data = given["data"]
    assert isinstance(data, bytes)
    buffers = w.tables(
        w.table(), w.table(f0=("offset", w.blob(data)), f1=("<Q", number("offset")), f2=("<Q", number("size")))
    )
    quantized: dict[str, tuple[str, int]] = {}
    if number("scales"):
        scale = w.blob(b"\0" * 4 * number("scales"), number("scales"))
        zero = w.blob(b"\0" * 8 * number("scales"), number("scales"))
        quantized = {"f4": ("offset", w.table(f2=("offset", scale), f3=("offset", zero)))}
    x = w.table(
        f0=("offset", ints("x_shape")), f1=("<b", number("type")), f3=("offset", w.text("serving_default_x:0")),
        f7=("offset", ints("signature")),
    )  # fmt: skip
    c = w.table(
        f0=("offset", ints("w_shape")), f2=("<I", number("buffer")), f3=("offset", w.text(str(given["w_name"]))),
        **quantized,
    )  # fmt: skip
    y = w.table(f0=("offset", ints("x_shape")), f3=("offset", w.text("y")), f7=("offset", ints("signature")))
    tensors = w.tables(x, c, y)
    add = w.table(f0=("<I", number("opcode")), f1=("offset", ints("reads")), f2=("offset", ints("writes")))
    more = [w.table(f1=("offset", w.ints(2)), f2=("offset", w.ints(0)))] if given["second"] else []
    graph = w.table(
        f0=("offset", tensors), f1=("offset", ints("inputs")), f2=("offset", ints("outputs")),
        f3=("offset", w.tables(*more, add)),
    )  # fmt: skip
    named = w.tables(w.table(f0=("offset", w.text("x")), f1=("<I", number("map"))))
    gives = w.tables(w.table(f0=("offset", w.text("sum")), f1=("<I", 2)))
    signature = w.table(
        f0=("offset", named), f1=("offset", gives), f2=("offset", w.text("serving_default")),
        f4=("<I", number("subgraph")),
    )  # fmt: skip
    codes = w.tables(w.table(f0=("<b", number("code"))))
    root = w.table(
        f0=("<I", number("version")), f1=("offset", codes), f2=("offset", w.tables(graph)), f4=("offset", buffers),
        f7=("offset", w.tables(signature)),
    )  # fmt: skip
    return w.finish(root)


def _read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    read(path)


def test_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(model())
    file = read(path)
    (graph,) = file.subgraphs
    assert [tensor.name for tensor in graph.tensors] == ["serving_default_x:0", "w", "y"]
    assert [tensor.shape for tensor in graph.tensors] == [(-1, 2), (2,), (-1, 2)]
    assert [tensor.constant for tensor in graph.tensors] == [False, True, False]
    (signature,) = file.signatures
    assert (signature.key, signature.inputs, signature.outputs) == ("serving_default", {0: "x"}, {2: "sum"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 4}, "version 4"),
        ({"x_shape": (-3, 2)}, "impossible shape"),
        ({"signature": (-2, 2)}, "impossible shape"),
        ({"signature": (-1,)}, "impossible shape"),
        ({"x_shape": (1 << 30, 1 << 30)}, "impossible shape"),
        ({"type": 99}, "type 99"),
        ({"buffer": 7}, "buffer 7 of 2"),
        ({"data": b"\0" * 7}, "7 bytes, where its shape needs 8"),
        ({"inputs": (5,)}, "tensor 5 of 3"),
        ({"inputs": (-1,)}, "tensor -1 of 3"),
        ({"outputs": (3,)}, "tensor 3 of 3"),
        ({"reads": (0, 99)}, "tensor 99 of 3"),
        ({"writes": (1 << 20,)}, "tensor 1048576 of 3"),
        ({"opcode": 4}, "code 4 of 1"),
        ({"map": 1}, "not at the border"),
        ({"subgraph": 3}, "graph 3 of 1"),
        ({"offset": 4096}, "behind the model"),
        ({"writes": ()}, "nothing makes"),
        ({"second": True}, "reads tensor 2, which comes later"),
        ({"scales": 3}, "3 scales and 3 zero points"),
    ],
)
def test_what_does_not_fit_together_is_named(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(RetargetError, match=words):
        _read(tmp_path, model(**change))


@pytest.mark.parametrize(("at", "size", "words"), [(4096, 8, "refers to bytes"), (8, 1 << 40, "refers to bytes")])
def test_weights_behind_the_model_must_be_in_the_file(tmp_path: Path, at: int, size: int, words: str) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(model(offset=at, size=size))
    with pytest.raises(RetargetError, match=words):
        read(path, outside=True)


def test_weights_behind_the_model_have_the_size_of_their_tensor(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(model(offset=8, size=8))
    assert read(path, outside=True).subgraphs[0].tensors[1].constant
    path.write_bytes(model(offset=8, size=12))
    with pytest.raises(RetargetError, match="12 bytes, where its shape needs 8"):
        read(path, outside=True)


def test_missing_quantization_of_a_bare_tensor_is_fine(tmp_path: Path) -> None:
    _read(tmp_path, model(scales=2))


def test_strings_that_are_read_many_times_are_bounded(tmp_path: Path) -> None:
    """A thousand tensors with one name of 100 kB would be a hundred megabytes of names."""
    w = Writer()
    name = w.text("n" * 100_000)
    shape = w.ints(1)
    graph = w.table(f0=("offset", w.tables(*[w.table(f0=("offset", shape), f3=("offset", name))] * 1000)))
    root = w.table(f0=("<I", 3), f2=("offset", w.tables(graph)), f4=("offset", w.tables(w.table())))
    with pytest.raises(RetargetError, match="again and again"):
        _read(tmp_path, w.finish(root))


@pytest.mark.parametrize("kind", ["cut", "flip", "drop", "repeat"])
def test_random_damage_is_met_with_an_error_or_none(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    whole = model()
    failures = 0
    for _ in range(400):
        try:
            _read(tmp_path, damage(whole, kind, rng))
        except RetargetError:
            failures += 1
    assert failures > 100


def test_every_beginning_of_a_file_is_an_error(tmp_path: Path) -> None:
    whole = model()
    for size in range(len(whole) - 8):
        with pytest.raises(RetargetError):
            _read(tmp_path, whole[:size])


def test_damage_is_found_without_tensorflow(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(model()[:100])
    with pytest.raises(RetargetError, match="not a readable TFLite model"):
        frontend_export("tflite").export(Source(path, (), {}, options={"kernels": "builtin"}), None, tmp_path)
    with pytest.raises(RetargetError, match="no such file"):
        read(tmp_path / "none.tflite")

"""Both files as ncnn reads them: numbers in the text, tags, padding, and what is no param file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from retarget.errors import RetargetError
from retarget.targets.ncnn import files
from retarget.targets.ncnn.program import Blob, Layer, Param, Weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retarget.protocols import Array

ncnn = pytest.importorskip("ncnn")

ADD, WITH_NUMBER = 0, 1


def written(folder: Path, *layers: Layer, half: bool = False) -> tuple[Path, Path]:
    param, weights = folder / "a.param", folder / "a.bin"
    files.write(layers, param, weights, half=half)
    return param, weights


def extracted(param: Path, weights: Path, name: str, **fed: Array) -> NDArray[np.float32]:
    """The blob ``name`` with all in float32."""
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param(str(param)) == 0
    assert net.load_model(str(weights)) == 0
    extractor = net.create_extractor()
    for blob, array in fed.items():
        assert extractor.input(blob, ncnn.Mat(array).clone()) == 0
    code, mat = extractor.extract(name)
    assert code == 0
    return np.array(mat.numpy(), np.float32)


def layer(kind: str, *ends: str, weights: tuple[Weight, ...] = (), **params: Param) -> Layer:
    """``ends``: bottoms, and one top. Parameters are called ``k0``."""
    blobs = [Blob((1,), name=name) for name in ends]
    keyed = {int(key[1:]): value for key, value in params.items()}
    return Layer(kind, tuple(blobs[:-1]), (blobs[-1],), keyed, weights, name=f"{kind}_{ends[-1]}")


NUMBERS = [
    0.0,
    1.0,
    -1.0,
    0.1,
    1e-7,
    -3.4028235e38,
    1.17549435e-38,
    1e-45,
    123456.79,
    16777216.0,
    0.33333334,
    1e20,
    -7e-12,
]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_are_read_as_they_are_meant(number: float, tmp_path: Path) -> None:
    """ncnn reads at most 15 characters of a number."""
    single = float(np.float32(number))
    text = files.line(layer("BinaryOp", "x", "y", k0=ADD, k1=WITH_NUMBER, k2=single)).rpartition("=")[2]
    assert len(text) <= 15
    assert "." in text or "e" in text
    param, weights = written(
        tmp_path, layer("Input", "x", k0=1), layer("BinaryOp", "x", "y", k0=ADD, k1=WITH_NUMBER, k2=single)
    )
    (found,) = extracted(param, weights, "y", x=np.zeros(1, np.float32))
    # Its parser multiplies by powers of ten, each rounded.
    assert found == pytest.approx(single, rel=3e-7, abs=1.2e-38)


def test_what_no_text_can_say_is_not_written() -> None:
    for number in (np.inf, -np.inf, np.nan):
        with pytest.raises(AssertionError, match="cannot be written in a param file"):
            files.line(layer("BinaryOp", "x", "y", k2=float(number)))


def test_arrays_texts_and_numbers_read_back(tmp_path: Path) -> None:
    param, _ = written(
        tmp_path, layer("Input", "x", k0=4), layer("Reduction", "x", "y", k0=4, k2=0.5, k3=[1, -2], k5=1, k6="0w,1h")
    )
    assert "-23303=2,1,-2" in param.read_text()
    read = files.read(param)[1]
    assert (read.type, read.name, read.bottoms, read.tops) == ("Reduction", "Reduction_y", ("x",), ("y",))
    assert read.params == {0: "4", 2: "0.5", 3: "1,-2", 5: "1", 6: "0w,1h"}
    assert (read.integer(0), read.integer(9), read.integer(9, 7)) == (4, 0, 7)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("count", [3, 4])
def test_tagged_weights_are_float16_where_that_reaches(half: bool, count: int, tmp_path: Path) -> None:
    near = np.linspace(-1, 1, count * 2, dtype=np.float32).reshape(2, count)
    far = near * np.float32(1e6)
    biases = np.array([0.1, 70000.0], np.float32)
    layers = [layer("Input", "x", k0=count)]
    for top, array in (("near", near), ("far", far)):
        kept = (Weight(array), Weight(biases, tagged=False))
        layers.append(
            layer("InnerProduct", "x" if top == "near" else "x2", top, weights=kept, k0=2, k1=1, k2=2 * count)
        )
    layers.insert(1, layer("Input", "x2", k0=count))
    param, weights = written(tmp_path, *layers, half=half)
    padded = -(-2 * count * 2 // 4) * 4
    assert weights.stat().st_size == (4 + (padded if half else 8 * count) + 8) + (4 + 8 * count + 8)
    x = np.linspace(1, 2, count, dtype=np.float32)
    meant = near.astype(np.float16).astype(np.float32) if half else near
    np.testing.assert_allclose(extracted(param, weights, "near", x=x, x2=x), meant @ x + biases, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(extracted(param, weights, "far", x=x, x2=x), far @ x + biases, rtol=1e-5)


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_large_weights_are_written_in_pieces_that_change_nothing(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    one = layer("InnerProduct", "x", "y", weights=(Weight(array.transpose(1, 0, 2)),), k0=3, k2=60)
    _, whole = written(tmp_path, layer("Input", "x", k0=20), one)
    before = whole.read_bytes()
    monkeypatch.setattr(files, "PIECE", piece)
    _, pieces = written(tmp_path, layer("Input", "x", k0=20), one)
    assert pieces.read_bytes() == before
    assert before[4:] == np.ascontiguousarray(array.transpose(1, 0, 2)).tobytes()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it does not begin with 7767517"),
        ("7767516\n1 1\n", "it does not begin with 7767517"),
        ("7767517\n", "list index out of range"),
        ("7767517\n2 1\nInput x 0 1 x\n", "it has 1 layers, and says 2"),
        ("7767517\n1 1\nInput x 0\n", "not enough values to unpack"),
        ("7767517\n1 1\nInput x 0 1 x a=b\n", "invalid literal"),
        ("7767517\n1\nInput x 0 1 x\n", "not enough values to unpack"),
        ("7767517\n1 x\nInput x 0 1 x\n", "invalid literal"),
        ("7767517\n1 1\nSplit x 0 2 x y\n", "it has 2 blobs, and says 1"),
        ("7767517\n1 1\nInput x 0 1\n", "'x' has not as many blobs as it says"),
        ("7767517\n1 1\nInput x -1 1 x\n", "'x' has not as many blobs as it says"),
    ],
)
def test_what_is_no_param_file_is_a_clear_line(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.param").write_text(text)
    with pytest.raises(RetargetError, match=rf"a.param: not a text param file of ncnn: .*{reason}"):
        files.read(tmp_path / "a.param")

"""What comes out of ``Samples`` is held against slices of the arrays that went in."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from retarget.calibration.data import open_samples
from retarget.errors import RetargetError
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Array

    Batches = list[dict[str, Array]]

IMAGE = TensorSpec.parse("image=float32[N,2,3]")


def drawn(*shape: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def read(
    path: Path,
    specs: list[TensorSpec],
    size: int | None = None,
    *,
    function: str | None = None,
    limit: int | None = None,
    extra: tuple[str, ...] = (),
) -> Batches:
    return list(open_samples(path, specs, function=function, limit=limit, extra=extra).batches(size))


@pytest.fixture(params=["stored", "compressed", "fortran", "fortran compressed"])
def npz(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    def write(**arrays: Array) -> Path:
        if "fortran" in request.param:
            arrays = {name: np.asfortranarray(array) if array.ndim else array for name, array in arrays.items()}
        path = tmp_path / "data.npz"
        if "compressed" in request.param:
            np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
        else:
            np.savez(path, **arrays)  # type: ignore[arg-type]
        return path

    return write


@pytest.mark.parametrize(("size", "lengths"), [(None, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_own_rank_holds_samples(npz: Callable[..., Path], size: int | None, lengths: list[int]) -> None:
    image, label = drawn(7, 2, 3), np.arange(7)
    batches = read(npz(image=image, label=label, unused=drawn(2)), [IMAGE], size, extra=("label",))
    assert [len(batch["image"]) for batch in batches] == lengths
    np.testing.assert_array_equal(np.concatenate([batch["image"] for batch in batches]), image)
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in batches]), label)


def test_a_second_walk_starts_again(npz: Callable[..., Path]) -> None:
    image = drawn(5, 2, 3)
    samples = open_samples(npz(image=image), [IMAGE], function=None, limit=None)
    assert samples.count == 5
    next(samples.batches(2))
    np.testing.assert_array_equal(np.concatenate([batch["image"] for batch in samples.batches(2)]), image)


def test_one_rank_more_holds_whole_inputs(npz: Callable[..., Path]) -> None:
    image, scale, label = drawn(4, 5, 2, 3), drawn(4), np.arange(4)
    specs = [IMAGE, TensorSpec.parse("scale=float32[]")]
    batches = read(npz(image=image, scale=scale, label=label), specs, 2, extra=("label",))
    assert len(batches) == 4
    for index, batch in enumerate(batches):
        np.testing.assert_array_equal(batch["image"], image[index])
        assert batch["scale"].shape == ()
        assert batch["scale"] == scale[index]
        np.testing.assert_array_equal(batch["label"], label[index : index + 1])


def test_whole_inputs_beside_rows(npz: Callable[..., Path]) -> None:
    rows, whole = drawn(6, 2), drawn(3, 4)
    specs = [TensorSpec.parse("rows=float32[2,2]"), TensorSpec.parse("whole=float32[4]")]
    batches = read(npz(rows=rows, whole=whole), specs)
    assert [batch["rows"].tolist() for batch in batches] == [rows[i : i + 2].tolist() for i in (0, 2, 4)]
    assert [batch["whole"].tolist() for batch in batches] == whole.tolist()


def test_a_scalar_is_the_same_for_all_samples(npz: Callable[..., Path]) -> None:
    batches = read(npz(image=drawn(3, 2, 3), scale=np.float32(2)), [IMAGE, TensorSpec.parse("scale=float32[]")], 2)
    assert [batch["scale"] for batch in batches] == [2.0, 2.0]


def test_a_fixed_batch_wins_and_what_does_not_fill_it_is_noted(npz: Callable[..., Path]) -> None:
    samples = open_samples(npz(image=drawn(7, 2)), [TensorSpec.parse("image=float32[3,2]")], function=None, limit=None)
    assert [len(batch["image"]) for batch in samples.batches(1)] == [3, 3]
    assert samples.notes == ("the last 1 samples do not fill the model's batch of 3",)
    with pytest.raises(RetargetError, match="2 samples do not fill the model's batch of 3"):
        read(npz(image=drawn(2, 2)), [TensorSpec.parse("image=float32[3,2]")])


def test_the_first_samples_only(npz: Callable[..., Path]) -> None:
    path = npz(image=drawn(7, 2, 3))
    assert [len(batch["image"]) for batch in read(path, [IMAGE], 2, limit=3)] == [2, 1]
    more = open_samples(path, [IMAGE], function=None, limit=9)
    assert more.count == 7
    assert more.notes == ("9 samples were asked for, data.npz holds 7",)
    with pytest.raises(RetargetError, match="0 samples were asked for"):
        open_samples(path, [IMAGE], function=None, limit=0)


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_is_that_of_a_batch(tmp_path: Path, compressed: bool) -> None:
    image = np.zeros((2000, 2000), np.float32)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "data.npz", image=image)
    del image
    samples = open_samples(
        tmp_path / "data.npz", [TensorSpec.parse("image=float32[N,2000]")], function=None, limit=None
    )
    tracemalloc.start()
    seen = sum(len(batch["image"]) for batch in samples.batches(4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 2000
    assert peak < 1 << 20


def test_safe_casts_are_noted(npz: Callable[..., Path]) -> None:
    specs = [IMAGE, TensorSpec.parse("ids=int32[N]"), TensorSpec.parse("mask=bool[N]")]
    image = drawn(2, 2, 3).astype(np.float64)
    samples = open_samples(
        npz(image=image, ids=np.array([1, 2]), mask=np.array([0, 1])), specs, function=None, limit=None
    )
    (batch,) = samples.batches(2)
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "image": "float32", "ids": "int32", "mask": "bool",
    }  # fmt: skip
    np.testing.assert_array_equal(batch["image"], image.astype(np.float32))
    assert samples.notes == (
        "'image' was converted from float64 to float32",
        "'ids' was converted from int64 to int32",
        "'mask' was converted from int64 to bool",
    )


@pytest.mark.parametrize(
    ("arrays", "spec", "words"),
    [
        ({"image": drawn(2, 2, 4)}, "image=float32[N,2,3]", r"'image' has shape \[2, 2, 4\], expected \[samples,2,3\]"),
        ({"image": drawn(2)}, "image=float32[N,2,3]", r"'image' has shape \[2\], expected \[samples,2,3\]"),
        ({"image": drawn(0, 2, 3)}, "image=float32[N,2,3]", "'image' is empty"),
        ({"img": drawn(2, 2, 3)}, "image=float32[N,2,3]", "no array 'image'\n\nhint: did you mean 'img'"),
        ({"image": np.zeros((2, 2, 3), np.uint8)}, "image=float32[N,2,3]", "expected float32, found uint8"),
        ({"image": drawn(2, 2, 3)}, "image=int64[N,2,3]", "expected int64, found float32"),
        ({"image": np.array([1, 300])}, "image=uint8[N]", r"from 1 to 300 \(int64\) do not fit uint8"),
        ({"image": np.array([1e39])}, "image=float32[N]", "sample 0 holds inf"),
        ({"image": np.array([0, 1, 2, np.nan], np.float32)}, "image=float32[N]", "sample 3 holds nan"),
        ({"image": np.array([["a"]])}, "image=float32[N,1]", "expected float32, found str"),
        ({"image": drawn(2, 3, 4)}, "image=float32[N,T,T]", r"'image' has shape \[2, 3, 4\]"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_is_named(tmp_path: Path, arrays: dict[str, Array], spec: str, words: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(RetargetError, match=words) as caught:
        read(tmp_path / "data.npz", [TensorSpec.parse(spec)], 3)
    assert "data.npz" in caught.value.message


def test_arrays_of_one_file_must_agree(npz: Callable[..., Path]) -> None:
    specs = [TensorSpec.parse("a=float32[N,T]"), TensorSpec.parse("b=float32[N,T]")]
    with pytest.raises(RetargetError, match="different numbers of samples: 'a' 3, 'b' 4"):
        read(npz(a=drawn(3, 2), b=drawn(4, 2)), specs)
    with pytest.raises(RetargetError, match=r"'b': expected float32\[N,T\] with N = 2, T = 2, found shape \[2, 3\]"):
        read(npz(a=drawn(3, 2), b=drawn(3, 3)), specs, 2)


def test_python_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=np.array([{}], object))
    with pytest.raises(RetargetError, match="holds Python objects"):
        read(tmp_path / "data.npz", [IMAGE])


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_file_is_named(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, image=drawn(100, 2, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RetargetError, match=r"data\.npz: not a readable array file"):
        read(path, [IMAGE])
    if compressed:
        path.write_bytes(whole[:900] + b"\xff" * 8 + whole[908:])
        with pytest.raises(RetargetError, match=r"data\.npz: not a readable array file"):
            read(path, [IMAGE])


def test_other_paths(tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match="no such file or folder"):
        read(tmp_path / "missing.npz", [IMAGE])
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(RetargetError, match="not a form of data"):
        read(tmp_path / "data.csv", [IMAGE])


# ---- folders


def folder(path: Path, **arrays: list[Array]) -> Path:
    for name, items in arrays.items():
        (path / name).mkdir(parents=True, exist_ok=True)
        for index, item in enumerate(items):
            np.save(path / name / f"{index}.npy", item)
    return path


def test_a_folder_of_rows_in_the_order_of_numbers(tmp_path: Path) -> None:
    image = drawn(12, 2, 3)
    path = folder(tmp_path / "d", image=list(image), label=[np.array(i) for i in range(12)])
    batches = read(path, [IMAGE], 5, extra=("label",))
    assert [len(batch["image"]) for batch in batches] == [5, 5, 2]
    np.testing.assert_array_equal(np.concatenate([batch["image"] for batch in batches]), image)
    assert np.concatenate([batch["label"] for batch in batches]).tolist() == list(range(12))
    samples = open_samples(path, [IMAGE], function=None, limit=3)
    assert (samples.count, sum(len(batch["image"]) for batch in samples.batches(2))) == (3, 3)


def test_a_folder_of_whole_inputs_of_several_sizes(tmp_path: Path) -> None:
    items: list[Array] = [drawn(2, 2, 3), drawn(4, 2, 3)]
    path = folder(tmp_path / "d", image=items, label=[np.array(i) for i in range(2)])
    batches = read(path, [IMAGE], 8, extra=("label",))
    assert [batch["image"].shape for batch in batches] == [(2, 2, 3), (4, 2, 3)]
    assert [batch["label"].tolist() for batch in batches] == [[0], [1]]


def test_rows_of_several_sizes_are_batched_with_their_like(tmp_path: Path) -> None:
    rows: list[Array] = [drawn(3), drawn(3), drawn(5), drawn(3)]
    batches = read(folder(tmp_path / "d", x=rows), [TensorSpec.parse("x=float32[N,T]")], 8)
    assert [batch["x"].shape for batch in batches] == [(2, 3), (1, 5), (1, 3)]


def test_folders_that_lack_something(tmp_path: Path) -> None:
    path = folder(tmp_path / "d", image=list(drawn(3, 2, 3)), label=[np.array(1)])
    with pytest.raises(RetargetError, match=r"sample '1\.npy' is not there for all of image, label"):
        read(path, [IMAGE], extra=("label",))
    with pytest.raises(RetargetError, match="no folder 'image2'"):
        read(path, [TensorSpec.parse("image2=float32[N,2,3]")])
    (path / "image" / "1.npy").write_bytes(b"broken")
    with pytest.raises(RetargetError, match=r"1\.npy: not a readable array file"):
        read(path, [IMAGE])
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.jpg").touch()
    with pytest.raises(RetargetError, match="images need a `preprocess:` block"):
        read(tmp_path / "pictures", [IMAGE])
    (path / "preview.png").touch()
    with pytest.raises(RetargetError, match="no folder 'image2'"):
        read(path, [TensorSpec.parse("image2=float32[N,2,3]")])
    (tmp_path / "none" / "image").mkdir(parents=True)
    with pytest.raises(RetargetError, match=r"image: no \.npy files"):
        read(tmp_path / "none", [IMAGE])


# ---- functions

SOURCE = """
import numpy as np
import neighbour

def rows():
    for i in range(5):
        yield {"image": np.full((2, 3), i, np.float32), "label": i}

def whole():
    return [{"image": np.zeros((4, 2, 3), np.float32)}]

def fails():
    yield {"image": np.zeros((2, 3), np.float32)}
    raise KeyError("gone")

def lists():
    yield [1]

def lacks():
    yield {"picture": 1}

def empty():
    return []

def odd():
    yield {"image": np.zeros((3, 3, 3, 3), np.float32)}
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "data.py").write_text(SOURCE)
    (tmp_path / "neighbour.py").write_text("")
    return tmp_path / "data.py"


def test_a_function_yields_rows_or_whole_inputs(code: Path) -> None:
    samples = open_samples(code, [IMAGE], function="rows", limit=None, extra=("label",))
    assert samples.count != 5  # it is not known yet
    batches = list(samples.batches(2))
    assert [batch["image"][:, 0, 0].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [batch["label"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert samples.count == 5
    assert len(read(code, [IMAGE], function="rows", limit=2)) == 2
    assert [batch["image"].shape for batch in read(code, [IMAGE], 2, function="whole")] == [(4, 2, 3)]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("fails", r"data\.py:14: fails\(\), sample 1, raised KeyError: 'gone'"),
        ("lists", r"lists\(\), sample 0 is a list"),
        ("lacks", r"sample 0 has no 'image', only picture"),
        ("empty", "there are no samples"),
        ("odd", r"sample 0 of 'image' has shape \[3, 3, 3, 3\], expected \['N', 2, 3\]"),
        ("row", "no function 'row'\n\nhint: did you mean 'rows'"),
    ],
)
def test_a_function_that_fails_is_named(code: Path, function: str, words: str) -> None:
    with pytest.raises(RetargetError, match=words):
        read(code, [IMAGE], function=function)


def test_a_file_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("x = 1\nraise RuntimeError('no')\n")
    with pytest.raises(RetargetError, match=r"bad\.py:2: importing the file raised RuntimeError: no"):
        read(tmp_path / "bad.py", [IMAGE], function="f")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    with pytest.raises(RetargetError, match=r"syntax\.py:1: importing the file raised SyntaxError"):
        read(tmp_path / "syntax.py", [IMAGE], function="f")

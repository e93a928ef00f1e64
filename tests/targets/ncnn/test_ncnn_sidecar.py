from __future__ import annotations

import json
from pathlib import Path

import pytest
import target_testing
from ncnn_written import written

from retarget.errors import RetargetError
from retarget.spec import DimRange, TensorSpec
from retarget.targets.ncnn import sidecar
from retarget.targets.ncnn.program import Blob, Kind


def held(shape: str, dims: tuple[int, ...], rows: int = 1, kind: Kind = "float", **sizes: int) -> sidecar.Held:
    spec = TensorSpec.parse(f"x=float32[{shape}]")
    (made,) = sidecar.value(spec, [Blob(dims, rows, kind, name="x")], sizes, {}).blobs
    return made


@pytest.mark.parametrize(
    ("shape", "dims", "rows", "layout", "dropped"),
    [
        ("N,3,8,6", (3, 8, 6), 4, "n = N (axis 0), c = 3 (axis 1), h = 8 (axis 2), w = 6 (axis 3)", ()),
        ("N,3,8,6", (4, 3, 8, 6), 1, "c = N (axis 0), d = 3 (axis 1), h = 8 (axis 2), w = 6 (axis 3)", ()),
        ("1,3,8,6", (3, 8, 6), 1, "c = 3 (axis 1), h = 8 (axis 2), w = 6 (axis 3)", (0,)),
        ("1,1,8,6", (1, 8, 6), 1, "c = 1 (axis 1), h = 8 (axis 2), w = 6 (axis 3)", (0,)),
        ("N,1,8,6", (1, 8, 6), 4, "n = N (axis 0), c = 1 (axis 1), h = 8 (axis 2), w = 6 (axis 3)", ()),
        ("1,1,1", (1,), 1, "w = 1 (axis 2)", (0, 1)),
        ("", (1,), 1, "w = 1", ()),
        ("2,1,5", (2, 1, 5), 1, "c = 2 (axis 0), h = 1 (axis 1), w = 5 (axis 2)", ()),
        ("2,1,3,4,5", (2, 3, 4, 5), 1, "c = 2 (axis 0), d = 3 (axis 2), h = 4 (axis 3), w = 5 (axis 4)", (1,)),
        ("N,T,3,4,5", (8, 3, 4, 5), 1, "c = N*T (axes 0 and 1), d = 3 (axis 2), h = 4 (axis 3), w = 5 (axis 4)", ()),
        ("N,T", (2,), 4, "n = N (axis 0), w = T (axis 1)", ()),
        ("N", (1,), 4, "n = N (axis 0), w = 1", ()),
        ("M,3", (2, 3), 4, "n = 4 (axis 0), h = 2 (axis 0), w = 3 (axis 1)", ()),
        ("N,6", (2, 3), 4, "n = N (axis 0), h = 2, w = 3", ()),
    ],
)
def test_each_dim_says_which_axes_it_is(
    shape: str, dims: tuple[int, ...], rows: int, layout: str, dropped: tuple[int, ...]
) -> None:
    if (shape, dims) == ("N,6", (2, 3)):  # an axis that is cut in two is no way in which a value is held
        with pytest.raises(AssertionError):
            held(shape, dims, rows, N=4)
        return
    made = held(shape, dims, rows, N=4, T=2, M=8)
    assert made.layout == layout
    assert made.dropped == dropped


def test_indices_are_one_dim_of_int32() -> None:
    made = held("N,T,3", (6,), 4, "index", N=4, T=2)
    assert made.dtype == "int32"
    assert [(dim.dim, dim.size, dim.axes) for dim in made.dims] == [("n", "N", (0,)), ("w", "T*3", (1, 2))]


def test_the_file_is_json_that_reads_back(tmp_path: Path) -> None:
    model = target_testing.model("g (float[N,3,4] a, float[5,1] b) => (float[N,12] y) { y = Flatten(a) z = Relu(b) }")
    written(model, tmp_path, N=DimRange(2, 2, 2))
    plain = json.loads((tmp_path / sidecar.FILE).read_text())
    assert plain["schema"] == 1
    assert (plain["param"], plain["bin"], plain["precision"]) == ("model.ncnn.param", "model.ncnn.bin", "fp32")
    assert plain["checked_with"].startswith("ncnn 1.")
    assert plain["inputs"][0] == {
        "name": "a",
        "dtype": "float32",
        "shape": ["N", 3, 4],
        "blobs": [
            {
                "name": "a",
                "dtype": "float32",
                "layout": "n = 2 (axis 0), h = 3 (axis 1), w = 4 (axis 2)",
                "dims": [
                    {"dim": "n", "size": 2, "axes": [0]},
                    {"dim": "h", "size": 3, "axes": [1]},
                    {"dim": "w", "size": 4, "axes": [2]},
                ],
                "dropped": [],
            }
        ],
    }
    again = sidecar.read(tmp_path / sidecar.FILE)
    assert again.sizes == {"N": 2}
    assert again.parity_options["use_fp16_storage"] is False
    sidecar.write(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / sidecar.FILE).read_bytes()


def test_a_damaged_one_is_a_clear_line(tmp_path: Path) -> None:
    (tmp_path / sidecar.FILE).write_text('{"schema": 2}')
    with pytest.raises(RetargetError, match=r"model.ncnn.json: not read: "):
        sidecar.read(tmp_path / sidecar.FILE)
    with pytest.raises(RetargetError, match="No such file"):
        sidecar.read(tmp_path / "none.json")

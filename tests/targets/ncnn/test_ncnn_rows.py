"""Rows: the batch that is no axis of a blob, values that mix it, and int32 that must stay int32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import target_testing
from ncnn_written import check, layers, written

from retarget.targets.ncnn import files
from retarget.targets.ncnn.emit import BIN, PARAM


def reshapes(folder: Path) -> list[dict[int, str]]:
    """Those that move rows."""
    return [
        line.params for line in files.read(folder / PARAM) if line.type == "Reshape" and {12, 13} & set(line.params)
    ]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_that_nothing_mixes_is_no_axis(batch: int, tmp_path: Path) -> None:
    results = f"float[{batch},3,4,5] a, float[{batch},60] b"
    text = f"""g (float[{batch},3,4,5] x, float[{batch},3,1,1] y, float[4,1] w) => ({results}) {{
        s = Add(x, y)
        a = Add(s, w)
        shape = Constant<value_ints = [{batch}, 60]>()
        b = Reshape(s, shape)
    }}"""
    model = target_testing.model(text)
    written(model, tmp_path)
    assert not reshapes(tmp_path)
    inputs = [line.params for line in files.read(tmp_path / PARAM) if line.type == "Input"]
    assert inputs[0] == {0: "5", 1: "4", 2: "3"}
    check(model, target_testing.feeds(model, 1))


def test_rows_that_are_mixed_become_an_axis_and_go_back(tmp_path: Path) -> None:
    text = """g (float[4,3,5] x, float[4,15] w) => (float[2,30] y, float[4,15] z) {
        half = Constant<value_ints = [2, 30]>()
        y = Reshape(x, half)
        all = Constant<value_ints = [4, 15]>()
        mixed = Add(y, y)
        back = Reshape(mixed, all)
        z = Add(back, w)
    }"""
    model = target_testing.model(text)
    check(model, target_testing.feeds(model, 1))
    # All of it can be held without rows, which is less work than to move them.
    written(model, tmp_path)
    assert not reshapes(tmp_path)


def test_inputs_whose_first_axes_differ_have_no_rows() -> None:
    text = """g (float[3,5] x, float[1,5] y) => (float[3,5] z) {
        z = Add(x, y)
    }"""
    model = target_testing.model(text)
    check(model, target_testing.feeds(model, 1))
    assert layers(model)[-1] == "BinaryOp"


def test_five_axes_of_which_one_is_the_batch() -> None:
    model = target_testing.model("g (float[2,3,4,5,6] x, float[3,4,1,6] y) => (float[2,3,4,5,6] z) { z = Add(x, y) }")
    check(model, target_testing.feeds(model, 1))


def test_an_input_is_its_own_output() -> None:
    text = """g (float[2,3] x) => (float[2,3] y, float[3,2] z) {
        y = Identity(x)
        s = Constant<value_ints = [3, 2]>()
        z = Reshape(x, s)
    }"""
    model = target_testing.model(text)
    check(model, target_testing.feeds(model, 1))


@pytest.mark.parametrize("batch", [1, 3])
def test_ids_that_two_tables_read_stay_integers_where_floats_become_bfloat16(batch: int, tmp_path: Path) -> None:
    """As a phone would have them: ncnn stores what it takes for floats in 16 bits."""
    ncnn = pytest.importorskip("ncnn")
    text = f"""g (int64[{batch},6] ids, float[900,8] w_one, float[900,8] w_other) => (float[{batch},6,8] y) {{
        one = Gather(w_one, ids)
        other = Gather(w_other, ids)
        y = Add(one, other)
    }}"""
    model = target_testing.model(text)
    ids = np.random.default_rng(0).integers(0, 900, (batch, 6))
    check(model, {"ids": ids})
    written(model, tmp_path)
    net = ncnn.Net()
    net.opt.use_bf16_storage = True
    assert net.load_param(str(tmp_path / PARAM)) == 0
    assert net.load_model(str(tmp_path / BIN)) == 0
    extractor = net.create_extractor()
    extractor.input("ids", ncnn.Mat(ids.astype(np.int32), batch_index=0).clone())
    code, found = extractor.extract("y")
    assert code == 0
    expected = target_testing.oracle(model, {"ids": ids})["y"]
    got = np.array(found.numpy(batch_index=0), np.float32).reshape(expected.shape)
    assert float(np.abs(got - expected.astype(np.float32)).max()) < 0.02 < float(expected.astype(np.float32).max())


def test_a_constant_that_is_the_same_for_every_row_is_there_once() -> None:
    """As the class token of a vision transformer: the number of rows then stays open."""
    text = """g (float[N,3,4] x, float[1,1,4] w_token) => (float[N,M,4] y) {
        sizes = Shape<end = 1>(x)
        rest = Constant<value_ints = [1, 4]>()
        shape = Concat<axis = 0>(sizes, rest)
        token = Expand(w_token, shape)
        y = Concat<axis = 1>(token, x)
    }"""
    model = target_testing.model(text)
    check(model, *(target_testing.feeds(model, size) for size in (1, 4, 6)))
    assert layers(model) == ["Concat"]


@pytest.mark.parametrize("batch", ["1", "3", "N"])
def test_an_image_of_one_channel_is_a_blob_of_three_dims(batch: str, tmp_path: Path) -> None:
    """As `ncnn::Mat::from_pixels` makes it; and a mask comes back so."""
    model = target_testing.model(f"""g (float[{batch},1,6,5] x, float[1,1,3,3] w_conv) => (float[{batch},1,6,5] y) {{
        y = Conv<pads = [1, 1, 1, 1]>(x, w_conv)
    }}""")
    written(model, tmp_path)
    lines = files.read(tmp_path / PARAM)
    assert [line.type for line in lines] == ["Input", "Convolution"]
    assert lines[0].params == {0: "5", 1: "6", 2: "1"}
    check(model, target_testing.feeds(model, 4))

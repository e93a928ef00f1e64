"""The numpy reference of Caffe as a runner: what it refuses, and what it says of OpenCV."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import caffe_files
import numpy as np
import pytest
from caffe_cases import CASES, Case, layer, normal, uniform, write
from numpy.typing import NDArray

from retarget.convert.caffe import export, network, reference
from retarget.convert.caffe.net import Net
from retarget.convert.caffe.reference import opencv, runner
from retarget.convert.caffe.reference.evaluate import evaluate
from retarget.errors import RetargetError, ToolchainFailure
from retarget.source import Source

Floats: TypeAlias = NDArray[np.float32]


def read(case: Case, folder: Path) -> Net:
    return network.read(*write(case, folder))


# ---- nets that cannot be


REFUSED: Mapping[str, tuple[str, str]] = {
    "axis": (layer("Softmax", "softmax_param { axis: 4 }"), "axis 4"),
    "bottoms": (layer("Crop"), "takes 2 bottoms, not 1"),
    "channels": (layer("Reorg", "reorg_param { stride: 3 }"), "4 channels"),
    "coefficients": (layer("Eltwise", "eltwise_param { coeff: 1 }", ("data", "data")), "1 coefficients"),
    "enum": (layer("Pooling", "pooling_param { pool: LEAST kernel_size: 2 }"), "LEAST"),
    "kernel": (layer("Pooling", "pooling_param { stride: 2 }"), "kernel 0"),
    "large": (layer("Tile", "tile_param { tiles: 2000000000 }"), "cannot be computed"),
    "local_size": (layer("LRN", "lrn_param { local_size: 4 }"), "odd"),
    "order": (layer("Permute", "permute_param { order: 0 order: 0 }"), "order"),
    "pad": (layer("Pooling", "pooling_param { kernel_size: 2 pad: 2 }"), "pad of 2"),
    "points": (layer("Slice", "slice_param { slice_point: 9 }", tops=("a", "b")), "slice points"),
    "reshape": (layer("Reshape", "reshape_param { shape { dim: 7 } }"), "[7]"),
    "tiles": (layer("Tile"), "tiles"),
    "tops": (layer("ReLU", tops=("a", "b")), "tops"),
    "stochastic": (layer("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 pad: 1 }"), "take a pad"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_a_layer_that_caffe_would_not_take(name: str, tmp_path: Path) -> None:
    text, words = REFUSED[name]
    case = Case(name, "Any", text, {"data": normal(2, 4, 9, 10)})
    with pytest.raises(RetargetError) as caught:
        evaluate(read(case, tmp_path), case.feeds())
    assert words in caught.value.message
    assert f"{name}.prototxt:" in caught.value.message
    assert "layer 'layer'" in caught.value.message


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("eltwise_sum", {"other": (2, 4, 9, 11)}),
        ("concat_plain", {"other": (2, 3, 8, 10)}),
        ("crop_plain", {"like": (2, 4, 9, 10)}),
        ("innerproduct_plain", {"data": (2, 4, 9, 11)}),
        ("convolution_plain", {"data": (2, 5, 9, 10)}),
        ("convolution_plain", {"data": (2, 4, 2, 10)}),
        ("deconvolution_plain", {"data": (2, 3, 9, 10)}),
        ("batchnorm_plain", {"data": (2, 5, 9, 10)}),
        ("scale_plain", {"data": (2, 5, 9, 10)}),
        ("prelu_plain", {"data": (2, 5, 9, 10)}),
        ("normalize_channels", {"data": (2, 5, 9, 10)}),
        ("axpy_plain", {"a": (2, 3, 1, 1)}),
        ("lstm_plain", {"cont": (4, 3)}),
        ("rnn_plain", {"x": (5, 3, 7)}),
        ("roipooling_plain", {"rois": (6, 4)}),
        ("psroipooling_plain", {"data": (2, 17, 12, 16)}),
        ("proposal_plain", {"deltas": (1, 20, 5, 6)}),
        ("detectionoutput_plain", {"conf": (1, 37)}),
        ("detectionoutput_plain", {"loc": (1, 40)}),
        ("upsample_mask", {"data": (2, 3, 0, 6)}),
        ("reshape_plain", {"data": (2, 4, 9, 9)}),
    ],
)
def test_refuses_sizes_that_do_not_meet(name: str, sizes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    case = CASES[name]
    net = read(case, tmp_path)
    feeds = case.feeds() | {blob: np.ones(shape, np.float32) for blob, shape in sizes.items()}
    with pytest.raises(RetargetError, match=r"layer '(layer|pool)' \("):
        evaluate(net, feeds)


@pytest.mark.parametrize(
    ("name", "feeds"),
    [
        ("embed_plain", {"data": np.full((4, 3), 11, np.float32)}),
        ("embed_plain", {"data": np.full((4, 3), np.nan, np.float32)}),
        ("batchreindex_plain", {"index": np.full(5, -1, np.float32)}),
        ("roipooling_plain", {"rois": np.full((6, 5), 2, np.float32)}),
    ],
)
def test_refuses_indices_beyond_what_they_index(name: str, feeds: dict[str, Floats], tmp_path: Path) -> None:
    case = CASES[name]
    with pytest.raises(RetargetError, match="must be from 0 to"):
        evaluate(read(case, tmp_path), case.feeds() | feeds)


def test_says_which_type_of_layer_it_does_not_know(tmp_path: Path) -> None:
    case = Case("unknown", "Convolutoin", layer("Convolutoin"), {"data": normal(1, 4)})
    with pytest.raises(RetargetError) as caught:
        reference.open(read(case, tmp_path))
    assert "unknown.prototxt:" in caught.value.message
    assert caught.value.hint == "did you mean 'Convolution'?"


# ---- the runner


def test_runs_under_the_users_names_and_says_what_opencv_makes_of_it(tmp_path: Path) -> None:
    case = CASES["slice_points"]
    prototxt, caffemodel = write(case, tmp_path)
    net = network.read(prototxt, caffemodel)
    with reference.open(net, ("one", "two", "three"), prototxt=prototxt, caffemodel=caffemodel) as opened:
        assert opened.settings == "Caffe's layers in numpy, written from its sources"
        found = opened.run(case.feeds())
        assert "; OpenCV 4." in opened.settings
        assert "agrees to 300 dB" in opened.settings
    assert {name: array.shape for name, array in found.items()} == {
        "one": (2, 1, 9, 10),
        "two": (2, 2, 9, 10),
        "three": (2, 1, 9, 10),
    }


def test_says_why_opencv_was_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["log_base"]
    files = write(case, tmp_path)
    net, feeds = network.read(*files), case.feeds()
    said = runner.second_opinion(net, *files, feeds, evaluate(net, feeds))
    assert said == (
        "OpenCV was not asked, for it differs from Caffe in layer 'layer' (Log):"
        " does not read base, scale and shift as Caffe does"
    )
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    assert "pip install 'retarget[caffe]'" in runner.second_opinion(net, *files, feeds, evaluate(net, feeds))


def test_where_opencv_disagrees_nothing_is_proved(tmp_path: Path) -> None:
    case = CASES["relu_plain"]
    files = write(case, tmp_path)
    net, feeds = network.read(*files), case.feeds()
    outputs = {"out": evaluate(net, feeds)["out"] * np.float32(1.01)}
    with pytest.raises(ToolchainFailure, match="disagrees with the reference on 'out': 40 dB"):
        runner.second_opinion(net, *files, feeds, outputs)


def test_opencv_is_left_out_where_the_user_says_so(tmp_path: Path) -> None:
    prototxt, caffemodel = write(CASES["relu_plain"], tmp_path)
    source = Source(prototxt, (), {}, parts={"weights": caffemodel}, options={"opencv": False})
    with export.reference(source, export.export(source, None, tmp_path)) as opened:
        opened.run(CASES["relu_plain"].feeds())
        assert "OpenCV" not in opened.settings


def test_says_that_opencv_does_not_take_the_net(tmp_path: Path) -> None:
    text = layer("ReLU", "unheard_of_param { x: }")
    prototxt = tmp_path / "net.prototxt"
    case = CASES["relu_plain"]
    net, feeds = read(case, tmp_path), case.feeds()
    prototxt.write_text(caffe_files.inputs(data=(1, 4)) + text)
    assert "OpenCV does not take the net" in runner.second_opinion(net, prototxt, None, feeds, evaluate(net, feeds))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGFPE)", "it ended with -8"),
        ("raise SystemExit('no library')", "no library"),
        ("import time; time.sleep(60)", "no answer in 0.2 s"),
    ],
)
def test_survives_what_ends_opencv(program: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text(program)
    monkeypatch.setattr(opencv, "CHILD", child)
    if "sleep" in program:
        monkeypatch.setattr(opencv, "PATIENCE_S", 0.2)
    case = CASES["relu_plain"]
    files = write(case, tmp_path)
    net, feeds = network.read(*files), case.feeds()
    said = runner.second_opinion(net, *files, feeds, evaluate(net, feeds))
    assert said == f"OpenCV does not take the net ({words})"


def test_takes_other_sizes_than_the_file_says(tmp_path: Path) -> None:
    case = CASES["convolution_plain"]
    with reference.open(read(case, tmp_path)) as opened:
        assert opened.run({"data": np.ones((5, 4, 20, 6), np.float32)})["out"].shape == (5, 6, 18, 4)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "was given nothing"),
        ({"image": np.ones((2, 4, 9, 10), np.float32)}, "was given image"),
        ({"data": np.ones((4, 9, 10), np.float32)}, "is [2,4,9,10]"),
    ],
)
def test_refuses_feeds_that_are_not_the_nets(feeds: dict[str, Floats], words: str, tmp_path: Path) -> None:
    with reference.open(read(CASES["relu_plain"], tmp_path)) as opened, pytest.raises(RetargetError) as caught:
        opened.run(feeds)
    assert words in caught.value.message


def test_refuses_another_number_of_names(tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match="2 names for 1 outputs"):
        reference.open(read(CASES["relu_plain"], tmp_path), ("a", "b"))


def test_computes_in_place_and_lets_go_of_what_is_not_taken(tmp_path: Path) -> None:
    text = (
        layer("Power", "power_param { scale: 2 }", ("data",), ("x",))
        + caffe_files.layer("plus", "Power", "x", "x", "power_param { shift: 1 }")
        + caffe_files.layer("side", "Split", "x", ("a", "b"))
        + caffe_files.layer("sum", "Eltwise", ("a", "b"), "sum")
    )
    case = Case("in_place", "Power", text, {"data": uniform(2, 3)})
    feeds = case.feeds()
    found = evaluate(read(case, tmp_path), feeds)["sum"]
    assert np.allclose(found, 2 * (2 * feeds["data"] + 1))

"""The numpy reference of Caffe's layers against OpenCV where OpenCV is right, and against PyTorch where it is not."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caffe_cases import ABSENT, CASES, Case, layer, normal, write
from numpy.typing import NDArray

from retarget.compare import snr_db
from retarget.convert.caffe import network
from retarget.convert.caffe.net import Net
from retarget.convert.caffe.reference import opencv, opencv_child
from retarget.convert.caffe.reference.evaluate import LAYERS, evaluate

Floats: TypeAlias = NDArray[np.float32]
Tensors: TypeAlias = Mapping[str, torch.Tensor]
Oracle: TypeAlias = Callable[[Tensors, Sequence[torch.Tensor]], Sequence[torch.Tensor]]


def read(case: Case, folder: Path) -> Net:
    return network.read(*write(case, folder))


def evaluated(case: Case, folder: Path, feeds: Mapping[str, Floats] | None = None) -> list[Floats]:
    return list(evaluate(read(case, folder), feeds or case.feeds()).values())


# ---- OpenCV


def _question(case: Case, folder: Path) -> tuple[Net, partial[list[Floats]]]:
    prototxt, caffemodel = write(case, folder)
    net = network.read(prototxt, caffemodel)
    return net, partial(opencv_child.answer, str(prototxt), str(caffemodel), case.feeds(), opencv.makers(net))


def _apart(question: partial[list[Floats]]) -> list[Floats]:
    """In another process, as what OpenCV misunderstands may end it; forked from one that has OpenCV already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([opencv_child.__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(question).result()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.opencv == "right"])
def test_agrees_with_opencv(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    net, question = _question(case, tmp_path)
    assert opencv.flaws(net) == []
    theirs = dict(zip(net.outputs, question(), strict=True))
    assert opencv.agreement(net, evaluate(net, case.feeds()), theirs) > (100, "")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.opencv == "wrong"])
def test_opencv_is_still_wrong(name: str, tmp_path: Path) -> None:
    """One that was mended belongs off the list of flaws."""
    case = CASES[name]
    net, question = _question(case, tmp_path)
    assert len(opencv.flaws(net)) == 1
    theirs = dict(zip(net.outputs, _apart(question), strict=True))
    assert opencv.agreement(net, evaluate(net, case.feeds()), theirs) < (60, "")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.opencv == "lacking"])
def test_opencv_still_refuses(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    net, question = _question(case, tmp_path)
    assert opencv.flaws(net)
    with pytest.raises((cv2.error, BrokenProcessPool)):
        # A type that is not known is refused before anything is computed.
        question() if case.type in ABSENT else _apart(question)


def test_opencv_is_not_asked_where_it_is_unsteady(tmp_path: Path) -> None:
    for case in (case for case in CASES.values() if case.opencv == "unsteady"):
        assert opencv.flaws(read(case, tmp_path))


# ---- PyTorch, for what OpenCV cannot judge


def _tensors(arrays: Mapping[str, Floats]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).double() for name, array in arrays.items()}


def _reduced(function: Callable[[torch.Tensor], torch.Tensor], axis: int = 1, factor: float = 1.0) -> Oracle:
    def oracle(feeds: Tensors, blobs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        data = feeds["data"]
        return [factor * function(data.reshape(*data.shape[:axis], -1))]

    return oracle


def _conv(function: Callable[..., torch.Tensor], **options: object) -> Oracle:
    def oracle(feeds: Tensors, blobs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return [function(feeds["data"], blobs[0], blobs[1] if len(blobs) > 1 else None, **options)]

    return oracle


def _one(function: Callable[..., torch.Tensor]) -> Oracle:
    """Of the data and the weights."""
    return lambda feeds, blobs: [function(feeds["data"], *blobs)]


def _all(function: Callable[..., torch.Tensor]) -> Oracle:
    """Of all inputs."""
    return lambda feeds, blobs: [function(*feeds.values())]


def _interp(rows: int, columns: int, begin: int = 0, end: int = 0) -> Oracle:
    def oracle(feeds: Tensors, blobs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        data = feeds["data"]
        cut = data[:, :, begin : data.shape[2] - end, begin : data.shape[3] - end]
        return [F.interpolate(cut, (rows, columns), mode="bilinear", align_corners=True)]

    return oracle


def _spp(levels: Sequence[tuple[tuple[int, int], tuple[int, int]]], kind: str) -> Oracle:
    """Each level's kernel and pad, worked out by hand for 9 x 10."""

    def oracle(feeds: Tensors, blobs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        data, parts = feeds["data"], []
        for level, ((high, wide), (above, left)) in enumerate(levels):
            bins = 2**level
            below, right = high * bins - 9 - above, wide * bins - 10 - left
            if kind == "max":
                padded = F.pad(data, (left, right, above, below), value=-torch.inf)
                pooled = F.max_pool2d(padded, (high, wide))
            else:
                # All windows lie within the padding on both sides, so all of them are divided by the whole kernel.
                pooled = F.avg_pool2d(F.pad(data, (left, right, above, below)), (high, wide))
            parts.append(pooled.reshape(2, -1) if len(levels) > 1 else pooled)
        return [torch.cat(parts, dim=1)]

    return oracle


def _lstm(feeds: Tensors, blobs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    x, cont = feeds["x"].flatten(2), feeds["cont"]
    inward, term, *static, back = blobs
    hidden = back.shape[1]
    # Caffe: input, forget, output, new. PyTorch: input, forget, new, output.
    order = torch.cat(
        [torch.arange(0, 2 * hidden), torch.arange(3 * hidden, 4 * hidden), torch.arange(2 * hidden, 3 * hidden)]
    )
    if static:
        x = torch.cat([x, feeds["static"].expand(len(x), -1, -1)], dim=2)
        inward = torch.cat([inward, static[0]], dim=1)
    cell = torch.nn.LSTMCell(x.shape[2], hidden).double()
    cell.load_state_dict(
        {
            "weight_ih": inward[order],
            "weight_hh": back[order],
            "bias_ih": term[order],
            "bias_hh": torch.zeros_like(term),
        }
    )
    zero = torch.zeros(x.shape[1], hidden, dtype=torch.float64)
    state = (feeds["h0"][0], feeds["c0"][0]) if "h0" in feeds else (zero, zero)
    outputs = []
    for step, flag in zip(x, cont, strict=True):
        state = cell(step, tuple(flag[:, None] * part for part in state))
        outputs.append(state[0])
    last = [part[None] for part in state] if "h0" in feeds else []
    return [torch.stack(outputs), *last]


def _lstm_unit(feeds: Tensors, blobs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """A cell whose own weights add nothing: what is given are the gates."""
    gates, kept = feeds["x"][0], feeds["c"][0] * feeds["cont"][0][:, None]
    take, forget, give, new = gates.chunk(4, dim=1)
    cell = torch.nn.LSTMCell(gates.shape[1], gates.shape[1] // 4, bias=False).double()
    torch.nn.init.eye_(cell.weight_ih)
    torch.nn.init.zeros_(cell.weight_hh)
    state, last = cell(torch.cat([take, forget, new, give], dim=1), (torch.zeros_like(kept), kept))
    return [last[None], state[None]]


def _rnn(feeds: Tensors, blobs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    x, cont = feeds["x"], feeds["cont"]
    inward, term, *static, back, out, out_term = blobs
    if static:
        x = torch.cat([x, feeds["static"].expand(len(x), -1, -1)], dim=2)
        inward = torch.cat([inward, static[0]], dim=1)
    cell = torch.nn.RNNCell(x.shape[2], len(back)).double()
    cell.load_state_dict({"weight_ih": inward, "weight_hh": back, "bias_ih": term, "bias_hh": torch.zeros_like(term)})
    state = feeds["h0"][0] if "h0" in feeds else torch.zeros(x.shape[1], len(back), dtype=torch.float64)
    outputs = []
    for step, flag in zip(x, cont, strict=True):
        state = cell(step, flag[:, None] * state)
        outputs.append(torch.tanh(F.linear(state, out, out_term)))
    return [torch.stack(outputs), *([state[None]] if "h0" in feeds else [])]


def _reorg(feeds: Tensors, blobs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Element by element, as Darknet's ``reorg_cpu`` says which goes where."""
    data = feeds["data"]
    _, channels, height, width = data.shape
    flat, top = data.flatten(), torch.empty(data.numel(), dtype=data.dtype)
    inner = channels // 9
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                from_y, from_x = y * 3 + c // inner // 3, x * 3 + c // inner % 3
                top[x + width * (y + height * c)] = flat[from_x + width * 3 * (from_y + height * 3 * (c % inner))]
    return [top.reshape(1, 81, 2, 1)]


def _unpooled(height: int, width: int) -> Oracle:
    def oracle(feeds: Tensors, blobs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        values, places = F.max_pool2d(feeds["data"], 2, ceil_mode=True, return_indices=True)
        top = torch.zeros(*values.shape[:2], height * width, dtype=values.dtype)
        return [top.scatter(2, places.flatten(2), values.flatten(2)).reshape(*values.shape[:2], height, width)]

    return oracle


def _argmax_top(feeds: Tensors, blobs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    return [feeds["data"].topk(3, dim=1).indices.double()]


def _argmax_both(feeds: Tensors, blobs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    found = feeds["data"].flatten(1).topk(3)
    return [torch.stack([found.indices.double(), found.values], dim=1)[..., None]]


def _turned(x: torch.Tensor, *shape: int) -> torch.Tensor:
    return x.reshape(shape)


TORCH: Mapping[str, Oracle] = {
    "argmax_axis": _one(lambda x: x.argmax(1, keepdim=True).double()),
    "argmax_plain": _one(lambda x: x.flatten(1).argmax(1).double().reshape(2, 1, 1, 1)),
    "argmax_top": _argmax_top,
    "argmax_value": _one(lambda x: x.topk(2).values),
    "argmax_both": _argmax_both,
    "argmax_top_flat": _one(lambda x: x.topk(4).indices.double()[:, None]),
    "axpy_plain": _all(lambda a, x, y: a * x + y),
    "axpy_flat": _all(lambda a, x, y: a[:, :, None, None] * x + y),
    "batchnorm_batch": _one(lambda x, *_: F.batch_norm(x, None, None, training=True)),
    "batchreindex_plain": _all(lambda x, index: x.index_select(0, index.long())),
    "batchreindex_one": _all(lambda x, index: x.index_select(0, index.long())),
    "bn_plain": _one(lambda x, w, b, mean, variance: F.batch_norm(x, mean, variance, w, b, eps=1e-3)),
    "bn_legacy_blobs": _one(lambda x, *blobs: F.batch_norm(x, *(blobs[i].flatten() for i in (2, 3, 0, 1)))),
    "bn_inference": _one(lambda x, w, b: x * w + b),
    "bn_learn": _one(lambda x, w, b: F.batch_norm(x, None, None, w.flatten(), b.flatten(), training=True, eps=1e-9)),
    "bias_plain": _one(lambda x, b: x + b[:, None, None]),
    "bias_axes": _one(lambda x, b: x + b),
    "bias_two_bottoms": _all(lambda x, b: x + b[:, :, None, None]),
    "clip_plain": _one(lambda x: x.clamp(-0.5, 0.7)),
    "clip_above": _one(lambda x: x.clamp(0, 1)),
    "concat_dim": _all(lambda x, y: torch.cat([x, y])),
    "convolution_axis": _one(lambda x, w, b: F.conv2d(x.flatten(0, 1), w, b).reshape(2, 3, 3, 4, 5)),
    "convolution_volume": _conv(F.conv3d, padding=1),
    "convolution_volume_stride": _conv(F.conv3d, padding=1, stride=(1, 2, 1)),
    "deconvolution_dilation": _conv(F.conv_transpose2d, dilation=2, padding=1),
    "deconvolution_volume": _conv(F.conv_transpose3d, stride=2),
    "depthwiseconvolution_plain": _conv(F.conv2d, padding=1, groups=4),
    "depthwiseconvolution_stride": _conv(F.conv2d, padding=1, stride=2, groups=4),
    "dummydata_shape": _one(lambda x: x + 2.5),
    "dummydata_two": _one(lambda x: x - 1.5),
    "embed_plain": _one(lambda x, w, b: F.embedding(x.long(), w) + b),
    "embed_no_bias": _one(lambda x, w: F.embedding(x.long(), w)),
    "im2col_plain": _one(lambda x: F.unfold(x, 3).reshape(2, 36, 7, 8)),
    "im2col_all": _one(lambda x: F.unfold(x, 3, dilation=2, padding=2, stride=2).reshape(2, 36, 5, 5)),
    "im2col_sides": _one(lambda x: F.unfold(x, (2, 3), padding=(1, 0), stride=(1, 2)).reshape(2, 24, 10, 4)),
    "innerproduct_transpose": _one(lambda x, w, b: x.flatten(1) @ w + b),
    "interp_shrink": _interp(5, 5),
    "interp_both": _interp(13, 13),
    "interp_pad": _interp(11, 12, 1, 2),
    "interp_like": _interp(13, 14),
    "log_shift": _one(lambda x: torch.log(0.5 * x + 2)),
    "log_base": _one(torch.log10),
    "log_all": _one(lambda x: torch.log2(0.5 * x + 2)),
    "lrn_default": _one(lambda x: F.local_response_norm(x, 5, alpha=1, beta=0.75, k=1)),
    "lrn_k": _one(lambda x: F.local_response_norm(x, 3, alpha=0.5, beta=0.75, k=2)),
    "lstm_plain": _lstm,
    "lstm_static": _lstm,
    "lstm_exposed": _lstm,
    "lstm_wide": _lstm,
    "lstmunit_plain": _lstm_unit,
    "lstmunit_begins": _lstm_unit,
    "mvn_eps": _one(lambda x: (x - x.mean((1, 2, 3), True)) / (x.std((1, 2, 3), correction=0, keepdim=True) + 0.5)),
    "normalize_scale": _one(lambda x, w: F.normalize(x.flatten(1)).reshape(x.shape) * w[:, None, None]),
    "parameter_plain": _one(lambda x, w: x + w),
    "parameter_flat": _one(lambda x, w: x + w),
    "permute_partial": _one(lambda x: x.permute(2, 0, 1, 3)),
    "pooling_max_floor": _one(lambda x: F.max_pool2d(x, 2)),
    "pooling_max_floor_pad": _one(lambda x: F.max_pool2d(x, 3, 2, 1)),
    "pooling_ave_floor": _one(lambda x: F.avg_pool2d(x, 2)),
    "pooling_ave_floor_pad": _one(lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "pooling_stochastic": _one(lambda x: F.avg_pool2d(x * x, 3, 2) / F.avg_pool2d(x, 3, 2)),
    "pooling_stochastic_negative": _one(
        lambda x: torch.where((s := F.avg_pool2d(x, 2, 1)) > 0, F.avg_pool2d(x * x, 2, 1) / s, 0)
    ),
    "reduction_sum": _reduced(lambda x: x.sum(-1)),
    "reduction_asum": _reduced(lambda x: x.abs().sum(-1)),
    "reduction_sumsq": _reduced(lambda x: x.square().sum(-1)),
    "reduction_mean": _reduced(lambda x: x.mean(-1)),
    "reduction_all": _reduced(lambda x: x.sum(-1), 0),
    "reduction_coeff": _reduced(lambda x: x.mean(-1), 2, 2.5),
    "reduction_last": _reduced(lambda x: x.square().sum(-1), 3, 0.5),
    "reorg_three": _reorg,
    "reorg_reverse": _one(
        # Of a pixel shuffle's channels [C, s, s], Caffe has the squares first.
        lambda x: F.pixel_shuffle(x.reshape(2, 4, 2, 3, 4).transpose(1, 2).reshape(x.shape), 2)
    ),
    "reshape_end": _one(lambda x: _turned(x, 2, 4, 9, 10, 1, 1)),
    "reshape_insert": _one(lambda x: _turned(x, 2, 4, 1, 9, 10)),
    "reshape_negative": _one(lambda x: _turned(x, 2, 4, 9, 5, 2)),
    "rnn_plain": _rnn,
    "rnn_static": _rnn,
    "rnn_exposed": _rnn,
    "scale_scalar": _one(lambda x, w: x * w),
    "scale_two_bottoms_bias": lambda feeds, blobs: [
        feeds["data"] * feeds["factor"][:, :, None, None] + blobs[0][:, :, None, None]
    ],
    "slice_dim": _one(lambda x: x[:1].relu()),
    "slice_outputs": lambda feeds, blobs: torch.chunk(feeds["data"], 2, dim=1),
    "spp_max": _spp([((9, 10), (0, 0)), ((5, 5), (1, 0)), ((3, 3), (2, 1))], "max"),
    "spp_ave": _spp([((9, 10), (0, 0)), ((5, 5), (1, 0))], "ave"),
    "spp_one": _spp([((9, 10), (0, 0))], "max"),
    "swish_beta": _one(lambda x: x * torch.sigmoid(2.5 * x)),
    "threshold_plain": _one(lambda x: (x > 0).double()),
    "threshold_value": _one(lambda x: (x > 0.5).double()),
    "tile_plain": _one(lambda x: torch.cat([x, x], dim=1)),
    "tile_last": _one(lambda x: x.repeat(1, 1, 1, 3)),
    "upsample_scale": _one(lambda x: F.interpolate(x, scale_factor=2)),
    "upsample_three": _one(lambda x: F.interpolate(x, scale_factor=3)),
    "upsample_mask": _unpooled(8, 6),
    "upsample_size": _unpooled(7, 9),
    "upsample_pad_out": _unpooled(7, 9),
}


@pytest.mark.parametrize("name", TORCH)
def test_agrees_with_pytorch(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    found = evaluated(case, tmp_path)
    blobs = [torch.from_numpy(np.asarray(blob)).double() for _, _, saved in case.weights for blob in saved]
    with torch.no_grad():
        wanted = TORCH[name](_tensors(case.feeds()), blobs)
    for ours, theirs in zip(found[: len(wanted)], wanted, strict=True):
        assert ours.shape == tuple(theirs.shape)
        assert snr_db(theirs.numpy().astype(np.float32), ours) >= 120


# ---- by hand, and by what must come to the same


Change: TypeAlias = Callable[[dict[str, Floats]], dict[str, Floats]]


def _as_they_are(feeds: dict[str, Floats]) -> dict[str, Floats]:
    return feeds


def _without_variances(feeds: dict[str, Floats]) -> dict[str, Floats]:
    variances = np.array([0.1, 0.1, 0.2, 0.2] * 12, np.float32)
    return feeds | {"loc": feeds["loc"] / variances}


def _with_image(height: int, width: int) -> Change:
    return lambda feeds: feeds | {"image": np.zeros((1, 3, height, width), np.float32)}


# A case, the feeds and the text to change for OpenCV to judge it: the result must stay the same.
ENCODED = ("variance_encoded_in_target: true", "")
UNCLIPPED = ("variance: 0.1", "clip: false variance: 0.1")
SPELLED = (
    "confidence_threshold",
    "share_location: true background_label_id: 0 code_type: CORNER keep_top_k: -1 confidence_threshold",
)
SAME: Mapping[str, tuple[Change, tuple[str, str]]] = {
    "detectionoutput_encoded": (_without_variances, ENCODED),
    "detectionoutput_encoded_corner": (_without_variances, ENCODED),
    "detectionoutput_corner_size": (
        lambda feeds: feeds | {"loc": feeds["loc"] * _sides(feeds["prior"])},
        ("CORNER_SIZE", "CORNER"),
    ),
    "detectionoutput_defaults": (_as_they_are, SPELLED),
    "priorbox_default_clip": (_as_they_are, UNCLIPPED),
    "priorboxclustered_default_clip": (_as_they_are, UNCLIPPED),
    "priorbox_default_variance": (_as_they_are, ("clip", "variance: 0.1 clip")),
    "priorbox_fraction": (_as_they_are, (": 10.7 max_size: 24.9", ": 10 max_size: 24")),
    "priorbox_img_size": (_with_image(100, 100), ("img_size: 100", "")),
    "priorbox_img_sides": (_with_image(100, 50), ("img_h: 100 img_w: 50", "")),
}


def _sides(priors: Floats) -> Floats:
    corners = priors[0, 0].reshape(-1, 4)
    size = corners[:, 2:] - corners[:, :2]
    return np.concatenate([size, size], axis=1).reshape(1, -1)


@pytest.mark.parametrize("name", SAME)
def test_comes_to_the_same_as_what_opencv_judges(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    change, (old, new) = SAME[name]
    assert old in case.layers
    other = replace(case, name="other", layers=case.layers.replace(old, new, 1))
    given = case.feeds()
    found, wanted = evaluated(case, tmp_path, given), evaluated(other, tmp_path, change(given))
    assert found[0].shape == wanted[0].shape
    assert snr_db(wanted[0], found[0]) >= 100
    assert opencv.flaws(read(other, tmp_path)) == []


def test_detections_without_a_background_are_those_of_each_label(tmp_path: Path) -> None:
    case = CASES["detectionoutput_no_background"]
    found = opencv.sorted_rows(evaluated(case, tmp_path)[0])
    parts = []
    for background in (0, 1):
        text = case.layers.replace("background_label_id: -1", f"background_label_id: {background}")
        parts.append(opencv.sorted_rows(evaluated(replace(case, name="other", layers=text), tmp_path)[0]))
    wanted = {tuple(row) for part in parts for row in part.tolist()}
    assert {tuple(row) for row in found.tolist()} == wanted
    assert {row[1] for row in wanted} == {0, 1, 2}


def test_a_proposal_that_is_too_small_comes_last_with_a_score_of_0(tmp_path: Path) -> None:
    case = CASES["proposal_small"]
    two = replace(case, layers=case.layers.replace('top: "out"', 'top: "out"\n  top: "score"'))
    boxes, scores = evaluated(two, tmp_path)
    sides = boxes[:, 3:] - boxes[:, 1:3] + 1
    assert np.array_equal(scores > 0, (sides >= 40).all(axis=1))
    assert 0 < np.count_nonzero(scores) < len(scores)
    assert np.all(np.diff(scores) <= 0)


@pytest.mark.parametrize(("name", "scales"), [("python_proposal", (8, 16, 32)), ("python_proposal_scales", (1, 2))])
def test_the_python_layer_is_a_proposal_that_drops_what_is_too_small(
    name: str, scales: Sequence[int], tmp_path: Path
) -> None:
    case = CASES[name]
    each = " ".join(f"scale: {scale}" for scale in scales)
    text = layer(
        "Proposal",
        f"proposal_param {{ ratio: 0.5 ratio: 1 ratio: 2 {each} }}",
        ("scores", "deltas", "image"),
        ("out", "score"),
    )
    boxes, scores = evaluated(case, tmp_path)
    wanted, known = evaluated(replace(case, name="other", layers=text), tmp_path)
    assert 0 < len(scores) == np.count_nonzero(known)
    assert np.array_equal(boxes, wanted[known > 0])
    # A column, as its code leaves them.
    assert np.array_equal(scores, known[known > 0][:, None])


def test_of_equal_values_argmax_takes_the_last(tmp_path: Path) -> None:
    feeds = {"data": np.zeros((2, 4, 9, 10), np.float32)}
    assert np.all(evaluated(CASES["argmax_axis"], tmp_path, feeds)[0] == 3)


def test_the_mask_of_a_pooling_has_the_first_of_equal_values(tmp_path: Path) -> None:
    feeds = {"data": np.zeros((2, 4, 9, 10), np.float32)}
    mask = evaluated(CASES["pooling_mask"], tmp_path, feeds)[1]
    assert mask[0, 0, :2, :3].tolist() == [[0, 2, 4], [20, 22, 24]]


def test_a_window_that_begins_beyond_the_image_is_kept_without_padding(tmp_path: Path) -> None:
    """Caffe drops such a window only where there is a pad: a maximum of nothing, and a mean of nothing."""
    text = layer("Pooling", "pooling_param { pool: MAX kernel_size: 2 stride: 3 }")
    data = {"data": np.ones((1, 1, 6, 6), np.float32)}
    largest = evaluated(Case("beyond", "Pooling", text, {"data": normal(1, 1, 6, 6)}), tmp_path, data)[0]
    assert largest.shape == (1, 1, 3, 3)
    assert largest[0, 0, 2, 2] == np.finfo(np.float32).min
    mean = Case("beyond", "Pooling", text.replace("MAX", "AVE"), {"data": normal(1, 1, 6, 6)})
    assert np.isnan(evaluated(mean, tmp_path, data)[0][0, 0, 2, 2])


def test_every_case_has_an_oracle() -> None:
    apart = {"detectionoutput_no_background", "proposal_small", "python_proposal", "python_proposal_scales"}
    judged = {*TORCH, *SAME, *apart}
    assert {name for name, case in CASES.items() if case.opencv != "right"} == judged


def test_every_layer_has_two_cases() -> None:
    counts = {kind: sum(case.type == kind for case in CASES.values()) for kind in LAYERS}
    assert {kind for kind, count in counts.items() if count < 2} == set()

"""Proposals and pooled regions against OpenCV, and against the layers' own loops written out here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import caffe_files
import numpy as np
import pytest
from caffe_lowered import Floats, execute, lowered, opencv, openvino
from numpy.typing import NDArray

from retarget.errors import RetargetError, Unsupported

Numbers: TypeAlias = NDArray[np.floating[Any]]

# fmt: off
FASTER_RCNN = [
    [-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200],
    [-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264],
    [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360],
]
"""The anchors of Faster R-CNN, as its authors list them: Matlab counts from 1."""
# fmt: on


def draw(*shape: int, seed: int, scale: float = 1.0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


# ---- proposals


@dataclass(frozen=True)
class Proposals:
    """A proposal layer with drawn bottoms, of PVANet's or of py-faster-rcnn's."""

    python: bool = False
    ratios: tuple[float, ...] = (0.5, 1, 2)
    scales: tuple[float, ...] = (1, 2)
    base: int = 16
    stride: int = 16
    smallest: float = 16
    before: int = 6000
    after: int = 300
    overlap: float = 0.7
    info: tuple[float, ...] = (80, 96, 1)
    map: tuple[int, int] = (5, 6)
    spread: float = 0.3

    @property
    def anchors(self) -> Numbers:
        """Each [x1, y1, x2, y2], for each ratio and then each scale."""
        found = []
        for ratio in self.ratios:
            size = np.sqrt(self.base**2 / ratio)
            width = np.floor(size + 0.5)
            height = np.floor(width * ratio + 0.5)
            for scale in self.scales:
                half = np.array([width * scale - 1, height * scale - 1]) / 2
                found.append(np.concatenate([(self.base - 1) / 2 - half, (self.base - 1) / 2 + half]))
        return np.array(found)

    def feeds(self) -> dict[str, Floats]:
        random, count = np.random.default_rng(1), len(self.anchors)
        scores = random.permutation(2 * count * self.map[0] * self.map[1]) + 1.0
        return {
            "scores": (scores / scores.max()).reshape(1, 2 * count, *self.map).astype(np.float32),
            "deltas": draw(1, 4 * count, *self.map, seed=2, scale=self.spread),
            "info": np.array([self.info], np.float32),
        }

    @property
    def prototxt(self) -> str:
        shapes = {name: array.shape for name, array in self.feeds().items()}
        tops = ["rois", "odds"]
        if self.python:
            scales = ", ".join(map(str, self.scales))
            text = f"""module: "rpn.proposal_layer" layer: "ProposalLayer"
                param_str: "'feat_stride': {self.stride}\\n'scales': [{scales}]" """
            layer = caffe_files.layer("prop", "Python", tuple(shapes), tops, f"python_param {{ {text} }}")
        else:
            each = " ".join([f"ratio: {ratio}" for ratio in self.ratios] + [f"scale: {scale}" for scale in self.scales])
            text = (
                f"feat_stride: {self.stride} base_size: {self.base} min_size: {self.smallest} {each} "
                f"pre_nms_topn: {self.before} post_nms_topn: {self.after} nms_thresh: {self.overlap}"
            )
            layer = caffe_files.layer("prop", "Proposal", tuple(shapes), tops, f"proposal_param {{ {text} }}")
        return caffe_files.inputs(**shapes) + layer

    def proposed(self) -> tuple[Floats, Floats]:
        """The boxes and their scores, one at a time."""
        feeds, anchors = self.feeds(), self.anchors
        height, width, *scales = self.info
        across = scales[0] if self.python else scales[:2][-1]
        smallest = np.array([across, scales[0]]) * self.smallest
        boxes = []
        for row in range(self.map[0]):
            for column in range(self.map[1]):
                for index, anchor in enumerate(anchors):
                    shifted = anchor + np.tile([column * self.stride, row * self.stride], 2)
                    move = feeds["deltas"][0, 4 * index : 4 * index + 4, row, column].astype(np.float64)
                    size = shifted[2:] - shifted[:2] + 1
                    center = shifted[:2] + size / 2 + move[:2] * size
                    half = np.exp(move[2:]) * size / 2
                    box = np.concatenate([center - half, center + half])
                    box = np.clip(box, 0, [width - 1, height - 1] * 2)
                    score = feeds["scores"][0, len(anchors) + index, row, column]
                    large = (box[2:] - box[:2] + 1 >= smallest).all()
                    if large or not self.python:
                        boxes.append((score if large else 0, box))
        boxes.sort(key=lambda each: -each[0])
        kept: list[tuple[float, Numbers]] = []
        for score, box in boxes[: self.before]:
            if all(_overlap(box, other) <= self.overlap for _, other in kept):
                kept.append((score, box))
        kept = kept[: self.after]
        rows = [[0, *box] for _, box in kept]
        return np.array(rows, np.float32).reshape(-1, 5), np.array([score for score, _ in kept], np.float32)


def _overlap(one: Numbers, other: Numbers) -> float:
    sides = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]) + 1, 0)
    areas = (one[2:] - one[:2] + 1).prod() + (other[2:] - other[:2] + 1).prod()
    return float(sides.prod() / (areas - sides.prod()))


@pytest.mark.parametrize("python", [False, True])
def test_anchors_are_those_of_faster_rcnn(python: bool) -> None:
    case = Proposals(python=python, scales=(8, 16, 32), map=(60, 60), info=(960, 960, 1), overlap=1)
    feeds = case.feeds()
    feeds["scores"][0, 9:, 30, 30] = np.arange(10, 1, -1)
    feeds["deltas"][:] = 0
    (found, scores) = execute(lowered(case.prototxt), feeds)
    wanted = np.array(FASTER_RCNN) - 1 + 30 * 16 + [0, 0, 1, 1]  # Without a move the second corner still moves by one.
    kept = np.flatnonzero(scores.ravel() > 1)
    labels = [10 - int(score) for score in scores.ravel()[kept]]
    assert labels == list(range(9))
    np.testing.assert_allclose(found[kept, 1:], wanted[labels], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "case",
    [
        Proposals(smallest=1),
        Proposals(),
        Proposals(smallest=30),
        Proposals(smallest=30, before=25, after=12),
        Proposals(after=7, overlap=0.4, base=8, ratios=(0.333, 1, 3), scales=(2, 4), smallest=4),
        Proposals(info=(80, 96, 2, 0.5), smallest=20),
        Proposals(info=(80, 96, 1, 1, 480, 640), stride=8, spread=1.5),
        Proposals(python=True),
        Proposals(python=True, scales=(0.5, 1, 4), info=(80, 96, 1.3)),
        Proposals(python=True, scales=(0.5,), spread=0.1),
        Proposals(python=True, scales=(1, 2), spread=0.1, info=(80, 96, 10)),
    ],
)
def test_proposals_are_those_of_the_layer(case: Proposals) -> None:
    model, feeds = lowered(case.prototxt), case.feeds()
    rois, scores = case.proposed()
    if case.info[2] == 10:
        assert not len(rois)
    for run in (execute, openvino) if case.spread != 0.3 or case.info[2] != 1 else (execute,):
        found, odds = run(model, feeds)
        np.testing.assert_allclose(found, rois, rtol=0, atol=1e-4)
        np.testing.assert_allclose(odds, scores[:, None] if case.python else scores, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "case", [Proposals(smallest=1, after=20), Proposals(smallest=1, after=10, before=60, base=8, scales=(2, 4))]
)
def test_proposals_are_those_of_opencv(case: Proposals) -> None:
    feeds = case.feeds()
    (expected,) = opencv(case.prototxt, [], feeds, "prop")
    np.testing.assert_allclose(execute(lowered(case.prototxt), feeds)[0], expected, rtol=0, atol=1e-4)


def test_other_python_layers_are_refused_by_name() -> None:
    text = 'python_param { module: "rpn.anchors" layer: "AnchorLayer" }'
    with pytest.raises(Unsupported, match=r"layer 'mine' \(Python\): is Python code, rpn\.anchors\.AnchorLayer"):
        lowered(caffe_files.inputs(data=(1, 3)) + caffe_files.layer("mine", "Python", "data", None, text))


@pytest.mark.parametrize(
    ("prototxt", "message"),
    [
        (Proposals().prototxt.replace("ratio: 0.5", "ratio: 0.5 ratio: 3"), "has 8 anchors"),
        (Proposals(scales=(3,)).prototxt.replace("scale: 3", ""), "needs ratio and scale"),
        (Proposals().prototxt.replace("dim: 1 dim: 12", "dim: 2 dim: 12"), "a batch of 2"),
        (Proposals(info=(80, 96)).prototxt, "has 2 values"),
        (Proposals().prototxt.replace("ratio: 2", "ratio: 2 " * 2500), "5004 anchors a cell"),
        (Proposals(python=True).prototxt.replace("'feat_stride': 16", "'other': 1"), "does not give feat_stride"),
        (Proposals(python=True).prototxt.replace("'feat_stride': 16", "[16"), "does not give feat_stride"),
    ],
)
def test_proposals_that_caffe_would_not_make(prototxt: str, message: str) -> None:
    with pytest.raises(RetargetError, match=message) as caught:
        lowered(prototxt)
    assert "layer 'prop'" in str(caught.value)


# ---- pooled regions


def rois(images: int, seed: int = 0) -> Floats:
    """Within the image of 64x48, beyond each side of it, inverted, tiny, on halves of cells of 4 pixels."""
    random = np.random.default_rng(seed)
    corners = random.uniform(-20, 80, (60, 4))
    corners[:40, 2:] = np.maximum(corners[:40, :2], corners[:40, 2:])
    corners[:20] = np.clip(corners[:20], 0, [63, 47, 63, 47])
    corners[20:30] = np.round(corners[20:30] / 2) * 2
    corners[30:34, 2:] = corners[30:34, :2]
    return np.concatenate([random.integers(0, images, (60, 1)), corners], axis=1).astype(np.float32)


def pooling(kind: str, channels: int, parameters: str, images: int = 2, size: tuple[int, int] = (12, 16)) -> str:
    shapes = {"data": (images, channels, *size), "rois": (60, 5)}
    name = "roi_pooling_param" if kind == "ROIPooling" else "psroi_pooling_param"
    return caffe_files.inputs(**shapes) + caffe_files.layer(
        "pool", kind, tuple(shapes), None, f"{name} {{ {parameters} }}"
    )


def _away(value: np.float32) -> int:
    """Rounded as C does, halves away from zero."""
    return int(np.sign(value) * np.floor(abs(np.float64(value)) + 0.5))


def roi_pooled(data: Floats, regions: Floats, height: int, width: int, scale: float) -> Floats:
    pooled = np.zeros((len(regions), data.shape[1], height, width), np.float32)
    for number, (image, *corners) in enumerate(regions):
        x1, y1, x2, y2 = (_away(corner * np.float32(scale)) for corner in corners)
        step_x = np.float32(max(x2 - x1 + 1, 1)) / np.float32(width)
        step_y = np.float32(max(y2 - y1 + 1, 1)) / np.float32(height)
        for row in range(height):
            for column in range(width):
                top, bottom = _bin(np.float32(row) * step_y, np.float32(row + 1) * step_y, y1, data.shape[2])
                left, right = _bin(np.float32(column) * step_x, np.float32(column + 1) * step_x, x1, data.shape[3])
                if bottom > top and right > left:
                    pooled[number, :, row, column] = data[int(image), :, top:bottom, left:right].max(axis=(1, 2))
    return pooled


def _bin(begin: np.float32, end: np.float32, start: int, size: int) -> tuple[int, int]:
    first, last = int(np.floor(begin)) + start, int(np.ceil(end)) + start
    return min(max(first, 0), size), min(max(last, 0), size)


def psroi_pooled(data: Floats, regions: Floats, depth: int, group: int, scale: float) -> Floats:
    pooled = np.zeros((len(regions), depth, group, group), np.float32)
    factor = np.float32(scale)
    for number, (image, *corners) in enumerate(regions):
        x1, y1 = (np.float32(_away(corner)) * factor for corner in corners[:2])
        x2, y2 = (np.float32(_away(corner) + 1) * factor for corner in corners[2:])
        step_x, step_y = (np.maximum(size, np.float32(0.1)) / np.float32(group) for size in (x2 - x1, y2 - y1))
        for row in range(group):
            for column in range(group):
                top, bottom = _bin(np.float32(row) * step_y + y1, np.float32(row + 1) * step_y + y1, 0, data.shape[2])
                left, right = _bin(
                    np.float32(column) * step_x + x1, np.float32(column + 1) * step_x + x1, 0, data.shape[3]
                )
                if bottom > top and right > left:
                    channels = np.arange(depth) * group * group + row * group + column
                    part = data[int(image), channels, top:bottom, left:right].astype(np.float64)
                    pooled[number, :, row, column] = part.mean(axis=(1, 2))
    return pooled


@pytest.mark.parametrize("size", [(12, 16), (1, 1), (3, 40)])
@pytest.mark.parametrize(("height", "width", "scale"), [(3, 4, 0.25), (7, 7, 0.25), (1, 1, 1.0), (6, 5, 0.0625)])
def test_regions_are_pooled_as_fast_rcnn_does(height: int, width: int, scale: float, size: tuple[int, int]) -> None:
    prototxt = pooling("ROIPooling", 3, f"pooled_h: {height} pooled_w: {width} spatial_scale: {scale}", size=size)
    feeds = {"data": draw(2, 3, *size, seed=4), "rois": rois(2)}
    (found,) = execute(lowered(prototxt), feeds)
    np.testing.assert_array_equal(found, roi_pooled(feeds["data"], feeds["rois"], height, width, scale))
    np.testing.assert_array_equal(found, opencv(prototxt, [], feeds, "pool")[0])


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(("depth", "group", "scale"), [(2, 3, 0.25), (5, 2, 0.0625), (1, 7, 0.25)])
def test_regions_are_pooled_as_r_fcn_does(depth: int, group: int, scale: float, images: int) -> None:
    channels = depth * group * group
    parameters = f"output_dim: {depth} group_size: {group} spatial_scale: {scale}"
    prototxt = pooling("PSROIPooling", channels, parameters, images)
    feeds = {"data": draw(images, channels, 12, 16, seed=4), "rois": rois(images)}
    (found,) = execute(lowered(prototxt), feeds)
    expected = psroi_pooled(feeds["data"], feeds["rois"], depth, group, scale)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found, opencv(prototxt, [], feeds, "pool")[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "channels", "parameters"),
    [
        ("ROIPooling", 3, "pooled_h: 3 pooled_w: 4 spatial_scale: 0.25"),
        ("PSROIPooling", 18, "output_dim: 2 group_size: 3 spatial_scale: 0.25"),
    ],
)
def test_the_number_of_regions_may_be_open(kind: str, channels: int, parameters: str) -> None:
    prototxt = pooling(kind, channels, parameters)
    model = lowered(prototxt, shapes={"rois": ("K", 5)})
    feeds = {"data": draw(2, channels, 12, 16, seed=4), "rois": rois(2)}
    (expected,) = execute(lowered(prototxt), feeds)
    for run, count in ((execute, 1), (execute, 7), (openvino, 8)):
        some = feeds | {"rois": feeds["rois"][:count]}
        np.testing.assert_allclose(run(model, some)[0], expected[:count], rtol=0, atol=1e-6)


def test_regions_may_be_saved_with_four_axes_and_images_be_open() -> None:
    prototxt = pooling("ROIPooling", 3, "pooled_h: 3 pooled_w: 4 spatial_scale: 0.25")
    feeds = {"data": draw(2, 3, 12, 16, seed=4), "rois": rois(2)}
    (expected,) = execute(lowered(prototxt), feeds)
    four = lowered(
        prototxt.replace("dim: 60 dim: 5", "dim: 60 dim: 5 dim: 1 dim: 1"), shapes={"data": ("N", 3, 12, 16)}
    )
    np.testing.assert_array_equal(execute(four, feeds | {"rois": feeds["rois"][..., None, None]})[0], expected)


@pytest.mark.parametrize(
    ("prototxt", "message"),
    [
        (pooling("ROIPooling", 3, "pooled_h: 3"), "pooled_h and pooled_w are 3 and 0"),
        (pooling("ROIPooling", 3, "pooled_h: 100000 pooled_w: 3"), "are 100000 and 3"),
        (pooling("ROIPooling", 3, "pooled_h: 3 pooled_w: 3").replace("dim: 60 dim: 5", "dim: 60 dim: 4"), "5 values"),
        (pooling("PSROIPooling", 7, "output_dim: 2 group_size: 2"), "do not fit 7 channels"),
    ],
)
def test_pooling_that_caffe_would_not_take(prototxt: str, message: str) -> None:
    with pytest.raises(RetargetError, match=message) as caught:
        lowered(prototxt)
    assert "layer 'pool'" in str(caught.value)


# ---- a whole head


def faster_rcnn() -> tuple[str, list[caffe_files.Saved]]:
    """A proposal network and what classifies each region, on one feature map."""
    case = Proposals(smallest=1, after=15)
    count = len(case.anchors)
    text = [caffe_files.inputs(data=(1, 8, *case.map), info=(1, 3))]
    saved: list[caffe_files.Saved] = []

    def add(name: str, kind: str, bottoms: str | tuple[str, ...], parameters: str = "", *weights: Floats) -> None:
        text.append(caffe_files.layer(name, kind, bottoms, None, parameters))
        if weights:
            saved.append((name, kind, list(weights)))

    def conv(name: str, bottom: str, outputs: int, kernel: int) -> None:
        parameters = f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} pad: {kernel // 2} }}"
        weights = draw(outputs, 8, kernel, kernel, seed=len(name), scale=0.2)
        add(name, "Convolution", bottom, parameters, weights, draw(outputs, seed=7, scale=0.2))

    conv("rpn", "data", 8, 3)
    add("rpn_relu", "ReLU", "rpn")
    conv("rpn_score", "rpn_relu", 2 * count, 1)
    conv("rpn_boxes", "rpn_relu", 4 * count, 1)
    add("pairs", "Reshape", "rpn_score", "reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } }")
    add("odds", "Softmax", "pairs")
    add("rpn_odds", "Reshape", "odds", f"reshape_param {{ shape {{ dim: 0 dim: {2 * count} dim: -1 dim: 0 }} }}")
    each = " ".join([f"ratio: {ratio}" for ratio in case.ratios] + [f"scale: {scale}" for scale in case.scales])
    add(
        "regions",
        "Proposal",
        ("rpn_odds", "rpn_boxes", "info"),
        f"proposal_param {{ {each} min_size: 1 post_nms_topn: 15 feat_stride: 16 }}",
    )
    roi = "roi_pooling_param { pooled_h: 3 pooled_w: 3 spatial_scale: 0.0625 }"
    add("pool", "ROIPooling", ("data", "regions"), roi)
    dense = "inner_product_param { num_output: 4 }"
    add("score", "InnerProduct", "pool", dense, draw(4, 72, seed=8, scale=0.2), draw(4, seed=9))
    add("classes", "Softmax", "score")
    return "".join(text), saved


def test_a_head_of_faster_rcnn_classifies_as_opencv_does() -> None:
    prototxt, saved = faster_rcnn()
    feeds = {"data": draw(1, 8, 5, 6, seed=1), "info": np.array([[80, 96, 1]], np.float32)}
    model = lowered(prototxt, saved)
    (expected,) = opencv(prototxt, saved, feeds, "classes")
    assert expected.shape == (15, 4)
    for run in (execute, openvino):
        np.testing.assert_allclose(run(model, feeds)[0], expected, rtol=0, atol=1e-5)


def test_settings_of_a_python_layer_may_hold_its_tuple() -> None:
    """The nets of py-faster-rcnn for COCO say ``!!python/tuple``, which no safe reader of YAML makes."""
    proposals = Proposals(python=True, scales=(4, 8, 16))
    tagged = proposals.prototxt.replace("'scales': [", "'scales': !!python/tuple [")
    assert tagged != proposals.prototxt
    found, expected = (execute(lowered(text), proposals.feeds()) for text in (tagged, proposals.prototxt))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)

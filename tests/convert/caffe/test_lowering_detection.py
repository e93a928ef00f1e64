"""Priors and detections against OpenCV, and where OpenCV departs from SSD's Caffe, against loops written out here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import caffe_files
import numpy as np
import pytest
from caffe_lowered import Floats, execute, lowered, opencv, openvino
from numpy.typing import NDArray

from retarget.errors import RetargetError, Unsupported

Numbers: TypeAlias = NDArray[np.floating[Any]]

NEGATIVE = -np.random.default_rng(3).uniform(1, 3, (1, 160))
"""Confidences of 40 priors and 4 classes."""
VARIANCES = "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
MAP, IMAGE = (3, 4), (48, 64)


# ---- priors


def priors(parameters: str, kind: str = "PriorBox") -> str:
    shapes = caffe_files.inputs(data=(1, 4, *MAP), image=(1, 3, *IMAGE))
    return shapes + caffe_files.layer("prior", kind, ("data", "image"), None, f"prior_box_param {{ {parameters} }}")


def made(prototxt: str) -> Floats:
    (found,) = execute(
        lowered(prototxt),
        {"data": np.zeros((1, 4, *MAP), np.float32), "image": np.zeros((1, 3, *IMAGE), np.float32)},
    )
    return found


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("PriorBox", "min_size: 10"),
        ("PriorBox", "min_size: 10 max_size: 24 aspect_ratio: 2"),
        ("PriorBox", "min_size: 10 aspect_ratio: 2 aspect_ratio: 3 aspect_ratio: 1 aspect_ratio: 2 flip: true"),
        ("PriorBox", "min_size: 10 aspect_ratio: 2 flip: false"),
        ("PriorBox", "min_size: 8 min_size: 16 max_size: 12 max_size: 32 aspect_ratio: 2"),
        ("PriorBox", "min_size: 10 step: 20 offset: 0.25"),
        ("PriorBox", "min_size: 10 step_h: 12 step_w: 20"),
        ("PriorBoxClustered", "width: 9 width: 20.5 height: 12.25 height: 7"),
        ("PriorBoxClustered", "width: 9 height: 50 step: 14 offset: 0.4"),
    ],
)
@pytest.mark.parametrize("clip", ["true", "false"])
def test_priors_are_those_of_opencv(kind: str, parameters: str, clip: str) -> None:
    prototxt = priors(f"{parameters} clip: {clip} {VARIANCES}", kind)
    feeds = {"data": np.zeros((1, 4, *MAP), np.float32), "image": np.zeros((1, 3, *IMAGE), np.float32)}
    np.testing.assert_allclose(made(prototxt), opencv(prototxt, [], feeds, "prior")[0], rtol=0, atol=2e-7)


def test_priors_are_not_clipped_unless_asked_and_vary_by_a_tenth() -> None:
    found = made(priors("min_size: 40"))
    assert found[0, 0].min() < 0
    assert found[0, 0].max() > 1
    assert np.unique(found[0, 1]).tolist() == [np.float32(0.1)]


def test_sizes_are_cut_to_whole_pixels() -> None:
    # SSD512's are 35.84 and 76.8; its Caffe holds them in an int.
    np.testing.assert_array_equal(
        made(priors("min_size: 35.84 max_size: 76.8")), made(priors("min_size: 35 max_size: 76"))
    )


@pytest.mark.parametrize("parameters", ["img_size: 100", "img_h: 100 img_w: 100"])
def test_the_image_may_be_of_a_stated_size(parameters: str) -> None:
    found = made(priors(f"min_size: 10 {parameters}"))[0, 0].reshape(*MAP, 4)
    for row in range(MAP[0]):
        for column in range(MAP[1]):
            x, y = (column + 0.5) * 100 / MAP[1], (row + 0.5) * 100 / MAP[0]
            box = np.array([x - 5, y - 5, x + 5, y + 5]) / 100
            np.testing.assert_allclose(found[row, column], box, rtol=0, atol=1e-7)


def test_priors_are_constants() -> None:
    model = lowered(priors("min_size: 10 max_size: 20 aspect_ratio: 2"))
    assert [node.op_type for node in model.graph] == ["Identity"]


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("PriorBox", "max_size: 3", "needs a min_size"),
        ("PriorBox", "min_size: 3 min_size: 4 max_size: 5", "2 of min_size and 1 of max_size"),
        ("PriorBox", "min_size: 3 variance: 1 variance: 2", "2 of variance"),
        ("PriorBox", "min_size: 3 step: -1", "step is -1"),
        ("PriorBox", "min_size: 3 max_size: 3", "max_size that is not greater"),
        ("PriorBox", "min_size: 3 aspect_ratio: 0", "aspect_ratio that is not positive"),
        ("PriorBox", "min_size: 3 " * 2049, "more than 4096 boxes a cell"),
        ("PriorBoxClustered", "width: 3", "1 of width and 0 of height"),
    ],
)
def test_priors_that_caffe_would_not_take(kind: str, parameters: str, message: str) -> None:
    with pytest.raises(RetargetError, match=message):
        lowered(priors(parameters, kind))


def test_priors_that_would_take_all_memory() -> None:
    prototxt = priors("min_size: 3").replace("dim: 3 dim: 4 ", "dim: 30000 dim: 40000 ")
    with pytest.raises(Unsupported, match="would make 1200000000 boxes"):
        lowered(prototxt)


# ---- detections


@dataclass(frozen=True)
class Head:
    """A ``DetectionOutput`` with drawn bottoms; None: the prototxt does not say it."""

    overlap: float | None = 0.45
    top_k: int | None = 20
    keep: int | None = None
    threshold: float | None = None
    eta: float | None = None
    images: int = 1
    priors: int = 40
    classes: int = 4
    shared: bool = True
    code: str = "CENTER_SIZE"
    spread: float = 0.5
    background: int = 0
    encoded: bool = False
    loc: Numbers | None = None
    conf: Numbers | None = None
    prior: Numbers | None = None

    @property
    def prototxt(self) -> str:
        suppression = _said(nms_threshold=self.overlap, top_k=self.top_k, eta=self.eta)
        parameters = _said(
            num_classes=self.classes,
            share_location=str(self.shared).lower(),
            code_type=self.code,
            background_label_id=self.background,
            variance_encoded_in_target=str(self.encoded).lower(),
            keep_top_k=self.keep,
            confidence_threshold=self.threshold,
        )
        text = f"detection_output_param {{ {parameters} nms_param {{ {suppression} }} }}"
        shapes = {name: array.shape for name, array in self.feeds().items()}
        return caffe_files.inputs(**shapes) + caffe_files.layer("out", "DetectionOutput", tuple(shapes), None, text)

    def feeds(self) -> dict[str, Floats]:
        random = np.random.default_rng(0)
        center, half = random.uniform(0.2, 0.8, (self.priors, 2)), random.uniform(0.05, 0.3, (self.priors, 2))
        boxes = np.concatenate([center - half, center + half], axis=1).ravel()
        spread = np.tile([0.1, 0.1, 0.2, 0.2], self.priors)
        each = 1 if self.shared else self.classes
        loc = random.normal(0, self.spread, (self.images, 4 * self.priors * each))
        conf = random.uniform(0, 1, (self.images, self.priors * self.classes))
        feeds = {"loc": loc, "conf": conf, "prior": np.stack([boxes, spread])[None]}
        feeds |= {
            name: array
            for name, array in (("loc", self.loc), ("conf", self.conf), ("prior", self.prior))
            if array is not None
        }
        return {name: np.asarray(array, np.float32) for name, array in feeds.items()}

    def detections(self) -> Floats:
        """What SSD's Caffe would find, one box at a time."""
        feeds = self.feeds()
        threshold = -math.inf if self.threshold is None else self.threshold
        boxes, variances = feeds["prior"].reshape(2, self.priors, 4).astype(np.float64)
        rows = []
        for image in range(self.images):
            conf = feeds["conf"][image].reshape(self.priors, self.classes)
            loc = feeds["loc"][image].reshape(self.priors, -1, 4).astype(np.float64)
            found: list[tuple[int, int, Numbers]] = []
            for label in range(self.classes):
                if label == self.background:
                    continue
                order = np.argsort(-conf[:, label], kind="stable")
                order = order[conf[order, label] > threshold]
                kept: list[tuple[int, Numbers]] = []
                limit = 0.3 if self.overlap is None else self.overlap
                for prior in order if self.top_k is None else order[: self.top_k]:
                    offsets = loc[prior, 0 if self.shared else label]
                    box = self._box(boxes[prior], offsets * (1 if self.encoded else variances[prior]))
                    if all(_overlap(box, other) <= limit for _, other in kept):
                        kept.append((prior, box))
                        limit *= (self.eta or 1) if limit > 0.5 else 1
                found += [(label, prior, box) for prior, box in kept]
            if self.keep is not None and self.keep < len(found):
                found = sorted(found, key=lambda each: -conf[each[1], each[0]])[: self.keep]
                found.sort(key=lambda each: each[0])
            rows += [[image, label, conf[prior, label], *box] for label, prior, box in found]
        if not rows:
            rows = [[image, *[-1] * 6] for image in range(self.images)]
        return np.array(rows, np.float32)[None, None]

    def _box(self, prior: Numbers, offsets: Numbers) -> Numbers:
        size = np.tile(prior[2:] - prior[:2], 2)
        if self.code == "CORNER":
            return prior + offsets
        if self.code == "CORNER_SIZE":
            return prior + offsets * size
        center = (prior[:2] + prior[2:]) / 2 + offsets[:2] * size[:2]
        half = np.exp(offsets[2:]) * size[2:] / 2
        return np.concatenate([center - half, center + half])


def _said(**values: float | str | None) -> str:
    return " ".join(f"{name}: {value}" for name, value in values.items() if value is not None)


def _overlap(one: Numbers, other: Numbers) -> float:
    if (one[2:] < one[:2]).any() or (other[2:] < other[:2]).any():
        return 0
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    if (sides <= 0).any():
        return 0
    shared = sides.prod()
    return float(shared / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - shared))


@pytest.mark.parametrize(
    "head",
    [
        Head(keep=10, threshold=0.2),
        Head(threshold=0.9, images=3),
        Head(keep=7, images=3),
        Head(overlap=None, top_k=None, images=2),
        Head(overlap=1.5, top_k=None, priors=8),
        Head(overlap=0.0, top_k=None),
        Head(code="CORNER", spread=2),
        Head(code="CORNER_SIZE", spread=2),
        Head(encoded=True, spread=0.2),
        Head(encoded=True, spread=0.2, code="CORNER"),
        Head(shared=False, images=2),
        Head(background=2),
        Head(background=-1),
        Head(shared=False, background=-1),
        Head(overlap=0.8, eta=0.9, images=2),
        Head(overlap=0.8, eta=0.7, threshold=0.5, code="CORNER", spread=2),
        Head(overlap=0.4, eta=0.9),
        Head(threshold=1.0, images=2),
        Head(threshold=-2, conf=NEGATIVE),
        Head(conf=NEGATIVE),
    ],
)
def test_detections_in_the_order_of_caffe(head: Head) -> None:
    model, feeds, expected = lowered(head.prototxt), head.feeds(), head.detections()
    runs = [execute, openvino] if head.images > 1 or head.conf is not None or not head.overlap else [execute]
    for run in runs:
        np.testing.assert_allclose(run(model, feeds)[0], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "head",
    [
        Head(keep=12, threshold=0.2, images=2),
        Head(keep=200, threshold=0.2, shared=False),
        Head(keep=30, threshold=0.2, code="CORNER", spread=0.2),
    ],
)
def test_detections_are_those_of_opencv(head: Head) -> None:
    (found,) = execute(lowered(head.prototxt), head.feeds())
    (expected,) = opencv(head.prototxt, [], head.feeds(), "out")
    expected = expected[:, :, expected[0, 0, :, 2] > 0]  # It fills up with rows of 0.
    np.testing.assert_allclose(_sorted(found), _sorted(expected), rtol=0, atol=1e-6)


def _sorted(rows: Floats) -> Floats:
    """By image, label and falling confidence."""
    flat = rows.reshape(-1, 7)
    return flat[np.lexsort((-flat[:, 2], flat[:, 1], flat[:, 0]))]


@pytest.mark.parametrize("threshold", [0.5, 2], ids=["some", "none"])
def test_the_number_of_images_may_be_open(threshold: float) -> None:
    model = lowered(Head(threshold=threshold).prototxt, shapes={"loc": ("N", 160), "conf": ("N", 160)})
    for images in (1, 3):
        head = Head(threshold=threshold, images=images)
        expected = head.detections()
        assert (expected[..., 1].min() == -1) == (threshold == 2)
        np.testing.assert_allclose(execute(model, head.feeds())[0], expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(openvino(model, head.feeds())[0], expected, rtol=0, atol=2e-6)


def test_candidates_are_cut_before_they_suppress_each_other() -> None:
    # The two best overlap: one of the two candidates is left, not the two best of what would be left of all.
    boxes = np.array([[0, 0, 0.4, 0.4], [0, 0, 0.4, 0.41], [0.5, 0.5, 0.9, 0.9]])
    prior = np.stack([boxes.ravel(), np.ones(12)])[None]
    conf = np.array([[0.1, 0.9, 0.2, 0.8, 0.3, 0.7]])
    head = Head(top_k=2, priors=3, classes=2, prior=prior, conf=conf, loc=np.zeros((1, 12)))
    (found,) = execute(lowered(head.prototxt), head.feeds())
    np.testing.assert_allclose(found, [[[[0, 1, 0.9, 0, 0, 0.4, 0.4]]]], atol=1e-7)


def test_of_equal_confidences_the_first_prior_is_first() -> None:
    boxes = np.array([[0.5, 0.5, 0.9, 0.9], [0, 0, 0.4, 0.4], [0, 0, 0.4, 0.41]])
    prior = np.stack([boxes.ravel(), np.ones(12)])[None]
    conf = np.tile([0.5, 0.5], 3)[None]
    head = Head(threshold=0.1, priors=3, classes=2, prior=prior, conf=conf, loc=np.zeros((1, 12)))
    model = lowered(head.prototxt)
    expected = [[0, 1, 0.5, 0.5, 0.5, 0.9, 0.9], [0, 1, 0.5, 0, 0, 0.4, 0.4]]
    np.testing.assert_allclose(execute(model, head.feeds())[0][0, 0], expected, atol=1e-7)
    np.testing.assert_allclose(openvino(model, head.feeds())[0][0, 0], expected, atol=1e-7)


def test_a_confidence_of_just_the_threshold_is_not_enough() -> None:
    conf = np.array([[0.0, 0.25, 0.0, 0.26]])
    head = Head(threshold=0.25, priors=2, classes=2, conf=conf)
    for run in (execute, openvino):
        (found,) = run(lowered(head.prototxt), head.feeds())
        assert found.shape == (1, 1, 1, 7)
        assert found[0, 0, 0, 2] == np.float32(0.26)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Head(overlap=-1), "nms_threshold is -1"),
        (Head(top_k=0), "never find anything"),
        (Head(prior=np.zeros((1, 1, 160))), r"its priors are \[1,1,160\]"),
        (Head(code="4"), "code_type is 4"),
        (Head(loc=np.zeros((1, 8))), "8 locations for 40 priors"),
        (Head(conf=np.zeros((1, 8))), "8 confidences for 40 priors"),
        (Head(overlap=0.7, eta=0.9, top_k=None, priors=1001), "eta 0.9 compares 1001 boxes"),
        (Head(overlap=0.7, eta=0), "eta is 0"),
    ],
)
def test_detections_that_caffe_would_not_make(head: Head, message: str) -> None:
    with pytest.raises(RetargetError, match=message) as caught:
        lowered(head.prototxt)
    assert "layer 'out'" in str(caught.value)


# ---- a whole head


def ssd() -> tuple[str, list[caffe_files.Saved]]:
    """Two feature maps, each with its priors, locations and confidences, joined and decoded."""
    random = np.random.default_rng(5)
    text, saved = [caffe_files.inputs(data=(1, 3, 32, 32))], list[caffe_files.Saved]()

    def conv(name: str, bottom: str, channels: int, outputs: int, stride: int) -> None:
        parameters = f"convolution_param {{ num_output: {outputs} kernel_size: 3 pad: 1 stride: {stride} }}"
        text.append(caffe_files.layer(name, "Convolution", bottom, name, parameters))
        weights = random.normal(0, (2 / channels / 9) ** 0.5, (outputs, channels, 3, 3))
        saved.append(
            (name, "Convolution", [weights.astype(np.float32), random.normal(0, 0.2, outputs).astype(np.float32)])
        )

    classes, wires = 3, dict[str, list[str]](loc=[], conf=[], prior=[])
    for index, (bottom, channels, smallest) in enumerate((("data", 3, 8), ("map0", 8, 16))):
        conv(f"map{index}", bottom, channels, 8, 4 if index == 0 else 2)
        text.append(caffe_files.layer(f"relu{index}", "ReLU", f"map{index}", f"map{index}"))
        for what, values in (("loc", 4), ("conf", classes)):
            conv(f"{what}{index}", f"map{index}", 8, 4 * values, 1)
            order = "permute_param { order: 0 order: 2 order: 3 order: 1 }"
            text.append(caffe_files.layer(f"{what}{index}_perm", "Permute", f"{what}{index}", None, order))
            text.append(caffe_files.layer(f"{what}{index}_flat", "Flatten", f"{what}{index}_perm"))
            wires[what].append(f"{what}{index}_flat")
        parameters = f"min_size: {smallest} max_size: {2 * smallest} aspect_ratio: 2 flip: true clip: false {VARIANCES}"
        text.append(
            caffe_files.layer(
                f"prior{index}", "PriorBox", (f"map{index}", "data"), None, f"prior_box_param {{ {parameters} }}"
            )
        )
        wires["prior"].append(f"prior{index}")
    for what, axis in (("loc", 1), ("conf", 1), ("prior", 2)):
        text.append(caffe_files.layer(what, "Concat", wires[what], None, f"concat_param {{ axis: {axis} }}"))
    rows = f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {classes} }} }}"
    text.append(caffe_files.layer("rows", "Reshape", "conf", None, rows))
    text.append(caffe_files.layer("odds", "Softmax", "rows", None, "softmax_param { axis: 2 }"))
    text.append(caffe_files.layer("flat", "Flatten", "odds"))
    parameters = (
        f"num_classes: {classes} share_location: true background_label_id: 0 code_type: CENTER_SIZE "
        "keep_top_k: 25 confidence_threshold: 0.2 nms_param { nms_threshold: 0.45 top_k: 100 }"
    )
    wire = ("loc", "flat", "prior")
    text.append(caffe_files.layer("out", "DetectionOutput", wire, None, f"detection_output_param {{ {parameters} }}"))
    return "".join(text), saved


def test_a_head_of_ssd_detects_what_opencv_does() -> None:
    prototxt, saved = ssd()
    feeds = {"data": np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)}
    model = lowered(prototxt, saved)
    (expected,) = opencv(prototxt, saved, feeds, "out")
    for run in (execute, openvino):
        (found,) = run(model, feeds)
        assert found.shape == expected.shape == (1, 1, 25, 7)
        np.testing.assert_allclose(_sorted(found), _sorted(expected), rtol=0, atol=1e-5)


def test_a_head_of_ssd_with_an_open_number_of_images() -> None:
    prototxt, saved = ssd()
    image = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    model = lowered(prototxt, saved, {"data": ("N", 3, 32, 32)})
    found = execute(model, {"data": image})[0][0, 0]
    alone: Sequence[Floats] = [execute(model, {"data": image[each : each + 1]})[0][0, 0] for each in range(3)]
    for number, rows in enumerate(alone):
        own = found[found[:, 0] == number]
        np.testing.assert_allclose(own[:, 1:], rows[:, 1:], rtol=0, atol=1e-5)

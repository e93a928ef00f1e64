"""The oracles are scikit-learn's scores and plain argmax."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from retarget.errors import RetargetError
from retarget.metrics import open_metric


@pytest.mark.parametrize(("name", "k"), [("top1", 1), ("top5", 5)])
def test_top_k_over_batches_is_that_of_the_whole(name: str, k: int) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((50, 9)).astype(np.float32), rng.integers(0, 9, 50)
    metric = open_metric(name)
    for start in range(0, 50, 7):
        # A label may be a column: tools write both.
        metric.add({"y": scores[start : start + 7], "other": scores[:1]}, labels[start : start + 7, None])
    assert metric.samples == 50
    assert metric.value() == pytest.approx(top_k_accuracy_score(labels, scores, k=k, labels=range(9)))


def test_equal_scores_are_not_all_right() -> None:
    metric = open_metric("top1")
    metric.add({"y": np.zeros((4, 4), np.float32)}, np.arange(4))
    assert metric.value() == 0.25
    five = open_metric("top5")
    five.add({"y": np.zeros((8, 8), np.float32)}, np.arange(8))
    assert five.value() == 5 / 8


@pytest.mark.parametrize("name", ["top1", "top5"])
def test_nan_is_never_right(name: str) -> None:
    metric = open_metric(name)
    metric.add({"y": np.array([[np.nan] * 3, [1, np.nan, 2], [1, 2, 3]], np.float32)}, np.array([0, 1, 2]))
    assert metric.value() == pytest.approx(1 / 3)


def test_scores_with_axes_in_between() -> None:
    scores = np.random.default_rng(1).standard_normal((2, 5, 4)).astype(np.float32)
    labels = np.argmax(scores, axis=-1)
    labels[0, 0] = (labels[0, 0] + 1) % 4
    metric = open_metric("top1")
    metric.add({"y": scores}, labels)
    assert (metric.value(), metric.samples) == (0.9, 10)


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        (np.zeros(3), np.zeros(3, int), r"scores \[rows, classes\], output 'y' has shape \[3\]"),
        (np.zeros((3, 2)), np.zeros(2, int), r"needs 3 integer labels .* found int64 \[2\]"),
        (np.zeros((3, 2)), np.zeros(3), "found float64"),
        (np.zeros((3, 2)), np.array([0, 1, 2]), "label 2 is none of the 2 classes of output 'y'"),
        (np.zeros((3, 2)), np.array([0, -1, 1]), "label -1 is none"),
    ],
)
def test_what_does_not_fit_is_named(
    scores: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    words: str,
) -> None:
    with pytest.raises(RetargetError, match=words):
        open_metric("top1").add({"y": scores}, labels)


def test_no_samples_have_no_metric(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def f(outputs, labels): return 1")
    for metric in (open_metric("top1"), open_metric("f", tmp_path / "m.py")):
        with pytest.raises(RetargetError, match="no samples"):
            metric.value()
    with pytest.raises(RetargetError, match="unknown metric 'top2'"):
        open_metric("top2")


def test_a_function_sees_the_whole_set(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import numpy as np\ndef negative_error(outputs, labels):\n    return -np.abs(outputs['y'] - labels).max()\n"
    )
    metric = open_metric("negative_error", tmp_path / "m.py")
    metric.add({"y": np.array([1.0, 2.0])}, np.array([1.0, 2.0]))
    metric.add({"y": np.array([3.0])}, np.array([5.0]))
    assert (metric.value(), metric.samples) == (-2.0, 3)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return float('nan')", "returned nan"),
        ("return 'good'", "returned 'good'"),
        ("return labels", r"returned array\(\[1\]\)"),
        ("return outputs['z']", r"m\.py:2: f\(\) raised KeyError: 'z'"),
    ],
)
def test_a_function_that_gives_no_number_is_named(tmp_path: Path, body: str, words: str) -> None:
    (tmp_path / "m.py").write_text(f"def f(outputs, labels):\n    {body}\n")
    metric = open_metric("f", tmp_path / "m.py")
    metric.add({"y": np.array([1.0])}, np.array([1]))
    with pytest.raises(RetargetError, match=words):
        metric.value()

"""Sets that differ by a mistake of preparation, and sets that differ by what is in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import datasets

from retarget.calibration.statistics import Statistics
from retarget.facts import DataFacts
from retarget.likeness import unlike
from retarget.spec import TensorSpec

Values = NDArray[np.float64]

SPEC = TensorSpec.parse("image=float32[N]")


def facts(values: Values) -> DataFacts:
    statistics = Statistics([SPEC])
    statistics.add({"image": values.astype(np.float32)})
    return DataFacts(digest=None, samples=len(values), inputs=statistics.result())


def warned(one: Values, two: Values) -> list[str]:
    there = list(unlike(("calibration", facts(one)), ("evaluation", facts(two))))
    back = list(unlike(("calibration", facts(two)), ("evaluation", facts(one))))
    assert bool(there) == bool(back)
    return there


def crops() -> Values:
    """150 pieces of each of two photographs in order, every fourth pixel of 128×128, 0 to 255."""
    rng = np.random.default_rng(0)
    found = []
    for image in datasets.load_sample_images().images:
        for _ in range(150):
            y, x = rng.integers(0, image.shape[0] - 128), rng.integers(0, image.shape[1] - 128)
            found.append(image[y : y + 128 : 4, x : x + 128 : 4])
    return np.array(found, np.float64)


DIGITS, CLASSES = (np.asarray(part) for part in datasets.load_digits(return_X_y=True))
CROPS = crops()

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

MISTAKES: dict[str, tuple[Callable[[Values], Values], Callable[[Values], Values]]] = {
    "bytes": (lambda x: x, lambda x: x / 255),
    "bytes by 128": (lambda x: x, lambda x: x / 127.5 - 1),
    "unit": (lambda x: x / 255, lambda x: (x / 255 - MEAN) / STD),
    "twice": (lambda x: (x / 255 - MEAN) / STD, lambda x: ((x / 255 - MEAN) / STD - MEAN) / STD),
    "half": (lambda x: x / 255, lambda x: x / 127.5 - 1),
    "half twice": (lambda x: x / 127.5 - 1, lambda x: 2 * (x / 127.5 - 1) - 1),
    "no scale": (lambda x: (x - MEAN) / STD, lambda x: (x / 255 - MEAN) / STD),
    "no mean": (lambda x: x, lambda x: x - np.array([104.0, 117.0, 123.0])),
    "scale twice": (lambda x: x / 255, lambda x: x / 255 / 255),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize(("one", "two"), [(slice(0, None, 2), slice(1, None, 2)), (slice(150), slice(150, None))])
def test_photographs_that_were_prepared_in_two_ways(mistake: str, one: slice, two: slice) -> None:
    """Whether they show the same things or not."""
    prepared, otherwise = MISTAKES[mistake]
    assert warned(prepared(CROPS[one]), otherwise(CROPS[two]))
    for way in (prepared, otherwise):
        assert not warned(way(CROPS[one]), way(CROPS[two]))


@pytest.mark.parametrize(("mean", "std"), [(4.884, 6.017), (0.0, 16.0), (8.0, 8.0)])
def test_digits_that_were_normalised_twice_or_not_at_all(mean: float, std: float) -> None:
    once = (DIGITS - mean) / std
    twice = (once - mean) / std
    for number in range(10):
        one = np.equal(CLASSES, number)
        rest = ~one
        for way in (DIGITS, once, twice):
            assert not warned(way[one], way[rest])
        assert warned(DIGITS[one], once[rest])
        assert warned(once[one], twice[rest])


def test_what_is_said() -> None:
    (sentence,) = warned(DIGITS, DIGITS / 16 / 16)
    assert sentence == (
        "calibration 'image' has mean 4.88 and std 6.02, evaluation 0.0191 and 0.0235: "
        "is one of them normalised twice, or not at all?"
    )


@pytest.mark.parametrize("measure", [np.mean, np.std])
def test_dark_and_flat_photographs_are_no_mistake(measure: Callable[..., Values]) -> None:
    order = np.argsort(measure(CROPS, axis=(1, 2, 3)))
    dark, bright = CROPS[order[:30]], CROPS[order[-30:]]
    for mistake in ("unit", "half", "twice"):
        way, _ = MISTAKES[mistake]
        assert not warned(way(dark), way(CROPS))
        assert not warned(way(bright), way(CROPS))


@pytest.mark.parametrize("load", [datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer])
def test_classes_of_a_table_are_no_mistake(load: Callable[..., tuple[Values, Values]]) -> None:
    table, classes = load(return_X_y=True)
    for way in (table, (table - table.mean(axis=0)) / table.std(axis=0)):
        for number in np.unique(classes):
            assert not warned(way[classes == number], way[classes != number])
            for column in range(table.shape[1]):
                one = way[:, column : column + 1]
                assert not warned(one[classes == number], one[classes != number])


def test_few_samples_and_constants_say_nothing() -> None:
    assert not warned(DIGITS[:7], DIGITS / 255)
    assert warned(DIGITS[:8], DIGITS / 255)
    assert not warned(np.ones((9, 100)), DIGITS)
    assert not warned(np.ones((9, 100)), np.zeros((9, 100)))


def test_inputs_are_matched_by_name() -> None:
    empty = DataFacts(digest=None, samples=100, inputs=())
    assert list(unlike(("calibration", facts(DIGITS)), ("evaluation", empty))) == []

from __future__ import annotations

from collections import Counter

import pytest

from retarget.targets import work


@pytest.mark.parametrize(
    ("counted", "macs"),
    [
        (work.convolution([8, 4, 3, 3], [2, 8, 6, 6]), 2 * 8 * 6 * 6 * 4 * 9),
        # Depthwise, as ONNX writes it and as OpenVINO does, with the groups first.
        (work.convolution([8, 1, 3, 3], [2, 8, 6, 6]), 2 * 8 * 6 * 6 * 9),
        (work.convolution([8, 1, 1, 3, 3], [2, 8, 6, 6]), 2 * 8 * 6 * 6 * 9),
        (work.transposed_convolution([8, 6, 2, 2], [2, 8, 5, 5]), 2 * 8 * 5 * 5 * 6 * 4),
        (work.contraction([5, 7], [5, 3]), 5 * 7 * 3),
        (work.contraction([7, 5], [5, 3]), 5 * 7 * 3),
        (work.contraction([2, 4, 5, 7], [2, 4, 5, 3]), 2 * 4 * 5 * 7 * 3),
        # A matrix against a batch of them.
        (work.contraction([5, 7], [2, 5, 3]), 2 * 5 * 7 * 3),
        (work.contraction([7], [3]), 7 * 3),
        (work.contraction([2, 5, 7], [2, 5]), 2 * 5 * 7),
        (work.recurrence([6, 2, 4], [[1, 20, 4], [1, 20, 5]]), 6 * 2 * (20 * 4 + 20 * 5)),
        (work.attention([2, 3, 5, 8], [2, 3, 7, 8], [2, 3, 5, 8]), 2 * (2 * 3 * 5 * 7 * 8)),
    ],
)
def test_multiply_accumulates(counted: int, macs: int) -> None:
    assert counted == macs


def test_the_share_is_of_all_work() -> None:
    assert work.low_precision_share({"float32": 30, "float16": 60, "int8": 10}, "fp16") == pytest.approx(0.7)
    assert work.low_precision_share({"float32": 30, "float64": 1}, "fp16") == 0
    assert work.low_precision_share({"bfloat16": 5}, "fp32") == 1
    assert work.low_precision_share({"float32": 0}, "fp32") is None
    assert work.low_precision_share({}, "int8") is None


def test_the_share_of_int8_is_that_of_integers() -> None:
    done = {"float32": 20, "bfloat16": 40, "uint8": 30, "int8": 10}
    assert work.low_precision_share(done, "int8") == pytest.approx(0.4)
    assert work.low_precision_share(done, "int8_weights") == pytest.approx(0.8)


def test_shares_are_named_the_most_first() -> None:
    assert (
        work.shares({"float32": 20, "uint8": 60, "bfloat16": 20, "int8": 0}) == "60% uint8, 20% float32, 20% bfloat16"
    )
    assert work.shares({"float32": 1, "uint8": 999}) == ">99% uint8, <1% float32"
    assert work.shares({"uint8": 5}) == "100% uint8"
    assert work.shares({}) == ""


def test_names() -> None:
    assert work.most(Counter({"float32": 3, "float16": 9})) == "float16"
    assert work.most(Counter({"float32": 3, "float16": 3})) == "float16"
    assert work.most(Counter()) == "none"
    assert work.most(Counter({"float32": 0})) == "none"
    assert work.joined(["float32", "int64", "float32"]) == "float32, int64"
    assert work.joined([]) == "none"

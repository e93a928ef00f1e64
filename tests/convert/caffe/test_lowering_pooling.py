"""Pooling against a transcription of Caffe's own loops, over every small kernel, stride and padding."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import caffe_cases
import caffe_files
import caffe_lowered
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from retarget.compare import snr_db
from retarget.errors import RetargetError, Unsupported

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pool:
    """Square in kernel, stride and padding; the input is higher by one than wide."""

    method: str
    size: int
    kernel: int
    stride: int
    pad: int
    ceil: bool

    @property
    def parameters(self) -> str:
        text = f"pool: {self.method} kernel_size: {self.kernel} stride: {self.stride} pad: {self.pad}"
        return f"pooling_param {{ {text} round_mode: {'CEIL' if self.ceil else 'FLOOR'} }}"

    def count(self, size: int) -> int:
        """``PoolingLayer::Reshape``; 0 where Caffe's check fails, or less where the input is too small."""
        rest = (size + 2 * self.pad - self.kernel) / self.stride
        number = (math.ceil(rest) if self.ceil else math.floor(rest)) + 1
        if self.pad:
            if (number - 1) * self.stride >= size + self.pad:
                number -= 1
            if (number - 1) * self.stride >= size + self.pad:
                return 0
        return number

    @property
    def averages_nothing(self) -> bool:
        """Without padding a last window may begin behind the input: Caffe divides by 0 there, or by less."""
        sides = (self.size, self.size - 1)
        behind = any((self.count(side) - 1) * self.stride >= side for side in sides)
        return self.method == "AVE" and not self.pad and behind

    def run(self, data: Floats) -> Floats:
        """``PoolingLayer::Forward_cpu``."""
        height, width = data.shape[2:]
        top = np.zeros((*data.shape[:2], self.count(height), self.count(width)), np.float32)
        for row, column in itertools.product(range(top.shape[2]), range(top.shape[3])):
            starts = row * self.stride - self.pad, column * self.stride - self.pad
            ends = min(starts[0] + self.kernel, height + self.pad), min(starts[1] + self.kernel, width + self.pad)
            divisor = (ends[0] - starts[0]) * (ends[1] - starts[1])
            window = data[:, :, max(starts[0], 0) : min(ends[0], height), max(starts[1], 0) : min(ends[1], width)]
            if self.method == "AVE":
                top[:, :, row, column] = window.sum((2, 3)) / divisor
            else:
                top[:, :, row, column] = window.max((2, 3), initial=np.finfo(np.float32).min)
        return top


ALL = [
    Pool(method, size, kernel, stride, pad, ceil)
    for method, size, kernel, stride, ceil in itertools.product(
        ("MAX", "AVE"), range(3, 12), range(1, 6), range(1, 6), (True, False)
    )
    for pad in range(kernel)
]
SAMPLE = random.Random(4).sample(ALL, 60)
RARE = [
    Pool("MAX", 8, 1, 2, 0, ceil=True),  # a last window that holds nothing
    Pool("MAX", 7, 2, 3, 1, ceil=True),  # a last window that begins in the padding
    Pool("AVE", 7, 3, 3, 1, ceil=True),  # windows that reach beyond the padding
    Pool("AVE", 9, 2, 4, 0, ceil=True),
]


def lowered(pool: Pool, shape: tuple[int | str, ...]) -> ir.Model:
    prototxt = caffe_files.inputs(data=(1, 2, pool.size, pool.size - 1))
    prototxt += caffe_cases.layer("Pooling", pool.parameters)
    return caffe_lowered.lowered(prototxt, shapes={"data": shape})


def check(pool: Pool) -> None:
    """The lowering is what Caffe's loops say; what Caffe refuses, or divides by nothing for, is refused."""
    data = np.random.default_rng(0).normal(size=(1, 2, pool.size, pool.size - 1)).astype(np.float32)
    if min(pool.count(pool.size), pool.count(pool.size - 1)) < 1:
        with pytest.raises(RetargetError, match=r"begins behind the input|too small for the net"):
            lowered(pool, data.shape)
        return
    if pool.averages_nothing:
        with pytest.raises(Unsupported, match="average of nothing"):
            lowered(pool, data.shape)
        return
    expected = pool.run(data)
    model = lowered(pool, data.shape)
    (found,) = caffe_lowered.execute(model, {"data": data})
    assert tuple(model.graph.outputs[0].shape or ()) == found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pool", [*RARE, *SAMPLE], ids=str)
def test_windows_and_divisors_are_caffes(pool: Pool) -> None:
    check(pool)


@pytest.mark.stress
def test_windows_and_divisors_are_caffes_everywhere() -> None:
    for pool in ALL:
        check(pool)


@pytest.mark.parametrize("pool", SAMPLE[:30], ids=str)
def test_an_open_size_is_caffes_at_any_size_or_refused(pool: Pool) -> None:
    try:
        model = lowered(pool, (1, 2, "H", "W"))
    except Unsupported:
        refused = True
    else:
        refused = False
    # ONNX's own rounding up is not Caffe's there.
    differs = pool.stride > pool.kernel and not pool.pad
    assert refused == (pool.ceil and pool.stride > 1 and (differs or (pool.method == "AVE" and pool.pad > 0)))
    if refused:
        return
    for size in (pool.size + 3, pool.size + 4, pool.size + 7):
        data = np.random.default_rng(size).normal(size=(1, 2, size, size - 1)).astype(np.float32)
        (found,) = caffe_lowered.execute(model, {"data": data})
        assert snr_db(pool.run(data), found) > 120, size


def test_the_second_top_is_the_place_in_the_plane() -> None:
    case = caffe_cases.CASES["pooling_mask"]
    feeds = case.feeds()
    top, mask = caffe_lowered.execute(caffe_lowered.lowered(case.prototxt), feeds)
    planes = feeds["data"].reshape(*feeds["data"].shape[:2], -1)
    picked = np.take_along_axis(planes, mask.reshape(*mask.shape[:2], -1).astype(int), axis=2)
    np.testing.assert_array_equal(picked.reshape(top.shape), top)


def test_stochastic_pooling_weights_by_the_elements_themselves() -> None:
    """As in the test phase: sum of squares through sum; nothing where that is not positive."""
    prototxt = caffe_files.inputs(data=(1, 1, 2, 7))
    parameters = "pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }"
    data = np.array([[[[1, 2, 0, 0, 3, 0, 5], [0, 1, 0, 0, 0, 1, 5]]]], np.float32)
    (found,) = caffe_lowered.execute(
        caffe_lowered.lowered(prototxt + caffe_cases.layer("Pooling", parameters)), {"data": data}
    )
    np.testing.assert_allclose(found, np.array([[[[6 / 4, 0, 10 / 4, 5]]]], np.float32))

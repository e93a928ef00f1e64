"""What the tests write is what Caffe would have written: OpenCV's reader says so."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from caffe_files import Storage, Version, caffemodel, inputs, layer

CONV = "convolution_param { num_output: 4 kernel_size: 3 }"


@pytest.mark.parametrize(
    ("version", "storage"),
    [(2, "float"), (2, "unpacked"), (2, "float16"), (1, "float")],  # it has no weights of V0
)
def test_opencv_reads_what_is_written(version: Version, storage: Storage, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float16).astype(np.float32)
    bias = rng.standard_normal(4).astype(np.float16).astype(np.float32)
    image = rng.standard_normal((1, 3, 5, 6)).astype(np.float32)
    text, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    text.write_text(inputs(data=(1, 3, 5, 6)) + layer("conv", "Convolution", "data", "conv", CONV))
    weights.write_bytes(caffemodel([("conv", "Convolution", [weight, bias])], version=version, storage=storage))

    net = cv2.dnn.readNetFromCaffe(str(text), str(weights))
    net.setInput(image)
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]
    np.testing.assert_allclose(net.forward(), expected, rtol=1e-4, atol=1e-4)

"""Whole nets, with OpenCV's reader and the reference in numpy as judges."""

from __future__ import annotations

from collections import Counter
from functools import cache

import caffe_lowered
import caffe_nets
import numpy as np
import onnx_ir as ir
import pytest

from retarget.compare import snr_db
from retarget.convert.caffe.lower import lower
from retarget.convert.caffe.reference.evaluate import evaluate
from retarget.passes import presets

PARITY = 80
"""dB."""
DETECTING = ("mobilenet_ssd", "vgg_ssd")


@cache
def net(name: str) -> caffe_nets.Writer:
    return caffe_nets.NETS[name]()


def rows(detections: np.ndarray) -> np.ndarray:
    """Detections in an order of their own: by image, label and score."""
    found = detections.reshape(-1, 7)
    return found[np.lexsort((-found[:, 2].round(4), found[:, 1], found[:, 0]))]


@pytest.mark.parametrize("name", caffe_nets.NETS)
def test_is_opencv_and_the_reference(name: str) -> None:
    writer = net(name)
    feeds = writer.feeds()
    model = caffe_lowered.lowered(writer.prototxt, writer.saved)
    (found,) = caffe_lowered.execute(model, feeds)
    (output,) = (value.name or "" for value in model.graph.outputs)
    (opencv,) = caffe_lowered.opencv(writer.prototxt, writer.saved, feeds, output)
    reference = evaluate(caffe_lowered.read(writer.prototxt, writer.saved), feeds)[output]
    for expected in (opencv, reference):
        assert expected.shape == found.shape
        if name in DETECTING:
            assert len(rows(found)) > 20
            np.testing.assert_allclose(rows(found), rows(expected), atol=1e-4)
        else:
            assert np.std(found) > 1e-3
            assert snr_db(expected, found) >= PARITY


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("alexnet", {"Conv": 5, "Relu": 7, "LRN": 2, "MaxPool": 3, "Gemm": 3, "Reshape": 1, "Softmax": 1}),
        (
            "googlenet",
            {"Conv": 57, "Relu": 57, "LRN": 2, "MaxPool": 13, "Concat": 9}
            | {"GlobalAveragePool": 1, "Reshape": 1, "Gemm": 1, "Softmax": 1},
        ),
        (
            "resnet50",
            {"Conv": 53, "Relu": 49, "Add": 16, "MaxPool": 1}
            | {"GlobalAveragePool": 1, "Reshape": 1, "Gemm": 1, "Softmax": 1},
        ),
    ],
)
def test_the_default_preset_leaves_the_layers_that_compute(name: str, nodes: dict[str, int]) -> None:
    """Each BatchNorm and Scale is in its convolution; Dropout is gone."""
    writer = net(name)
    model = caffe_lowered.lowered(writer.prototxt, writer.saved)
    for _, optimization in presets.build("default", {}):
        optimization(model)
    assert Counter(node.op_type for node in model.graph) == nodes


def test_weights_are_not_copied() -> None:
    """A net of 500 MB must not need twice that."""
    writer = net("lenet")
    read = caffe_lowered.read(writer.prototxt, writer.saved)
    model = lower(read)
    (dense,) = (node for node in model.graph if node.name == "ip1")
    weight = dense.inputs[1]
    assert isinstance(weight, ir.Value)
    assert weight.const_value is not None
    (blob,) = (layer.blobs[0] for layer in read.layers if layer.name == "ip1")
    assert np.shares_memory(weight.const_value.numpy(), blob)

"""Nets of V0 and V1 as nets of today."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from caffe_files import V0_TYPES, V1_TYPES, Version, write

from retarget.convert.caffe import network, text, upgrade
from retarget.convert.caffe.net import Message
from retarget.errors import RetargetError

RNG = np.random.default_rng(0)

V2 = """
name: "net"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 4 bias_term: true pad: 2 kernel_size: 5 group: 1 stride: 1 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1" lrn_param { local_size: 3 alpha: 0.5 beta: 0.75 } }
layer { name: "cat" type: "Concat" bottom: "pool1" bottom: "norm1" top: "cat" concat_param { concat_dim: 1 } }
layer { name: "drop" type: "Dropout" bottom: "cat" top: "cat" dropout_param { dropout_ratio: 0.4 } }
layer { name: "fc" type: "InnerProduct" bottom: "cat" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""

V1 = """
name: "net"
input: "data" input_dim: 1 input_dim: 3 input_dim: 12 input_dim: 12
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1" blobs_lr: 1 blobs_lr: 2 weight_decay: 1
         convolution_param { num_output: 4 bias_term: true pad: 2 kernel_size: 5 group: 1 stride: 1 } }
layers { name: "relu1" type: RELU bottom: "conv1" top: "conv1" }
layers { name: "pool1" type: POOLING bottom: "conv1" top: "pool1"
         pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layers { name: "norm1" type: 15 bottom: "pool1" top: "norm1" lrn_param { local_size: 3 alpha: 0.5 beta: 0.75 } }
layers { name: "cat" type: CONCAT bottom: "pool1" bottom: "norm1" top: "cat" concat_param { concat_dim: 1 } }
layers { name: "drop" type: DROPOUT bottom: "cat" top: "cat" dropout_param { dropout_ratio: 0.4 } }
layers { name: "fc" type: INNER_PRODUCT bottom: "cat" top: "fc" inner_product_param { num_output: 5 } }
layers { name: "prob" type: SOFTMAX bottom: "fc" top: "prob" }
"""

V0 = """
name: "net"
input: "data" input_dim: 1 input_dim: 3 input_dim: 12 input_dim: 12
layers { layer { name: "pad1" type: "padding" pad: 2 } bottom: "data" top: "pad1" }
layers { layer { name: "conv1" type: "conv" num_output: 4 biasterm: true kernelsize: 5 group: 1 stride: 1
                 weight_filler { type: "gaussian" std: 0.01 } blobs_lr: 1. } bottom: "pad1" top: "conv1" }
layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
layers < layer < name: "pool1" type: "pool" pool: MAX kernelsize: 3 stride: 2 > bottom: "conv1" top: "pool1" >
layers { layer { name: "norm1" type: "lrn" local_size: 3 alpha: 0.5 beta: 0.75 } bottom: "pool1" top: "norm1" }
layers { layer { name: "cat" type: "concat" concat_dim: 1 } bottom: "pool1" bottom: "norm1" top: "cat" }
layers { layer { name: "drop" type: "dropout" dropout_ratio: 0.4 } bottom: "cat" top: "cat" }
layers { layer { name: "fc" type: "innerproduct" num_output: 5 } bottom: "cat" top: "fc" }
layers { layer { name: "prob" type: "softmax" } bottom: "fc" top: "prob" }
"""

WEIGHTS = [
    (
        "conv1",
        "Convolution",
        [RNG.standard_normal((4, 3, 5, 5)).astype("f4") / 5, RNG.standard_normal(4).astype("f4")],
    ),
    ("fc", "InnerProduct", [RNG.standard_normal((5, 8 * 6 * 6)).astype("f4") / 9, np.ones(5, "f4")]),
]


def parse(written: str) -> Message:
    return text.parse(written.encode(), "net.prototxt")


def plain(message: Message) -> dict[str, object]:
    """The fields of ``message`` without their lines."""
    return {
        name: [plain(value) if isinstance(value, Message) else value for value in values]
        for name, values in message.fields.items()
    }


@pytest.mark.parametrize(("written", "version"), [(V0, "V0"), (V1, "V1"), (V2, "V2")])
def test_all_versions_are_the_same_net(written: str, version: str, tmp_path: Path) -> None:
    assert upgrade.version(parse(written)) == version
    number: Version = {"V0": 0, "V1": 1, "V2": 2}[version]  # type: ignore[assignment]  # a key of three
    today = network.read(*write(tmp_path, V2, WEIGHTS, stem="today"))
    net = network.read(*write(tmp_path, written, WEIGHTS, stem="old", version=number))
    assert (net.name, net.inputs, net.outputs, net.notes) == ("net", {"data": (1, 3, 12, 12)}, ("prob",), ())
    assert [layer.name for layer in net.layers] == [layer.name for layer in today.layers]
    for layer, expected in zip(net.layers, today.layers, strict=True):
        assert (layer.type, layer.bottoms, layer.tops) == (expected.type, expected.bottoms, expected.tops)
        parameters = {name: value for name, value in plain(layer.message).items() if name.endswith("_param")}
        for each in parameters.values():
            assert isinstance(each, list)
            each[0].pop("weight_filler", None)
        assert parameters == {name: value for name, value in plain(expected.message).items() if name.endswith("_param")}
        assert len(layer.blobs) == len(expected.blobs)
        for blob, other in zip(layer.blobs, expected.blobs, strict=True):
            np.testing.assert_array_equal(blob.reshape(other.shape), other)


@pytest.mark.parametrize("written", [V0, V1])
def test_opencv_upgrades_to_the_same_net(written: str, tmp_path: Path) -> None:
    """Its upgrade is Caffe's own: what it makes of an old net equals what it makes of ours in today's format."""
    image = RNG.standard_normal((1, 3, 12, 12)).astype("f4")

    def run(content: str, stem: str) -> np.ndarray:
        paths = write(tmp_path, content, WEIGHTS, stem=stem)
        net = cv2.dnn.readNetFromCaffe(*map(str, paths))
        net.setInput(image)
        return np.asarray(net.forward())

    layers = "".join(f"layer {shown(layer)}\n" for layer in upgrade.upgrade(parse(written)))
    np.testing.assert_array_equal(run(layers, "upgraded"), run(written, "old"))


def shown(message: Message) -> str:
    """``message`` as text."""
    quoted = {"name", "type", "bottom", "top"}
    fields = [
        f"{name} {shown(value)}"
        if isinstance(value, Message)
        else f'{name}: "{value}"'
        if name in quoted
        else f"{name}: {str(value).lower() if isinstance(value, bool) else value}"
        for name, values in message.fields.items()
        for value in values
    ]
    return "{ " + " ".join(fields) + " }"


def test_types_of_v1_and_v0_are_those_of_caffe() -> None:
    assert {name: number for number, name in upgrade.V1_TYPES.values()} == V1_TYPES
    assert {name: upgrade.V0_TYPES[old].type for name, old in V0_TYPES.items()} == {name: name for name in V0_TYPES}


def test_every_field_of_v0_finds_its_place() -> None:
    written = """
    layers { layer { name: "d" type: "data" source: "db" batchsize: 4 scale: 0.5 meanfile: "m" cropsize: 27 mirror: true
                     rand_skip: 3 } top: "data" top: "label" }
    layers { layer { name: "i" type: "images" source: "list" batchsize: 2 shuffle_images: true new_height: 8
                     new_width: 9 } top: "image" }
    layers { layer { name: "w" type: "window_data" det_fg_threshold: 0.6 det_bg_threshold: 0.4 det_fg_fraction: 0.3
                     det_context_pad: 16 det_crop_mode: "square" batchsize: 8 } top: "window" }
    layers { layer { name: "l" type: "lrn" k: 2 } bottom: "data" top: "l" }
    layers { layer { name: "o" type: "hdf5_output" hdf5_output_param { file_name: "f" } } bottom: "l" }
    layers { layer { name: "p" type: "pool" pad: 1 kernelsize: 2 num_output: 7 } bottom: "l" top: "p" }
    """
    data, images, window, lrn, output, pool = (plain(layer) for layer in upgrade.upgrade(parse(written)))
    assert data["data_param"] == [{"source": ["db"], "batch_size": [4], "rand_skip": [3]}]
    assert data["transform_param"] == [{"scale": [0.5], "mean_file": ["m"], "crop_size": [27], "mirror": [True]}]
    assert images["image_data_param"] == [
        {"source": ["list"], "batch_size": [2], "shuffle": [True], "new_height": [8], "new_width": [9]}
    ]
    assert window["window_data_param"] == [
        {
            "batch_size": [8],
            "fg_threshold": [0.6],
            "bg_threshold": [0.4],
            "fg_fraction": [0.3],
            "context_pad": [16],
            "crop_mode": ["square"],
        }
    ]
    assert lrn["lrn_param"] == [{"k": [2]}]
    assert output["hdf5_output_param"] == [{"file_name": ["f"]}]
    assert pool["pooling_param"] == [{"pad": [1], "kernel_size": [2]}]  # what is not a pooling's is dropped


def test_data_parameters_of_v1_become_those_of_the_transform() -> None:
    written = """layers { name: "d" type: IMAGE_DATA top: "data" transform_param { mirror: false crop_size: 1 }
    image_data_param { source: "x" crop_size: 5 scale: 0.5 } include { phase: TEST } param: "a" param: "b" }"""
    (layer,) = upgrade.upgrade(parse(written))
    assert plain(layer)["transform_param"] == [{"mirror": [False], "crop_size": [5], "scale": [0.5]}]
    assert plain(layer)["include"] == [{"phase": ["TEST"]}]
    assert plain(layer)["param"] == [{"name": ["a"]}, {"name": ["b"]}]


def test_inputs_in_fields_of_the_net() -> None:
    several = 'input: "a" input: "b" input_shape { dim: 1 dim: 2 } input_shape { dim: [3, 4, 5] }'
    assert [plain(layer)["input_param"] for layer in upgrade.upgrade(parse(several))] == [
        [{"shape": [{"dim": [1, 2]}]}],
        [{"shape": [{"dim": [3, 4, 5]}]}],
    ]
    assert plain(upgrade.upgrade(parse('input: "a"'))[0])["input_param"] == []


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            'layer { name: "a" }\nlayers { name: "b" type: RELU }',
            "net.prototxt:1: `layer` of today beside",
        ),
        (
            '\nlayers { name: "b" type: PRELU }',
            "net.prototxt:2: layer 'b' has the type 'PRELU', which V1",
        ),
        ('layers { name: "b" type: 99 }', "net.prototxt:1: layer 'b' has the type '99', which V1"),
        ('layers {\n layer { name: "b" type: "c" } }', "net.prototxt:2: layer 'b' has the type 'c', which V0 does not"),
        ('input: "a" input_dim: 1', "net.prototxt:1: 1 times `input_dim` for 1 `input`"),
        ('input: "a" input: "b" input_shape { dim: 1 }', "net.prototxt:1: 1 times `input_shape` for 2 `input`"),
        (
            """layers { layer { type: "padding" pad: 1 } bottom: "a" top: "b" }
            layers { layer { name: "r" type: "relu" } bottom: "b" top: "r" }""",
            "net.prototxt:2: layer 'r' (relu) takes what a padding layer makes",
        ),
        (
            'layers { layer { name: "p" type: "padding" } top: "b" }',
            "net.prototxt:1: layer 'p' (padding) must",
        ),
    ],
)
def test_what_caffe_would_not_upgrade_is_refused(written: str, message: str) -> None:
    with pytest.raises(RetargetError) as caught:
        upgrade.upgrade(parse(written))
    assert caught.value.message.startswith(message)
    assert caught.value.hint

"""A net that was written for training, as it is deployed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from caffe_files import Saved, blob, layer, write

from retarget.convert.caffe import network
from retarget.convert.caffe.net import Net
from retarget.errors import RetargetError

CONV: Saved = ("conv", "Convolution", [np.ones((4, 3, 3, 3), np.float32)])
FC: Saved = ("fc", "InnerProduct", [np.ones((5, 4 * 6 * 6), np.float32), np.ones(5, np.float32)])
BODY = layer("conv", "Convolution", "data", "conv", "convolution_param { num_output: 4 bias_term: false }") + layer(
    "fc", "InnerProduct", "conv", "fc", "inner_product_param { num_output: 5 }"
)
CONV_OF_ONE = "convolution_param { bias_term: false } inner_product_param { bias_term: false }"
CROP = "transform_param { crop_size: 8 mirror: true mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.5 }"


def data(kind: str = "Data", tops: Sequence[str] = ("data", "label"), parameters: str = CROP, phase: str = "") -> str:
    rule = f"include {{ phase: {phase} }}" if phase else ""
    return layer("source", kind, (), tops, f"{parameters} {rule}")


def loss(kind: str = "SoftmaxWithLoss", bottoms: Sequence[str] = ("fc", "label"), parameters: str = "") -> str:
    return layer("loss", kind, bottoms, "loss", parameters)


def reading(folder: Path, prototxt: str, saved: Sequence[Saved] = (CONV, FC), **options: object) -> Net:
    return network.read(*write(folder, prototxt, saved), **options)  # type: ignore[arg-type]  # those of read


def types(net: Net) -> list[str]:
    return [each.type for each in net.layers]


def test_a_train_val_net(tmp_path: Path) -> None:
    written = (
        data(parameters="transform_param { crop_size: 9 }", phase="TRAIN")
        + data(phase="TEST")
        + BODY
        + layer("accuracy", "Accuracy", ["fc", "label"], "accuracy", "include { phase: TEST }")
        + loss(parameters="softmax_param { axis: 1 }")
    )
    net = reading(tmp_path, written)
    assert net.inputs == {"data": (1, 3, 8, 8)}
    assert net.outputs == ("prob",)
    assert types(net) == ["Convolution", "InnerProduct", "Softmax"]
    softmax = net.layers[-1]
    assert (softmax.name, softmax.bottoms, softmax.tops) == ("prob", ("fc",), ("prob",))
    assert softmax.message.message("softmax_param").integer("axis") == 1
    assert softmax.place == "net.prototxt:37: layer 'prob' (Softmax)"
    assert net.transform is not None
    assert net.transform.integer("crop_size") == 8
    assert net.notes == (
        "'data' of data layer 'source' (net.prototxt:8) became an input of shape [1, 3, 8, 8]",
        "'loss' (SoftmaxWithLoss) became a Softmax that makes 'prob'",
        "left out, as only training needs them: 'accuracy' (Accuracy)",
        "the net was trained on prepared pixels: `normalize: {mean: [104.0, 117.0, 123.0], std: 2}` builds that in",
    )


def test_a_net_to_deploy_stays_as_it_is(tmp_path: Path) -> None:
    written = layer("data", "Input", (), "data", "input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } }") + BODY
    net = reading(tmp_path, written)
    assert (net.inputs, net.outputs, net.notes, net.transform) == ({"data": (2, 3, 8, 8)}, ("fc",), (), None)


def test_the_data_of_training_says_the_input_where_no_other_does(tmp_path: Path) -> None:
    net = reading(tmp_path, data(phase="TRAIN") + BODY + loss(parameters="include { phase: TRAIN }"))
    assert (net.inputs, net.outputs) == ({"data": (1, 3, 8, 8)}, ("fc",))
    assert net.transform is not None


# ---- losses


@pytest.mark.parametrize(
    ("judge", "expected", "outputs"),
    [
        (loss("SigmoidCrossEntropyLoss"), ["Sigmoid"], ("prob",)),
        (loss("EuclideanLoss"), [], ("fc",)),
        (loss("EuclideanLoss", ["label", "fc"]), [], ("fc",)),
        (loss("HingeLoss"), [], ("fc",)),
        (loss("InfogainLoss"), [], ("fc",)),
        (loss("MyOwnLoss"), [], ("fc",)),
        (layer("acc", "Accuracy", ["fc", "label"]), [], ("fc",)),
        (layer("o", "HDF5Output", ["fc", "label"], ()), [], ("fc",)),
        (layer("prob", "Softmax", "fc") + loss(), ["Softmax"], ("prob",)),
        (loss() + layer("x", "Power", "loss"), ["Softmax"], ("prob",)),
        (layer("onehot", "Reshape", "label") + loss("EuclideanLoss", ["fc", "onehot"]), [], ("fc",)),
        (layer("prob", "ReLU", "fc", "prob_2") + loss(), ["ReLU", "Softmax"], ("prob_2", "prob_3")),
        (layer("loss", "SoftmaxWithLoss", ["fc", "label"], ["loss", "p"]), ["Softmax"], ("p",)),
    ],
)
def test_losses(judge: str, expected: list[str], outputs: tuple[str, ...], tmp_path: Path) -> None:
    net = reading(tmp_path, data() + BODY + judge)
    assert types(net) == ["Convolution", "InnerProduct", *expected]
    assert net.outputs == outputs
    assert list(net.inputs) == ["data"]


def test_several_tasks_keep_their_predictions(tmp_path: Path) -> None:
    written = (
        data()
        + layer("slice", "Slice", "label", ["label_a", "label_b"])
        + BODY
        + layer("more", "InnerProduct", "fc", "more")
        + layer("a", "SoftmaxWithLoss", ["fc", "label_a"], "a", "loss_weight: 0.3")
        + layer("b", "SoftmaxWithLoss", ["more", "label_b"], "b")
    )
    net = reading(tmp_path, written, [CONV, FC, ("more", "InnerProduct", FC[2])])
    assert net.outputs == ("fc_prob", "more_prob")


def test_heads_that_only_help_to_train_are_left_out(tmp_path: Path) -> None:
    written = (
        data()
        + BODY
        + layer("aux", "InnerProduct", "conv", "aux")
        + layer("aux_relu", "ReLU", "aux", "aux")
        + layer("loss1", "SoftmaxWithLoss", ["aux", "label"], "loss1", "loss_weight: 0.3")
        + layer("acc1", "Accuracy", ["aux", "label"], "acc1")
        + loss()
    )
    net = reading(tmp_path, written)  # and the weights of the head are not missed
    assert types(net) == ["Convolution", "InnerProduct", "Softmax"]
    assert net.outputs == ("prob",)
    note = "the head of 'loss1' (SoftmaxWithLoss) was left out: it weighs less than another of the same labels"
    assert note in net.notes


def test_what_is_silenced_is_no_output(tmp_path: Path) -> None:
    written = (
        data()
        + BODY
        + layer("split", "Split", "fc", ["a", "b"])
        + layer("waste", "InnerProduct", "b", "c")
        + layer("silence", "Silence", ["c", "label"], ())
    )
    net = reading(tmp_path, written)
    assert net.outputs == ("a",)
    assert types(net) == ["Convolution", "InnerProduct", "Split"]


# ---- shapes of inputs


@pytest.mark.parametrize(
    ("kind", "parameters", "shape"),
    [
        ("Data", "transform_param { crop_size: 8 }", (1, 3, 8, 8)),
        ("AnnotatedData", "transform_param { resize_param { height: 7 width: 9 } }", (1, 3, 7, 9)),
        ("Data", "transform_param { crop_h: 5 crop_w: 6 }", (1, 3, 5, 6)),
        ("ImageData", "image_data_param { new_height: 6 new_width: 7 is_color: false }", (1, 3, 6, 7)),
        ("MemoryData", "memory_data_param { batch_size: 8 channels: 3 height: 5 width: 4 }", (1, 3, 5, 4)),
        ("DummyData", "dummy_data_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } }", (2, 3, 4, 4)),
        ("DummyData", "dummy_data_param { num: 2 num: 2 channels: 3 channels: 1 height: 4 width: 5 }", (2, 3, 4, 5)),
        ("Python", "python_param { module: 'my' layer: 'L' } transform_param { crop_size: 8 }", (1, 3, 8, 8)),
    ],
)
def test_the_shape_of_an_input(kind: str, parameters: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    assert reading(tmp_path, data(kind, parameters=parameters) + BODY + loss()).inputs == {"data": shape}


@pytest.mark.parametrize(
    ("first", "saved", "channels"),
    [
        (layer("conv", "Convolution", "data", "y", "convolution_param { bias_term: false group: 2 }"), CONV, 6),
        (
            layer("conv", "ConvolutionDepthwise", "data", "y", "convolution_param { bias_term: false }"),
            ("conv", "ConvolutionDepthwise", [np.ones((5, 1, 3, 3), np.float32)]),
            5,
        ),
        (layer("p", "PReLU", "data", "y"), ("p", "PReLU", [np.ones(7, np.float32)]), 7),
        (
            layer("fc", "InnerProduct", "data", "y", "inner_product_param { bias_term: false num_output: 2 }"),
            ("fc", "InnerProduct", [np.ones((2, 192), np.float32)]),
            3,
        ),
        (
            layer(
                "fc",
                "InnerProduct",
                "data",
                "y",
                "inner_product_param { bias_term: false num_output: 2 transpose: true }",
            ),
            ("fc", "InnerProduct", [np.ones((64, 2), np.float32)]),
            1,
        ),
        (
            layer("a", "Power", "data")
            + layer("conv", "Convolution", "a", "y", "convolution_param { bias_term: false }"),
            CONV,
            3,
        ),
    ],
)
def test_weights_say_how_many_channels_there_are(first: str, saved: Saved, channels: int, tmp_path: Path) -> None:
    written = data(parameters="transform_param { crop_size: 8 }") + first + loss("SoftmaxWithLoss", ["y", "label"])
    assert reading(tmp_path, written, [saved]).inputs == {"data": (1, channels, 8, 8)}


def test_what_the_file_cannot_say_is_asked_for(tmp_path: Path) -> None:
    written = data(parameters="data_param { batch_size: 4 }") + BODY + loss()
    with pytest.raises(RetargetError) as caught:
        reading(tmp_path, written)
    assert caught.value.message == (
        "net.prototxt:1: layer 'source' (Data): the size of 'data' stands in its data, not in the file; "
        "by the weights it has 3 channels"
    )
    assert caught.value.hint is not None
    assert "--input 'data=float32[1,C,H,W]'" in caught.value.hint
    assert reading(tmp_path, written, shapes={"data": (1, 3, 8, 8)}).inputs == {"data": (1, 3, 8, 8)}


@pytest.mark.parametrize("parameters", ["memory_data_param { channels: 3 }", "memory_data_param { channels: -1 }"])
def test_absurd_shapes_are_refused(parameters: str, tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match="'data' has the shape"):
        reading(tmp_path, data("MemoryData", parameters=parameters) + BODY)


# ---- which blobs of a data layer are inputs


def test_all_blobs_that_reach_weights_are_inputs(tmp_path: Path) -> None:
    written = (
        data("HDF5Data", ["clip", "target", "data"], "")
        + BODY
        + layer("lstm", "LSTM", ["fc", "clip"], "lstm", "recurrent_param { num_output: 2 }")
        + loss("EuclideanLoss", ["lstm", "target"])
    )
    lstm: Saved = ("lstm", "LSTM", [np.ones((8, 5), "f4"), np.ones(8, "f4"), np.ones((8, 2), "f4")])
    net = reading(tmp_path, written, [CONV, FC, lstm], shapes={"clip": (1, 1), "data": (1, 3, 8, 8)})
    assert net.inputs == {"clip": (1, 1), "data": (1, 3, 8, 8)}
    assert net.outputs == ("lstm",)


def test_a_blob_that_meets_others_is_an_input_unless_it_is_a_label(tmp_path: Path) -> None:
    shapes = {"data": (1, 3, 8, 8), "mask": (1, 5)}
    for name, inputs, outputs in (("mask", ["data", "mask"], ("x",)), ("label_mask", ["data"], ("fc",))):
        written = data("HDF5Data", ["data", name], "") + BODY + layer("x", "Eltwise", ["fc", name])
        net = reading(tmp_path, written, shapes={each: shapes[each] for each in inputs})
        assert (list(net.inputs), net.outputs) == (inputs, outputs)


def test_what_is_made_of_a_target_alone_is_one(tmp_path: Path) -> None:
    written = (
        data("HDF5Data", ["data", "target"], "")
        + BODY
        + layer("x", "Power", "target")
        + layer("x1", "Power", "x")
        + layer("x2", "Power", "x1")
        + layer("sum", "Eltwise", ["target", "x2"])
        + loss("EuclideanLoss", ["fc", "sum"])
    )
    net = reading(tmp_path, written, shapes={"data": (1, 3, 8, 8)})
    assert (list(net.inputs), net.outputs) == (["data"], ("fc",))


@pytest.mark.parametrize("blobs", [[np.float32(1).reshape(())], [np.ones(3, np.float32)]])
def test_odd_weights_say_nothing_of_channels(blobs: list[np.ndarray], tmp_path: Path) -> None:
    for kind in ("Convolution", "ConvolutionDepthwise", "InnerProduct"):
        written = data(parameters="transform_param { crop_size: 8 }") + layer("c", kind, "data", "c", CONV_OF_ONE)
        with pytest.raises(RetargetError, match="neither the file nor the weights say how many channels"):
            reading(tmp_path, written, [("c", kind, blobs)])


def test_a_net_without_weights_has_its_first_blob_as_input(tmp_path: Path) -> None:
    written = data(parameters="transform_param { crop_size: 8 force_gray: true }") + layer("pool", "Pooling", "data")
    text, _ = write(tmp_path, written, None)
    net = network.read(text, None)
    assert (net.inputs, net.outputs) == ({"data": (1, 1, 8, 8)}, ("pool",))


@pytest.mark.parametrize(
    ("transform", "notes"),
    [
        ("scale: 0.00390625", ["`normalize: {std: 256}`"]),
        ("mean_value: 127.5 scale: 0.007843", ["`normalize: {mean: 127.5, std: 127.502231}`"]),
        ("mean_file: 'mean.binaryproto'", ["pixels less mean.binaryproto"]),
        ("mean_file: 'm' scale: 2", ["pixels less m", "`normalize: {std: 0.5}`"]),
        ("scale: 0", []),
        ("mirror: true", []),
    ],
)
def test_how_pixels_were_prepared_is_noted(transform: str, notes: list[str], tmp_path: Path) -> None:
    written = data(parameters=f"transform_param {{ crop_size: 8 {transform} }}") + BODY + loss()
    found = [note for note in reading(tmp_path, written).notes if "trained on" in note]
    assert len(found) == len(notes)
    assert all(part in note for part, note in zip(notes, found, strict=True))


@pytest.mark.parametrize(("filler", "inputs"), [("", ["data"]), ("data_filler { type: 'gaussian' }", ["data", "cont"])])
def test_dummy_data_beside_an_input_is_a_constant(filler: str, inputs: list[str], tmp_path: Path) -> None:
    dummy = f"dummy_data_param {{ shape {{ dim: 1 dim: 5 }} {filler} }}"
    written = (
        layer("data", "Input", (), "data", "input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } }")
        + layer("cont", "DummyData", (), ["cont"], dummy)
        + layer("label", "DummyData", (), ["label"], dummy)
        + BODY
        + layer("sum", "Eltwise", ["fc", "cont"])
        + loss("EuclideanLoss", ["sum", "label"])
    )
    net = reading(tmp_path, written)
    assert (list(net.inputs), net.outputs) == (inputs, ("sum",))
    assert types(net) == [*(["DummyData"] if not filler else []), "Convolution", "InnerProduct", "Eltwise"]


def test_a_mean_image_beside_the_net_is_read(tmp_path: Path) -> None:
    mean = np.stack([np.full((2, 2), value, np.float32) for value in (104.0062, 117, 123)])
    (tmp_path / "mean.binaryproto").write_bytes(blob(mean, legacy=True))
    source = data(parameters="transform_param { crop_size: 8 mean_file: 'x/mean.binaryproto' }")
    assert reading(tmp_path, source + BODY).notes[1:] == (
        "the mean image x/mean.binaryproto counts by its means over each channel",
        "the net was trained on prepared pixels: `normalize: {mean: [104.006, 117.0, 123.0]}` builds that in",
    )

"""Every single-layer case against the reference in numpy; what Caffe would not take, and what has no exact form."""

from __future__ import annotations

import caffe_cases
import caffe_files
import caffe_lowered
import numpy as np
import pytest
from caffe_cases import CASES, Case, layer

from retarget.compare import snr_db
from retarget.convert.caffe.layers import activation, arithmetic, convolution, normalization, pooling, shape
from retarget.convert.caffe.reference.evaluate import evaluate
from retarget.errors import RetargetError, Unsupported

OURS = {
    kind for family in (activation, arithmetic, convolution, normalization, pooling, shape) for kind in family.LAYERS
}
EXACT = [case for case in CASES.values() if case.type in OURS]
PARITY = 100
"""dB. Both sides compute in float32, or the reference in float64."""


def named(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", EXACT, ids=named)
def test_is_the_reference(case: Case) -> None:
    net = caffe_lowered.read(case.prototxt, case.weights)
    feeds = case.feeds()
    model = caffe_lowered.lowered(case.prototxt, case.weights)
    expected = evaluate(net, feeds)
    found = caffe_lowered.execute(model, feeds)
    for value, name, array in zip(model.graph.outputs, net.outputs, found, strict=True):
        assert value.name == name
        assert tuple(value.shape or ()) == array.shape == expected[name].shape
        assert snr_db(expected[name], array) >= PARITY


FIXED_BATCH = {
    "scale_two_bottoms_bias": "weights have the batch's size",
    "slice_dim": "cuts the batch",
    "parameter_plain": "is added to weights of the batch's size",
}


@pytest.mark.parametrize(
    "case", [case for case in EXACT if "_plain" in case.name or case.name in FIXED_BATCH], ids=named
)
def test_the_batch_may_be_open(case: Case) -> None:
    net = caffe_lowered.read(case.prototxt, case.weights)
    batch = next(iter(net.inputs.values()))[0]
    follows = {name for name, dims in net.inputs.items() if dims[0] == batch}
    open_ = {name: ("N" if name in follows else dims[0], *dims[1:]) for name, dims in net.inputs.items()}
    larger = {name: (dims[0] + 3 * (name in follows), *dims[1:]) for name, dims in net.inputs.items()}
    if case.name in FIXED_BATCH:
        with pytest.raises(Unsupported, match=r"'N' is open|differ: \[N,3\] and \[2,3\]"):
            caffe_lowered.lowered(case.prototxt, case.weights, open_)
        return
    feeds = {
        name: np.resize(case.inputs[name].draw(np.random.default_rng(9)), larger[name]).astype(np.float32)
        for name in net.inputs
    }
    found = caffe_lowered.execute(caffe_lowered.lowered(case.prototxt, case.weights, open_), feeds)
    expected = caffe_lowered.execute(caffe_lowered.lowered(case.prototxt, case.weights, larger), feeds)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


IMAGE = (1, 4, 8, 6)
WRONG = {
    "Convolution": [
        ("convolution_param { num_output: 4 }", "has no kernel_size"),
        ("convolution_param { kernel_size: 3 }", "num_output is 0"),
        ("convolution_param { num_output: 6 group: 3 kernel_size: 3 }", "group 3, for 4 channels"),
        ("convolution_param { num_output: 6 kernel_size: 0 }", "kernel_size is 0"),
        ("convolution_param { num_output: 6 kernel_h: 3 }", "only one of kernel_h and kernel_w"),
        ("convolution_param { num_output: 6 kernel_size: 3 stride: 1 stride: 2 stride: 3 }", "3 values of stride"),
        ("convolution_param { num_output: 6 kernel_size: 3 axis: 4 }", "axis 4 of a blob of 4 dimensions"),
        ("convolution_param { num_output: 2 kernel_size: 9 bias_term: false }", "needs 1 weight blob"),
    ],
    "InnerProduct": [("", "num_output is 0"), ("inner_product_param { num_output: 2 }", "needs 1 weight blob")],
    "Pooling": [
        ("pooling_param { kernel_size: 2 pad: 2 }", "pad 2 is not smaller than the kernel, 2"),
        ("pooling_param { pool: MEDIAN kernel_size: 2 }", "pool is MEDIAN"),
        ("pooling_param { pool: STOCHASTIC kernel_size: 2 pad: 1 }", "padding is for MAX and AVE only"),
    ],
    "LRN": [("lrn_param { local_size: 4 }", "local_size is 4")],
    "Scale": [
        ("scale_param { axis: 3 num_axes: 2 }", "num_axes is 2, from axis 3"),
        ("", "needs 1 weight blob"),
    ],
    "Flatten": [("flatten_param { axis: 2 end_axis: 1 }", "end_axis 1 is before axis 2")],
    "Reshape": [
        ("reshape_param { shape { dim: -1 dim: -1 } }", "more than one dim is -1"),
        ("reshape_param { shape { dim: 0 dim: 5 dim: -1 } }", "does not reshape to [1,5,-1]"),
        ("reshape_param { shape { dim: 1 dim: 2 } }", "does not reshape to [1,2]"),
        ("reshape_param { shape { dim: 1 } axis: 7 }", "axis 7"),
    ],
    "Slice": [("slice_param { slice_point: 5 }", "1 slice_point for 1 tops")],
    "Permute": [("permute_param { order: 0 order: 0 }", "order is 0, 0")],
    "Tile": [("", "tiles is 0")],
    "Clip": [("clip_param { min: 0 }", "has no max")],
    "Log": [("log_param { base: -2 }", "base is -2")],
    "ArgMax": [("argmax_param { top_k: 5 axis: 1 }", "top_k is 5, of 4 elements")],
    "Eltwise": [("", "takes 2 or more bottoms, has 1")],
    "Crop": [("", "takes 2 bottoms, has 1")],
    "ReLU": [("relu_param { negative_slope: steep }", "negative_slope is 'steep', not a number")],
}


@pytest.mark.parametrize(
    ("kind", "parameters", "message"), [(kind, *each) for kind, cases in WRONG.items() for each in cases]
)
def test_what_caffe_would_not_take_is_said_with_the_line(kind: str, parameters: str, message: str) -> None:
    with pytest.raises(RetargetError) as caught:
        caffe_lowered.lowered(caffe_files.inputs(data=IMAGE) + layer(kind, parameters))
    assert caught.value.message.startswith("net.prototxt:")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("Pooling", "pooling_param { pool: AVE kernel_size: 1 stride: 7 }", "an average of nothing"),
        ("Dropout", "dropout_param { sample_weights_test: true }", "drops at random"),
        ("DummyData", 'dummy_data_param { data_filler { type: "gaussian" } shape { dim: 1 } }', "random numbers"),
    ],
)
def test_what_has_no_exact_form_is_refused(kind: str, parameters: str, message: str) -> None:
    bottoms = () if kind == "DummyData" else ("data",)
    with pytest.raises(Unsupported, match=message):
        caffe_lowered.lowered(caffe_files.inputs(data=IMAGE) + layer(kind, parameters, bottoms))


def test_bottoms_of_other_sizes_are_refused() -> None:
    for kind in ("Eltwise", "Concat"):
        text = caffe_files.inputs(data=(1, 4, 8, 6), other=(1, 4, 8, 5)) + layer(kind, bottoms=("data", "other"))
        with pytest.raises(RetargetError, match=r"its bottoms differ: \[1,4,8,6\] and \[1,4,8,5\]"):
            caffe_lowered.lowered(text)


def test_weights_of_another_net_are_refused() -> None:
    text = caffe_files.inputs(data=IMAGE) + layer("InnerProduct", "inner_product_param { num_output: 3 }")
    with pytest.raises(RetargetError, match=r"weight blob 0 has \[3,100\], the net needs \[3,192\]"):
        caffe_lowered.lowered(text, [("layer", "InnerProduct", [np.zeros((3, 100)), np.zeros(3)])])


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [("axis: 1", [[4]]), ("axis: 1 top_k: 3", [[4, 2, 1]]), ("", [[[4]]]), ("top_k: 4", [[[4, 2, 1, 0]]])],
)
def test_of_equals_argmax_takes_the_last(parameters: str, expected: list[object]) -> None:
    """Caffe sorts pairs of value and index, the greatest first."""
    text = caffe_files.inputs(data=(1, 5)) + layer("ArgMax", f"argmax_param {{ {parameters} }}")
    (found,) = caffe_lowered.execute(caffe_lowered.lowered(text), {"data": np.array([[1, 3, 3, 0, 3]], np.float32)})
    np.testing.assert_array_equal(found, expected)


def test_constants_may_be_outputs() -> None:
    text = caffe_files.inputs(data=IMAGE)
    text += layer("DummyData", "dummy_data_param { data_filler { value: 2.5 } shape { dim: 2 dim: 3 } }", (), ("out",))
    text += caffe_files.layer("weights", "Parameter", (), "kept") + caffe_files.layer("quiet", "Silence", "data", ())
    saved: list[caffe_files.Saved] = [("weights", "Parameter", [np.arange(4.0)])]
    model = caffe_lowered.lowered(text, saved)
    assert evaluate(caffe_lowered.read(text, saved), {"data": np.zeros(IMAGE, np.float32)}).keys() == {"out", "kept"}
    filled, kept = caffe_lowered.execute(model, {"data": np.zeros(IMAGE, np.float32)})
    np.testing.assert_array_equal(filled, np.full((2, 3), 2.5))
    np.testing.assert_array_equal(kept, np.arange(4.0))


def test_dropout_of_forks_scales_when_tested() -> None:
    text = caffe_files.inputs(data=(1, 3)) + layer("Dropout", "dropout_param { dropout_ratio: 0.2 scale_train: false }")
    (found,) = caffe_lowered.execute(caffe_lowered.lowered(text), {"data": np.ones((1, 3), np.float32)})
    np.testing.assert_allclose(found, np.full((1, 3), 0.8))


def test_every_type_has_a_case_or_a_test_of_its_own() -> None:
    own = {"DummyData", "Parameter"}
    assert {case.type for case in caffe_cases.CASES.values()} | own >= OURS

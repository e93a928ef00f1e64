"""The driver: names, sizes and outputs of the lowered net, and all unknown layers at once."""

from __future__ import annotations

from dataclasses import replace

import caffe_files
import caffe_lowered
import numpy as np
import onnx_ir as ir
import pytest
from caffe_files import inputs, layer

from retarget.convert.caffe.lower import lower
from retarget.errors import RetargetError, Unsupported
from retarget.spec import TensorSpec

INPLACE = (
    inputs(data=(1, 3, 8, 8))
    + layer("conv 1/a", "Convolution", "data", "x", "convolution_param { num_output: 4 kernel_size: 3 }")
    + layer("relu", "ReLU", "x", "x")
    + layer("power", "Power", "x", "x", "power_param { scale: 2 shift: 1 }")
    + layer("prob", "Softmax", "x", "y")
    + layer("y", "TanH", "x", "prob")
)
SAVED: list[caffe_files.Saved] = [
    ("conv 1/a", "Convolution", [np.random.default_rng(0).normal(size=(4, 3, 3, 3)), np.zeros(4)])
]


def spec(text: str) -> TensorSpec:
    return TensorSpec.parse(text)


def names(model: ir.Model) -> tuple[list[str], list[str]]:
    """Of nodes, and of the values that they make."""
    return (
        [node.name or "" for node in model.graph],
        [value.name or "" for node in model.graph for value in node.outputs],
    )


def test_values_bear_the_names_of_blobs_and_nodes_those_of_layers() -> None:
    """A value that is computed in place bears its layer's name, as the blob's is taken; outputs come first."""
    nodes, values = names(caffe_lowered.lowered(INPLACE, SAVED))
    assert nodes == ["conv 1/a", "relu", "power/Mul", "power", "prob", "y"]
    assert values == ["x", "relu", "power/Mul", "power", "y", "prob"]


def test_names_are_unique_where_layers_are_not() -> None:
    """Nets of V0 and V1 have layers of one name, and layers without any."""
    text = inputs(data=(1, 3))
    for top in ("a", "b", "data_out"):
        text += layer("same", "Power", "data", top, "power_param { scale: 2 shift: 1 }")
    text += layer("", "ReLU", "data", "d") + layer("", "ReLU", "data", "data") + layer("", "TanH", "data", "e")
    model = caffe_lowered.lowered(text)
    nodes, values = names(model)
    assert len(set(nodes)) == len(nodes)
    assert len(set(values)) == len(values)
    assert {"a", "b", "data_out", "d", "e"} == {value.name for value in model.graph.outputs}


def test_outputs_are_the_users() -> None:
    net = caffe_lowered.read(INPLACE, SAVED)
    model = lower(net, outputs=("first", "x"))
    assert [value.name for value in model.graph.outputs] == ["first", "x"]
    assert names(model)[1] == ["conv 1/a", "relu", "power/Mul", "power", "first", "x"]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [(("one",), "1 output names were given, the net has 2 outputs"), (("data", "a"), "output name 'data' is taken")],
)
def test_output_names_that_do_not_fit(outputs: tuple[str, ...], message: str) -> None:
    with pytest.raises(RetargetError, match=message):
        lower(caffe_lowered.read(INPLACE, SAVED), outputs=outputs)


def test_an_input_that_is_an_output_is_copied() -> None:
    """Dropout and Split do nothing: what comes out is what goes in."""
    text = inputs(data=(2, 3)) + layer("drop", "Dropout", "data", "data") + layer("split", "Split", "data", ("a", "b"))
    model = caffe_lowered.lowered(text)
    data = np.ones((2, 3), np.float32)
    assert [value.name for value in model.graph.outputs] == ["a", "b"]
    for found in caffe_lowered.execute(model, {"data": data}):
        np.testing.assert_array_equal(found, data)


def test_an_output_called_as_an_input_gets_another_name() -> None:
    text = inputs(data=(2, 3)) + layer("relu", "ReLU", "data", "data")
    model = lower(replace(caffe_lowered.read(text), outputs=("data",)))
    assert [value.name for value in model.graph.inputs] == ["data"]
    assert [value.name for value in model.graph.outputs] == ["data_out"]


def test_tops_that_nobody_takes_do_not_matter() -> None:
    text = inputs(data=(2, 4)) + layer("slice", "Slice", "data", ("a", "b")) + layer("relu", "ReLU", "a", "c")
    net = caffe_lowered.read(text)
    assert net.outputs == ("b", "c")
    assert [value.name for value in lower(net).graph.outputs] == ["b", "c"]


def test_all_unknown_layers_are_named_at_once() -> None:
    text = inputs(data=(1, 3, 8, 8)) + layer("first", "Warp", "data", "x") + layer("mid", "ReLU", "x")
    text += layer("last", "Weft", "mid")
    with pytest.raises(Unsupported) as caught:
        caffe_lowered.lowered(text)
    assert caught.value.message.splitlines() == [
        "net.prototxt: 2 layers of unknown types:",
        "  net.prototxt:7: layer 'first' (Warp)",
        "  net.prototxt:19: layer 'last' (Weft)",
    ]


def test_a_type_that_is_misspelt_is_asked_after() -> None:
    with pytest.raises(Unsupported) as caught:
        caffe_lowered.lowered(inputs(data=(1, 3)) + layer("relu", "Relu", "data"))
    assert caught.value.hint == "did you mean 'ReLU'?"


def test_sizes_may_be_others_than_the_files_and_open() -> None:
    net = caffe_lowered.read(INPLACE, SAVED)
    model = lower(net, [spec("data=float32[N,3,H,20]")])
    assert [str(value.shape) for value in model.graph.inputs] == ["[N,3,H,20]"]
    assert [str(value.shape) for value in model.graph.outputs] == ["[N,4,H - 2,18]"] * 2
    data = np.random.default_rng(1).normal(size=(3, 3, 9, 20)).astype(np.float32)
    found = caffe_lowered.execute(model, {"data": data})
    assert [array.shape for array in found] == [(3, 4, 7, 18)] * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("other=float32[1,3,8,8]", "has no input 'other'"),
        ("data=float16[1,3,8,8]", "float16 was given, Caffe's blobs are float32"),
        ("data=float32[1,3,8]", "3 dimensions were given, .* has 4"),
        ("data=float32[1,4,8,8]", r"weight blob 0 has \[4,3,3,3\], the net needs \[4,4,3,3\]"),
        ("data=float32[1,C,8,8]", "needs a fixed size where 'C' is open"),
        ("data=float32[1,3,2,8]", r"its top 'x' would be \[1,4,0,6\]"),
    ],
)
def test_inputs_that_do_not_fit(given: str, message: str) -> None:
    with pytest.raises(RetargetError, match=message):
        lower(caffe_lowered.read(INPLACE, SAVED), [spec(given)])


def test_what_must_be_fixed_is_said_by_the_users_own_symbol() -> None:
    text = inputs(data=(1, 3, 9, 9)) + layer("pool", "Pooling", "data", parameters="pooling_param { kernel_size: 3 }")
    text += layer("dense", "InnerProduct", "pool", parameters="inner_product_param { num_output: 2 }")
    with pytest.raises(Unsupported, match="a fixed size where 'H' is open") as caught:
        lower(caffe_lowered.read(text), [spec("data=float32[N,3,H,9]")])
    assert caught.value.hint == "give 'H' one size, as in --input or in `inputs` of the recipe"


def test_all_inputs_are_named() -> None:
    text = inputs(data=(1, 3), other=(1, 3)) + layer("sum", "Eltwise", ("data", "other"))
    with pytest.raises(RetargetError, match="input 'other' is not named"):
        lower(caffe_lowered.read(text), [spec("data=float32[N,3]")])


def test_more_tops_than_a_layer_makes() -> None:
    with pytest.raises(RetargetError, match="names 2 tops, but makes 1"):
        caffe_lowered.lowered(inputs(data=(1, 3)) + layer("relu", "ReLU", "data", ("a", "b")))


def test_a_bottom_that_is_not_made() -> None:
    with pytest.raises(RetargetError, match="no layer before it makes its bottom 'dta'") as caught:
        caffe_lowered.lowered(inputs(data=(1, 3)) + layer("relu", "ReLU", "dta"))
    assert caught.value.hint == "did you mean 'data'?"

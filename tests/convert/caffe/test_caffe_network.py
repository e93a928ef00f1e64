"""Prototxt and caffemodel as one net: which layers, which weights, which inputs and outputs."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from caffe_files import Saved, caffemodel, inputs, layer, write
from damage import damage

from retarget.convert.caffe import network
from retarget.convert.caffe.net import Net
from retarget.errors import RetargetError

ONES = np.ones((2, 3, 1, 1), np.float32)
CONV = "convolution_param { num_output: 2 kernel_size: 1 bias_term: false }"
DATA = inputs(data=(1, 3, 4, 4))


def reading(folder: Path, prototxt: str, layers: Sequence[Saved] | None = None, **options: object) -> Net:
    return network.read(*write(folder, prototxt, layers), **options)  # type: ignore[arg-type]  # those of read


def refused(folder: Path, prototxt: str, layers: Sequence[Saved] | None = None) -> RetargetError:
    with pytest.raises(RetargetError) as caught:
        reading(folder, prototxt, layers)
    assert caught.value.hint
    return caught.value


def test_a_net_with_its_weights(tmp_path: Path) -> None:
    written = 'name: "small"\n' + DATA + layer("conv", "Convolution", "data", "conv", CONV) + layer("r", "ReLU", "conv")
    net = reading(tmp_path, written, [("conv", "Convolution", [ONES])])
    assert (net.name, net.place, net.inputs) == ("small", "net.prototxt:1", {"data": (1, 3, 4, 4)})
    assert [(each.name, each.type, each.bottoms, each.tops) for each in net.layers] == [
        ("conv", "Convolution", ("data",), ("conv",)),
        ("r", "ReLU", ("conv",), ("r",)),
    ]
    assert net.layers[0].place == "net.prototxt:8: layer 'conv' (Convolution)"
    np.testing.assert_array_equal(net.layers[0].blobs[0], ONES)
    assert (net.outputs, net.transform, net.notes) == (("r",), None, ())


# ---- outputs


def test_outputs_are_what_no_layer_takes_in_the_order_they_are_made(tmp_path: Path) -> None:
    written = (
        inputs(data=(1, 4), unused=(1, 2))
        + layer("split", "Split", "data", ["z", "y", "x"])
        + layer("in_place", "ReLU", "z", "z")
        + layer("sum", "Eltwise", ["x", "y"], "b")
        + layer("again", "ReLU", "b", "a")
        + layer("c", "Sigmoid", "b")
    )
    net = reading(tmp_path, written)
    assert net.outputs == ("z", "a", "c")
    assert list(net.inputs) == ["data", "unused"]


def test_a_net_without_outputs_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, DATA).message == "net.prototxt: the net has no outputs"


# ---- which layers

RULES = [
    ("", True),
    ("include { phase: TEST }", True),
    ("include { phase: TRAIN }", False),
    ("include { phase: 1 }", True),
    ("include { phase: TRAIN } include { phase: TEST }", True),
    ("exclude { phase: TEST }", False),
    ("exclude { phase: TRAIN }", True),
    ("include { stage: 'deploy' }", False),
    ("include { not_stage: 'deploy' }", True),
    ("exclude { not_stage: 'deploy' }", False),
    ("include { min_level: 1 }", False),
    ("include { max_level: 0 }", True),
    ("include { min_level: -1 max_level: 2 }", True),
    ("exclude { min_level: 0 stage: 'deploy' }", True),
    ("phase: TRAIN", True),  # says how the layer computes, not whether it is there
]


@pytest.mark.parametrize(("rule", "included"), RULES)
def test_rules_of_layers(rule: str, included: bool, tmp_path: Path) -> None:
    net = reading(tmp_path, DATA + layer("a", "ReLU", "data") + layer("b", "TanH", "data", "b", rule))
    assert net.outputs == (("a", "b") if included else ("a",))


def test_stages_and_level_are_the_users_or_the_files(tmp_path: Path) -> None:
    rules = (
        layer("s", "ReLU", "data", "s", "include { stage: 'deploy' stage: 'fast' }")
        + layer("l", "ReLU", "data", "l", "include { min_level: 3 }")
        + layer("a", "ReLU", "data")
    )
    assert reading(tmp_path, DATA + rules).outputs == ("a",)
    assert reading(tmp_path, DATA + rules, stages=("deploy",)).outputs == ("a",)
    assert reading(tmp_path, DATA + rules, stages=("deploy", "fast"), level=3).outputs == ("s", "l", "a")
    state = 'state { stage: "deploy" level: 3 phase: TRAIN }\n'
    assert reading(tmp_path, state + DATA + rules, stages=("fast",)).outputs == ("s", "l", "a")
    assert reading(tmp_path, state + DATA + rules, stages=("fast",), level=0).outputs == ("s", "a")


def test_rules_of_both_kinds_are_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, DATA + layer("b", "TanH", "data", "b", "include { } exclude { }"))
    assert error.message == "net.prototxt:7: layer 'b' has rules of both `include` and `exclude`"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "net.prototxt: there are no layers in it"),
        ("item { name: 'cat' id: 1 }", "net.prototxt: there are no layers in it"),
        (
            layer("a", "ReLU", (), "a", "include { phase: TRAIN }"),
            "net.prototxt: all of its layers are",
        ),
        ('net: "train.prototxt" base_lr: 0.1', "net.prototxt: this is a solver"),
        (DATA + "layer {\n name: 'x' }", "net.prototxt:7: layer 'x' has no type"),
    ],
)
def test_what_is_no_net_is_refused(written: str, message: str, tmp_path: Path) -> None:
    assert refused(tmp_path, written).message.startswith(message)


def test_a_solver_leads_to_its_net(tmp_path: Path) -> None:
    assert (
        refused(tmp_path, 'net: "train.prototxt" lr_policy: "step"').hint
        == "give the net that it names: train.prototxt"
    )


# ---- connections


@pytest.mark.parametrize(
    ("layers", "message", "hint"),
    [
        (
            layer("a", "ReLU", "date", "a"),
            "net.prototxt:7: layer 'a' (ReLU): takes 'date', which nothing makes",
            "did you mean 'data'?",
        ),
        (
            layer("a", "ReLU", "b") + layer("b", "ReLU", "data"),
            "net.prototxt:7: layer 'a' (ReLU): takes 'b', which is made further down, by layer 'b' (net.prototxt:13)",
            "Caffe runs layers in the order of the file: move the layer that makes it up",
        ),
        (
            layer("a", "Eltwise", ["data", "c"]) + layer("b", "ReLU", "a") + layer("c", "ReLU", "b"),
            "net.prototxt:7: layer 'a' (Eltwise): takes 'c', which is made from what it makes itself: a circle",
            "'c' is made by layer 'c' (net.prototxt:20)",
        ),
        (
            layer("a", "ReLU", "a"),
            "net.prototxt:7: layer 'a' (ReLU): takes 'a', which nothing makes",
            "see whether a layer or an input is missing above it",
        ),
        (
            layer("a", "ReLU", "data") + layer("b", "TanH", "data", "a"),
            "net.prototxt:13: layer 'b' (TanH): makes 'a', which layer 'a' (net.prototxt:7) is or makes already",
            "give it another name; only a layer that takes a blob at the same place may make it again",
        ),
        (
            layer("a", "Split", "data", ["b", "b"]),
            "net.prototxt:7: layer 'a' (Split): makes 'b', which layer 'a' (net.prototxt:7) is or makes already",
            None,
        ),
        (
            layer("a", "Concat", ["data", "data"], ["x", "data"]),
            None,  # in place at the second
            None,
        ),
        (
            layer("a", "TanH", "data", "b") + layer("c", "Eltwise", ["b", "data"], "data"),
            "net.prototxt:13: layer 'c' (Eltwise): makes 'data', which an input is or makes already",
            None,
        ),
    ],
)
def test_connections(layers: str, message: str | None, hint: str | None, tmp_path: Path) -> None:
    if message is None:
        assert reading(tmp_path, DATA + layers).outputs
        return
    error = refused(tmp_path, DATA + layers)
    assert error.message == message
    assert hint is None or error.hint == hint


def test_a_circle_of_thousands_is_found_at_once(tmp_path: Path) -> None:
    chain = "".join(layer(f"l{index}", "ReLU", f"b{index + 1}", f"b{index}") for index in range(3000))
    assert "further down" in refused(tmp_path, DATA + chain).message
    closed = chain + layer("last", "ReLU", "b0", "b3000")
    assert "a circle" in refused(tmp_path, DATA + closed).message


def test_names_of_layers_are_made_single(tmp_path: Path) -> None:
    written = DATA + layer("r", "ReLU", "data", "a") + layer("r", "ReLU", "a", "b") + layer("", "ReLU", "b", "r_2")
    assert [each.name for each in reading(tmp_path, written).layers] == ["r", "r_2", "r_2_2"]
    many = DATA + "layer { type: 'ReLU' bottom: 'data' top: 'data' }\n" * 3000
    assert len({each.name for each in reading(tmp_path, many).layers}) == 3000


COUNT = 3000


@pytest.mark.parametrize(
    "layers",
    [
        "".join(layer("x", "SoftmaxWithLoss", ["data", "data"], f"l{index}") for index in range(COUNT)),
        "".join(layer("x", "SoftmaxWithLoss", ["data", "data"], "l", f"loss_weight: {at}") for at in range(COUNT)),
        "".join(layer("x", "Data", (), f"d{index}") for index in range(COUNT)),
        layer("x", "Data", (), [f"d{index}" for index in range(COUNT)]),
        layer("x", "Split", "data", [f"d{index}" for index in range(COUNT)])
        + layer("c", "Concat", [f"d{index}" for index in range(COUNT)]),
        "".join(layer("x", "Silence", "data", ()) for _ in range(COUNT)),
        "".join(layer("x", "Softmax", "data", f"prob_{index}") for index in range(COUNT))
        + layer("x", "SoftmaxWithLoss", ["data", "data"], "loss"),
    ],
    ids=["losses", "weighed losses", "data layers", "data blobs", "blobs", "sinks", "names"],
)
def test_thousands_of_layers_take_no_time(layers: str, tmp_path: Path) -> None:
    start = time.process_time()
    try:
        assert reading(tmp_path, DATA + layers).outputs
    except RetargetError as error:
        assert error.hint  # noqa: PT017 - some of them are no nets
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "piece",
    [
        "layer{type:'a'bottom:'d'top:'d'}",
        "layers{type:1 bottom:'d'top:'d'}",
        "layers{layer{type:'relu'}bottom:'d'top:'d'}",
        "layer{type:'a'include{}}",
        "input:'a'",
    ],
)
def test_memory_is_bounded_by_the_file(piece: str, tmp_path: Path) -> None:
    text = tmp_path / "net.prototxt"
    text.write_text("input:'d' input_shape{dim:1}" + piece * 500)
    tracemalloc.start()
    try:
        network.read(text, None)
    except RetargetError as error:
        assert error.hint  # noqa: PT017 - not all are nets
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * text.stat().st_size + 100_000


# ---- inputs


def test_input_layers_of_several_tops(tmp_path: Path) -> None:
    shapes = "shape { dim: 1 dim: 2 }"
    users = layer("sum", "Eltwise", ["a", "b"])
    one = layer("data", "Input", (), ["a", "b"], f"input_param {{ {shapes} }}")
    assert reading(tmp_path, one + users).inputs == {"a": (1, 2), "b": (1, 2)}
    two = layer("data", "Input", (), ["a", "b"], f"input_param {{ {shapes} shape {{ dim: [3] }} }}")
    assert reading(tmp_path, two + users).inputs == {"a": (1, 2), "b": (3,)}
    three = layer("data", "Input", (), ["a"], f"input_param {{ {shapes} {shapes} }}")
    assert refused(tmp_path, three).message == "net.prototxt:1: layer 'data' (Input): 2 shapes for 1 tops"


@pytest.mark.parametrize("dims", ["dim: 0", "dim: -1 dim: 3", "dim: 1 " * 33, "dim: 65536 dim: 32768"])
def test_absurd_shapes_of_inputs_are_refused(dims: str, tmp_path: Path) -> None:
    written = layer("data", "Input", (), "data", f"input_param {{ shape {{ {dims} }} }}") + layer("a", "ReLU", "data")
    assert "'data' has the shape [" in refused(tmp_path, written).message


def test_a_shape_that_the_file_does_not_say(tmp_path: Path) -> None:
    written = 'input: "data"\n' + layer("a", "ReLU", "data")
    error = refused(tmp_path, written)
    assert error.message == "net.prototxt:1: layer 'data' (Input): the file says no shape of 'data'"
    assert error.hint is not None
    assert "--input 'data=float32[1,C,H,W]'" in error.hint
    assert reading(tmp_path, written, shapes={"data": (1, 5)}).inputs == {"data": (1, 5)}


def test_an_input_that_the_net_has_not(tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match="the net has no input 'image'") as caught:
        reading(tmp_path, DATA + layer("a", "ReLU", "data"), shapes={"image": (1, 5)})
    assert caught.value.hint == "its inputs: 'data'"


# ---- weights


@pytest.mark.parametrize(
    ("kind", "parameters", "bottoms", "count"),
    [
        ("Convolution", "convolution_param { num_output: 2 }", 1, 2),
        ("Convolution", CONV, 1, 1),
        ("Deconvolution", CONV, 1, 1),
        ("InnerProduct", "inner_product_param { num_output: 2 }", 1, 2),
        ("Embed", "embed_param { bias_term: false }", 1, 1),
        ("BatchNorm", "", 1, 3),
        ("Scale", "", 1, 1),
        ("Scale", "scale_param { bias_term: true }", 1, 2),
        ("Scale", "scale_param { bias_term: true }", 2, 1),
        ("Scale", "", 2, 0),
        ("Bias", "", 1, 1),
        ("Bias", "", 2, 0),
        ("PReLU", "", 1, 1),
        ("Normalize", "", 1, 1),
        ("Parameter", "", 0, 1),
        ("BN", "bn_param { eps: 0.1 }", 1, 4),
        ("LSTM", "", 2, 3),
        ("LSTM", "", 3, 4),
        ("LSTM", "recurrent_param { expose_hidden: true }", 4, 3),
        ("RNN", "", 2, 5),
        ("RNN", "recurrent_param { expose_hidden: true }", 4, 6),
        ("ReLU", "", 1, 0),
    ],
)
def test_a_layer_must_have_all_its_weights(
    kind: str, parameters: str, bottoms: int, count: int, tmp_path: Path
) -> None:
    names = ["a", "b", "c", "d"][:bottoms]
    written = inputs(**dict.fromkeys(names, (1, 2))) + layer("x", kind, names, "x", parameters)
    blobs = [np.ones(2, np.float32)] * count
    assert len(reading(tmp_path, written, [("x", kind, blobs)]).layers[0].blobs) == count
    if not count:
        assert reading(tmp_path, written, None).outputs == ("x",)
        return
    place = f"net.prototxt:{6 * bottoms + 1}: layer 'x' ({kind})"
    assert refused(tmp_path, written, [("y", kind, blobs)]).message.startswith(
        f"{place}: net.caffemodel has no weights"
    )
    many = refused(tmp_path, written, [("x", kind, [*blobs, blobs[0]])]).message
    assert many.startswith(f"{place}: net.caffemodel has {count + 1} blobs for it, and it takes {count} (")
    (tmp_path / "net.caffemodel").unlink()
    without = refused(tmp_path, written, None)
    assert without.message == f"{place}: its weights stand in a caffemodel, and there is none beside it"
    assert without.hint == "give both: `net.prototxt,NET.caffemodel`"


def test_a_name_that_is_near_is_suggested(tmp_path: Path) -> None:
    written = DATA + layer("conv1_1", "Convolution", "data", "a", CONV)
    assert refused(tmp_path, written, [("conv1-1", "Convolution", [ONES])]).hint == "did you mean 'conv1-1'?"


def test_weights_that_no_layer_takes_are_noted(tmp_path: Path) -> None:
    saved: list[Saved] = [(f"fc{index}", "InnerProduct", [ONES]) for index in range(8)]
    net = reading(tmp_path, DATA + layer("a", "ReLU", "data"), [*saved, ("plain", "ReLU", [])])
    assert net.notes == (
        "no layer takes the weights that the caffemodel has of 'fc0', 'fc1', 'fc2', 'fc3', 'fc4' and 3 more",
    )


def test_layers_that_share_weights_by_name(tmp_path: Path) -> None:
    shared = CONV + ' param { name: "w" }'
    written = DATA + layer("a", "Convolution", "data", "a", shared) + layer("b", "Convolution", "data", "b", shared)
    net = reading(tmp_path, written, [("a", "Convolution", [ONES])])
    assert [each.blobs[0] is net.layers[0].blobs[0] for each in net.layers] == [True, True]


def test_two_layers_of_one_name_with_weights_are_refused(tmp_path: Path) -> None:
    conv = layer("a", "Convolution", "data", "a", CONV)
    saved: Saved = ("a", "Convolution", [ONES])
    assert refused(tmp_path, DATA + conv, [saved, saved]).message == (
        "net.caffemodel: two layers are called 'a', both with weights"
    )
    twice = DATA + conv + layer("a", "Convolution", "data", "b", CONV)
    assert refused(tmp_path, twice, [saved]).message.startswith(
        "net.prototxt:14: layer 'a' (Convolution): has the name"
    )


# ---- fields


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        (
            "pooling_param { strid: 2 }",
            "has a field 'strid' in pooling_param that is not known",
            "did you mean 'stride'?",
        ),
        ("pooling_parm { stride: 2 }", "has a field 'pooling_parm' that is not known", "did you mean 'pooling_param'?"),
        (
            "pooling_param { avg_include_pad: false }",
            "has a field 'avg_include_pad' in pooling_param that is not known",
            "remove it if it does not change what the net computes",
        ),
    ],
)
def test_a_field_that_is_not_known_is_refused(fields: str, message: str, hint: str, tmp_path: Path) -> None:
    written = DATA + layer("p", "Pooling", "data", "a", fields)
    error = refused(tmp_path, written)
    assert (error.message, error.hint) == (f"net.prototxt:7: layer 'p' (Pooling): {message}", hint)
    again = refused(tmp_path, written + layer("q", "Pooling", "data", "b", fields))
    assert again.message == f"{error.message}, as 1 other layer"


def test_fields_that_change_nothing_are_passed_over(tmp_path: Path) -> None:
    harmless = "engine: 'MKLDNN' quantization_param { bw: 8 } pooling_param { engine: CUDNN } some_forks_param { x: 1 }"
    assert reading(tmp_path, DATA + layer("p", "Pooling", "data", "a", harmless)).outputs == ("a",)


# ---- damage


@pytest.mark.parametrize("kind", ["cut", "flip", "drop", "repeat"])
def test_damaged_pairs_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    written = (
        'name: "n" input: "extra" input_dim: 1 input_dim: 2 input_dim: 1 input_dim: 1\n'
        + layer("db", "Data", (), ["data", "label"], "transform_param { crop_size: 4 } include { phase: TEST }")
        + layer("conv", "Convolution", "data", "conv", CONV)
        + layer("relu", "ReLU", "conv", "conv", "relu_param { negative_slope: 0.1 }")
        + layer("loss", "SoftmaxWithLoss", ["conv", "label"], "loss", "loss_weight: 1")
        + layer("acc", "Accuracy", ["conv", "label"], "acc")
    ).encode()
    saved = caffemodel([("conv", "Convolution", [ONES])])
    prototxt, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    told = 0
    for index in range(150):
        prototxt.write_bytes(damage(written, kind, rng) if index % 3 else written)
        weights.write_bytes(damage(saved, kind, rng) if index % 3 != 1 else saved)
        try:
            net = network.read(prototxt, weights)
        except RetargetError as error:
            assert error.hint  # noqa: PT017 - what is damaged may be a name or a number
            told += 1
        else:
            assert net.outputs
    assert told > 50

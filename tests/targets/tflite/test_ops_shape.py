"""Other shapes, parts and paddings in TFLite against ONNX Runtime: with the channels first and last, and resized."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import one_node
import pytest
import target_testing as t

from retarget.errors import Unsupported

IMAGE = "float[N,4,5,6] x"

CASES = {
    "reshape": (IMAGE, "Reshape(x, [0, 2, -1, 3])"),
    "reshape, one number for two axes": (IMAGE, "Reshape(x, [0, 4, -1])"),
    "reshape of bool": ("bool[N,4,5] x", "Reshape(x, [-1, 10])"),
    "reshape of int64": ("int64[N,4,5] x", "Reshape(x, [0, 20])"),
    "reshape to one number": ("float[1,1] x", "Reshape <allowzero = 1> (x, [1, 1, 1])"),
    "reshape to eight axes": (IMAGE, "Reshape(x, [0, 2, 2, 5, 2, 3, 1, 1])"),
    "flatten": (IMAGE, "Flatten(x)"),
    "flatten, nothing in front": (IMAGE, "Flatten <axis = 0> (x)"),
    "flatten from the end": (IMAGE, "Flatten <axis = -1> (x)"),
    "squeeze": ("float[N,1,5,1] x", "Squeeze(x, [-1, 1])"),
    "squeeze whatever is 1": ("float[3,1,5,1] x", "Squeeze(x)"),
    "unsqueeze": ("float[N,5] x", "Unsqueeze(x, [-1, 1, 0])"),
    "transpose": (IMAGE, "Transpose <perm = [2, 0, 3, 1]> (x)"),
    "transpose, all axes": ("int64[N,4,5] x", "Transpose(x)"),
    "transpose to channels last": (IMAGE, "Transpose <perm = [0, 2, 3, 1]> (x)"),
    "transpose of bool": ("bool[N,4,5] x", "Transpose <perm = [1, 2, 0]> (x)"),
    "transpose, seven axes": ("float[N,2,3,2,1,2,3] x", "Transpose <perm = [6, 1, 5, 0, 4, 3, 2]> (x)"),
    "slice": (IMAGE, "Slice(x, [1, -3], [9223372036854775807, -1], [2, -1])"),
    "slice of channels": (IMAGE, "Slice(x, [-3], [3], [1])"),
    "slice with steps": (IMAGE, "Slice(x, [0, 1], [5, 6], [-2, 3], [2, 3])"),
    "slice backwards": (IMAGE, "Slice(x, [-1, 4], [-9223372036854775808, 0], [1, 2], [-1, -2])"),
    "slice of the batch": (IMAGE, "Slice(x, [0], [-1], [0])"),
    "slice of bool": ("bool[N,4,5] x", "Slice(x, [1], [3], [2])"),
    "slice, seven axes": ("float[N,2,3,2,1,2,5] x", "Slice(x, [1, 1], [3, 5], [2, 6], [1, 2])"),
    "expand": ("float[N,1,5] x", "Expand(x, [1, 3, 1])"),
    "expand, axes in front": ("int64[3,1] x", "Expand(x, [2, 1, 1, 4])"),
    "expand, a batch in front": ("float[1,3,1,1] x", "Expand(x, [2, 1, 3, 4])"),
    "expand of bool": ("bool[N,1] x", "Expand(x, [1, 3])"),
    "expand to the same": ("float[N,3] x", "Expand(x, [1])"),
    "tile": (IMAGE, "Tile(x, [1, 2, 1, 3])"),
    "tile of bool": ("bool[N,3] x", "Tile(x, [1, 2])"),
    "trilu": ("float[N,4,5] x", "Trilu(x)"),
    "pad": (IMAGE, "Pad(x, [0, 1, 2, 3, 0, 0, 1, 0])"),
    "pad some axes": (IMAGE, "Pad(x, [1, 2, 0, 1], , [-1, 1])"),
    "pad and cut": (IMAGE, "Pad(x, [0, -1, 2, 0, 0, 1, -2, 0])"),
    "pad of bool": ("bool[N,4] x", "Pad(x, [0, 1, 0, 2])"),
    "pad of int64 with a number": ("int64[N,4] x", "Pad(x, [0, 1, 0, 2], [7])"),
    "pad, seven axes": ("float[3,2,3,2,1,2,3] x", "Pad(x, [1, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 1])"),
    "pad by reflection": (IMAGE, 'Pad <mode = "reflect"> (x, [0, 0, 2, 3, 0, 0, 4, 0])'),
    "pad with the edge": (IMAGE, 'Pad <mode = "edge"> (x, [0, 1, 2, 0, 0, 1, 3, 2])'),
    "pad with the edge, by one": ("int64[N,4,5] x", 'Pad <mode = "edge"> (x, [0, 1, 1, 0, 0, 1])'),
    "pad from the other side": (IMAGE, 'Pad <mode = "wrap"> (x, [0, 0, 2, 3, 0, 1, 1, 0])'),
    "crop and pad": (IMAGE, "CenterCropPad <axes = [3, -2]> (x, [9, 2])"),
    "split": (IMAGE, "Split <axis = 1, num_outputs = 2> (x)", "y, z"),
    "split with a rest": (IMAGE, "Split <axis = -2, num_outputs = 2> (x)", "y, z"),
    "split into sizes": (IMAGE, "Split <axis = 2> (x, [1, 3, 1])", "y, z, v"),
    "split of bool": ("bool[N,5] x", "Split <axis = 1> (x, [2, 3])", "y, z"),
    "split, seven axes": ("float[N,4,3,2,1,2,3] x", "Split <axis = 1, num_outputs = 2> (x)", "y, z"),
    "concat": ("float[N,4,5,6] x, float[N,1,5,6] a", "Concat <axis = 1> (x, a, x)"),
    "concat from the end": ("float[N,4,5] x, float[N,4,2] a", "Concat <axis = -1> (x, a)"),
    "concat with a constant": ("float[3,4,5,6] x, float[3,4,1,6] w_a", "Concat <axis = 2> (x, w_a)"),
    "concat of bool": ("bool[N,4] x, bool[N,2] a", "Concat <axis = 1> (x, a)"),
    "concat of one": ("float[N,4] x", "Concat <axis = 1> (x)"),
    "concat, eight axes": ("float[N,2,1,2,1,2,1,3] x, float[N,2,1,2,1,3,1,3] a", "Concat <axis = 5> (x, a)"),
}


@pytest.mark.parametrize("name", CASES)
def test_same_numbers(name: str, tmp_path: Path) -> None:
    model = one_node.model(*CASES[name])
    facts = one_node.emitted(model, tmp_path)
    assert not facts.sizes
    for size in (4, 3) if "N" in CASES[name][0] else (4,):
        one_node.assert_same(model, t.feeds(model, size), tmp_path, facts)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0].startswith(IMAGE)])
def test_channels_last(name: str, tmp_path: Path) -> None:
    """The same between inputs and outputs that have their channels last in the file, where they have four axes."""
    model = one_node.model(*CASES[name])
    facts = one_node.emitted(model, tmp_path, io_layout="nhwc")
    for size in (4, 3):
        one_node.assert_same(model, t.feeds(model, size), tmp_path, facts)


FREE = [
    "slice",
    "slice of channels",
    "slice backwards",
    "tile",
    "pad",
    "pad by reflection",
    "pad from the other side",
    "crop and pad",
    "split",
    "split with a rest",
    "concat",
]
"""Cases that work on images with the channels last as well."""


@pytest.mark.parametrize("name", FREE)
def test_channels_last_for_free(name: str, tmp_path: Path) -> None:
    model = one_node.model(*CASES[name])
    one_node.emitted(model, tmp_path, io_layout="nhwc")
    assert "TRANSPOSE" not in one_node.operators(tmp_path)


def test_a_transpose_to_channels_last_is_free_behind_a_convolution(tmp_path: Path) -> None:
    model = t.model("""g (float[N,3,6,6] x, float[8,3,3,3] w_a) => (float[N,4,4,8] y) {
        c = Conv(x, w_a) y = Transpose <perm = [0, 2, 3, 1]> (c) }""")
    facts = one_node.emitted(model, tmp_path, io_layout="nhwc")
    right = t.feeds(model, 4)
    t.assert_close(t.run("tflite", tmp_path, facts, right)["y"], t.oracle(model, right)["y"])
    # The output of four axes is turned by io_layout as well: that is the one.
    assert one_node.operators(tmp_path).count("TRANSPOSE") <= 1


@pytest.mark.parametrize("diagonal", [-5, -1, 0, 2, 9])
@pytest.mark.parametrize("upper", [0, 1])
def test_trilu_drops_what_is_not_finite(diagonal: int, upper: int, tmp_path: Path) -> None:
    model = one_node.model("float[2,3,4,5] x", f"Trilu <upper = {upper}> (x, [{diagonal}])")
    x = t.normal(2, 3, 4, 5)
    x[:, :, ::2, ::3] = np.inf
    x[:, :, 1::2, ::2] = np.nan
    facts = one_node.emitted(model, tmp_path)
    one_node.assert_same(model, {"x": x}, tmp_path, facts)


def test_padding_with_infinity(tmp_path: Path) -> None:
    model = t.model("""g (float[N,3] x) => (float[N,6] y) {
        p = Constant <value_ints = [0, 1, 0, 2]> () v = Constant <value_float = -inf> () y = Pad(x, p, v) }""")
    facts = one_node.emitted(model, tmp_path)
    one_node.assert_same(model, t.feeds(model, 4), tmp_path, facts)


def test_shapes_are_constant(tmp_path: Path) -> None:
    """What is computed of a shape leaves no operators, and the batch stays open."""
    model = t.model("""g (float[N,3,4] x) => (float[N,12] y) {
        s = Shape <end = 1> (x) m = Constant <value_ints = [-1]> () t = Concat <axis = 0> (s, m) y = Reshape(x, t) }""")
    facts = one_node.emitted(model, tmp_path)
    assert one_node.operators(tmp_path) == ["RESHAPE"]
    assert not facts.sizes
    one_node.assert_same(model, t.feeds(model, 3), tmp_path, facts)


def test_size_and_eye(tmp_path: Path) -> None:
    model = t.model("""g (float[2,3] x) => (float[2,3] y, int64[1] z) {
        e = EyeLike <k = 1> (x) y = Add(x, e) a = Size(x) m = Constant <value_ints = [1]> () z = Reshape(a, m) }""")
    facts = one_node.emitted(model, tmp_path)
    one_node.assert_same(model, t.feeds(model, 1), tmp_path, facts)


REFUSED = {
    "computed shape": ("float[N,4] x, int64[2] s", "Reshape(x, s)", "the shape is computed"),
    "computed bounds": ("float[N,4] x, int64[1] s", "Slice(x, s, [3], [1])", "where it starts is computed"),
    "computed length": ("int64 x, int64 a, int64 b", "Range(x, a, b)", "is computed"),
    "nothing left": ("float[N,4] x", "Slice(x, [2], [2], [1])", "it has no elements"),
    "to no end": ("float[N,4] x", "Slice(x, [2], [9223372036854775807], [1], [-1])", "negative step"),
    "counted": ("float[5] x", "Unique(x)", "how large its result is depends on the data"),
    "nine axes": ("float[1,2,1,2,1,2,1,2,1] x", "Tile(x, [1, 2, 1, 1, 1, 1, 1, 1, 1])", "there are 9 axes"),
    "no such size": ("float[N,4] x", "Expand(x, [3, 1])", "does not expand to"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    inputs, node, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=reason):
        one_node.emitted(one_node.model(inputs, node), tmp_path)


INT8 = {
    "reshape": "Reshape(d, [0, -1])",
    "transpose": "Transpose <perm = [0, 2, 3, 1]> (d)",
    "slice": "Slice(d, [1], [3], [2])",
    "pad": "Pad(d, [0, 1, 0, 2, 0, 0, 1, 0])",
    "pad with the edge": 'Pad <mode = "edge"> (d, [0, 0, 2, 2, 0, 0, 0, 0])',
    "concat": "Concat <axis = 1> (d, d)",
    "gather": "Gather <axis = 1> (d, [1, -1])",
    "expand": "Expand(d, [2, 1, 1, 1, 1])",
    "tile": "Tile(d, [1, 1, 2, 1])",
}
"""The reference kernels have no TILE of int8, so that is done in floats."""


@pytest.mark.parametrize("name", INT8)
def test_integers_are_moved(name: str, tmp_path: Path) -> None:
    before, node = one_node.constants(INT8[name])
    model = t.model(f"""g (float[N,3,4,5] x) => (float[] y) {{
        s = Constant <value = float {{0.05}}> () z = Constant <value = int8 {{3}}> ()
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) {before}
        [node] f = {node} r = QuantizeLinear(f, s, z) y = DequantizeLinear(r, s, z) }}""")
    facts = t.emit("tflite", model, tmp_path, "int8")
    if name != "tile":
        assert [each for each in one_node.operators(tmp_path) if "QUANTIZE" in each] == ["QUANTIZE", "DEQUANTIZE"]
    one_node.assert_same(model, t.feeds(model, 4), tmp_path, facts)


@pytest.mark.parametrize(
    ("shape", "to", "codes"),
    [
        ("N,2,1,3", "1,2,2,3", ["CONCATENATION"]),
        ("N,2,1,3", "1,2,8,3", ["CONCATENATION", "CONCATENATION"]),
        ("1,5", "12,5", ["CONCATENATION", "CONCATENATION"]),
        ("3,5", "1,1", []),
        # A prime of which XNNPACK joins no such number, and two axes at once.
        ("N,1,5", "1,7,5", ["BROADCAST_TO"]),
        ("3,1", "4,3,4", ["BROADCAST_TO"]),
    ],
)
def test_what_is_repeated_a_few_times_is_joined(shape: str, to: str, codes: list[str], tmp_path: Path) -> None:
    target = [int(size) for size in to.split(",")]
    source = ["1"] * (len(target) - shape.count(",") - 1) + shape.split(",")
    out = ",".join(own if size == 1 else str(size) for own, size in zip(source, target, strict=True))
    model = t.model(
        f"""g (float[{shape}] x) => (float[{out}] y) {{
            to = Constant <value = int64[{len(target)}] {{{to}}}> ()
            a = Relu(x)
            [expand] b = Expand(a, to)
            y = Neg(b)
        }}"""
    )
    facts = t.emit("tflite", model, tmp_path)
    assert not facts.sizes
    found = json.loads((tmp_path / "tensors.json").read_text())["tensors"]
    # What reads the sizes of open axes for a BROADCAST_TO stands in front.
    made = [each["code"] for each in found if each.get("node") == "expand" and each["dtype"] == "float32"]
    assert made == codes
    for size in (4, 2):
        feeds = t.feeds(model, size)
        right = t.oracle(model, feeds)["y"]
        np.testing.assert_array_equal(t.run("tflite", tmp_path, facts, feeds)["y"], right)

"""Convolutions of TFLite against ONNX Runtime, with two kernel sets and at two sizes of the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import one_node
import onnx_ir as ir
import pytest
import target_testing as t

from retarget import catalog
from retarget.spec import DimRange

if TYPE_CHECKING:
    from retarget.protocols import Array

CASES = {
    "line": ("[N,4,9] x, float[6,4,3] w_k, float[6] w_b", "Conv <strides = [2], pads = [1, 0]> (x, w_k, w_b)"),
    "line of channels alone": ("[N,4,9] x, float[8,1,3] w_k", "Conv <group = 4, dilations = [2]> (x, w_k)"),
    "image": ("[N,4,8,9] x, float[6,4,3,3] w_k, float[6] w_b", "Conv <pads = [1, 1, 1, 1]> (x, w_k, w_b)"),
    "pads that SAME does not have": (
        "[N,4,8,8] x, float[6,4,3,3] w_k",
        "Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w_k)",
    ),
    "pads, strides and dilations of each axis": (
        "[N,4,9,8] x, float[6,4,3,2] w_k",
        "Conv <pads = [2, 0, 1, 1], strides = [2, 3], dilations = [1, 2]> (x, w_k)",
    ),
    "more pads than the kernel reaches": ("[N,4,5,5] x, float[6,4,1,1] w_k", "Conv <pads = [1, 2, 1, 0]> (x, w_k)"),
    "pads by name": ("[N,4,8,9] x, float[6,4,3,2] w_k", 'Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w_k)'),
    "strides that leave elements over": (
        "[N,4,8,9] x, float[6,4,1,1] w_k",
        'Conv <auto_pad = "SAME_UPPER", strides = [3, 4]> (x, w_k)',
    ),
    "groups": ("[N,6,8,8] x, float[4,3,3,3] w_k, float[4] w_b", "Conv <group = 2> (x, w_k, w_b)"),
    "channels alone": ("[N,4,8,8] x, float[4,1,3,3] w_k", "Conv <group = 4, pads = [1, 1, 1, 1]> (x, w_k)"),
    "several results of each channel, other strides of each axis": (
        "[N,4,8,8] x, float[12,1,3,3] w_k, float[12] w_b",
        "Conv <group = 4, strides = [2, 1], dilations = [1, 2]> (x, w_k, w_b)",
    ),
    "computed weights": ("[N,4,6,6] x, float[6,4,3,3] k", "Conv(x, k)"),
    "computed weights of channels alone": ("[N,4,6,6] x, float[4,1,3,3] k, float[4] b", "Conv <group = 4> (x, k, b)"),
    "volume": ("[N,3,4,5,6] x, float[2,3,2,3,2] w_k, float[2] w_b", "Conv <strides = [1, 2, 2]> (x, w_k, w_b)"),
    "volume, pads and dilations": (
        "[N,3,4,5,6] x, float[2,3,2,2,2] w_k",
        "Conv <pads = [1, 0, 0, 1, 1, 2], dilations = [1, 2, 3]> (x, w_k)",
    ),
    "volume in groups": ("[N,4,4,5,6] x, float[6,2,2,3,2] w_k, float[6] w_b", "Conv <group = 2> (x, w_k, w_b)"),
    "transposed line": ("[N,4,5] x, float[4,6,3] w_k, float[6] w_b", "ConvTranspose <strides = [2]> (x, w_k, w_b)"),
    "transposed image": ("[N,4,5,6] x, float[4,6,3,2] w_k", "ConvTranspose <strides = [2, 3]> (x, w_k)"),
    "transposed, cropped as SAME does": (
        "[N,4,5,6] x, float[4,6,4,4] w_k",
        "ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w_k)",
    ),
    "transposed, cropped otherwise": (
        "[N,4,5,6] x, float[4,6,3,3] w_k, float[6] w_b",
        "ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]> (x, w_k, w_b)",
    ),
    "transposed, results that nothing adds to": (
        "[N,4,5,6] x, float[4,6,1,2] w_k, float[6] w_b",
        "ConvTranspose <strides = [3, 3], output_padding = [2, 2]> (x, w_k, w_b)",
    ),
    "transposed to a size": (
        "[N,4,5,6] x, float[4,6,3,3] w_k",
        "ConvTranspose <strides = [2, 2], output_shape = [10, 12]> (x, w_k)",
    ),
    "transposed, pads by name": (
        "[N,4,5,6] x, float[4,6,3,3] w_k",
        'ConvTranspose <strides = [2, 2], auto_pad = "SAME_UPPER"> (x, w_k)',
    ),
    "transposed with dilations": (
        "[N,4,5,6] x, float[4,6,3,2] w_k",
        "ConvTranspose <strides = [2, 1], dilations = [2, 3], pads = [1, 0, 0, 2]> (x, w_k)",
    ),
    "transposed in groups": (
        "[N,4,5,6] x, float[4,3,3,3] w_k, float[6] w_b",
        "ConvTranspose <strides = [2, 2], group = 2, pads = [1, 1, 1, 1]> (x, w_k, w_b)",
    ),
    "transposed, channels alone": (
        "[N,4,5,6] x, float[4,1,4,4] w_k",
        "ConvTranspose <strides = [2, 2], group = 4, pads = [1, 1, 1, 1]> (x, w_k)",
    ),
    "transposed volume": (
        "[N,4,3,4,5] x, float[4,2,2,3,3] w_k, float[2] w_b",
        "ConvTranspose <strides = [2, 1, 2], pads = [0, 1, 1, 1, 1, 0]> (x, w_k, w_b)",
    ),
    "transposed volume in groups": (
        "[N,4,3,4,5] x, float[4,2,2,2,2] w_k",
        "ConvTranspose <strides = [2, 1, 2], group = 2> (x, w_k)",
    ),
    "columns to an image": (
        "[N,8,12] x",
        "Col2Im <strides = [1, 2], pads = [0, 1, 0, 1]> (x, [5, 5], [2, 2])",
    ),
    "columns to an image, dilations": ("[N,8,4] x", "Col2Im <dilations = [2, 3]> (x, [4, 5], [2, 2])"),
}


@pytest.mark.parametrize("name", CASES)
def test_convolutions(name: str, tmp_path: Path) -> None:
    inputs, node = CASES[name]
    model = one_node.model(f"float{inputs}", node)
    facts = one_node.emitted(model, tmp_path)
    for size in (4, *([] if facts.sizes else [2])):
        feeds = t.feeds(model, size)
        right = t.oracle(model, feeds)["y"]
        for kernels in ("xnnpack", "builtin"):
            chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
            t.assert_close(t.run("tflite", tmp_path, chosen, feeds)["y"], right)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("transposed ") or "transposed," in name])
def test_transposed_by_kernels(name: str, tmp_path: Path) -> None:
    """They hold the size of their result, and so are written where it is known."""
    inputs, node = CASES[name]
    model = one_node.model(f"float{inputs.replace('N', '2')}", node)
    facts = one_node.emitted(model, tmp_path)
    composed = "group" in node or "dilations" in node
    assert composed != bool({"TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"} & set(one_node.operators(tmp_path)))
    feeds = t.feeds(model, 2)
    t.assert_close(t.run("tflite", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"])


@pytest.mark.parametrize(
    ("node", "is_open"),
    [
        ("Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w_k)", True),
        ('Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w_k)', True),
        ('Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w_k)', False),
        ("MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x)", True),
        ("MaxPool <kernel_shape = [3, 3], ceil_mode = 1, strides = [2, 2]> (x)", False),
        ("MaxPool <kernel_shape = [2, 2], dilations = [2, 2], strides = [2, 2], pads = [1, 0, 0, 1]> (x)", True),
    ],
)
def test_images_of_all_sizes(node: str, is_open: bool, tmp_path: Path) -> None:
    """What is open holds for odd sizes, too, at none of which it was written."""
    model = one_node.model("float[1,4,H,6] x, float[4,4,3,3] w_k", node)
    job = replace(t.job("tflite", model), shapes={"H": DimRange(6, 8, 12)})
    facts = catalog.target_emit("tflite").emit(model, job, tmp_path)
    assert (not facts.sizes) == is_open
    for size in (8, 7, 11, 12) if is_open else (8,):
        feeds = t.feeds(model, size)
        t.assert_close(t.run("tflite", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"])


def test_activation_functions_are_part_of_the_kernels(tmp_path: Path) -> None:
    model = t.model("""g (float[1,4,6,6] x, float[8,4,3,3] w_a, float[8,1,3,3] w_b, float[8,3,2,2] w_c) =>
        (float[1,3,6,6] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w_a)
        low = Constant <value_float = 0.0> ()
        high = Constant <value_float = 6.0> ()
        c = Clip(a, low, high)
        b = Conv <group = 8> (c, w_b)
        r = Relu(b)
        d = ConvTranspose <pads = [1, 1, 1, 1], strides = [2, 2]> (r, w_c)
        y = Relu(d)
    }""")
    facts = one_node.emitted(model, tmp_path, io_layout="nhwc")
    assert one_node.operators(tmp_path) == ["CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "SLICE"]
    feeds = t.feeds(model, 1)
    t.assert_close(t.run("tflite", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"])


def quantized(node: str, shape: tuple[int, ...], axis: int, precision: str, batch: str = "1") -> ir.Model:
    """``node`` with int8 weights that have a scale for each index of ``axis``; in int8 its operand and result, too."""
    rng = np.random.default_rng(0)
    count = shape[axis]
    step = np.array([0.05], np.float32)
    scales = rng.uniform(0.005, 0.02, count).astype(np.float32)
    arrays: dict[str, Array] = {
        "wq": rng.integers(-127, 128, shape).astype(np.int8),
        "ws": scales,
        "bq": rng.integers(-900, 900, count).astype(np.int32),
        "bs": step * scales,
        "s": step,
        "z": np.array([0], np.int16) if precision == "int16x8" else np.array([3], np.int8),
        "t": np.array([0.06], np.float32),
    }
    body = f"""w = DequantizeLinear <axis = {axis}> (wq, ws)
        b = DequantizeLinear <axis = 0> (bq, bs)
        c = {node} (X, w, b)
        Y = Relu(c)"""
    if precision != "int8_dynamic":
        body = f"""xq = QuantizeLinear(x, s, z)
            X = DequantizeLinear(xq, s, z)
            {body}
            yq = QuantizeLinear(Y, t, z)
            y = DequantizeLinear(yq, t, z)"""
    else:
        body = body.replace("X", "x").replace("Y", "y")
    kinds = {"float32": "float", "int8": "int8", "int16": "int16", "int32": "int32"}
    inputs = ", ".join(f"{kinds[a.dtype.name]}[{','.join(map(str, a.shape))}] {name}" for name, a in arrays.items())
    model = t.model(f"g (float[{batch},4,6,6] x, {inputs}) => (float[] y) {{ {body} }}")
    for value in list(model.graph.inputs)[1:]:
        value.const_value = ir.tensor(arrays[value.name or ""], name=value.name)
        model.graph.inputs.remove(value)
        if value.uses():
            model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize("precision", ["int8", "int8_dynamic"])
@pytest.mark.parametrize(
    ("node", "shape", "axis", "code"),
    [
        ("Conv <pads = [1, 1, 1, 1]>", (6, 4, 3, 3), 0, "CONV_2D"),
        ("Conv <pads = [1, 1, 1, 1], strides = [2, 2]>", (6, 4, 3, 3), 0, "CONV_2D"),
        ("Conv <group = 2>", (6, 2, 3, 3), 0, "CONV_2D"),
        ("Conv <group = 4, strides = [1, 2]>", (8, 1, 3, 3), 0, "DEPTHWISE_CONV_2D"),
        ("ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]>", (4, 6, 3, 3), 1, "TRANSPOSE_CONV"),
    ],
)
def test_integers(node: str, shape: tuple[int, ...], axis: int, code: str, precision: str, tmp_path: Path) -> None:
    """In int8 within one step of ONNX Runtime; with dynamic ranges within what rounding to 8 bits makes of a sum."""
    model = quantized(node, shape, axis, precision)
    facts = t.emit("tflite", model, tmp_path, precision)
    assert (code if precision == "int8" else code.replace("TRANSPOSE_CONV", "CONV_2D")) in one_node.operators(tmp_path)
    feeds = {"x": np.random.default_rng(1).uniform(-3, 3, (1, 4, 6, 6)).astype(np.float32)}
    right = t.oracle(model, feeds)["y"]
    for kernels in one_node.KERNELS:
        chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
        actual = t.run("tflite", tmp_path, chosen, feeds)["y"]
        t.assert_close(actual, right, 0.0601 if precision == "int8" else 0.02 * float(np.abs(right).max()))


@pytest.mark.parametrize("precision", ["int8", "int16x8"])
@pytest.mark.parametrize("strides", ["2, 2", "1, 3"])
def test_transposed_integers_of_an_open_batch(strides: str, precision: str, tmp_path: Path) -> None:
    model = quantized(f"ConvTranspose <strides = [{strides}]>", (4, 6, 3, 3), 1, precision, "N")
    facts = t.emit("tflite", model, tmp_path, precision)
    assert not facts.sizes
    assert "CONV_2D" in one_node.operators(tmp_path)
    for size in (4, 2):
        feeds = {"x": np.random.default_rng(1).uniform(-3, 3, (size, 4, 6, 6)).astype(np.float32)}
        right = t.oracle(model, feeds)["y"]
        for kernels in one_node.KERNELS:
            chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
            t.assert_close(t.run("tflite", tmp_path, chosen, feeds)["y"], right, 0.0601)

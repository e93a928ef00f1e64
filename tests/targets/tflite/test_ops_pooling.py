"""Pooling of TFLite against ONNX Runtime, with two kernel sets and at two sizes of the batch."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import one_node
import pytest
import target_testing as t

from retarget.errors import Unsupported

LINE, IMAGE, VOLUME = "float[N,3,9] x", "float[N,3,8,9] x", "float[N,3,5,6,7] x"

WINDOWS = {
    "line": (LINE, "kernel_shape = [3], strides = [2], pads = [1, 1]"),
    "as the kernel pads": (IMAGE, "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"),
    "as no kernel pads": (IMAGE, "kernel_shape = [3, 2], strides = [2, 3], pads = [1, 0, 2, 1]"),
    "pads by name": (IMAGE, 'kernel_shape = [3, 2], strides = [2, 2], auto_pad = "SAME_LOWER"'),
    "the last window": (IMAGE, "kernel_shape = [3, 2], strides = [2, 2], ceil_mode = 1"),
    "the last window, in the pads": (
        IMAGE,
        "kernel_shape = [3, 3], strides = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1",
    ),
    "dilations": (IMAGE, "kernel_shape = [3, 2], dilations = [2, 3], strides = [2, 1], pads = [1, 1, 1, 1]"),
    "volume": (VOLUME, "kernel_shape = [3, 2, 2], strides = [2, 1, 2], pads = [1, 1, 1, 0, 1, 0]"),
    "volume with dilations": (VOLUME, "kernel_shape = [2, 2, 2], dilations = [2, 1, 2], strides = [2, 1, 1]"),
}

CASES = {
    **{
        f"{operator}, {name}": (inputs, f"{operator} <{attributes}> (x)")
        for operator in ("MaxPool", "AveragePool")
        for name, (inputs, attributes) in WINDOWS.items()
    },
    **{
        f"LpPool, {name}": (WINDOWS[name][0], f"LpPool <{WINDOWS[name][1]}> (x)")
        for name in ("line", "pads by name", "volume with dilations")
    },
    **{
        f"average with pads, {name}": (WINDOWS[name][0], f"AveragePool <count_include_pad = 1, {WINDOWS[name][1]}> (x)")
        for name in ("as the kernel pads", "pads by name", "the last window, in the pads", "volume")
    },
    "sums of magnitudes": (IMAGE, "LpPool <kernel_shape = [2, 2], p = 1> (x)"),
    "sums of cubes": (IMAGE, "LpPool <kernel_shape = [2, 2], p = 3> (x)"),
    **{
        f"{operator} of {len(inputs.split(',')) - 2} axes": (inputs, f"{operator}(x)")
        for operator in ("GlobalAveragePool", "GlobalMaxPool")
        for inputs in (LINE, IMAGE, VOLUME)
    },
}


@pytest.mark.parametrize("name", CASES)
def test_pooling(name: str, tmp_path: Path) -> None:
    model = one_node.model(*CASES[name])
    facts = one_node.emitted(model, tmp_path)
    assert not facts.sizes
    for size in (4, 2):
        feeds = t.feeds(model, size)
        right = t.oracle(model, feeds)["y"]
        for kernels in ("xnnpack", "builtin"):
            chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
            t.assert_close(t.run("tflite", tmp_path, chosen, feeds)["y"], right)


def test_pads_are_never_the_largest(tmp_path: Path) -> None:
    model = one_node.model(IMAGE, "MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 0]> (x)")
    facts = one_node.emitted(model, tmp_path)
    feeds = {name: -1 - np.abs(array) for name, array in t.feeds(model, 4).items()}
    t.assert_close(t.run("tflite", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"], 0)


@pytest.mark.parametrize(
    "attributes", ["storage_order = 1", "dilations = [2, 1]", "pads = [1, 1, 0, 1], ceil_mode = 1"]
)
def test_places_of_the_maxima(attributes: str, tmp_path: Path) -> None:
    """Of equal ones the first."""
    model = one_node.model("float[2,3,5,6] x", f"MaxPool <kernel_shape = [2, 3], {attributes}> (x)", "y, int64 z")
    facts = one_node.emitted(model, tmp_path)
    feeds = {"x": np.random.default_rng(1).integers(-2, 3, (2, 3, 5, 6)).astype(np.float32)}
    one_node.assert_same(model, feeds, tmp_path, facts)


def test_what_was_pooled_goes_back(tmp_path: Path) -> None:
    model = t.model("""g (float[2,3,4,6] x) => (float[] y) {
        p, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
        y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (p, i)
    }""")
    facts = one_node.emitted(model, tmp_path)
    one_node.assert_same(model, t.feeds(model, 2), tmp_path, facts)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_all_powers(power: int, tmp_path: Path) -> None:
    model = one_node.model(IMAGE, f"GlobalLpPool <p = {power}> (x)")
    facts = one_node.emitted(model, tmp_path)
    feeds = t.feeds(model, 4)
    right = (np.abs(feeds["x"].astype(np.float64)) ** power).sum((2, 3), keepdims=True) ** (1 / power)
    t.assert_close(t.run("tflite", tmp_path, facts, feeds)["y"], right)


def test_without_transpositions(tmp_path: Path) -> None:
    model = one_node.model("float[1,3,8,8] x", "MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)")
    one_node.emitted(model, tmp_path, io_layout="nhwc")
    assert one_node.operators(tmp_path) == ["MAX_POOL_2D"]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ('MaxPool <kernel_shape = [2, 2], dilations = [2, 2], auto_pad = "SAME_UPPER"> (x)', "with dilations"),
        ('AveragePool <kernel_shape = [1, 1], strides = [1, 4], auto_pad = "SAME_UPPER"> (x)', "leave elements"),
    ],
)
def test_refusals(node: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=reason):
        one_node.emitted(one_node.model("float[N,3,8,8] x", node), tmp_path)


@pytest.mark.parametrize("precision", ["int8", "int16x8"])
@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>", ["PADV2", "MAX_POOL_2D"]),
        ("MaxPool <kernel_shape = [2, 2], dilations = [3, 1]>", ["STRIDED_SLICE", "MAXIMUM"]),
        ("AveragePool <kernel_shape = [2, 2], strides = [2, 2]>", ["AVERAGE_POOL_2D"]),
        ("AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>", ["AVERAGE_POOL_2D"]),
        ("GlobalAveragePool", ["MEAN"]),
        ("GlobalMaxPool", ["REDUCE_MAX"]),
    ],
)
def test_integers(node: str, expected: list[str], precision: str, tmp_path: Path) -> None:
    """Within one step of ONNX Runtime, and without floats in between."""
    kind, step, zero = ("int8", 0.05, 3) if precision == "int8" else ("int16", 0.0003, 0)
    model = t.model(f"""g (float[1,3,8,8] x) => (float[] y) {{
        s = Constant <value_float = {step}> ()
        z = Constant <value = {kind} z0 {{{zero}}}> ()
        xq = QuantizeLinear(x, s, z)
        xd = DequantizeLinear(xq, s, z)
        p = {node} (xd)
        yq = QuantizeLinear(p, s, z)
        y = DequantizeLinear(yq, s, z)
    }}""")
    facts = t.emit("tflite", model, tmp_path, precision)
    done = one_node.operators(tmp_path)
    inside = done[done.index("QUANTIZE") + 1 : done.index("DEQUANTIZE")]
    assert {code for code in inside if code != "TRANSPOSE"} == set(expected)
    feeds = {"x": np.random.default_rng(1).uniform(-4, 4, (1, 3, 8, 8)).astype(np.float32)}
    right = t.oracle(model, feeds)["y"]
    for kernels in one_node.KERNELS:
        chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
        t.assert_close(t.run("tflite", tmp_path, chosen, feeds)["y"], right, 1.01 * step)

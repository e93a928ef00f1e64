"""Resize, shuffled blocks and sampled images of TFLite against ONNX Runtime, with two kernel sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import one_node
import onnx_ir as ir
import pytest
import target_testing as t

from retarget.errors import Unsupported

if TYPE_CHECKING:
    from retarget.facts import EmitFacts

NEAREST, LINEAR = "RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"


def resize(shape: str, scales: list[float], **attributes: str | float) -> ir.Model:
    """A Resize of ``shape``, such as ``[N,3,4,5]``, by ``scales``."""
    given = {"mode": "linear", **attributes}
    texts = {name: f'"{each}"' if isinstance(each, str) else f"{each}" for name, each in given.items()}
    listed = ", ".join(f"{name} = {text}" for name, text in texts.items())
    return t.model(f"""g (float{shape} x) => (float[] y) {{
        s = Constant <value_floats = {scales}> ()
        y = Resize <{listed}> (x, , s)
    }}""")


def assert_same(model: ir.Model, out: Path, facts: EmitFacts, atol: float = 1e-5) -> None:
    for size in (4, *([] if facts.sizes else [2])):
        feeds = t.feeds(model, size)
        right = t.oracle(model, feeds)["y"]
        for kernels in ("xnnpack", "builtin"):
            chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
            t.assert_close(t.run("tflite", out, chosen, feeds)["y"], right, atol)


def work(out: Path) -> set[str]:
    """The operators of the file, but for those that only place what others work on."""
    return set(one_node.operators(out)) - {"TRANSPOSE", "RESHAPE"}


COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_coordinates(mode: str, coordinates: str, tmp_path: Path) -> None:
    """Twice as large, which kernels do, and by factors that no kernel has."""
    model = resize("[2,3,4,5]", [1.0, 1.0, 2.0, 2.3], mode=mode, coordinate_transformation_mode=coordinates)
    assert_same(model, tmp_path, one_node.emitted(model, tmp_path))
    if mode == "cubic":
        assert work(tmp_path) == {"BATCH_MATMUL"}


@pytest.mark.parametrize(
    ("mode", "attributes", "expected"),
    [
        ("nearest", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, NEAREST),
        ("nearest", {"coordinate_transformation_mode": "half_pixel"}, NEAREST),
        ("nearest", {"coordinate_transformation_mode": "align_corners", "nearest_mode": "ceil"}, "GATHER"),
        ("linear", {"coordinate_transformation_mode": "half_pixel"}, LINEAR),
        ("linear", {"coordinate_transformation_mode": "pytorch_half_pixel"}, LINEAR),
        ("linear", {"coordinate_transformation_mode": "asymmetric"}, LINEAR),
        ("linear", {"coordinate_transformation_mode": "align_corners"}, LINEAR),
        ("linear", {"antialias": 1}, LINEAR),
    ],
)
def test_kernels_where_they_do_the_same(
    mode: str, attributes: dict[str, str | float], expected: str, tmp_path: Path
) -> None:
    model = resize("[N,3,4,5]", [1.0, 1.0, 2.0, 2.0], mode=mode, **attributes)
    facts = one_node.emitted(model, tmp_path)
    assert work(tmp_path) == {expected}
    assert not facts.sizes
    assert_same(model, tmp_path, facts)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_rounding(rounding: str, tmp_path: Path) -> None:
    model = resize("[2,3,7,6]", [1.0, 1.0, 0.6, 1.5], mode="nearest", nearest_mode=rounding)
    assert_same(model, tmp_path, one_node.emitted(model, tmp_path), 0)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ("[N,3,5]", [1.0, 1.0, 2.0]),
        ("[N,3,5]", [1.0, 1.0, 1.7]),
        ("[N,2,3,4,5]", [1.0, 1.0, 2.0, 2.0, 2.0]),
        ("[N,2,3,4,5]", [1.0, 1.0, 1.5, 0.6, 1.0]),
        ("[3,4]", [2.0, 1.5]),
        ("[2,3,4,5]", [1.0, 1.0, 1.0, 1.0]),
        ("[2,3,1,1]", [1.0, 1.0, 3.0, 2.0]),
    ],
)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_axes(shape: str, scales: list[float], mode: str, tmp_path: Path) -> None:
    model = resize(shape, scales, mode=mode)
    assert_same(model, tmp_path, one_node.emitted(model, tmp_path))


@pytest.mark.parametrize(("shape", "scales"), [("[4]", [2.5]), ("[2,3,4,5]", [2.0, 1.4, 1.0, 1.0])])
def test_axes_that_are_no_images(shape: str, scales: list[float], tmp_path: Path) -> None:
    model = resize(shape, scales, mode="nearest")
    assert_same(model, tmp_path, one_node.emitted(model, tmp_path), 0)


@pytest.mark.parametrize(
    "attributes",
    [
        {"exclude_outside": 1},
        {"cubic_coeff_a": -0.5, "exclude_outside": 1},
        {"antialias": 1},
    ],
)
def test_cubic(attributes: dict[str, float], tmp_path: Path) -> None:
    model = resize("[2,3,6,5]", [1.0, 1.0, 0.5, 1.6], mode="cubic", **attributes)
    assert_same(model, tmp_path, one_node.emitted(model, tmp_path))


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
def test_sizes(policy: str, tmp_path: Path) -> None:
    model = one_node.model(
        "float[N,3,4,5] x",
        f'Resize <mode = "linear", axes = [3, 2], keep_aspect_ratio_policy = "{policy}"> (x, , , [9, 6])',
    )
    assert_same(model, tmp_path, one_node.emitted(model, tmp_path))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_crops(mode: str, tmp_path: Path) -> None:
    model = t.model(f"""g (float[2,3,4,5] x) => (float[] y) {{
        r = Constant <value_floats = [0.2, -0.3, 0.8, 1.2]> ()
        s = Constant <value_ints = [6, 7]> ()
        y = Resize <mode = "{mode}", axes = [2, 3], coordinate_transformation_mode = "tf_crop_and_resize",
                    extrapolation_value = 7.0> (x, r, , s)
    }}""")
    assert_same(model, tmp_path, one_node.emitted(model, tmp_path))


def test_whole_numbers(tmp_path: Path) -> None:
    model = t.model("""g (int32[2,3,4,5] x) => (int32[] y) {
        s = Constant <value_floats = [1.0, 1.0, 2.0, 3.0]> ()
        y = Resize <mode = "nearest"> (x, , s)
    }""")
    assert_same(model, tmp_path, one_node.emitted(model, tmp_path), 0)


@pytest.mark.parametrize(
    ("inputs", "node", "expected"),
    [
        ("[N,8,4,5]", "DepthToSpace <blocksize = 2> (x)", {"DEPTH_TO_SPACE"}),
        ("[N,8,4,5]", 'DepthToSpace <blocksize = 2, mode = "CRD"> (x)', set()),
        ("[N,3,4,6]", "SpaceToDepth <blocksize = 2> (x)", {"SPACE_TO_DEPTH"}),
    ],
)
def test_blocks(inputs: str, node: str, expected: set[str], tmp_path: Path) -> None:
    model = one_node.model(f"float{inputs} x", node)
    facts = one_node.emitted(model, tmp_path)
    assert not facts.sizes
    assert work(tmp_path) == expected
    assert_same(model, tmp_path, facts, 0)


@pytest.mark.parametrize(
    ("mode", "padding", "corners"),
    [
        ("nearest", "zeros", 1),
        ("nearest", "border", 0),
        ("nearest", "reflection", 0),
        ("linear", "zeros", 0),
        ("linear", "border", 1),
        ("linear", "reflection", 1),
        ("cubic", "zeros", 1),
        ("cubic", "reflection", 0),
    ],
)
def test_samples(mode: str, padding: str, corners: int, tmp_path: Path) -> None:
    """Also of places far outside."""
    model = one_node.model(
        "float[2,3,5,1] x, float[2,4,3,2] g",
        f'GridSample <mode = "{mode}", padding_mode = "{padding}", align_corners = {corners}> (x, g)',
    )
    assert_same(model, tmp_path, one_node.emitted(model, tmp_path))


def test_samples_of_volumes(tmp_path: Path) -> None:
    model = one_node.model("float[N,2,3,4,5] x, float[N,2,3,4,3] g", 'GridSample <padding_mode = "border"> (x, g)')
    facts = one_node.emitted(model, tmp_path)
    assert not facts.sizes
    assert_same(model, tmp_path, facts)


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize(("theta", "size"), [("[2,2,3]", "[2, 3, 4, 5]"), ("[2,3,4]", "[2, 3, 4, 5, 6]")])
def test_grids(theta: str, size: str, corners: int, tmp_path: Path) -> None:
    model = one_node.model(f"float{theta} x", f"AffineGrid <align_corners = {corners}> (x, {size})")
    assert_same(model, tmp_path, one_node.emitted(model, tmp_path))


@pytest.mark.parametrize(
    ("weight", "attributes"), [("w_k", "pads = [1, 1, 1, 1]"), ("k", "strides = [2, 1], offset_group = 2")]
)
def test_deformed(weight: str, attributes: str, tmp_path: Path) -> None:
    parts, rows, columns = (1, 5, 6) if weight == "w_k" else (2, 2, 4)
    model = t.model(f"""g (float[2,4,4,5] x, float[3,4,2,2] {weight}, float[2,{parts * 8},{rows},{columns}] o,
            float[3] w_b, float[2,{parts * 4},{rows},{columns}] m) => (float[] y) {{
        y = DeformConv <{attributes}> (x, {weight}, o, w_b, m)
    }}""")
    assert_same(model, tmp_path, one_node.emitted(model, tmp_path))


@pytest.mark.parametrize("precision", ["int8", "int16x8"])
@pytest.mark.parametrize(
    ("node", "expected", "sixteen"),
    [
        ('Resize <mode = "linear"> (xd, , f)', LINEAR, False),
        ('Resize <mode = "nearest"> (xd, , f)', NEAREST, True),
        ('Resize <mode = "nearest", nearest_mode = "ceil"> (xd, , f)', "GATHER", True),
        ("DepthToSpace <blocksize = 2> (xd)", "TRANSPOSE", True),
        ("SpaceToDepth <blocksize = 2> (xd)", "SPACE_TO_DEPTH", False),
    ],
)
def test_integers(node: str, expected: str, sixteen: bool, precision: str, tmp_path: Path) -> None:
    """Within one step of ONNX Runtime; with 16 bits in floats where kernels of integers lack them or are coarse."""
    kind, step, zero = ("int8", 0.05, 3) if precision == "int8" else ("int16", 0.0003, 0)
    model = t.model(f"""g (float[1,4,4,6] x) => (float[] y) {{
        s = Constant <value_float = {step}> ()
        z = Constant <value = {kind} z0 {{{zero}}}> ()
        f = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
        xq = QuantizeLinear(x, s, z)
        xd = DequantizeLinear(xq, s, z)
        p = {node}
        yq = QuantizeLinear(p, s, z)
        y = DequantizeLinear(yq, s, z)
    }}""")
    facts = t.emit("tflite", model, tmp_path, precision)
    done = one_node.operators(tmp_path)
    assert (done.index("DEQUANTIZE") > done.index(expected)) == (precision == "int8" or sixteen)
    feeds = {"x": np.random.default_rng(1).uniform(-4, 4, (1, 4, 4, 6)).astype(np.float32)}
    right = t.oracle(model, feeds)["y"]
    for kernels in ("xnnpack", "builtin"):
        chosen = msgspec.structs.replace(facts, settings={**facts.settings, "kernels": kernels})
        t.assert_close(t.run("tflite", tmp_path, chosen, feeds)["y"], right, 1.01 * step)


def test_what_is_refused(tmp_path: Path) -> None:
    model = t.model("""g (float[2,3,4,5] x) => (float[] y) {
        r = Constant <value_floats = [0.2, 0.0, 0.8, 1.0]> ()
        s = Constant <value_ints = [4, 7]> ()
        y = Resize <axes = [2, 3], coordinate_transformation_mode = "tf_crop_and_resize"> (x, r, , s)
    }""")
    with pytest.raises(Unsupported, match="roi of an axis that keeps its size"):
        one_node.emitted(model, tmp_path)

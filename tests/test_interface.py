"""The user's view of a model's border: specs both ways, and a source that speaks it against a changed model."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Self

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from retarget import graph
from retarget.compare import snr_db
from retarget.errors import RetargetError
from retarget.interface import Interface, Layouts, Normalize
from retarget.interface_graph import apply, source_layouts
from retarget.interface_runner import normalized, wrap
from retarget.session import Session
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds, Outputs

NHWC = """
<ir_version: 11, opset_import: ["": 23]>
g (float[N,8,6,3] image, float[N,4] extra) => (float[N,8,6,2] mask, float[N,4] other)
{
    x = Transpose<perm=[0,3,1,2]>(image)
    y = Conv<pads=[1,1,1,1]>(x, w, b)
    mask = Transpose<perm=[0,2,3,1]>(y)
    other = Relu(extra)
}
"""
SPECS = tuple(map(TensorSpec.parse, ("image=float32[N,8,6,3]", "extra=float32[N,4]")))
OUTPUTS = tuple(map(TensorSpec.parse, ("mask=float32[N,8,6,2]", "other=float32[N,4]")))


def _model(text: str = NHWC) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (2, 3, 3, 3)), ("b", (2,)), ("c", (1,))):
        if any(name in node.input for node in proto.graph.node):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
    return ir.from_proto(proto)


def _feeds(specs: tuple[TensorSpec, ...], seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in specs:
        values = rng.integers(0, 256, spec.at({"N": 2}))
        feeds[spec.name] = values.astype(spec.dtype) if spec.dtype == "uint8" else values.astype("f4") + 0.5
    return feeds


def _agree(text: str, interface: Interface, inputs: tuple[TensorSpec, ...]) -> ir.Model:
    """The changed model against the unchanged one, wrapped. Gives the changed one."""
    model = _model(text)
    apply(model, interface)
    user = interface.user_inputs(inputs)
    assert tuple(graph.value_spec(value) for value in model.graph.inputs) == user
    feeds = _feeds(user)
    with wrap(Session(_model(text)), interface, inputs) as source, Session(model) as changed:
        expected, actual = source.run(feeds), changed.run(feeds)
    assert list(expected) == list(actual)
    for name, value in expected.items():
        assert value.std() > 0
        assert snr_db(value, actual[name]) >= 110
    return model


NORMALIZE = Normalize(scale="1/255", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
NCHW = """
<ir_version: 11, opset_import: ["": 23]>
g (float[N,3,8,6] image) => (float[N,2,6,4] y)
{
    y = Conv(image, w)
}
"""


# ---- specs


def test_no_interface_changes_nothing() -> None:
    plain = Interface("nhwc")
    assert not plain.changes
    assert plain.source_specs(SPECS) == plain.user_inputs(SPECS) == SPECS
    runner = Session(_model())
    with runner:
        assert wrap(runner, plain, SPECS) is runner


@pytest.mark.parametrize(
    ("layout", "image", "mask"),
    [
        ("nchw", "float32[N,3,8,6]", "float32[N,2,8,6]"),
        ("nhwc", "float32[N,8,6,3]", "float32[N,8,6,2]"),
        ({"image": "nchw"}, "float32[N,3,8,6]", "float32[N,8,6,2]"),
        ({"mask": "nchw"}, "float32[N,8,6,3]", "float32[N,2,8,6]"),
        ({"mask": "nhwc"}, "float32[N,8,6,3]", "float32[N,8,6,2]"),
    ],
)
def test_specs_of_both_views(layout: Layouts, image: str, mask: str) -> None:
    interface = Interface("nhwc", layout)
    user = interface.user_inputs(SPECS)
    assert [spec.type for spec in user] == [image, "float32[N,4]"]
    assert [spec.type for spec in interface.user_outputs(OUTPUTS)] == [mask, "float32[N,4]"]
    assert interface.source_specs(user) == SPECS


def test_pixels_are_the_users_type() -> None:
    interface = Interface("nhwc", "nchw", Normalize(dtype="uint8"))
    user = interface.user_inputs(SPECS)
    assert user[0].type == "uint8[N,3,8,6]"
    assert interface.source_specs(user) == SPECS
    with pytest.raises(RetargetError, match=r"is float32, and `normalize` says.*uint8"):
        interface.source_specs([TensorSpec.parse("image=float32[N,3,8,6]")])


@pytest.mark.parametrize(("rank", "turned"), [(3, "float32[a,c,b]"), (5, "float32[a,e,b,c,d]")])
def test_other_ranks_where_named(rank: int, turned: str) -> None:
    spec = TensorSpec("x", "float32", tuple("abcde"[:rank]))
    assert Interface("nhwc", "nchw").user_inputs([spec]) == (spec,)
    named = Interface("nhwc", {"x": "nchw"})
    assert named.user_inputs([spec])[0].type == turned
    assert named.source_specs(named.user_inputs([spec])) == (spec,)


def test_other_ranks_have_no_layout() -> None:
    with pytest.raises(RetargetError, match="'extra' has 2 axes, and a layout needs 3 to 5"):
        Interface("nhwc", {"extra": "nchw"}).source_specs(SPECS)
    with pytest.raises(RetargetError, match=r"no input or output 'imag'[\s\S]*'image'"):
        apply(_model(), Interface("nhwc", {"imag": "nchw"}))


def test_normalize_finds_its_input() -> None:
    two = (*SPECS, TensorSpec.parse("second=float32[N,8,6,3]"))
    assert Interface("nhwc", None, NORMALIZE).normalized(SPECS) == "image"
    with pytest.raises(RetargetError, match="2 inputs have 4 axes"):
        Interface("nhwc", None, NORMALIZE).normalized(two)
    assert Interface("nhwc", None, Normalize(input="second")).normalized(two) == "second"
    with pytest.raises(RetargetError, match=r"no input 'secnd'[\s\S]*'second'"):
        Interface("nhwc", None, Normalize(input="secnd")).normalized(two)


def test_normalize_is_refused_where_it_makes_no_sense() -> None:
    for wrong in (
        {"std": 0.0},
        {"std": (1.0, 0.0)},
        {"scale": 0.0},
        {"scale": "1/0"},
        {"mean": (1.0,), "std": (1.0, 2.0)},
    ):
        with pytest.raises(RetargetError):
            Normalize(**wrong)
    with pytest.raises(RetargetError, match="mean has 2 numbers, and the input 3 channels"):
        apply(_model(), Interface("nhwc", None, Normalize(mean=(1.0, 2.0))))


def test_numbers_are_in_the_models_order_after_the_swap() -> None:
    """Three pixels by hand: (swapped · scale - mean) / std."""
    pixels = np.array([[[[10, 20, 30]]]], np.uint8)
    block = Normalize(swap_channels=True, scale=0.5, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    assert normalized(pixels, block, 3).ravel().tolist() == [14.0, 4.0, 0.5]
    assert normalized(pixels.transpose(0, 3, 1, 2), block, 1).ravel().tolist() == [14.0, 4.0, 0.5]


# ---- the model against the wrapped source


@pytest.mark.parametrize("layout", ["nchw", "nhwc", {"image": "nchw"}, {"mask": "nchw"}, None])
@pytest.mark.parametrize(
    "normalize",
    [
        None,
        NORMALIZE,
        Normalize(swap_channels=True),
        Normalize(dtype="uint8", swap_channels=True, scale=2.0, mean=3.0, std=4.0),
        Normalize(mean=(1.0, 2.0, 3.0)),
    ],
)
def test_model_does_what_the_wrapped_source_does(layout: Layouts | None, normalize: Normalize | None) -> None:
    _agree(NHWC, Interface("nhwc", layout, normalize), SPECS)


@pytest.mark.parametrize("layout", ["nchw", "nhwc", None])
def test_from_channels_first_too(layout: Layouts | None) -> None:
    specs = (TensorSpec.parse("image=float32[N,3,8,6]"),)
    model = _agree(NCHW, Interface("nchw", layout, NORMALIZE), specs)
    assert [node.op_type for node in model.graph].count("Transpose") == (2 if layout == "nhwc" else 0)


def test_input_that_goes_out_unchanged_is_turned_twice() -> None:
    text = """
    <ir_version: 11, opset_import: ["": 23]>
    g (float[N,8,6,3] image) => (float[N,8,6,3] same)
    { same = Identity(image) }
    """
    _agree(text, Interface("nhwc", "nchw"), (SPECS[0],))


def test_normalize_needs_floats_and_known_channels() -> None:
    text = NCHW.replace("float[N,3,8,6] image", "float[N,C,8,6] image")
    with pytest.raises(RetargetError, match="channels of input 'image' have no fixed size"):
        apply(_model(text), Interface("nchw", None, NORMALIZE))
    whole = """
    <ir_version: 11, opset_import: ["": 23]>
    g (uint8[N,8,6,3] image) => (uint8[N,8,6,3] same)
    { same = Identity(image) }
    """
    with pytest.raises(RetargetError, match="takes uint8 for input 'image'"):
        apply(_model(whole), Interface("nhwc", None, NORMALIZE))


# ---- ONNX files, of which nobody says where they are from


def test_layout_of_an_onnx_file() -> None:
    assert source_layouts(_model()) == {"image": "nhwc", "mask": "nhwc", "other": "nhwc"}
    assert source_layouts(_model(NCHW)) == {"image": "nchw", "y": "nchw"}
    scaled = NHWC.replace("x = Transpose<perm=[0,3,1,2]>(image)", "s = Mul(image, c) x = Transpose<perm=[0,3,1,2]>(s)")
    assert (
        source_layouts(_model(scaled.replace("<float[2,3,3,3] w", "<float[1] c, float[2,3,3,3] w")))["image"] == "nhwc"
    )
    both = NHWC.replace("other = Relu(extra)", "other = Relu(extra) r = ReduceMean(image)")
    assert source_layouts(_model(both))["image"] == "nchw"


def test_recipes_can_be_read_without_numpy() -> None:
    code = "import sys, retarget.interface; assert not {'numpy', 'onnx', 'onnx_ir'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class Echo:
    """A source that gives back what it takes, to see what the wrapper makes of it."""

    settings = "echo"

    def __init__(self) -> None:
        self.closed = False

    def run(self, feeds: Feeds) -> Outputs:
        return dict(feeds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


def test_wrapped_source_keeps_settings_and_closes() -> None:
    echo = Echo()
    with wrap(echo, Interface("nhwc", "nchw"), SPECS) as runner:
        assert runner.settings == "echo"
        feed = np.arange(2 * 3 * 8 * 6, dtype="f4").reshape(2, 3, 8, 6)
        assert np.array_equal(runner.run({"image": feed})["image"], feed)
    assert echo.closed


def test_the_layout_that_users_see() -> None:
    own = Interface(source={"image": "nhwc"})
    assert own.layout_of("image", 4) == "nhwc"
    assert own.layout_of("other", 4) == "nchw"
    assert Interface(source="nhwc", layout="nchw").layout_of("image", 4) == "nchw"
    assert Interface(source="nhwc", layout={"other": "nchw"}).layout_of("image", 4) == "nhwc"

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

import ml_dtypes
import msgspec
import numpy as np
import pytest

from retarget.adapt import Adapted, from_artifact, to_artifact
from retarget.errors import RetargetError, ToolchainFailure
from retarget.facts import EmitFacts, IoEntry
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs


def entry(
    spec: str,
    artifact_name: str,
    artifact_dtype: str,
    *,
    permutation: tuple[int, ...] | None = None,
    scale: float | None = None,
    zero_point: int | None = None,
) -> IoEntry:
    parsed = TensorSpec.parse(spec)
    return IoEntry(
        name=parsed.name,
        artifact_name=artifact_name,
        spec=parsed,
        artifact_dtype=artifact_dtype,
        permutation=permutation,
        scale=scale,
        zero_point=zero_point,
    )


class Doubler:
    """An artifact that speaks float16 and names of its own."""

    settings = "CPU, 1 thread"
    entered = False

    def run(self, feeds: Feeds) -> Outputs:
        assert self.entered
        assert feeds["in_0"].dtype == np.float16
        return {"out_0": np.multiply(feeds["in_0"], np.float16(2), dtype=np.float16), "unused": feeds["in_0"]}

    def __enter__(self) -> Self:
        self.entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.entered = False


def test_a_runner_speaks_the_users_names_and_types() -> None:
    doubler = Doubler()
    adapted = Adapted(doubler, [entry("x=float32[N]", "in_0", "float16")], [entry("y=float32[N]", "out_0", "float16")])
    with adapted as runner:
        outputs = runner.run({"x": np.array([1.5, -2], np.float32)})
    assert list(outputs) == ["y"]
    assert outputs["y"].dtype == np.float32
    assert outputs["y"].tolist() == [3.0, -4.0]
    assert adapted.settings == "CPU, 1 thread"
    assert not doubler.entered


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({}, "input 'x' is not fed"),
        ({"x": np.zeros((1, 3), np.float32), "z": np.zeros(1)}, "there is no input 'z'"),
        ({"x": np.zeros((1, 3))}, "input 'x' is fed float64, not float32"),
        ({"x": np.zeros((1, 4), np.float32)}, "input 'x' is fed the shape [1, 4], not float32[N,3]"),
        ({"x": np.zeros(3, np.float32)}, "input 'x' is fed the shape [3], not float32[N,3]"),
        ({"x": np.full((1, 3), 70000, np.float32)}, "'x' holds 70000.0, which is beyond float16"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(feeds: Outputs, says: str) -> None:
    with pytest.raises(RetargetError, match=r".") as caught:
        to_artifact(feeds, [entry("x=float32[N,3]", "in_0", "float16")])
    assert caught.value.message == says
    assert caught.value.hint


def test_integers_are_narrowed_only_where_they_fit() -> None:
    narrow = [entry("ids=int64[N]", "ids", "int32")]
    fits = to_artifact({"ids": np.array([-(2**31), 2**31 - 1])}, narrow)["ids"]
    assert fits.dtype == np.int32
    assert fits.tolist() == [-(2**31), 2**31 - 1]
    for beyond in (2**31, -(2**31) - 1):
        with pytest.raises(RetargetError, match=f"'ids' holds {beyond}, which int32 cannot hold"):
            to_artifact({"ids": np.array([0, beyond])}, narrow)
    assert to_artifact({"ids": np.zeros(0, np.int64)}, narrow)["ids"].dtype == np.int32


def test_integers_become_floats_only_where_floats_hold_each() -> None:
    entries = [entry("ids=int64[N]", "ids", "float32")]
    fits = to_artifact({"ids": np.array([-(2**24), 2**24])}, entries)["ids"]
    assert fits.dtype == np.float32
    assert fits.tolist() == [-(2.0**24), 2.0**24]
    for beyond in (2**24 + 1, -(2**24) - 1):
        with pytest.raises(RetargetError, match=f"'ids' holds {beyond}, beyond what float32 holds each integer of"):
            to_artifact({"ids": np.array([0, beyond])}, entries)


def test_infinities_and_nan_pass() -> None:
    array = np.array([np.inf, -np.inf, np.nan, 1], np.float32)
    converted = to_artifact({"x": array}, [entry("x=float32[N]", "x", "float16")])["x"]
    assert np.array_equal(converted, array.astype(np.float16), equal_nan=True)


def test_bfloat16_is_a_type_like_others() -> None:
    outputs = from_artifact({"y": np.array([1, 2.5], np.float32)}, [entry("y=bfloat16[N]", "y", "float32")])
    assert outputs["y"].dtype == ml_dtypes.bfloat16


def test_axes_are_the_users_on_both_sides() -> None:
    image = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    there = to_artifact({"x": image}, [entry("x=float32[N,3,4,5]", "in", "float32", permutation=(0, 2, 3, 1))])["in"]
    assert there.shape == (2, 4, 5, 3)
    assert there.flags.c_contiguous
    assert there[1, 3, 2, 0] == image[1, 0, 3, 2]
    back = from_artifact({"out": there}, [entry("y=float32[N,3,4,5]", "out", "float32", permutation=(0, 2, 3, 1))])["y"]
    assert back.flags.c_contiguous
    assert np.array_equal(back, image)
    # Three axes that turn: here the inverse is another permutation.
    turned = from_artifact({"out": there[0]}, [entry("y=float32[3,4,5]", "out", "float32", permutation=(1, 2, 0))])["y"]
    assert np.array_equal(turned, image[0])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_floats_become_codes_and_codes_floats(dtype: str) -> None:
    limits = np.iinfo(dtype)
    coded = entry("x=float32[N]", "x", dtype, scale=0.5, zero_point=10)
    values = np.array([0, 0.25, 0.75, 1.25, -0.25, 3, 1e9, -1e9, np.inf, -np.inf], np.float32)
    codes = to_artifact({"x": values}, [coded])["x"]
    assert codes.dtype == limits.dtype
    # Halves go to the even neighbour before the zero point is added.
    assert codes.tolist() == [10, 10, 12, 12, 10, 16, limits.max, limits.min, limits.max, limits.min]
    floats = from_artifact({"x": codes}, [coded])["x"]
    assert floats.dtype == np.float32
    assert floats[:6].tolist() == [0, 0, 1, 1, 0, 3]
    assert floats[6:8].tolist() == [(limits.max - 10) * 0.5, (limits.min - 10) * 0.5]


def test_codes_turn_with_their_axes() -> None:
    coded = entry("x=float32[2,3]", "x", "int8", permutation=(1, 0), scale=0.25, zero_point=-3)
    values = np.array([[0, 1, 2], [-1, -2, -3]], np.float32)
    codes = to_artifact({"x": values}, [coded])["x"]
    assert codes.tolist() == [[-3, -7], [1, -11], [5, -15]]
    assert np.array_equal(from_artifact({"x": codes}, [coded])["x"], values)


def test_there_is_no_code_for_nan() -> None:
    with pytest.raises(RetargetError, match="'x' holds NaN, for which int8 has no code") as caught:
        to_artifact({"x": np.array([1, np.nan], np.float32)}, [entry("x=float32[N]", "x", "int8", scale=1.0)])
    assert caught.value.hint


def test_a_dimension_of_one_size_takes_no_other() -> None:
    entries = [entry("x=float32[N,T]", "x", "float32"), entry("ids=int64[N]", "ids", "int64")]
    feeds: Outputs = {"x": np.zeros((2, 5), np.float32), "ids": np.zeros(2, np.int64)}
    assert to_artifact(feeds, entries, {"T": 5})["x"].shape == (2, 5)
    with pytest.raises(RetargetError) as caught:
        to_artifact(feeds, entries, {"T": 4})
    assert caught.value.message == "input 'x' is fed T=5, and the artifact was built for T=4 alone"
    assert caught.value.hint == "feed T=4, or build again with --shape T=5"
    with pytest.raises(RetargetError, match="is fed N=2, and the artifact was built for N=1 alone"):
        Adapted(Doubler(), entries, [], {"N": 1}).run(feeds)


def test_what_older_manifests_say_is_read() -> None:
    old = b"""{"target": "openvino", "variant_precision": "fp32", "inputs": [{"name": "x", "artifact_name": "x", "spec":
        {"name": "x", "dtype": "float32", "shape": ["N"]}, "artifact_dtype": "float32"}], "outputs": [], "precision":
        {"weights": "float32", "activations": "float32", "io": "float32", "low_precision_share": null}}"""
    facts = msgspec.json.decode(old, type=EmitFacts)
    assert (facts.sizes, facts.inputs[0].permutation, facts.inputs[0].scale) == ({}, None, None)


def test_a_missing_output_is_the_artifacts_fault() -> None:
    with pytest.raises(ToolchainFailure, match="the artifact gave no output 'out_1'"):
        from_artifact({"out_0": np.zeros(1)}, [entry("y=float32[N]", "out_1", "float32")])

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

import ml_dtypes
import numpy as np
import pytest

from retarget.adapt import Adapted, from_artifact, to_artifact
from retarget.errors import RetargetError, ToolchainFailure
from retarget.facts import IoEntry
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs


def entry(spec: str, artifact_name: str, artifact_dtype: str) -> IoEntry:
    parsed = TensorSpec.parse(spec)
    return IoEntry(name=parsed.name, artifact_name=artifact_name, spec=parsed, artifact_dtype=artifact_dtype)


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


def test_infinities_and_nan_pass() -> None:
    array = np.array([np.inf, -np.inf, np.nan, 1], np.float32)
    converted = to_artifact({"x": array}, [entry("x=float32[N]", "x", "float16")])["x"]
    assert np.array_equal(converted, array.astype(np.float16), equal_nan=True)


def test_bfloat16_is_a_type_like_others() -> None:
    outputs = from_artifact({"y": np.array([1, 2.5], np.float32)}, [entry("y=bfloat16[N]", "y", "float32")])
    assert outputs["y"].dtype == ml_dtypes.bfloat16


def test_a_missing_output_is_the_artifacts_fault() -> None:
    with pytest.raises(ToolchainFailure, match="the artifact gave no output 'out_1'"):
        from_artifact({"out_0": np.zeros(1)}, [entry("y=float32[N]", "out_1", "float32")])

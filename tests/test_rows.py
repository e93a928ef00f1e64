from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import pytest

from retarget.rows import InRows

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs


class FourRows:
    """An artifact that takes four rows, and an input that has none."""

    settings = "CPU"
    calls = 0

    def run(self, feeds: Feeds) -> Outputs:
        self.calls += 1
        assert feeds["x"].shape == (4, 2)
        assert feeds["scale"].shape == (3,)
        return {"y": np.multiply(feeds["x"], feeds["scale"][0]), "first": feeds["x"][:, 0]}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


@pytest.mark.parametrize(
    ("rows", "calls", "filled"), [(1, 1, 3), (3, 1, 1), (4, 1, 0), (5, 2, 3), (8, 2, 0), (11, 3, 1)]
)
def test_any_number_of_rows_runs_in_calls_of_four(rows: int, calls: int, filled: int) -> None:
    artifact = FourRows()
    x = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    with InRows(artifact, ["x"], 4, name="tflite/fp32") as runner:
        outputs = runner.run({"x": x, "scale": np.full(3, 2, np.float32)})
    assert artifact.calls == calls
    assert np.array_equal(outputs["y"], 2 * x)
    assert np.array_equal(outputs["first"], x[:, 0])
    assert runner.filled == filled
    said = f"tflite/fp32 takes batches of 4 alone: {filled} row{'' if filled == 1 else 's'} fed again to fill them up"
    assert runner.notes == ((f"{said} do not count",) if filled else ())

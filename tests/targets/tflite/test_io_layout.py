"""`io_layout` of the target: the file has the channels where it says, whatever the model has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import target_testing as t

from retarget import catalog
from retarget.errors import RetargetError
from retarget.interface import Layout
from retarget.targets import tflite
from retarget.targets.tflite.executed import transposes

FIRST = """g (float[N,3,8,6] image, float[4,3,3,3] w_a) => (float[N,4,6,4] y) {
    c = Conv(image, w_a)
    y = Relu(c)
}"""
LAST = """g (float[N,8,6,3] image, float[4,3,3,3] w_a) => (float[N,6,4,4] y) {
    x = Transpose <perm = [0, 3, 1, 2]> (image)
    c = Conv(x, w_a)
    r = Relu(c)
    y = Transpose <perm = [0, 2, 3, 1]> (r)
}"""


@pytest.mark.parametrize(
    ("text", "own", "wanted", "turned", "written"),
    [
        (FIRST, "nchw", None, False, 2),
        (FIRST, "nchw", "nchw", False, 2),
        (FIRST, "nchw", "nhwc", True, 0),
        (LAST, "nhwc", None, False, 0),
        # What has the channels last already is not turned again.
        (LAST, "nhwc", "nhwc", False, 0),
    ],
)
def test_layouts(
    text: str, own: Literal["nchw", "nhwc"], wanted: Layout | None, turned: bool, written: int, tmp_path: Path
) -> None:
    model = t.model(text)
    job = dataclasses.replace(
        t.job("tflite", model), layouts={"image": own, "y": own}, options=tflite.Options(io_layout=wanted)
    )
    facts = catalog.target_emit("tflite").emit(model, job, tmp_path)
    assert [entry.permutation for entry in (*facts.inputs, *facts.outputs)] == [(0, 2, 3, 1) if turned else None] * 2
    assert transposes(tmp_path / "model.tflite") == written
    feeds = t.feeds(model, 2)
    t.assert_close(t.run("tflite", tmp_path, facts, feeds)["y"], t.oracle(model, feeds)["y"])


def test_channels_that_stand_last_are_not_put_first(tmp_path: Path) -> None:
    model = t.model(LAST)
    job = dataclasses.replace(
        t.job("tflite", model), layouts={"image": "nhwc", "y": "nhwc"}, options=tflite.Options(io_layout="nchw")
    )
    with pytest.raises(RetargetError, match="'image' stand last") as refused:
        catalog.target_emit("tflite").emit(model, job, tmp_path)
    assert refused.value.hint is not None
    assert "in `model`" in refused.value.hint
    assert not list(tmp_path.iterdir())

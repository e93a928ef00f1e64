"""A build whose worker is killed in the middle of its calibration, and the build after it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from retarget import build as builds
from retarget import recipe as recipes
from retarget.calibration.ranges import Ranges
from retarget.engine import Limits
from retarget.plan import Invocation
from retarget.store import Store

if TYPE_CHECKING:
    from retarget.report_schema import Report

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N,4] x) => (float[N,3] y)
<float[4,3] w = {1, -2, 3, 0.5, -0.25, 2, 1, 1, -3, 0.1, 0.2, 0.3}> {
  sum = MatMul(x, w)
  y = Tanh(sum)
}
"""

DATA = """
import os
import signal
from pathlib import Path

import numpy as np

from retarget.calibration import observers

HERE = Path(__file__).parent


def samples():
    observers.CHECKPOINT_S = 0.0
    run = observers.Session.run

    def counted(self, feeds, outputs=None):
        with (HERE / "runs").open("a") as file:
            file.write(".")
        return run(self, feeds, outputs)

    rng = np.random.default_rng(0)
    for index in range(100):
        if index == 40:
            # No step before the calibration comes so far.
            observers.Session.run = counted
        if index == 70 and not (HERE / "killed").exists():
            (HERE / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"x": rng.standard_normal((1, 4), dtype=np.float32)}
    observers.Session.run = run
"""

RECIPE = """
version: 1
name: net
model: {path: net.onnx, shapes: {N: 1}}
variants: [fp16]
targets: [onnxruntime]
data: {calibration: "data.py:samples"}
"""


def build(folder: Path) -> Report:
    store = Store(folder / "store")
    try:
        return builds.build(
            recipes.load(folder / "recipe.yaml"),
            store,
            folder / "out",
            invocation=Invocation(threads=1, bench=False),
            limits=Limits(memory_bytes=4 << 30, seconds=None),
            jobs=1,
            display=lambda steps, found: nullcontext(lambda event: None),
        ).report
    finally:
        store.close()


def test_a_killed_calibration_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "data.py").write_text(DATA)
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "net.onnx")
    scratch = tmp_path / "store" / "scratch"

    made = build(tmp_path)
    assert made.verdict != "pass"
    (failed,) = (step for step in made.steps if step.status == "failed")
    assert failed.kind == "calibrate"
    assert failed.error is not None
    assert "SIGKILL" in failed.error.message
    (kept,) = scratch.glob("*/*.npz")
    assert Ranges.load(kept).batches == 70
    assert len((tmp_path / "runs").read_text()) == 30

    assert build(tmp_path).verdict == "pass"
    assert list(scratch.iterdir()) == []
    assert len((tmp_path / "runs").read_text()) == 60, "the 30 samples that were left, and no other"
    (artifact,) = (tmp_path / "store").glob("objects/*/*/ranges.npz")
    ranges = Ranges.load(artifact)
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal((1, 4), dtype=np.float32) for _ in range(100)])
    assert ranges.samples == 100
    assert ranges["x"].elements == values.size
    assert (ranges["x"].min, ranges["x"].max) == (values.min(), values.max())
    bins, counts = np.unique(values.view(np.uint32) >> 16, return_counts=True)
    np.testing.assert_array_equal(ranges["x"].bins, bins)
    np.testing.assert_array_equal(ranges["x"].counts, counts)

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from retarget import plan
from retarget.facts import Refusal
from retarget.plan import Invocation
from retarget.preflight import Answer
from retarget.quick import recipe_for
from retarget.recipe import Recipe
from retarget.store import Store


@pytest.fixture
def wanted(tmp_path: Path) -> Recipe:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]> net (float[N,4] x) => (float[N,4] y) { y = Tanh(x) }"""
    )
    onnx.save(model, tmp_path / "net.onnx")
    return recipe_for(
        tmp_path / "net.onnx",
        targets=["openvino", "tensorrt_rtx"],
        precisions=["fp32", "fp16"],
        inputs=[],
        outputs=[],
        shapes=[],
        factory=None,
        signature=None,
        io_layout=None,
        normalize=None,
        python=None,
        data=None,
        calibration=None,
        preprocess=None,
        optimize=None,
        trust=False,
    )


def test_a_build_finds_what_a_check_has_done(wanted: Recipe, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    checked = plan.preflight(wanted, store, Invocation())
    assert [step.id for step in checked.steps] == [
        "convert",
        "optimize",
        "check openvino/fp32",
        "check openvino/fp16",
        "check tensorrt_rtx/fp32",
        "calibrate",
        "quantize fp16",
        "check tensorrt_rtx/fp16",
    ]
    built = {step.id: step for step in plan.make(wanted, store, Invocation(threads=7, bench=False)).steps}
    for step in checked.steps:
        if step.kind != "check":
            assert step.key == built[step.id].key
        else:
            emit = built[step.id.replace("check", "emit")]
            assert (step.options, step.toolchain) == (emit.options, emit.toolchain)
            assert step.key != emit.key


def test_equal_refusals_are_one_group() -> None:
    refused = [Refusal(node=f"r{index}", operator="Resize", reason="no antialias") for index in range(500)]
    refused.insert(1, Refusal(node="d", operator="Det", reason="there is no such operator in the target"))
    refused.insert(2, Refusal(node="r", operator="Resize", reason="rank 5"))
    answer = Answer(target="openvino", precision="fp32", takes=False, nodes=600, refused=tuple(refused))
    assert [(group.operator, group.reason, len(group.nodes), group.named) for group in answer.groups] == [
        ("Resize", "no antialias", 500, "r0, r1, r2, 497 more"),
        ("Det", "there is no such operator in the target", 1, "d"),
        ("Resize", "rank 5", 1, "r"),
    ]

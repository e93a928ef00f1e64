from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from retarget.facts import BudgetFacts, Int8Facts, KeptNode
from retarget.report_int8 import NOISE, made, unpaid
from retarget.report_schema import ArtifactRow, LatencyRow

if TYPE_CHECKING:
    from retarget.recipe import PrecisionName

INT8 = Int8Facts(scheme="u8s8", method="mse", judged_on="32 rows held out of the calibration data", snr_db=31.24)
BUDGET = BudgetFacts(
    goal="min_snr_db 30",
    before=22.04,
    after=30.51,
    returned=(
        KeptNode(name="stem", op="Conv", reason="41.00% of the int8 error for 2.00% of the multiply-accumulates"),
        KeptNode(name="head", op="Gemm", reason="12.00% of the int8 error for 0.10% of the multiply-accumulates"),
    ),
    macs_share=0.021,
    latency_ratio=1.074,
    tried=9,
)


def sentences(**changes: object) -> list[str]:
    return list(made(msgspec.structs.replace(INT8, **changes)))


def test_it_says_scheme_method_and_what_was_judged() -> None:
    (sentence,) = sentences()
    assert sentence == (
        "Scheme u8s8, clipping ranges by mse: 31.2 dB against the float model, simulated in ONNX Runtime on 32 rows "
        "held out of the calibration data."
    )


def test_what_corrected_biases_gained() -> None:
    assert sentences(bias_gain_db=1.26)[1:] == ["Corrected biases gained 1.3 dB."]


def test_what_a_budget_cost() -> None:
    _, accuracy, latency = sentences(budget=BUDGET)
    assert accuracy == (
        "Budget min_snr_db 30: 22.0 dB with every node in int8, 30.5 dB with 2 nodes back in float, which have 2.1% of "
        "the multiply-accumulates; 9 models were judged."
    )
    assert latency == (
        "What went back to float makes a call 1.07 × as long, in ONNX Runtime on the machine that quantized it."
    )


def test_one_node_is_not_several() -> None:
    one = msgspec.structs.replace(BUDGET, returned=BUDGET.returned[:1], latency_ratio=None)
    (sentence,) = sentences(budget=one)[1:]
    assert "with 1 node back in float, which has 2.1%" in sentence


def test_a_budget_of_the_metric_is_in_drops() -> None:
    drop = msgspec.structs.replace(BUDGET, goal="max_drop 0.01", before=0.0625, after=0.0078125)
    assert "a drop of 0.0625 with every node in int8, a drop of 0.007812 with 2 nodes" in sentences(budget=drop)[1]
    met = msgspec.structs.replace(drop, returned=(), after=0.0, latency_ratio=None)
    assert sentences(budget=met)[1:] == ["Budget max_drop 0.01: met with every node in int8, at a drop of 0."]


def test_notes_are_sentences() -> None:
    assert sentences(notes=("there are no labels",))[1:] == ["There are no labels."]


# ---- whether it pays


def timed(name: str, precision: PrecisionName, milliseconds: float | None, *, stable: bool = True) -> ArtifactRow:
    target, variant = name.split("/")
    latency = None
    if milliseconds is not None:
        latency = LatencyRow(
            p50_ms=milliseconds,
            p90_ms=milliseconds,
            p99_ms=milliseconds,
            throughput_per_s=1000 / milliseconds,
            ratio_to_reference=None,
            stable=stable,
        )
    return ArtifactRow(
        target=target,
        variant=variant,
        path=name,
        bytes=1,
        precision=None,
        verified="executed",
        reason=None,
        latency=latency,
        requested=precision,
        status="built",
    )


def test_int8_that_is_slower_names_the_variant_to_take() -> None:
    rows = [
        timed("openvino/fp32", "fp32", 2.0),
        timed("openvino/fp16", "fp16", 1.5),
        timed("openvino/int8", "int8", 3.0),
        timed("onnxruntime/fp32", "fp32", 1.0),
        timed("onnxruntime/int8", "int8", 0.5),
    ]
    (sentence,) = unpaid(rows)
    assert sentence == (
        "openvino/int8 does not pay here: 3.00 ms a call, openvino/fp32 takes 2.00 ms; take openvino/fp16, the fastest "
        "for openvino, unless it is size that counts"
    )


def test_every_int8_variant_is_held_against_fp32() -> None:
    rows = [timed("openvino/full", "fp32", 1.0), timed("openvino/a", "int8", 2.0), timed("openvino/b", "int8", 3.0)]
    assert [sentence.split()[0] for sentence in unpaid(rows)] == ["openvino/a", "openvino/b"]


@pytest.mark.parametrize("milliseconds", [0.5, 1.0, NOISE])
def test_int8_that_is_not_slower_beyond_noise_pays(milliseconds: float) -> None:
    assert not list(unpaid([timed("openvino/fp32", "fp32", 1.0), timed("openvino/int8", "int8", milliseconds)]))
    assert list(unpaid([timed("openvino/fp32", "fp32", 1.0), timed("openvino/int8", "int8", NOISE + 0.01)]))


def test_timings_that_are_not_steady_are_said_to_be() -> None:
    rows = [timed("openvino/fp32", "fp32", 1.0, stable=False), timed("openvino/int8", "int8", 2.0)]
    assert "(the timings are not steady)" in next(unpaid(rows))


def test_nothing_is_said_of_what_was_not_timed_or_has_no_fp32() -> None:
    assert not list(unpaid([timed("openvino/fp32", "fp32", None), timed("openvino/int8", "int8", 2.0)]))
    assert not list(unpaid([timed("openvino/fp32", "fp32", 1.0), timed("openvino/int8", "int8", None)]))
    assert not list(unpaid([timed("openvino/fp16", "fp16", 1.0), timed("openvino/int8", "int8", 2.0)]))

"""A runner held against recorded outputs: which cases, and which rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec
import numpy as np
import pytest

from retarget.adapt import Adapted
from retarget.facts import Case, ConvertFacts, IoEntry
from retarget.reference import ReferenceWriter
from retarget.spec import DimRange, TensorSpec
from retarget.tolerance import Tolerance
from retarget.verification import Recorded, verify

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs

X, Y = TensorSpec.parse("x=float32[N,T]"), TensorSpec.parse("y=float32[N,T]")
CASES = {"data0": (4, 6), "min": (1, 2), "opt": (4, 5), "max": (8, 9)}
SNR = Tolerance(snr_db=80)


class Squares:
    """What the source computes, and the shapes that it was fed."""

    settings = "CPU"

    def __init__(self) -> None:
        self.fed: list[tuple[int, ...]] = []

    def run(self, feeds: Feeds) -> Outputs:
        self.fed.append(feeds["x"].shape)
        return {"y": np.square(feeds["x"])}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("source")
    writer = ReferenceWriter(folder)
    for name, shape in CASES.items():
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        writer.add(name, {"x": x}, {"y": np.square(x)})
    writer.close()
    facts = ConvertFacts(
        frontend="onnx",
        form="ONNX",
        rung="as it is",
        inputs=(X,),
        outputs=(Y,),
        shapes={"N": DimRange(1, 4, 8), "T": DimRange(2, 5, 9)},
        nodes=1,
        bytes=0,
        parameters=0,
        cases=tuple(Case(name=name, sizes={"N": n, "T": t}, origin="samples") for name, (n, t) in CASES.items()),
        origin="samples",
    )
    return Recorded(folder, facts)


def adapted(runner: Squares, sizes: Mapping[str, int]) -> Adapted:
    """The runner as a target wraps it: it refuses feeds of other sizes."""
    entries = [IoEntry(name=spec.name, artifact_name=spec.name, spec=spec, artifact_dtype="float32") for spec in (X, Y)]
    return Adapted(runner, entries[:1], entries[1:], sizes)


def test_an_artifact_of_any_size_is_held_against_every_case(source: Recorded) -> None:
    runner = Squares()
    facts = verify(adapted(runner, {}), source, SNR)
    assert (facts.verified, facts.left_out) == ("executed", ())
    assert facts.parity[0].samples == sum(n for n, _ in CASES.values())
    assert facts.batch_passed is True
    assert set(CASES.values()) <= set(runner.fed)


def test_an_artifact_of_one_size_is_held_against_the_cases_of_that_size(source: Recorded) -> None:
    runner = Squares()
    facts = verify(adapted(runner, {"N": 4, "T": 5}), source, SNR, {"N": 4, "T": 5})
    assert facts.verified == "executed"
    assert facts.left_out == ("data0 (N=4, T=6)", "min (N=1, T=2)", "max (N=8, T=9)")
    assert (facts.parity[0].samples, facts.parity[0].passed) == (4, True)
    assert facts.batch == "skipped: the artifact takes N=4 alone, so rows cannot run both alone and together"
    assert facts.batch_passed is None
    assert set(runner.fed) == {(4, 5)}


def test_the_case_with_most_of_the_error_is_named_with_its_sizes_and_where_it_came_from(source: Recorded) -> None:
    class Off(Squares):
        def run(self, feeds: Feeds) -> Outputs:
            off = np.float32(0.5 if len(feeds["x"]) == 8 else 0.001)
            return {"y": np.add(super().run(feeds)["y"], off, dtype=np.float32)}

    cases = tuple(
        msgspec.structs.replace(case, origin="generated" if case.name == "max" else "samples")
        for case in source.facts.cases
    )
    of_both = replace(source, facts=msgspec.structs.replace(source.facts, cases=cases))
    (row,) = verify(adapted(Off(), {}), of_both, Tolerance(snr_db=0)).parity
    assert row.passed
    assert row.reason is not None
    assert row.reason.startswith("case 'max (N=8, T=9, generated)' has most of the error: ")


def test_with_one_dimension_fixed_the_rows_of_the_others_are_still_checked(source: Recorded) -> None:
    runner = Squares()
    facts = verify(adapted(runner, {"T": 6}), source, SNR, {"T": 6})
    assert facts.left_out == ("min (N=1, T=2)", "opt (N=4, T=5)", "max (N=8, T=9)")
    assert facts.batch_passed is True
    assert (1, 6) in runner.fed


def test_one_row_is_no_batch(source: Recorded) -> None:
    facts = verify(adapted(Squares(), {"T": 2}), source, SNR, {"T": 2})
    assert facts.verified == "executed"
    assert facts.batch == "skipped: the artifact takes T=2 alone, and the parity cases of that size have one row"
    assert facts.batch_passed is None


def test_without_a_case_of_its_size_nothing_is_verified(source: Recorded) -> None:
    runner = Squares()
    facts = verify(adapted(runner, {"N": 3}), source, SNR, {"N": 3})
    assert (facts.verified, facts.parity) == ("not verified", ())
    assert facts.reason == "the artifact takes N=3 alone, and no parity case has that size"
    assert len(facts.left_out) == len(CASES)
    assert not runner.fed


def test_a_wrong_artifact_of_one_size_fails(source: Recorded) -> None:
    class Wrong(Squares):
        def run(self, feeds: Feeds) -> Outputs:
            return {"y": np.multiply(super().run(feeds)["y"], np.float32(1.01))}

    facts = verify(adapted(Wrong(), {"N": 4, "T": 5}), source, SNR, {"N": 4, "T": 5})
    assert not facts.parity[0].passed

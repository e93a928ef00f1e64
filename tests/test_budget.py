"""The search on errors that add up, where all sets can be tried, and on models quantized by ONNX Runtime's own tool."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from retarget import progress
from retarget.budget import Batch, Candidate, Found, Goal, Selection, cheapest, describe, search
from retarget.errors import RetargetError
from retarget.metrics import open_metric

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds

# ---- errors that add up


class Additive:
    """A pretended model: its error is the sum of those of the nodes in int8, times how they add to each other."""

    def __init__(self, macs: Mapping[str, int], errors: Mapping[str, float], interaction: float = 1.0) -> None:
        self.candidates = [Candidate(name, "Conv", cost) for name, cost in macs.items()]
        self.errors = errors
        self.interaction = interaction
        self.quantized: list[frozenset[str]] = []

    def quantize(self, keep: Collection[str]) -> ir.Model:
        self.quantized.append(frozenset(keep))
        model = ir.Model(ir.Graph([], [], nodes=[], name="pretended"), ir_version=10)
        model.metadata_props["keep"] = ",".join(sorted(keep))
        return model

    def error(self, model: ir.Model) -> float:
        keep = model.metadata_props["keep"].split(",")
        rest = [error for name, error in self.errors.items() if name not in keep]
        return math.fsum(rest) * (self.interaction if len(rest) > 1 else 1.0)

    def snr_db(self, model: ir.Model) -> float:
        error = self.error(model)
        return -10 * math.log10(error) if error else 300.0

    def search(self, min_snr_db: float) -> Found:
        return search(self.candidates, self.quantize, Goal(min_snr_db=min_snr_db), self.snr_db, self.error)

    def optimum(self, min_snr_db: float) -> float:
        """The least share of multiply-accumulates that has to go back, of all sets there are."""
        macs = {one.name: one.macs for one in self.candidates}
        costs = [
            sum(macs[name] for name in keep)
            for size in range(len(macs))
            for keep in itertools.combinations(macs, size)
            if self.snr_db(self.quantize(keep)) >= min_snr_db
        ]
        return min(costs) / sum(macs.values())


def drawn(seed: int, count: int = 10, interaction: float = 1.0) -> Additive:
    rng = np.random.default_rng(seed)
    names = [f"node{index}" for index in range(count)]
    macs = dict(zip(names, rng.integers(1, 1000, count).tolist(), strict=True))
    return Additive(macs, dict(zip(names, (10 ** rng.uniform(-6, -2, count)).tolist(), strict=True)), interaction)


@pytest.mark.parametrize("interaction", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_near_the_cheapest_of_all_sets(seed: int, interaction: float) -> None:
    model = drawn(seed, interaction=interaction)
    goal = model.snr_db(model.quantize(())) + 8
    found = model.search(goal)
    assert found.reached
    assert found.after >= goal > found.before
    assert found.macs_share <= model.optimum(goal) * 1.25 + 0.02
    assert found.tried <= 25


def test_many_nodes_take_few_evaluations() -> None:
    model = drawn(0, count=300)
    found = model.search(model.snr_db(model.quantize(())) + 12)
    assert found.reached
    assert found.tried <= 30
    assert len(model.quantized) <= 1 + 300 + 30


def test_a_model_that_holds_is_judged_once() -> None:
    model = drawn(1)
    found = model.search(10.0)
    assert found.reached
    assert found.keep == frozenset()
    assert found.tried == 1
    assert model.quantized == [frozenset()]


def test_the_node_that_ruins_all_goes_back_alone() -> None:
    model = Additive({"a": 100, "b": 100, "c": 100}, {"a": 1e-4, "b": 1.0, "c": 1e-4})
    found = model.search(30.0)
    assert found.keep == {"b"}
    assert found.macs_share == pytest.approx(1 / 3)
    (one,) = found.reverted
    assert one.error_share == pytest.approx(1 / 1.0002)
    assert one.reason == "99.98% of the int8 error for 33.33% of the multiply-accumulates"


def test_cheap_nodes_that_are_not_needed_stay_in_int8() -> None:
    # By error per operation the small one comes first, and the large one then suffices alone.
    model = Additive({"small": 1, "large": 1000, "rest": 1000}, {"small": 1e-4, "large": 1e-2, "rest": 1e-7})
    assert model.search(38.0).keep == {"large"}


def test_a_budget_that_no_int8_holds_is_not_reached() -> None:
    model = Additive({"a": 5, "b": 500, "c": 50}, {"a": 1e-2, "b": 1e-3, "c": 1e-4})
    found = model.search(60.0)
    assert not found.reached
    # The best that was found leaves the node of the least error in int8.
    assert found.keep == {"a", "b"}
    assert found.after == pytest.approx(40.0)
    assert found.before == pytest.approx(-10 * math.log10(1.11e-2))


@pytest.mark.parametrize("count", [0, 1])
def test_there_is_nothing_to_return(count: int) -> None:
    model = Additive(dict.fromkeys(["a"][:count], 1), {"a": 1e-2})
    found = model.search(60.0)
    assert not found.reached
    assert found.reverted == ()
    assert found.tried == 1


def test_nodes_without_error_or_cost_are_no_trouble() -> None:
    model = Additive({"a": 0, "b": 0, "c": 0}, {"a": 0.0, "b": 1e-2, "c": 0.0})
    found = model.search(50.0)
    assert found.keep == {"b"}
    assert found.macs_share == 0


def test_it_finds_the_same_again() -> None:
    first, second = drawn(3), drawn(3)
    assert first.search(25.0) == second.search(25.0)
    assert first.quantized == second.quantized


def test_cheapest_leaves_what_the_bound_allows() -> None:
    candidates = [Candidate("a", "Conv", 10), Candidate("b", "Conv", 1), Candidate("c", "Conv", 10)]
    errors = {"a": 0.5, "b": 0.3, "c": 0.2}
    assert cheapest(candidates, errors, 0.0) == frozenset()
    assert cheapest(candidates, errors, -10 * math.log10(0.71)) == {"b"}
    # "b" comes first by error per operation, and "a" then suffices alone.
    assert cheapest(candidates, errors, -10 * math.log10(0.51)) == {"a"}
    assert cheapest(candidates, errors, 100.0) == {"a", "b"}


def test_progress_is_said() -> None:
    words: list[str] = []
    progress.connect(lambda done, total, text: words.append(f"{done}/{total} {text}"))
    try:
        Additive({"a": 1, "b": 1}, {"a": 1e-1, "b": 1e-5}).search(30.0)
    finally:
        progress.connect(None)
    assert words[0] == "0/0 int8 but for 0 of 2 nodes, model 1"
    assert "1/2 the error of b alone" in words


def test_a_goal_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="either"):
        Goal()
    with pytest.raises(ValueError, match="either"):
        Goal(min_snr_db=30, max_drop=0.01)
    assert str(Goal(min_snr_db=30)) == "min_snr_db 30"
    assert str(Goal(max_drop=0.01)) == "max_drop 0.01"
    # 0.95 - 0.93 is more than 0.02 in float64.
    assert Goal(max_drop=0.02).holds(0.95 - 0.93)
    assert not Goal(max_drop=0.02).holds(0.03)


# ---- real models


def network(seed: int = 0, outlier: float = 1.0) -> onnx.ModelProto:
    """Four layers on 64 inputs. ``outlier`` scales one column of the third one's input, and nothing of the function."""
    rng = np.random.default_rng(seed)
    widths = (64, 48, 40, 32, 10)
    weights = [
        rng.normal(0, rows**-0.5, (rows, columns)).astype(np.float32) for rows, columns in itertools.pairwise(widths)
    ]
    weights[1][:, 3] *= outlier
    weights[2][3] /= outlier
    text = '<ir_version: 10, opset_import: ["" : 23]>\nnetwork (float[N,64] x) => (float[N,10] y) {\n'
    value = "x"
    for layer in range(4):
        text += f"  m{layer} = MatMul({value}, w{layer})\n"
        value = "y" if layer == 3 else f"r{layer}"
        text += f"  {value} = {'Identity' if layer == 3 else 'Relu'}(m{layer})\n"
    proto = onnx.parser.parse_model(text + "}")
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index // 2}"
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, f"w{at}") for at, array in enumerate(weights))
    return onnx.shape_inference.infer_shapes(proto)


def rows(count: int, seed: int) -> Feeds:
    return {"x": np.random.default_rng(seed).standard_normal((count, 64)).astype(np.float32)}


class OnnxRuntimeQuantizer:
    """ONNX Runtime's own tool: independent of the quantizer here."""

    def __init__(self, proto: onnx.ModelProto, folder: Path) -> None:
        self._source = folder / "float.onnx"
        self._out = folder / "int8.onnx"
        onnx.save(proto, self._source)

    def __call__(self, keep: Collection[str]) -> ir.Model:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.left = [rows(16, seed) for seed in range(4)]

            def get_next(self) -> Feeds | None:
                return self.left.pop() if self.left else None

        quantize_static(
            self._source,
            self._out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=sorted(keep),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ForceQuantizeNoInputCheck": False},
        )
        return ir.load(self._out)


MATMULS = tuple(f"MatMul_{layer}" for layer in range(4))


def test_the_layer_with_an_outlier_goes_back(tmp_path: Path) -> None:
    proto = network(outlier=300.0)
    model = ir.from_proto(proto)
    batches = [Batch(rows(16, seed)) for seed in (100, 101)]
    selection = Selection(model, batches, threads=1)
    nodes = describe(model, MATMULS, batches[0].feeds)
    assert [one.macs for one in nodes] == [16 * 64 * 48, 16 * 48 * 40, 16 * 40 * 32, 16 * 32 * 10]
    goal = Goal(min_snr_db=30.0)
    found = search(nodes, OnnxRuntimeQuantizer(proto, tmp_path), goal, selection.judge(goal), selection.error)
    assert found.before < 20
    assert found.reached
    assert "MatMul_2" in found.keep
    assert found.macs_share < 0.55
    kept = OnnxRuntimeQuantizer(proto, tmp_path)(found.keep)
    assert found.after == pytest.approx(snr(proto, ir.to_proto(kept), batches), abs=0.05)


def interpret(proto: onnx.ModelProto, feeds: Feeds) -> Array:
    """The oracle: onnx's own interpreter."""
    outputs = ReferenceEvaluator(proto).run(["y"], dict(feeds))
    assert isinstance(outputs, list)
    return np.asarray(outputs[0])


def snr(reference: onnx.ModelProto, actual: onnx.ModelProto, batches: list[Batch]) -> float:
    expected, found = (
        np.concatenate([interpret(proto, batch.feeds) for batch in batches]) for proto in (reference, actual)
    )
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


def test_the_snr_is_that_of_the_interpreter(tmp_path: Path) -> None:
    proto = network()
    quantized = OnnxRuntimeQuantizer(proto, tmp_path)(())
    batches = [Batch(rows(16, seed)) for seed in (100, 101, 102)]
    selection = Selection(ir.from_proto(proto), batches, threads=1)
    assert selection.rows == 48
    assert selection.snr_db(quantized) == pytest.approx(snr(proto, ir.to_proto(quantized), batches), abs=0.05)
    # The ranking looks at the first rows only.
    assert selection.error(quantized) == pytest.approx(
        10 ** (-snr(proto, ir.to_proto(quantized), batches[:1]) / 10), rel=0.02
    )


def labels(proto: onnx.ModelProto, feeds: Feeds) -> Array:
    return np.asarray(interpret(proto, feeds).argmax(axis=1))


def test_a_drop_of_the_metric_is_a_budget_too(tmp_path: Path) -> None:
    proto = network(outlier=3000.0)
    model = ir.from_proto(proto)
    batches = [Batch(feeds, labels(proto, feeds)) for feeds in (rows(100, seed) for seed in (100, 101))]
    selection = Selection(model, batches, lambda: open_metric("top1"), threads=1)
    goal = Goal(max_drop=0.03)
    found = search(
        describe(model, MATMULS, batches[0].feeds),
        OnnxRuntimeQuantizer(proto, tmp_path),
        goal,
        selection.judge(goal),
        selection.error,
    )
    assert found.before > 0.2
    assert found.reached
    assert found.after <= 0.03
    assert "MatMul_2" in found.keep
    assert found.macs_share < 0.9


def test_selection_says_what_it_lacks() -> None:
    model = ir.from_proto(network())
    with pytest.raises(RetargetError, match="no selection data"):
        Selection(model, [])
    with pytest.raises(RetargetError, match="no labels"):
        Selection(model, [Batch(rows(2, 0))], lambda: open_metric("top1"))
    with pytest.raises(ValueError, match="no metric"):
        Selection(model, [Batch(rows(2, 0))]).drop(model)


def test_the_worst_output_counts_and_class_numbers_do_not() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    two (float[N,4] x) => (float[N,4] a, float[N,4] b, int64[N] c) {
        a = Mul(x, ka)  b = Mul(x, kb)  c = ArgMax <axis = 1, keepdims = 0> (a)
    }"""

    def model(first: float, second: float, numbers: tuple[float, ...] = (1, 1, 1, 1)) -> ir.Model:
        proto = onnx.parser.parse_model(text)
        arrays = {"ka": np.array(numbers, np.float32) * np.float32(first), "kb": np.array([second], np.float32)}
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
        return ir.from_proto(proto)

    feeds = {"x": np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)}
    selection = Selection(model(1, 1), [Batch(feeds)])
    assert selection.snr_db(model(1.01, 1.1)) == pytest.approx(20.0, abs=0.01)
    assert selection.snr_db(model(1.01, 1)) == pytest.approx(40.0, abs=0.1)
    assert selection.error(model(1.01, 1.1)) == pytest.approx(0.01, rel=0.01)

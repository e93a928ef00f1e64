"""Names of the program: those of the graph, and none that coremltools gives to what it adds."""

from __future__ import annotations

import json
from pathlib import Path

import target_testing
from written import check, written

from retarget.targets import tensor_map
from retarget.targets.coreml.emit import FILE
from retarget.targets.coreml.interpreter.program import read

# The product's first operand is transposed for it by an operation that coremltools names after a count.
CLASH = """g (float[8,N] transpose_1, float[5,8] w_w) => (float[N,5] y) {
    product = Gemm <transA = 1, transB = 1> (transpose_1, w_w)
    transpose_0 = Relu (product)
    y = Sigmoid (transpose_0)
}"""


def test_names_of_the_graph_are_not_taken_by_coremltools(tmp_path: Path) -> None:
    model = target_testing.model(CLASH)
    written(model, tmp_path)
    (function,) = read(tmp_path / FILE).functions.values()
    made = [(name, operation.type) for operation in function.block.operations for name in operation.outputs]
    assert [kind for _, kind in made].count("transpose") == 1
    assert len(made) == len(dict(made))
    assert (_names(tmp_path)["transpose_0"], dict(made)["transpose_0"]) == ("transpose_0", "relu")
    check(model, target_testing.feeds(model, 2))


WORDS = ("state", "list", "fp32", "true")


def test_words_of_the_language_are_other_names(tmp_path: Path) -> None:
    state, listed, middle, true = WORDS
    text = f"""g (float[N,8] {state}, float[N,8] {listed}) => (float[N,8] {true}) {{
        {middle} = Mul({state}, {listed}) {true} = Sigmoid({middle})
    }}"""
    model = target_testing.model(text)
    facts = written(model, tmp_path)
    assert {entry.artifact_name for entry in (*facts.inputs, *facts.outputs)}.isdisjoint(WORDS)
    assert set(_names(tmp_path)) == set(WORDS)
    check(model, target_testing.feeds(model, 2))


def _names(folder: Path) -> dict[str, str]:
    """By the names in the graph, those in the package."""
    tensors = json.loads((folder / tensor_map.FILE).read_text())["tensors"]
    return {each["value"]: each["name"] for each in tensors if each["value"] is not None}

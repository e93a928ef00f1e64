from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import pytest

from retarget.dimensions import name_output_dimensions
from retarget.spec import TensorSpec

MODEL = """
<ir_version: 10, opset_import: ["" : 23]>
net (float[N,T,4] x) => (float[unk__1,unk__2] y, float[unk__1,3] z) {
  s = ReduceSum <keepdims = 0> (x, axes)
  y = Identity(s)
  h = Identity(x)
  z = Slice(h, starts, ends)
}
"""
INPUTS = (TensorSpec.parse("x=float32[N,T,4]"),)


def named(
    sizes: Sequence[Mapping[str, int]], shapes: Mapping[str, Sequence[tuple[int, ...]]]
) -> dict[str, list[int | str | None]]:
    model = ir.from_onnx_text(MODEL)
    name_output_dimensions(model, INPUTS, sizes, shapes)
    dims = {value.name or "": value.shape for value in model.graph.outputs}
    return {name: [dim if isinstance(dim, int) else dim.value for dim in shape or ()] for name, shape in dims.items()}


def test_a_dimension_is_named_after_the_one_that_it_follows() -> None:
    sizes = [{"N": 1, "T": 5}, {"N": 2, "T": 7}]
    assert named(sizes, {"y": [(1, 5), (2, 7)], "z": [(1, 3), (2, 3)]}) == {"y": ["N", "T"], "z": ["N", 3]}
    # The other way round: what counts is what was measured.
    assert named(sizes, {"y": [(5, 1), (7, 2)], "z": [(5, 3), (7, 3)]})["y"] == ["T", "N"]


def test_of_dimensions_that_were_always_alike_the_one_along_the_same_axis_is_meant() -> None:
    sizes = [{"N": 1, "T": 1}, {"N": 8, "T": 8}]
    assert named(sizes, {"y": [(1, 1), (8, 8)], "z": [(1, 3), (8, 3)]})["y"] == ["N", "T"]


@pytest.mark.parametrize(
    ("sizes", "shapes"),
    [
        ([{"N": 1, "T": 5}, {"N": 2, "T": 7}], [(1, 3), (2, 4)]),
        ([{"N": 2, "T": 5}], [(2, 5)]),
        ([{"N": 1, "T": 5}, {"N": 2, "T": 5}], [(1, 5), (2, 5)]),
    ],
    ids=["follows none", "one case", "does not vary"],
)
def test_what_cannot_be_told_is_called_after_its_place(
    sizes: list[dict[str, int]], shapes: list[tuple[int, ...]]
) -> None:
    assert named(sizes, {"y": shapes, "z": [(rows, 3) for rows, _ in shapes]})["y"][1] == "y_1"

"""What coremltools' builder takes and Core ML's runtime is known to refuse or to compute otherwise is not written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import node_models
import numpy as np
import pytest
import target_testing as t
import written

from retarget.spec import DimRange
from retarget.targets.coreml.emit import FILE
from retarget.targets.coreml.interpreter.declared import TensorType
from retarget.targets.coreml.interpreter.program import Block, Operation, read

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from retarget.targets.coreml import DeploymentTarget

OPERATORS = {
    "integers times a constant matrix": (
        "linear",
        "g (int64[N,3] x) => (int64[N,2] y) { w = Constant <value = int64[3,2] {1,2,3,4,5,6}> () y = MatMul(x, w) }",
    ),
    "slopes of channels in float16": (
        "prelu",
        "g (float16[N,2,3,3] x, float16[2,1,1] w_a) => (float16[N,2,3,3] y) { y = PRelu(x, w_a) }",
    ),
    "statistics of volumes": (
        "batch_norm",
        """g (float[N,2,3,3,3] x, float[2] w_s, float[2] w_b, float[2] w_m) => (float[N,2,3,3,3] y) {
            v = Abs(w_m) y = BatchNormalization(x, w_s, w_b, w_m, v)
        }""",
    ),
    "computed places": ("gather_nd", "g (float[8,8,2] x, int64[N,2] i) => (float[N,2] y) { y = GatherND(x, i) }"),
    "a product of open matrices": (
        "einsum",
        """g (float[N,2,3,S] x, float[N,2,S,4] z) => (float[N,2,3,4] y) {
            y = Einsum <equation = "abcd,abde->abce"> (x, z)
        }""",
    ),
    "an open mask": (
        "scaled_dot_product_attention",
        """g (float[1,2,S,4] q, float[1,2,S,4] k, float[1,2,S,4] v, float[S,S] m) => (float[1,2,S,4] y) {
            y = Attention(q, k, v, m)
        }""",
    ),
    "boxes by computed places": (
        "gather_nd",
        """g (float[1,4,4] b, float[1,1,4] s) => (int64[P,3] y) {
            n = Constant <value_ints = [2]> () y = NonMaxSuppression(b, s, n)
        }""",
    ),
}


def _operations(model: ir.Model, folder: Path, target: DeploymentTarget = "iOS18") -> list[Operation]:
    """All of the package but constants, those in blocks too."""
    written.written(model, folder, target)
    return [each for each in _within(read(folder / FILE).functions["main"].block) if each.type != "const"]


def _within(block: Block) -> Iterator[Operation]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _within(inner)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str, tmp_path: Path) -> None:
    operator, text = OPERATORS[name]
    found = {each.type for each in _operations(t.model(text), tmp_path)}
    assert found
    assert operator not in found


@pytest.mark.parametrize("kind", ["float", "float16", "int64"])
def test_a_constant_base_of_2_is_computed(kind: str, tmp_path: Path) -> None:
    base = "s = Constant <value_float = 2.0> () b = CastLike(s, x)"
    text = f"g ({kind}[N,4] x) => ({kind}[N,4] y) {{ {base} y = Pow(b, x) }}"
    made = _operations(t.model(text), tmp_path)
    computed = {name for each in made for name in each.outputs}
    (power,) = (each for each in made if each.type == "pow")
    assert set(power.inputs["x"]) <= computed
    written.check_open(t.model(text), 4, 1, atol=2e-3 if kind == "float16" else 1e-5)


@pytest.mark.parametrize("shape", ["N,3,4", "3,S,4,2,2"])
def test_one_computed_place_is_a_vector(shape: str, tmp_path: Path) -> None:
    model = node_models.of_text(f"float[{shape}] x, int64 i", "Gather <axis = -1> (x, i)")
    made = _operations(model, tmp_path)
    (gather,) = (each for each in made if each.type == "gather")
    kinds = {name: kind for each in made for name, kind in each.outputs.items()}
    (indices,) = (kinds[each] for each in gather.inputs["indices"] if isinstance(each, str))
    assert isinstance(indices, TensorType)
    assert indices.shape is not None
    assert len(indices.shape) == 1
    sizes = [2 if axis in ("N", "S") else int(axis) for axis in shape.split(",")]
    written.check(model, {"x": t.normal(*sizes), "i": np.array(-1)}, {"x": t.normal(*sizes), "i": np.array(1)})


@pytest.mark.parametrize(
    "attributes",
    ["pads = [0, 1, 1, 1]", "pads = [1, 2, 1, 2]", "pads = [1, 1, 1, 1], output_padding = [1, 0]"],
)
def test_transposed_convolutions_have_one_pad_all_around(attributes: str, tmp_path: Path) -> None:
    model = node_models.of_text(
        "float[N,4,5,S] x, float[4,6,3,4] w_k", f"ConvTranspose <strides = [2, 2], {attributes}> (x, w_k)"
    )
    (made,) = (each for each in _operations(model, tmp_path) if each.type == "conv_transpose")
    block = read(tmp_path / FILE).functions["main"].block
    (kind,) = (each for each in block.operations if (each.name,) == made.inputs["pad_type"])
    assert str(kind.value.read()) == "valid"
    written.check_open(model, 4, 2)


@pytest.mark.parametrize("pads", ["pads = [2, 2]", "pads = [1, 3], strides = [2]"])
def test_groups_along_a_line_have_no_dilations(pads: str, tmp_path: Path) -> None:
    model = node_models.of_text(
        "float[N,4,S] x, float[6,2,3] w_k", f"Conv <group = 2, dilations = [2], {pads}> (x, w_k)"
    )
    (made,) = (each for each in _operations(model, tmp_path) if each.type == "conv")
    block = read(tmp_path / FILE).functions["main"].block
    (dilations,) = (each for each in block.operations if (each.name,) == made.inputs["dilations"])
    assert np.array_equal(np.asarray(dilations.value.read()), [1])
    written.check_open(model, 8, 5)


def test_a_line_is_padded_by_numbers() -> None:
    model = node_models.of_text(
        "float[N,2,S] x", 'MaxPool <kernel_shape = [3], strides = [2], auto_pad = "SAME_LOWER"> (x)'
    )
    with pytest.raises(AssertionError, match="S is 8 in the package"):
        written.check_open(model, 8, S=DimRange(4, 8, 8))

"""Einsum of TensorFlow as a product of matrices: the right numbers, and no more Transposes than it needs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from retarget.compare import snr_db
from retarget.convert.tensorflow.einsum import products
from retarget.convert.tensorflow.framework import quiet, tf
from retarget.convert.tensorflow.lower import to_onnx
from retarget.session import Session
from retarget.spec import TensorSpec

SIZES = dict(zip("abcdefg", (2, 3, 4, 5, 6, 7, 3), strict=True))

CASES = {
    "aecd,abcd->acbe": ((), 2),
    "acbe,aecd->abcd": ((), 2),
    "ab,bc->ac": ((), 0),
    "abc,abd->acd": ((), 1),
    "abc,cde->abde": ((1,), 0),
    "abcd,cde->abe": ((1,), 0),
    "abcd,edc->abe": ((1,), 0),
    "abc,cd->dab": ((1,), 1),
    "ba,ca->bc": ((), 1),
}
"""Equation → which operands are constant, and how many Transposes of what is not constant remain."""
OTHERS = ("ab,ab->a", "ab,cd->abcd", "ab,cab->c", "ab->ba", "ab,bc,cd->ad", "abcd,aebd->abc")


def _lowered(
    equation: str, constant: tuple[int, ...], path: Path
) -> tuple[list[np.ndarray], np.ndarray, onnx.ModelProto]:
    """The operands that are fed, the result that TensorFlow gives, and the model at ``path``."""
    rng = np.random.default_rng(0)
    terms = equation.partition("->")[0].split(",")
    shapes = [tuple(SIZES[label] for label in labels) for labels in terms]
    operands = [rng.standard_normal(shape).astype("f4") for shape in shapes]
    open_ones = [index for index in range(len(operands)) if index not in constant]
    specs = [TensorSpec(f"x{index}", "float32", ("N", *shapes[index][1:])) for index in open_ones]

    def compute(*fed: tf.Tensor) -> list[tf.Tensor]:
        given = dict(zip(open_ones, fed, strict=True))
        return [tf.einsum(equation, *(given.get(index, tf.constant(value)) for index, value in enumerate(operands)))]

    signature = [tf.TensorSpec([None, *spec.shape[1:]], tf.float32, name=spec.name) for spec in specs]
    with quiet():
        to_onnx(tf.function(compute).get_concrete_function(*signature), specs, ["y"], path, equation)
        expected = tf.einsum(equation, *operands).numpy()
    return [operands[index] for index in open_ones], expected, onnx.load(path)


@pytest.mark.parametrize("equation", [*CASES, *OTHERS])
def test_einsum(equation: str, tmp_path: Path) -> None:
    constant, transposes = CASES.get(equation, ((), None))
    fed, expected, model = _lowered(equation, constant, tmp_path / "model.onnx")
    with Session(tmp_path / "model.onnx") as session:
        feeds = dict(zip(session.input_names, fed, strict=True))
        assert snr_db(expected, session.run(feeds)["y"]) >= 100
    if transposes is not None:
        counts = Counter(node.op_type for node in model.graph.node)
        assert counts["Transpose"] == transposes
        assert counts["MatMul"] == 1
        assert "Shape" not in counts


@pytest.mark.parametrize("equation", OTHERS)
def test_what_is_no_product_is_left_to_tf2onnx(equation: str) -> None:
    assert list(products(equation)) == []

"""Products of matrices."""

from __future__ import annotations

import numpy as np
import pytest
from ncnn_written import check, layers, refused
from node_models import Node, floats, integers, model

CONSTANT = {
    "vector": ((1, 5), (5, 7)),
    "rows": ((3, 5), (5, 7)),
    "positions": ((1, 4, 5), (5, 7)),
    "rows of positions": ((3, 4, 5), (5, 7)),
    "many axes": ((2, 3, 2, 2, 5), (5, 7)),
    "one axis": ((5,), (5, 7)),
    "one column": ((3, 4, 5), (5, 1)),
}


@pytest.mark.parametrize(("left", "right"), CONSTANT.values(), ids=CONSTANT)
def test_a_constant_right_matrix(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    made, feeds = model(Node("MatMul", [floats(*left), floats(*right, seed=2)], constants=(1,)))
    check(made, feeds)
    assert "MatMul" not in layers(made)


BOTH = {
    "matrices": ((4, 5), (5, 7)),
    "vectors": ((5,), (5,)),
    "a vector and a matrix": ((5,), (5, 7)),
    "a matrix and a vector": ((4, 5), (5,)),
    "a vector and matrices": ((5,), (3, 5, 7)),
    "matrices and a vector": ((3, 4, 5), (5,)),
    "rows and one matrix": ((3, 5), (5, 7)),
    "heads": ((2, 3, 4, 5), (2, 3, 5, 7)),
    "heads of one sample": ((1, 3, 4, 5), (1, 3, 5, 7)),
    "rows": ((3, 4, 5), (3, 5, 7)),
    "one matrix for all": ((2, 3, 4, 5), (5, 7)),
    "one left matrix for all": ((4, 5), (3, 5, 7)),
    "the left for each head": ((2, 1, 4, 5), (2, 3, 5, 7)),
    "the right for each head": ((2, 3, 4, 5), (1, 3, 5, 7)),
    "by turns": ((2, 1, 4, 5), (1, 3, 5, 7)),
    "five axes": ((2, 3, 2, 4, 5), (2, 3, 2, 5, 7)),
    "a row and a column": ((2, 3, 1, 5), (2, 3, 5, 1)),
    "one and one": ((1, 1, 5), (1, 5, 1)),
}


@pytest.mark.parametrize(("left", "right"), BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("constant", [(), (0,), (1,)], ids=["", "constant left", "constant right"])
def test_two_matrices(left: tuple[int, ...], right: tuple[int, ...], constant: tuple[int, ...]) -> None:
    check(*model(Node("MatMul", [floats(*left), floats(*right, seed=2)], constants=constant)))


def test_matrices_that_are_shared_by_turns_along_three_axes_are_refused() -> None:
    made, _ = model(Node("MatMul", [floats(1, 2, 1, 2, 4, 5), floats(3, 1, 3, 1, 5, 7)]))
    assert "by turns along three axes" in refused(made)


def test_integers() -> None:
    nodes = [
        Node("MatMul", [integers(3, 4), integers(4, 2, seed=2)], constants=(1,)),
        Node("MatMul", [integers(3, 4, dtype="uint8", low=0), integers(4, 2, dtype="uint8", low=0)]),
    ]
    made, _ = model(nodes[0])
    assert "beyond 2^24" in refused(made)
    made, _ = model(nodes[1])
    assert "wrap around" in refused(made)


GEMM = {
    "constant": Node("Gemm", [floats(1, 5), floats(5, 7, seed=2), floats(7, seed=3)], constants=(1, 2)),
    "turned": Node("Gemm", [floats(3, 5), floats(7, 5, seed=2), floats(7, seed=3)], {"transB": 1}, (1, 2)),
    "factors": Node(
        "Gemm",
        [floats(3, 5), floats(7, 5, seed=2), floats(1, 7, seed=3)],
        {"transB": 1, "alpha": 0.5, "beta": 2.0},
        (1, 2),
    ),
    "no bias": Node("Gemm", [floats(3, 5), floats(5, 7, seed=2)], {"alpha": 0.5}, (1,)),
    "beta of 0": Node("Gemm", [floats(3, 5), floats(5, 7, seed=2), floats(7, seed=3)], {"beta": 0.0}, (1, 2)),
    "one number": Node("Gemm", [floats(3, 5), floats(5, 7, seed=2), floats(1, seed=3)], {"beta": 0.5}, (1, 2)),
    "a column": Node("Gemm", [floats(3, 5), floats(5, 7, seed=2), floats(3, 1, seed=3)], {"beta": 0.5}, (1, 2)),
    "a matrix": Node("Gemm", [floats(3, 5), floats(5, 7, seed=2), floats(3, 7, seed=3)], {}, (1, 2)),
    "computed bias": Node("Gemm", [floats(3, 5), floats(5, 7, seed=2), floats(7, seed=3)], {"beta": 0.5}, (1,)),
    "left turned": Node("Gemm", [floats(5, 3), floats(5, 7, seed=2), floats(7, seed=3)], {"transA": 1}, (1, 2)),
    "both computed": Node(
        "Gemm",
        [floats(5, 3), floats(7, 5, seed=2), floats(3, 7, seed=3)],
        {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
    ),
    "constant left": Node("Gemm", [floats(3, 5), floats(5, 7, seed=2), floats(7, seed=3)], {}, (0, 2)),
    "batched": Node("Gemm", [floats(3, 5), floats(5, 7, seed=2), floats(3, 7, seed=3)]),
}


@pytest.mark.parametrize("node", GEMM.values(), ids=GEMM)
def test_gemm(node: Node) -> None:
    check(*model(node))


def test_a_gemm_of_integers_and_fractions_is_refused() -> None:
    made, _ = model(Node("Gemm", [integers(2, 3), integers(3, 2), integers(2)], {"beta": 0.5}, (1, 2)))
    assert "beta=0.5 of integers" in refused(made)


def test_the_bias_is_in_the_layer() -> None:
    made, feeds = model(GEMM["factors"])
    assert layers(made) == ["InnerProduct"]
    assert feeds["x0_0"].dtype == np.float32


# ---- Einsum

EINSUMS = {
    "matrices": ("ij,jk->ik", [(2, 3), (3, 4)]),
    "batched": ("bij,bjk->bik", [(3, 2, 4), (3, 4, 5)]),
    "heads": ("bihd,bjhd->bhij", [(3, 4, 2, 5), (3, 6, 2, 5)]),
    "back": ("bhij,bjhd->bihd", [(3, 2, 4, 6), (3, 6, 2, 5)]),
    "sum": ("ij->i", [(3, 4)]),
    "sum of rows": ("ij->j", [(3, 4)]),
    "transpose": ("ij->ji", [(3, 4)]),
    "dots": ("...ij,...jk->...ik", [(2, 3, 4, 5), (2, 3, 5, 6)]),
    "outer": ("i,j->ij", [(3,), (4,)]),
    "inner": ("i,i->", [(5,), (5,)]),
    "one for all": ("bij,jk->bik", [(3, 2, 4), (4, 5)]),
    "three": ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
    "implicit": ("bij,bjk", [(3, 2, 4), (3, 4, 5)]),
    "elementwise": ("bij,bij->bij", [(3, 2, 4), (3, 2, 4)]),
}


@pytest.mark.parametrize(("equation", "shapes"), EINSUMS.values(), ids=EINSUMS)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [floats(*shape, scale=1.0, seed=seed) for seed, shape in enumerate(shapes)]
    made, feeds = model(
        Node("Einsum", operands, {"equation": equation}),
        Node("Einsum", operands, {"equation": equation}, (len(operands) - 1,)),
    )
    check(made, feeds)


def test_a_diagonal_is_refused() -> None:
    made, _ = model(Node("Einsum", [floats(3, 3)], {"equation": "ii->i"}))
    assert "diagonal" in refused(made)

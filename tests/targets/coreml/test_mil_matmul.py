"""Products of matrices, Einsum and transforms for Core ML against ONNX Runtime, at several sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import target_testing as t
import written

from retarget.errors import Unsupported
from retarget.targets.coreml.emit import FILE
from retarget.targets.coreml.executed import executed

if TYPE_CHECKING:
    from retarget.targets.coreml import DeploymentTarget


PRODUCTS = {
    "two vectors": "(float[4] x, float[4] y) => (float z)",
    "a vector on the left": "(float[4] x, float[N,4,3] y) => (float[N,3] z)",
    "a vector on the right": "(float[2,N,4] x, float[4] y) => (float[2,N] z)",
    "a constant vector": "(float[N,4] x, float[4] w_y) => (float[N] z)",
    "a vector and a layer": "(float[4] x, float[4,3] w_y) => (float[3] z)",
    "a layer": "(float[N,4] x, float[4,3] w_y) => (float[N,3] z)",
    "a layer of sequences": "(float[N,S,4] x, float[4,3] w_y) => (float[N,S,3] z)",
    "a layer of images": "(float[N,2,S,4] x, float[4,3] w_y) => (float[N,2,S,3] z)",
    "heads": "(float[N,2,S,4] x, float[N,2,4,S] y) => (float[N,2,S,S] z)",
    "open in between": "(float[N,2,4,S] x, float[N,2,S,3] y) => (float[N,2,4,3] z)",
    "axes that widen": "(float[2,1,2,1,3] x, float[1,4,1,3,2] y) => (float[2,4,2,1,2] z)",
    "a constant matrix for each of a batch": "(float[N,3,4] x, float[2,1,4,3] w_y) => (float[2,N,3,3] z)",
    "a constant on the left": "(float[3,4] w_x, float[N,4,S] y) => (float[N,3,S] z)",
}


@pytest.mark.parametrize("signature", PRODUCTS.values(), ids=PRODUCTS)
def test_matmul(signature: str) -> None:
    left, right = (name for name in ("w_x", "w_y"))
    names = (left if left in signature else "x", right if right in signature else "y")
    model = t.model(f"g {signature} {{ z = MatMul({names[0]}, {names[1]}) }}")
    written.check_open(model, 3, 5)


@pytest.mark.parametrize("target", written.TARGETS)
def test_matmul_of_integers(target: DeploymentTarget) -> None:
    model = t.model("g (int32[N,4] x, int32[4,3] y) => (int32[N,3] z) { z = MatMul(x, y) }")
    written.check_open(model, 3, 5, target=target)


@pytest.mark.parametrize(
    ("attributes", "shapes"),
    [
        ("alpha = 0.5, beta = 2.0, transB = 1", "float[N,4] a, float[3,4] w_b, float[3] w_c"),
        ("alpha = 0.5, beta = 2.0, transA = 1", "float[4,N] a, float[4,3] w_b, float[N,3] c"),
        ("transA = 1, transB = 1", "float[4,N] a, float[3,4] b, float[1,3] c"),
        ("beta = 0.5", "float[N,4] a, float[4,3] w_b, float[1] w_c"),
        ("beta = 0.0", "float[N,4] a, float[4,3] w_b, float[3] w_c"),
        ("alpha = 2.0", "float[2,4] a, float[4,3] w_b, float[2,1] w_c"),
    ],
)
def test_gemm(attributes: str, shapes: str) -> None:
    names = [part.split()[1] for part in shapes.split(", ")]
    rows = "2" if "[2,4]" in shapes else "N"
    model = t.model(f"g ({shapes}) => (float[{rows},3] z) {{ z = Gemm <{attributes}> ({', '.join(names)}) }}")
    written.check_open(model, 3, 5)


@pytest.mark.parametrize("points", ["", ", p", ", p, q"])
def test_matmul_integer(points: str) -> None:
    inputs = {"x": "uint8[2,4] x", "y": "int8[4,3] y", "p": "uint8 p", "q": "int8[3] q"}
    names = ["x", "y", *points.replace(",", "").split()]
    signature = ", ".join(inputs[name] for name in names)
    model = t.model(f"g ({signature}) => (int32[2,3] z) {{ z = MatMulInteger({', '.join(names)}) }}")
    rng = np.random.default_rng(3)
    feeds = {
        "x": rng.integers(0, 256, (2, 4)).astype(np.uint8),
        "y": rng.integers(-128, 128, (4, 3)).astype(np.int8),
        "p": np.array(131, np.uint8),
        "q": rng.integers(-128, 128, 3).astype(np.int8),
    }
    written.check(model, {name: feeds[name] for name in names})


EINSUMS = {
    "bhld,bhmd->bhlm": "float[N,2,S,4] x, float[N,2,L,4] y",
    "bhlm,bhmd->bhld": "float[N,2,S,L] x, float[N,2,L,4] y",
    "bqhd,bkhd->bhqk": "float[N,S,2,4] x, float[N,L,2,4] y",
    "bchq,bkhc->bkhq": "float[N,3,2,S] x, float[N,L,2,3] y",
    "nchw,nwhu->nchu": "float[N,3,2,S] x, float[N,S,2,5] y",
    "abcd,efcd->abef": "float[N,S,3,4] x, float[5,2,3,4] y",
    "i,j->ij": "float[N] x, float[S] y",
    "bi,bi->b": "float[N,4] x, float[N,4] y",
    "ij->j": "float[N,4] x",
    "ij": "float[N,4] x",
    "ba,cb": "float[3,N] x, float[S,3] y",
    "ab,bc,cd->ad": "float[N,3] x, float[3,4] y, float[4,S] z",
    "...ij,...jk->...ik": "float[N,1,3,4] x, float[1,2,4,5] y",
    "...i->...": "float[N,2,3] x",
}


@pytest.mark.parametrize("equation", EINSUMS)
def test_einsum(equation: str) -> None:
    inputs = EINSUMS[equation]
    names = [part.split()[1] for part in inputs.split(", ")]
    rank = {"...i->...": 2, "...ij,...jk->...ik": 4, "ij": 2, "ba,cb": 2}.get(equation, len(equation.split("->")[-1]))
    shape = ",".join(f"r{axis}" for axis in range(rank))
    model = t.model(
        f'g ({inputs}) => (float[{shape}] r) {{ r = Einsum <equation = "{equation}"> ({", ".join(names)}) }}'
    )
    written.check_open(model, 3, 5)


def test_a_diagonal_is_refused() -> None:
    model = t.model('g (float[3,3] x) => (float[3] y) { y = Einsum <equation = "ii->i"> (x) }')
    with pytest.raises(Unsupported, match="equation=ii->i: a letter twice in one operand is its diagonal"):
        written.interpreted(model)


@pytest.mark.parametrize(
    ("source", "result", "attributes", "length", "axis"),
    [
        ("N,8,1", "N,8,2", "", 0, -2),
        ("N,7,2", "N,7,2", "<inverse = 1>", 0, -2),
        ("N,7,1", "N,4,2", "<onesided = 1>", 0, -2),
        ("N,8,1", "N,12,2", "", 12, -2),
        ("N,8,2", "N,6,2", "", 6, -2),
        ("N,8,S,2", "N,8,S,2", "", 0, 1),
        ("N,5,2", "N,8,1", "<inverse = 1, onesided = 1>", 0, -2),
        ("N,5,2", "N,9,1", "<inverse = 1, onesided = 1>", 9, -2),
        ("N,5,2", "N,6,1", "<inverse = 1, onesided = 1>", 6, -2),
    ],
)
def test_dft(source: str, result: str, attributes: str, length: int, axis: int) -> None:
    body = f"a = Constant <value = int64 {{{axis}}}> ()"
    body += f" l = Constant <value = int64 {{{length}}}> ()" if length else ""
    body += f" y = DFT {attributes} (x, {'l' if length else ''}, a)"
    model = t.model(f"g (float[{source}] x) => (float[{result}] y) {{ {body} }}")
    written.check_open(model, 3, 5)


@pytest.mark.parametrize("window", ["float[8] k", "float[8] w_k"])
@pytest.mark.parametrize(("onesided", "parts"), [(1, 1), (0, 1), (0, 2)])
def test_stft(window: str, onesided: int, parts: int) -> None:
    count, name = 5 if onesided else 8, window.split()[1]
    model = t.model(
        f"g (float[N,32,{parts}] x, {window}) => (float[N,9,{count},2] y) {{ s = Constant <value = int64 {{3}}> ()"
        f" y = STFT <onesided = {onesided}> (x, s, {name}) }}"
    )
    written.check_open(model, 3, 5)


def test_products_in_float16() -> None:
    model = t.model(
        "g (float16[N,4] x, float16[4,3] w_k, float16[3] w_c) => (float16[N,3] y, float16[3,3] z)"
        ' { y = Gemm <alpha = 0.5, beta = 2.0> (x, w_k, w_c) z = Einsum <equation = "ni,nj->ij"> (y, y) }'
    )
    written.check_open(model, 3, 5, atol=2e-3)


def test_a_constant_matrix_is_a_layer(tmp_path: Path) -> None:
    model = t.model(
        "g (float[N,4] x, float[4,3] w_y, float[N,3] y) => (float[N,3] z) { m = MatMul(x, w_y) z = Add(m, y) }"
    )
    written.written(model, tmp_path)
    assert executed(tmp_path / FILE).operators == {"linear": 1, "add": 1}


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_a_layer_keeps_its_integers(target: DeploymentTarget, tmp_path: Path) -> None:
    """Transposed as the layer has them, with a scale for each of its outputs."""
    model = t.model(
        "g (float[N,4] x, int8[4,3] q) => (float[N,3] y) { s = Constant <value = float[3] {0.5, 0.25, 2.0}> ()"
        " w = DequantizeLinear <axis = 1> (q, s) y = MatMul(x, w) }"
    )
    codes = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
    (value,) = [each for each in model.graph.inputs if each.name == "q"]
    value.const_value = ir.tensor(codes, name="q")
    model.graph.inputs.remove(value)
    model.graph.register_initializer(value)
    written.check_open(model, 3, 5, target=target)
    written.written(model, tmp_path, target)
    assert executed(tmp_path / FILE).stored(2) == {"int8": 12}

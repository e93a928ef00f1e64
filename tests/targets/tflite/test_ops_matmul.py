"""Matrix products, attention and Einsum of TFLite against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import target_testing as t

from retarget.errors import Unsupported

CASES = {
    "constant matrix": "g (float[N,5] x, float[5,7] w_a) => (float[N,7] y) { y = MatMul(x, w_a) }",
    "constant matrix, three axes": "g (float[N,3,5] x, float[5,7] w_a) => (float[N,3,7] y) { y = MatMul(x, w_a) }",
    "constant stack": "g (float[N,3,5] x, float[2,1,5,7] w_a) => (float[2,N,3,7] y) { y = MatMul(x, w_a) }",
    "constant on the left": "g (float[N,5,4] x, float[3,5] w_a) => (float[N,3,4] y) { y = MatMul(w_a, x) }",
    "vector": "g (float[N,5] x, float[5] w_a) => (float[N] y) { y = MatMul(x, w_a) }",
    "both computed": "g (float[N,3,5] x, float[N,5,4] z) => (float[N,3,4] y) { y = MatMul(x, z) }",
    "both computed, broadcast": "g (float[N,1,3,5] x, float[4,5,2] z) => (float[N,4,3,2] y) { y = MatMul(x, z) }",
    "fused activation": """g (float[N,5] x, float[5,7] w_a) => (float[N,7] y) { m = MatMul(x, w_a) y = Relu(m) }""",
    "activation behind a product of computed ones": """g (float[N,3,5] x, float[N,5,4] z) => (float[N,3,4] y)
        { m = MatMul(x, z) y = Relu(m) }""",
    "gemm": """g (float[N,5] x, float[7,5] w_a, float[7] w_c) => (float[N,7] y)
        { y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w_a, w_c) }""",
    "gemm, bias of one number": """g (float[N,5] x, float[5,7] w_a, float[1] w_c) => (float[N,7] y)
        { y = Gemm(x, w_a, w_c) }""",
    "gemm, bias for each row": """g (float[4,5] x, float[5,7] w_a, float[4,1] w_c) => (float[4,7] y)
        { y = Gemm(x, w_a, w_c) }""",
    "gemm, turned operand, activation": """g (float[5,4] x, float[5,7] w_a, float[7] w_c) => (float[4,7] y)
        { m = Gemm <transA = 1> (x, w_a, w_c) y = Relu(m) }""",
    "gemm of computed operands": """g (float[4,5] x, float[7,5] z) => (float[4,7] y)
        { y = Gemm <transB = 1> (x, z) }""",
    "einsum, product": """g (float[4,3,5] x, float[4,5,2] z) => (float[4,3,2] y)
        { y = Einsum <equation = "bij,bjk->bik"> (x, z) }""",
    "einsum, heads": """g (float[2,6,3,4] x, float[2,5,3,4] z) => (float[2,3,6,5] y)
        { y = Einsum <equation = "bqhd,bkhd->bhqk"> (x, z) }""",
    "einsum, sums what nothing else has": """g (float[2,6,3] x, float[3,5,4] z) => (float[5,2] y)
        { y = Einsum <equation = "abc,cde->da"> (x, z) }""",
    "einsum, transpose": """g (float[2,3,4] x) => (float[4,2,3] y) { y = Einsum <equation = "abc->cab"> (x) }""",
    "einsum without an arrow": """g (float[4,3] x, float[3,2] z) => (float[4,2] y)
        { y = Einsum <equation = "ij,jk"> (x, z) }""",
    "attention": """g (float[N,6,4,8] q, float[N,2,5,8] k, float[N,2,5,3] v) => (float[N,6,4,3] y)
        { y = Attention <is_causal = 1, scale = 0.3> (q, k, v) }""",
    "attention with heads side by side and a mask": """g (float[N,4,24] q, float[N,5,24] k, float[N,5,24] v,
        bool[4,5] m) => (float[N,4,24] y) { y = Attention <q_num_heads = 3, kv_num_heads = 3> (q, k, v, m) }""",
    "rotary embedding": """g (float[2,3,32] x, float[9,4] c, float[9,4] s, int64[2,3] p) => (float[2,3,32] y)
        { y = RotaryEmbedding <num_heads = 4> (x, c, s, p) }""",
}


@pytest.mark.parametrize("name", CASES)
def test_products(name: str, tmp_path: Path) -> None:
    model = t.model(CASES[name])
    facts = t.emit("tflite", model, tmp_path)
    sizes = (4, 2) if "N" in CASES[name].split(")", 1)[0] else (4,)
    assert not facts.sizes
    for size in sizes:
        feeds = t.feeds(model, size)
        right = t.oracle(model, feeds)
        for output, array in t.run("tflite", tmp_path, facts, feeds).items():
            t.assert_close(array, right[output])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('g (float[3,3] x) => (float[3] y) { y = Einsum <equation = "ii->i"> (x) }', "no letter twice"),
        (
            'g (float[2,3] x, float[2,3] z) => (float[2,2] y) { y = Einsum <equation = "...i,...i->..."> (x, z) }',
            "`...`",
        ),
        (
            """g (float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v) => (float[1,2,4,8] y)
            { y = Attention <softmax_precision = 10> (q, k, v) }""",
            "softmax_precision",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="cannot take 1 node") as refused:
        t.emit("tflite", t.model(text), tmp_path)
    assert reason in refused.value.message
    assert not list(tmp_path.iterdir())

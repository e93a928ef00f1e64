"""Attention and RotaryEmbedding for Core ML against ONNX Runtime, with open batches and lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import target_testing as t
import written

from retarget.errors import Unsupported
from retarget.targets.coreml.emit import FILE
from retarget.targets.coreml.executed import executed

if TYPE_CHECKING:
    from pathlib import Path

    from retarget.targets.coreml import DeploymentTarget

QKV = "float[N,2,S,4] q, float[N,2,L,4] k, float[N,2,L,6] v"
WIDE = "float[N,S,8] q, float[N,L,4] k, float[N,L,6] v"
"""Heads side by side: two of queries and one of keys."""

CASES = {
    "plain": (QKV, "", "q, k, v"),
    "scaled": (QKV, "scale = 0.3", "q, k, v"),
    "causal": (QKV, "is_causal = 1", "q, k, v"),
    "causal with a mask": (f"{QKV}, float[S,L] m", "is_causal = 1", "q, k, v, m"),
    "mask of floats": (f"{QKV}, float[N,1,S,L] m", "", "q, k, v, m"),
    "mask of truths": (f"{QKV}, bool[N,1,S,L] m", "", "q, k, v, m"),
    "mask of truths for all": (f"{QKV}, bool[S,L] m", "is_causal = 1", "q, k, v, m"),
    "softcap": (QKV, "softcap = 1.5", "q, k, v"),
    "groups": ("float[N,4,S,4] q, float[N,2,L,4] k, float[N,2,L,6] v", "", "q, k, v"),
    "groups and a mask": ("float[N,4,S,4] q, float[N,2,L,4] k, float[N,2,L,6] v, bool[S,L] m", "", "q, k, v, m"),
    "side by side": (WIDE, "q_num_heads = 2, kv_num_heads = 1", "q, k, v"),
}


@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
@pytest.mark.parametrize("name", CASES)
def test_attention(name: str, target: DeploymentTarget) -> None:
    inputs, attributes, operands = CASES[name]
    result = "float[N,S,12]" if "num_heads" in attributes else f"float[N,{4 if 'groups' in name else 2},S,6]"
    made = f"Attention <{attributes}> ({operands})" if attributes else f"Attention({operands})"
    model = t.model(f"g ({inputs}) => ({result} y) {{ y = {made} }}")
    written.check_open(model, 3, 5, target=target)


@pytest.mark.parametrize("causal", [0, 1])
def test_past_and_present(causal: int) -> None:
    model = t.model(
        "g (float[N,2,S,4] q, float[N,2,S,4] k, float[N,2,S,6] v, float[N,2,P,4] pk, float[N,2,P,6] pv)"
        " => (float[N,2,S,6] y, float[N,2,T,4] nk, float[N,2,T,6] nv)"
        f" {{ y, nk, nv = Attention <is_causal = {causal}> (q, k, v, , pk, pv) }}"
    )
    written.check_open(model, 3, 5)


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_who_may_look_at_nothing_gets_zeros(kind: str, target: DeploymentTarget) -> None:
    model = t.model(
        f"g (float[N,2,3,4] q, float[N,2,3,4] k, float[N,2,3,6] v, {kind}[3,3] m) => (float[N,2,3,6] y)"
        " { y = Attention(q, k, v, m) }"
    )
    seen = np.array([[True, False, True], [False, False, False], [True, True, True]])
    mask = seen if kind == "bool" else np.where(seen, 0, -np.inf).astype(np.float32)
    feeds = {name: t.normal(2, 2, 3, size, seed=size) for name, size in (("q", 4), ("k", 4), ("v", 6))} | {"m": mask}
    written.check(model, feeds, target=target)
    (found,) = written.interpreted(model, feeds, target=target)
    assert not found["y"][:, :, 1].any()


@pytest.mark.parametrize(
    ("target", "attributes", "is_whole"),
    [("iOS18", "scale = 0.5", True), ("iOS18", "softcap = 2.0", False), ("iOS17", "scale = 0.5", False)],
)
def test_operators(target: DeploymentTarget, attributes: str, is_whole: bool, tmp_path: Path) -> None:
    model = t.model(f"g ({QKV}) => (float[N,2,S,6] y) {{ y = Attention <{attributes}> (q, k, v) }}")
    written.written(model, tmp_path, target)
    operators = executed(tmp_path / FILE).operators
    assert ("scaled_dot_product_attention" in operators) == is_whole
    # 1 / sqrt(4) is what the operator divides by: nothing is left to multiply with.
    assert operators == {"scaled_dot_product_attention": 1} or not is_whole


def test_attention_in_float16() -> None:
    text = f"g ({QKV}, bool[S,L] m) => (float[N,2,S,6] y) {{ y = Attention <is_causal = 1> (q, k, v, m) }}"
    written.check_open(t.model(text.replace("float[", "float16[")), 3, 5, atol=5e-3)


def test_softcap_of_what_is_shown_is_refused() -> None:
    model = t.model(
        f"g ({QKV}) => (float[N,2,S,6] y, float[N,2,S,L] w) {{ y, , , w = Attention <softcap = 2.0> (q, k, v) }}"
    )
    with pytest.raises(Unsupported, match="qk_matmul_output_mode=0 with softcap"):
        written.interpreted(model)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("size", [0, 4])
@pytest.mark.parametrize("has_heads", [True, False])
def test_rotary_embedding(interleaved: int, size: int, has_heads: bool) -> None:
    shape, more = ("N,2,S,8", "") if has_heads else ("N,S,16", ", num_heads = 2")
    half = (size or 8) // 2
    attributes = f"interleaved = {interleaved}, rotary_embedding_dim = {size}{more}"
    model = t.model(
        f"g (float[{shape}] x, float[16,{half}] w_c, float[16,{half}] w_s, int64[N,S] p, float[N,S,{half}] c)"
        f" => (float[{shape}] y, float[{shape}] z)"
        f" {{ y = RotaryEmbedding <{attributes}> (x, w_c, w_s, p) z = RotaryEmbedding <{attributes}> (x, c, c) }}"
    )
    written.check_open(model, 3, 5)

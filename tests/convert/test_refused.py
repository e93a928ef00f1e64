"""Files that are valid and that ONNX Runtime cannot load: the error names the node and says what to do."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from retarget.catalog import frontend_export
from retarget.errors import ToolchainFailure
from retarget.source import Source

HEADER = '<ir_version: 10, opset_import: ["": 21, "acme": 1]>\n'


@pytest.mark.parametrize(
    ("body", "name", "hint"),
    [
        (
            "(bfloat16[N,4] x) => (bfloat16[N,4] y) { y = Relu(x) }",
            "",
            "no CPU kernel of Relu for bfloat16; {unverified}: export the model in float32",
        ),
        (
            "(double[N,2,4,4] x, double[3,2,1,1] w) => (double[N,3,4,4] y) { y = Conv(x, w) }",
            "stem",
            "no CPU kernel of Conv (node 'stem') for float64; {unverified}: export the model in float32",
        ),
        (
            "(float[N,4] x) => (float[N,4] y) { y = acme.Twist(x) }",
            "turn",
            "(node 'turn') is of the domain 'acme', which ONNX Runtime does not have; {unverified}: export the model",
        ),
    ],
    ids=["bfloat16", "float64", "domain"],
)
def test_the_hint_names_what_is_refused(tmp_path: Path, body: str, name: str, hint: str) -> None:
    model = onnx.parser.parse_model(f"{HEADER} net {body}")
    model.graph.node[0].name = name
    onnx.save(model, tmp_path / "net.onnx")
    source = Source(tmp_path / "net.onnx", (), {})
    export = frontend_export("onnx")
    exported = export.export(source, None, tmp_path)
    with pytest.raises(ToolchainFailure, match="ONNX Runtime cannot load") as refused:
        export.reference(source, exported)
    assert refused.value.hint is not None
    assert hint.format(unverified="what cannot be executed cannot be verified") in refused.value.hint

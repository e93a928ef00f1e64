"""The quantizer on exported models of every family, in every scheme; the oracle is the float model."""

from __future__ import annotations

from functools import cache

import onnx
import onnx_ir as ir
import pytest
from quantizing import min_max, run
from test_presets_on_zoo import EXPORTED, exported
from zoo import FAMILIES

from retarget.compare import snr_db
from retarget.passes import presets
from retarget.passes.quantize import Quantize
from retarget.passes.quantize_rules import SUMMED
from retarget.passes.unify_scales import UnifyScales
from retarget.schemes import COREML, NCNN, OPENVINO, TENSORRT, TFLITE, TFLITE_16X8, U8S8

SCHEMES = (U8S8, OPENVINO, TENSORRT, TFLITE, TFLITE_16X8, COREML, NCNN)
QUICK = {"bert", "lstm", "resnet"}
FAMILIES_TO_RUN = [
    pytest.param(one.values[0], marks=() if one.values[0] in QUICK else pytest.mark.stress) for one in EXPORTED
]
FLOOR = {"mobilenet_v2": 14}
"""SNR in dB, else 24. This one has weights that nobody trained, and is 53 layers deep."""
PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@cache
def optimized(name: str) -> ir.Model:
    model = exported(name)
    for one in presets.build("default", {}):
        model = one.run(model).model
    return model


@pytest.mark.parametrize("name", FAMILIES_TO_RUN)
def test_every_scheme_quantizes_every_family(name: str) -> None:
    family, model = FAMILIES[name], optimized(name)
    choose = min_max(model, [family.feeds(seed=seed) for seed in range(3)])
    feeds = family.feeds(seed=9)
    expected = run(model, feeds)
    for scheme in SCHEMES:
        copy = model.clone()
        quantize = Quantize(scheme, choose)
        assert quantize(copy).modified
        onnx.checker.check_model(ir.to_proto(copy), full_check=True)
        left = [one for one in quantize.kept if one.op in PRODUCTS]
        sums = [one for one in left if one.reason == SUMMED]
        assert len(sums) <= 1
        reasons = ("products of two activations", *(() if scheme.grouped else ("of several groups",)))
        assert all(any(reason in one.reason for reason in reasons) for one in left if one not in sums)
        assert len(left) == len(sums) or not scheme.products
        found = run(copy, feeds)
        for output, array in expected.items():
            assert snr_db(array, found[output]) > FLOOR.get(name, 24), (scheme.name, output)
        if scheme is U8S8:
            fast = run(copy, feeds, optimize=True)
            assert all(abs(snr_db(a, fast[output]) - snr_db(a, found[output])) < 1 for output, a in expected.items())
        again = Quantize(scheme, choose)
        assert not again(copy).modified
        if scheme.same_scale:
            assert not UnifyScales()(copy).modified, "what needs one scale has it"

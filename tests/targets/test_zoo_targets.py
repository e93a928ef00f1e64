"""Real architectures from PyTorch's own outputs to each runtime's: fp32 within 100 dB, fp16 within 40 dB.

Weights alone in 8 bits within 28 dB, in 4 bits 7 dB: the weights are random, and those of trained models lose less.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from small_net import options_of

from retarget import catalog, graph
from retarget.calibration.observers import observe
from retarget.compare import snr_db
from retarget.convert.pytorch import export, load
from retarget.passes import presets
from retarget.passes.fp16 import CastFloat16
from retarget.passes.pick_codes import PickCodes
from retarget.passes.quantize_weights import QuantizeWeights
from retarget.protocols import EmitJob
from retarget.source import Source

BOUNDS = {"fp32": 100, "fp16": 40, "int8_weights": 28, "int4_weights": 7}


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "bert", "vit", "swin", "whisper_encoder"])
def test_architectures_keep_their_outputs(name: str, tmp_path: Path) -> None:
    import torch

    family = zoo.FAMILIES[name]
    weights, factory = tmp_path / "weights.pt", tmp_path / "build.py"
    torch.save(family.build().state_dict(), weights)
    factory.write_text(f"import zoo\n\ndef build():\n    return zoo.FAMILIES[{name!r}].build()\n")
    options = options_of()
    source = Source(weights, family.specs, family.shapes, family.outputs, (factory, "build"), options=options)
    folder = tmp_path / "exported"
    folder.mkdir()
    exported = export.export(source, None, folder)
    model = load.load(folder, source, exported)
    for _, optimization in presets.build("default", family.shapes):
        model = optimization(model).model
    feeds = {size: family.feeds(dict.fromkeys(family.shapes, size), seed=size) for size in _sizes(family)}
    with export.reference(source, exported) as runner:
        expected = {size: runner.run(fed) for size, fed in feeds.items()}
    outputs = tuple(graph.value_spec(value) for value in model.graph.outputs)

    for target in ("onnxruntime", "openvino"):
        if (reason := catalog.target(target).unavailable()) is not None:
            pytest.skip(reason[0])
        for precision, bound in BOUNDS.items():
            made = model
            quantize = QuantizeWeights(4 if precision == "int4_weights" else 8, 32)
            if precision.endswith("weights"):
                made = PickCodes()(quantize(model.clone()).model).model
            if precision == "fp16" and catalog.target(target).fp16 == "graph":
                made = CastFloat16(observe(model, feeds.values()), io="float32")(model.clone()).model
            job = EmitJob(precision, family.specs, outputs, family.shapes, catalog.target(target).Options())
            out = tmp_path / target / precision
            out.mkdir(parents=True)
            facts = catalog.target_emit(target).emit(made, job, out)
            if precision in ("fp32", "fp16"):
                assert facts.precision.weights == {"fp32": "float32", "fp16": "float16"}[precision]
            elif all(kept.op != "Conv" for kept in quantize.kept):
                assert facts.precision.weights == {"int8_weights": "int8", "int4_weights": "int4"}[precision]
                assert not any("expands" in note for note in facts.notes)
            assert facts.precision.low_precision_share is not None
            with catalog.target_run(target).open(out, facts, parity=True, threads=1) as artifact:
                for size, fed in feeds.items():
                    got = artifact.run(fed)
                    for output, right in expected[size].items():
                        decibels = snr_db(right, got[output])
                        assert decibels >= bound, f"{target} {precision} {output} at {size}: {decibels:.1f} dB"


def _sizes(family: zoo.Family) -> list[int]:
    """Two sizes that every dimension of ``family`` may have."""
    lowest = max(extent.min for extent in family.shapes.values())
    return [lowest, lowest + 1]

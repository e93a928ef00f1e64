"""Real architectures from PyTorch's own outputs to each runtime's: fp32 within 100 dB, fp16 within 40 dB.

Weights alone in 8 bits within 28 dB, in 4 bits 7 dB: the weights are random, and those of trained models lose less.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from msgspec import Struct
from zoo_prepared import ROUNDED, Prepared, prepared

from retarget import catalog
from retarget.calibration.observers import observe
from retarget.compare import snr_db
from retarget.passes.fp16 import CastFloat16
from retarget.passes.pick_codes import PickCodes
from retarget.passes.quantize_weights import QuantizeWeights
from retarget.protocols import EmitJob
from retarget.targets import coreml, tflite
from retarget.targets.tflite.emit import FILE
from retarget.targets.tflite.executed import transposes

BOUNDS = {"fp32": 100, "fp16": 40, "int8_weights": 28, "int4_weights": 7}
ON_ALL = ("resnet", "mobilenet_v2", "bert", "vit", "swin", "whisper_encoder")
"""The others are held where we write every operator ourselves, in TFLite, Core ML and ncnn: the readers of ONNX that
other runtimes have are not ours to test."""
DEPLOYMENT: tuple[coreml.DeploymentTarget, ...] = ("iOS16", "iOS17", "iOS18")
"""Of these the models take one in turn; `coreml/test_coreml_zoo` has all of them."""
TRANSPOSES = {
    "resnet": 0,
    "mobilenet_v2": 0,
    "convnext": 0,
    "yolo": 0,
    # Four a layer of attention: queries, keys and values into heads, and what they give back out of them.
    "vit": 8,
    "bert": 8,
    "gpt2": 8,
    # One more for the input: 3 axes keep the source's order at the border, which is channels first.
    "whisper_encoder": 9,
    # Two more in each of four layers, into windows and out of them.
    "swin": 24,
    # One more a layer: keys are turned for their product after the rotation, and cannot be before it.
    "llama": 10,
    # Six attentions; before the first has seen the image, queries are constants, and so is their own attention.
    "detr": 19,
    # One head needs no more than its keys turned; the second layer has two.
    "segformer": 5,
    # Batches first at the border, steps first in the kernel; the two directions stand side by side in between.
    "lstm": 4,
    "gru": 4,
}
"""The most that a file may have whose images have their channels last."""


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_architectures_keep_their_outputs(name: str, tmp_path: Path) -> None:
    family = zoo.FAMILIES[name]
    # All dimensions at a small size, then at a larger one, and at the one that a file has where it has only one.
    small = dict.fromkeys(family.shapes, max(extent.min for extent in family.shapes.values()))
    more = {symbol: size + 1 for symbol, size in small.items()}
    opt = {symbol: extent.opt for symbol, extent in family.shapes.items()}
    made = prepared("zoo", name, [small, more] if opt in (small, more) else [small, more, opt], tmp_path)
    written = ("tflite", "coreml", "ncnn")
    for target in ("onnxruntime", "openvino", *written) if name in ON_ALL else written:
        if (reason := catalog.target(target).unavailable()) is not None:
            pytest.skip(reason[0])
        # What a target compresses itself it leaves as it is where that is as little as here.
        light = catalog.target(target)
        for precision in sorted((light.precisions - light.compresses) & BOUNDS.keys()):
            out = tmp_path / target / precision
            out.mkdir(parents=True)
            _held(name, made, target, precision, out)
    assert transposes(tmp_path / "tflite" / "fp32" / FILE) <= TRANSPOSES[name]


def _options(name: str, target: str) -> Struct:
    if target == "tflite":
        return tflite.Options(io_layout="nhwc")
    if target == "coreml":
        return coreml.Options(minimum_deployment_target=DEPLOYMENT[list(zoo.FAMILIES).index(name) % len(DEPLOYMENT)])
    return catalog.target(target).Options()


def _held(name: str, made: Prepared, target: str, precision: str, out: Path) -> None:
    model, family = made.model, made.family
    quantize = QuantizeWeights(4 if precision == "int4_weights" else 8, 32)
    if precision.endswith("weights"):
        model = PickCodes()(quantize(model.clone()).model).model
    if precision == "fp16" and catalog.target(target).fp16 == "graph":
        model = CastFloat16(observe(model, made.feeds), io="float32")(model.clone()).model
    job = EmitJob(precision, family.specs, made.outputs, family.shapes, _options(name, target))
    facts = catalog.target_emit(target).emit(model, job, out)
    if precision in ("fp32", "fp16"):
        # Core ML's lstm takes float16 from iOS17 on, and is written for iOS16.
        is_full = precision == "fp32" or (target, name) == ("coreml", "lstm")
        assert facts.precision.weights == ("float32" if is_full else "float16")
    elif all(kept.op != "Conv" for kept in quantize.kept):
        assert facts.precision.weights == {"int8_weights": "int8", "int4_weights": "int4"}[precision]
        assert not any("expands" in note for note in facts.notes)
    assert facts.precision.low_precision_share is not None
    fits = [index for index, sizes in enumerate(made.sizes) if facts.sizes.items() <= sizes.items()]
    assert fits
    bound = ROUNDED.get(name, BOUNDS[precision]) if (target, precision) == ("coreml", "fp16") else BOUNDS[precision]
    with catalog.target_run(target).open(out, facts, parity=True, threads=1) as artifact:
        for index in fits:
            got = artifact.run(made.feeds[index])
            for output, right in made.expected[index].items():
                decibels = snr_db(right, got[output])
                place = f"{target} {precision} {output} at {made.sizes[index]}"
                assert decibels >= bound, f"{place}: {decibels:.1f} dB"

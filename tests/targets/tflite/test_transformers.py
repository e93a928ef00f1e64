"""Architectures of transformers in TFLite, against PyTorch: fp32 within 80 dB, weights in float16 within 45 dB.

All batches and lengths stay open.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers_zoo
from zoo_prepared import prepared

from retarget import catalog
from retarget.compare import snr_db
from retarget.protocols import EmitJob
from retarget.targets import tflite

BOUNDS = {"fp32": 80, "fp16": 45}


@pytest.mark.stress
@pytest.mark.parametrize("name", transformers_zoo.FAMILIES)
def test_architectures(name: str, tmp_path: Path) -> None:
    shapes = transformers_zoo.FAMILIES[name].shapes
    opt = {symbol: extent.opt for symbol, extent in shapes.items()}
    made = prepared("transformers_zoo", name, [opt, {**opt, "N": shapes["N"].max}], tmp_path)
    for right in made.expected[0].values():
        assert right.std() > 0.05
    for precision, bound in BOUNDS.items():
        out = tmp_path / precision
        out.mkdir()
        job = EmitJob(precision, made.family.specs, made.outputs, shapes, tflite.Options(io_layout="nhwc"))
        facts = catalog.target_emit("tflite").emit(made.model, job, out)
        assert not facts.sizes, facts.notes
        with catalog.target_run("tflite").open(out, facts, parity=True, threads=1) as runner:
            for sizes, feeds, expected in zip(made.sizes, made.feeds, made.expected, strict=True):
                got = runner.run(feeds)
                for output, right in expected.items():
                    assert snr_db(right, got[output]) >= bound, f"{precision} {output} at {sizes}"

"""What is held of whole models in ncnn: that dimensions stay open, and outputs at each of the prepared sizes."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from simulated import simulation
from zoo_prepared import Prepared, prepared

from retarget import catalog
from retarget.compare import snr_db
from retarget.protocols import EmitJob
from retarget.schemes import NCNN
from retarget.session import Session
from retarget.targets.ncnn import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retarget.protocols import Outputs

BOUNDS = {"fp32": 100, "fp16": 40}
"""Decibels against PyTorch, as ncnn executes it in float32; of fp16 the weights are rounded."""


def three_sizes(zoo: str, name: str, folder: Path) -> Prepared:
    """Model ``name`` of the module ``zoo`` with a batch of one, with all dimensions at `opt`, and at their largest."""
    shapes = __import__(zoo).FAMILIES[name].shapes
    opt = {symbol: extent.opt for symbol, extent in shapes.items()}
    return prepared(zoo, name, [{**opt, "N": 1}, opt, {key: extent.max for key, extent in shapes.items()}], folder)


def hold(made: Prepared, folder: Path) -> None:
    """Write the files of each precision twice, all dimensions open, and execute them."""
    for precision, bound in BOUNDS.items():
        first, again = folder / precision / "first", folder / precision / "again"
        job = EmitJob(precision, made.family.specs, made.outputs, made.family.shapes, Options())
        for out in (first, again):
            out.mkdir(parents=True)
            facts = catalog.target_emit("ncnn").emit(made.model, job, out)
        assert digests(first) == digests(again)
        assert not facts.sizes, facts.notes
        assert facts.precision.weights == {"fp32": "float32", "fp16": "float16"}[precision]
        with catalog.target_run("ncnn").open(first, facts, parity=True, threads=1) as runner:
            for sizes, feeds, expected in zip(made.sizes, made.feeds, made.expected, strict=True):
                got = runner.run(feeds)
                for output, right in expected.items():
                    assert right.std() > 0.05
                    decibels = snr_db(right, got[output])
                    assert decibels >= bound, f"{precision} {output} at {dict(sizes)}: {decibels:.1f} dB"


def hold_int8(made: Prepared, out: Path, most: float = 1.0) -> None:
    """Write the files of the quantized model in ``out``, and execute them: as near to the floats as the simulation is,
    within ``most`` decibels over all of the prepared sizes together.

    Sums in another order put one value or another across the edge of two codes, and a model may carry that far.
    """
    model = simulation(made.model, made.feeds, NCNN)
    job = EmitJob("int8", made.family.specs, made.outputs, made.family.shapes, Options())
    facts = catalog.target_emit("ncnn").emit(model, job, out)
    assert not facts.sizes, facts.notes
    with catalog.target_run("ncnn").open(out, facts, parity=True, threads=1) as runner:
        found = [runner.run(feeds) for feeds in made.feeds]
    with Session(model) as session:
        simulated = [session.run(feeds) for feeds in made.feeds]
    for output in made.expected[0]:
        rounding, ours = (_over_all(made.expected, each, output) for each in (simulated, found))
        assert rounding < 60
        assert abs(ours - rounding) < most, f"{output}: {ours:.1f} dB, and {rounding:.1f} dB simulated"


def _over_all(right: Sequence[Outputs], found: Sequence[Outputs], output: str) -> float:
    return snr_db(*(np.concatenate([each[output].reshape(-1) for each in several]) for several in (right, found)))


def digests(folder: Path) -> dict[str, str]:
    """Of every file in ``folder``."""
    found = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    assert found
    return found

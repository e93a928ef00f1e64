"""Samples that are drawn instead of given, where a recipe asks for that by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retarget.calibration.cases import SEED, generate
from retarget.calibration.data import Samples
from retarget.graph import value_spec
from retarget.spec import batch_symbol, batched_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx_ir as ir

    from retarget.calibration.data import Batch
    from retarget.spec import DimRange, TensorSpec


class SyntheticSamples(Samples):
    """``count`` samples from a fixed seed: normal floats, integers within the tables that they index in ``model``.

    All dimensions are at opt. Without a dimension of batches, each sample is a whole input.
    """

    def __init__(
        self, model: ir.Model, specs: Sequence[TensorSpec], shapes: Mapping[str, DimRange], count: int
    ) -> None:
        super().__init__(Path("synthetic"), specs, count, ())
        self.count: int = count
        self._model = model
        self._sizes = {symbol: extent.opt for symbol, extent in shapes.items()}
        batch = batch_symbol(specs, [value_spec(value) for value in model.graph.outputs])
        self._batch = batch if batch is not None and batched_inputs(specs, batch) else None

    def _raw(self, size: int | None) -> Iterator[tuple[Batch, int]]:
        step = 1 if self._batch is None else size or self._sizes[self._batch]
        for start in range(0, self.count, step):
            rows = min(step, self.count - start)
            sizes = self._sizes if self._batch is None else {**self._sizes, self._batch: rows}
            seed = SEED + 1 + start  # parity is held on what SEED gives
            yield {name: generate(self._model, spec, spec.at(sizes), seed) for name, spec in self._specs.items()}, rows

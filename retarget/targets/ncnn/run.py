"""Execute ``model.ncnn.param`` and ``model.ncnn.bin`` with ncnn."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from retarget.adapt import Adapted
from retarget.errors import ToolchainFailure
from retarget.facts import EmitFacts
from retarget.protocols import Runner
from retarget.targets.ncnn import files
from retarget.targets.ncnn.emit import BIN, PARAM

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds, Outputs


def open(artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> Runner:  # noqa: A001 - the protocol's name
    return Adapted(Loaded(artifact, facts, parity=parity, threads=threads), facts.inputs, facts.outputs, facts.sizes)


class Loaded:
    """The files in ncnn, by the artifact's own names; a ``Runner``."""

    def __init__(self, artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> None:
        import ncnn

        self._facts = facts
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = threads
        if parity:
            options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        for load, name in ((self._net.load_param, PARAM), (self._net.load_model, BIN)):
            if load(str(artifact / name)) != 0:
                raise ToolchainFailure(f"ncnn does not load {name}")
        self._inputs = {
            line.tops[0]: tuple(line.integer(key) for key in (2, 11, 1, 0) if line.integer(key))
            for line in files.read(artifact / PARAM)
            if line.type == "Input"
        }
        self.settings = f"ncnn {ncnn.__version__}, CPU, {threads} threads"

    def run(self, feeds: Feeds) -> Outputs:
        """All outputs by name. Raises ``ToolchainFailure`` where a layer fails."""
        import ncnn

        extractor = self._net.create_extractor()
        held = []
        for blob, dims in self._inputs.items():
            index = blob not in feeds
            array = feeds[blob.removesuffix("_index") if index else blob]
            rows = array.size // math.prod(dims)
            wanted = np.int32 if index else np.float32
            mat = ncnn.Mat(np.ascontiguousarray(array.reshape(rows, *dims).astype(wanted)), batch_index=0).clone()
            held.append(mat)
            extractor.input(blob, mat)
        found: Outputs = {}
        for entry in self._facts.outputs:
            code, mat = extractor.extract(entry.artifact_name)
            if code != 0:
                raise ToolchainFailure(f"ncnn ends with {code} on the way to '{entry.artifact_name}'")
            result: Array = np.array(mat.numpy(batch_index=0))
            shape = [self._facts.sizes.get(str(dim), dim) for dim in entry.spec.shape]
            found[entry.artifact_name] = result.reshape([int(dim) for dim in shape])
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._net.clear()

"""Execute ``model.xml`` with OpenVINO's CPU plugin."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from retarget.adapt import Adapted
from retarget.errors import RetargetError
from retarget.facts import EmitFacts
from retarget.protocols import Runner
from retarget.targets.openvino.emit import FILE
from retarget.targets.openvino.executed import EXACT
from retarget.targets.openvino.runtime import core, dtype_name, failure

if TYPE_CHECKING:
    from retarget.protocols import Feeds, Outputs

INT32 = np.iinfo(np.int32)


def open(artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> Runner:  # noqa: A001 - the protocol's name
    """``parity`` computes in float32, and in int8 what the artifact says is quantized; otherwise in what the plugin
    chooses on this machine: that may be bfloat16, and activations rounded to int8 to meet compressed weights."""
    return Adapted(Compiled(artifact / FILE, parity=parity, threads=threads), facts.inputs, facts.outputs)


class Compiled:
    """The model compiled for the CPU, by the artifact's own names and types; a ``Runner``."""

    def __init__(self, path: Path, *, parity: bool, threads: int) -> None:
        settings: dict[str, int | str] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        if parity:
            settings |= {"INFERENCE_PRECISION_HINT": "f32", **EXACT}
        try:
            self._compiled = core().compile_model(path, "CPU", settings)
        except RuntimeError as error:
            raise failure(f"OpenVINO cannot load {path}", error) from error
        self._request = self._compiled.create_infer_request()
        hint = dtype_name(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        used = self._compiled.get_property("INFERENCE_NUM_THREADS")
        self.settings = f"OpenVINO, CPU, {hint}, {used} thread{'s' if used != 1 else ''}"

    def run(self, feeds: Feeds) -> Outputs:
        """All outputs by name. Raises ``RetargetError`` for integers that int32 cannot hold."""
        for name, array in feeds.items():
            if array.dtype.kind in "iu" and array.itemsize > 4 and array.size:
                _check_int32(name, int(array.min()), int(array.max()))
        try:
            results = self._request.infer({name: np.asarray(array, order="C") for name, array in feeds.items()})
        except RuntimeError as error:
            raise failure("OpenVINO failed on the model", error) from error
        # The arrays are views of the request's own buffers, which the next call overwrites.
        return {name: np.array(results[port]) for port in self._compiled.outputs for name in port.get_names()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__dict__.pop("_request", None)
        self.__dict__.pop("_compiled", None)


def _check_int32(name: str, low: int, high: int) -> None:
    """OpenVINO's CPU plugin takes int64 and keeps the lower 32 bits."""
    if low < INT32.min or high > INT32.max:
        raise RetargetError(
            f"'{name}' holds {low if low < INT32.min else high}, and OpenVINO's CPU plugin computes in int32",
            f"feed values from {INT32.min} to {INT32.max}",
        )

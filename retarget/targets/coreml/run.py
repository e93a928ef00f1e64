"""Execute ``model.mlpackage``: by Core ML on a Mac, elsewhere by the interpreter, whose results are `interpreted`."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import msgspec
import numpy as np

from retarget.adapt import Adapted
from retarget.errors import NotExecutable, ToolchainFailure
from retarget.facts import EmitFacts
from retarget.protocols import Runner
from retarget.targets import coreml
from retarget.targets.coreml.border import Border, pixels
from retarget.targets.coreml.emit import BORDER, FILE
from retarget.targets.coreml.interpreter.evaluate import Interpreter
from retarget.targets.coreml.interpreter.program import read
from retarget.targets.coreml.library import ct

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds, Outputs
    from retarget.targets.coreml import Image

    Show: TypeAlias = Callable[[Array, Image], object]
    """Pixels, the channels second, as whoever executes the package is to be given them."""
    Execute: TypeAlias = Callable[[dict[str, object]], Mapping[str, object]]

OLDEST_MACOS = {6: 12, 7: 13, 8: 14, 9: 15}
"""By the version of the specification: iOS15 to iOS18."""


def open(artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> Runner:  # noqa: A001 - the protocol's name
    """Core ML on the CPU for parity, else on all that there is; elsewhere the interpreter, in the package's types."""
    del threads  # neither can be told
    package = _interpreted(artifact / FILE, facts) if coreml.interpreted else _executed(artifact / FILE, facts, parity)
    return Adapted(package, facts.inputs, facts.outputs, facts.sizes)


def _interpreted(path: Path, facts: EmitFacts) -> Packaged:
    interpreter = Interpreter(read(path))

    def execute(feeds: dict[str, object]) -> Mapping[str, object]:
        return interpreter.run({name: np.asarray(array) for name, array in feeds.items()})

    return Packaged("interpreter of ML Programs, numpy", facts, pixels, execute)


def _executed(path: Path, facts: EmitFacts, parity: bool) -> Packaged:
    """Core ML itself. Raises ``NotExecutable`` where macOS is too old, ``ToolchainFailure`` where it fails."""
    units = ct.ComputeUnit.CPU_ONLY if parity else ct.ComputeUnit.ALL
    needed = OLDEST_MACOS[ct.utils.load_spec(str(path)).specificationVersion]
    here = platform.mac_ver()[0]
    if int(here.partition(".")[0]) < needed:
        raise NotExecutable(f"this is macOS {here}, and the package needs macOS {needed}")
    model = ct.models.MLModel(str(path), compute_units=units)

    def execute(feeds: dict[str, object]) -> Mapping[str, object]:
        try:
            found: Mapping[str, object] = model.predict(feeds)
        except Exception as error:
            # coremltools raises no class of its own.
            raise ToolchainFailure(f"Core ML cannot execute the package: {' '.join(str(error).split())}") from error
        return found

    return Packaged(f"Core ML, {units.name}", facts, picture, execute)


def picture(values: Array, image: Image) -> object:
    """Pixels as Pillow's image. Raises ``NotExecutable`` where ``values`` are none."""
    try:
        pillow = importlib.import_module("PIL.Image")
    except ModuleNotFoundError:
        raise NotExecutable("images are fed by Pillow, which is not installed") from None
    fed = pixels(values, image)[0]
    if image.color_layout == "GRAYSCALE_FLOAT16":
        return pillow.fromarray(fed[0], mode="F")
    whole = np.rint(fed)
    if np.abs(fed - whole).max() > 1e-3 or whole.min() < 0 or whole.max() > 255:
        raise NotExecutable(
            "the feeds are no images: pixels are whole numbers, 0 to 255; give images as `data.samples`"
        )
    planes = whole.astype(np.uint8)
    if image.channels == 1:
        return pillow.fromarray(planes[0], mode="L")
    # Pillow has RGB alone, and Core ML turns the channels of a model that wants BGR.
    return pillow.fromarray(
        np.ascontiguousarray((planes[::-1] if image.color_layout == "BGR" else planes).transpose(1, 2, 0))
    )


class Packaged:
    """A package by the artifact's own names and types, images and labels as the model's own values; a ``Runner``."""

    def __init__(self, settings: str, facts: EmitFacts, show: Show, execute: Execute) -> None:
        self.settings = settings
        self._show = show
        self._execute = execute
        self._axes = {entry.artifact_name: len(entry.spec.shape) for entry in facts.outputs}
        self._border = (
            msgspec.json.decode(facts.settings[BORDER], type=Border) if BORDER in facts.settings else Border()
        )

    def run(self, feeds: Feeds) -> Outputs:
        """All outputs by name. A scalar is an array of one element in the package."""
        images, classes = self._border.images, self._border.classes
        fed: dict[str, object] = {name: array.reshape(array.shape or (1,)) for name, array in feeds.items()}
        fed |= {name: self._show(feeds[name], image) for name, image in images.items()}
        found = dict(self._execute(fed))
        if classes is not None:
            del found[classes.feature]
            scores = found.pop(classes.scores)
            listed = [scores[label] for label in classes.labels] if isinstance(scores, dict) else scores
            found[classes.output] = np.asarray(listed, np.float32).reshape(classes.shape)
        arrays = {name: np.asarray(value) for name, value in found.items()}
        return {name: array.reshape(()) if self._axes.get(name) == 0 else array for name, array in arrays.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

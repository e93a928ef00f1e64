"""Execute ``model.ncnn.param`` and ``model.ncnn.bin`` with ncnn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from retarget.adapt import Adapted, numpy_dtype
from retarget.errors import MissingToolchain, NotExecutable, RetargetError, ToolchainFailure
from retarget.facts import EmitFacts
from retarget.protocols import Runner
from retarget.targets import ncnn as target
from retarget.targets.ncnn import files, sidecar
from retarget.targets.ncnn.executed import stored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retarget.protocols import Array, Feeds, Outputs

NEAR = 1e-3
"""How far from a whole number may be what should be one: floats that are computed exactly are not that far."""


def open(artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> Runner:  # noqa: A001 - the protocol's name
    """In float32 for parity, else as ncnn has it by default: in 16 bits, where that is faster on this machine."""
    vulkan = facts.settings.get(target.VULKAN) == "on"
    loaded = Loaded(artifact, parity=parity, threads=threads, vulkan=vulkan)
    return Adapted(loaded, facts.inputs, facts.outputs, facts.sizes)


class Loaded:
    """The files in ncnn, by the artifact's own names; a ``Runner``.

    Raises ``RetargetError`` where they are not of one network, ``ToolchainFailure`` where ncnn does not load them,
    ``NotExecutable`` without a GPU that is asked for.
    """

    def __init__(self, artifact: Path, *, parity: bool, threads: int, vulkan: bool = False) -> None:
        if (lack := target.unavailable()) is not None:
            raise MissingToolchain(lack[0], lack[1])
        import ncnn

        self._ncnn = ncnn
        self._says = sidecar.read(artifact / sidecar.FILE)
        self._layers = files.read(artifact / self._says.param)
        # ncnn itself takes what is there, whatever its tags say.
        for _ in stored(self._layers, artifact / self._says.bin):
            pass
        if vulkan and not ncnn.get_gpu_count():
            raise NotExecutable("`vulkan` asks for a GPU, and ncnn finds none with a Vulkan driver on this machine")
        self._net: Any = ncnn.Net()
        options = self._net.opt
        options.num_threads = threads
        options.use_vulkan_compute = vulkan
        if parity:
            for name, on in self._says.parity_options.items():
                setattr(options, name, on)
        for load, name in ((self._net.load_param, self._says.param), (self._net.load_model, self._says.bin)):
            if (code := load(str(artifact / name))) != 0:
                raise ToolchainFailure(
                    f"ncnn {ncnn.__version__} does not load {name}: it ends with {code}",
                    "what ncnn itself says of it stands in the log",
                )
        where = f"Vulkan, {ncnn.get_gpu_info(ncnn.get_default_gpu_index()).device_name()}" if vulkan else "CPU"
        how = "float32" if parity else "float16 where it is faster"
        self.settings = f"ncnn {ncnn.__version__}, {where}, {how}, {threads} thread{'s' if threads != 1 else ''}"

    def run(self, feeds: Feeds) -> Outputs:
        """All outputs by name, integers and truth values as such.

        Raises ``RetargetError`` for sizes that the files are not for, ``ToolchainFailure`` where a layer fails.
        """
        symbols = self._says.sizes | _sizes(feeds, self._says)
        _check(symbols, self._says)
        mats = {held.name: self._mat(_fed(value, feeds), held) for value in self._says.inputs for held in value.blobs}
        found: Outputs = {}
        for value, array in zip(self._says.outputs, self._given(mats), strict=True):
            if isinstance(array, int):
                raise ToolchainFailure(f"ncnn ends with {array} {self._where(mats)}")
            shape = shape_of(value, array.shape, symbols)
            if shape is None:
                raise ToolchainFailure(
                    f"ncnn gave '{value.name}' as {list(array.shape)}, rows first, which is no {list(value.shape)}"
                )
            found[value.blobs[0].name] = _of_type(array.reshape(shape), value)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._net.clear()

    def _mat(self, array: Array, held: sidecar.Held) -> Any:
        """``array`` as ncnn's blob ``held``."""
        if held.dtype == "int32" and (least := int(array.min())) < 0:
            raise RetargetError(
                f"'{held.name}' holds {least}: the model counts from the end, and ncnn looks up what stands first",
                "feed numbers that are not negative",
            )
        sizes = [math.prod(array.shape[axis] for axis in dim.axes) for dim in held.dims]
        rows = sizes if held.rows is not None else [1, *sizes]
        fed = np.ascontiguousarray(array).astype(held.dtype)
        # Its channels are padded to whole vectors in a copy, as in every blob that ncnn itself makes.
        return self._ncnn.Mat(fed.reshape(rows), batch_index=0).clone()

    def _given(self, mats: Mapping[str, Any]) -> list[NDArray[np.float32] | int]:
        """Each output, rows first, or the code with which ncnn ends in place of it. No Mat of ncnn's own is left, as
        these must go before the net does."""
        extractor = self._extractor(mats)
        given: list[NDArray[np.float32] | int] = []
        for value in self._says.outputs:
            code, mat = extractor.extract(value.blobs[0].name)
            given.append(code or np.array(mat.numpy(batch_index=0)))
        return given

    def _extractor(self, mats: Mapping[str, Any]) -> Any:
        extractor = self._net.create_extractor()
        for name, mat in mats.items():
            if (code := extractor.input(name, mat)) != 0:
                raise ToolchainFailure(f"ncnn does not take '{name}': it ends with {code}")
        return extractor

    def _where(self, mats: Mapping[str, Any]) -> str:
        """The first layer that fails, in words."""
        extractor = self._extractor(mats)
        extractor.set_light_mode(False)
        for layer in self._layers:
            if layer.type != "Input" and any(extractor.extract(top)[0] != 0 for top in layer.tops):
                return f"in the layer '{layer.name}' ({layer.type})"
        return "in no layer when it is run again"


def _fed(value: sidecar.Value, feeds: Feeds) -> Array:
    return next(feeds[held.name] for held in value.blobs if held.name in feeds)


def _sizes(feeds: Feeds, says: sidecar.Sidecar) -> dict[str, int]:
    """The symbols' sizes, one each: not every layer looks whether its operands fit, and some read beyond them."""
    found: dict[str, tuple[int, str]] = {}
    for value in says.inputs:
        for dim, size in zip(value.shape, _fed(value, feeds).shape, strict=True):
            if isinstance(dim, str) and (known := found.setdefault(dim, (size, value.name)))[0] != size:
                raise RetargetError(
                    f"{dim} is {known[0]} in '{known[1]}' and {size} in '{value.name}'", "feed inputs of one size"
                )
    return {dim: size for dim, (size, _) in found.items()}


def _check(symbols: Mapping[str, int], says: sidecar.Sidecar) -> None:
    for symbol, (least, most) in says.ranges.items():
        if not least <= symbols.get(symbol, least) <= most:
            raise RetargetError(
                f"{symbol} is {symbols[symbol]}, and the files are for {least} to {most}",
                "build them for it: `shapes` in the recipe, or --shape",
            )
    for symbol, step in says.multiples.items():
        if symbols.get(symbol, step) % step:
            raise RetargetError(
                f"{symbol} is {symbols[symbol]}, and the files are for multiples of {step}",
                "feed such a size, or build them with another as `opt`: `shapes` in the recipe, or --shape",
            )


def shape_of(value: sidecar.Value, given: Sequence[int], symbols: Mapping[str, int]) -> tuple[int, ...] | None:
    """The model's shape of an output that ncnn gave as ``given``, rows first; None where it cannot be that."""
    (held,) = value.blobs
    sizes = list(given) if held.rows is not None else list(given[1:])
    if len(sizes) != len(held.dims) or (held.rows is None and given[0] != 1):
        return None
    shape = [symbols.get(dim) if isinstance(dim, str) else dim for dim in value.shape]
    for axis, size in enumerate(shape):
        if size is None:  # computed: nothing that is fed has it
            beside = [other for dim in held.dims if axis in dim.axes for other in dim.axes if other != axis]
            known = math.prod(shape[other] or 0 for other in beside)
            whole = math.prod(size for dim, size in zip(held.dims, sizes, strict=True) if axis in dim.axes)
            shape[axis] = whole // known if known else None
    found = tuple(-1 if size is None else size for size in shape)
    return found if math.prod(found) == math.prod(given) and min(found, default=1) > 0 else None


def _of_type(array: NDArray[np.float32], value: sidecar.Value) -> Array:
    """``array`` with the elements that the model has: ncnn has floats for all."""
    dtype = numpy_dtype(value.dtype)
    if dtype.kind not in "iub":
        return array
    with np.errstate(invalid="ignore"):
        whole = np.rint(array)
        if not bool(np.all(np.abs(array - whole) <= NEAR)):
            raise ToolchainFailure(f"ncnn gave '{value.name}' as floats that are no {value.dtype}")
    return whole.astype(dtype)

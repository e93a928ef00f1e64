"""Executing an engine on an NVIDIA GPU, the same for both libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from retarget.adapt import Adapted, numpy_dtype
from retarget.errors import MissingToolchain, RetargetError, ToolchainFailure
from retarget.facts import EmitFacts, IoEntry
from retarget.protocols import Runner
from retarget.targets.tensorrt import gpu
from retarget.targets.tensorrt.build import ENGINE
from retarget.targets.tensorrt.cuda import Cuda, Device
from retarget.targets.tensorrt.flavour import TENSORRT, Flavour
from retarget.targets.tensorrt.network import Log, library_log, load_library

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds, Outputs


def open(artifact: Path, facts: EmitFacts, *, parity: bool, threads: int) -> Runner:  # noqa: A001, ARG001 - the protocol's
    """The engine in ``artifact`` on the first GPU. Parity and default are one: an engine's arithmetic is fixed."""
    return open_engine(TENSORRT, artifact, facts)


def open_engine(flavour: Flavour, artifact: Path, facts: EmitFacts) -> Runner:
    """Load the engine. Raises ``MissingToolchain`` without a GPU, ``ToolchainFailure`` where it does not load."""
    reason = gpu.missing()
    if reason is not None:
        raise MissingToolchain(reason, "run it on a machine with an NVIDIA GPU and its driver")
    library = load_library(flavour)
    device = Cuda()
    try:
        runner = EngineRunner(library, library_log(library), artifact / ENGINE, facts, device)
    except RetargetError:
        device.close()
        raise
    return Adapted(runner, facts.inputs, facts.outputs)


class EngineRunner:
    """One execution context, its input and output buffers kept between runs and grown as they need.

    A run copies inputs to the GPU and outputs from it, and that time is part of what a caller measures.
    """

    def __init__(self, library: ModuleType, log: Log, engine: Path, facts: EmitFacts, device: Device) -> None:
        self._library = library
        self._log = log
        self._facts = facts
        self._device = device
        self._buffers: dict[str, tuple[int, int]] = {}
        self.settings = f"{device.name}, copies included"
        log.clear()
        self._runtime = library.Runtime(log.sink)
        self._engine = self._runtime.deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            raise self._failure(f"{engine} does not load on {device.name}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure(f"{engine} got no execution context on {device.name}")
        self._allocators: dict[str, _Allocator] = {}

    def run(self, feeds: Feeds) -> Outputs:
        """Outputs by the engine's own names and types, from feeds in them."""
        self._log.clear()
        # Arrays that are being copied from must live until the stream is synchronized.
        alive = [self._set_input(entry.artifact_name, feeds[entry.artifact_name]) for entry in self._facts.inputs]
        missing = self._context.infer_shapes()
        if missing:
            raise self._failure(f"the shape of '{missing[0]}' is not known")
        results = {entry.artifact_name: self._set_output(entry) for entry in self._facts.outputs}
        if not self._context.execute_async_v3(self._device.stream):
            raise self._failure("the engine did not run")
        outputs = {
            entry.artifact_name: self._fetch(entry, results[entry.artifact_name]) for entry in self._facts.outputs
        }
        self._device.synchronize()
        del alive
        return outputs

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The context holds GPU memory of its own, so it goes before the device does.
        del self._context, self._engine, self._runtime
        for pointer, _ in self._buffers.values():
            self._device.free(pointer)
        self._buffers.clear()
        self._device.close()

    def _set_input(self, name: str, feed: Array) -> Array:
        # ascontiguousarray makes a scalar one-dimensional.
        array = np.ascontiguousarray(feed).reshape(feed.shape)
        if not self._context.set_input_shape(name, array.shape):
            raise self._failure(f"input '{name}': the engine does not take the shape {list(array.shape)}")
        if self._on_host(name):
            self._context.set_tensor_address(name, array.ctypes.data)
        else:
            pointer = self._buffer(name, array.nbytes)
            self._device.upload(pointer, array)
            self._context.set_tensor_address(name, pointer)
        return array

    def _set_output(self, entry: IoEntry) -> Array | None:
        """Give the output its memory; the array itself where TensorRT writes to the host."""
        name = entry.artifact_name
        shape = tuple(self._context.get_tensor_shape(name))
        if -1 in shape:
            if name not in self._allocators:
                self._allocators[name] = _Allocator(self._library, self._buffer)
            self._context.set_output_allocator(name, self._allocators[name].sink)
            return None
        array: Array = np.empty(shape, numpy_dtype(entry.artifact_dtype))
        if self._on_host(name):
            self._context.set_tensor_address(name, array.ctypes.data)
        else:
            self._context.set_tensor_address(name, self._buffer(name, array.nbytes))
        return array

    def _fetch(self, entry: IoEntry, array: Array | None) -> Array:
        """Queue the output's copy. A shape that depends on values is known once its kernels have run."""
        name = entry.artifact_name
        if array is None:
            self._device.synchronize()
            array = np.empty(self._allocators[name].shape, numpy_dtype(entry.artifact_dtype))
        if not self._on_host(name):
            self._device.download(array, self._buffers[name][0])
        return array

    def _on_host(self, name: str) -> bool:
        return bool(self._engine.get_tensor_location(name) == self._library.TensorLocation.HOST)

    def _buffer(self, name: str, size: int) -> int:
        """The address of the tensor's buffer, which has at least ``size`` bytes."""
        pointer, room = self._buffers.get(name, (0, -1))
        if room < size:
            if room >= 0:
                self._device.free(pointer)
            pointer = self._device.allocate(size)
            self._buffers[name] = pointer, size
        return pointer

    def _failure(self, message: str) -> ToolchainFailure:
        said = "; ".join(self._log.errors())
        return ToolchainFailure(f"{message}: {said}" if said else message)


class _Allocator:
    """Memory for an output whose shape depends on values; ``shape`` is known after the run."""

    def __init__(self, library: ModuleType, buffer: Callable[[str, int], int]) -> None:
        self.shape: tuple[int, ...] = ()

        def start(sink: object) -> None:
            library.IOutputAllocator.__init__(sink)

        def reallocate(_: object, name: str, memory: Any, size: int, alignment: int, stream: int = 0) -> int:  # noqa: ARG001 - the library's signature
            return buffer(name, size)

        def notify(_: object, name: str, shape: Any) -> None:  # noqa: ARG001 - the library's signature
            self.shape = tuple(shape)

        methods = {
            "__init__": start,
            "reallocate_output": reallocate,
            "reallocate_output_async": reallocate,
            "notify_shape": notify,
        }
        # The base is known only at run time.
        self.sink: object = type("Sink", (library.IOutputAllocator,), methods)()

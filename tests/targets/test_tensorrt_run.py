"""The runner's own work, on a stand-in for the library whose device memory is the host's.

Not executed here: TensorRT itself and the driver's calls; ``test_tensorrt_rtx.py`` has the test that does, on a GPU.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from retarget.adapt import Adapted
from retarget.errors import ToolchainFailure
from retarget.facts import EmitFacts, IoEntry, Precision
from retarget.spec import TensorSpec
from retarget.targets.tensorrt.network import Log
from retarget.targets.tensorrt.run import EngineRunner

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds


class HostDevice:
    """Device memory on the host. Copies are done at ``synchronize``, as late as a stream may do them."""

    name = "host"
    stream = 7

    def __init__(self) -> None:
        self.blocks: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.queue: list[Callable[[], object]] = []
        self.closed = False

    def allocate(self, size: int) -> int:
        block = ctypes.create_string_buffer(max(size, 1))
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, pointer: int) -> None:
        del self.blocks[pointer]

    def upload(self, pointer: int, array: Array) -> None:
        assert array.nbytes <= len(self.blocks[pointer])
        self.queue.append(lambda: ctypes.memmove(pointer, array.ctypes.data, array.nbytes))

    def download(self, array: Array, pointer: int) -> None:
        assert array.nbytes <= len(self.blocks[pointer])
        self.queue.append(lambda: ctypes.memmove(array.ctypes.data, pointer, array.nbytes))

    def synchronize(self) -> None:
        for copy in self.queue:
            copy()
        self.queue.clear()

    def close(self) -> None:
        self.closed = True


class Context:
    """Computes ``double = 2 x + bias`` in float16 and ``positive``, the elements of ``x`` above 0."""

    def __init__(self, device: HostDevice) -> None:
        self.device = device
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocator: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return not shape or shape[0] <= 4

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1,) if name == "positive" else self.shapes["x"]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: object) -> bool:
        assert name == "positive"
        self.allocator = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == HostDevice.stream
        self.device.queue.append(self.compute)
        # A library asks for the memory while it is called, and says the shape when it knows it.
        self.addresses["positive"] = self.allocator.reallocate_output(
            "positive", 0, 2 * math.prod(self.shapes["x"]), 256
        )
        return True

    def compute(self) -> None:
        x = self.array("x", np.float16)
        self.array("double", np.float16, self.shapes["x"])[...] = 2 * x + self.array("bias", np.float16)
        positive = x[x > 0]
        self.array("positive", np.float16, positive.shape)[...] = positive
        self.allocator.notify_shape("positive", positive.shape)

    def array(self, name: str, dtype: type[np.generic], shape: tuple[int, ...] | None = None) -> Any:
        shape = self.shapes[name] if shape is None else shape
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return np.ndarray(shape, dtype, buffer=memoryview((ctypes.c_char * size).from_address(self.addresses[name])))


def library(context: Context | None) -> ModuleType:
    """What the runner uses of the library. ``context`` None: the engine does not load."""
    engine = SimpleNamespace(
        create_execution_context=lambda: context,
        get_tensor_location=lambda name: "host" if name == "bias" else "device",
    )
    module = ModuleType("stand_in")
    vars(module)["Runtime"] = lambda sink: SimpleNamespace(
        deserialize_cuda_engine=lambda data: engine if context is not None and data == b"engine" else None
    )
    vars(module)["IOutputAllocator"] = type("IOutputAllocator", (), {})
    vars(module)["TensorLocation"] = SimpleNamespace(HOST="host")
    return module


def entry(name: str, artifact_name: str, shape: tuple[int | str, ...]) -> IoEntry:
    spec = TensorSpec(name, "float32", shape)
    return IoEntry(name=name, artifact_name=artifact_name, spec=spec, artifact_dtype="float16")


FACTS = EmitFacts(
    target="tensorrt_rtx",
    variant_precision="fp16",
    inputs=(entry("image", "x", ("N", 3)), entry("bias", "bias", ())),
    outputs=(entry("twice", "double", ("N", 3)), entry("positive", "positive", ("P",))),
    precision=Precision(weights="none", activations="float16", io="float16", low_precision_share=None),
)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(b"engine")
    return path


def feeds(batch: int, seed: int = 0) -> Feeds:
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((batch, 3)).astype(np.float16).astype(np.float32)
    return {"image": image, "bias": np.array(0.5 + seed, np.float32)}


def test_a_run_feeds_the_engine_and_fetches_its_outputs(engine: Path) -> None:
    device = HostDevice()
    runner = EngineRunner(library(Context(device)), Log(), engine, FACTS, device)
    with Adapted(runner, FACTS.inputs, FACTS.outputs) as adapted:
        # Smaller, larger and equal batches: buffers are kept, grown and kept.
        for seed, batch in enumerate((2, 4, 1, 4)):
            fed = feeds(batch, seed)
            outputs = adapted.run(fed)
            expected = (2 * fed["image"].astype(np.float16) + fed["bias"].astype(np.float16)).astype(np.float32)
            np.testing.assert_array_equal(outputs["twice"], expected)
            image = np.asarray(fed["image"], np.float32)
            np.testing.assert_array_equal(outputs["positive"], image[image > 0])
            assert outputs["twice"].dtype == outputs["positive"].dtype == np.float32
        # One buffer for each tensor on the device; the bias is read from the host.
        assert len(device.blocks) == 3
    assert device.blocks == {}
    assert device.closed


def test_outputs_of_one_run_outlive_the_next(engine: Path) -> None:
    device = HostDevice()
    with EngineRunner(library(Context(device)), Log(), engine, FACTS, device) as runner:
        half = {"x": np.ones((2, 3), np.float16), "bias": np.array(0, np.float16)}
        first = runner.run(half)["double"]
        runner.run({"x": np.full((2, 3), 5, np.float16), "bias": np.array(0, np.float16)})
        np.testing.assert_array_equal(first, np.full((2, 3), 2, np.float16))


def test_a_shape_outside_the_profile_is_named(engine: Path) -> None:
    device = HostDevice()
    with (
        EngineRunner(library(Context(device)), Log(), engine, FACTS, device) as runner,
        pytest.raises(ToolchainFailure, match=r"input 'x': the engine does not take the shape \[5, 3\]"),
    ):
        runner.run({"x": np.ones((5, 3), np.float16), "bias": np.array(0, np.float16)})


def test_a_matrix_in_another_memory_order_is_fed_by_its_values(engine: Path) -> None:
    device = HostDevice()
    with EngineRunner(library(Context(device)), Log(), engine, FACTS, device) as runner:
        x = np.arange(6, dtype=np.float16).reshape(3, 2).T
        outputs = runner.run({"x": x, "bias": np.array(0, np.float16)})
        np.testing.assert_array_equal(outputs["double"], 2 * x)


def test_an_engine_that_does_not_load_says_what_the_library_said(engine: Path) -> None:
    module = library(None)
    log = Log()

    def runtime(sink: object) -> SimpleNamespace:
        def deserialize(data: bytes) -> None:
            log.messages.append(
                ("ERROR", "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (wrong version)")
            )

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    vars(module)["Runtime"] = runtime
    with pytest.raises(ToolchainFailure, match=r"model.engine does not load on host: wrong version"):
        EngineRunner(module, log, engine, FACTS, HostDevice())

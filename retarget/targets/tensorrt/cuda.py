"""The GPU's memory through the driver's own library, by ctypes: no CUDA package is needed beside TensorRT.

TensorRT works in the device's primary context, so this does as well.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retarget.errors import MissingToolchain, ToolchainFailure
from retarget.targets.tensorrt import gpu

_SUCCESS = 0
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""

_POINTER = ctypes.c_uint64
"""CUdeviceptr."""


class Device(Protocol):
    """What the runner needs of a GPU. Pointers are device addresses; copies are queued on ``stream``."""

    name: str
    """Name and compute capability, for the report."""
    stream: int

    def allocate(self, size: int) -> int: ...

    def free(self, pointer: int) -> None: ...

    def upload(self, pointer: int, array: NDArray[np.generic]) -> None:
        """Queue a copy of ``array``, contiguous and alive until ``synchronize``, to ``pointer``."""

    def download(self, array: NDArray[np.generic], pointer: int) -> None:
        """Queue a copy from ``pointer`` into ``array``, which is filled after ``synchronize``."""

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


class Cuda:
    """The first GPU. Raises ``MissingToolchain`` where there is none."""

    def __init__(self) -> None:
        reason = gpu.missing()
        if reason is not None:
            raise MissingToolchain(reason, "run it on a machine with an NVIDIA GPU and its driver")
        self._driver = ctypes.CDLL(gpu.LIBRARY)
        self._driver.cuGetErrorString.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
        self._call("cuInit", ctypes.c_uint(0))
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self._device = device
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(0))
        self.stream = stream.value or 0
        self.name = f"{self._name()} ({self._attribute(_MAJOR)}.{self._attribute(_MINOR)})"

    def allocate(self, size: int) -> int:
        pointer = _POINTER()
        # The driver refuses an allocation of no bytes, and an empty tensor still needs an address.
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer.value

    def free(self, pointer: int) -> None:
        self._call("cuMemFree_v2", _POINTER(pointer))

    def upload(self, pointer: int, array: NDArray[np.generic]) -> None:
        if array.nbytes:
            source = ctypes.c_void_p(array.ctypes.data)
            self._call("cuMemcpyHtoDAsync_v2", _POINTER(pointer), source, _size(array), ctypes.c_void_p(self.stream))

    def download(self, array: NDArray[np.generic], pointer: int) -> None:
        if array.nbytes:
            goal = ctypes.c_void_p(array.ctypes.data)
            self._call("cuMemcpyDtoHAsync_v2", goal, _POINTER(pointer), _size(array), ctypes.c_void_p(self.stream))

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def close(self) -> None:
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(self.stream))
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, ctypes.c_int(len(text)), self._device)
        return text.value.decode(errors="replace")

    def _attribute(self, attribute: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), self._device)
        return value.value

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code != _SUCCESS:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            said = (text.value or b"unknown error").decode(errors="replace")
            raise ToolchainFailure(f"CUDA: {function} failed: {said} ({code})")


def _size(array: NDArray[np.generic]) -> ctypes.c_size_t:
    return ctypes.c_size_t(array.nbytes)

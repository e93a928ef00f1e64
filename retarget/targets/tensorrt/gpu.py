"""Whether this machine has an NVIDIA GPU: light, from the driver's files, without starting CUDA."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
"""The driver's own library; no CUDA toolkit is needed."""

_GPUS = Path("/proc/driver/nvidia/gpus")
_DEV = Path("/dev")


def missing() -> str | None:
    """Why nothing can execute on a GPU here; None if it can.

    A Linux machine with a GPU shows it under ``/proc/driver/nvidia``, as ``/dev/nvidia0`` in a container, or as
    ``/dev/dxg`` under Windows. Only then is the driver's library opened, which costs some milliseconds.
    """
    if sys.platform == "linux" and not _visible():
        return "no NVIDIA GPU on this machine"
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return "no NVIDIA GPU on this machine" if sys.platform != "linux" else f"the NVIDIA driver has no {LIBRARY}"
    return None


def models() -> tuple[str, ...]:
    """The names of the GPUs, as the driver says them; empty where it says nothing."""
    found = []
    for information in sorted(_GPUS.glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", information.read_text(errors="replace"), re.MULTILINE)
        if match is not None:
            found.append(match[1].strip())
    return tuple(found)


def _visible() -> bool:
    return any(_GPUS.glob("*")) or any(_DEV.glob("nvidia[0-9]*")) or (_DEV / "dxg").exists()

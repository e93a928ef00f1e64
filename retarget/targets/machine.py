"""What of this machine decides which types a runtime computes in: part of the key of what is read back from it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

_HALVES = frozenset({"amx_bf16", "amx_fp16", "avx512_bf16", "avx512_fp16", "asimdhp", "bf16", "fphp"})
"""Linux's names for arithmetic in 16-bit floats, on x86 and on ARM."""

_DOTS = frozenset({"amx_int8", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "asimddp", "i8mm"})
"""Linux's names for products of 8-bit integers that are added up in 32 bits, on x86 and on ARM."""


@cache
def cpu() -> str:
    """``x86_64``, or ``x86_64 amx_bf16 avx512_vnni``: the CPU's arithmetic in few bits where Linux tells it."""
    return " ".join([platform.machine(), *sorted(_flags() & (_HALVES | _DOTS))])


@cache
def saturates() -> bool:
    """Whether this is an x86 CPU known to add pairs of 8-bit products in 16 bits: it has none of ``_DOTS``.

    Twice 255 * 127 is beyond 32,767, so sums of large uint8 activations and int8 weights come out too small there
    (``vpmaddubsw``, in the kernels of ONNX Runtime and of oneDNN alike).
    """
    flags = _flags()
    return platform.machine() in {"x86_64", "AMD64"} and bool(flags) and not flags & _DOTS


def _flags() -> set[str]:
    """What Linux says that the CPU has; empty where it does not say."""
    if not _CPUINFO.is_file():
        return set()
    with _CPUINFO.open() as lines:
        # The first processor's: on a large machine the whole file takes longer to make than a plan.
        line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())

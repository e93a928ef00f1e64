"""What of this machine decides which types a runtime computes in: part of the key of what is read back from it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

_FEATURES = frozenset({"amx_bf16", "amx_fp16", "avx512_bf16", "avx512_fp16", "asimdhp", "bf16", "fphp"})
"""Linux's names for arithmetic in 16-bit floats, on x86 and on ARM."""


@cache
def cpu() -> str:
    """``x86_64``, or ``x86_64 amx_bf16 avx512_bf16``: the CPU's 16-bit float arithmetic where Linux tells it."""
    features: set[str] = set()
    if _CPUINFO.is_file():
        with _CPUINFO.open() as lines:
            # The first processor's: on a large machine the whole file takes longer to make than a plan.
            line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        features = set(line.split()) & _FEATURES
    return " ".join([platform.machine(), *sorted(features)])

"""How much memory a process takes, in bytes."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process: what mapped weights do not count in; 0 when it is gone."""
    if sys.platform != "linux":
        import psutil

        try:
            return int(psutil.Process(pid).memory_full_info().uss)
        except psutil.Error:
            return 0
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * sum(int(size) for size in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE))


def reset_peak() -> None:
    """Begin a new high-water mark of resident memory, where the kernel lets us."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int:
    """The high-water mark of our resident memory, mapped weights included."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0

"""How a process ended, in words."""

from __future__ import annotations

import signal

_SIGNALS = {
    signal.SIGSEGV: "segmentation fault",
    signal.SIGABRT: "the library gave up: abort",
    signal.SIGBUS: "bus error: a mapped file was cut short, or the disk is full",
    signal.SIGILL: "illegal instruction: the library was built for another processor",
    signal.SIGFPE: "arithmetic error",
    signal.SIGKILL: "probably the kernel's out-of-memory killer",
}


def ended(status: int) -> tuple[str, str]:
    """``exited with status 3`` or ``was killed by SIGSEGV (segmentation fault)``, and what to do about it.

    ``status`` is that of `subprocess.Popen.returncode`: of a process that a signal killed, the signal's negative.
    """
    if status >= 0:
        return (
            f"exited with status {status}",
            "a library or the model's own code ended the process: its output is in the log",
        )
    try:
        name = signal.Signals(-status).name
        words = _SIGNALS.get(signal.Signals(-status), signal.strsignal(-status))
    except ValueError:
        name, words = f"signal {-status}", None
    return (
        f"was killed by {name}{f' ({words})' if words else ''}",
        "lower --jobs or the maximum sizes in `shapes`, or free memory"
        if -status == signal.SIGKILL
        else "a fault inside the library: its output is in the log, and another version of it may do better",
    )

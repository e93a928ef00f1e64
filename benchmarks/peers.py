"""What the comparisons with other converters share: what each tool took, in a process of its own, and what must hold.

Times and memory are of ``process``, from the start of the interpreter to its end, and of ``work``, the same without the
imports. ``CPU`` is the whole process's time on all processors, which tells more where the machine has other work.
Memory is anonymous: of the whole process and what it starts, and of ``work`` alone, above that of the imports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks.measure import Cost, Watched

if TYPE_CHECKING:
    import onnx_ir as ir

SOUND_DB = 80.0
"""A float32 file below this distance from its source, as SNR, is wrong."""
_ERROR = re.compile(r"(?:[A-Za-z_.]+(?:Error|Exception)|retarget\.errors\.\w+|ERROR|error)\b:? .*")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Made(msgspec.Struct, frozen=True):
    """What one tool took for one model."""

    process: Cost
    """Of the whole process, with what it started; its ``error`` is why there is no file."""
    work: Cost
    """Within the process, without imports."""
    cpu_seconds: float
    """Of the whole process and what it started, on all processors."""
    of: str = ""
    """Digest of the model, and the version of the tool: a figure that is kept holds for these."""


FIGURES: Mapping[str, Callable[[Made], float]] = {
    "process s": lambda made: made.process.seconds,
    "work s": lambda made: made.work.seconds,
    "CPU s": lambda made: made.cpu_seconds,
    "process MB": lambda made: made.process.peak_mb,
    "work MB": lambda made: made.work.peak_mb,
}


def load(path: Path) -> ir.Model:
    """An ONNX file in the normal form, by the frontend."""
    from retarget import catalog
    from retarget.source import Source

    frontend = catalog.frontend("onnx")
    source = Source(path, (), {}, options=msgspec.to_builtins(frontend.Options()))
    out = path.parent
    exported = catalog.frontend_export("onnx").export(source, None, out)
    return catalog.frontend_load("onnx").load(out, source, exported)


def absent(why: str) -> Made:
    return Made(Cost(error=why), Cost(), 0.0)


def made_of(done: Watched, timeout: float, artifact: Path, work: Cost | None = None) -> Made:
    """Of a process that was to write ``artifact``, and to print the cost of its work on its last line where ``work``
    does not say it."""
    if done.status is None:
        return absent(f"over {timeout:.0f} s")
    if done.status != 0:
        said = _COLOUR.sub("", done.output + "\n" + done.errors).splitlines()
        errors = [line.strip() for line in said if _ERROR.fullmatch(line.strip())]
        return absent((errors or [f"exit {done.status}"])[-1][:150])
    if not artifact.exists():
        return absent("no file was written")
    if work is None:
        work = msgspec.json.decode(done.output.splitlines()[-1].encode(), type=Cost)
    return Made(Cost(done.seconds, done.peak_mb), work, done.cpu_seconds)


def ratio(peer: Made, own: Made, figure: Callable[[Made], float]) -> float | None:
    """The peer's figure by ours; None where one has no file."""
    if peer.process.error or own.process.error:
        return None
    return figure(peer) / max(figure(own), 1e-9)


def costs(name: str, made: Made, peer: Made) -> str:
    """A line of the table: each figure and its ratio, the ``peer``'s by it."""
    if made.process.error:
        return f"{name:16}  failed: {made.process.error}"
    line = f"{name:16}"
    for figure in FIGURES.values():
        by = ratio(peer, made, figure)
        line += f"{figure(made):>12.2f}" + ("      -" if by is None else f"{by:>7.1f}")
    return line


def costs_head() -> str:
    """What stands above lines of ``costs``."""
    return f"{'':16}" + "".join(f"{title:>12}{'ratio':>7}" for title in FIGURES)


def verdict(words: str, figures: Mapping[str, str], broken: Sequence[str]) -> None:
    """One line of what must hold, over the models that it could be measured on."""
    holds = "not measured" if not figures else "DOES NOT HOLD" if broken else "holds"
    said = ", ".join(f"{name} {figure}" for name, figure in figures.items())
    print(f"  {holds:13} {words}: {said or '-'}" + (f"; not on {', '.join(broken)}" if broken else ""), flush=True)

"""Numbers as a person reads them in the report: one way for the terminal, HTML and Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping

CAP_DB = 300.0
"""SNR that stands for no difference at all; the negative for a signal that is lost entirely."""

NONE = "\N{EN DASH}"
"""What stands where there is no figure."""
MINUS = "\N{MINUS SIGN}"

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


def bytes_text(count: int | None) -> str:
    """``1.2 MB``: decimal units, three significant digits."""
    if count is None:
        return NONE
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{count} B" if unit == "B" else f"{_significant(size)} {unit}"
        size /= 1000
    return f"{_significant(size)} TB"


def milliseconds_text(ms: float | None) -> str:
    """``1.23 ms``, ``45 µs`` or ``2.1 s``."""
    if ms is None:
        return NONE
    if ms < 0.1:
        return f"{_significant(ms * 1000)} µs"
    return f"{_significant(ms)} ms" if ms < 9995 else f"{_significant(ms / 1000)} s"


def seconds_text(seconds: float | None) -> str:
    """``0.4 s``, ``35 ms`` or ``2 min 05 s``."""
    if seconds is None:
        return NONE
    if seconds < 0.0005:
        return "0 s"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def decibel_text(snr_db: float, *, exact: bool = False) -> str:
    """``64.6 dB``, ``exact``, or ``lost`` where nothing of the signal is left."""
    if abs(snr_db) >= CAP_DB:
        return "exact" if exact or snr_db > 0 else "lost"
    return "exact" if exact else f"{snr_db:.1f} dB"


def scientific_text(value: float) -> str:
    """``1.2e-05``; ``0`` stays ``0``."""
    return "0" if value == 0 else f"{value:.1e}"


def ratio_text(ratio: float | None) -> str:
    """``0.62`` and a multiplication sign."""
    return NONE if ratio is None else f"{_significant(ratio)}\N{MULTIPLICATION SIGN}"


def percent_text(share: float | None) -> str:
    """``97 %`` of a share 0 to 1; only a share of exactly 1 reads ``100 %``, only exactly 0 reads ``0 %``."""
    if share is None:
        return NONE
    percent = share * 100
    if 99.5 <= percent < 100:
        return f"{min(percent, 99.9):.1f} %"
    return "< 1 %" if 0 < percent < 1 else f"{percent:.0f} %"


def score_text(value: float | None) -> str:
    """``0.9822``: the value of a metric."""
    return NONE if value is None else f"{value:.4f}"


def signed_text(change: float | None, digits: int) -> str:
    """``+0.0021``, or a minus sign and the figure: a change, now minus then."""
    if change is None:
        return NONE
    if round(change, digits) == 0:
        return "\N{PLUS-MINUS SIGN}0"
    return f"{MINUS if change < 0 else '+'}{abs(change):.{digits}f}"


def drop_text(drop: float | None) -> str:
    """The change of a metric as a person says it: a drop of 0.002 reads as minus 0.0020."""
    return signed_text(None if drop is None else -drop, 4)


def count_text(count: int, noun: str) -> str:
    """``1 gate``, ``12 gates``, ``1,204 nodes``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def sizes_text(sizes: Mapping[str, int]) -> str:
    """``N=8, T=16``."""
    return ", ".join(f"{symbol}={size}" for symbol, size in sizes.items())


def plain_text(text: str) -> str:
    """``text`` without terminal codes and control characters, which XML and terminals would choke on."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def first_line(text: str) -> str:
    """The first line of ``text`` that says something, without a colon that announces the next."""
    return next((line.strip().removesuffix(":") for line in text.splitlines() if line.strip()), "no message")


def _significant(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"

"""Ranges as a page for people: each tensor's histogram, and what every method would clip it to."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, get_args

import numpy as np

from retarget.calibration.methods import clip
from retarget.figures import count_text
from retarget.schemes import Grid, Method

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from retarget.calibration.ranges import Ranges, TensorRange

METHODS: tuple[Method, ...] = get_args(Method)
GRID = Grid(0, 255, symmetric=False)

_WIDTH, _HEIGHT, _LINE = 480, 40, 5
_BARS = 120

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --bar: #8a94a3; --minmax: #8a94a3; --percentile: #2f7ed8; --mse: #1a9850;
  --entropy: #d8762f; }}
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
td, th {{ border-top: 1px solid color-mix(in srgb, currentColor 15%, transparent); padding: .4rem .6rem;
  text-align: left; vertical-align: top; font-weight: normal; overflow-wrap: anywhere; }}
td.number {{ font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; }}
svg {{ display: block; width: 100%; min-width: 16rem; height: auto; }}
path {{ fill: var(--bar); }}
.minmax {{ stroke: var(--minmax); }} .percentile {{ stroke: var(--percentile); }} .mse {{ stroke: var(--mse); }}
.entropy {{ stroke: var(--entropy); }}
line {{ stroke-width: 2.5; }} line.zero {{ stroke: currentColor; stroke-width: .5; opacity: .5; }}
.key svg {{ display: inline-block; width: 1.6em; min-width: 0; height: .6em; }}
.odd {{ color: #c0392b; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="key">{key}. Heights are logarithms of counts; the thin line is zero.</p>
<table>
{rows}
</table>
</body>
</html>
"""


def plot(ranges: Ranges, *, grid: Grid = GRID, methods: Sequence[Method] = METHODS) -> str:
    """A page that needs nothing else: a row for each tensor, one row for those that hold the same."""
    rows = "\n".join(_row(names, tensor, grid, methods) for names, tensor in _alike(ranges))
    key = ", ".join(
        f'<svg viewBox="0 0 16 6"><line class="{method}" x1="0" x2="16" y1="3" y2="3"/></svg> {method}'
        for method in methods
    )
    title = f"{count_text(len(ranges), 'tensor')} over {count_text(ranges.samples, 'sample')}"
    return _PAGE.format(title=title, key=f"Clipped for {grid.high - grid.low + 1} levels by {key}", rows=rows)


def _alike(ranges: Ranges) -> Iterator[tuple[list[str], TensorRange]]:
    names: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in ranges.items():
        content = tensor.min, tensor.max, tensor.bins.tobytes(), tensor.counts.tobytes()
        names.setdefault((*content, tensor.nan_count, tensor.inf_count), []).append(name)
    for alike in names.values():
        yield alike, ranges[alike[0]]


def _row(names: Sequence[str], tensor: TensorRange, grid: Grid, methods: Sequence[Method]) -> str:
    words = "<br/>".join(escape(name) for name in names)
    if tensor.nan_count or tensor.inf_count:
        words += f'<br/><span class="odd">{tensor.nan_count:,} NaN, {tensor.inf_count:,} infinite</span>'
    return (
        f'<tr><th scope="row">{words}</th><td>{_strip(tensor, grid, methods)}</td>'
        f'<td class="number">{tensor.min:.4g}<br/>{tensor.max:.4g}</td></tr>'
    )


def _strip(tensor: TensorRange, grid: Grid, methods: Sequence[Method]) -> str:
    """The histogram over the values' own extent and zero, and a line for each method below it."""
    low, high = min(tensor.min, 0.0), max(tensor.max, 0.0)
    if low == high:
        return "no finite values" if not tensor.elements else "zeros"
    edges = np.linspace(low, high, _BARS + 1)
    counts, _ = np.histogram(tensor.values, edges, weights=tensor.counts)
    heights = _HEIGHT * np.log1p(counts) / np.log1p(counts.max())
    step = _WIDTH / _BARS
    outline = "".join(
        f"M{index * step:g} {_HEIGHT}v{-height:.1f}h{step - 0.5:g}V{_HEIGHT}z"
        for index, height in enumerate(heights)
        if height > 0
    )
    scale = _WIDTH / (high - low)
    lines = [f'<line class="zero" x1="{-low * scale:.1f}" x2="{-low * scale:.1f}" y1="0" y2="{_HEIGHT}"/>']
    for index, method in enumerate(methods):
        ends = clip(tensor, grid, method)
        left, right = (min(max((end - low) * scale, 0), _WIDTH) for end in ends)
        y = _HEIGHT + _LINE * (index + 1)
        lines.append(
            f'<line class="{method}" x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}">'
            f"<title>{method}: {ends[0]:.4g} to {ends[1]:.4g}</title></line>"
        )
    height = _HEIGHT + _LINE * (len(methods) + 1)
    label = f"histogram from {low:.4g} to {high:.4g}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}"><path d="{outline}"/>'
        f"{''.join(lines)}</svg>"
    )

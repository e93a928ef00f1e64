"""Whether two sets of data were prepared alike, from the statistics that the steps recorded of them.

Honest sets differ in classes, light and subjects: means and spreads of photographs do so by a factor of three. What
they share is their bounds, since some pixel is black and some is white. Normalising moves the bounds, so the rules look
at these, and ask the spread to agree.
"""

from __future__ import annotations

from collections.abc import Iterator

from retarget.facts import DataFacts, InputStatistics

SAMPLES = 8
"""Fewer say nothing of a set."""
DENSE = 64
"""Values a sample from which on the bounds are those of the kind of data, as with pixels, and not of the samples."""
SCALED = 10.0
"""So much wider in bounds and spread is a scale, wherever the bounds lie: 255 and 32,768 are the usual ones."""
WIDENED = ((3.0, 3.0, 0.1), (1.6, 1.3, 0.25))
"""So much wider in bounds and in spread, and so far moved in widths of the narrower set, is a mean and a std.

[0, 1] to [-1, 1] is (2, 2, 0.5).
"""
UNEVEN = 2.0
"""Spread that differs so much more than the bounds do is of what there is to see: pieces of a sky are all bright."""
MOVED = 0.25
"""Both bounds so far in one direction, in widths of the wider set, is a mean alone."""


def unlike(first: tuple[str, DataFacts], second: tuple[str, DataFacts]) -> Iterator[str]:
    """A sentence for each float input whose values lie far apart in two sets, each given with what it is called."""
    (name, data), (other_name, other) = first, second
    if min(data.samples, other.samples) < SAMPLES:
        return
    others = {found.name: found for found in other.inputs}
    for one in data.inputs:
        two = others.get(one.name)
        if two is not None and _far(one, two, dense=one.count >= DENSE * data.samples):
            yield (
                f"{name} '{one.name}' has mean {one.mean:.3g} and std {one.std:.3g}, "
                f"{other_name} {two.mean:.3g} and {two.std:.3g}: is one of them normalised twice, or not at all?"
            )


def _far(one: InputStatistics, two: InputStatistics, *, dense: bool) -> bool:
    narrow, wide = sorted((one, two), key=lambda found: found.max - found.min)
    width, widest = narrow.max - narrow.min, wide.max - wide.min
    if not (width and narrow.std):
        return False  # a constant: there is no spread to compare
    wider, spread = widest / width, wide.std / narrow.std
    if min(wider, spread) >= SCALED:
        return True
    if not dense or spread > UNEVEN * wider:
        return False
    # Where the middle would lie if all had only been multiplied: what it is off by is what was subtracted.
    off = abs((wide.min + wide.max) - wider * (narrow.min + narrow.max)) / 2 / width
    if any(wider >= bounds and spread >= factor and off >= moved for bounds, factor, moved in WIDENED):
        return True
    low, high = wide.min - narrow.min, wide.max - narrow.max
    return low * high > 0 and min(abs(low), abs(high)) >= MOVED * widest

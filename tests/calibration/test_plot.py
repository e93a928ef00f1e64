from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import numpy as np

from retarget.calibration.methods import clip
from retarget.calibration.observers import Observer
from retarget.calibration.plot import METHODS, plot
from retarget.calibration.ranges import Ranges, TensorRange
from retarget.schemes import Grid

if TYPE_CHECKING:
    from retarget.protocols import Array


def seen(values: Array) -> TensorRange:
    observer = Observer()
    observer.add(values)
    return observer.result()


NORMAL = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
RANGES = Ranges(
    {
        "normal": seen(NORMAL),
        "<a & b>": seen(np.maximum(NORMAL, 0)),
        "turned": seen(NORMAL),
        "zeros": seen(np.zeros(3, np.float32)),
        "odd": seen(np.array([np.nan, np.inf], np.float32)),
    },
    samples=7,
)


def drawn(page: str) -> ET.Element:
    return ET.fromstring(page.partition("<body>")[2].partition("</body>")[0].join(["<body>", "</body>"]))


def test_a_row_for_each_tensor_and_one_for_those_alike() -> None:
    page = plot(RANGES)
    assert "5 tensors over 7 samples" in page
    assert "http" not in page, "it needs nothing else"
    rows = drawn(page).findall(".//tr")
    names = ["".join(row.find("th").itertext()) for row in rows]  # type: ignore[union-attr]
    assert names == ["normalturned", "<a & b>", "zeros", "odd1 NaN, 1 infinite"]
    assert [row.find("td/svg") is not None for row in rows] == [True, True, False, False]


def test_lines_and_bars_lie_where_the_values_do() -> None:
    (svg, *_) = (row.find("td/svg") for row in drawn(plot(RANGES)).findall(".//tr"))
    assert svg is not None
    low, high = float(NORMAL.min()), float(NORMAL.max())
    width = float(svg.attrib["viewBox"].split()[2])
    lines = {line.attrib["class"]: line for line in svg.findall("line")}
    assert set(lines) == {"zero", *METHODS}
    for method in METHODS:
        ends = clip(RANGES["normal"], Grid(0, 255, symmetric=False), method)
        for end, place in zip(ends, ("x1", "x2"), strict=True):
            assert abs(float(lines[method].attrib[place]) - (end - low) / (high - low) * width) < 1.5
    # The bars: the highest stands near zero.
    bars = re.findall(r"M([\d.]+) \d+v-([\d.]+)", svg.find("path").attrib["d"])  # type: ignore[union-attr]
    place, _ = max(bars, key=lambda bar: float(bar[1]))
    assert abs(float(place) / width * (high - low) + low) < 0.5


def test_a_choice_of_methods_and_no_tensors() -> None:
    page = plot(RANGES, methods=("mse",), grid=Grid(-128, 127, symmetric=True))
    assert 'class="mse"' in page
    assert 'class="entropy"' not in page
    assert "0 tensors" in plot(Ranges({}, 1))

"""Single-layer Caffe nets, two or more a layer type, that together cover what parameters change.

``CASES`` is the table. ``case.prototxt``, ``case.weights`` and ``case.feeds()`` are the net, the last two drawn from
the case's seed; ``write(case, folder)`` leaves a prototxt and a caffemodel. ``opencv`` says whether OpenCV's reader is
an oracle for the case; the reference in numpy always is, and ``convert/caffe/reference/opencv.py`` has the reasons.
What Caffe itself does (and a lowering must do too) where its forks differ is said beside the case.
"""

from __future__ import annotations

from collections.abc import Mapping

import caffe_cases_places
import caffe_cases_values
from caffe_case import ABSENT, Case, Drawn, exact, layer, normal, uniform, whole, write

__all__ = ["ABSENT", "CASES", "Case", "Drawn", "exact", "layer", "normal", "uniform", "whole", "write"]

CASES: Mapping[str, Case] = {
    case.name: case for family in (*caffe_cases_values.FAMILIES, *caffe_cases_places.FAMILIES) for case in family()
}

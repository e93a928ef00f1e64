"""Comparisons, truth values and choices between two operands."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.ncnn.call import Op

OPS: Mapping[str, Op] = {}

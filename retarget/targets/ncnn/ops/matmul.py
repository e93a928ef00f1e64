"""Products of matrices."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.ncnn.call import Op

OPS: Mapping[str, Op] = {}

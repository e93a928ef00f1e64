"""Nodes that OpenVINO's ONNX reader takes and then computes wrongly, each found by the conformance suite.

What OpenVINO refuses by itself is not here: it says so when it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.legal import Rule

LEGAL: Mapping[str, Rule] = {}

"""."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.targets.coreml.interpreter.call import OpFunction

OPS: Mapping[str, OpFunction] = {}

"""Whether a source says the same thing twice: what does not cannot be held against anything. Numpy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from retarget.errors import RetargetError

if TYPE_CHECKING:
    from retarget.protocols import Outputs


def check_repeats(first: Outputs, second: Outputs) -> None:
    """Raise ``RetargetError`` where two runs of the source on the same input differ."""
    for name, value in first.items():
        if not np.array_equal(value, second[name], equal_nan=value.dtype.kind == "f"):
            raise RetargetError(
                f"output '{name}' differs between two runs on the same input:"
                " the model is stochastic, or keeps a state from one run to the next",
                "switch off dropout and sampling; pass noise and state as inputs, and return the new state",
            )

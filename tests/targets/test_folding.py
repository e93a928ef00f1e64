"""What nodes of constants are folded to, whatever stands in them."""

from __future__ import annotations

import numpy as np
import pytest
import target_testing

from retarget.targets.folding import folded


@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_a_division_by_zero_is_folded_without_a_warning(operator: str) -> None:
    """As it stands in what is computed of a dimension, at a size that no one asks for."""
    model = target_testing.model(f"g (int64[2] x, int64[2] y) => (int64[2] z) {{ z = {operator}(x, y) }}")
    made = folded(model.graph.node(0), {"x": np.array([12, 12]), "y": np.array([0, 5])})
    assert made is not None
    assert made[0][1] == 2

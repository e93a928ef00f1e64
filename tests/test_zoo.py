"""The zoo itself: a model whose outputs hardly vary would hide every error of the code that it is meant to test."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from zoo import FAMILIES


def test_importing_the_zoo_is_cheap() -> None:
    code = "import sys; sys.path.insert(0, 'tests'); import zoo; print({'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_vary_with_the_input_and_within_themselves(name: str) -> None:
    family = FAMILIES[name]
    module = family.build()
    assert not any(part.training for part in module.modules())

    results = []
    for sizes, seed in ((None, 0), (None, 0), (None, 1)):
        feeds = {key: torch.from_numpy(value) for key, value in family.feeds(sizes, seed).items()}
        with torch.no_grad():
            result = module(**feeds)
        results.append([value.numpy() for value in (result if isinstance(result, tuple) else (result,))])

    assert len(results[0]) == len(family.outputs)
    for first, again, other in zip(*results, strict=True):
        assert first.dtype == np.float32
        np.testing.assert_array_equal(first, again)
        spread = first.std()
        assert 1e-2 < spread < 1e2
        assert np.abs(first - other).mean() > 0.05 * spread


def test_models_are_the_same_each_time() -> None:
    first, second = (FAMILIES["resnet"].build().state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)

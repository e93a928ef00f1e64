"""Architectures of transformers in ncnn, against PyTorch, with batches and lengths open."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers_zoo
from ncnn_models import hold, three_sizes

SAMPLE = ("efficientnet", "mistral", "wav2vec2")
"""What is always tested: one each of images, texts and sounds."""


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_architectures(name: str, tmp_path: Path) -> None:
    hold(three_sizes("transformers_zoo", name, tmp_path), tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize("name", transformers_zoo.FAMILIES)
def test_architectures(name: str, tmp_path: Path) -> None:
    hold(three_sizes("transformers_zoo", name, tmp_path), tmp_path)

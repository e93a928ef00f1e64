"""Writes what a user of this example would already have: a BERT checkpoint folder and a file of token samples.

    python examples/bert/make_checkpoint.py

The weights are random (there is no download here), of a size at which outputs vary with the input.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

HERE = Path(__file__).resolve().parent
VOCABULARY, LENGTH, SAMPLES = 1000, 48, 64


def checkpoint(folder: Path) -> None:
    """A Hugging Face folder: ``config.json`` and ``model.safetensors``."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        initializer_range=0.1,
        architectures=["BertModel"],
    )
    BertModel(config).eval().save_pretrained(folder)


def tokens(path: Path) -> None:
    """Sentences of different lengths, padded to ``LENGTH``."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, VOCABULARY, size=(SAMPLES, LENGTH), dtype=np.int64)
    mask = (np.arange(LENGTH) < rng.integers(8, LENGTH + 1, size=(SAMPLES, 1))).astype(np.int64)
    np.savez_compressed(path, input_ids=ids * mask, attention_mask=mask)


def main() -> None:
    checkpoint(HERE / "checkpoint")
    tokens(HERE / "tokens.npz")
    print(f"wrote {HERE / 'checkpoint'} and {HERE / 'tokens.npz'}")


if __name__ == "__main__":
    main()

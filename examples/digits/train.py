"""Trains the digits CNN and writes the checkpoint, calibration and evaluation data that the recipe uses.

    python examples/digits/train.py

scikit-learn's 1,797 digits (8×8) are scaled up to 32×32; 1,200 train, 200 calibrate, 397 evaluate.
About a minute on two cores. The files are in the repository, so a build does not need this.
"""

from pathlib import Path

import numpy as np
import torch
from model import build
from safetensors.torch import save_file
from sklearn.datasets import load_digits

HERE = Path(__file__).resolve().parent
TRAIN, CALIBRATION = 1200, 200


def images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    """All digits as float32[1797,1,32,32] in 0..1 and their labels, in a fixed random order."""
    digits = load_digits()
    small = torch.from_numpy(digits.images.astype(np.float32) / 16)[:, None]
    images = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.from_numpy(digits.target)[order]


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int = 20) -> torch.nn.Module:
    """AdamW with a cosine schedule; each batch is shifted by up to two pixels."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        model.train()
        for batch in torch.split(torch.randperm(len(images)), 64):
            shift = torch.randint(-2, 3, (2,)).tolist()
            loss = torch.nn.functional.cross_entropy(model(images[batch].roll(shift, (2, 3))), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    return model.eval()


def main() -> None:
    images, labels = images_and_labels()
    model = train(images[:TRAIN], labels[:TRAIN])
    evaluation = slice(TRAIN + CALIBRATION, None)
    with torch.no_grad():
        right = (model(images[evaluation]).argmax(1) == labels[evaluation]).float().mean().item()
    print(f"top1 on {len(images[evaluation])} held-out digits: {right:.4f}")

    save_file(model.state_dict(), HERE / "digits_cnn.safetensors")
    np.savez_compressed(HERE / "calibration.npz", image=images[TRAIN : TRAIN + CALIBRATION].numpy())
    np.savez_compressed(HERE / "evaluation.npz", image=images[evaluation].numpy(), label=labels[evaluation].numpy())


if __name__ == "__main__":
    main()

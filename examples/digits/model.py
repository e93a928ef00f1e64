"""A small residual CNN for 32×32 grey digits: about 33,000 parameters."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Depthwise-separable convolution with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.depthwise_norm(self.depthwise(x)))
        return torch.relu(x + self.pointwise_norm(self.pointwise(y)))


class DigitsCNN(nn.Module):
    """``image`` float32[N,1,32,32] in 0..1 to ``logits`` float32[N,10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.stage1 = nn.Sequential(Block(32), Block(32))
        self.down = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.stage2 = nn.Sequential(Block(64), Block(64))
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(image))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def build() -> nn.Module:
    """The module that ``digits_cnn.safetensors`` belongs to."""
    return DigitsCNN()

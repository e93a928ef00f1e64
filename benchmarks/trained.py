"""Small models that are trained here on real data, in seconds: quantization tells nothing on random weights.

Images are scikit-learn's handwritten digits. Text is the language reference that comes with Python (`pydoc_data`), as
sequences of its most frequent words with some of them masked. A model is trained once into a folder, exported, and
brought to the normal form by the default preset, so that every tool starts from the same folded graph.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

    from retarget.protocols import Array

SIDE = 16
"""Pixels of an image's side: the 8 of the data set, each doubled."""
TRAINING, CALIBRATION = 1200, 256
"""Rows of the digits that train, and the next ones that calibrate; the rest evaluates."""
WORDS, LENGTH, MASK = 512, 32, 1
"""Size of the vocabulary, words in a sequence, and the word that stands for a masked one; 0 is every rare one."""


@dataclass(frozen=True)
class Data:
    """Rows of one input ``x``, and the right answer of each."""

    training: tuple[Array, Array]
    calibration: tuple[Array, Array]
    evaluation: tuple[Array, Array]


def digits() -> Data:
    """Images [N, 1, 16, 16] in 0 to 1, normalized; classes 0 to 9."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.kron(found.images, np.ones((1, 2, 2)))[:, None].astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    return _split(
        (images[order] / np.float32(16) - np.float32(0.3)) / np.float32(0.35),
        found.target[order].astype(np.int64),
        TRAINING,
        CALIBRATION,
    )


def text() -> Data:
    """Word numbers [N, 32] with one of seven masked; the answer is the word everywhere it was, -100 elsewhere."""
    from pydoc_data.topics import topics

    words = re.findall(r"[a-z]+|[^a-z\s]", " ".join(topics[name] for name in sorted(topics)).lower())
    known = {word: index + 2 for index, (word, _) in enumerate(Counter(words).most_common(WORDS - 2))}
    numbers = np.array([known.get(word, 0) for word in words], np.int64)
    rows = numbers[: len(numbers) // LENGTH * LENGTH].reshape(-1, LENGTH)
    rng = np.random.default_rng(0)
    rows = rows[rng.permutation(len(rows))]
    masked = (rng.random(rows.shape) < 1 / 7) & (rows > 0)
    return _split(np.where(masked, MASK, rows), np.where(masked, rows, -100), len(rows) - 1024, CALIBRATION)


def _split(inputs: Array, answers: Array, training: int, calibration: int) -> Data:
    middle = training + calibration
    return Data(
        (inputs[:training], answers[:training]),
        (inputs[training:middle], answers[training:middle]),
        (inputs[middle:], answers[middle:]),
    )


# ---- architectures


def _cnn() -> nn.Module:
    from torch import nn

    layers: list[nn.Module] = []
    for inner, outer, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2)):
        layers += [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _mobile() -> nn.Module:
    """Inverted residuals as MobileNetV2 has them."""
    from torch import nn

    def conv(inner: int, outer: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        return [
            nn.Conv2d(inner, outer, size, stride, size // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU6(),
        ]

    class Inverted(nn.Module):
        def __init__(self, inner: int, outer: int, stride: int) -> None:
            super().__init__()
            wide = 4 * inner
            layers = conv(inner, wide, 1) + conv(wide, wide, 3, stride, wide) + conv(wide, outer, 1)[:2]
            self.layers = nn.Sequential(*layers)
            self.residual = inner == outer and stride == 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layers(x)
            return x + y if self.residual else y

    blocks = [Inverted(*sizes) for sizes in ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1))]
    head = [*conv(32, 96, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)]
    return nn.Sequential(*conv(1, 16, 3), *blocks, *head)


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=SIDE,
        patch_size=4,
        num_channels=1,
        num_labels=10,
    )
    return _first(ViTForImageClassification(config))


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _first(BertForMaskedLM(config))


def _first(inner: nn.Module) -> nn.Module:
    """Only the first output, as a tensor."""
    from torch import nn

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first: torch.Tensor = self.inner(x)[0]
            return first

    return First()


@dataclass(frozen=True)
class Trained:
    """How a model is made; ``steps`` of ``batch`` rows each."""

    make: Callable[[], nn.Module]
    data: Callable[[], Data]
    steps: int
    rate: float
    batch: int = 64


MODELS: Mapping[str, Trained] = {
    "cnn": Trained(_cnn, digits, 300, 3e-3),
    "mobilenet_v2": Trained(_mobile, digits, 300, 3e-3),
    "vit": Trained(_vit, digits, 400, 1e-3),
    "bert": Trained(_bert, text, 400, 2e-3),
}


def prepare(name: str, folder: Path) -> Path:
    """The file of a trained model in the normal form in ``folder``, made if it is not there. Input x, output y."""
    path = folder / f"trained-{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(MODELS[name], path)
    return path


def _write(how: Trained, path: Path) -> None:
    import torch
    from onnxscript import version_converter

    from retarget import graph
    from retarget.passes import presets

    data = how.data()
    torch.manual_seed(0)
    module = _train(how, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (torch.from_numpy(data.calibration[0][:2]),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            optimize=False,
            verbose=False,
            input_names=["x"],
            output_names=["y"],
        )
    assert program is not None
    version_converter.ConvertVersionPass(graph.OPSET)(program.model)
    model = program.model
    for one in presets.build("default", {}):
        model = one.run(model).model
    graph.save(model, path)


def _train(how: Trained, data: Data) -> nn.Module:
    import torch
    from torch import nn

    # Tensors are so small that a second thread costs more than it brings.
    torch.set_num_threads(1)
    module = how.make().train()
    inputs, answers = (torch.from_numpy(array) for array in data.training)
    optimizer = torch.optim.AdamW(module.parameters(), how.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.rate, how.steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(how.steps):
        rows = torch.randint(len(inputs), (how.batch,), generator=generator)
        scores = module(inputs[rows])
        loss = nn.functional.cross_entropy(scores.flatten(0, -2), answers[rows].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return module.eval()


def accuracy(scores: Array, answers: Array) -> float:
    """Share of right answers among those that there are."""
    asked = answers != -100
    return float((scores.argmax(axis=-1) == answers)[asked].mean())

"""Tiny models of the 12 families that recipes exist for: seeded, with weights that let every input matter.

Importing this module is cheap; building a family imports torch and, where it has the family, transformers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from retarget.spec import DimRange, TensorSpec, symbols

if TYPE_CHECKING:
    from torch import nn

    from retarget.protocols import Array

VOCABULARY = 97


@dataclass(frozen=True)
class Family:
    """A model builder and what a recipe would say of it."""

    make: Callable[[], nn.Module]
    inputs: dict[str, str]
    outputs: tuple[str, ...]
    shapes: dict[str, DimRange] = field(default_factory=lambda: {"N": DimRange(1, 2, 3)})

    def build(self) -> nn.Module:
        """The module in eval mode; its forward takes ``inputs`` by name and returns ``outputs`` as plain tensors."""
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = self.make().eval()
            _scatter(module)
        return module

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec.of(name, text) for name, text in self.inputs.items())

    def feeds(self, sizes: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, Array]:
        """Random inputs at ``sizes``; symbols that it lacks are taken at ``opt``."""
        import numpy as np

        rng = np.random.default_rng(seed)
        at = {symbol: self.shapes[symbol].opt for symbol in symbols(self.specs)} | dict(sizes or {})
        feeds: dict[str, Array] = {}
        for spec in self.specs:
            shape = spec.at(at)
            if spec.name == "attention_mask":
                # Right padding, as a tokenizer makes it: at least one real token in each row.
                lengths = rng.integers(1, shape[1] + 1, size=(shape[0], 1))
                feeds[spec.name] = (np.arange(shape[1]) < lengths).astype(spec.dtype)
            elif spec.dtype == "int64":
                feeds[spec.name] = rng.integers(0, VOCABULARY, size=shape)
            else:
                feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        return feeds


def _scatter(module: nn.Module) -> None:
    """Draw all weights anew: default initialisations leave biases at 0, running statistics at 0 and 1, and embeddings
    or layer scales so small that the input hardly shows in the output."""
    import torch
    from torch import nn

    for path, part in module.named_modules():
        generator = torch.Generator().manual_seed(zlib.crc32(path.encode()))

        def normal(like: torch.Tensor, std: float, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(like.shape, generator=generator) * std

        with torch.no_grad():
            for name, weight in part.named_parameters(recurse=False):
                if weight.dim() < 2:
                    weight.copy_(normal(weight, 0.1) if "bias" in name else 1 + normal(weight, 0.1))
                elif type(part).__name__ == "Conv1D":  # GPT-2's: a Linear stored as [in, out]
                    weight.copy_(normal(weight, weight.shape[0] ** -0.5))
                elif isinstance(part, nn.Conv2d):  # He's gain: without it the signal dies out in a deep CNN
                    weight.copy_(normal(weight, (2 / weight[0].numel()) ** 0.5))
                elif isinstance(part, nn.Linear | nn.Conv1d | nn.RNNBase):
                    weight.copy_(normal(weight, weight[0].numel() ** -0.5))
                else:  # embeddings, class tokens, queries
                    weight.copy_(normal(weight, 0.5))
            for name, buffer in part.named_buffers(recurse=False):
                if name == "running_mean":
                    buffer.copy_(normal(buffer, 0.1))
                elif name == "running_var":
                    buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def _outputs_of(model: nn.Module, *names: str, **fixed: object) -> nn.Module:
    """``model`` of transformers with the outputs ``names`` of its dataclass, as a tensor or a tuple of tensors."""
    import torch
    from torch import nn

    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            result = self.model(pixel_values, **fixed)
            return tuple(getattr(result, name) for name in names)

    return Image()


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type="basic", num_labels=10)
    return _outputs_of(ResNetForImageClassification(config), "logits")


def _mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.25, image_size=64, num_labels=10, finegrained_output=False)
    return _outputs_of(MobileNetV2ForImageClassification(config), "logits")


def _convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, num_labels=10)
    return _outputs_of(ConvNextForImageClassification(config), "logits")


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    return _outputs_of(ViTForImageClassification(config), "logits")


def _swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=10
    )
    return _outputs_of(SwinForImageClassification(config), "logits")


def _detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=6,
        num_labels=5,
    )
    return _outputs_of(DetrForObjectDetection(config), "logits", "pred_boxes")


def _segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[4, 2],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=32,
        num_labels=5,
    )
    return _outputs_of(SegformerForSemanticSegmentation(config), "logits")


def _bert() -> nn.Module:
    import torch
    from torch import nn
    from transformers import BertConfig, BertModel

    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = BertModel(
                BertConfig(
                    vocab_size=VOCABULARY,
                    hidden_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    intermediate_size=64,
                    max_position_embeddings=64,
                )
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            result = self.model(input_ids, attention_mask=attention_mask)
            return result.last_hidden_state, result.pooler_output

    return Bert()


def _decoder(model: nn.Module) -> nn.Module:
    import torch
    from torch import nn

    class Prefill(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids, use_cache=False).logits
            return logits

    return Prefill()


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return _decoder(GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2)))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return _decoder(LlamaForCausalLM(config))


def _whisper_encoder() -> nn.Module:
    import torch
    from torch import nn
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = WhisperEncoder(
                WhisperConfig(
                    d_model=32,
                    encoder_layers=2,
                    encoder_attention_heads=2,
                    encoder_ffn_dim=64,
                    num_mel_bins=16,
                    max_source_positions=24,
                )
            )

        def forward(self, input_features: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.model(input_features).last_hidden_state
            return hidden

    return Encoder()


def _yolo() -> nn.Module:
    """A detector as YOLOv8 is built: CSP blocks, SPPF, an up-and-down neck, decoded anchor-free heads at two scales."""
    import torch
    from torch import nn

    def conv(inside: int, outside: int, kernel: int = 1, stride: int = 1) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outside), nn.SiLU()
        )

    class Split(nn.Module):
        """Cross-stage partial block: half of the channels go through a residual pair of convolutions."""

        def __init__(self, inside: int, outside: int) -> None:
            super().__init__()
            self.first, self.last = conv(inside, outside), conv(outside + outside // 2, outside)
            self.pair = nn.Sequential(conv(outside // 2, outside // 2, 3), conv(outside // 2, outside // 2, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept, worked = self.first(x).chunk(2, 1)
            merged: torch.Tensor = self.last(torch.cat((kept, worked, worked + self.pair(worked)), 1))
            return merged

    class Pyramid(nn.Module):
        """Spatial pyramid pooling, fast: three poolings of one size in a row."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.first, self.last = conv(channels, channels // 2), conv(channels * 2, channels)
            self.pool = nn.MaxPool2d(5, 1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            y = self.pool(x)
            z = self.pool(y)
            merged: torch.Tensor = self.last(torch.cat((x, y, z, self.pool(z)), 1))
            return merged

    class Yolo(nn.Module):
        def __init__(self, classes: int = 4) -> None:
            super().__init__()
            self.stem = nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2), Split(16, 16))
            self.fine = nn.Sequential(conv(16, 32, 3, 2), Split(32, 32))
            self.coarse = nn.Sequential(conv(32, 32, 3, 2), Split(32, 32), Pyramid(32))
            self.up, self.down = nn.Upsample(scale_factor=2), conv(32, 32, 3, 2)
            self.neck_fine, self.neck_coarse = Split(64, 32), Split(64, 32)
            self.heads = nn.ModuleList(nn.Conv2d(32, 4 + classes, 1) for _ in range(2))

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            fine = self.fine(self.stem(images))
            coarse = self.coarse(fine)
            fine = self.neck_fine(torch.cat((self.up(coarse), fine), 1))
            coarse = self.neck_coarse(torch.cat((self.down(fine), coarse), 1))
            boxes, scores = [], []
            for head, features, stride in zip(self.heads, (fine, coarse), (8, 16), strict=True):
                prediction = head(features)
                rows, columns = prediction.shape[2:]
                y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
                centre = (torch.stack((x, y)) + 0.5)[None]
                low = centre - prediction[:, :2].sigmoid() * 2
                high = centre + prediction[:, 2:4].sigmoid() * 2
                boxes.append((torch.cat((low, high), 1) * stride).flatten(2))
                scores.append(prediction[:, 4:].sigmoid().flatten(2))
            return torch.cat(boxes, 2).transpose(1, 2), torch.cat(scores, 2).transpose(1, 2)

    return Yolo()


def _recurrent(cell: type[nn.LSTM | nn.GRU]) -> nn.Module:
    import torch
    from torch import nn

    class Tagger(nn.Module):
        """Two recurrent layers, both directions, a score for each step and one for the sequence."""

        def __init__(self) -> None:
            super().__init__()
            self.cells = cell(12, 16, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(32, 5)

        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hidden, _ = self.cells(features)
            return self.head(hidden), self.head(hidden[:, -1])

    return Tagger()


def _lstm() -> nn.Module:
    from torch import nn

    return _recurrent(nn.LSTM)


def _gru() -> nn.Module:
    from torch import nn

    return _recurrent(nn.GRU)


def _image(side: int) -> dict[str, str]:
    return {"pixel_values": f"float32[N,3,{side},{side}]"}


_SEQUENCE = {"N": DimRange(1, 2, 3), "T": DimRange(2, 7, 12)}

FAMILIES: dict[str, Family] = {
    "resnet": Family(_resnet, _image(32), ("logits",)),
    "mobilenet_v2": Family(_mobilenet_v2, _image(64), ("logits",)),
    "convnext": Family(_convnext, _image(32), ("logits",)),
    "vit": Family(_vit, _image(32), ("logits",)),
    "swin": Family(_swin, _image(32), ("logits",)),
    "yolo": Family(_yolo, {"images": "float32[N,3,64,64]"}, ("boxes", "scores")),
    "detr": Family(_detr, _image(64), ("logits", "pred_boxes")),
    "segformer": Family(_segformer, _image(64), ("logits",)),
    "bert": Family(
        _bert,
        {"input_ids": "int64[N,T]", "attention_mask": "int64[N,T]"},
        ("last_hidden_state", "pooler_output"),
        _SEQUENCE,
    ),
    "gpt2": Family(_gpt2, {"input_ids": "int64[N,T]"}, ("logits",), _SEQUENCE),
    "llama": Family(_llama, {"input_ids": "int64[N,T]"}, ("logits",), _SEQUENCE),
    "whisper_encoder": Family(_whisper_encoder, {"input_features": "float32[N,16,48]"}, ("last_hidden_state",)),
    "lstm": Family(_lstm, {"features": "float32[N,T,12]"}, ("steps", "sequence"), _SEQUENCE),
    "gru": Family(_gru, {"features": "float32[N,T,12]"}, ("steps", "sequence"), _SEQUENCE),
}
"""14 models of 12 families: decoder prefill and recurrent have two each."""

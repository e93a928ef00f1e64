"""Tiny models of many architectures of transformers, made as those of `zoo` are."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zoo import VOCABULARY, Family

from retarget.spec import DimRange

if TYPE_CHECKING:
    from torch import nn

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PATCHES = {**VISION, "image_size": 32, "patch_size": 8}


def _model(name: str, **config: object) -> nn.Module:
    """The base model of architecture ``name``, with its first output."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModel

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_config(AutoConfig.for_model(name, **config))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result = self.model(x)
            first: torch.Tensor = result[0] if not isinstance(result, torch.Tensor) else result
            return first

    return First()


def _text(name: str, **config: object) -> Family:
    return Family(
        partial(_model, name, **{**TEXT, **config}),
        {"x": "int64[N,T]"},
        ("y",),
        {"N": DimRange(1, 2, 3), "T": DimRange(5, 8, 12)},
    )


def _image(name: str, size: int = 32, **config: object) -> Family:
    return Family(partial(_model, name, **config), {"x": f"float32[N,3,{size},{size}]"}, ("y",))


def _sound(name: str, **config: object) -> Family:
    return Family(partial(_model, name, **config), {"x": "float32[N,800]"}, ("y",))


_SOUND = {
    **VISION,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
}

FAMILIES: dict[str, Family] = {
    "albert": _text("albert", embedding_size=16),
    "bloom": _text("bloom", n_layer=2, n_head=2),
    "distilbert": _text("distilbert", dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    "electra": _text("electra", embedding_size=16),
    "gpt_neox": _text("gpt_neox"),
    "mistral": _text("mistral", num_key_value_heads=1, head_dim=16),
    "mpnet": _text("mpnet"),
    "opt": _text("opt", ffn_dim=64, word_embed_proj_dim=32),
    "qwen2": _text("qwen2", num_key_value_heads=1),
    "roberta": _text("roberta", pad_token_id=0),
    "beit": _image("beit", **PATCHES),
    "convnextv2": _image("convnextv2", hidden_sizes=[16, 32], depths=[1, 1], num_stages=2),
    "deit": _image("deit", **PATCHES),
    "dinov2": _image("dinov2", **PATCHES),
    "efficientnet": _image(
        "efficientnet",
        width_coefficient=0.25,
        depth_coefficient=1.0,
        hidden_dim=320,
        kernel_sizes=[3, 3, 5],
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 40],
        strides=[1, 2, 2],
        num_block_repeats=[1, 2, 1],
        expand_ratios=[1, 6, 6],
    ),
    "focalnet": _image("focalnet", embed_dim=16, depths=[1, 1], hidden_sizes=[16, 32], image_size=32),
    "levit": _image(
        "levit",
        64,
        hidden_sizes=[32, 48],
        num_attention_heads=[2, 2],
        depths=[1, 1],
        key_dim=[16, 16],
        mlp_ratio=[2, 2],
        attention_ratio=[2, 2],
        image_size=64,
        down_ops=[["Subsample", 16, 4, 4, 2, 2], [""]],
    ),
    "mobilevit": _image("mobilevit", 64, hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 48]),
    "poolformer": _image("poolformer", 64, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    "pvt": _image(
        "pvt", 64, image_size=64, hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 2]
    ),
    "regnet": _image("regnet", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8),
    "siglip_vision_model": _image("siglip_vision_model", **PATCHES),
    "clip_vision_model": _image("clip_vision_model", **PATCHES),
    "swinv2": _image(
        "swinv2", image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    ),
    "yolos": _image("yolos", **VISION, image_size=[32, 32], patch_size=8, num_detection_tokens=5),
    "hubert": _sound("hubert", **_SOUND),
    "wav2vec2": _sound("wav2vec2", **_SOUND),
}

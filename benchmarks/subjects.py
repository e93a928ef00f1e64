"""What targets are compared on with other converters: each exported once as an ONNX file that any tool reads.

The file is what PyTorch's own exporter writes, optimized by it, at opset 20: the first with Gelu, of whose parts below
it onnx2tf makes a TFLite file that needs TensorFlow's kernels. Its batch is one, sizes are fixed and weights stand in
it, because some tools cannot take them otherwise. Weights are drawn as the tests' families draw theirs, so that every
input shows in the outputs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from retarget.spec import DimRange

if TYPE_CHECKING:
    from torch import nn
    from zoo import Family

    from retarget.protocols import Feeds

OPSET = 20
ONE = {"N": DimRange(1, 1, 1)}


def families() -> Mapping[str, Family]:
    """The tiny models of the tests."""
    folder = str(Path(__file__).parents[1] / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    import zoo

    return zoo.FAMILIES


def _config(config: str, model: str, output: str, **settings: object) -> Callable[[], nn.Module]:
    """A model of transformers whose forward gives one output."""

    def make() -> nn.Module:
        import torch
        import transformers
        from torch import nn

        class One(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
                masked = {} if attention_mask is None else {"attention_mask": attention_mask}
                chosen: torch.Tensor = getattr(self.inner(x, **masked), output)
                return chosen

        built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return One(built)

    return make


def _lstm() -> nn.Module:
    import torch
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.LSTM(80, 128, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(256, 40)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.head(self.cells(x)[0])
            return scores

    return Tagger()


_VIT: Mapping[str, object] = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
_BERT: Mapping[str, object] = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
}


@cache
def subjects() -> Mapping[str, Family]:
    """Every model by name: those of real sizes, then the tests' families as ``tiny-…``."""
    tiny = families()
    from zoo import Family

    def image(make: Callable[[], nn.Module], side: int = 224) -> Family:
        return Family(make, {"x": f"float32[N,3,{side},{side}]"}, ("y",), ONE)

    def classifier(kind: str, **settings: object) -> Family:
        return image(_config(f"{kind}Config", f"{kind}ForImageClassification", "logits", num_labels=1000, **settings))

    large = {
        "mobilenet_v2": classifier("MobileNetV2"),
        "resnet50": classifier("ResNet"),
        "convnext_tiny": classifier("ConvNext"),
        "vit_tiny": classifier("ViT", **_VIT),
        "vit_base": classifier("ViT"),
        # The exporter refuses the strides of its fused attention at a batch of one.
        "swin_tiny": classifier("Swin", attn_implementation="eager"),
        "deeplab": image(
            _config("MobileNetV2Config", "MobileNetV2ForSemanticSegmentation", "logits", num_labels=21), 256
        ),
        "segformer_b0": image(
            _config("SegformerConfig", "SegformerForSemanticSegmentation", "logits", num_labels=150), 256
        ),
        "yolo": replace(tiny["yolo"], inputs={"images": "float32[N,3,320,320]"}, shapes=ONE),
        "bert_mini": Family(
            _config("BertConfig", "BertModel", "last_hidden_state", **_BERT),
            {"x": "int64[N,128]", "attention_mask": "int64[N,128]"},
            ("y",),
            ONE,
        ),
        "lstm": Family(_lstm, {"x": "float32[N,50,80]"}, ("y",), ONE),
    }
    # Of the tests' Swin there is only the fused one.
    return {**large, **{f"tiny-{name}": family for name, family in tiny.items() if name != "swin"}}


def feeds(name: str) -> Feeds:
    """Inputs at a batch of one."""
    return subjects()[name].feeds({"N": 1})


def write(name: str, path: Path) -> None:
    """Export the model ``name``."""
    import torch

    family = subjects()[name]
    example = {key: torch.from_numpy(array) for key, array in feeds(name).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            family.build(),
            kwargs=example,
            dynamo=True,
            optimize=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(example),
            output_names=list(family.outputs),
        )
    assert program is not None
    program.save(path, external_data=False)


def prepare(name: str, folder: Path) -> Path:
    """The file of a model in ``folder``, written if it is not there."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(name, path)
    return path

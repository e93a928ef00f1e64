"""Models for measurements, by name and size: exported once into a folder, as the exporter writes them.

``small`` keeps a family's structure at a few layers; ``large`` is the published size, so that its node counts are
those of real models. Weights are random but every bias and statistic varies: a bias of zeros would fold away.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

if TYPE_CHECKING:
    from torch import nn

    from retarget.protocols import Feeds

Size = Literal["small", "large"]


@dataclass(frozen=True)
class Model:
    """What a measurement needs to know of a model."""

    write: Callable[[Size, Path], None]
    feeds: Callable[[Size, int], Feeds]
    """Inputs of a size at a batch."""


def _image(side: Mapping[Size, int]) -> Callable[[Size, int], Feeds]:
    def feeds(size: Size, batch: int) -> Feeds:
        return {"x": np.random.default_rng(0).standard_normal((batch, 3, side[size], side[size]), dtype=np.float32)}

    return feeds


def _exported(make: Callable[[Size], nn.Module], feeds: Callable[[Size, int], Feeds], *, batch: bool = True) -> Model:
    """A PyTorch module, by the dynamo exporter without its optimizer. ``batch``: axis 0 is symbolic."""

    def write(size: Size, path: Path) -> None:
        import torch
        from torch import nn

        class First(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
                outputs = self.inner(x) if mask is None else self.inner(x, attention_mask=mask)
                first: torch.Tensor = outputs[0]
                return first

        torch.manual_seed(0)
        module = make(size).eval()
        _vary(module)
        example = {name: torch.from_numpy(array) for name, array in feeds(size, 2).items()}
        dynamic = torch.export.Dim.DYNAMIC
        shapes = {
            name: dict.fromkeys((0, 1) if tensor.dtype == torch.int64 else (0,), dynamic)
            for name, tensor in example.items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                First(module).eval(),
                kwargs=example,
                dynamo=True,
                dynamic_shapes=shapes if batch else None,
                optimize=False,
                verbose=False,
                input_names=list(example),
                output_names=["y"],
            )
        assert program is not None
        program.save(path, external_data=True)

    return Model(write, feeds)


def _vary(module: nn.Module) -> None:
    """Give each vector of parameters and statistics numbers of its own."""
    import torch

    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.dtype.is_floating_point and tensor.ndim == 1:
                noise = torch.randn_like(tensor) * 0.1
                tensor += noise.abs() if "var" in name else noise


def _config(
    kind: str, model: str, small: Mapping[str, object], large: Mapping[str, object]
) -> Callable[[Size], nn.Module]:
    def make(size: Size) -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(**(small if size == "small" else large))
        if kind == "Whisper":
            from transformers.models.whisper.modeling_whisper import WhisperEncoder

            encoder: nn.Module = WhisperEncoder(config)
            return encoder
        built: nn.Module = getattr(transformers, model)(config)
        return built

    return make


def _text(size: Size, batch: int) -> Feeds:
    rng = np.random.default_rng(0)
    length = 16 if size == "small" else 128
    return {"x": rng.integers(0, 100, (batch, length)), "mask": np.ones((batch, length), np.int64)}


def _audio(size: Size, batch: int) -> Feeds:
    frames = 200 if size == "small" else 3000
    return {"x": np.random.default_rng(0).standard_normal((batch, 80, frames), dtype=np.float32)}


def _save(graph: ir.Graph, path: Path) -> None:
    model = ir.Model(graph, ir_version=10)
    NameFixPass()(model)
    ir.save(model, path)


def _channels_last(size: Size, path: Path) -> None:
    """A mobile network as channels-last frameworks write it: a pair of Transposes around each convolution."""
    rng = np.random.default_rng(0)
    blocks, width = (4, 16) if size == "small" else (16, 64)
    x = ir.val("x", ir.DataType.FLOAT, ["N", 64, 64, 3])
    tape = ir.tape.Tape()
    constants: list[ir.Value] = []

    def constant(array: np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.int64]]) -> ir.Value:
        constants.append(ir.val(f"c{len(constants)}", const_value=ir.tensor(array, name=f"c{len(constants)}")))
        return constants[-1]

    def conv(value: ir.Value, inside: int, outside: int, kernel: int, group: int = 1) -> ir.Value:
        weight = rng.normal(0, (inside // group * kernel**2) ** -0.5, (outside, inside // group, kernel, kernel))
        turned = tape.op("Transpose", [value], {"perm": [0, 3, 1, 2]})
        pads = [kernel // 2] * 4
        made = tape.op("Conv", [turned, constant(weight.astype(np.float32))], {"group": group, "pads": pads})
        back = tape.op("Transpose", [made], {"perm": [0, 2, 3, 1]})
        scaled = tape.op("Mul", [back, constant(rng.uniform(0.5, 1.5, outside).astype(np.float32))])
        return tape.op("Add", [scaled, constant(rng.normal(0, 0.1, outside).astype(np.float32))])

    def swish(value: ir.Value) -> ir.Value:
        return tape.op("Mul", [value, tape.op("Sigmoid", [value])])

    value = swish(conv(x, 3, width, 3))
    for _ in range(blocks):
        inner = swish(conv(value, width, 2 * width, 1))
        inner = swish(conv(inner, 2 * width, 2 * width, 3, 2 * width))
        pooled = tape.op("ReduceMean", [inner, constant(np.array([1, 2]))], {"keepdims": 1})
        gate = tape.op("Sigmoid", [conv(swish(conv(pooled, 2 * width, 8, 1)), 8, 2 * width, 1)])
        value = tape.op("Add", [value, conv(tape.op("Mul", [inner, gate]), 2 * width, width, 1)])
    y = tape.op("ReduceMean", [value, constant(np.array([1, 2]))], {"keepdims": 0})
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", width])
    graph = ir.Graph([x], [y], nodes=tape.nodes, initializers=constants, opset_imports={"": 23}, name="channels_last")
    _save(graph, path)


def write_long(nodes: int, path: Path, width: int = 16) -> None:
    """About ``nodes`` nodes of the debris that exporters leave, a layer for every 13."""
    rng = np.random.default_rng(0)
    x = ir.val("x", ir.DataType.FLOAT, ["N", width])
    tape = ir.tape.Tape()
    constants: list[ir.Value] = []

    def constant(array: np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.int64]]) -> ir.Value:
        constants.append(ir.val(f"c{len(constants)}", const_value=ir.tensor(array, name=f"c{len(constants)}")))
        return constants[-1]

    one, zero = constant(np.ones(1, np.float32)), constant(np.array(0))
    axis, size = constant(np.array([0])), constant(np.array([width]))
    value = x
    for _ in range(nodes // 12):
        weight = rng.normal(0, width**-0.5, (width, width)).astype(np.float32)
        value = tape.op("MatMul", [value, constant(weight)])
        value = tape.op("Add", [value, constant(rng.normal(0, 0.1, width).astype(np.float32))])
        value = tape.op("Relu", [value])
        rows = tape.op("Unsqueeze", [tape.op("Gather", [tape.op("Shape", [value]), zero]), axis])
        value = tape.op("Reshape", [value, tape.op("Concat", [rows, size], {"axis": 0})])
        for _ in range(2):
            value = tape.op("Transpose", [value], {"perm": [1, 0]})
        value = tape.op("Mul", [tape.op("Identity", [value]), one])
    y = tape.op("Identity", [value])
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", width])
    graph = ir.Graph([x], [y], nodes=tape.nodes, initializers=constants, opset_imports={"": 23}, name="long")
    _save(graph, path)


def write_heavy(layers: int, path: Path, width: int = 4096) -> None:
    """``layers`` linear layers of ``width``² float32 weights in external data: 40 of them are 2.7 GB."""
    rng = np.random.default_rng(0)
    block = rng.normal(0, width**-0.5, (width, width)).astype(np.float32)
    x = ir.val("x", ir.DataType.FLOAT, ["N", width])
    tape = ir.tape.Tape()
    constants: list[ir.Value] = []
    value = x
    with (path.parent / (path.name + ".data")).open("wb") as file:
        for layer in range(layers):
            offset = file.tell()
            np.roll(block, layer).tofile(file)
            tensor = ir.ExternalTensor(
                path.name + ".data",
                offset,
                block.nbytes,
                ir.DataType.FLOAT,
                shape=ir.Shape(block.shape),
                name=f"w{layer}",
                base_dir=path.parent,
            )
            constants.append(ir.val(f"w{layer}", const_value=tensor))
            turned = tape.op("Transpose", [constants[-1]], {"perm": [1, 0]})
            value = tape.op("Relu", [tape.op("MatMul", [value, turned])])
    value.name, value.type, value.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", width])
    graph = ir.Graph([x], [value], nodes=tape.nodes, initializers=constants, opset_imports={"": 23}, name="heavy")
    _save(graph, path)


def _normal(*shape: int) -> Callable[[Size, int], Feeds]:
    return lambda _, batch: {"x": np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)}


_EAGER: Mapping[str, object] = {"attn_implementation": "eager"}
"""Swin's fused attention has strides that the exporter refuses."""
_SMALL_TEXT = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}

MODELS: Mapping[str, Model] = {
    "resnet": _exported(
        _config(
            "ResNet",
            "ResNetForImageClassification",
            {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "embedding_size": 16},
            {},
        ),
        _image({"small": 64, "large": 224}),
    ),
    "mobilenet_v2": _exported(
        _config("MobileNetV2", "MobileNetV2ForImageClassification", {"depth_multiplier": 0.25}, {}),
        _image({"small": 64, "large": 224}),
    ),
    "vit": _exported(
        _config("ViT", "ViTForImageClassification", {**_SMALL_TEXT, "image_size": 64}, {}),
        _image({"small": 64, "large": 224}),
    ),
    "bert": _exported(_config("Bert", "BertModel", _SMALL_TEXT, {}), _text),
    "swin": _exported(
        _config(
            "Swin",
            "SwinForImageClassification",
            {"depths": [2, 2], "num_heads": [2, 4], "embed_dim": 32, **_EAGER},
            _EAGER,
        ),
        _image({"small": 224, "large": 224}),
        batch=False,
    ),
    "whisper": _exported(
        _config(
            "Whisper",
            "WhisperModel",
            {"encoder_layers": 2, "d_model": 64, "encoder_attention_heads": 4, "max_source_positions": 100},
            {},
        ),
        _audio,
    ),
    "channels_last": Model(_channels_last, _normal(64, 64, 3)),
    "long": Model(lambda size, path: write_long(2_000 if size == "small" else 10_000, path), _normal(16)),
    "heavy": Model(lambda size, path: write_heavy(2 if size == "small" else 40, path), _normal(4096)),
}


def prepare(name: str, size: Size, folder: Path) -> Path:
    """The file of a model in ``folder``, written if it is not there."""
    path = folder / f"{name}-{size}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        MODELS[name].write(size, path)
    return path

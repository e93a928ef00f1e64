"""The PyTorch frontend: every form of checkpoint from file to ONNX Runtime, held against the module itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from small_net import EXPORT, LOAD, MATCHES, SHAPES, Net, options_of, save_program, source_of
from torch import nn
from zoo import FAMILIES, Family

from retarget import graph
from retarget.compare import snr_db
from retarget.errors import RetargetError, ToolchainFailure, Unsupported
from retarget.protocols import JSON
from retarget.session import Session
from retarget.source import Exported, Source
from retarget.spec import DimRange, TensorSpec

if TYPE_CHECKING:
    from retarget.protocols import Feeds

TORCHSCRIPT: dict[str, JSON] = {"rung": "torchscript"}
"""The fast rung: what is tested is not the exporter."""


def _round_trip(source: Source, out: Path, feeds: Sequence[Feeds]) -> Exported:
    """Export, load, run, and hold every output against the module's own at ≥ 100 dB."""
    out.mkdir(exist_ok=True)
    exported = EXPORT.export(source, None, out)
    model = LOAD.load(out, source, exported)
    assert tuple(graph.value_spec(value) for value in model.graph.inputs) == exported.inputs
    assert tuple(value.name for value in model.graph.outputs) == exported.outputs
    with EXPORT.reference(source, exported) as runner, Session(model) as session:
        for feed in feeds:
            expected, actual = runner.run(feed), session.run(feed)
            assert tuple(expected) == exported.outputs
            for name, value in expected.items():
                assert value.dtype == actual[name].dtype
                assert value.shape == actual[name].shape
                assert value.std() > 0
                assert snr_db(value, actual[name]) >= 100
                declared = graph.value_spec(next(out for out in model.graph.outputs if out.name == name)).shape
                assert all(dim in (size, str(dim)) for dim, size in zip(declared, value.shape, strict=True))
    return exported


def _x(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(shape[0]).standard_normal(shape).astype("f4")


X = [{"x": _x(1, 4)}, {"x": _x(4, 4)}]


# ---- forms


@pytest.mark.parametrize("kind", ["pt", "legacy", "nested", "prefixed", "safetensors"])
def test_state_dicts(kind: str, net: Net, factory: tuple[Path, str], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    weights = net.state_dict()
    if kind == "safetensors":
        save_file(weights, path)
    elif kind == "legacy":
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": weights, "best": 0.5}, path)
    elif kind == "prefixed":
        torch.save({f"module.{name}": value for name, value in weights.items()}, path)
    else:
        torch.save(weights, path)
    assert MATCHES(path) == ("safetensors" if kind == "safetensors" else "state dict")
    rung: dict[str, JSON] = {} if kind == "pt" else TORCHSCRIPT
    exported = _round_trip(source_of(path, "x=float32[N,4]", factory=factory, options=rung), tmp_path / "out", X)
    assert exported.rung == ("dynamo" if kind == "pt" else "torchscript")
    notes = {"nested": "under the key 'state_dict'", "prefixed": "prefix 'module.' was taken off"}
    assert [note for note in exported.notes if notes.get(kind, "-") in note] or kind not in notes


def test_half_precision_weights_are_widened(net: Net, factory: tuple[Path, str], tmp_path: Path) -> None:
    torch.save(net.bfloat16().state_dict(), tmp_path / "w.pt")
    source = source_of(tmp_path / "w.pt", "x=float32[N,4]", factory=factory, options=TORCHSCRIPT)
    assert "widened from bfloat16 to float32" in " ".join(_round_trip(source, tmp_path / "out", X).notes)


def test_factory_arguments(tmp_path: Path, factory: tuple[Path, str]) -> None:
    torch.manual_seed(0)
    torch.save(Net(width=16).state_dict(), tmp_path / "w.pt")
    options: dict[str, JSON] = {"factory_args": {"width": 16}, **TORCHSCRIPT}
    _round_trip(source_of(tmp_path / "w.pt", "x=float32[N,4]", factory=factory, options=options), tmp_path / "out", X)


def test_a_pickled_module_needs_trust(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.save(net, path)
    assert MATCHES(path) == "pickled module"
    with pytest.raises(RetargetError, match=r"holds pickled .*Net.*, and loading it runs code") as caught:
        EXPORT.export(source_of(path, "x=float32[N,4]"), None, tmp_path)
    assert "--trust" in str(caught.value.hint)
    _round_trip(source_of(path, "x=float32[N,4]", trust=True, options=TORCHSCRIPT), tmp_path / "out", X)


def test_torchscript_keeps_its_control_flow(tmp_path: Path) -> None:
    class Signed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, scale: float = 2.0) -> dict[str, torch.Tensor]:
            y = self.up(x) if bool(x.sum() > 0) else self.down(x)
            return {"y": y * scale, "z": y.relu() + 1}

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Signed().eval()).save(str(tmp_path / "s.pt"))  # type: ignore[no-untyped-call]
    assert MATCHES(tmp_path / "s.pt") == "TorchScript"
    exported = _round_trip(
        source_of(tmp_path / "s.pt", "x=float32[N,4]"), tmp_path / "out", [{"x": abs(_x(3, 4))}, {"x": -abs(_x(2, 4))}]
    )
    assert exported.rung == "torchscript"
    assert exported.outputs == ("y", "z")


def test_an_exported_program_tells_its_own_inputs(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "p.pt2"
    save_program(net, path, torch.zeros(2, 4), {"x": {0: torch.export.Dim("batch")}})
    assert MATCHES(path) == "torch.export"
    exported = EXPORT.export(source_of(path), None, tmp_path)
    assert exported.inputs == (TensorSpec("x", "float32", ("dim0", 4)),)
    assert exported.rung == "dynamo"
    _round_trip(source_of(path, "image=float32[N,4]"), tmp_path / "out", [{"image": feed["x"]} for feed in X])


def test_a_program_whose_size_is_baked_in_is_found(tmp_path: Path) -> None:
    class Baked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0] * 2, 2).cumsum(0)

    path = tmp_path / "p.pt2"
    save_program(Baked(), path, torch.zeros(2, 4), None)
    with pytest.raises(RetargetError, match=r"the model fails|cannot export"):
        EXPORT.export(source_of(path, "x=float32[N,4]"), None, tmp_path)


def test_hugging_face_folder(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    folder = tmp_path / "bert"
    BertForSequenceClassification(config).bfloat16().save_pretrained(folder)
    assert MATCHES(folder) == "Hugging Face folder"
    rng = np.random.default_rng(0)
    feeds = [
        {"input_ids": rng.integers(0, 50, (n, t)), "attention_mask": rng.integers(0, 2, (n, t)) | (np.arange(t) == 0)}
        for n, t in ((1, 2), (4, 9))
    ]
    source = source_of(folder, "input_ids=int64[N,T]", "attention_mask=int64[N,T]")
    exported = _round_trip(source, tmp_path / "out", feeds)
    assert exported.outputs == ("logits",)
    assert "widened from bfloat16" in " ".join(exported.notes)

    (folder / "model.safetensors").unlink()
    with pytest.raises(RetargetError, match="weights cannot be loaded"):
        EXPORT.export(source, None, tmp_path)
    config_file = folder / "config.json"
    config_file.write_text(config_file.read_text().replace("BertForSequenceClassification", "MyBert"))
    with pytest.raises(Unsupported, match="no architecture MyBert"):
        EXPORT.export(source, None, tmp_path)


# ---- inputs and outputs


NESTED = """
import torch
from torch import nn
from dataclasses import dataclass

@dataclass
class Result:
    logits: torch.Tensor
    loss: torch.Tensor | None
    states: tuple

class Nested(nn.Module):
    def forward(self, tokens, mask=None, *, scale=None):
        x = tokens.float() if mask is None else tokens * mask
        x = x if scale is None else x * scale
        return Result(x.cumsum(1), None, (x.sin(), {"deep": x.cos()}))

def build():
    return Nested()
"""


@pytest.fixture
def nested(tmp_path: Path) -> Source:
    (tmp_path / "nested.py").write_text(NESTED)
    torch.save({"unused": torch.zeros(1)}, tmp_path / "w.pt")
    options: dict[str, JSON] = {"strict": False}
    return source_of(tmp_path / "w.pt", factory=(tmp_path / "nested.py", "build"), options=options)


def _with(source: Source, *inputs: str, outputs: tuple[str, ...] = (), **options: JSON) -> Source:
    specs = tuple(map(TensorSpec.parse, inputs))
    return Source(source.path, specs, SHAPES, outputs, source.factory, options={**source.options, **options})


def test_nested_outputs_and_inputs_by_name(nested: Source, tmp_path: Path) -> None:
    specs = ("scale=float32[N,1]", "tokens=int64[N,T]")
    feeds: list[Feeds] = [{"scale": _x(n, 1), "tokens": np.arange(n * t).reshape(n, t)} for n, t in ((1, 2), (3, 9))]
    exported = _round_trip(_with(nested, *specs), tmp_path / "out", feeds)
    assert exported.outputs == ("logits", "states_0", "states_1_deep")
    assert "unexpected in the checkpoint: unused" in exported.notes

    exported = _round_trip(_with(nested, *specs, outputs=("a", "b", "c"), rung="torchscript"), tmp_path / "o", feeds)
    assert exported.outputs == ("a", "b", "c")


def test_inputs_by_position(nested: Source, tmp_path: Path) -> None:
    source = _with(nested, "ids=int64[N,T]", "valid=float32[N,T]", rung="torchscript")
    feeds: list[Feeds] = [{"ids": np.arange(6).reshape(2, 3), "valid": _x(2, 3)}]
    exported = _round_trip(source, tmp_path / "out", feeds)
    assert any("ids is tokens, valid is mask" in note for note in exported.notes)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ((), (), "does not say its inputs .its forward takes tokens, mask, scale"),
        (("tokens=int64[N,T]", "masc=float32[N,T]"), (), "has no input 'masc'"),
        (("scale=float32[N,1]",), (), "input 'tokens' of the model is not given"),
        (tuple(f"{name}=float32[N,T]" for name in "abcd"), (), "4 inputs were given, the model takes 1 to 3"),
        (("tokens=int64[N,T]",), ("a", "b"), "2 outputs are named .a, b., the model returns 3: logits, states_0"),
        (("tokens=int64[N,T]",), ("a", "a", "b"), "two tensors have one name"),
        (("tokens=int64[N]",), (), r"the model fails on inputs of shape tokens=\[2\]"),
    ],
)
def test_inputs_and_outputs_that_do_not_fit(
    inputs: tuple[str, ...], outputs: tuple[str, ...], message: str, nested: Source, tmp_path: Path
) -> None:
    with pytest.raises(RetargetError, match=message) as caught:
        EXPORT.export(_with(nested, *inputs, outputs=outputs), None, tmp_path)
    assert caught.value.hint


def test_the_reference_names_what_does_not_fit(nested: Source) -> None:
    source = _with(nested, "tokens=int64[N,T]")
    with EXPORT.reference(source, Exported("", source.inputs, ("a", "b", "c"))) as runner:
        with pytest.raises(RetargetError, match=r"PyTorch itself fails on tokens\[3\]"):
            runner.run({"tokens": np.arange(3)})
        with pytest.raises(RetargetError, match="input 'tokens' is not fed"):
            runner.run({})


# ---- the ladder


def _factory(tmp_path: Path, body: str) -> Source:
    (tmp_path / "odd.py").write_text(
        f"import torch\nfrom torch import nn\nclass Odd(nn.Module):\n{body}\nbuild = Odd\n"
    )
    torch.save({"unused": torch.zeros(1)}, tmp_path / "w.pt")
    options: dict[str, JSON] = {"strict": False}
    return source_of(tmp_path / "w.pt", "x=float32[N,4]", factory=(tmp_path / "odd.py", "build"), options=options)


def test_a_failed_rung_is_a_note_and_the_next_is_tried(tmp_path: Path) -> None:
    body = """
    def forward(self, x):
        # A branch on data: dynamo refuses, a trace takes the side that it saw.
        return x * 2 if x.abs().sum() > 0 else x
"""
    exported = _round_trip(_factory(tmp_path, body), tmp_path / "out", X)
    assert exported.rung == "torchscript"
    assert any(note.startswith("the exporter dynamo: ") for note in exported.notes)
    assert "tracing fixed what Python computed from tensors, for this data and any other: odd.py:7" in exported.notes


def test_a_stochastic_model_is_called_that(tmp_path: Path) -> None:
    body = """
    def forward(self, x):
        return nn.functional.dropout(x, 0.5)
"""
    with pytest.raises(RetargetError, match="'output' differs between two runs on the same input"):
        EXPORT.export(_factory(tmp_path, body), None, tmp_path)


def test_a_model_whose_eager_attention_gives_something_else_is_not_called_stochastic(tmp_path: Path) -> None:
    body = """
    eager = False
    def set_attn_implementation(self, attn_implementation):
        self.eager = True
    def forward(self, x):
        y = x * 2 if self.eager else x
        return y.reshape(int(x.shape[0]), 4) + torch.linalg.eigvals(x.T @ x).real
"""
    with pytest.raises(ToolchainFailure, match="PyTorch cannot export the model"):
        EXPORT.export(_factory(tmp_path, body), None, tmp_path)


def test_what_is_wrong_at_the_sizes_of_the_trace_too_is_laid_to_no_size(tmp_path: Path) -> None:
    body = """
    def forward(self, x):
        return x * 2 if torch.onnx.is_in_onnx_export() else x
"""
    source = _with(_factory(tmp_path, body), "x=float32[N,4]", rung="torchscript")
    with pytest.raises(ToolchainFailure, match=r"'output' is wrong at N=[0-9]+: as at those of the trace"):
        EXPORT.export(source, None, tmp_path)


def test_sizes_that_the_model_cannot_have_are_not_those_of_the_trace(tmp_path: Path) -> None:
    """As a U-Net: of two dimensions that are 8 at opt, one is traced at another size, and 7 cannot be halved."""
    body = """
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Conv2d(1, 2, 3, 2, 1), nn.ConvTranspose2d(2, 1, 4, 2, 1)
    def forward(self, x):
        return torch.cat([x, self.up(self.down(x))], 1)
    def load_state_dict(self, state_dict, strict=True):
        return super().load_state_dict({}, strict=False)
"""
    source = _with(_factory(tmp_path, body), "x=float32[1,1,H,W]", rung="torchscript")
    source = replace(source, shapes={"H": DimRange(4, 8, 64), "W": DimRange(4, 8, 64)})
    exported = _round_trip(source, tmp_path / "out", [{"x": _x(1, 1, 12, 8)}, {"x": _x(1, 1, 64, 4)}])
    assert "it was traced at H=8, W=24: the model fails at H=8, W=9" in exported.notes


def test_a_mask_in_the_trace_leaves_something_to_attend_to(tmp_path: Path) -> None:
    body = """
    def forward(self, x, attention_mask):
        assert (attention_mask[:, 0] == 1).all() and (attention_mask.diff(dim=1) <= 0).all(), "a hole in the mask"
        return x * attention_mask
"""
    specs = ("x=float32[N,8]", "attention_mask=int64[N,8]")
    exported = EXPORT.export(_with(_factory(tmp_path, body), *specs, rung="torchscript"), None, tmp_path)
    assert exported.rung == "torchscript"


def test_a_model_that_keeps_state_is_told_from_one_that_repeats(tmp_path: Path) -> None:
    body = """
    def __init__(self):
        super().__init__()
        self.register_buffer("unused", torch.zeros(1))
    def forward(self, x):
        self.unused += 1
        return x * self.unused
"""
    source = _factory(tmp_path, body)
    with pytest.raises(RetargetError, match="keeps a state from one run to the next"):
        EXPORT.export(source, None, tmp_path)


def test_half_precision_inputs_of_a_widened_model_have_a_hint(
    net: Net, factory: tuple[Path, str], tmp_path: Path
) -> None:
    torch.save(net.half().state_dict(), tmp_path / "w.pt")
    with pytest.raises(RetargetError, match="must have the same dtype") as caught:
        EXPORT.export(source_of(tmp_path / "w.pt", "x=float16[N,4]", factory=factory), None, tmp_path)
    assert "declare x as float32 too" in str(caught.value.hint)


def test_torchscript_s_own_words_are_shown(tmp_path: Path) -> None:
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[1] != 7:
                raise ValueError("only seven will do")
            return x * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Picky()).save(str(tmp_path / "s.pt"))  # type: ignore[no-untyped-call]
    with pytest.raises(RetargetError, match=r"x=\[\d+, 4\]: .*only seven will do"):
        EXPORT.export(source_of(tmp_path / "s.pt", "x=float32[N,4]"), None, tmp_path)


def test_a_dimension_that_becomes_static_is_an_error_on_every_rung(tmp_path: Path) -> None:
    body = """
    def forward(self, x):
        return x * float(x.shape[0]) + torch.ones(int(x.shape[0]), 1).cumsum(0)
"""
    source = _factory(tmp_path, body.replace("float(x.shape[0])", "float(len(x.tolist()))"))
    with pytest.raises(ToolchainFailure, match=r"dynamo: .*\n  torchscript: .*N=") as caught:
        EXPORT.export(source, None, tmp_path)
    assert "became static" in str(caught.value.hint)


def test_a_model_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="returns no tensors"):
        EXPORT.export(_factory(tmp_path, "    def forward(self, x):\n        return 3\n"), None, tmp_path)
    with pytest.raises(Unsupported, match="output 'output' is a object, not a tensor"):
        EXPORT.export(_factory(tmp_path, "    def forward(self, x):\n        return object()\n"), None, tmp_path)


# ---- factories and state dicts that do not fit


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("bild", "has no function 'bild'"),
        ("broken", r"failed: ValueError: no such backbone \(net.py:15\)"),
        ("number", "returned int, not a torch.nn.Module"),
    ],
)
def test_factories_that_fail(function: str, message: str, net: Net, factory: tuple[Path, str], tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pt")
    with pytest.raises(RetargetError, match=message) as caught:
        EXPORT.export(source_of(tmp_path / "w.pt", "x=float32[N,4]", factory=(factory[0], function)), None, tmp_path)
    assert caught.value.hint


def test_factory_files_that_fail(net: Net, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pt")
    file = tmp_path / "bad.py"
    source = source_of(tmp_path / "w.pt", "x=float32[N,4]", factory=(file, "build"))
    for content, message in (
        (None, "no such file"),
        ("def build(:", r"SyntaxError: .* \(bad.py:1\)"),
        ("1/0", "division by zero"),
    ):
        if content is not None:
            file.write_text(content)
        with pytest.raises(RetargetError, match=message):
            EXPORT.export(source, None, tmp_path)
    with pytest.raises(RetargetError, match="not the module that they belong to") as caught:
        EXPORT.export(source_of(tmp_path / "w.pt", "x=float32[N,4]"), None, tmp_path)
    assert "--factory" in str(caught.value.hint)


def test_keys_and_shapes_that_differ_are_listed(net: Net, factory: tuple[Path, str], tmp_path: Path) -> None:
    weights: dict[str, torch.Tensor] = dict(net.state_dict())
    weights["extra"] = weights.pop("last.bias")
    weights["first.weight"] = torch.zeros(8, 5)
    torch.save(weights, tmp_path / "w.pt")
    source = source_of(tmp_path / "w.pt", "x=float32[N,4]", factory=factory)
    with pytest.raises(RetargetError) as caught:
        EXPORT.export(source, None, tmp_path)
    for part in ("missing: last.bias", "unexpected: extra", "first.weight [8, 5] for [8, 4]"):
        assert part in caught.value.message


def test_a_checkpoint_without_a_state_dict(factory: tuple[Path, str], tmp_path: Path) -> None:
    torch.save({"epoch": 3, "history": [1, 2]}, tmp_path / "w.pt")
    with pytest.raises(RetargetError, match="holds no state dict but epoch, history"):
        EXPORT.export(source_of(tmp_path / "w.pt", "x=float32[N,4]", factory=factory), None, tmp_path)


# ---- families


def _family_source(name: str, family: Family, tmp_path: Path, **options: JSON) -> Source:
    torch.save(family.build().state_dict(), tmp_path / "w.pt")
    (tmp_path / "family.py").write_text(
        f"from zoo import FAMILIES\ndef build():\n    return FAMILIES['{name}'].build()\n"
    )
    factory = (tmp_path / "family.py", "build")
    return Source(
        tmp_path / "w.pt", family.specs, family.shapes, family.outputs, factory, options=options_of(**options)
    )


FAST = ("vit", "lstm")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.stress) for name in FAMILIES]
)
def test_families(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    ends: list[dict[str, int]] = [
        {symbol: extent.min for symbol, extent in family.shapes.items()},
        {symbol: extent.max for symbol, extent in family.shapes.items()},
    ]
    source = _family_source(name, family, tmp_path)
    exported = _round_trip(source, tmp_path / "out", [family.feeds(sizes, seed=1) for sizes in ends])
    assert exported.rung == "dynamo"
    assert not exported.notes

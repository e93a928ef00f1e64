"""Checkpoints that are hostile, cut short or damaged: nothing in them runs, and each is refused in a line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from damage import damage
from small_net import EXPORT, MATCHES, Net, save_program, source_of

from retarget.convert.pytorch.archive import scan
from retarget.convert.pytorch.checkpoint import load
from retarget.errors import RetargetError
from retarget.recognise import recognise
from retarget.source import Source


class Payload:
    """Creates ``marker`` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def _replace(path: Path, changes: Mapping[str, bytes]) -> None:
    """Write members of the archive anew, found by the end of their name, or add them."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(members)).split("/")[0]
    for end, content in changes.items():
        members[next((name for name in members if name.endswith(end)), f"{root}/{end}")] = content
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "the payload ran"


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_malicious_checkpoint_is_not_executed(
    wrapped: bool, archive: bool, marker: Path, factory: tuple[Path, str], tmp_path: Path
) -> None:
    path = tmp_path / "evil.pt"
    content = {"state_dict": {"w": torch.zeros(1)}, "x": Payload(marker)} if wrapped else Payload(marker)
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    assert MATCHES(path)
    with pytest.raises(RetargetError, match=r"holds pickled .*mkdir"):
        EXPORT.export(source_of(path, "x=float32[N,4]", factory=factory), None, tmp_path)


def _pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _poison(model: bytes, marker: Path, where: str) -> bytes:
    """``model.json`` with text that PyTorch would evaluate."""
    code = f"__import__('os').mkdir({str(marker)!r})"
    document = json.loads(model)
    graph_json = document["graph_module"]["graph"]
    if where == "expression":
        graph_json["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": code, "hint": {"as_int": 2}}}
    elif where == "range":
        document["range_constraints"] = {code: {"min_val": 0, "max_val": None}}
    elif where == "guard":
        document["guards_code"] = [code]
    elif where == "name":
        graph_json["nodes"][0]["name"] = f"x={code}"
    elif where == "target":
        graph_json["nodes"][0]["target"] = "torch.os.system"
    return json.dumps(document).encode()


def _poison_program(path: Path, net: Net, marker: Path, where: str) -> None:
    """A program whose archive creates ``marker`` when it is read, or would."""
    save_program(net, path, torch.zeros(2, 4), {"x": {0: torch.export.Dim("batch")}})
    scan(path)
    with zipfile.ZipFile(path) as archive:
        read = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    config = json.loads(read["data/weights/model_weights_config.json"])
    weight = next(iter(config["config"].values()))
    weight["use_pickle"] = True
    changes = {
        "sample": {"sample_inputs/model.pt": _pickled(Payload(marker))},
        "weight": {
            "weights/model_weights_config.json": json.dumps(config).encode(),
            f"weights/{weight['path_name']}": _pickled(Payload(marker)),
        },
        "new member": {"data/constants/model.pt": _pickled(Payload(marker))},
        "object": {"data/constants/custom_obj_0": pickle.dumps(Payload(marker))},
    }.get(where) or {"models/model.json": _poison(read["models/model.json"], marker, where)}
    _replace(path, changes)


@pytest.mark.parametrize(
    "where", ["sample", "weight", "new member", "object", "expression", "range", "guard", "name", "target"]
)
def test_a_malicious_program_is_not_executed(where: str, marker: Path, net: Net, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt2"
    _poison_program(path, net, marker, where)
    reason = r"its member .*(pickled|script object|evaluated|not a name|no operator)"
    with pytest.raises(RetargetError, match=reason) as caught:
        EXPORT.export(source_of(path, "x=float32[N,4]"), None, tmp_path)
    assert "--trust" in str(caught.value.hint)


@pytest.mark.parametrize("where", ["sample", "weight", "new member", "expression", "guard"])
def test_the_scan_is_needed(where: str, net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the scan PyTorch runs what the file says."""
    path, ran = tmp_path / "evil.pt2", tmp_path / "ran"
    _poison_program(path, net, ran, where)
    monkeypatch.setattr("logging.raiseExceptions", False)  # PyTorch's own report of its fallback is misformatted
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        torch.export.load(path).module()(torch.zeros(2, 4))
    assert ran.is_dir()


def _save(net: Net, form: str, folder: Path) -> str:
    """Write ``net`` in one of its forms; the name of the file."""
    from safetensors.torch import save_file

    name = {"safetensors": "w.safetensors", "pt2": "p.pt2"}.get(form, "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        match form:
            case "safetensors":
                save_file(net.state_dict(), folder / name)
            case "script":
                traced = torch.jit.trace(net, torch.zeros(2, 4))  # type: ignore[no-untyped-call]
                traced.save(str(folder / name))
            case "pt2":
                torch.export.save(torch.export.export(net, (torch.zeros(2, 4),)), folder / name)
            case _:
                torch.save(net.state_dict(), folder / name, _use_new_zipfile_serialization=form == "pt")
    return name


@pytest.mark.parametrize("form", ["pt", "safetensors", "script", "pt2"])
def test_damaged_checkpoints(form: str, net: Net, factory: tuple[Path, str], tmp_path: Path) -> None:
    path = tmp_path / _save(net, form, tmp_path)
    source = source_of(path, "x=float32[N,4]", factory=factory if form in ("pt", "safetensors") else None)
    whole = path.read_bytes()

    for size in (0, 3, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        _assert_refused(source, tmp_path)
    # A zip has a check sum for each member; of safetensors only the header can be seen to be damaged.
    first = (
        whole.index(b"{") if form == "safetensors" else whole.index(net.first.weight.detach().numpy().tobytes()[:64])
    )
    for offset in (first, first + 1, first + 7):
        flipped = bytearray(whole)
        flipped[offset] ^= 0x40
        path.write_bytes(flipped)
        _assert_refused(source, tmp_path)


@pytest.mark.parametrize("form", ["pt", "legacy", "safetensors", "script", "pt2"])
def test_damage_anywhere_never_ends_in_a_traceback(
    form: str, net: Net, factory: tuple[Path, str], tmp_path: Path
) -> None:
    path = tmp_path / _save(net, form, tmp_path)
    source = source_of(path, "x=float32[N,4]", factory=None if form in ("script", "pt2") else factory)
    whole = path.read_bytes()
    rng = random.Random(form)
    refused = 0
    for _ in range(60):
        path.write_bytes(damage(whole, rng.choice(("cut", "flip", "drop", "repeat")), rng))
        assert recognise(path)[0] == "pytorch"
        refused += _is_refused(source)
    assert refused > 45


def _is_refused(source: Source) -> bool:
    try:
        load(source)
    except RetargetError as error:
        return bool(error.hint)
    return False


def _assert_refused(source: Source, tmp_path: Path) -> None:
    assert recognise(source.path)[0] == "pytorch"
    with pytest.raises(RetargetError) as caught:
        EXPORT.export(source, None, tmp_path)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match="no such file or folder"):
        EXPORT.export(source_of(tmp_path / "none.pt"), None, tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "notes.txt", tmp_path / "folder"):
        assert MATCHES(path) is None
        with pytest.raises(RetargetError, match="not a PyTorch checkpoint"):
            EXPORT.export(source_of(path), None, tmp_path)


def test_a_length_in_garbage_is_no_lack_of_memory(tmp_path: Path) -> None:
    """Bytes that happen to say that an array of 2^62 bytes follows."""
    path = tmp_path / "w.pt"
    path.write_bytes(b"\x80\x05\x96" + (1 << 62).to_bytes(8, "little") + b"abc")
    with pytest.raises(RetargetError, match="not a readable PyTorch checkpoint"):
        load(source_of(path, "x=float32[N,4]"))

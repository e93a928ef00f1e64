"""A frontend in an interpreter of its own: the same results, errors in words, and no process or file left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import msgspec
import numpy as np
import psutil
import pytest
import torch
from other_python import ROOT, interpreter
from small_net import EXPORT, LOAD, NET, Net, source_of
from test_dependencies import convert_key
from test_worker import Bench, gone, wait_for

from retarget import dependencies
from retarget.compare import snr_db
from retarget.crossing import pack, unpack
from retarget.errors import MissingToolchain, RetargetError, ToolchainFailure
from retarget.remote import RemoteFrontend, fingerprint
from retarget.session import Session
from retarget.source import Exported, Source
from retarget.spec import DimRange, TensorSpec
from retarget.wire import Done, Failed
from retarget.worker import Limits, Worker

if TYPE_CHECKING:
    from retarget.protocols import Array

HERE = Path(sys.executable)
X = np.random.default_rng(0).standard_normal((3, 4)).astype("f4")

FACTORIES = """
import ctypes, os, signal, sys, time
from pathlib import Path

def leave(): os._exit(7)
def segfault(): ctypes.string_at(0)
def killed(): os.kill(os.getpid(), signal.SIGKILL)
def sys_exit(): sys.exit("nothing to see")
def scribble():
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"not json\\n")
        except OSError:
            pass
    time.sleep(600)
def close_everything():
    os.closerange(3, 64)
    time.sleep(600)
def hang():
    Path(__file__).with_name("pid").write_text(str(os.getpid()))
    time.sleep(600)
def eat():
    Path(__file__).with_name("pid").write_text(str(os.getpid()))
    kept = []
    while True:
        kept.append(bytearray(b"1" * (10 << 20)))
"""


@pytest.fixture(autouse=True)
def _nothing_said() -> None:
    dependencies.take()


@pytest.fixture(scope="module")
def frontend() -> Iterator[RemoteFrontend]:
    """One process for the tests that leave it as it is: each start imports PyTorch."""
    with RemoteFrontend(HERE, "pytorch") as frontend:
        yield frontend


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the arrays of a process that is started now cross."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    return tmp_path / "w.pt"


def from_factory(weights: Path, function: str, code: str = FACTORIES) -> Source:
    (weights.parent / "model.py").write_text(code)
    options = {"rung": "torchscript"}  # the fast one: what is tested is not the exporter
    return source_of(weights, "x=float32[N,4]", factory=(weights.parent / "model.py", function), options=options)


# ---- what goes right


def test_export_and_reference_are_those_of_this_interpreter(
    frontend: RemoteFrontend, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "widths.py").write_text("WIDTH = 8\n")
    source = from_factory(weights, "build", "from widths import WIDTH\n" + NET)
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    exported = frontend.export(source, {"x": X}, tmp_path / "there")
    with frontend.reference(source, exported) as runner:
        outputs = [runner.run({"x": X[:n]})["output"] for n in (1, 3)]
        assert runner.settings.startswith(f"PyTorch {torch.__version__}, CPU, 2 threads, Python 3.")
    assert exported == EXPORT.export(source, {"x": X}, tmp_path / "here")
    with EXPORT.reference(source, exported) as runner_here:
        for rows, output in zip((1, 3), outputs, strict=True):
            np.testing.assert_array_equal(output, runner_here.run({"x": X[:rows]})["output"])
    with Session(LOAD.load(tmp_path / "there", source, exported)) as session:
        assert snr_db(outputs[1], session.run({"x": X})["output"]) >= 100


def test_the_manifest_learns_of_code_and_versions(frontend: RemoteFrontend, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "sizes.py").write_text("WIDTH = 8\n")
    source = from_factory(weights, "build", "from sizes import WIDTH\n" + NET)
    frontend.export(source, None, tmp_path)
    files, versions = dependencies.take()
    assert set(files) == {tmp_path / "model.py", tmp_path / "sizes.py"}
    assert versions["pytorch/torch"] == torch.__version__
    assert versions["pytorch/python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"pytorch/numpy", "pytorch/onnx"} <= set(versions)


def test_the_current_folder_is_no_place_to_import_from(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "torch.py").write_text("raise SystemExit('this is not PyTorch')\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with RemoteFrontend(HERE, "pytorch") as frontend:
        assert frontend.export(from_factory(weights, "build", NET), None, tmp_path).outputs == ("output",)


def test_modules_of_retargets_folder_are_not_top_level(frontend: RemoteFrontend, weights: Path, tmp_path: Path) -> None:
    code = "try:\n    import graph\nexcept ImportError:\n    pass\nelse:\n    raise ValueError(graph.__file__)\n" + NET
    frontend.export(from_factory(weights, "build", code), None, tmp_path)


def test_nothing_is_left_behind(weights: Path, tmp_path: Path, temporary: Path) -> None:
    descriptors = len(list(Path("/dev/fd").iterdir()))
    children = psutil.Process().children()
    with RemoteFrontend(HERE, "pytorch") as frontend:
        exported = frontend.export(from_factory(weights, "build", NET), None, tmp_path)
        with frontend.reference(from_factory(weights, "build", NET), exported):
            (started,) = set(psutil.Process().children()) - set(children)
        assert list(temporary.glob("remote-*"))
    assert gone(started.pid)
    assert not list(temporary.glob("remote-*"))
    assert len(list(Path("/dev/fd").iterdir())) == descriptors


@pytest.mark.parametrize(
    "array",
    [
        np.array(3.5, np.float32),
        np.zeros((0, 4), np.int64),
        np.asfortranarray(X),
        np.array([True, False]),
        np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
        np.array(["a", "bc"]),
    ],
    ids=lambda array: f"{array.dtype.name}{list(array.shape)}",
)
def test_arrays_cross_as_they_are(array: Array, tmp_path: Path) -> None:
    packed = pack({"x": array, "none": None}, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 1
    back = unpack(packed)
    assert isinstance(back, dict)
    assert back["x"].dtype == array.dtype
    np.testing.assert_array_equal(back["x"], array)
    assert not list(tmp_path.glob("*.npy"))


def test_every_field_of_a_source_crosses(tmp_path: Path) -> None:
    source = Source(
        tmp_path / "m",
        (TensorSpec("x", "float32", ("N", 3)),),
        {"N": DimRange(1, 2, 3)},
        ("y",),
        (tmp_path / "f.py", "build"),
        trust=True,
        signature="serving",
        parts={"weights": tmp_path / "w"},
        options={"is": "a tag of ours", "nested": {"list": [1, 2.5, None]}},
    )
    exported = Exported("rung", source.inputs, ("y",), ("a note",), "float16")
    assert unpack(pack((source, exported), tmp_path)) == (source, exported)


def test_objects_do_not_cross(tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match="array of Python objects"):
        pack(np.array([object()]), tmp_path)


# ---- failures


def test_an_error_of_the_frontend_is_the_same_error(frontend: RemoteFrontend, weights: Path, tmp_path: Path) -> None:
    source = from_factory(weights, "bild", NET)
    with pytest.raises(RetargetError) as there:
        frontend.export(source, None, tmp_path)
    with pytest.raises(RetargetError) as here:
        EXPORT.export(source, None, tmp_path)
    assert type(there.value) is type(here.value)
    assert (there.value.message, there.value.hint) == (here.value.message, here.value.hint)


def test_the_process_goes_on_after_an_error(frontend: RemoteFrontend, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(RetargetError):
        frontend.export(from_factory(weights, "bild", NET), None, tmp_path)
    with pytest.raises(ToolchainFailure, match="SystemExit: nothing to see"):
        frontend.export(from_factory(weights, "sys_exit"), None, tmp_path)
    exported = frontend.export(from_factory(weights, "build", NET), None, tmp_path)
    with (
        pytest.raises(RetargetError, match="is not fed"),
        frontend.reference(from_factory(weights, "build", NET), exported) as runner,
    ):
        runner.run({})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("leave", "exited with status 7 during 'export'"),
        ("segfault", r"was killed by SIGSEGV \(segmentation fault\) during 'export'"),
        ("killed", r"was killed by SIGKILL \(probably the kernel's out-of-memory killer\) during 'export'"),
        ("scribble", "wrote over its pipe during 'export'"),
        ("close_everything", "closed its pipe during 'export'"),
    ],
)
def test_a_death_in_words(function: str, message: str, weights: Path, tmp_path: Path, temporary: Path) -> None:
    began = time.monotonic()
    with RemoteFrontend(HERE, "pytorch") as frontend, pytest.raises(ToolchainFailure, match=message) as caught:
        frontend.export(from_factory(weights, function), None, tmp_path)
    assert caught.value.hint
    assert not list(temporary.glob("remote-*"))
    assert time.monotonic() - began < 60


def test_a_missing_framework_has_the_command_of_that_interpreter(weights: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    python = bare / "bin" / "python"
    assert set(fingerprint(python)) == {"python"}
    with RemoteFrontend(python, "pytorch") as frontend:
        for example in (None, {"x": X}):
            with pytest.raises(MissingToolchain, match=f"pytorch needs torch, which {python} does not have") as caught:
                frontend.export(from_factory(weights, "build", NET), example, tmp_path)
            assert caught.value.hint == f"{python} -m pip install torch safetensors onnx numpy"


def test_a_full_disk_is_said_as_one(weights: Path, tmp_path: Path) -> None:
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))\n"
    source = from_factory(weights, "build", limit + NET)
    with RemoteFrontend(HERE, "pytorch") as frontend:
        runner = frontend.reference(source, Exported("", source.inputs, ("output",)))
        with pytest.raises(OSError, match="File too large") as caught:
            runner.run({"x": X})
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("frontend", ["onnx", "caffe"])
def test_what_needs_no_framework_runs_here_only(frontend: str) -> None:
    with pytest.raises(RetargetError, match="needs no framework") as caught:
        RemoteFrontend(HERE, frontend)
    assert caught.value.hint == f"leave {frontend} out of `toolchains`"


def test_a_module_that_the_users_code_misses_is_not_the_frameworks(
    frontend: RemoteFrontend, weights: Path, tmp_path: Path
) -> None:
    source = from_factory(weights, "build", "import a_module_that_nobody_has\n")
    with pytest.raises(ToolchainFailure, match="nobody_has"):
        frontend.export(source, None, tmp_path)


# ---- inside a worker


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    (tmp_path / "step").mkdir()
    return Bench(tmp_path / "step")


def run(bench: Bench, source: Source, python: Path, limits: Limits) -> Done | Failed:
    with Worker("pytorch", threads=1, log=bench.log) as worker:
        return run_in(worker, bench, source, python, limits)


def run_in(worker: Worker, bench: Bench, source: Source, python: Path, limits: Limits) -> Done | Failed:
    assert source.factory is not None
    files = {"weights": str(source.path), "factory": str(source.factory[0])}
    request = bench.request("toolchains.frontends:export", files, factory=source.factory[1])
    return bench.run(worker, msgspec.structs.replace(request, python=str(python)), limits).result


def test_a_step_says_what_its_frontend_used(bench: Bench, weights: Path) -> None:
    done = run(bench, from_factory(weights, "build", NET), HERE, Limits())
    assert isinstance(done, Done), bench.log.read_text()
    assert str(weights.parent / "model.py") in done.code
    assert done.versions["pytorch/torch"] == torch.__version__
    assert (bench.out / "model.onnx").is_file()
    assert not list(bench.temporary.glob("remote-*"))


def test_the_memory_limit_of_a_step_holds_for_its_frontend(bench: Bench, weights: Path) -> None:
    failed = run(bench, from_factory(weights, "eat"), HERE, Limits(memory_bytes=1 << 30))
    assert isinstance(failed, Failed)
    assert "of memory, over the limit of 1.1 GB" in failed.message
    assert gone(int((weights.parent / "pid").read_text()))


def test_a_killed_worker_takes_its_frontend_along(bench: Bench, weights: Path) -> None:
    pid = weights.parent / "pid"
    with Worker("pytorch", threads=1, log=bench.log) as worker, ThreadPoolExecutor(1) as pool:
        step = pool.submit(run_in, worker, bench, from_factory(weights, "hang"), HERE, Limits())
        wait_for(lambda: pid.exists() and pid.read_text() != "")
        worker.kill()
        assert isinstance(step.result(), Failed)
    assert gone(int(pid.read_text()))


def test_a_neighbour_of_the_factory_is_in_the_next_plans_key(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "widths.py").write_text("WIDTH = 8\n")
    from_factory(weights, "build", "from widths import WIDTH\n" + NET)
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: net\ntargets: [onnxruntime]\n"
        f"toolchains: {{pytorch: {{python: {HERE}}}}}\n"
        "model: {path: w.pt, factory: 'model.py:build', inputs: {x: 'float32[N,4]'}, options: {rung: torchscript}}\n"
    )
    first = convert_key(tmp_path, build=True)
    assert convert_key(tmp_path, build=False) == first
    (tmp_path / "widths.py").write_text("WIDTH = 8  # as before\n")
    assert convert_key(tmp_path, build=False) != first


def test_the_traceback_is_in_the_steps_log(bench: Bench, weights: Path) -> None:
    failed = run(bench, from_factory(weights, "build", NET.replace("nn.Linear(4", "nn.Lineal(4")), HERE, Limits())
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.bug) == ("ToolchainFailure", False)
    assert "has no attribute 'Lineal'" in failed.message
    assert "Traceback" in bench.log.read_text()


# ---- what is installed there


def test_the_fingerprint_of_an_interpreter() -> None:
    found = fingerprint(HERE)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == torch.__version__
    assert found["ml-dtypes"]
    assert not any(str(Path(sys.prefix)) in text for pair in found.items() for text in pair)


def test_an_interpreter_beside_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('hello {')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert fingerprint(HERE)["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        ("missing", "no such file", "give the path of an interpreter"),
        ("folder", "a folder", "give the path"),
        ("environment", "a folder", "bin/python"),
        ("text", "not an executable file", "give the path"),
        ("program", "not a Python interpreter", "give the path"),
        ("silent", "not a Python interpreter", "give the path"),
        ("old", r"is Python 3\.7\.16, and a framework runs in 3\.8 or newer", "newer Python"),
        ("ancient", r"is Python 2\.7\.18, and", "newer Python"),
    ],
)
def test_what_is_no_interpreter(kind: str, message: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "python"
    scripts = {
        "text": "hello",
        "program": "#!/bin/sh\necho hello; exit 1",
        "silent": "#!/bin/sh",
        "old": """#!/bin/sh\necho '{"python": "3.7.16"}'""",
        "ancient": """#!/bin/sh\necho '{"python": "2.7.18"}'""",
    }
    if kind in scripts:
        path.write_text(scripts[kind])
        path.chmod(0o644 if kind == "text" else 0o755)
    elif kind in ("folder", "environment"):
        (path / "bin").mkdir(parents=True)
    if kind == "environment":
        (path / "bin" / "python").symlink_to(HERE)
    with pytest.raises(RetargetError, match=message) as caught:
        fingerprint(path)
    assert caught.value.message.startswith(str(path))
    assert hint in str(caught.value.hint)


@pytest.mark.skipif(not (Path.home() / ".pyenv/versions").is_dir(), reason="pyenv's old interpreters are not here")
@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7"])
def test_a_real_old_interpreter_says_how_old(version: str) -> None:
    pythons = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    if not pythons:
        pytest.skip(f"no Python {version} here")
    with pytest.raises(MissingToolchain, match=rf"is Python {version}\."):
        fingerprint(pythons[0])


# ---- old frameworks


@pytest.mark.stress
@pytest.mark.parametrize("form", ["zip", "legacy", "script", "safetensors"])
def test_old_pytorch_converts(form: str, weights: Path, tmp_path: Path) -> None:
    python = interpreter("pytorch")
    source = _written_by(python, form, weights)
    with RemoteFrontend(python, "pytorch") as frontend:
        exported = frontend.export(source, None, tmp_path)
        assert exported.rung == "torchscript"
        left_out = [note for note in exported.notes if "dynamo exporter was left out: PyTorch 1.13.1" in note]
        assert bool(left_out) == (form != "script")
        with (
            frontend.reference(source, exported) as runner,
            Session(LOAD.load(tmp_path, source, exported)) as session,
        ):
            assert runner.settings.startswith("PyTorch 1.13.1")
            assert ", CPU, 2 threads, Python 3." in runner.settings
            for rows in (1, 3):
                feeds = {"x": X[:rows]}
                expected = runner.run(feeds)["output"]
                assert expected.std() > 0
                assert snr_db(expected, session.run(feeds)["output"]) >= 100


ATTENTION = """
import torch
from torch import nn

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.recurrent = nn.LSTM(32, 16, batch_first=True, bidirectional=True)

    def forward(self, ids, mask=None):
        result, (hidden, cell) = self.recurrent(self.layers(self.embedding(ids)))
        return {"result": result, "states": (hidden, cell)}

build = Encoder
"""


@pytest.mark.stress
def test_old_pytorch_exports_attention_with_two_symbols(weights: Path, tmp_path: Path) -> None:
    python = interpreter("pytorch")
    written = _written_by(python, "zip", weights, ATTENTION)
    source = source_of(written.path, "ids=int64[N,T]", factory=written.factory)
    rng = np.random.default_rng(0)
    with RemoteFrontend(python, "pytorch") as frontend:
        exported = frontend.export(source, None, tmp_path)
        assert exported.outputs == ("result", "states_0", "states_1")
        with (
            frontend.reference(source, exported) as runner,
            Session(LOAD.load(tmp_path, source, exported)) as session,
        ):
            for rows, length in ((1, 2), (4, 9)):
                feeds = {"ids": rng.integers(0, 50, (rows, length))}
                expected, actual = runner.run(feeds), session.run(feeds)
                assert all(snr_db(expected[name], actual[name]) >= 100 for name in exported.outputs)


@pytest.mark.stress
@pytest.mark.parametrize("form", ["evil zip", "evil legacy", "evil tar", "evil script"])
def test_old_pytorch_runs_nothing_from_a_checkpoint(form: str, weights: Path, tmp_path: Path) -> None:
    python = interpreter("pytorch")
    source = _written_by(python, form, weights)
    with (
        RemoteFrontend(python, "pytorch") as frontend,
        pytest.raises(RetargetError, match=r"mkdir|cannot read safely") as caught,
    ):
        frontend.export(source, None, tmp_path)
    assert "--trust" in str(caught.value.hint)
    assert not (weights.parent / "executed").exists()


WRITE = """
import os, pickle, sys, tarfile, zipfile
import torch
sys.path.insert(0, os.path.dirname(os.path.abspath("model.py")))
import model
form, path = sys.argv[1:]
torch.manual_seed(0)
net = model.build().eval()
class Payload:
    def __reduce__(self):
        return os.mkdir, (os.path.abspath("executed"),)
content = {"state_dict": net.state_dict(), "x": Payload()} if form.startswith("evil") else net.state_dict()
if form == "script":
    torch.jit.script(net).save(path)
elif form == "safetensors":
    from safetensors.torch import save_file
    save_file(content, path)
else:
    torch.save(content, path, _use_new_zipfile_serialization=form.endswith(("zip", "script")))
if form == "evil tar":
    with open("pickle", "wb") as file:
        pickle.dump(Payload(), file)
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.add("pickle", name)
if form == "evil script":
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("code/deep/constants.pkl", pickle.dumps(Payload()))
"""


def _written_by(python: Path, form: str, weights: Path, code: str = NET) -> Source:
    """A checkpoint of a module as that interpreter's PyTorch writes it; evil ones make the folder ``executed``."""
    folder = weights.parent
    name = {"safetensors": "old.safetensors"}.get(form, "old.pt")
    (folder / "model.py").write_text(code)
    subprocess.run([python, "-c", WRITE, form, folder / name], check=True, cwd=folder, env={**os.environ})
    factory = None if form == "script" else (folder / "model.py", "build")
    return source_of(folder / name, "x=float32[N,4]", factory=factory)


def test_the_environments_are_beside_this_one() -> None:
    assert ROOT.parent == Path(sys.prefix).parent

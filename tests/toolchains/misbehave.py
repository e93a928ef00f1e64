"""Step functions that do everything that a toolchain can do wrong, and a few that do it right."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from retarget.errors import Unsupported
from retarget.facts import CalibrateFacts, EvaluateFacts, Fact
from retarget.progress import progress
from retarget.protocols import StepRequest

MB = 1 << 20

_kept: list[bytearray] = []


def _facts(samples: int = 1) -> CalibrateFacts:
    return CalibrateFacts(origin="samples", samples=samples, tensors=2)


def write(request: StepRequest) -> Fact:
    """Write what the inputs and options say, so that a test can see what arrived."""
    parts = [str(request.options.get("text", ""))]
    parts += [f"{role}={(path / 'text').read_text()}" for role, path in sorted(request.inputs.items())]
    parts += [f"{role}:{path.read_text()}" for role, path in sorted(request.files.items())]
    (request.out / "text").write_text("|".join(parts))
    (request.out / "nested").mkdir()
    (request.out / "nested" / "pid").write_text(str(os.getpid()))
    return _facts()


def generate_code(request: StepRequest) -> Fact:
    """Execute a file that it wrote itself, as TensorFlow's autograph does."""
    file = Path(tempfile.gettempdir()) / "generated.py"
    file.write_text("VALUE = 1\n")
    exec(compile(file.read_text(), str(file), "exec"))
    return _facts()


def slow(request: StepRequest) -> Fact:
    """Mark that it is running, then take ``seconds``."""
    (request.out / "text").write_text("half")
    for done in range(10):
        progress(done, 10, f"part {done}")
        time.sleep(float(str(request.options["seconds"])) / 10)
    (request.out / "text").write_text("whole")
    return _facts()


def hang(request: StepRequest) -> Fact:
    """Start a program, write both process ids where the test looks, and never end; SIGTERM does not help."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "1000"])
    with Path(str(request.options["pids"])).open("a") as file:
        file.write(f"{os.getpid()}\n{child.pid}\n")
    time.sleep(1000)
    return _facts()


def hang_in_native_code(request: StepRequest) -> Fact:
    """Never end, and let no other thread of the worker run."""
    print("holding the interpreter", flush=True)
    ctypes.PyDLL(None).sleep(1000)
    return _facts()


def segfault(request: StepRequest) -> Fact:
    print("about to read address 0", flush=True)
    ctypes.string_at(0)
    return _facts()


def abort(request: StepRequest) -> Fact:
    os.abort()


def killed(request: StepRequest) -> Fact:
    os.kill(os.getpid(), signal.SIGKILL)
    return _facts()


def leave(request: StepRequest) -> Fact:
    os._exit(7)


def sys_exit(request: StepRequest) -> Fact:
    sys.exit("nothing to see")


def eat(request: StepRequest) -> Fact:
    """Take memory in pieces until someone minds, up to ``megabytes``."""
    for _ in range(int(str(request.options["megabytes"])) // 16):
        _kept.append(bytearray(os.urandom(1024) * (16 << 10)))
        time.sleep(0.01)
    return _facts()


def eat_in_program(request: StepRequest) -> Fact:
    """A program that the step starts takes the memory."""
    megabytes = request.options["megabytes"]
    code = f"import time; kept = b'x' * ({megabytes} << 20); time.sleep(60)"
    subprocess.run([sys.executable, "-c", code], check=True)
    return _facts()


def release(request: StepRequest) -> Fact:
    """Take and give back ``megabytes``."""
    block = bytearray(int(str(request.options["megabytes"])) * MB)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(0.3)
    return _facts()


def map_file(request: StepRequest) -> Fact:
    """Touch all of a mapped file: resident, but not anonymous."""
    import mmap

    with request.files["weights"].open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        total = sum(mapped[::4096])
    (request.out / "text").write_text(str(total))
    return _facts()


def out_of_memory(request: StepRequest) -> Fact:
    return _facts(len(bytearray(1 << 62)))


def garbage(request: StepRequest) -> Fact:
    """Write to both streams in every way there is, with bytes that are no text, and JSON that looks like a reply."""
    print("from print")
    sys.stderr.write("from stderr\n")
    os.write(1, b"from os.write \xff\xfe\x00 bytes\n")
    os.write(2, b'{"type": "Done", "facts": {}}\n')
    ctypes.CDLL(None).printf(b"from printf, never flushed\n")
    subprocess.run(["echo", "from a program"], check=True)
    (request.out / "text").write_text("fine")
    return _facts()


def close_everything(request: StepRequest) -> Fact:
    """Close all descriptors but the log's, as some programs do before they become a service."""
    os.closerange(3, 256)
    time.sleep(1000)
    return _facts()


def scribble(request: StepRequest) -> Fact:
    """Write to every descriptor, whoever opened it."""
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"all work and no play\n")
    time.sleep(1000)
    return _facts()


def leave_temporary_files(request: StepRequest) -> Fact:
    """Die with a temporary folder of Python's and a file of native code's behind; say where in ``out``."""
    places = [Path(tempfile.mkdtemp(prefix="python-")), Path(os.environ["TMPDIR"], "native")]
    places[1].write_bytes(b"\0" * MB)
    (request.out / "text").write_text("\n".join(map(str, places)))
    if request.options.get("die"):
        os._exit(7)
    return _facts()


def lingering(request: StepRequest) -> Fact:
    """Start a program that goes on writing after the step has ended."""
    subprocess.Popen(["sh", "-c", "while true; do echo still here; sleep 0.05; done"])
    (request.out / "text").write_text("fine")
    return _facts()


def refuse(request: StepRequest) -> Fact:
    raise Unsupported("target cannot take node 'x'", "take it out")


def user_error(request: StepRequest) -> Fact:
    raise ValueError("the user's own mistake")


def library_error(request: StepRequest) -> Fact:
    import msgspec

    msgspec.json.decode(b"[")
    return _facts()


def library_frames(request: StepRequest) -> Fact:
    import yaml

    yaml.safe_load("a: [")
    return _facts()


def not_finite(request: StepRequest) -> Fact:
    return EvaluateFacts(metric="top1", value=float("nan"), samples=3, settings="none")


def fill(request: StepRequest) -> Fact:
    """Write ``megabytes``."""
    with (request.out / "large").open("wb") as file:
        for _ in range(int(str(request.options["megabytes"]))):
            file.write(b"x" * MB)
    return _facts()


def missing_openvino(request: StepRequest) -> Fact:
    """What `import openvino` says where it is not installed."""
    raise ModuleNotFoundError("No module named 'openvino'", name="openvino")


def missing_other(request: StepRequest) -> Fact:
    import a_module_that_nobody_has  # type: ignore[import-not-found]  # noqa: F401

    return _facts()


def change_process(request: StepRequest) -> Fact:
    """Leave the process's folder and search path in disorder."""
    os.chdir("/")
    sys.path.insert(0, "/nowhere")
    return _facts()


def show_process(request: StepRequest) -> Fact:
    (request.out / "text").write_text("\n".join([str(Path.cwd()), os.environ["OMP_NUM_THREADS"], *sys.path]))
    return _facts()


def run_code(request: StepRequest) -> Fact:
    """Import the user's ``code`` as a frontend imports a factory, and leave no trace in ``sys.modules``."""
    import importlib.util

    path = request.files["code"]
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("users_code", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (request.out / "text").write_text(str(module.VALUE))
    return _facts()

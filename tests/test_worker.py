from __future__ import annotations

import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

import retarget
from retarget import worker_child
from retarget.protocols import JSON
from retarget.wire import Done, Failed, Request
from retarget.worker import Answer, Limits, Worker

MB = 1 << 20
NO_LIMITS = Limits()


@pytest.fixture(autouse=True)
def toolchains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker("acme", threads=1, log=tmp_path / "log.txt") as worker:
        yield worker


def ignore(done: int, total: int, text: str) -> None:
    pass


class Bench:
    """A folder in which steps run."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.txt"
        self.out = folder / "out"
        self.out.mkdir()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()

    def request(self, function: str, files: dict[str, str] | None = None, **options: JSON) -> Request:
        return Request(
            function=function if ":" in function else f"toolchains.misbehave:{function}",
            toolchain="acme",
            kind="emit",
            options=dict(options),
            inputs={},
            files=files or {},
            out=str(self.out),
            log=str(self.log),
            temporary=str(self.temporary),
        )

    def run(self, worker: Worker, request: Request | str, limits: Limits = NO_LIMITS) -> Answer:
        if isinstance(request, str):
            request = self.request(request)
        return worker.run(request, f"emit {request.function.partition(':')[2]}", limits, ignore)

    def failure(self, worker: Worker, request: Request | str, limits: Limits = NO_LIMITS) -> Failed:
        result = self.run(worker, request, limits).result
        assert isinstance(result, Failed)
        return result

    def done(self, worker: Worker, request: Request | str) -> Done:
        result = self.run(worker, request).result
        assert isinstance(result, Done), result
        return result


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def gone(pid: int) -> bool:
    """Whether a process ends, given time."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- what goes right


def test_a_step_says_its_facts(worker: Worker, bench: Bench) -> None:
    done = bench.done(worker, bench.request("write", text="hello"))
    assert done.facts == {"origin": "samples", "samples": 1, "tensors": 2, "data": None, "notes": []}
    assert (bench.out / "text").read_text() == "hello"
    assert done.versions["msgspec"]
    assert done.versions["retarget"]
    assert "onnx" not in done.versions


def test_one_process_serves_many(worker: Worker, bench: Bench, tmp_path: Path) -> None:
    bench.done(worker, "write")
    (tmp_path / "second").mkdir()
    second = Bench(tmp_path / "second")
    second.done(worker, "write")
    assert (bench.out / "nested" / "pid").read_text() == (second.out / "nested" / "pid").read_text() == str(worker.pid)


def test_progress_arrives_in_order(worker: Worker, bench: Bench) -> None:
    seen: list[tuple[int, int, str]] = []
    worker.run(bench.request("slow", seconds=0.05), "slow", NO_LIMITS, lambda *said: seen.append(said))
    assert seen == [(done, 10, f"part {done}") for done in range(10)]


def test_generated_code_is_not_the_users(worker: Worker, bench: Bench) -> None:
    code = bench.done(worker, "generate_code").code
    assert any(path.endswith("misbehave.py") for path in code)
    assert not any(path.endswith("generated.py") for path in code)


def test_the_log_has_all_output_and_the_protocol_survives(worker: Worker, bench: Bench) -> None:
    bench.done(worker, "garbage")
    log = bench.log.read_bytes()
    for said in (
        b"from print\n",
        b"from stderr\n",
        b"from os.write \xff\xfe\x00 bytes\n",
        b'{"type": "Done", "facts": {}}\n',
        b"from printf, never flushed\n",
        b"from a program\n",
    ):
        assert said in log
    bench.log.unlink()
    bench.done(worker, "show_process")
    assert bench.log.read_bytes() == b""
    if sys.platform == "linux":
        # A worker at rest keeps no log open.
        assert {Path(f"/proc/{worker.pid}/fd/{number}").readlink() for number in (0, 1, 2)} == {Path(os.devnull)}


def test_temporary_files_go_where_the_step_is_told(worker: Worker, bench: Bench) -> None:
    bench.done(worker, "leave_temporary_files")
    places = [Path(line) for line in (bench.out / "text").read_text().splitlines()]
    assert [place.parent for place in places] == [bench.temporary, bench.temporary]


def test_each_step_begins_in_order(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Modules in the folder that the user stands in must not be taken for libraries.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "msgspec.py").write_text("raise AssertionError")
    with Worker("acme", threads=3, log=bench.log) as worker:
        bench.done(worker, "show_process")
        before = (bench.out / "text").read_text()
        bench.done(worker, "change_process")
        bench.done(worker, "show_process")
    assert (bench.out / "text").read_text() == before
    folder, threads, *path = before.splitlines()
    assert (folder, threads) == (str(tmp_path), "3")
    assert folder not in path


def test_infinite_facts_cross(worker: Worker, bench: Bench) -> None:
    assert bench.done(worker, "not_finite").facts["value"] == "nan"


def test_the_users_code_is_found(worker: Worker, bench: Bench, tmp_path: Path) -> None:
    code = tmp_path / "code"
    (code / "parts").mkdir(parents=True)
    (code / "model.py").write_text("import json, yaml, parts.layers\nVALUE = parts.layers.SIZE\n")
    (code / "parts" / "__init__.py").write_text("exec(compile('x = 1', 'invented.py', 'exec'))\n")
    (code / "parts" / "layers.py").write_text("SIZE = 7\n")
    request = bench.request("run_code", files={"code": str(code / "model.py")})
    for _ in range(2):
        # The second time from the bytecode that the first one left.
        with Worker("acme", threads=1, log=bench.log) as fresh:
            result = bench.done(fresh, request)
        assert (bench.out / "text").read_text() == "7"
        found = {Path(name).relative_to(code).as_posix() for name in result.code if Path(name).is_relative_to(code)}
        assert found == {"model.py", "parts/__init__.py", "parts/layers.py"}
        others = {Path(name).name for name in result.code} - {Path(name).name for name in found}
        assert others <= {"misbehave.py"}
    # sha256sum of "SIZE = 7\n".
    assert result.code[str(code / "parts" / "layers.py")].startswith("49f65acc")


# ---- failures that the step raises


def test_expected_failures_cross_whole(worker: Worker, bench: Bench) -> None:
    failed = bench.failure(worker, "refuse")
    assert (failed.kind, failed.message, failed.hint, failed.bug) == (
        "Unsupported",
        "target cannot take node 'x'",
        "take it out",
        False,
    )
    assert b"Traceback" in bench.log.read_bytes()


def test_the_users_mistake_has_its_place(worker: Worker, bench: Bench) -> None:
    failed = bench.failure(worker, "user_error")
    assert not failed.bug
    assert failed.message.startswith(str(Path(__file__).parent / "toolchains" / "misbehave.py") + ":")
    assert failed.message.endswith(": ValueError: the user's own mistake")


def test_a_library_is_named(worker: Worker, bench: Bench) -> None:
    failed = bench.failure(worker, "library_frames")
    assert (failed.kind, failed.bug) == ("ToolchainFailure", False)
    assert failed.message == "yaml: ParserError: while parsing a flow node"


def test_an_exception_in_retarget_is_a_bug(worker: Worker, bench: Bench) -> None:
    # A function of retarget's that takes no request.
    failed = bench.failure(worker, "retarget.spec:symbols")
    assert failed.bug
    assert failed.kind == "TypeError"


def test_a_step_that_is_not_there_is_a_bug(worker: Worker, bench: Bench) -> None:
    failed = bench.failure(worker, "retarget.steps_of_nobody:convert")
    assert (failed.kind, failed.bug) == ("ModuleNotFoundError", True)


def test_memory_error_has_a_hint(worker: Worker, bench: Bench) -> None:
    failed = bench.failure(worker, "out_of_memory")
    assert (failed.kind, failed.message) == ("ToolchainFailure", "acme asked for more memory than there is")
    assert failed.hint is not None
    assert "--memory" in failed.hint


def test_a_missing_requirement_has_its_command(worker: Worker, bench: Bench) -> None:
    request = msgspec.structs.replace(bench.request("missing_openvino"), toolchain="openvino")
    failed = bench.failure(worker, request)
    assert (failed.kind, failed.bug) == ("MissingToolchain", False)
    assert failed.hint == "pip install 'retarget[openvino]'"


def test_a_missing_module_of_the_user_is_not_the_toolchains(worker: Worker, bench: Bench) -> None:
    failed = bench.failure(worker, "missing_other")
    assert (failed.kind, failed.bug) == ("ToolchainFailure", False)
    assert "No module named 'a_module_that_nobody_has'" in failed.message


def test_sys_exit_ends_the_step_and_not_the_worker(worker: Worker, bench: Bench) -> None:
    assert "SystemExit: nothing to see" in bench.failure(worker, "sys_exit").message
    assert worker.alive


RETARGET = Path(retarget.__file__).parent / "targets" / "acme.py"
SITE = Path(sysconfig.get_path("purelib")) / "acme" / "api.py"
STDLIB = Path(sysconfig.get_path("stdlib")) / "json" / "decoder.py"


@pytest.mark.parametrize(
    ("frames", "raised", "expected"),
    [
        # Ours, called by ours; ours, through the standard library.
        ([RETARGET], "KeyError('x')", ("KeyError", "KeyError: 'x'", True)),
        ([RETARGET, STDLIB], "ValueError('x')", ("ValueError", "ValueError: x", True)),
        ([SITE], "ValueError('x')", ("ToolchainFailure", "acme: ValueError: x", False)),
        ([RETARGET, SITE, STDLIB], "ValueError('x')", ("ToolchainFailure", "acme: ValueError: x", False)),
        # Raised by native code, which has no frame: its own class, or what a binding makes of a C++ exception.
        ([RETARGET], "__import__('yaml').YAMLError('x')", ("ToolchainFailure", "yaml: YAMLError: x", False)),
        ([RETARGET], "RuntimeError('x\\ny')", ("ToolchainFailure", "toolchain: RuntimeError: x", False)),
        (
            [SITE, Path("/home/user/model.py")],
            "KeyError",
            ("ToolchainFailure", "/home/user/model.py:1: KeyError", False),
        ),
    ],
)
def test_whose_exception_it_is(bench: Bench, frames: list[Path], raised: str, expected: tuple[str, str, bool]) -> None:
    source = f"raise {raised}"
    for path in reversed(frames):
        source = f"exec(compile({source!r}, {str(path)!r}, 'exec'))"
    request = msgspec.structs.replace(bench.request("write"), toolchain="toolchain")
    with pytest.raises(Exception) as caught:
        exec(compile(source, str(RETARGET), "exec"))
    kind, message, _, bug = worker_child.describe(caught.value, request)
    assert (kind, message, bug) == expected


# ---- deaths


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("segfault", "acme was killed by SIGSEGV (segmentation fault) while running 'emit segfault'"),
        ("abort", "acme was killed by SIGABRT (the library gave up: abort) while running 'emit abort'"),
        (
            "killed",
            "acme was killed by SIGKILL (probably the kernel's out-of-memory killer) while running 'emit killed'",
        ),
        ("leave", "acme exited with status 7 while running 'emit leave'"),
        ("close_everything", "acme closed its worker's pipe while running 'emit close_everything'"),
        (
            "scribble",
            (
                "acme wrote over its worker's pipe while running 'emit scribble': "
                "JSON is malformed: invalid character (byte 0)"
            ),
        ),
    ],
)
def test_a_death_in_words(worker: Worker, bench: Bench, function: str, message: str) -> None:
    failed = bench.failure(worker, function)
    assert (failed.kind, failed.message, failed.bug) == ("ToolchainFailure", message, False)
    assert failed.hint
    assert not worker.alive


def test_a_segfault_leaves_its_output_and_place(worker: Worker, bench: Bench) -> None:
    bench.failure(worker, "segfault")
    log = bench.log.read_text()
    assert "about to read address 0" in log
    assert "Fatal Python error: Segmentation fault" in log
    assert "in segfault" in log


def test_a_dead_worker_says_so_again(worker: Worker, bench: Bench) -> None:
    bench.failure(worker, "leave")
    assert "exited with status 7" in bench.failure(worker, "write").message


def test_a_hang_is_ended_with_all_that_it_started(worker: Worker, bench: Bench, tmp_path: Path) -> None:
    failed = bench.failure(worker, bench.request("hang", pids=str(tmp_path / "pids")), Limits(seconds=1.5))
    assert failed.message == "acme was stopped: 'emit hang' took longer than 1.5 s"
    assert failed.hint == "--timeout SECONDS gives it longer"
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert pids[0] == worker.pid
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_kill_from_another_thread(worker: Worker, bench: Bench, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(bench.run(worker, bench.request("hang", pids=str(pids)))))
    thread.start()
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    worker.kill()
    thread.join(30)
    assert isinstance(answers[0].result, Failed)
    assert all(gone(int(pid)) for pid in pids.read_text().split())


def test_a_program_left_behind_ends_with_the_worker(bench: Bench) -> None:
    with Worker("acme", threads=1, log=bench.log) as worker:
        bench.done(worker, "lingering")
        children = psutil.Process(worker.pid).children()
        assert len(children) == 1
    assert gone(children[0].pid)


def test_workers_end_with_their_parent(tmp_path: Path, bench: Bench) -> None:
    """kill -9 of the parent, while native code has the worker's interpreter."""
    pid = tmp_path / "pid"
    request = msgspec.json.encode(bench.request("hang_in_native_code"))
    code = f"""if True:
        import msgspec
        from pathlib import Path
        from retarget.wire import Request
        from retarget.worker import Limits, Worker
        worker = Worker("acme", threads=1, log=Path({str(bench.log)!r}))
        Path({str(pid)!r}).write_text(str(worker.pid))
        worker.run(msgspec.json.decode({request!r}, type=Request), "hang", Limits(), print)
    """
    parent = psutil.Popen([sys.executable, "-c", code])
    wait_for(lambda: bench.log.exists() and b"holding" in bench.log.read_bytes())
    parent.kill()
    parent.wait()
    assert gone(int(pid.read_text()))


def test_a_hang_in_native_code_is_ended(worker: Worker, bench: Bench) -> None:
    failed = bench.failure(worker, "hang_in_native_code", Limits(seconds=1))
    assert failed.message == "acme was stopped: 'emit hang_in_native_code' took longer than 1 s"
    assert not worker.alive


# ---- memory


def test_the_memory_limit_holds(worker: Worker, bench: Bench) -> None:
    answer = bench.run(worker, bench.request("eat", megabytes=4000), Limits(memory_bytes=200 * MB))
    assert isinstance(answer.result, Failed)
    assert answer.result.message.startswith("acme was stopped: 'emit eat' took 2")
    assert answer.result.message.endswith(" MB of memory, over the limit of 209.7 MB")
    assert answer.result.hint == "--memory SIZE gives it more"
    assert 200 * MB < answer.peak_anonymous < 1000 * MB


def test_programs_that_a_step_starts_count(worker: Worker, bench: Bench) -> None:
    failed = bench.failure(worker, bench.request("eat_in_program", megabytes=400), Limits(memory_bytes=200 * MB))
    assert "over the limit of 209.7 MB" in failed.message


def test_mapped_weights_do_not_count(worker: Worker, bench: Bench, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    with weights.open("wb") as file:
        for _ in range(300):
            file.write(b"\x01" * MB)
    request = bench.request("map_file", files={"weights": str(weights)})
    answer = bench.run(worker, request, Limits(memory_bytes=200 * MB))
    assert isinstance(answer.result, Done)
    assert (bench.out / "text").read_text() == str(300 * 256)
    if sys.platform == "linux":
        assert answer.result.peak_rss is not None
        assert answer.result.peak_rss > 300 * MB
    assert answer.peak_anonymous < 100 * MB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the high-water mark")
def test_peaks_are_of_the_step(worker: Worker, bench: Bench) -> None:
    large = bench.run(worker, bench.request("release", megabytes=300))
    small = bench.run(worker, "write")
    assert large.peak_rss is not None
    assert small.peak_rss is not None
    assert large.peak_rss > 300 * MB
    assert large.peak_anonymous > 300 * MB
    assert small.peak_rss < 100 * MB
    assert small.peak_anonymous < 100 * MB


def test_no_descriptor_is_left(bench: Bench) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        with Worker("acme", threads=1, log=bench.log) as worker:
            bench.done(worker, "show_process")
    assert len(list(Path("/dev/fd").iterdir())) == before

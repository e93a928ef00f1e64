from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil
import pytest
from toolchains.steps import function_of, step

from retarget import engine
from retarget.engine import Limits
from retarget.protocols import Outcome, Step
from retarget.store import Store, StoreError, read_manifest

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def toolchains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


def run(
    steps: Sequence[Step],
    store: Store,
    *,
    jobs: int = 2,
    limits: Limits | None = None,
    progress: Callable[[engine.Event], None] = lambda _: None,
) -> dict[str, Outcome]:
    """Outcomes by step id, in the order in which steps ended; nothing may be left of the run."""
    running = engine.run(steps, store, jobs=jobs, limits=limits or Limits(), progress=progress, function_of=function_of)
    with closing(running):
        outcomes = list(running)
    assert sorted(outcome.step.id for outcome in outcomes) == sorted(made.id for made in steps)
    assert workers() == []
    assert leftovers(store) == []
    return {outcome.step.id: outcome for outcome in outcomes}


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "retarget.worker_child" in child.cmdline()]


def leftovers(store: Store) -> list[Path]:
    return [*(store.root / "staging").iterdir(), *(store.root / "leases").iterdir()]


def statuses(outcomes: dict[str, Outcome]) -> dict[str, str]:
    return {name: outcome.status for name, outcome in outcomes.items()}


def text(outcome: Outcome) -> str:
    assert outcome.artifact is not None
    return (outcome.artifact.path / "text").read_text()


def chain() -> list[Step]:
    first = step("write", id="first", text="1")
    second = step("write", {"model": first}, id="second", text="2")
    third = step("write", {"model": second, "reference": first}, id="third", text="3", toolchain="other")
    return [first, second, third]


# ---- the order of things


def test_artifacts_flow(store: Store, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("rows")
    first = step("write", id="first", text="1", files={"calibration": data})
    second = step("write", {"model": first}, id="second", text="2", toolchain="other")
    outcomes = run([first, second], store)
    assert text(outcomes["second"]) == "2|model=1|calibration:rows"
    manifest = read_manifest(store.verified(second.key).path)
    assert (manifest.id, manifest.kind, manifest.key) == ("second", "emit", second.key)
    assert manifest.facts == {"origin": "samples", "samples": 1, "tensors": 2, "data": None, "notes": []}
    assert set(manifest.files) == {"text", "nested/pid"}
    assert outcomes["second"].peak_rss is not None
    assert outcomes["second"].seconds > 0


def test_a_second_build_runs_nothing(store: Store) -> None:
    first = run(chain(), store)
    assert set(statuses(first).values()) == {"ran"}
    again = run(chain(), store)
    assert set(statuses(again).values()) == {"cached"}
    assert [outcome.artifact for outcome in again.values()] == [first[name].artifact for name in again]
    assert text(again["third"]) == "3|model=2|model=1|reference=1"


def test_a_lost_artifact_alone_is_made_again(store: Store) -> None:
    steps = chain()
    run(steps, store)
    lost = store.get(steps[1].key)
    assert lost is not None
    (lost.path / "text").unlink()
    assert statuses(run(steps, store)) == {"first": "cached", "second": "ran", "third": "cached"}


def test_damage_is_found_when_it_is_consumed(store: Store) -> None:
    steps = chain()
    outcomes = run(steps, store)
    for name in ("first", "second"):
        artifact = outcomes[name].artifact
        assert artifact is not None
        path = artifact.path / "text"
        content = path.read_text()
        path.chmod(0o644)
        path.write_text("x" * len(content))
    # Nothing runs, so nothing is consumed, and damage of the same size goes unseen.
    assert set(statuses(run(steps, store)).values()) == {"cached"}

    fourth = step("write", {"model": steps[1]}, id="fourth", text="4")
    again = run([*steps, fourth], store)
    assert statuses(again) == {"first": "ran", "second": "ran", "third": "cached", "fourth": "ran"}
    assert text(again["fourth"]) == "4|model=2|model=1"
    assert store.verify() == ()


def test_two_steps_of_one_key_run_once(store: Store) -> None:
    one = step("write", id="one", text="same")
    other = replace(one, id="other", toolchain="other")
    after = step("write", {"model": other}, id="after")
    outcomes = run([one, other, after], store)
    assert statuses(outcomes) == {"one": "ran", "other": "cached", "after": "ran"}
    assert outcomes["one"].artifact == outcomes["other"].artifact


def test_two_steps_of_one_key_fail_once(store: Store) -> None:
    one = step("refuse", id="one")
    outcomes = run([one, replace(one, id="other")], store)
    assert statuses(outcomes) == {"one": "failed", "other": "failed"}
    assert outcomes["one"].error == outcomes["other"].error


def test_a_step_must_stand_behind_what_it_needs(store: Store) -> None:
    first, second, _ = chain()
    for steps in ([second, first], [second]):
        with pytest.raises(ValueError, match="'second' needs 'first', which does not stand before it"):
            run(steps, store)


class Overlap:
    """How many steps ran at once, and which toolchains."""

    def __init__(self) -> None:
        self.running: list[Step] = []
        self.most = 0
        self.events: list[engine.Event] = []

    def __call__(self, event: engine.Event) -> None:
        self.events.append(event)
        if event.kind == "started":
            self.running.append(event.step)
            self.most = max(self.most, len(self.running))
            toolchains = [running.toolchain for running in self.running]
            assert len(set(toolchains)) == len(toolchains)
            assert len(self.running) == 1 or all(running.kind != "bench" for running in self.running)
        elif event.kind == "ended" and event.step in self.running:
            self.running.remove(event.step)


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_toolchains_run_side_by_side(store: Store, jobs: int) -> None:
    steps = [
        step("slow", id=f"{toolchain}{number}", toolchain=toolchain, seconds=0.2, name=f"{toolchain}{number}")
        for number in range(2)
        for toolchain in ("a", "b", "c")
    ]
    seen = Overlap()
    outcomes = run(steps, store, jobs=jobs, progress=seen)
    assert set(statuses(outcomes).values()) == {"ran"}
    assert seen.most == jobs


def test_bench_runs_alone(store: Store) -> None:
    steps = [step("slow", id=name, toolchain=name, seconds=0.2, name=name) for name in "ab"]
    steps.insert(1, step("slow", id="bench", toolchain="bench", kind="bench", seconds=0.2))
    seen = Overlap()
    assert set(statuses(run(steps, store, jobs=3, progress=seen)).values()) == {"ran"}
    assert seen.most == 2


def test_events_tell_the_story(store: Store) -> None:
    first = step("slow", id="first", seconds=0.02)
    seen: list[engine.Event] = []
    threads = set()

    def progress(event: engine.Event) -> None:
        seen.append(event)
        threads.add(threading.current_thread())

    outcomes = run([first, step("refuse", {"model": first}, id="second")], store, progress=progress)
    assert [(event.kind, event.step.id) for event in seen if event.kind != "progress"] == [
        ("started", "first"),
        ("ended", "first"),
        ("started", "second"),
        ("ended", "second"),
    ]
    assert [(event.done, event.text) for event in seen if event.kind == "progress"] == [
        (done, f"part {done}") for done in range(10)
    ]
    assert [event.outcome for event in seen if event.kind == "ended"] == list(outcomes.values())
    assert threads == {threading.current_thread()}


# ---- failures


def test_the_rest_of_the_plan_goes_on(store: Store) -> None:
    first = step("write", id="first", text="1")
    broken = step("segfault", {"model": first}, id="broken", toolchain="acme")
    after = step("write", {"model": broken}, id="after")
    later = step("write", {"model": after}, id="later")
    same = step("write", {"model": first}, id="same", toolchain="acme", text="5")
    outcomes = run([first, broken, after, later, same], store)
    assert statuses(outcomes) == {
        "first": "ran",
        "broken": "failed",
        "after": "skipped",
        "later": "skipped",
        "same": "ran",
    }
    message = "acme was killed by SIGSEGV (segmentation fault) while running 'broken'"
    error = outcomes["broken"].error
    assert error is not None
    assert (error.kind, error.message) == ("ToolchainFailure", message)
    assert error.log is not None
    assert "about to read address 0" in error.log.read_text()
    for name in ("after", "later"):
        cause = outcomes[name].error
        assert cause is not None
        assert (cause.kind, cause.message, cause.log) == ("Skipped", f"'broken' failed: {message}", error.log)


def test_a_failure_is_not_cached(store: Store) -> None:
    for _ in range(2):
        assert statuses(run([step("refuse")], store)) == {"refuse": "failed"}
    assert store.entries() == ()


@pytest.mark.parametrize(("optional", "status"), [(True, "skipped"), (False, "failed")])
def test_an_optional_step_may_lack_its_toolchain(store: Store, optional: bool, status: str) -> None:
    lacking = step("missing_openvino", id="lacking", toolchain="openvino", optional=optional)
    after = step("write", {"model": lacking}, id="after")
    outcomes = run([lacking, after, step("write", id="other", text="o")], store)
    assert statuses(outcomes) == {"lacking": status, "after": "skipped", "other": "ran"}
    error, cause = outcomes["lacking"].error, outcomes["after"].error
    assert error is not None
    assert cause is not None
    assert (error.kind, error.hint) == ("MissingToolchain", "pip install 'retarget[openvino]'")
    verb = "was skipped" if optional else "failed"
    assert cause.message == f"'lacking' {verb}: openvino needs openvino: No module named 'openvino'"


def test_an_optional_step_may_not_crash(store: Store) -> None:
    assert statuses(run([step("abort", optional=True)], store)) == {"abort": "failed"}


def test_a_partial_step_takes_what_there_is(store: Store) -> None:
    good, bad = step("write", id="good", text="g"), step("refuse", id="bad")
    partial = step("write", {"a": good, "b": bad}, id="partial", partial=True, text="p")
    outcomes = run([good, bad, partial], store)
    assert statuses(outcomes) == {"good": "ran", "bad": "failed", "partial": "ran"}
    assert text(outcomes["partial"]) == "p|a=g"
    # It is no artifact of the whole plan, but one of what there was.
    assert store.get(partial.key) is None
    assert statuses(run([good, bad, partial], store)) == {"good": "cached", "bad": "failed", "partial": "cached"}

    nothing = step("write", {"b": bad}, id="nothing", partial=True)
    assert statuses(run([bad, nothing], store)) == {"bad": "failed", "nothing": "skipped"}


def test_limits_hold_for_a_step(store: Store, tmp_path: Path) -> None:
    hang = step("hang", toolchain="a", pids=str(tmp_path / "pids"))
    error = run([hang], store, limits=Limits(seconds=1))["hang"].error
    assert error is not None
    assert error.message == "a was stopped: 'hang' took longer than 1 s"

    steps = [step("eat", toolchain="b", megabytes=4000), step("write", toolchain="b", text="w")]
    outcomes = run(steps, store, limits=Limits(memory_bytes=200 << 20))
    assert statuses(outcomes) == {"eat": "failed", "write": "ran"}
    error = outcomes["eat"].error
    assert error is not None
    assert "over the limit of 209.7 MB" in error.message


def test_a_step_that_dies_leaves_no_temporary_files(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    outcomes = run([step("leave_temporary_files", die=True), step("write", text="w")], store)
    assert statuses(outcomes) == {"leave_temporary_files": "failed", "write": "ran"}
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_bug_is_called_one(store: Store) -> None:
    made = step("write", id="bug")
    running = engine.run(
        [made], store, jobs=1, limits=Limits(), progress=lambda _: None, function_of=lambda _: "retarget.spec:symbols"
    )
    (outcome,) = list(running)
    assert outcome.error is not None
    assert outcome.error.bug


def test_the_log_of_success_is_in_the_artifact(store: Store) -> None:
    outcomes = run([step("garbage"), step("lingering")], store, jobs=1)
    artifact = outcomes["garbage"].artifact
    assert artifact is not None
    assert b"from printf, never flushed\n" in (artifact.path / "log.txt").read_bytes()
    # A program that writes on after its step has ended changes nothing.
    time.sleep(0.2)
    assert store.verify() == ()


def test_code_that_a_step_imports_is_in_its_manifest(store: Store, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "model.py").write_text("import layers\nVALUE = layers.VALUE")
    (code / "layers.py").write_text("VALUE = 1")
    planned = step("run_code", files={"code": code / "model.py"}, code_root=code)

    def build() -> tuple[str, str]:
        key = store.resolve(planned.key, code)
        outcome = run([replace(planned, key=key)], store)["run_code"]
        return outcome.status, text(outcome)

    assert build() == ("ran", "1")
    assert build() == ("cached", "1")
    (code / "layers.py").write_text("VALUE = 22")
    assert build() == ("ran", "22")
    (code / "layers.py").write_text("VALUE = 1")
    assert build() == ("cached", "1")
    recorded = read_manifest(store.verified(planned.key).path).code
    assert {name for name in recorded if not Path(name).is_absolute()} == {"model.py", "layers.py"}


# ---- the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_build_with_one_error(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    fine = step("write", id="fine", text="f")
    large = step("fill", {"model": fine}, id="large", megabytes=10)
    with pytest.raises(StoreError, match="No space left on device") as caught:
        run([fine, large, step("write", {"model": large}, id="after")], store)
    assert caught.value.hint is not None
    assert "--store DIR" in caught.value.hint
    assert workers() == []
    assert leftovers(store) == []
    assert [entry.id for entry in store.entries()] == ["fine"]
    # What was half-written is gone, and there is room again.
    assert statuses(run([fine, step("fill", {"model": fine}, id="small", megabytes=1)], store)) == {
        "fine": "cached",
        "small": "ran",
    }
    store.close()


# ---- interruption


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_closing_ends_everything(store: Store, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    first = step("write", id="first", text="f")
    steps = [first, step("hang", {"model": first}, toolchain="other", pids=str(pids))]
    seen: list[engine.Event] = []
    running = engine.run(steps, store, jobs=2, limits=Limits(), progress=seen.append, function_of=function_of)
    assert next(running).step.id == "first"
    assert len(leftovers(store)) == 1
    running.close()
    assert workers() == []
    assert leftovers(store) == []
    assert [entry.id for entry in store.entries()] == ["first"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_signals_leave_nothing_behind(store: Store, tmp_path: Path, number: signal.Signals, status: int) -> None:
    pids = tmp_path / "pids"
    build = subprocess.Popen(
        [sys.executable, "-m", "toolchains.build", str(store.root), str(pids)],
        # A shell that runs the tests in the background has them ignore Ctrl-C, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 60
        while not pids.exists() or len(pids.read_text().split()) < 4:
            assert time.monotonic() < deadline
            assert build.poll() is None
            time.sleep(0.02)
        build.send_signal(number)
        assert build.wait(60) == status
    finally:
        build.kill()
    workers = [int(pid) for pid in pids.read_text().split()]
    if number == signal.SIGKILL:
        # What a worker had started has no one who ends it, when the kernel has ended the worker too.
        for program in workers[1::2]:
            if psutil.pid_exists(program):
                psutil.Process(program).kill()
    assert all(gone(pid) for pid in workers)
    if number == signal.SIGKILL:
        store.sweep()
    assert leftovers(store) == []
    assert [entry.id for entry in store.entries()] == ["write"]
    assert store.verify() == ()


def build_all(root: Path, start: Event) -> None:
    store = Store(root)
    steps = [
        step("slow", id=str(number), toolchain=f"t{number % 2}", seconds=0.1, number=number) for number in range(6)
    ]
    steps.append(step("write", {"model": steps[-1]}, id="last"))
    start.wait()
    running = engine.run(steps, store, jobs=2, limits=Limits(), progress=lambda _: None, function_of=function_of)
    for outcome in running:
        assert outcome.status in ("ran", "cached")
        assert outcome.artifact == store.verified(outcome.step.key)
    assert text(outcome) == "|model=whole"


def test_two_builds_at_once(store: Store) -> None:
    """Both make all of it, on one store, and both have all of it."""
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Event()
    builds = [spawn.Process(target=build_all, args=(store.root, start)) for _ in range(2)]
    for build in builds:
        build.start()
    start.set()
    for build in builds:
        build.join(120)
    assert [build.exitcode for build in builds] == [0, 0]
    assert len(store.entries()) == 7
    assert store.verify() == ()
    assert leftovers(store) == []

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import platformdirs
import pytest
from toolchains.steps import step

from retarget import digests
from retarget.errors import RetargetError
from retarget.facts import CalibrateFacts, EvaluateFacts
from retarget.protocols import Artifact, Step
from retarget.store import Damaged, Store, StoreError, default_root, read_manifest

SPAWN = multiprocessing.get_context("spawn")
FACTS = {"origin": "samples", "samples": 3, "tensors": 2}


def named(name: str) -> Step:
    return step("write", id=name, text=name)


def put(store: Store, made: Step, text: str = "content", *, code: dict[str, str] | None = None) -> Artifact:
    with store.stage() as staging:
        (staging.out / "text").write_text(text)
        (staging.out / "nested").mkdir()
        (staging.out / "nested" / "more").write_bytes(text.encode() * 100)
        return store.commit(staging, made, facts=FACTS, versions={"onnx": "1"}, code=code or {})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


def leftovers(store: Store) -> list[Path]:
    return [*(store.root / "staging").iterdir(), *(store.root / "leases").iterdir()]


# ---- artifacts


def test_artifact_is_what_was_staged(store: Store) -> None:
    made = named("a")
    with store.stage() as staging:
        (staging.out / "text").write_text("content")
        staging.log.write_bytes(b"what it said\xff")
        artifact = store.commit(staging, made, facts=FACTS, versions={"onnx": "1.19"}, code={"model.py": "ab"})

    assert store.get(made.key) == store.verified(made.key) == artifact
    assert (artifact.path / "text").read_text() == "content"
    assert (artifact.path / "log.txt").read_bytes() == b"what it said\xff"
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert manifest["files"] == {
        # sha256sum of "content".
        "text": {"sha256": "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73", "bytes": 7}
    }
    del manifest["files"], manifest["sha256"]
    assert manifest == {
        "schema": 1,
        "key": made.key,
        "kind": "emit",
        "id": "a",
        "versions": {"onnx": "1.19"},
        "facts": FACTS,
        "log": "log.txt",
        "code": {"model.py": "ab"},
    }
    assert read_manifest(artifact.path).facts_as(CalibrateFacts) == CalibrateFacts(
        origin="samples", samples=3, tensors=2
    )
    assert leftovers(store) == []


def test_files_are_read_only(store: Store) -> None:
    artifact = put(store, named("a"))
    modes = {path.stat().st_mode & 0o777 for path in artifact.path.rglob("*") if path.is_file()}
    assert modes == {0o444}


def test_infinite_facts_survive(store: Store) -> None:
    made = named("a")
    with store.stage() as staging:
        facts = {"metric": "top1", "value": "-inf", "samples": 1, "settings": "none"}
        artifact = store.commit(staging, made, facts=facts, versions={}, code={})
    value = read_manifest(artifact.path).facts_as(EvaluateFacts).value
    assert value == float("-inf")


def test_long_log_keeps_its_ends(store: Store) -> None:
    with store.stage() as staging:
        staging.log.write_bytes(b"first" + b"x" * (3 << 20) + b"last")
        artifact = store.commit(staging, named("a"), facts={}, versions={}, code={})
    log = (artifact.path / "log.txt").read_bytes()
    assert log.startswith(b"first")
    assert log.endswith(b"last")
    assert b"bytes left out]" in log
    assert len(log) < (1 << 20) + 100


def test_staging_vanishes_with_its_step(store: Store) -> None:
    def fail() -> None:
        with store.stage() as staging:
            (staging.out / "text").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert leftovers(store) == []
    assert store.entries() == ()


@pytest.mark.parametrize("name", ["manifest.json", "log.txt"])
def test_a_step_does_not_write_the_stores_files(store: Store, name: str) -> None:
    with store.stage() as staging:
        (staging.out / name).write_text("mine")
        with pytest.raises(ValueError, match=name):
            store.commit(staging, named("a"), facts={}, versions={}, code={})


def test_a_link_is_no_artifact(store: Store) -> None:
    with store.stage() as staging:
        (staging.out / "link").symlink_to("/etc/passwd")
        with pytest.raises(ValueError, match="link: not a plain file"):
            store.commit(staging, named("a"), facts={}, versions={}, code={})


def test_the_first_of_two_stands(store: Store) -> None:
    put(store, named("a"), "first")
    artifact = put(store, named("a"), "second")
    assert (artifact.path / "text").read_text() == "first"
    assert store.verify() == ()
    assert leftovers(store) == []


def damage_truncate(artifact: Path) -> None:
    path = artifact / "text"
    path.chmod(0o644)
    path.write_text("con")


def damage_remove(artifact: Path) -> None:
    (artifact / "nested" / "more").unlink()


def damage_no_manifest(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()


def damage_cut_manifest(artifact: Path) -> None:
    path = artifact / "manifest.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-20])


def damage_edit_manifest(artifact: Path) -> None:
    path = artifact / "manifest.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"samples": 3', '"samples": 4'))


def damage_flip(artifact: Path) -> None:
    """One bit, the size and the times as they were."""
    path = artifact / "nested" / "more"
    status = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def damage_add(artifact: Path) -> None:
    (artifact / "nested" / "stranger").write_text("hello")


SEEN_BY_GET = [damage_truncate, damage_remove, damage_no_manifest, damage_cut_manifest, damage_edit_manifest]


@pytest.mark.parametrize("damage", SEEN_BY_GET)
def test_get_sees_damage(store: Store, damage: type) -> None:
    artifact = put(store, named("a"))
    damage(artifact.path)
    assert store.get(artifact.key) is None


@pytest.mark.parametrize("damage", [*SEEN_BY_GET, damage_flip, damage_add])
def test_damage_is_found_removed_and_made_again(store: Store, damage: type) -> None:
    whole = put(store, named("whole"))
    artifact = put(store, named("a"))
    damage(artifact.path)
    with pytest.raises(Damaged, match=str(artifact.path)):
        store.verified(artifact.key)
    assert not artifact.path.exists()
    put(store, named("a"), "again")
    assert (store.verified(artifact.key).path / "text").read_text() == "again"

    damage(artifact.path)
    assert [found.key for found in store.verify()] == [artifact.key]
    assert store.verify() == ()
    assert store.get(whole.key) == whole


@pytest.mark.parametrize("damage", SEEN_BY_GET)
def test_commit_replaces_damage(store: Store, damage: type) -> None:
    artifact = put(store, named("a"), "first")
    damage(artifact.path)
    put(store, named("a"), "second")
    assert (store.verified(artifact.key).path / "text").read_text() == "second"
    assert leftovers(store) == []


def test_absent_is_damaged_too(store: Store) -> None:
    with pytest.raises(Damaged, match="missing"):
        store.verified("0" * 64)


# ---- killed and concurrent builds


def commit_for_ever(root: Path, seed: int) -> None:
    """Commit, remake and collect artifacts until killed."""
    store = Store(root)
    draw = random.Random(seed)
    while True:
        keys = [named(str(draw.randrange(30))) for _ in range(3)]
        with store.lease(made.key for made in keys):
            for made in keys:
                put(store, made, made.id * 1000)
        # An artifact of these has 101 to 202 kB: some go, some stay.
        store.gc(max_bytes=1_000_000)


def test_kill_before_any_file_operation(tmp_path: Path) -> None:
    program = subprocess.run(
        [sys.executable, "-m", "toolchains.crash", str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    *wrong, operations = program.stdout.splitlines()
    assert wrong == []
    assert int(operations) > 50


def test_kill_at_any_moment(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = Store(root)
    draw = random.Random(0)
    left, committed = 0, 0
    for seed in range(60):
        process = SPAWN.Process(target=commit_for_ever, args=(root, seed))
        process.start()
        deadline = time.monotonic() + 60
        seen = set((root / "objects").glob("*/*"))
        while time.monotonic() < deadline and set((root / "objects").glob("*/*")) == seen:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.3)
        process.kill()
        process.join()
        left += len(leftovers(store))

        for path in (root / "objects").glob("*/*"):
            committed += 1
            artifact = store.verified(path.name)
            name = read_manifest(artifact.path).id
            assert (artifact.path / "text").read_text() == name * 1000
        store.sweep()
        assert leftovers(store) == []
        # How much is done before a kill depends on the machine: kill until enough was, and was in the middle of work.
        if seed >= 7 and committed > 8 and left > 0:
            return
    pytest.fail(f"60 kills found {committed} artifacts and {left} leftovers")


def commit_some(root: Path, start: Event, seed: int) -> None:
    store = Store(root)
    names = [str(number) for number in range(25)]
    random.Random(seed // 2).shuffle(names)
    start.wait()
    for name in names:
        artifact = put(store, named(name), name * 1000)
        assert (artifact.path / "text").read_text() == name * 1000
        assert store.verified(named(name).key) == artifact


def test_builds_at_once_share_a_store(store: Store) -> None:
    start = SPAWN.Event()
    processes = [SPAWN.Process(target=commit_some, args=(store.root, start, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert {entry.key for entry in store.entries()} == {named(str(number)).key for number in range(25)}
    assert store.verify() == ()
    assert leftovers(store) == []


def test_sweep_leaves_the_living(store: Store) -> None:
    with store.stage() as staging, store.lease(["a"]):
        Store(store.root).sweep()
        assert staging.out.is_dir()
        assert len(leftovers(store)) == 2


# ---- leases and gc


def test_gc_takes_the_longest_unused(store: Store) -> None:
    artifacts = [put(store, named(name), "x" * 100) for name in "abcd"]
    for age, artifact in enumerate(artifacts):
        os.utime(artifact.path, (age, age))
    one = store.entries()[0].bytes
    with store.lease([artifacts[0].key]):
        pass
    assert [entry.id for entry in store.entries()] == ["b", "c", "d", "a"]

    removed = store.gc(max_bytes=2 * one + 1)
    assert [entry.id for entry in removed] == ["b", "c"]
    assert [entry.id for entry in store.entries()] == ["d", "a"]
    assert store.gc(max_bytes=2 * one) == ()


def test_gc_leaves_what_a_build_uses(store: Store) -> None:
    used, unused = put(store, named("a")), put(store, named("b"))
    other = Store(store.root)
    with store.lease([used.key]):
        assert [(entry.id, entry.leased) for entry in other.entries()] == [("b", False), ("a", True)]
        assert [entry.key for entry in other.gc(max_bytes=0)] == [unused.key]
        assert other.get(used.key) == used
    assert [entry.key for entry in other.gc(max_bytes=0)] == [used.key]


def lease_for_ever(root: Path, key: str, leased: Event) -> None:
    with Store(root).lease([key]):
        leased.set()
        time.sleep(1000)


def test_lease_ends_with_its_process(store: Store) -> None:
    artifact = put(store, named("a"))
    leased = SPAWN.Event()
    process = SPAWN.Process(target=lease_for_ever, args=(store.root, artifact.key, leased))
    process.start()
    assert leased.wait(60)
    assert store.gc(max_bytes=0) == ()
    process.kill()
    process.join()
    assert [entry.key for entry in store.gc(max_bytes=0)] == [artifact.key]
    assert leftovers(store) == []


def test_scratch_stays_until_its_artifact_is_there(store: Store) -> None:
    made = named("a")
    with store.scratch(made.key) as scratch:
        assert scratch is not None
        (scratch / "half").write_text("counted")
        with Store(store.root).scratch(made.key) as other:
            assert other is None, "it belongs to the first"
    with store.scratch(made.key) as scratch:
        assert scratch is not None
        assert (scratch / "half").read_text() == "counted"
        put(store, made)
    assert list((store.root / "scratch").iterdir()) == []


def test_scratch_that_nothing_was_put_in_goes(store: Store) -> None:
    with store.scratch("a" * 64) as scratch:
        assert scratch is not None
    assert list((store.root / "scratch").iterdir()) == []


def test_gc_removes_scratch_of_no_running_build(store: Store) -> None:
    other = Store(store.root)
    for key in ("held", "leased", "left"):
        with store.scratch(key) as scratch:
            assert scratch is not None
            (scratch / "half").write_text("counted")
    with store.scratch("held"), store.lease(["leased"]):
        other.gc(max_bytes=0)
        assert sorted(path.name for path in (store.root / "scratch").iterdir()) == ["held", "leased"]
    other.gc(max_bytes=0)
    assert list((store.root / "scratch").iterdir()) == []


def test_gc_removes_what_has_no_manifest(store: Store) -> None:
    artifact = put(store, named("a"))
    damage_no_manifest(artifact.path)
    store.gc(max_bytes=1 << 30)
    assert not artifact.path.exists()


def test_gc_removes_old_logs(store: Store) -> None:
    with store.stage() as staging:
        staging.log.write_text("it broke")
        old, new = store.keep_log(staging, "old"), store.keep_log(staging, "new")
    os.utime(old, (0, 0))
    store.gc(max_bytes=0)
    assert not old.exists()
    assert new.read_text() == "it broke"


# ---- the user's code


def test_resolve_follows_the_users_code(store: Store, tmp_path: Path) -> None:
    code, planned = tmp_path / "code", named("a")
    code.mkdir()
    layers = code / "layers.py"

    def build(text: str) -> str:
        """Plan and run as an engine would, on code of this content; the key."""
        layers.write_text(text)
        key = store.resolve(planned.key, code)
        if store.get(key) is None:
            put(store, replace(planned, key=key), text, code={"layers.py": store.digest(layers)})
        return key

    first = build("one")
    assert first == planned.key
    assert build("one") == first
    second = build("two")
    assert second != first
    assert build("one") == first
    assert build("two") == second
    assert (store.verified(second).path / "text").read_text() == "two"

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "layers.py").write_text("one")
    assert store.resolve(planned.key, elsewhere) == first
    layers.unlink()
    assert store.resolve(planned.key, code) not in (first, second)


# ---- digests


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really read."""
    seen: list[Path] = []
    original = digests.file_digest

    def spy(path: Path) -> str:
        seen.append(path)
        return original(path)

    monkeypatch.setattr(digests, "file_digest", spy)
    return seen


def test_digest_is_remembered(
    store: Store, tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "RACY_NS", 0)
    path = tmp_path / "file"
    path.write_text("content")
    time.sleep(0.01)
    expected = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert store.digest(path) == store.digest(path) == Store(store.root).digest(path) == expected
    assert hashed == [path]

    status = path.stat()
    path.write_text("CONTENT")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.digest(path) != expected
    assert hashed == [path, path]


def test_a_file_just_written_is_not_remembered(store: Store, tmp_path: Path, hashed: list[Path]) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    store.digest(path)
    store.digest(path)
    assert hashed == [path, path]


def test_folder_digest_is_of_names_and_contents(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "image").mkdir(parents=True)
    (folder / "image" / "0.npy").write_text("0")
    (folder / "image" / "1.npy").write_text("1")
    first = store.digest(folder)
    assert store.digest(folder) == first

    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_text("compiled")
    assert store.digest(folder) == first
    (folder / "image" / "1.npy").write_text("2")
    second = store.digest(folder)
    (folder / "image" / "1.npy").rename(folder / "image" / "2.npy")
    third = store.digest(folder)
    assert len({first, second, third}) == 3


def test_folder_digest_ends_where_links_go_round(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "file").write_text("0")
    (folder / "round").symlink_to(folder)
    assert len(store.digest(folder)) == 64


def test_what_cannot_be_read_is_a_clear_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RetargetError, match="absent: no such file or folder"):
        store.digest(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RetargetError, match="pipe: neither a file nor a folder"):
        store.digest(tmp_path / "pipe")


def test_a_broken_memo_starts_anew(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    digest = store.digest(path)
    store.close()
    (store.root / "digests.sqlite").write_bytes(b"this is no database" * 1000)
    assert store.digest(path) == digest
    assert store.digest(path) == digest


# ---- the disk fails


@contextlib.contextmanager
def not_root() -> Iterator[None]:
    """Root may write everywhere: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_store_is_a_clear_error() -> None:
    # Not pytest's folder: when root runs the tests, nobody else may look into that.
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "store")
        store = Store(root)
        artifact = put(store, named("a"))
        for parent, _, _ in os.walk(folder):
            Path(parent).chmod(0o555)
        with not_root():
            assert Store(root).get(artifact.key) == artifact
            with pytest.raises(StoreError, match="cannot be written") as caught, store.lease([artifact.key]):
                pass
            assert caught.value.hint == "choose another place with --store DIR"
            with pytest.raises(StoreError, match="cannot be written"), store.stage():
                pass
            with pytest.raises(StoreError, match="cannot be written"):
                Store(Path(folder, "new"))
        for parent, _, _ in os.walk(folder):
            Path(parent).chmod(0o755)


def test_a_full_disk_is_a_clear_error(store: Store) -> None:
    """A limit on the size of files stands in for the disk's end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with store.stage() as staging:
            (staging.out / "text").write_text("small")
            staging.log.write_bytes(b"x" * 100_000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
            with pytest.raises(StoreError, match=os.strerror(errno.EFBIG)) as caught:
                store.commit(staging, named("a"), facts={}, versions={}, code={})
            assert "--store DIR" in str(caught.value.hint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert store.entries() == ()
    assert leftovers(store) == []


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="store"):
        Store(tmp_path / "store")


# ---- where it is


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    assert default_root(None, None) == tmp_path / "retarget"
    assert default_root(None, Path("/large/store")) == Path("/large/store")
    assert default_root(Path("mine"), Path("/large/store")) == Path("mine")


@pytest.mark.parametrize("module", ["store", "engine", "worker", "worker_child", "digests", "progress"])
def test_light(module: str) -> None:
    heavy = "{'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'rich', 'platformdirs', 'psutil'}"
    code = f"import sys, retarget.{module}; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"

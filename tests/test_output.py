from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from retarget.errors import RetargetError
from retarget.output import MARKER, OutputFolder
from retarget.protocols import Artifact


def make_artifact(folder: Path, key: str, text: str) -> Artifact:
    (folder / "sub").mkdir(parents=True)
    (folder / "model.onnx").write_text(text)
    (folder / "sub" / "more.bin").write_bytes(b"\0" * 10)
    (folder / "manifest.json").write_text(json.dumps({"key": key}))
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o444)
    return Artifact(key, folder)


def test_an_artifact_is_placed_whole_with_its_script(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "build")
    output.place(make_artifact(tmp_path / "a", "k1", "one"), "openvino/fp16")

    placed = tmp_path / "build" / "openvino" / "fp16"
    assert (placed / "model.onnx").read_text() == "one"
    assert (placed / "sub" / "more.bin").read_bytes() == b"\0" * 10
    assert os.access(placed / "REPRODUCE.sh", os.X_OK)
    script = (placed / "REPRODUCE.sh").read_text()
    assert "--locked --only openvino/fp16" in script
    assert subprocess.run(["sh", "-n", str(placed / "REPRODUCE.sh")], check=False).returncode == 0
    assert sorted(path.name for path in (tmp_path / "build").iterdir()) == [MARKER, "openvino"]


def test_a_new_artifact_replaces_the_old_one_whole(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "build")
    output.place(make_artifact(tmp_path / "a", "k1", "one"), "t/fp32")
    (tmp_path / "build" / "t" / "fp32" / "left_over").write_text("of the old one")
    output.place(make_artifact(tmp_path / "b", "k2", "two"), "t/fp32")
    placed = tmp_path / "build" / "t" / "fp32"
    assert (placed / "model.onnx").read_text() == "two"
    assert not (placed / "left_over").exists()


def test_the_same_artifact_is_not_copied_again_unless_a_file_was_cut(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "build")
    artifact = make_artifact(tmp_path / "a", "k1", "one")
    output.place(artifact, "t/fp32")
    file = tmp_path / "build" / "t" / "fp32" / "model.onnx"
    before = file.stat().st_ino
    output.place(artifact, "t/fp32")
    assert file.stat().st_ino == before

    file.write_text("o")
    output.place(artifact, "t/fp32")
    assert file.read_text() == "one"


def test_a_folder_that_retarget_did_not_make_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RetargetError, match="did not make") as refused:
        OutputFolder(tmp_path)
    assert refused.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RetargetError, match="is a file"):
        OutputFolder(tmp_path / "out")


def test_what_could_not_be_built_again_is_taken_away(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "build")
    output.place(make_artifact(tmp_path / "a", "k1", "one"), "t/fp32")
    output.remove("t/fp32")
    assert not (tmp_path / "build" / "t" / "fp32").exists()
    output.remove("t/fp32")


def test_a_disk_error_names_the_place_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "build")
    artifact = make_artifact(tmp_path / "a", "k1", "one")
    (tmp_path / "build" / "t").write_text("a file where a folder should be")
    with pytest.raises(RetargetError, match="cannot be written"):
        output.place(artifact, "t/fp32")
    assert sorted(path.name for path in (tmp_path / "build").iterdir()) == [MARKER, "t"]


def test_one_build_at_a_time_changes_the_folder(tmp_path: Path) -> None:
    one, other = OutputFolder(tmp_path / "build"), OutputFolder(tmp_path / "build")
    order: list[str] = []

    def second() -> None:
        with other.alone():
            order.append("other")

    with one.alone():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("one")
    thread.join()
    assert order == ["one", "other"]


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "build")
    (tmp_path / "build" / ".new-abc").mkdir()
    (tmp_path / "build" / ".old-abc" / "artifact").mkdir(parents=True)
    with output.alone():
        assert [path.name for path in (tmp_path / "build").iterdir()] == [MARKER]

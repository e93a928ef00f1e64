"""The doctor: what is there, what is not, and the command that adds it."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec
import psutil
import pytest

from retarget import catalog, distributions, doctor, processor
from retarget.targets import openvino
from retarget.targets.tensorrt import gpu
from retarget.targets.tensorrt.flavour import Flavour


def found(area: str, name: str) -> doctor.Examined:
    (row,) = [row for row in doctor.examine() if (row.area, row.name) == (area, name)]
    return row


def test_everything_in_the_catalogue_is_examined() -> None:
    rows = doctor.examine()
    assert [row.name for row in rows if row.area == "frontend"] == list(catalog.FRONTENDS)
    assert [row.name for row in rows if row.area == "target"] == list(catalog.TARGETS)


def test_the_rows_are_data() -> None:
    rows = msgspec.json.decode(msgspec.json.encode(doctor.examine()))
    assert {"area", "name", "version", "here", "add"} == set(rows[0])


def test_the_machine() -> None:
    assert found("machine", "python").version == platform.python_version()
    assert 1 <= processor.cores() <= (os.cpu_count() or 1)
    assert 0 < doctor.memory_limit() <= psutil.virtual_memory().total


def test_a_container_s_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(doctor, "_CGROUP_LIMITS", (limit,))
    limit.write_text("536870912\n")
    assert doctor.memory_limit() == 512 << 20
    limit.write_text("max\n")
    assert doctor.memory_limit() == psutil.virtual_memory().total


def test_versions_are_those_of_the_distributions() -> None:
    assert found("core", "onnxruntime").version == version("onnxruntime")
    assert found("core", "retarget").version == version("retarget")


def test_a_frontend_without_its_framework_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "torch" else "1.0")
    row = found("frontend", "pytorch")
    assert row.here == "no: torch not installed"
    assert row.add == "pip install 'retarget[pytorch]'"
    assert row.version == "safetensors 1.0"


def test_a_target_without_its_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        openvino, "unavailable", lambda: ("openvino is not installed", "pip install 'retarget[openvino]'")
    )
    row = found("target", "openvino")
    assert (row.here, row.add) == ("no: openvino is not installed", "pip install 'retarget[openvino]'")


def test_a_target_that_builds_here_and_does_not_execute_says_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flavour, "version", lambda self: "1.7.1")
    monkeypatch.setattr(Flavour, "unavailable", lambda self: None)
    monkeypatch.setattr(gpu, "missing", lambda: "no NVIDIA GPU on this machine")
    builds = "builds fp32, fp16, int8, int8_weights, int4_weights"
    assert found("target", "tensorrt_rtx").here == f"{builds}; does not execute: no NVIDIA GPU on this machine"
    monkeypatch.setattr(gpu, "missing", lambda: None)
    assert found("target", "tensorrt_rtx").here == f"{builds}; executes"


def test_a_frontend_that_another_interpreter_runs(tmp_path: Path) -> None:
    toolchains = {"pytorch": Path(sys.executable), "onnx": tmp_path / "none"}
    rows = {row.name: row for row in doctor.examine(toolchains) if row.area == "frontend"}
    there, missing = rows["pytorch"], rows["onnx"]
    assert there.here == f"converts, run by {sys.executable}"
    assert there.version == (
        f"python {platform.python_version()}, torch {version('torch')}, safetensors {version('safetensors')},"
        f" onnx {version('onnx')}"
    )
    assert missing.here == f"no: {tmp_path / 'none'}: no such file"


def test_a_distribution_may_have_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"tensorflow-cpu": "2.13.1"}
    assert distributions.version_among("tensorflow", installed.get) == "2.13.1"
    assert distributions.version_among("keras", installed.get) is None
    assert distributions.version_of("numpy") == version("numpy")
    assert distributions.version_of("no-such-distribution") is None

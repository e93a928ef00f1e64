"""The target ``tensorrt``, whose library cannot be installed on the test machines.

Its light half is tested as it is; its emitter on TensorRT-RTX's library, which has the same API.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from retarget.errors import MissingToolchain
from retarget.protocols import EmitJob
from retarget.spec import DimRange, TensorSpec
from retarget.targets import tensorrt, tensorrt_rtx
from retarget.targets.tensorrt import gpu
from retarget.targets.tensorrt.flavour import TENSORRT, TENSORRT_RTX, Flavour

ABSENT = Flavour("tensorrt", "TensorRT", "no_such_library", "tensorrt", builds_without_gpu=False)


def test_a_missing_library_gives_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for flavour in (TENSORRT, TENSORRT_RTX):
        monkeypatch.setattr(sys, "platform", "linux")
        absent = Flavour(
            flavour.target, flavour.title, "no_such_library", flavour.extra, flavour.builds_without_gpu, flavour.broken
        )
        assert absent.unavailable() == (
            "no_such_library is not installed",
            f"pip install 'retarget[{flavour.extra}]'",
        )
        assert absent.not_executable() == "no_such_library is not installed"
        with pytest.raises(MissingToolchain, match="no_such_library is not installed"):
            absent.require()


def test_macos_has_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tensorrt.unavailable() == ("TensorRT is for Linux and Windows only", "build this target on Linux")
    assert tensorrt_rtx.unavailable() == ("TensorRT-RTX is for Linux and Windows only", "build this target on Linux")


def test_only_tensorrt_needs_a_gpu_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Flavour, "version", lambda self: "1.0")
    monkeypatch.setattr(gpu, "missing", lambda: "no NVIDIA GPU on this machine")
    reason = tensorrt.unavailable()
    assert reason is not None
    assert reason[0] == "no NVIDIA GPU on this machine"
    assert "tensorrt_rtx" in reason[1]
    assert tensorrt_rtx.unavailable() is None
    assert tensorrt_rtx.not_executable() == "no NVIDIA GPU on this machine"

    monkeypatch.setattr(gpu, "missing", lambda: None)
    assert tensorrt.unavailable() is None
    assert tensorrt.not_executable() is None


def test_the_fingerprint_of_tensorrt_names_the_gpu_and_that_of_rtx_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    card = tmp_path / "gpus/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA L4\nIRQ:   16\n")
    monkeypatch.setattr(gpu, "_GPUS", tmp_path / "gpus")
    assert tensorrt.fingerprint()["gpu"] == "NVIDIA L4"
    assert set(tensorrt_rtx.fingerprint()) == {"tensorrt_rtx"}


@pytest.mark.skipif(sys.platform != "linux", reason="the driver's files are Linux's")
def test_a_gpu_is_seen_by_the_driver_s_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "_GPUS", tmp_path / "gpus")
    monkeypatch.setattr(gpu, "_DEV", tmp_path / "dev")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert gpu.missing() == "no NVIDIA GPU on this machine"

    (tmp_path / "dev/nvidia0").touch()
    monkeypatch.setattr(gpu, "LIBRARY", "libno_such_driver.so.1")
    assert gpu.missing() == "the NVIDIA driver has no libno_such_driver.so.1"
    monkeypatch.setattr(gpu, "LIBRARY", "libc.so.6")
    assert gpu.missing() is None


def test_the_light_halves_import_nothing_heavy() -> None:
    code = (
        "import sys, retarget.targets.tensorrt as a, retarget.targets.tensorrt_rtx as b\n"
        "for t in (a, b): t.unavailable(), t.not_executable(), t.fingerprint()\n"
        "print({'numpy', 'onnx', 'onnx_ir', 'tensorrt', 'tensorrt_rtx', 'ml_dtypes'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_the_emitter_works_on_the_shared_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is for Linux")
    from retarget.targets.tensorrt import build, emit

    library = importlib.import_module("tensorrt_rtx")
    monkeypatch.setattr(build, "load_library", lambda flavour: library)
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }'
    )
    spec = TensorSpec("x", "float32", ("N", 4))
    options = tensorrt.Options(builder_optimization_level=1)
    job = EmitJob("fp32", (spec,), (TensorSpec("y", "float32", ("N", 4)),), {"N": DimRange(1, 2, 4)}, options)
    assert emit.check(model, job) == []
    facts = emit.emit(model, job, tmp_path)

    assert facts.target == "tensorrt"
    assert (tmp_path / "model.engine").stat().st_size > 0
    assert "Runs on GPUs like the one of the machine that built it." in facts.notes


def test_options_reach_the_builder() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is for Linux")
    from retarget.targets.tensorrt import emit
    from retarget.targets.tensorrt.network import library_log

    library = importlib.import_module("tensorrt_rtx")
    builder = library.Builder(library_log(library).sink)
    default, strict = builder.create_builder_config(), builder.create_builder_config()
    emit.configure(library, default, tensorrt.Options(tf32=True))
    notes = emit.configure(
        library,
        strict,
        tensorrt.Options(builder_optimization_level=5, workspace_mib=64, hardware_compatibility="ampere_plus"),
    )

    assert default.get_flag(library.BuilderFlag.TF32)
    assert not strict.get_flag(library.BuilderFlag.TF32)
    assert strict.builder_optimization_level == 5
    assert strict.get_memory_pool_limit(library.MemoryPoolType.WORKSPACE) == 64 << 20
    assert notes == ("Runs on NVIDIA GPUs from Ampere (compute capability 8.0) on.",)

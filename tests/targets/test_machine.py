from __future__ import annotations

import platform
from pathlib import Path

import pytest

from retarget.targets import machine, onnxruntime, openvino


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (
            "processor : 0\nflags : fpu avx512f amx_bf16 avx512_bf16\n\nprocessor : 1\nflags : none",
            " amx_bf16 avx512_bf16",
        ),
        ("processor : 0\nflags : fpu avx2 avx512f avx_vnni amx_int8\n", " amx_int8 avx_vnni"),
        ("processor : 0\nFeatures : fp asimd fphp asimdhp asimddp\n", " asimddp asimdhp fphp"),
        ("processor : 0\nflags : fpu sse2\n", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_arithmetic_in_few_bits_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, features: str
) -> None:
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(machine, "_CPUINFO", file)
    machine.cpu.cache_clear()
    assert machine.cpu() == platform.machine() + features
    machine.cpu.cache_clear()


@pytest.mark.parametrize(
    ("architecture", "flags", "saturates"),
    [
        ("x86_64", "fpu avx2 fma", True),
        ("AMD64", "fpu sse4_1", True),
        ("x86_64", "fpu avx2 avx512f avx512_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("x86_64", "", False),
        ("aarch64", "fp asimd", False),
    ],
)
def test_cpus_that_saturate_products_of_8_bits_are_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, architecture: str, flags: str, saturates: bool
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(machine, "_CPUINFO", file)
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    machine.saturates.cache_clear()
    assert machine.saturates() == saturates
    machine.saturates.cache_clear()


def test_what_is_read_back_from_a_cpu_is_keyed_by_it() -> None:
    for target in (onnxruntime, openvino):
        assert target.fingerprint()["cpu"] == machine.cpu()


def test_a_missing_openvino_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "version_of", lambda name: None)
    assert openvino.unavailable() == ("openvino is not installed", "pip install 'retarget[openvino]'")
    assert openvino.not_executable() == "openvino is not installed"
    assert openvino.fingerprint()["openvino"] == "not installed"

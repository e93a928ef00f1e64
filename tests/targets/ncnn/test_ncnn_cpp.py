"""The program of C++ beside the files: what it says, and where there is a compiler and ncnn for C++, what it does."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import target_testing
from ncnn_written import job

from retarget import catalog
from retarget.facts import EmitFacts
from retarget.spec import DimRange
from retarget.targets.ncnn import Options, cpp

if TYPE_CHECKING:
    from retarget.protocols import Array

MIXED = """g (float[N,T,4] image, int64[N,T] ids, bool[2,3] mask, float[7,4] w_t) => (float[N,T,4] y, float[2,3] z) {
    e = Gather <axis = 0> (w_t, ids)
    s = Add(e, image)
    y = Relu(s)
    f = Cast <to = 1> (mask)
    z = Add(f, f)
}"""
VOLUME = """g (float[1,2,3,4,5] x, float[N,6] rows) => (float[1,2,3,4,5] y, float[N,6] z) {
    y = Relu(x)
    z = Relu(rows)
}"""
STANDS_FOR_NET_H = """
#include <stddef.h>
namespace ncnn {
struct Mat {
    Mat(); Mat(int w); Mat(int w, int h); Mat(int w, int h, int c); Mat(int w, int h, int d, int c);
    Mat(int w, size_t elemsize, int elempack, int n); Mat(int w, int h, size_t elemsize, int elempack, int n);
    Mat(int w, int h, int c, size_t elemsize, int elempack, int n);
    Mat(int w, int h, int d, int c, size_t elemsize, int elempack, int n);
    Mat batch(int b); const Mat batch(int b) const; Mat channel(int c); const Mat channel(int c) const;
    operator const float*() const;
    void* data; int w, h, d, c, n;
};
struct Option { bool use_fp16_packed, use_fp16_storage, use_fp16_arithmetic, use_bf16_packed, use_bf16_storage; };
struct Extractor { int input(const char* name, const Mat& in); int extract(const char* name, Mat& feat); };
struct Net {
    Option opt;
    int load_param(const char*); int load_model(const char*); Extractor create_extractor() const;
};
}
"""
PROJECT = f"""cmake_minimum_required(VERSION 3.12)
project(model CXX)
find_package(ncnn QUIET)
if(NOT ncnn_FOUND)
    message(STATUS "no ncnn here")
    return()
endif()
set(CMAKE_CXX_STANDARD 11)
add_executable(model {cpp.FILE})
target_link_libraries(model ncnn)
"""


def emitted(text: str, out: Path, **renamed: str) -> tuple[ir.Model, EmitFacts]:
    model = target_testing.model(text)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = renamed.get(value.name or "", value.name)
    made = dataclasses.replace(job(model, N=DimRange(1, 3, 8), T=DimRange(1, 4, 8)), options=Options(emit_cpp=True))
    return model, catalog.target_emit("ncnn").emit(model, made, out)


def compiler() -> str:
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("there is no compiler of C++ here")
    return found


def test_inputs_have_the_dims_and_types_of_their_blobs(tmp_path: Path) -> None:
    emitted(MIXED, tmp_path)
    source = (tmp_path / cpp.FILE).read_text()
    assert "ncnn::Mat input0(4, size_T, (size_t)4u, 1, size_N);" in source
    assert "ncnn::Mat input1(size_T, (size_t)4u, 1, size_N);" in source
    assert "ncnn::Mat input2(3, 2);" in source
    assert source.count("std::vector<int> elements(") == 1
    assert "const int size_N = 3; // 1 to 8" in source
    assert "net.opt.use_fp16_storage = false;" in source


def test_a_layer_that_fails_is_told_by_the_output_that_was_asked_for(tmp_path: Path) -> None:
    emitted(MIXED, tmp_path)
    source = (tmp_path / cpp.FILE).read_text()
    for name in ("y", "z"):
        assert f'fprintf(stderr, "a layer fails on the way to %s\\n", "{name}");' in source


@pytest.mark.parametrize("text", [MIXED, VOLUME])
def test_it_compiles_against_what_it_uses_of_ncnn(text: str, tmp_path: Path) -> None:
    """Declarations stand for ncnn's header, so that its own need not be installed."""
    (tmp_path / "net.h").write_text(STANDS_FOR_NET_H)
    emitted(text, tmp_path, image='a "quoted" \\ image', y="trigraph??/")
    subprocess.run(
        [compiler(), "-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", cpp.FILE],
        cwd=tmp_path,
        check=True,
        timeout=60,
    )


@pytest.mark.parametrize("text", [MIXED, VOLUME])
def test_it_computes_what_the_runner_does(text: str, tmp_path: Path) -> None:
    compiler()
    if shutil.which("cmake") is None:
        pytest.skip("there is no CMake here")
    model, facts = emitted(text, tmp_path)
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    configured = subprocess.run(
        ["cmake", "-S", ".", "-B", "build"], cwd=tmp_path, check=True, timeout=120, capture_output=True, text=True
    )
    if "no ncnn here" in configured.stdout:
        pytest.skip("ncnn's own library for C++ is not here: set ncnn_DIR to the folder of its ncnnConfig.cmake")
    subprocess.run(["cmake", "--build", "build"], cwd=tmp_path, check=True, timeout=300, capture_output=True)
    ended = subprocess.run(["build/model", "."], cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True)
    printed = {
        match[1]: [float(number) for number in match[3].split()]
        for match in re.finditer(r"^(\S+): ([^:]*):(.*)$", ended.stdout, re.MULTILINE)
    }
    feeds: dict[str, Array] = {}
    drawn = target_testing.feeds(model, 3)
    for entry in facts.inputs:
        shape, dtype = entry.spec.at({"N": 3, "T": 4}), drawn[entry.name].dtype
        places = np.arange(np.prod(shape)).reshape(shape)
        floats = np.float32(0.1) * (places % 10).astype(np.float32)
        feeds[entry.name] = floats if dtype.kind == "f" else (places % 2).astype(dtype)
    for name, right in target_testing.run("ncnn", tmp_path, facts, feeds).items():
        np.testing.assert_allclose(printed[name], right.reshape(-1)[:8].astype(np.float64), rtol=1e-5, atol=1e-6)

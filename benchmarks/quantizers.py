"""The tools that `benchmarks.quantization` holds against each other, each run in a process of its own.

Every tool gets the same float ONNX file with one input ``x``, folded by retarget's default preset, and the same rows in
a ``.npy`` file that is mapped, one row at a time; its other settings are its defaults. Peers may live in another
environment: `INSTALL` makes it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import resource
import site
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from benchmarks.measure import Cost, cost, in_process

if TYPE_CHECKING:
    import onnx_ir as ir

    from retarget.protocols import Array, Feeds

PEERS = Path("build/peers")
"""The environment of the peers that are no dependency of this project."""
INSTALL: Sequence[Sequence[str]] = (
    ("nncf",),
    # Without its dependencies: it pins an older ONNX and ONNX Runtime for GPUs, and needs neither here.
    (
        "--no-deps", "nvidia-modelopt", "onnx_graphsurgeon", "polygraphy", "onnxconverter-common", "cppimport", "lief",
        "nvidia-ml-py", "PuLP", "omegaconf", "antlr4-python3-runtime", "Mako", "pybind11",
    ),
)  # fmt: skip
MEMORY = 6 << 30
"""Bytes that a tool may take: some keep every activation of every sample."""


def install(folder: Path) -> None:
    """Make the peers' environment: beside this one, whose packages it sees."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "project.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    for arguments in INSTALL:
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *arguments], check=True)


def rows(samples: Path) -> Iterator[Feeds]:
    """One row at a time."""
    array = np.load(samples, mmap_mode="r")
    for index in range(len(array)):
        yield {"x": np.ascontiguousarray(array[index : index + 1])}


# ---- retarget, as its steps do it


def _retarget(target: str) -> Callable[[Path, Path, Path], None]:
    def quantize(source: Path, samples: Path, out: Path) -> None:
        from retarget import catalog, graph
        from retarget.passes import presets
        from retarget.protocols import EmitJob
        from retarget.spec import DEFAULT_RANGE, symbols

        model = _int8(graph.load(source), samples, target)
        inputs = tuple(graph.value_spec(value) for value in model.graph.inputs)
        shapes = dict.fromkeys(symbols(inputs), DEFAULT_RANGE)
        graph.save(model, out / "simulated.onnx")
        for _, one in presets.build([(name, {}) for name in catalog.target(target).lower], shapes):
            model = one(model).model
        job = EmitJob(
            precision="int8",
            inputs=inputs,
            outputs=tuple(graph.value_spec(value) for value in model.graph.outputs),
            shapes=shapes,
            options=catalog.target(target).Options(),
        )
        catalog.target_emit(target).emit(model, job, out)

    return quantize


def _int8(model: ir.Model, samples: Path, target: str) -> ir.Model:
    """Equalized, calibrated and quantized with the recipe's defaults; no budget."""
    from retarget import catalog, int8
    from retarget.budget import Batch
    from retarget.calibration.observers import observe
    from retarget.equalization import equalize
    from retarget.options import DataOptions, Int8Options

    scheme = catalog.target(target).schemes["int8"]
    array = np.load(samples, mmap_mode="r")
    batches: list[Feeds] = [{"x": np.asarray(array[at : at + 8])} for at in range(0, len(array), 8)]
    given = [batch for index, batch in enumerate(batches) if not int8.is_held_out(index)] or batches
    held = [batch for index, batch in enumerate(batches) if int8.is_held_out(index)] or batches
    model, _ = equalize(model, batches, {"data": batches[0]}, strict=False)
    options = Int8Options(
        scheme=scheme,
        method="auto",
        percentile=99.99,
        max_drop=None,
        min_snr_db=None,
        correct_bias=True,
        keep=(),
        rest="fp32",
        data=DataOptions(origin="samples", limit=None),
        selection=None,
    )
    data = int8.Data(
        ranges=observe(model, given),
        calibration=lambda: iter(given),
        judged_on=[Batch(feeds) for feeds in held],
        words="rows",
        metric=None,
    )
    return int8.quantize(model, options, data)[0]


def _retarget_calibrates(source: Path, samples: Path) -> None:
    from retarget import graph
    from retarget.calibration.observers import observe

    observe(graph.load(source), rows(samples))


# ---- peers


class _Reader:
    """What ONNX Runtime's tools read samples from."""

    def __init__(self, samples: Path) -> None:
        self._rows = rows(samples)

    def get_next(self) -> Feeds | None:
        return next(self._rows, None)


def _onnxruntime(method: str) -> Callable[[Path, Path, Path], None]:
    def quantize(source: Path, samples: Path, out: Path) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        quantize_static(
            source,
            out / "model.onnx",
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )

    return quantize


def _onnxruntime_calibrates(method: str) -> Callable[[Path, Path], None]:
    def calibrate(source: Path, samples: Path) -> None:
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
        from onnxruntime.quantization.registry import QDQRegistry

        calibrator = create_calibrator(
            source,
            list(QDQRegistry),
            augmented_model_path=str(samples.with_suffix(".augmented.onnx")),
            calibrate_method=CalibrationMethod[method],
            use_external_data_format=source.with_name(source.name + ".data").exists(),
        )
        calibrator.collect_data(_Reader(samples))
        calibrator.compute_data()

    return calibrate


def _nncf(source: Path, samples: Path, out: Path) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    transformer = any(node.get_type_name() == "Softmax" for node in model.get_ops())
    quantized = nncf.quantize(
        model,
        nncf.Dataset([feeds["x"] for feeds in rows(samples)]),
        subset_size=len(np.load(samples, mmap_mode="r")),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    openvino.save_model(quantized, out / "model.xml", compress_to_fp16=False)


def _nncf_calibrates(source: Path, samples: Path) -> None:
    import nncf
    import openvino

    class Mapped:
        """A data source that holds one row at a time."""

        def __iter__(self) -> Iterator[Array]:
            return (feeds["x"] for feeds in rows(samples))

    count = len(np.load(samples, mmap_mode="r"))
    nncf.quantize(openvino.Core().read_model(source), nncf.Dataset(Mapped()), subset_size=count)


def _onnxsim(method: str) -> Callable[[Path, Path, Path], None]:
    def quantize(source: Path, samples: Path, out: Path) -> None:
        import onnx
        import onnxsim

        onnx.save(onnxsim.quantize_static(str(source), list(rows(samples)), method=method), out / "model.onnx")

    return quantize


def _onnxsim_calibrates(method: str) -> Callable[[Path, Path], None]:
    def calibrate(source: Path, samples: Path) -> None:
        import onnxsim

        class Mapped(Sequence[Mapping[str, "Array"]]):
            """A data source that holds one row at a time."""

            def __init__(self) -> None:
                self._array = np.load(samples, mmap_mode="r")

            def __len__(self) -> int:
                return len(self._array)

            def __getitem__(self, index: object) -> dict[str, Array]:  # type: ignore[override]
                assert isinstance(index, int)
                if index >= len(self._array):
                    raise IndexError(index)
                return {"x": np.ascontiguousarray(self._array[index : index + 1])}

        onnxsim.calibrate(str(source), Mapped(), method=method)

    return calibrate


def _modelopt(method: str) -> Callable[[Path, Path, Path], None]:
    def quantize(source: Path, samples: Path, out: Path) -> None:
        from modelopt.onnx.quantization import quantize

        quantize(
            str(source),
            calibration_data={"x": np.load(samples)},
            calibration_method=method,
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(out / "model.onnx"),
        )

    return quantize


# ---- the table


@dataclass(frozen=True)
class Tool:
    """``needs`` are the modules imported before the clock starts; ``histogram``: it does more than minima and maxima.

    ``quantize`` writes ``model.onnx`` or ``model.xml`` into a folder, ``calibrate`` only learns ranges: NNCF's is all
    that it does, as it cannot be asked for less.
    """

    needs: Sequence[str]
    quantize: Callable[[Path, Path, Path], None]
    calibrate: Callable[[Path, Path], None] | None = None
    histogram: bool = False
    peer: bool = True

    def missing(self, interpreter: Path) -> bool:
        """Whether ``interpreter``'s environment lacks one of ``needs``."""
        names = [name.split(".")[0] for name in self.needs]
        code = f"import importlib.util, sys; sys.exit(any(importlib.util.find_spec(n) is None for n in {names!r}))"
        return subprocess.run([str(interpreter), "-c", code], check=False).returncode != 0


_OURS = ("retarget.int8", "retarget.equalization", "retarget.passes.presets", "retarget.calibration.observers")
_ORT = ("onnxruntime.quantization",)

TOOLS: Mapping[str, Tool] = {
    "retarget": Tool(_OURS, _retarget("onnxruntime"), _retarget_calibrates, histogram=True, peer=False),
    "retarget openvino": Tool((*_OURS, "openvino"), _retarget("openvino"), peer=False),
    "ort minmax": Tool(_ORT, _onnxruntime("MinMax"), _onnxruntime_calibrates("MinMax")),
    "ort entropy": Tool(_ORT, _onnxruntime("Entropy"), _onnxruntime_calibrates("Entropy"), histogram=True),
    "ort percentile": Tool(_ORT, _onnxruntime("Percentile"), _onnxruntime_calibrates("Percentile"), histogram=True),
    "nncf": Tool(("nncf", "openvino"), _nncf, _nncf_calibrates),
    "onnxsim minmax": Tool(("onnxsim",), _onnxsim("minmax"), _onnxsim_calibrates("minmax")),
    "onnxsim entropy": Tool(("onnxsim",), _onnxsim("entropy"), _onnxsim_calibrates("entropy"), histogram=True),
    "modelopt max": Tool(("modelopt.onnx.quantization",), _modelopt("max")),
    "modelopt entropy": Tool(("modelopt.onnx.quantization",), _modelopt("entropy")),
}


def interpreter(name: str, peers: Path) -> Path | None:
    """That of this project or of the peers, whichever has what the tool needs; None: it is not installed."""
    for candidate in (Path(sys.executable), peers / "bin" / "python"):
        if candidate.exists() and not TOOLS[name].missing(candidate):
            return candidate
    return None


def run(name: str, what: str, paths: Sequence[Path], peers: Path, timeout: float) -> Cost:
    """``what`` is ``quantize`` (source, samples, folder) or ``calibrate`` (source, samples)."""
    found = interpreter(name, peers)
    if found is None:
        return Cost(error="not installed")
    return in_process("benchmarks.quantizers", [name, what, *map(str, paths)], timeout, found)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.quantizers", description=__doc__)
    parser.add_argument("tool", choices=list(TOOLS))
    parser.add_argument("what", choices=["quantize", "calibrate"])
    parser.add_argument("paths", nargs="+", type=Path)
    given = parser.parse_args()
    tool = TOOLS[given.tool]
    for module in tool.needs:
        importlib.import_module(module)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    work = tool.quantize if given.what == "quantize" else tool.calibrate
    assert work is not None
    spent = cost(lambda: work(*given.paths))
    # On a line of its own: tools print too.
    sys.stdout.write("\n" + msgspec.json.encode(spent).decode() + "\n")


if __name__ == "__main__":
    main()

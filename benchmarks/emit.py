"""retarget's emitters beside each target's own converter called directly: time, memory, size and latency as ratios.

Both start from the same exported ONNX file. retarget's figure is the passes and the emitter together, because that is
what a user waits for; the converter's is its documented way from an ONNX file to its artifact. Ratios are the
converter's figure by retarget's: above 1, retarget is better. `python -m benchmarks.emit --help` shows the options.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec

from benchmarks.measure import Cost, cost, in_process
from benchmarks.models import MODELS, Size, prepare

if TYPE_CHECKING:
    import onnx_ir as ir

    from retarget.facts import EmitFacts

CALLS = 20
"""Timed calls of each artifact in the latency measurement, in turn."""


def retarget(target: str, source: Path, out: Path) -> None:
    """Passes and emitter, as a build does them."""
    from retarget import graph

    write(target, optimized(graph.load(source)), out, {})


def optimized(model: ir.Model) -> ir.Model:
    """By the default preset."""
    from retarget.passes import presets

    for one in presets.build("default", {}):
        model = one.run(model).model
    return model


def write(target: str, model: ir.Model, out: Path, options: Mapping[str, object]) -> EmitFacts:
    """The target's own passes and its emitter, in float32."""
    from retarget import catalog, graph
    from retarget.passes import presets
    from retarget.protocols import EmitJob
    from retarget.spec import DEFAULT_RANGE, symbols

    inputs = tuple(graph.value_spec(value) for value in model.graph.inputs)
    shapes = dict.fromkeys(symbols(inputs), DEFAULT_RANGE)
    for _, one in presets.build([(name, {}) for name in catalog.target(target).lower], shapes):
        model = one(model).model
    job = EmitJob(
        precision="fp32",
        inputs=inputs,
        outputs=tuple(graph.value_spec(value) for value in model.graph.outputs),
        shapes=shapes,
        options=msgspec.convert(options, catalog.target(target).Options),
    )
    return catalog.target_emit(target).emit(model, job, out)


def openvino(source: Path, out: Path) -> None:
    """``ovc``'s own function."""
    import openvino

    openvino.save_model(openvino.convert_model(source), out / "model.xml", compress_to_fp16=False)


def tensorrt_rtx(source: Path, out: Path) -> None:
    """The sample of its documentation: parse, one profile, build."""
    import tensorrt_rtx

    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        raise RuntimeError(parser.get_error(0).desc())
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        low, high = ([bound if size < 0 else size for size in tensor.shape] for bound in (1, 8))
        profile.set_shape(tensor.name, low, low, high)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError("no engine was built")
    (out / "model.engine").write_bytes(engine)


DIRECT: Mapping[str, tuple[Callable[[Path, Path], None], str]] = {
    "openvino": (openvino, "openvino"),
    "tensorrt_rtx": (tensorrt_rtx, "tensorrt_rtx"),
}
"""Target to its own converter and the library that is imported before the clock starts."""


def measure(who: str, target: str, source: Path, out: Path) -> Cost:
    """The cost of one of the two, in this process."""
    direct, library = DIRECT[target]
    importlib.import_module(library)
    if who == "retarget":
        importlib.import_module("retarget.passes.library")
        return cost(lambda: retarget(target, source, out))
    return cost(lambda: direct(source, out))


def openvino_latency(folders: Mapping[str, Path], feeds: Mapping[str, object]) -> dict[str, float]:
    """Median milliseconds of each OpenVINO artifact at the runtime's default, called in turn."""
    import openvino

    core = openvino.Core()
    config = {"INFERENCE_NUM_THREADS": 2, "PERFORMANCE_HINT": "LATENCY"}
    compiled = {who: core.compile_model(folder / "model.xml", "CPU", config) for who, folder in folders.items()}
    taken: dict[str, list[float]] = {who: [] for who in compiled}
    for turn in range(CALLS + 3):
        for who, model in compiled.items():
            started = time.perf_counter()
            model(list(feeds.values()))
            if turn >= 3:
                taken[who].append((time.perf_counter() - started) * 1e3)
    return {who: statistics.median(times) for who, times in taken.items()}


def report(name: str, size: Size, target: str, folder: Path, timeout: float) -> None:
    """One table: retarget and the target's own converter on one model."""
    source = prepare(name, size, folder)
    print(f"\n{name} ({size}) to {target}")
    print(f"{'':20}{'seconds':>9}{'ratio':>7}{'peak MB':>9}{'ratio':>7}{'MB':>8}{'ratio':>7}{'ms':>9}{'ratio':>7}")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        folders = {who: Path(temporary) / who for who in ("retarget", "direct")}
        costs = {}
        for who, out in folders.items():
            out.mkdir()
            costs[who] = in_process("benchmarks.emit", ["--run", who, target, str(source), str(out)], timeout)
        sizes = {who: sum(file.stat().st_size for file in out.iterdir()) / 1e6 for who, out in folders.items()}
        failed = [who for who, one in costs.items() if one.error]
        batch = 2 if name == "swin" else 1
        feeds = dict(MODELS[name].feeds(size, batch))
        latency = openvino_latency(folders, feeds) if target == "openvino" and not failed else {}
    own = costs["retarget"]
    for who, one in costs.items():
        if one.error:
            print(f"{who:20}  failed: {one.error}")
            continue
        line = f"{who:20}{one.seconds:>9.2f}{one.seconds / (own.seconds or 1):>7.2f}"
        line += f"{one.peak_mb:>9.0f}{one.peak_mb / (own.peak_mb or 1):>7.2f}"
        line += f"{sizes[who]:>8.1f}{sizes[who] / (sizes['retarget'] or 1):>7.2f}"
        if latency:
            line += f"{latency[who]:>9.2f}{latency[who] / latency['retarget']:>7.2f}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.emit", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["resnet", "bert"])
    parser.add_argument("--size", choices=get_args(Size), default="large")
    parser.add_argument("--targets", nargs="+", choices=list(DIRECT), default=list(DIRECT))
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="where models are kept")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that one conversion may take")
    parser.add_argument("--run", nargs=4, metavar=("WHO", "TARGET", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        who, target, source, out = given.run
        sys.stdout.write(msgspec.json.encode(measure(who, target, Path(source), Path(out))).decode() + "\n")
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.models:
        for target in given.targets:
            report(name, given.size, target, given.folder, given.timeout)


if __name__ == "__main__":
    main()

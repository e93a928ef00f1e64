"""retarget's passes beside onnxsim, onnxslim and onnxscript.optimizer: time, memory, nodes and latency as ratios.

Each tool runs in a process of its own: it loads the file, optimizes and saves. Memory is the peak of anonymous memory
(mapped weights are not a leak) above that of the imports. Ratios are the peer's figure by retarget's: above 1, retarget
is better. `python -m benchmarks.optimize --help` shows the options.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec
import onnx
import onnx_ir as ir
import onnxruntime as ort

from benchmarks.measure import Cost, cost, in_process
from benchmarks.models import MODELS, Size, prepare

CALLS = 15
"""Timed calls of each model in the latency measurement, in turn."""


@dataclass(frozen=True)
class Figures:
    """What one tool did to one model. ``error`` instead of figures where it failed."""

    seconds: float = 0.0
    peak_mb: float = 0.0
    nodes: int = 0
    error: str | None = None


# ---- the tools, each imported only in its own process


def _retarget(source: Path, out: Path) -> None:
    from retarget import graph
    from retarget.passes import presets

    model = graph.load(source)
    for one in presets.build("default", {}):
        model = one.run(model).model
    graph.save(model, out)


def _passes_only(source: Path, _: Path) -> None:
    from retarget import graph
    from retarget.passes import presets

    model = graph.load(source)
    for one in presets.build("default", {}):
        model = one.run(model).model


def _onnxsim(source: Path, out: Path) -> None:
    import onnxsim

    simplified, _ = onnxsim.simplify(onnx.load(source))
    _save_proto(simplified, out)


def _onnxslim(source: Path, out: Path) -> None:
    import onnxslim

    _save_proto(onnxslim.slim(onnx.load(source)), out)


def _onnxscript(source: Path, out: Path) -> None:
    from onnxscript import optimizer

    model = ir.load(source)
    optimizer.optimize(model)
    ir.save(model, out, external_data=out.name + ".data")


def _both(source: Path, out: Path) -> None:
    """onnxscript, then onnxsim: the best that peers reach."""
    import onnxsim
    from onnxscript import optimizer

    model = ir.load(source)
    optimizer.optimize(model)
    ir.external_data.load_to_model(model)
    simplified, _ = onnxsim.simplify(ir.to_proto(model))
    _save_proto(simplified, out)


def _save_proto(proto: onnx.ModelProto, out: Path) -> None:
    large = proto.ByteSize() > 1 << 30
    onnx.save(proto, out, save_as_external_data=large, location=out.name + ".data")


TOOLS: Mapping[str, tuple[Callable[[Path, Path], None], tuple[str, ...]]] = {
    "retarget": (_retarget, ("retarget.graph", "retarget.passes.library")),
    "retarget passes": (_passes_only, ("retarget.graph", "retarget.passes.library")),
    "onnxsim": (_onnxsim, ("onnxsim",)),
    "onnxslim": (_onnxslim, ("onnxslim",)),
    "onnxscript": (_onnxscript, ("onnxscript.optimizer",)),
    "onnxscript+onnxsim": (_both, ("onnxsim", "onnxscript.optimizer")),
}


def _measure(tool: str, source: Path, out: Path) -> Cost:
    """Run ``tool`` here and measure it; for the process that only does this."""
    run, imports = TOOLS[tool]
    for module in imports:
        importlib.import_module(module)
    return cost(lambda: run(source, out))


def _in_process(tool: str, source: Path, out: Path, timeout: float) -> Figures:
    cost = in_process("benchmarks.optimize", ["--run", tool, str(source), str(out)], timeout)
    nodes = sum(node.op_type != "Constant" for node in ir.load(out).graph) if out.exists() else 0
    return Figures(cost.seconds, cost.peak_mb, nodes, cost.error)


# ---- latency


def _latencies(name: str, size: Size, files: Mapping[str, Path], batch: int) -> dict[str, float]:
    """Median milliseconds of each file in ONNX Runtime at its default optimizations, called in turn."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    # Threads that wait for work by spinning would take the cores of the session whose turn it is.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    feeds = dict(MODELS[name].feeds(size, batch))
    sessions = {label: ort.InferenceSession(path, options) for label, path in files.items()}
    times: dict[str, list[float]] = {label: [] for label in sessions}
    for turn in range(CALLS + 3):
        for label, session in sessions.items():
            started = time.perf_counter()
            session.run(None, feeds)
            if turn >= 3:
                times[label].append((time.perf_counter() - started) * 1e3)
    return {label: statistics.median(taken) for label, taken in times.items()}


# ---- the table


def _report(name: str, size: Size, tools: Sequence[str], folder: Path, timeout: float, *, latency: bool) -> None:
    source = prepare(name, size, folder)
    raw = sum(node.op_type != "Constant" for node in ir.load(source).graph)
    print(f"\n{name} ({size}): {raw} nodes")
    print(f"{'':20}{'nodes':>7}{'seconds':>9}{'ratio':>7}{'peak MB':>9}{'ratio':>7}{'ms':>9}{'speed-up':>9}")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        files = {"raw": source}
        results: dict[str, Figures] = {}
        for tool in tools:
            out = Path(temporary) / f"{tool.replace('+', '-').replace(' ', '-')}.onnx"
            results[tool] = _in_process(tool, source, out, timeout)
            if results[tool].error is None and out.exists():
                files[tool] = out
        batch = 2 if name == "swin" else 1
        milliseconds = _latencies(name, size, files, batch) if latency else {}
    own = results.get("retarget")
    if "raw" in milliseconds:
        print(f"{'raw':20}{raw:>7}{'':32}{milliseconds['raw']:>9.2f}")
    for tool, figures in results.items():
        if figures.error is not None:
            print(f"{tool:20}  failed: {figures.error}")
            continue
        line = f"{tool:20}{figures.nodes or '':>7}{figures.seconds:>9.2f}"
        line += f"{figures.seconds / own.seconds:>7.2f}" if own is not None and own.seconds else f"{'':7}"
        line += f"{figures.peak_mb:>9.0f}"
        line += f"{figures.peak_mb / own.peak_mb:>7.2f}" if own is not None and own.peak_mb else f"{'':7}"
        if tool in milliseconds:
            line += f"{milliseconds[tool]:>9.2f}{milliseconds['raw'] / milliseconds[tool]:>9.2f}"
        print(line, flush=True)


def _growth(folder: Path) -> None:
    """Time at 8,000 nodes by time at 2,000: 4 is linear, 16 quadratic."""
    from benchmarks.models import write_long

    seconds = {}
    for nodes in (2_000, 8_000):
        path = folder / f"growth-{nodes}.onnx"
        write_long(nodes, path)
        taken = [_in_process("retarget passes", path, folder / "none.onnx", 600).seconds for _ in range(3)]
        seconds[nodes] = min(taken)
    print(f"\ngrowth: 8,000 nodes take {seconds[8_000] / seconds[2_000]:.1f} times 2,000 (4 is linear, 16 quadratic)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.optimize", description=__doc__)
    parser.add_argument(
        "--models", nargs="+", choices=list(MODELS), default=[name for name in MODELS if name != "heavy"]
    )
    parser.add_argument("--size", choices=get_args(Size), default="large")
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="where models are kept")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a tool may take on a model")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--run", nargs=3, metavar=("TOOL", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        tool, source, out = given.run
        print(msgspec.json.encode(_measure(tool, Path(source), Path(out))).decode())
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.models:
        _report(name, given.size, given.tools, given.folder, given.timeout, latency=not given.no_latency)
    if "long" in given.models:
        _growth(given.folder)


if __name__ == "__main__":
    main()

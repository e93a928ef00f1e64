"""retarget's int8 beside onnxruntime's, NNCF's, onnxsim's and ModelOpt's, and whether it holds what it has to.

- ``calibration``: memory and time of learning ranges on MobileNetV2 3x160x160, and on a model of 1.5 GB.
- ``imbalance``: a digits CNN whose channels were rescaled by e^-3 to e^3 and back, which leaves the function as it is.
- ``accuracy``: SNR of int8 against float on four models that are trained here on real data, on rows that no tool saw.
  ONNX files are run in ONNX Runtime as they are written, its optimizations off; OpenVINO's in OpenVINO at float32.
- ``latency``: of the artifacts, called in turn, for ResNet-50 and MobileNetV2; and what share is computed in int8.

Each part ends with a verdict a line. `python -m benchmarks.quantization --install-peers` makes an environment with the
peers that this project does not depend on; without it they are reported as absent.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from benchmarks import models, quantizers, trained
from benchmarks.quantizers import PEERS, TOOLS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from retarget.protocols import Array

CALLS = 30
"""Timed calls of each artifact, in turn."""
SPAN = 3.0
"""Channels are rescaled by up to e to this power."""
OURS = ("retarget", "retarget openvino")
IN_OPENVINO = ("retarget openvino", "nncf")
"""The tools whose artifacts are OpenVINO's; the others write ONNX files, which ONNX Runtime executes here."""


@dataclass(frozen=True)
class Place:
    """Where things are, and what was asked for."""

    folder: Path
    peers: Path
    tools: Sequence[str]
    timeout: float
    samples: Sequence[int]
    models: Sequence[str]
    """Those that are trained."""

    def artifact(self, tool: str, source: Path, samples: Path) -> Path | None:
        """The file that ``tool`` makes of ``source``; None, and why is printed, where it makes none."""
        out = self.folder / "artifacts" / source.stem / tool.replace(" ", "-")
        for stale in out.glob("*"):
            stale.unlink()
        out.mkdir(parents=True, exist_ok=True)
        spent = quantizers.run(tool, "quantize", (source, samples, out), self.peers, self.timeout)
        found = next((path for name in ("model.onnx", "model.xml") if (path := out / name).exists()), None)
        if spent.error is not None or found is None:
            print(f"{tool:20}  {spent.error or 'made no model'}", flush=True)
            return None
        return found


def verdict(words: str, holds: bool | None, found: str) -> None:
    """One line of what must hold; None: it could not be measured."""
    print(
        f"  {'not measured' if holds is None else 'holds' if holds else 'DOES NOT HOLD':13} {words}: {found}",
        flush=True,
    )


# ---- calibration


def calibration(place: Place) -> None:
    source = folded("mobilenet_v2", place, side=160)
    tools = [name for name in place.tools if TOOLS[name].calibrate is not None]
    print("\ncalibration: MobileNetV2, 3x160x160\n" + f"{'':20}" + "".join(f"{n:>9} s{'MB':>8}" for n in place.samples))
    seconds: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    for tool in tools:
        line = f"{tool:20}"
        for count in place.samples:
            samples = place.folder / f"images-{count}.npy"
            if not samples.exists():
                rng = np.random.default_rng(0)
                np.save(samples, rng.standard_normal((count, 3, 160, 160), dtype=np.float32))
            spent = quantizers.run(tool, "calibrate", (source, samples), place.peers, place.timeout)
            if spent.error is not None:
                line += f"  {spent.error}"
                break
            seconds.setdefault(tool, []).append(spent.seconds)
            memory.setdefault(tool, []).append(spent.peak_mb)
            line += f"{spent.seconds:>11.1f}{spent.peak_mb:>8.0f}"
        print(line, flush=True)
    own, used = seconds.get("retarget", []), memory.get("retarget", [])
    first, last = place.samples[0], place.samples[-1]
    grown = used[-1] / used[0] if len(used) == len(place.samples) else None
    verdict(
        f"memory at {last} samples within 5 % of that at {first}",
        None if grown is None else grown <= 1.05,
        "-" if grown is None else f"{grown:.2f} times",
    )
    peers = {tool: values[-1] for tool, values in memory.items() if tool != "retarget"}
    least = min(peers, key=peers.__getitem__, default=None)
    verdict(
        "memory below every peer's",
        None if least is None or not used else used[-1] < peers[least],
        "-" if least is None or not used else f"{used[-1]:.0f} MB, {least} {peers[least]:.0f} MB",
    )
    counting = {tool: values for tool, values in seconds.items() if TOOLS[tool].histogram and TOOLS[tool].peer}
    # At the largest count that a peer came to.
    ratios = {tool: own[len(values) - 1] / values[-1] for tool, values in counting.items() if len(own) >= len(values)}
    worst = max(ratios, key=ratios.__getitem__, default=None)
    verdict(
        "time at most 0.8 times the fastest peer's that computes histograms",
        None if worst is None else ratios[worst] <= 0.8,
        "-" if worst is None else f"{ratios[worst]:.2f} times {worst}",
    )


def calibration_large(place: Place) -> None:
    layers = 23
    path = place.folder / "heavy-1.5gb.onnx"
    if not path.exists():
        models.write_heavy(layers, path)
    samples = place.folder / "vectors-256.npy"
    np.save(samples, np.random.default_rng(0).standard_normal((256, 4096), dtype=np.float32))
    size = layers * 4096 * 4096 * 4 / 1e6
    print(f"\ncalibration: {size / 1e3:.1f} GB of weights, 256 samples")
    for tool in ("retarget", "ort minmax"):
        if tool in place.tools:
            spent = quantizers.run(tool, "calibrate", (path, samples), place.peers, place.timeout)
            words = spent.error or f"{spent.seconds:.1f} s, {spent.peak_mb:.0f} MB = {spent.peak_mb / size:.2f} x"
            print(f"{tool:20}  {words}", flush=True)
            if tool == "retarget":
                held = None if spent.error else spent.peak_mb < 2 * size
                verdict("a model of 1.5 GB calibrates below twice its size", held, words)


def folded(name: str, place: Place, side: int = 224) -> Path:
    """A large model of `benchmarks.models` after the default preset."""
    from retarget import graph
    from retarget.passes import presets

    path = place.folder / f"{name}-{side}-folded.onnx"
    if not path.exists():
        model = graph.load(models.prepare(name, "large", place.folder))
        for value in model.graph.inputs:
            assert value.shape is not None
            value.shape = ir.Shape([value.shape[0], 3, side, side])
        if side != 224:
            # Recorded shapes are those of the exported size.
            for node in model.graph:
                for output in node.outputs:
                    output.shape = None
        for one in presets.build("default", {}):
            model = one.run(model).model
        graph.save(model, path)
    return path


# ---- accuracy


def outputs(path: Path, x: Array) -> Array:
    """The artifact's output, as its format is run."""
    if path.suffix == ".xml":
        import openvino

        core = openvino.Core()
        config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
        return np.asarray(core.compile_model(path, "CPU", config)(x)[0])
    from retarget.session import Session

    with Session(path) as session:
        return session.run({session.input_names[0]: x})[session.output_names[0]]


def imbalance(place: Place) -> None:
    from retarget import graph

    source = place.folder / "imbalanced.onnx"
    model = graph.load(trained.prepare("cnn", place.folder))
    pairs = unbalance(model)
    graph.save(model, source)
    samples = calibration_rows("cnn", place)
    x, answers = trained.MODELS["cnn"].data().evaluation
    print(f"\nimbalance: digits CNN, {pairs} pairs of layers rescaled by up to e^±{SPAN:g}")
    print(f"{'float':20}{trained.accuracy(outputs(source, x), answers):>8.1%}", flush=True)
    found: dict[str, float] = {}
    for tool in place.tools:
        artifact = place.artifact(tool, source, samples)
        if artifact is not None:
            found[tool] = trained.accuracy(outputs(artifact, x), answers)
            print(f"{tool:20}{found[tool]:>8.1%}", flush=True)
    own = [value for tool, value in found.items() if tool in OURS]
    peers = [value for tool, value in found.items() if tool not in OURS]
    words = f"{min(own):.1%}, best peer {max(peers, default=0):.1%}" if own else "-"
    verdict("at least 98 % right", min(own) >= 0.98 if own else None, words)


def unbalance(model: ir.Model) -> int:
    """Scale the output channels of each Conv in front of a Relu, and the next one's input back; how many pairs."""
    rng = np.random.default_rng(0)
    pairs = 0
    for node in model.graph:
        if node.op_type != "Conv":
            continue
        behind = node
        while len(uses := list(behind.outputs[0].uses())) == 1 and uses[0].node.op_type == "Relu":
            behind = uses[0].node
        if behind is node or len(uses) != 1 or uses[0].node.op_type != "Conv":
            continue
        following = uses[0].node
        weight, bias, after = (weights(value) for value in (node.inputs[1], node.inputs[2], following.inputs[1]))
        factors = np.exp(rng.uniform(-SPAN, SPAN, len(weight))).astype(np.float32)
        set_weights(node.inputs[1], weight * factors[:, None, None, None])
        set_weights(node.inputs[2], bias * factors)
        set_weights(following.inputs[1], after / factors[None, :, None, None])
        pairs += 1
    return pairs


def weights(value: ir.Value | None) -> NDArray[np.float32]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float32)


def set_weights(value: ir.Value | None, array: Array) -> None:
    assert value is not None
    value.const_value = ir.tensor(array, name=value.name)


def calibration_rows(name: str, place: Place) -> Path:
    samples = place.folder / f"calibration-{name}.npy"
    np.save(samples, trained.MODELS[name].data().calibration[0])
    return samples


def accuracy(place: Place) -> None:
    from retarget.compare import snr_db

    distances: dict[str, float] = {}
    beside: dict[str, float] = {}
    apart: dict[str, float] = {}
    for name in place.models:
        how = trained.MODELS[name]
        source = trained.prepare(name, place.folder)
        x, answers = how.data().evaluation
        samples = calibration_rows(name, place)
        expected = outputs(source, x)
        print(f"\naccuracy: {name}, float {trained.accuracy(expected, answers):.1%} right")
        print(f"{'':20}{'SNR dB':>8}{'right':>8}{'same':>8}")
        found: dict[str, float] = {}
        for tool in place.tools:
            artifact = place.artifact(tool, source, samples)
            if artifact is None:
                continue
            actual = outputs(artifact, x)
            found[tool] = snr_db(expected, actual)
            same = (actual.argmax(-1) == expected.argmax(-1)).mean()
            print(f"{tool:20}{found[tool]:>8.2f}{trained.accuracy(actual, answers):>8.1%}{same:>8.1%}", flush=True)
            if tool in OURS:
                simulated = snr_db(expected, outputs(artifact.with_name("simulated.onnx"), x))
                executed = snr_db(expected, optimized(artifact, x)) if tool == "retarget" else found[tool]
                apart[f"{name} in {tool}"] = executed - simulated
        peers = [value for tool, value in found.items() if tool not in OURS]
        own = [value for tool, value in found.items() if tool in OURS]
        if own and peers:
            # The worse of the two schemes.
            distances[name] = min(own) - max(peers)
        for tool in (one for one in OURS if one in found):
            executed_alike = [
                value
                for peer, value in found.items()
                if peer not in OURS and (peer in IN_OPENVINO) == (tool in IN_OPENVINO)
            ]
            if executed_alike:
                beside[f"{name} in {tool}"] = found[tool] - max(executed_alike)
    words = ", ".join(f"{name} {distance:+.2f} dB" for name, distance in distances.items()) or "-"
    some = bool(distances)
    print()
    verdict(
        "SNR at most 0.5 dB below the best peer's", all(v >= -0.5 for v in distances.values()) if some else None, words
    )
    above = sum(value > 0 for value in beside.values())
    words = ", ".join(f"{name} {distance:+.2f} dB" for name, distance in beside.items()) or "-"
    verdict("SNR above the best peer's of the same runtime on most", above * 2 > len(beside) if beside else None, words)
    words = ", ".join(f"{name} {distance:+.2f} dB" for name, distance in apart.items()) or "-"
    verdict(
        "artifacts within 1 dB of the simulation", all(abs(v) <= 1 for v in apart.values()) if apart else None, words
    )


def optimized(path: Path, x: Array) -> Array:
    """In ONNX Runtime as applications run it."""
    from retarget.session import Session

    with Session(path, optimize=True) as session:
        return session.run({session.input_names[0]: x})[session.output_names[0]]


# ---- latency


def latency(place: Place) -> None:
    for name, title in (("mobilenet_v2", "MobileNetV2"), ("resnet", "ResNet-50")):
        source = folded(name, place)
        samples = place.folder / "images-224.npy"
        if not samples.exists():
            np.save(samples, np.random.default_rng(0).standard_normal((32, 3, 224, 224), dtype=np.float32))
        wanted = [tool for tool in place.tools if tool in (*OURS, "ort minmax", "nncf")]
        made = {tool: artifact for tool in wanted if (artifact := place.artifact(tool, source, samples)) is not None}
        x = np.load(samples, mmap_mode="r")[:1]
        for runtime, own, call in (
            ("ONNX Runtime", "retarget", onnxruntime_call),
            ("OpenVINO", "retarget openvino", openvino_call),
        ):
            able = {
                tool: path
                for tool, path in made.items()
                if (path.suffix == ".onnx" or runtime == "OpenVINO") and (tool == own or tool not in OURS)
            }
            print(f"\nlatency: {title} in {runtime}, batch 1, 2 threads, medians of {CALLS} calls in turn")
            taken = in_turn({"float": call(source, x), **{tool: call(path, x) for tool, path in able.items()}})
            for tool, milliseconds in taken.items():
                print(f"{tool:20}{milliseconds:>9.2f} ms{taken['float'] / milliseconds:>7.2f} x float", flush=True)
            peers = [value for tool, value in taken.items() if tool not in ("float", own)]
            ratio = taken[own] / min(peers) if own in taken and peers else None
            verdict(
                f"{title} in {runtime}: at most 3 % slower than the fastest peer's",
                None if ratio is None else ratio <= 1.03,
                "-" if ratio is None else f"{ratio:.2f} times",
            )
        for tool in ("retarget openvino", "nncf"):
            if tool in made:
                share = int8_share(made[tool])
                print(f"{tool:20}{share:>8.1%} of the multiply-accumulates in int8", flush=True)
                if tool in OURS:
                    verdict(f"{title} in OpenVINO: at least 95 % in int8", share >= 0.95, f"{share:.1%}")


def onnxruntime_call(path: Path, x: Array) -> Callable[[], object]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    # Threads that wait for work by spinning would take the cores of the session whose turn it is.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})


def openvino_call(path: Path, x: Array) -> Callable[[], object]:
    import openvino

    config = {"INFERENCE_NUM_THREADS": 2, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", config)
    return lambda: compiled(x)


def in_turn(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(CALLS + 3):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn >= 3:
                taken[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def int8_share(path: Path) -> float:
    """Of the multiply-accumulates in OpenVINO's execution graph."""
    from retarget.spec import TensorSpec
    from retarget.targets.openvino import executed
    from retarget.targets.work import low_precision_share

    model = executed.at(path, (TensorSpec("x", "float32", (1, 3, 224, 224)),), {})
    return low_precision_share(executed.executed(model).work, "int8") or 0.0


# ----

PARTS: Mapping[str, Callable[[Place], None]] = {
    "calibration": calibration,
    "large": calibration_large,
    "imbalance": imbalance,
    "accuracy": accuracy,
    "latency": latency,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.quantization", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--models", nargs="+", choices=list(trained.MODELS), default=list(trained.MODELS))
    parser.add_argument("--samples", nargs="+", type=int, default=[64, 256, 1024], help="counts for calibration")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="where models are kept")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the peers' environment")
    parser.add_argument("--install-peers", action="store_true", help="make it and stop")
    parser.add_argument("--timeout", type=float, default=240, help="seconds that a tool may take on a model")
    given = parser.parse_args()
    if given.install_peers:
        quantizers.install(given.peers)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    tools = [name for name in given.tools if quantizers.interpreter(name, given.peers) is not None]
    for name in given.tools:
        if name not in tools:
            print(f"{name}: not installed")
    place = Place(given.folder, given.peers, tools, given.timeout, given.samples, given.models)
    for part in given.parts:
        PARTS[part](place)


if __name__ == "__main__":
    main()

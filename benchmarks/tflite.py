"""retarget's TFLite target beside onnx2tf: time, memory, accuracy, TRANSPOSE operators and latency, as ratios.

Each tool gets the same float32 ONNX file of a batch of one, in a process of its own, and its default settings, except
that retarget is told to write images as onnx2tf always does, channels last. onnx2tf's default also writes a SavedModel
and a float16 file; nothing switches both off. What it took is as in `benchmarks.peers`: ``process`` and ``work``, which
for retarget is the frontend, the default preset and the emitter; and ``emit``, retarget's emitter alone, as a build's
last step has it before it, from the optimized model. What came out is executed by LiteRT with XNNPACK and held against
ONNX Runtime without optimizations; latency is taken in turns of a few milliseconds, with every file opened three times,
whose ratios say what is noise. Ratios are onnx2tf's figure by retarget's: above 1, retarget is better. The part
``memory`` holds the emitter's process against the model's weights.

``python -m benchmarks.tflite --install`` makes onnx2tf's environment, in a folder that the project's others do not
see; it pins every package that it needs itself. Its figures are kept in the folder of the models, ``--again`` takes
them anew.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np

from benchmarks.latency import Latency, latency
from benchmarks.measure import Cost, cost, watch
from benchmarks.peers import FIGURES, SOUND_DB, Made, absent, costs, costs_head, load, made_of, ratio, verdict

if TYPE_CHECKING:
    import onnx_ir as ir

    from retarget.protocols import Array, Feeds, Outputs

Who: TypeAlias = Literal["retarget", "onnx2tf", "emit"]

PEER = "onnx2tf==1.29.24"
PACKAGES = (PEER, "msgspec>=0.19")
"""The second is what this file needs in the environment of the first."""
TOOLS: Sequence[Who] = ("retarget", "onnx2tf")
MODELS = ("mobilenet_v2", "resnet50", "deeplab", "segformer_b0", "yolo", "vit_tiny", "bert_mini", "lstm")
"""Larger ones are left out for the time that the peer takes; ``--models`` names them."""
IMAGES = "calibration_image_sample_data_20x128x128x3_float32.npy"
HEAVY = ("resnet50", "vit_base")
"""The models that the part ``memory`` writes."""
FASTER, LEANER = 30.0, 5.0
MEMORY_FACTOR, MEMORY_BASE_MB = 1.5, 300.0
SECONDS = 4.0
"""Of timed calls of each file, at each number of threads."""


# ---- the tools, each in its own process


def write(model: ir.Model, out: Path) -> None:
    """The file, images channels last, and the emitter's facts beside it."""
    from benchmarks import emit

    (out / "facts.json").write_bytes(msgspec.json.encode(emit.write("tflite", model, out, {"io_layout": "nhwc"})))


def run_retarget(source: Path, out: Path) -> Cost:
    import retarget.passes.library  # noqa: F401 - the import is not what is measured
    from benchmarks import emit
    from retarget import catalog

    catalog.target_emit("tflite")
    return cost(lambda: write(emit.optimized(load(source)), out))


def run_emit(source: Path, out: Path) -> Cost:
    from benchmarks import emit  # noqa: F401
    from retarget import catalog, graph

    catalog.target_emit("tflite")
    return cost(lambda: write(graph.load(source), out))


def run_onnx2tf(source: Path, out: Path) -> Cost:
    # It writes over the file that it is given.
    copy = str(shutil.copy(source, out / "model.onnx"))
    convert = importlib.import_module("onnx2tf").convert
    return cost(lambda: convert(input_onnx_file_path=copy, output_folder_path=str(out), non_verbose=True))


RUN: Mapping[Who, Callable[[Path, Path], Cost]] = {
    "retarget": run_retarget,
    "onnx2tf": run_onnx2tf,
    "emit": run_emit,
}


@dataclass(frozen=True)
class Place:
    """Where things are, and how long one may take."""

    folder: Path
    peer: Path
    timeout: float
    again: bool

    @property
    def python(self) -> Path:
        """The peer's interpreter."""
        return self.peer.absolute() / "bin" / "python"

    def source(self, name: str) -> Path:
        from benchmarks import subjects

        return subjects.prepare(name, self.folder / "models")

    def optimized(self, name: str) -> Path:
        """The model after the default preset, as a build stores it: weights in a file of their own."""
        from benchmarks import emit
        from retarget import graph

        path = self.folder / "optimized" / name / "model.onnx"
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(parents=True)
        graph.save(emit.optimized(load(self.source(name))), path)
        return path

    def made(self, name: str, who: Who) -> tuple[Made, Path]:
        """What ``who`` takes for the model ``name``, and the file that it made."""
        if who == "onnx2tf" and not self.python.exists():
            return absent("not installed: python -m benchmarks.tflite --install"), self.python
        source = self.optimized(name) if who == "emit" else self.source(name)
        out = self.folder / "made" / name / who
        kept = out / "made.json"
        with source.open("rb") as file:
            of = f"{PEER} {hashlib.file_digest(file, 'sha256').hexdigest()}"
        if who == "onnx2tf" and not self.again and kept.exists():
            made = msgspec.json.decode(kept.read_bytes(), type=Made)
            if made.of == of:
                return made, out / "model.tflite"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        made = msgspec.structs.replace(self._make(who, source, out), of=of)
        kept.write_bytes(msgspec.json.encode(made))
        return made, out / "model.tflite"

    def _make(self, who: Who, source: Path, out: Path) -> Made:
        root = Path(__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        python = Path(sys.executable)
        if who == "onnx2tf":
            python = self.python
            # It starts programs of its environment by their names.
            environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
            # Of models of images it checks itself on 20 photographs, which it fetches where they are not at hand.
            np.save(out / IMAGES, np.random.default_rng(0).random((20, 128, 128, 3), dtype=np.float32))
        arguments = ["-m", "benchmarks.tflite", "--run", who, str(source.absolute()), str(out.absolute())]
        done = watch([str(python), "-W", "ignore", *arguments], self.timeout, environment, out)
        (out / "log.txt").write_text(done.output + done.errors)
        written = sorted(out.glob("*_float32.tflite"))
        if written:
            written[0].rename(out / "model.tflite")
        for rest in (*out.glob("*.onnx"), *out.glob("*.npy"), *out.glob("*_float16.tflite"), *out.glob("*.pb")):
            rest.unlink()
        for folder in (out / "variables", out / "assets"):
            shutil.rmtree(folder, ignore_errors=True)
        return made_of(done, self.timeout, out / "model.tflite")


def install(folder: Path) -> None:
    """Make the peer's environment."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *PACKAGES], check=True)


# ---- what came out


class Found(msgspec.Struct, frozen=True):
    """Of one file."""

    megabytes: float
    transposes: int
    operators: int
    max_abs: float = 0.0
    snr: float = 0.0
    error: str | None = None
    """Why it could not be executed."""


def operators(path: Path) -> list[int]:
    """The builtin operators of a TFLite file, as the schema numbers them."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    codes = [model.OperatorCodes(index).BuiltinCode() for index in range(model.OperatorCodesLength())]
    graphs = [model.Subgraphs(index) for index in range(model.SubgraphsLength())]
    return [codes[graph.Operators(index).OpcodeIndex()] for graph in graphs for index in range(graph.OperatorsLength())]


class Opened:
    """A TFLite file in LiteRT with XNNPACK."""

    def __init__(self, path: Path, feeds: Feeds, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        entries = self._interpreter.get_input_details()
        for entry in entries:
            plain = entry["name"].removeprefix("serving_default_").partition(":")[0]
            feed = next(iter(feeds.values())) if len(feeds) == 1 else feeds[plain]
            held = next(iter(turned(feed, tuple(entry["shape"]))), None)
            if held is None:
                raise ValueError(f"input {plain} is {tuple(entry['shape'])}, not {feed.shape}")
            self._interpreter.set_tensor(entry["index"], np.ascontiguousarray(held.astype(entry["dtype"])))

    def __call__(self) -> None:
        self._interpreter.invoke()

    def outputs(self) -> list[Array]:
        return [self._interpreter.get_tensor(entry["index"]) for entry in self._interpreter.get_output_details()]


def turned(array: Array, shape: tuple[int, ...]) -> list[Array]:
    """``array`` with its axes in every order that has ``shape``: as it is, then channels last, then the rest."""
    rank = array.ndim
    last = (0, *range(2, rank), 1) if rank > 2 else tuple(range(rank))
    orders = dict.fromkeys([tuple(range(rank)), last, *itertools.permutations(range(rank))])
    return [array.transpose(order) for order in orders if array.transpose(order).shape == shape]


def most_alike(expected: Outputs, outputs: Sequence[Array]) -> Outputs:
    """For each expected output the one of ``outputs`` that is nearest in any order of axes: its names tell nothing."""
    from retarget.compare import snr_db

    found: Outputs = {}
    for name, reference in expected.items():
        candidates = [one for output in outputs for one in turned(output, reference.shape)]
        if not candidates:
            shapes = ", ".join(str(output.shape) for output in outputs)
            raise ValueError(f"no output is {name} of {reference.shape}: {shapes}")
        found[name] = max(candidates, key=lambda one: snr_db(reference, one))
    return found


def outputs_of(who: Who, path: Path, feeds: Feeds, expected: Outputs) -> Outputs:
    """retarget's by its own runner, and so by name."""
    if who == "onnx2tf":
        opened = Opened(path, feeds, 1)
        opened()
        return most_alike(expected, opened.outputs())
    from retarget import catalog
    from retarget.facts import EmitFacts

    facts = msgspec.json.decode((path.parent / "facts.json").read_bytes(), type=EmitFacts)
    with catalog.target_run("tflite").open(path.parent, facts, parity=True, threads=1) as runner:
        return runner.run(feeds)


def examine(who: Who, path: Path, feeds: Feeds, expected: Outputs) -> Found:
    """The file ``path``, against the outputs ``expected``."""
    from ai_edge_litert import schema_py_generated as schema

    from retarget.compare import snr_db

    codes = operators(path)
    found = Found(path.stat().st_size / 1e6, codes.count(schema.BuiltinOperator.TRANSPOSE), len(codes))
    try:
        actual = outputs_of(who, path, feeds, expected)
    except (ValueError, RuntimeError, KeyError) as error:
        return msgspec.structs.replace(found, error=str(error).splitlines()[0][:150])
    if not all(np.isfinite(array).all() for array in actual.values()):
        return msgspec.structs.replace(found, error="its outputs are not finite")
    gaps = [np.abs(np.subtract(actual[name], expected[name], dtype=np.float64)).max() for name in expected]
    return msgspec.structs.replace(
        found, max_abs=float(max(gaps)), snr=min(snr_db(expected[name], actual[name]) for name in expected)
    )


class Examined(msgspec.Struct, frozen=True):
    """The files of one model."""

    found: dict[str, Found]
    latency: dict[str, Latency]
    """By the number of threads."""


def examined(name: str, source: Path, paths: Mapping[Who, Path], seconds: float) -> Examined:
    """In this process, which has to be one of its own: a runtime that crashes takes it along."""
    from benchmarks import subjects
    from retarget.session import Session

    feeds = subjects.feeds(name)
    with Session(source) as session:
        expected = session.run(feeds)
    found: dict[str, Found] = {who: examine(who, path, feeds, expected) for who, path in paths.items()}
    sound = len(paths) == len(TOOLS) and all(one.error is None for one in found.values())

    def timed(threads: int) -> Latency:
        return latency({who: partial(Opened, path, feeds, threads) for who, path in paths.items()}, threads, seconds)

    return Examined(found, {str(threads): timed(threads) for threads in (1, 2)} if sound else {})


def examined_apart(name: str, source: Path, paths: Mapping[Who, Path], seconds: float) -> Examined:
    files = [f"{who}={path}" for who, path in paths.items()]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.tflite", "--seconds", str(seconds)]
    done = watch([*command, "--examine", name, str(source), *files], 600)
    if done.status != 0:
        why = (done.errors.strip().splitlines() or [f"exit {done.status}"])[-1][:150]
        return Examined({who: Found(0, 0, 0, error=why) for who in paths}, {})
    return msgspec.json.decode(done.output.splitlines()[-1].encode(), type=Examined)


# ---- the tables


@dataclass(frozen=True)
class Row:
    """Both tools on one model."""

    name: str
    made: Mapping[Who, Made]
    examined: Examined

    def sound(self, who: Who) -> bool:
        found = self.examined.found.get(who)
        return found is not None and found.error is None and found.snr >= SOUND_DB

    def ratio(self, figure: Callable[[Made], float], own: Who = "retarget") -> float | None:
        return ratio(self.made["onnx2tf"], self.made[own], figure)

    def slower(self, threads: str) -> float | None:
        """Our latency by the peer's."""
        timed = self.examined.latency.get(threads)
        return None if timed is None else timed.slower["onnx2tf"]


def row(name: str, place: Place, seconds: float) -> Row:
    """Measure both tools on a model, and print what was found."""
    source = place.source(name)
    made: dict[Who, Made] = {}
    paths: dict[Who, Path] = {}
    for who in (*TOOLS, "emit"):
        if who == "emit" and made["retarget"].process.error:
            made[who] = made["retarget"]
            continue
        made[who], path = place.made(name, who)
        if not made[who].process.error and who != "emit":
            paths[who] = path
    found = Row(name, made, examined_apart(name, source, paths, seconds))
    print(f"\n{name}, {source.stat().st_size / 1e6:.1f} MB")
    print(costs_head())
    for who in (*TOOLS, "emit"):
        print(costs(who, made[who], made["onnx2tf"]))
    print(f"{'':10}{'MB':>8}{'operators':>11}{'TRANSPOSE':>11}{'max error':>11}{'SNR':>7}", end="")
    print(f"{'ms':>9}{'ratio':>7}{'noise':>7}{'ms, 2':>9}{'ratio':>7}{'noise':>7}")
    for who in paths:
        one = found.examined.found[who]
        line = f"{who:10}{one.megabytes:>8.1f}{one.operators:>11}{one.transposes:>11}"
        if one.error:
            print(f"{line}  not usable: {one.error}")
            continue
        line += f"{one.max_abs:>11.2g}{one.snr:>7.0f}"
        for timed in found.examined.latency.values():
            ratio = 1 / timed.slower["onnx2tf"] if who == "retarget" else 1.0
            line += f"{timed.ms[who]:>9.3f}{ratio:>7.2f}{timed.noise:>7.1%}"
        print(line, flush=True)
    return found


def verdicts(rows: Sequence[Row]) -> None:
    """Every line of what must hold."""
    failures = {one.name: one.made["retarget"].process.error for one in rows}
    sound = {
        one.name: "failed" if failures[one.name] else f"{one.examined.found['retarget'].snr:.0f} dB" for one in rows
    }
    print()
    verdict(f"a file, at least {SOUND_DB:.0f} dB", sound, [one.name for one in rows if not one.sound("retarget")])
    lines: Sequence[tuple[str, Callable[[Made], float], Who, float]] = (
        (f"at least {FASTER:.0f} times faster, from the ONNX file", FIGURES["work s"], "retarget", FASTER),
        (f"at least {FASTER:.0f} times faster, whole processes", FIGURES["process s"], "retarget", FASTER),
        (f"at least {FASTER:.0f} times less processor time, whole processes", FIGURES["CPU s"], "retarget", FASTER),
        (f"at least {FASTER:.0f} times faster, the emitter alone", FIGURES["work s"], "emit", FASTER),
        (f"a {LEANER:.0f}th of the memory at most, whole processes", FIGURES["process MB"], "retarget", LEANER),
        (f"a {LEANER:.0f}th of the memory at most, without imports", FIGURES["work MB"], "retarget", LEANER),
    )
    for words, figure, own, least in lines:
        ratios = {one.name: ratio for one in rows if (ratio := one.ratio(figure, own)) is not None}
        verdict(
            words,
            {name: f"{ratio:.1f}" for name, ratio in ratios.items()},
            [name for name, ratio in ratios.items() if ratio < least],
        )
    for threads in ("1", "2"):
        # What the peer computes wrongly it may compute fast.
        timed = {one.name: (slower, one) for one in rows if one.sound("onnx2tf") and (slower := one.slower(threads))}
        verdict(
            f"latency at most 1.0 of the other's within the noise, {threads} thread{'s' if threads != '1' else ''}",
            {name: f"{slower:.2f}" for name, (slower, _) in timed.items()},
            [name for name, (slower, one) in timed.items() if one.examined.latency[threads].exceeds("onnx2tf")],
        )
    counts = {
        one.name: (ours.transposes, theirs.transposes)
        for one in rows
        if (ours := one.examined.found.get("retarget")) and (theirs := one.examined.found.get("onnx2tf"))
    }
    verdict(
        "no more TRANSPOSE operators",
        {name: f"{ours}:{theirs}" for name, (ours, theirs) in counts.items()},
        [name for name, (ours, theirs) in counts.items() if ours > theirs],
    )


def memory(place: Place) -> None:
    """The emitter's process against the weights."""
    from retarget import graph

    print(f"\nmemory of the emitter's process\n{'':14}{'weights MB':>12}{'peak MB':>10}{'bound MB':>10}{'s':>8}")
    figures: dict[str, str] = {}
    broken: list[str] = []
    for name in HEAVY:
        made, _ = place.made(name, "emit")
        weights = graph.initializer_bytes(graph.load(place.source(name))) / 1e6
        if made.process.error:
            print(f"{name:14}  failed: {made.process.error}")
            broken.append(name)
            figures[name] = "failed"
            continue
        bound = MEMORY_FACTOR * weights + MEMORY_BASE_MB
        peak = made.process.peak_mb
        print(f"{name:14}{weights:>12.0f}{peak:>10.0f}{bound:>10.0f}{made.process.seconds:>8.2f}")
        figures[name] = f"{peak:.0f} MB"
        if peak > bound:
            broken.append(name)
    print()
    verdict(f"at most {MEMORY_FACTOR} times the weights and {MEMORY_BASE_MB:.0f} MB", figures, broken)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.tflite", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=("peer", "memory"), default=["peer", "memory"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="`all`: the tests' tiny ones too")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks/tflite"), help="where models are kept")
    parser.add_argument("--peer", type=Path, default=Path("build/onnx2tf"), help="onnx2tf's environment")
    parser.add_argument("--install", action="store_true", help="make it and stop")
    parser.add_argument("--again", action="store_true", help="measure onnx2tf again where its figures are kept")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that one conversion may take")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of timed calls of each file")
    parser.add_argument("--run", nargs=3, metavar=("WHO", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--examine", nargs="+", metavar="ARGUMENT", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.install:
        install(given.peer)
    elif given.run:
        who, source, out = given.run
        sys.stdout.write("\n" + msgspec.json.encode(RUN[who](Path(source), Path(out))).decode() + "\n")
    elif given.examine:
        name, source, *files = given.examine
        paths: dict[Who, Path] = {who: Path(path) for who, _, path in (file.partition("=") for file in files)}
        sys.stdout.write("\n" + msgspec.json.encode(examined(name, Path(source), paths, given.seconds)).decode() + "\n")
    else:
        place = Place(given.folder, given.peer, given.timeout, given.again)
        names = given.models
        if names == ["all"]:
            from benchmarks import subjects

            names = list(subjects.subjects())
        if "peer" in given.parts:
            verdicts([row(name, place, given.seconds) for name in names])
        if "memory" in given.parts:
            memory(place)


if __name__ == "__main__":
    main()

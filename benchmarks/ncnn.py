"""retarget's ncnn target beside pnnx, ncnn's own converter: time, memory, accuracy, layers and latency, as ratios.

``retarget`` and ``pnnx`` get the same ONNX file, a batch of one and fixed sizes, which pnnx is told too
(``inputshape``), and both write weights in float32 (``fp16=0``). ``pnnx-torch`` is what most of pnnx's users give it,
the module itself: its weights and structure as `torch.jit.trace` saves them, which pnnx then reads. Its times are
printed and not compared, because what it starts from is another thing; its files are. ``emit`` is retarget's emitter
alone, as a build's last step has it before it, from the optimized model. Every tool runs in a process of its own. What
it took is as in `benchmarks.peers`: ``process`` of pnnx is the program `pnnx` as pip installs it, which imports PyTorch
before it starts the converter, and its ``work`` is the converter alone; of ``pnnx-torch`` it is all from the module to
the files.

A tool's exit status says little: what it wrote is sound if ncnn loads it, executes it in a process that survives, and
gives what ONNX Runtime makes of the ONNX file, without optimizations. pnnx's files are fed as the example says that it
writes beside them. Latency is taken in one process, in turns of a few milliseconds, with every file opened three times,
whose ratios say what is noise; all with the same options, in float32. Ratios are the peer's figure by retarget's: above
1, retarget is better.

``python -m benchmarks.ncnn --install`` adds pnnx to this environment, which has all that it needs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import msgspec
import numpy as np

from benchmarks.latency import Latency, latency
from benchmarks.measure import Cost, Watched, cost, watch
from benchmarks.peers import FIGURES, SOUND_DB, Made, absent, costs, costs_head, load, made_of, ratio, verdict

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds, Outputs

Who: TypeAlias = Literal["retarget", "emit", "pnnx", "pnnx-torch"]

PEER = "pnnx==20261020"
TOOLS: Sequence[Who] = get_args(Who)
FILES: Sequence[Who] = ("retarget", "pnnx", "pnnx-torch")
"""Those whose files are looked at; of ``emit`` they are ``retarget``'s."""
PEERS: Sequence[Who] = ("pnnx", "pnnx-torch")
MODELS = (
    "mobilenet_v2", "resnet50", "convnext_tiny", "vit_tiny", "swin_tiny", "deeplab", "segformer_b0", "yolo",
    "bert_mini", "lstm",
)  # fmt: skip
PARAM, BIN = "model.ncnn.param", "model.ncnn.bin"
FASTER = 10.0
TURNS = 3
SECONDS = 4.0
"""Of timed calls of each file, at each number of threads."""
TYPES: Mapping[str, str] = {"float32": "f32", "int64": "i64"}


# ---- the tools, each in its own process


def run_retarget(source: Path, out: Path) -> Cost:
    import retarget.passes.library  # noqa: F401 - the import is not what is measured
    from benchmarks import emit
    from retarget import catalog

    catalog.target_emit("ncnn")

    def work() -> None:
        facts = emit.write("ncnn", emit.optimized(load(source)), out, {})
        (out / "facts.json").write_bytes(msgspec.json.encode(facts))

    return cost(work)


def run_emit(source: Path, out: Path) -> Cost:
    from benchmarks import emit
    from retarget import catalog, graph

    catalog.target_emit("ncnn")
    return cost(lambda: emit.write("ncnn", graph.load(source), out, {}))


def run_pnnx_torch(name: str, out: Path) -> Cost:
    import torch

    from benchmarks import subjects

    family, feeds = subjects.subjects()[name], subjects.feeds(name)
    # Its weights are drawn here, which is not what is measured.
    module = family.build()

    def work() -> None:
        example = tuple(torch.from_numpy(one) for one in feeds.values())
        traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        traced.save(str(out / "model.pt"))
        subprocess.run([str(converter()), "model.pt", *arguments_of(feeds)], cwd=out, check=True, stdout=sys.stderr)

    return cost(work)


def installed() -> bool:
    return importlib.util.find_spec("pnnx") is not None


def converter() -> Path:
    """pnnx's program, which its command in Python starts."""
    spec = importlib.util.find_spec("pnnx")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("pnnx")


def arguments_of(feeds: Feeds) -> list[str]:
    """What pnnx is told of a model."""
    shapes = [f"[{','.join(map(str, one.shape))}]{TYPES[str(one.dtype)]}" for one in feeds.values()]
    return [f"inputshape={','.join(shapes)}", "fp16=0"]


@dataclass(frozen=True)
class Place:
    """Where things are, how long one may take, and how often each is measured."""

    folder: Path
    timeout: float
    turns: int

    def source(self, name: str) -> Path:
        from benchmarks import subjects

        return subjects.prepare(name, self.folder / "models").absolute()

    def optimized(self, name: str) -> Path:
        """The model after the default preset, as a build stores it: weights in a file of their own."""
        from benchmarks import emit
        from retarget import graph

        path = (self.folder / "optimized" / name / "model.onnx").absolute()
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(parents=True)
        graph.save(emit.optimized(load(self.source(name))), path)
        return path

    def out(self, name: str, who: Who) -> Path:
        return (self.folder / "made" / name / who).absolute()

    def made(self, name: str, source: Path) -> dict[Who, Made]:
        """By every tool, in turn; of each what took the least CPU time, or the first failure."""
        found: dict[Who, Made] = {}
        optimized = self.optimized(name)
        for _ in range(self.turns):
            for who in TOOLS:
                if who in found and found[who].process.error:
                    continue
                made = self._made(name, who, optimized if who == "emit" else source)
                if who not in found or made.process.error or made.cpu_seconds < found[who].cpu_seconds:
                    found[who] = made
        return found

    def _made(self, name: str, who: Who, source: Path) -> Made:
        if who in PEERS and not installed():
            return absent("not installed: python -m benchmarks.ncnn --install")
        out = self.out(name, who)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        made = self._pnnx(name, source, out) if who == "pnnx" else self._apart(name, who, source, out)
        # pnnx's other files, and its copy of the source.
        for rest in (*out.glob("model.pnnx.*"), *out.glob("model.onnx"), *out.glob("model.pt")):
            rest.unlink()
        return made

    def _apart(self, name: str, who: Who, source: Path, out: Path) -> Made:
        arguments = ["-m", "benchmarks.ncnn", "--run", who, name, str(source), str(out)]
        return made_of(self._watched([sys.executable, "-W", "ignore", *arguments], out), self.timeout, out / PARAM)

    def _pnnx(self, name: str, source: Path, out: Path) -> Made:
        from benchmarks import subjects

        # It writes beside what it reads.
        shutil.copy(source, out / "model.onnx")
        arguments = ["model.onnx", *arguments_of(subjects.feeds(name))]
        alone = self._watched([str(converter()), *arguments], out)
        work = Cost(alone.seconds, alone.peak_mb)
        done = self._watched([str(Path(sys.executable).with_name("pnnx")), *arguments], out)
        return made_of(done, self.timeout, out / PARAM, work)

    def _watched(self, command: Sequence[str], out: Path) -> Watched:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = watch(command, self.timeout, environment, out)
        (out / "log.txt").write_text(done.output + done.errors)
        return done


def install() -> None:
    """Add pnnx, without what it would bring along."""
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", PEER], check=True)


# ---- what came out


class Found(msgspec.Struct, frozen=True):
    """Of the files of one tool."""

    megabytes: float = 0.0
    layers: int = 0
    max_abs: float = 0.0
    snr: float = 0.0
    error: str | None = None
    """Why they are of no use."""

    @property
    def sound(self) -> bool:
        return self.error is None and self.snr >= SOUND_DB


class Opened:
    """The files of one tool in ncnn, fed; a call executes them. Raises ``ValueError`` where ncnn does not take them."""

    def __init__(self, who: Who, out: Path, feeds: Feeds, outputs: Sequence[str], threads: int) -> None:
        import ncnn

        from retarget.targets.ncnn.sidecar import EXACT

        self._net: Any = ncnn.Net()
        self._net.opt.num_threads = threads
        for name, on in EXACT.items():
            setattr(self._net.opt, name, on)
        if self._net.load_param(str(out / PARAM)) != 0 or self._net.load_model(str(out / BIN)) != 0:
            raise ValueError("ncnn does not load it")
        fed = held_of(out, feeds) if who == "retarget" else named_by_number(feeds)
        self._fed = {name: ncnn.Mat(array, batch_index=0).clone() for name, array in fed.items()}
        self._outputs = list(outputs) if who == "retarget" else [f"out{index}" for index in range(len(outputs))]

    def _extracted(self) -> list[Any]:
        extractor = self._net.create_extractor()
        for name, mat in self._fed.items():
            if extractor.input(name, mat) != 0:
                raise ValueError(f"it has no input {name}")
        found = [extractor.extract(name) for name in self._outputs]
        if any(code != 0 for code, _ in found):
            raise ValueError("ncnn does not execute it")
        return [mat for _, mat in found]

    def __call__(self) -> None:
        self._extracted()

    def outputs(self, expected: Outputs) -> Outputs:
        """By the names of those that are ``expected``, and in their shapes, of which a blob may lack axes of size 1."""
        found: Outputs = {}
        for (name, right), mat in zip(expected.items(), self._extracted(), strict=True):
            array = np.array(mat.numpy(batch_index=0))
            if [size for size in array.shape if size > 1] != [size for size in right.shape if size > 1]:
                raise ValueError(f"{name} is {array.shape}, not {right.shape}")
            found[name] = array.reshape(right.shape)
        return found


def held_of(out: Path, feeds: Feeds) -> Feeds:
    """Blobs of retarget's files, rows first, as its sidecar says."""
    from retarget.targets.ncnn import sidecar

    fed: dict[str, Array] = {}
    for value in sidecar.read(out / sidecar.FILE).inputs:
        for held in value.blobs:
            array = feeds[value.name]
            sizes = [int(np.prod([array.shape[axis] for axis in dim.axes])) for dim in held.dims]
            fed[held.name] = array.astype(held.dtype).reshape(sizes if held.rows is not None else [1, *sizes])
    return fed


def named_by_number(feeds: Feeds) -> Feeds:
    """Blobs of pnnx's files, the batch first."""
    narrow = (one.astype(np.int32) if one.dtype == np.int64 else one for one in feeds.values())
    return {f"in{index}": one for index, one in enumerate(narrow)}


def expected_of(name: str, source: Path) -> tuple[Feeds, Outputs]:
    from benchmarks import subjects
    from retarget.session import Session

    feeds = subjects.feeds(name)
    with Session(source) as session:
        return feeds, session.run(feeds)


def examine(name: str, who: Who, source: Path, out: Path) -> Found:
    """What ``who`` wrote in the folder ``out``, in this process: ncnn ends it where the file asks for what is not."""
    from retarget.compare import snr_db
    from retarget.targets.ncnn import files

    feeds, expected = expected_of(name, source)
    megabytes = sum((out / file).stat().st_size for file in (PARAM, BIN)) / 1e6
    found = Found(megabytes, len(files.read(out / PARAM)))
    try:
        actual = Opened(who, out, feeds, list(expected), 1).outputs(expected)
    except ValueError as error:
        return msgspec.structs.replace(found, error=str(error))
    if not all(np.isfinite(array).all() for array in actual.values()):
        return msgspec.structs.replace(found, error="its outputs are not finite")
    gaps = [np.abs(np.subtract(actual[each], right, dtype=np.float64)).max() for each, right in expected.items()]
    snr = min(snr_db(right, actual[each]) for each, right in expected.items())
    return msgspec.structs.replace(found, max_abs=float(max(gaps)), snr=snr)


def examined_apart(name: str, who: Who, source: Path, out: Path) -> Found:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ncnn", "--examine", who, name, str(source), str(out)]
    done = watch(command, 600)
    if done.status != 0:
        return Found(error=f"the process that executes it ends with {done.status}: {last(done.errors)}")
    found = msgspec.json.decode(done.output.splitlines()[-1].encode(), type=Found)
    # ncnn says on stderr which layer it does not know.
    return found if found.error is None else msgspec.structs.replace(found, error=f"{found.error}: {last(done.errors)}")


def last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:120]


def timed(name: str, source: Path, outs: Mapping[Who, Path], threads: int, seconds: float) -> Latency:
    feeds, expected = expected_of(name, source)
    open_: dict[str, Callable[[], Opened]] = {
        who: partial(Opened, who, out, feeds, list(expected), threads) for who, out in outs.items()
    }
    return latency(open_, threads, seconds)


def timed_apart(name: str, source: Path, outs: Mapping[Who, Path], threads: int, seconds: float) -> Latency | None:
    """In a process of its own; None where no other tool's files are sound."""
    if len(outs) < 2 or "retarget" not in outs:
        return None
    files = [f"{who}={out}" for who, out in outs.items()]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ncnn", "--seconds", str(seconds)]
    done = watch([*command, "--time", str(threads), name, str(source), *files], 1800)
    if done.status != 0:
        raise RuntimeError(done.errors)
    return msgspec.json.decode(done.output.splitlines()[-1].encode(), type=Latency)


# ---- the tables


@dataclass(frozen=True)
class Row:
    """Every tool on one model."""

    name: str
    made: Mapping[Who, Made]
    found: Mapping[Who, Found]
    latency: Mapping[int, Latency | None]
    """By the number of threads."""

    def sound(self, who: Who) -> bool:
        return who in self.found and self.found[who].sound


def row(name: str, place: Place, seconds: float) -> Row:
    """Measure every tool on a model, and print what was found."""
    source = place.source(name)
    made = place.made(name, source)
    found = {
        who: examined_apart(name, who, source, place.out(name, who)) for who in FILES if not made[who].process.error
    }
    sound = {who: place.out(name, who) for who, one in found.items() if one.sound}
    one = Row(name, made, found, {threads: timed_apart(name, source, sound, threads, seconds) for threads in (1, 2)})
    print(f"\n{name}, {source.stat().st_size / 1e6:.1f} MB\n{costs_head()}")
    for who in TOOLS:
        print(costs(who, made[who], absent("") if who == "pnnx-torch" else made["pnnx"]))
    print(f"{'':16}{'MB':>8}{'layers':>8}{'max error':>11}{'SNR':>7}", end="")
    print(f"{'ms':>9}{'ratio':>7}{'noise':>7}{'ms, 2':>9}{'ratio':>7}{'noise':>7}")
    for who, each in found.items():
        line = f"{who:16}{each.megabytes:>8.1f}{each.layers:>8}"
        if each.error:
            print(f"{line}  not usable: {each.error}")
            continue
        line += f"{each.max_abs:>11.2g}{each.snr:>7.0f}"
        for calls in one.latency.values():
            if calls is not None and who in calls.ms:
                slower = calls.slower.get(who, 1.0)
                line += f"{calls.ms[who]:>9.3f}{1 / slower:>7.2f}{calls.noise:>7.1%}"
        print(line)
    sys.stdout.flush()
    return one


def verdicts(rows: Sequence[Row]) -> None:
    """Every line of what must hold."""
    print()
    for who in FILES:
        said = {
            one.name: f"failed: {one.made[who].process.error}"
            if one.made[who].process.error
            else one.found[who].error or f"{one.found[who].snr:.0f} dB"
            for one in rows
        }
        verdict(f"files by {who}, at least {SOUND_DB:.0f} dB", said, [one.name for one in rows if not one.sound(who)])
    lines: Sequence[tuple[str, Callable[[Made], float], Who, float]] = (
        (f"at least {FASTER:.0f} times faster, the emitter alone", FIGURES["work s"], "emit", FASTER),
        (f"at least {FASTER:.0f} times faster, whole processes", FIGURES["process s"], "retarget", FASTER),
        (f"at least {FASTER:.0f} times faster, without imports", FIGURES["work s"], "retarget", FASTER),
        ("no slower, whole processes", FIGURES["process s"], "retarget", 1.0),
        ("no slower, without imports", FIGURES["work s"], "retarget", 1.0),
        ("no more memory, whole processes", FIGURES["process MB"], "retarget", 1.0),
        ("no more memory, without imports", FIGURES["work MB"], "retarget", 1.0),
    )
    for words, figure, own, least in lines:
        ratios = {one.name: by for one in rows if (by := ratio(one.made["pnnx"], one.made[own], figure))}
        verdict(
            words,
            {name: f"{by:.1f}" for name, by in ratios.items()},
            [name for name, by in ratios.items() if by < least],
        )
    for peer in PEERS:
        for threads in (1, 2):
            calls = {
                one.name: found for one in rows if (found := one.latency[threads]) is not None and peer in found.slower
            }
            verdict(
                f"latency at most {peer}'s within the noise, {threads} thread{'s' if threads != 1 else ''}",
                {name: f"{found.slower[peer]:.2f}" for name, found in calls.items()},
                [name for name, found in calls.items() if found.exceeds(peer)],
            )
        counts = {
            one.name: (one.found["retarget"].layers, one.found[peer].layers)
            for one in rows
            if one.sound("retarget") and one.sound(peer)
        }
        verdict(
            f"no more layers than {peer}'s",
            {name: f"{ours}:{theirs}" for name, (ours, theirs) in counts.items()},
            [name for name, (ours, theirs) in counts.items() if ours > theirs],
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.ncnn", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="`all`: the tests' tiny ones too")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks/ncnn"), help="where models are kept")
    parser.add_argument("--install", action="store_true", help="add pnnx and stop")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that one conversion may take")
    parser.add_argument("--turns", type=int, default=TURNS, help="how often each conversion is measured")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of timed calls of each file")
    parser.add_argument("--run", nargs=4, metavar=("WHO", "MODEL", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--examine", nargs=4, metavar=("WHO", "MODEL", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--time", nargs="+", metavar="ARGUMENT", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.install:
        install()
    elif given.run:
        who, name, source, out = given.run
        if who == "pnnx-torch":
            made = run_pnnx_torch(name, Path(out))
        else:
            made = {"retarget": run_retarget, "emit": run_emit}[who](Path(source), Path(out))
        sys.stdout.write("\n" + msgspec.json.encode(made).decode() + "\n")
    elif given.examine:
        who, name, source, out = given.examine
        found = examine(name, msgspec.convert(who, Who), Path(source), Path(out))
        sys.stdout.write("\n" + msgspec.json.encode(found).decode() + "\n")
    elif given.time:
        threads, name, source, *files = given.time
        outs = {msgspec.convert(who, Who): Path(path) for who, _, path in (file.partition("=") for file in files)}
        by = timed(name, Path(source), outs, int(threads), given.seconds)
        sys.stdout.write("\n" + msgspec.json.encode(by).decode() + "\n")
    else:
        from benchmarks import subjects

        place = Place(given.folder, given.timeout, given.turns)
        names = list(subjects.subjects()) if given.models == ["all"] else given.models
        verdicts([row(name, place, given.seconds) for name in names])


if __name__ == "__main__":
    main()

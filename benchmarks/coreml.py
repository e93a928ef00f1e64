"""retarget's Core ML target beside onnxsim's exporter and beside coremltools' PyTorch frontend, as ratios.

Two ways lead to a package, and each has its own peer:

- from an ONNX file: ``retarget`` beside ``onnxsim``, its documented use: simplify, then `export_coreml`;
- from a PyTorch module, whose weights are in a file: ``retarget-torch`` beside ``coremltools``, which is given what
  `torch.jit.trace` makes of it: of the modules here it converts fewer from `torch.export`.

Every tool writes float32 packages of a batch of one for the same deployment target, in a process of its own. For all of
them coremltools is imported without the frameworks that it would import in turn and does not use here, some ten seconds
in an environment that has them. What it took is as in `benchmarks.peers`, of several turns the one of least CPU time;
``work`` is all from the file to the package on disk. A package is sound if coremltools loads it, and if retarget's
interpreter of packages makes of it what ONNX Runtime makes of the ONNX file, without optimizations. The last column
counts the operations of the ML Program, constants aside. Ratios are the peer's figure by retarget's: above 1, retarget
is better.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np

from benchmarks.measure import Cost, cost, watch
from benchmarks.peers import FIGURES, SOUND_DB, Made, costs, costs_head, load, made_of, ratio, verdict

if TYPE_CHECKING:
    from torch import nn

    from retarget.protocols import Feeds, Outputs

Who: TypeAlias = Literal["retarget", "onnxsim", "retarget-torch", "coremltools"]

PEERS: Mapping[Who, Who] = {"retarget": "onnxsim", "retarget-torch": "coremltools"}
TOOLS: Sequence[Who] = ("retarget", "onnxsim", "retarget-torch", "coremltools")
MODELS = ("mobilenet_v2", "resnet50", "vit_tiny", "segformer_b0", "yolo", "bert_mini", "lstm")
TARGET: Literal["iOS17"] = "iOS17"
TURNS = 3
FRAMEWORKS = ("libsvm", "sklearn", "tensorflow", "transformers", "xgboost")
"""What coremltools imports where it is installed, and does not use for a module of PyTorch."""
PACKAGE = "model.mlpackage"


# ---- the tools, each in its own process


def module(name: str, weights: Path) -> nn.Module:
    """The module of a model, with its weights from the file."""
    import torch

    from benchmarks import subjects

    made = subjects.subjects()[name].make().eval()
    made.load_state_dict(torch.load(weights))
    return made


def weights_of(name: str, source: Path) -> Path:
    """The state dict of the model whose ONNX file is ``source``, and beside it the file that builds its module."""
    import torch

    from benchmarks import subjects

    path = source.with_suffix(".pt")
    if not path.exists():
        torch.save(subjects.subjects()[name].build().state_dict(), path)
    text = f"from benchmarks import subjects\n\ndef build():\n    return subjects.subjects()[{name!r}].make().eval()\n"
    source.with_suffix(".py").write_text(text)
    return path


def run_retarget(_: str, source: Path, out: Path) -> Cost:
    import retarget.passes.library  # noqa: F401 - the import is not what is measured
    from benchmarks import emit
    from retarget import catalog

    catalog.target_emit("coreml")
    options = {"minimum_deployment_target": TARGET}
    return cost(lambda: emit.write("coreml", emit.optimized(load(source)), out, options))


def run_onnxsim(_: str, source: Path, out: Path) -> Cost:
    from retarget.targets.coreml.library import ct  # isort: skip - imports it without frameworks

    import onnx
    import onnxsim

    def work() -> None:
        simplified, agrees = onnxsim.simplify(onnx.load(source))
        if not agrees:
            raise RuntimeError("onnxsim found its own result to be wrong")
        onnxsim.export_coreml(
            simplified,
            str(out / PACKAGE),
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=TARGET,
        )

    return cost(work)


def run_retarget_torch(name: str, source: Path, out: Path) -> Cost:
    import retarget.passes.library  # noqa: F401
    from benchmarks import emit, subjects
    from retarget import catalog
    from retarget.source import Source
    from retarget.spec import TensorSpec

    frontend = catalog.frontend("pytorch")
    export, read = catalog.frontend_export("pytorch"), catalog.frontend_load("pytorch")
    catalog.target_emit("coreml")
    family, feeds = subjects.subjects()[name], subjects.feeds(name)
    family.make()  # imports what it is made of
    given = Source(
        source.with_suffix(".pt"),
        tuple(TensorSpec.of(key, f"{one.dtype}[{','.join(map(str, one.shape))}]") for key, one in feeds.items()),
        {},
        family.outputs,
        (source.with_suffix(".py"), "build"),
        options=msgspec.to_builtins(frontend.Options()),
    )

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            exported = export.export(given, None, Path(folder))
            model = emit.optimized(read.load(Path(folder), given, exported))
            emit.write("coreml", model, out, {"minimum_deployment_target": TARGET})

    return cost(work)


def run_coremltools(name: str, source: Path, out: Path) -> Cost:
    # None: what importlib takes as "not to be found".
    sys.modules.update(dict.fromkeys(FRAMEWORKS))  # type: ignore[arg-type]
    import coremltools as ct

    for framework in FRAMEWORKS:
        del sys.modules[framework]
    import torch

    from benchmarks import subjects

    family, feeds = subjects.subjects()[name], subjects.feeds(name)
    family.make()

    def work() -> None:
        made = module(name, source.with_suffix(".pt"))
        example = tuple(torch.from_numpy(one) for one in feeds.values())
        traced = torch.jit.trace(made, example)  # type: ignore[no-untyped-call]
        narrow = {key: np.int32 if one.dtype == np.int64 else np.float32 for key, one in feeds.items()}
        ct.convert(
            traced,
            inputs=[ct.TensorType(key, one.shape, dtype=narrow[key]) for key, one in feeds.items()],
            outputs=[ct.TensorType(output) for output in family.outputs],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=getattr(ct.target, TARGET),
            skip_model_load=True,
        ).save(str(out / PACKAGE))

    return cost(work)


RUN: Mapping[Who, Callable[[str, Path, Path], Cost]] = {
    "retarget": run_retarget,
    "onnxsim": run_onnxsim,
    "retarget-torch": run_retarget_torch,
    "coremltools": run_coremltools,
}


@dataclass(frozen=True)
class Place:
    """Where things are, how long one may take, and how often each is measured."""

    folder: Path
    timeout: float
    turns: int

    def source(self, name: str) -> Path:
        """The ONNX file; the weights are beside it."""
        from benchmarks import subjects

        source = subjects.prepare(name, self.folder / "models").absolute()
        weights_of(name, source)
        return source

    def package(self, name: str, who: Who) -> Path:
        return (self.folder / "made" / name / who / PACKAGE).absolute()

    def made(self, name: str, source: Path) -> dict[Who, Made]:
        """By every tool, in turn; of each what took the least CPU time, or the first failure."""
        found: dict[Who, Made] = {}
        for _ in range(self.turns):
            for who in TOOLS:
                if who in found and found[who].process.error:
                    continue
                made = self._made(name, who, source)
                if who not in found or made.process.error or made.cpu_seconds < found[who].cpu_seconds:
                    found[who] = made
        return found

    def _made(self, name: str, who: Who, source: Path) -> Made:
        package = self.package(name, who)
        out = package.parent
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        arguments = ["-m", "benchmarks.coreml", "--run", who, name, str(source), str(out)]
        done = watch([sys.executable, "-W", "ignore", *arguments], self.timeout, environment, out)
        (out / "log.txt").write_text(done.output + done.errors)
        return made_of(done, self.timeout, package)


# ---- what came out


class Found(msgspec.Struct, frozen=True):
    """Of one package."""

    megabytes: float
    operations: int = 0
    max_abs: float = 0.0
    snr: float = 0.0
    error: str | None = None
    """Why it is of no use, or cannot be told to be."""

    @property
    def sound(self) -> bool:
        return self.error is None and self.snr >= SOUND_DB


def interpreted(path: Path, feeds: Feeds, expected: Outputs) -> tuple[int, Outputs]:
    """The operations of the package, and its outputs. Names that a tool changed are told by their order, which none
    does."""
    from retarget.targets.coreml.interpreter.evaluate import Interpreter
    from retarget.targets.coreml.interpreter.program import read
    from retarget.targets.coreml.library import ct

    ct.models.MLModel(str(path), skip_model_load=True)
    program = read(path)
    block = program.functions["main"].block
    names = list(program.functions["main"].inputs)
    fed = {
        key if key in names else names[index]: one.astype(np.int32) if one.dtype == np.int64 else one
        for index, (key, one) in enumerate(feeds.items())
    }
    outputs = Interpreter(program).run(fed)
    made = list(outputs.values())
    found = {name: outputs.get(name, made[index]) for index, name in enumerate(expected)}
    return sum(operation.type != "const" for operation in block.operations), found


def examine(path: Path, feeds: Feeds, expected: Outputs) -> Found:
    """The package ``path``, against the outputs ``expected``."""
    from retarget.compare import snr_db
    from retarget.errors import RetargetError

    found = Found(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6)
    try:
        operations, actual = interpreted(path, feeds, expected)
    except (RetargetError, ValueError, RuntimeError, KeyError) as error:
        return msgspec.structs.replace(found, error=f"{type(error).__name__}: {str(error).splitlines()[0][:150]}")
    found = msgspec.structs.replace(found, operations=operations)
    for name, right in expected.items():
        if actual[name].shape != right.shape:
            return msgspec.structs.replace(found, error=f"{name} is {actual[name].shape}, not {right.shape}")
        if not np.isfinite(actual[name]).all():
            return msgspec.structs.replace(found, error=f"{name} is not finite")
    gaps = [np.abs(np.subtract(actual[name], right, dtype=np.float64)).max() for name, right in expected.items()]
    snr = min(snr_db(right, actual[name]) for name, right in expected.items())
    return msgspec.structs.replace(found, max_abs=float(max(gaps)), snr=snr)


def examined(name: str, source: Path, paths: Mapping[Who, Path]) -> dict[Who, Found]:
    """In this process, which has to be one of its own: memory of one model is not kept for the next."""
    from benchmarks import subjects
    from retarget.session import Session

    feeds = subjects.feeds(name)
    with Session(source) as session:
        expected = session.run(feeds)
    return {who: examine(path, feeds, expected) for who, path in paths.items()}


def examined_apart(name: str, source: Path, paths: Mapping[Who, Path]) -> dict[Who, Found]:
    files = [f"{who}={path}" for who, path in paths.items()]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.coreml", "--examine", name, str(source), *files]
    done = watch(command, 1800)
    if done.status != 0:
        why = (done.errors.strip().splitlines() or [f"exit {done.status}"])[-1][:150]
        return {who: Found(0, error=why) for who in paths}
    return msgspec.json.decode(done.output.splitlines()[-1].encode(), type=dict[Who, Found])


# ---- the tables


@dataclass(frozen=True)
class Row:
    """Every tool on one model."""

    name: str
    made: Mapping[Who, Made]
    found: Mapping[Who, Found]


def row(name: str, place: Place) -> Row:
    """Measure every tool on a model, and print what was found."""
    source = place.source(name)
    made = place.made(name, source)
    paths = {who: place.package(name, who) for who in TOOLS if not made[who].process.error}
    found = Row(name, made, examined_apart(name, source, paths))
    print(f"\n{name}, {source.stat().st_size / 1e6:.1f} MB\n{costs_head()}")
    for own, peer in PEERS.items():
        print(costs(own, made[own], made[peer]))
        print(costs(peer, made[peer], made[peer]))
    print(f"{'':16}{'MB':>8}{'operations':>12}{'max error':>11}{'SNR':>7}")
    for who, one in found.found.items():
        line = f"{who:16}{one.megabytes:>8.2f}{one.operations:>12}"
        print(f"{line}  not usable: {one.error}" if one.error else f"{line}{one.max_abs:>11.2g}{one.snr:>7.0f}")
    sys.stdout.flush()
    return found


def verdicts(rows: Sequence[Row]) -> None:
    """Every line of what must hold."""
    print()
    for who in TOOLS:
        said = {
            one.name: "failed"
            if one.made[who].process.error
            else one.found[who].error or f"{one.found[who].snr:.0f} dB"
            for one in rows
        }
        broken = [one.name for one in rows if who not in one.found or not one.found[who].sound]
        verdict(f"a package by {who}, at least {SOUND_DB:.0f} dB", said, broken)
    for own, peer in PEERS.items():
        for title, figure in FIGURES.items():
            ratios = {one.name: by for one in rows if (by := ratio(one.made[peer], one.made[own], figure)) is not None}
            said = {name: f"{by:.1f}" for name, by in ratios.items()}
            verdict(f"{title} of {own} at most {peer}'s", said, [name for name, by in ratios.items() if by < 1])
        counts = {
            one.name: (one.found[own].operations, one.found[peer].operations)
            for one in rows
            if own in one.found and peer in one.found and one.found[peer].sound
        }
        said = {name: f"{ours}:{theirs}" for name, (ours, theirs) in counts.items()}
        more = [name for name, (ours, theirs) in counts.items() if ours > theirs]
        verdict(f"no more operations than {peer}'s", said, more)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.coreml", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="`all`: the tests' tiny ones too")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks/coreml"), help="where models are kept")
    parser.add_argument("--timeout", type=float, default=900, help="seconds that one conversion may take")
    parser.add_argument("--turns", type=int, default=TURNS, help="how often each conversion is measured")
    parser.add_argument("--run", nargs=4, metavar=("WHO", "MODEL", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--examine", nargs="+", metavar="ARGUMENT", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        who, name, source, out = given.run
        sys.stdout.write("\n" + msgspec.json.encode(RUN[who](name, Path(source), Path(out))).decode() + "\n")
    elif given.examine:
        name, source, *files = given.examine
        paths: dict[Who, Path] = {who: Path(path) for who, _, path in (file.partition("=") for file in files)}
        sys.stdout.write("\n" + msgspec.json.encode(examined(name, Path(source), paths)).decode() + "\n")
    else:
        from benchmarks import subjects

        place = Place(given.folder, given.timeout, given.turns)
        names = list(subjects.subjects()) if given.models == ["all"] else given.models
        verdicts([row(name, place) for name in names])


if __name__ == "__main__":
    main()

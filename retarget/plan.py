"""Recipe → tuple of steps with content keys, before anything runs.

What identifies a step, `step_keys` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import msgspec

from retarget import catalog
from retarget import options as told
from retarget.errors import MissingToolchain, RetargetError, did_you_mean
from retarget.facts import DataOrigin
from retarget.identity import framework_versions, require, version
from retarget.preprocess import READERS, Classes, check_folder
from retarget.protocols import Step
from retarget.recipe import Evaluation, Int8, Int8Dynamic, Int16x8, Palette, WeightsOnly
from retarget.recipe_yaml import TextFile
from retarget.recognise import recognise
from retarget.step_keys import MISSING, Steps
from retarget.tolerance import DEFAULT_TOLERANCE

if TYPE_CHECKING:
    from retarget.recipe import Recipe, Samples, TargetEntry, Variant
    from retarget.schemes import QuantScheme
    from retarget.store import Store

ONNX = "onnx"
"""The worker of the steps that need only retarget's own dependencies."""

SYNTHETIC_SAMPLES = 64
"""How many are drawn where a recipe asks for synthetic data and does not say."""

PARITY_SAMPLES = 8
"""How many of the calibration samples the parity cases take where there is no ``data.samples``."""

BLOCKS = {8: 32, 4: 128}
"""Weights that share a scale, by their bits: with fewer of 4 bits OpenVINO takes four times as long."""


@dataclass(frozen=True)
class Invocation:
    """What the command line says beyond the recipe."""

    strict: bool = False
    only: tuple[str, ...] = ()
    threads: int = 2
    bench: bool = True
    """Whether latency is measured."""
    bench_seconds: float = 1.0
    toolchains: Mapping[str, Path] = field(default_factory=dict)
    """Frontend to the interpreter that the user configured for it; what the recipe says goes before."""


@dataclass(frozen=True)
class LeftOut:
    """An optional artifact that cannot be built on this machine."""

    target: str
    variant: str
    precision: str
    reason: str
    hint: str


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which they can run, and what goes into them."""

    recipe: Recipe
    steps: tuple[Step, ...]
    left_out: tuple[LeftOut, ...]
    inputs: Mapping[Path, str]
    """Every file or folder of the user's, with its digest."""
    versions: Mapping[str, str]
    """Every distribution that shapes an artifact."""
    found: str
    """What the model was recognised as, in words."""


def make(recipe: Recipe, store: Store, invocation: Invocation) -> Plan:
    """The plan of ``recipe``. Raises ``RetargetError`` for what can be known to fail before anything runs."""
    return _Planner(recipe, store, invocation).plan()


def preflight(recipe: Recipe, store: Store, invocation: Invocation) -> Plan:
    """What asks each target which nodes it cannot take: no artifact is made, and nothing is held against the source.

    The steps before are those of `make`, so that a build finds them done. Raises as that does.
    """
    return _Planner(recipe, store, invocation).preflight()


class _Framework(TypedDict, total=False):
    """Arguments of `Steps.add`."""

    requires: Sequence[str]
    python: Path
    extra: Mapping[str, str]


@dataclass
class _Planner:
    recipe: Recipe
    store: Store
    invocation: Invocation
    steps: Steps = field(init=False)

    def __post_init__(self) -> None:
        self.steps = Steps(self.store, self.recipe.model.path.parent)

    def plan(self) -> Plan:
        wanted, left_out = self.available()
        convert = self.convert()
        optimize = self.optimize(convert)
        self.compare("onnx", convert, convert)
        self.compare("optimized", optimize, convert)
        if self.recipe.data.evaluation:
            self.evaluate_source(convert)

        emitted: dict[str, Step] = {}
        for target, variant in wanted:
            model = self.model_of(target, variant, convert, optimize)
            emitted[f"{target.name}/{variant.name}"] = self.artifact(target, variant, model, convert)
        if emitted and self.invocation.bench:
            self.steps.add(
                "bench",
                "bench",
                "bench",
                told.BenchOptions(threads=self.invocation.threads, seconds=self.invocation.bench_seconds),
                inputs={"source": convert, "reference": optimize, **emitted},
                runs=True,
                partial=True,
            )
        return self.of(self.steps.made, left_out)

    def preflight(self) -> Plan:
        wanted, left_out = self.available()
        convert = self.convert()
        optimize = self.optimize(convert)
        for target, variant in wanted:
            self.deliver("check", target, variant, self.model_of(target, variant, convert, optimize), convert)
        return self.of([step for step in self.steps.made if step.kind != "compare"], left_out)

    def of(self, steps: Sequence[Step], left_out: Sequence[LeftOut]) -> Plan:
        found = self.recognised()
        return Plan(self.recipe, tuple(steps), tuple(left_out), self.steps.digests, self.steps.versions, found)

    # ---- what can be built here

    def available(self) -> tuple[list[tuple[TargetEntry, Variant]], list[LeftOut]]:
        """The requested artifacts that this machine can build, and the optional ones that it cannot."""
        requested = list(self.only())
        wanted, left_out, missing = [], [], dict[str, tuple[str, str]]()
        for target, variant in requested:
            lack = catalog.target(target.name).unavailable()
            if lack is None:
                wanted.append((target, variant))
            elif target.optional:
                left_out.append(LeftOut(target.name, variant.name, variant.precision, *lack))
            else:
                missing[target.name] = lack
        if missing:
            reasons = "; ".join(f"{name}: {reason}" for name, (reason, _) in missing.items())
            hints = "; ".join(dict.fromkeys(hint for _, hint in missing.values()))
            raise MissingToolchain(reasons, f"{hints} (or mark the target `optional: true` in the recipe)")
        return wanted, left_out

    def only(self) -> Iterator[tuple[TargetEntry, Variant]]:
        requested = list(self.recipe.requested())
        names = {target.name for target, _ in requested} | {f"{t.name}/{v.name}" for t, v in requested}
        for name in self.invocation.only:
            if name not in names:
                raise RetargetError(f"--only {name}: the recipe asks for no such artifact", did_you_mean(name, names))
        for target, variant in requested:
            chosen = {target.name, f"{target.name}/{variant.name}"} & set(self.invocation.only)
            if chosen or not self.invocation.only:
                yield target, variant

    # ---- the steps

    def convert(self) -> Step:
        source, found = self.source
        files = dict(found)
        data: told.DataOptions | None = None
        given = self.recipe.data
        if given.samples:
            data = self.data(given.samples, "samples")
            files |= _data_files(given.samples)
        elif given.calibration and given.calibration.path:
            few = msgspec.structs.replace(
                given.calibration, samples=min(PARITY_SAMPLES, given.calibration.samples or PARITY_SAMPLES)
            )
            data = self.data(few, "calibration")
            files |= _data_files(few)
        return self.steps.add(
            "convert",
            "convert",
            source.frontend,
            told.ConvertOptions(source=source, data=data),
            files=files,
            **self.framework(source.frontend),
        )

    def optimize(self, convert: Step) -> Step:
        return self.steps.add(
            "optimize",
            "optimize",
            ONNX,
            told.OptimizeOptions(preset=self.preset(), strict=self.invocation.strict),
            inputs={"model": convert, "source": convert},
        )

    @cached_property
    def source(self) -> tuple[told.SourceOptions, Mapping[str, Path]]:
        """How to read the user's model, and its files."""
        model = self.recipe.model
        if not model.path.exists():
            raise RetargetError(f"{model.path}: no such file or folder", MISSING)
        name, form = recognise(model.path, model.format)
        frontend = catalog.frontend(name)
        if self.interpreter(name) is None:
            require(name, frontend.requires, frontend.extra)
        parts = dict(frontend.parts(model.path))
        if model.weights:
            if not frontend.takes_weights:
                raise RetargetError(f"{model.path}: {form} has no second file", "leave `weights` out")
            parts["weights"] = model.weights
        if model.sha256 and self.steps.digest(model.path) != model.sha256:
            raise RetargetError(
                f"{model.path}: sha256 is {self.steps.digest(model.path)}, the recipe demands {model.sha256}",
                "this is another file than the one the recipe was written for",
            )
        files = {"model": model.path, **{f"model.{role}": path for role, path in parts.items()}}
        if model.factory:
            files["factory"] = model.factory.file
        ranges = self.recipe.dim_ranges()
        return told.SourceOptions(
            frontend=name,
            form=form,
            inputs=tuple(str(spec) for spec in self.recipe.input_specs()),
            shapes={symbol: str(ranges[symbol]) for symbol in self.recipe.model.shapes},
            outputs=self.recipe.outputs,
            factory=model.factory.function if model.factory else None,
            trust=model.trust,
            layout=model.io_layout,
            normalize=model.normalize,
            signature=model.signature,
            parts=tuple(parts),
            options=model.options,
        ), files

    def recognised(self) -> str:
        """``net.prototxt with net.caffemodel: Caffe prototxt (caffe)``."""
        source, files = self.source
        names = " with ".join(path.name for role, path in files.items() if role.partition(".")[0] == "model")
        python = self.interpreter(source.frontend)
        return f"{names}: {source.form} ({source.frontend}{f', run by {python}' if python else ''})"

    def interpreter(self, frontend: str) -> Path | None:
        """The interpreter that runs ``frontend``; None: this one."""
        own = self.recipe.toolchains.get(frontend)
        return own.python if own else self.invocation.toolchains.get(frontend)

    def framework(self, frontend: str) -> _Framework:
        """What the source framework of a step adds to its key: that of this environment or the user's own."""
        python = self.interpreter(frontend)
        if python is None:
            return {"requires": catalog.frontend(frontend).requires}
        return {"python": python, "extra": framework_versions(python)}

    def preset(self) -> str | tuple[tuple[str, dict[str, object]], ...]:
        optimize = self.recipe.optimize
        if isinstance(optimize, str):
            return optimize
        return tuple((entry.name, entry.options) for entry in optimize)

    def model_of(self, target: TargetEntry, variant: Variant, convert: Step, optimize: Step) -> Step:
        """The step whose model is emitted: artifacts that need the same one share it."""
        light = catalog.target(target.name)
        if variant.precision in light.compresses:
            return optimize
        if isinstance(variant.options, Int8 | Int16x8):
            return self.int8(variant, variant.options, light.schemes[variant.precision], convert, optimize)
        if isinstance(variant.options, Int8Dynamic):
            weights = told.WeightsOptions(bits=8, block=None, keep=variant.options.keep)
            return self.quantize(variant.name, variant, convert, {"model": optimize}, weights=weights)
        if isinstance(variant.options, WeightsOnly):
            bits: Literal[4, 8] = 4 if variant.precision == "int4_weights" else 8
            weights = told.WeightsOptions(
                bits=bits,
                block=variant.options.block or BLOCKS[bits],
                keep=variant.options.keep,
            )
            return self.quantize(variant.name, variant, convert, {"model": optimize}, weights=weights)
        if variant.precision == "fp16" and light.fp16 == "graph":
            ranges = self.calibrate("calibrate", optimize, convert)
            return self.quantize(variant.name, variant, convert, {"model": optimize, "ranges": ranges})
        return optimize

    def int8(
        self, variant: Variant, wanted: Int8 | Int16x8, scheme: QuantScheme, convert: Step, optimize: Step
    ) -> Step:
        """Equalize and calibrate once for all schemes, then quantize once for each."""
        calibration, selection = self.recipe.data.calibration, self.recipe.data.selection
        assert calibration is not None
        model, ranges = optimize, "calibrate optimized"
        if wanted.equalize:
            model, ranges = self.equalize(calibration, convert, optimize), "calibrate equalized"
        files = _data_files(calibration)
        told_selection = None
        if selection is not None:
            files |= _data_files(selection, "selection")
            evaluation = self.recipe.data.evaluation
            told_selection = told.SelectionOptions(
                data=self.data(selection, "samples", evaluation.classes if evaluation else None),
                labels=evaluation.labels if evaluation and selection.path else None,  # drawn data has none
                metric=_metric(evaluation) if evaluation else "top1",
            )
            if evaluation and not isinstance(evaluation.metric, str):
                files["metric"] = evaluation.metric.file
        int8 = told.Int8Options(
            scheme=scheme,
            method=wanted.method,
            percentile=wanted.percentile,
            max_drop=wanted.max_drop,
            min_snr_db=wanted.min_snr_db,
            correct_bias=wanted.correct_bias,
            keep=wanted.keep,
            rest=wanted.rest,
            integer_io=wanted.io != "float32",
            data=self.data(calibration, "calibration"),
            selection=told_selection,
        )
        inputs = {
            "model": model,
            "ranges": self.calibrate(ranges, model, convert, hold_out=selection is None, plot=True),
        }
        return self.quantize(f"{variant.name}/{scheme.name}", variant, convert, inputs, files, int8=int8)

    def equalize(self, calibration: Samples, convert: Step, optimize: Step) -> Step:
        if (known := self.steps.found("equalize")) is not None:
            return known
        equalize = self.steps.add(
            "equalize",
            "optimize",
            ONNX,
            told.OptimizeOptions(
                preset="equalize",
                strict=self.invocation.strict,
                data=self.data(calibration, "calibration"),
            ),
            inputs={"model": optimize, "source": convert},
            files=_data_files(calibration),
        )
        self.compare("equalized", equalize, convert)
        return equalize

    def calibrate(self, name: str, model: Step, convert: Step, *, hold_out: bool = False, plot: bool = False) -> Step:
        if (known := self.steps.found(name)) is not None:
            return known
        calibration = self.recipe.data.calibration
        return self.steps.add(
            name,
            "calibrate",
            ONNX,
            told.CalibrateOptions(
                data=self.data(calibration, "calibration") if calibration else None,
                hold_out=hold_out,
                plot=plot,
            ),
            inputs={"model": model, "source": convert},
            files=_data_files(calibration) if calibration else {},
        )

    def quantize(
        self,
        subject: str,
        variant: Variant,
        convert: Step,
        inputs: Mapping[str, Step],
        files: Mapping[str, Path] | None = None,
        *,
        int8: told.Int8Options | None = None,
        weights: told.WeightsOptions | None = None,
    ) -> Step:
        if (known := self.steps.found(f"quantize {subject}")) is not None:
            return known
        step = self.steps.add(
            f"quantize {subject}",
            "quantize",
            ONNX,
            told.QuantizeOptions(
                variant=variant.name, precision=variant.precision, io=_io(variant), int8=int8, weights=weights
            ),
            inputs={**inputs, "source": convert},
            files=files,
        )
        self.compare(subject, step, convert, variant)
        return step

    def deliver(
        self, kind: Literal["emit", "check"], target: TargetEntry, variant: Variant, model: Step, convert: Step
    ) -> Step:
        """Hand ``model`` to the target, to be written or only to be judged."""
        light = catalog.target(target.name)
        own = variant.options if variant.precision in light.compresses else None
        return self.steps.add(
            f"{kind} {target.name}/{variant.name}",
            kind,
            target.name,
            told.EmitOptions(
                target=target.name,
                variant=variant.name,
                precision=variant.precision,
                io=_io(variant),
                options=self.spelled_out(target.options),
                block=variant.block if own else None,
                keep=own.keep if isinstance(own, WeightsOnly | Palette) else (),
            ),
            inputs={"model": model, "source": convert},
            requires=light.requires,
            extra=light.fingerprint(),
            optional=target.optional,
        )

    def spelled_out(self, options: msgspec.Struct) -> dict[str, object]:
        """A target's options as a step is told them: a file by its lines, as no path enters a key."""

        def spell(value: object) -> object:
            if isinstance(value, TextFile):
                self.steps.digest(value.file)
                return value.lines()
            if isinstance(value, Mapping):
                return {key: spell(item) for key, item in value.items()}
            return self.spelled_out(value) if isinstance(value, msgspec.Struct) else value

        return {name: spell(value) for name, value in msgspec.structs.asdict(options).items()}

    def artifact(self, target: TargetEntry, variant: Variant, model: Step, convert: Step) -> Step:
        """Emit one artifact, compare it, and evaluate it where there is data."""
        light = catalog.target(target.name)
        name = f"{target.name}/{variant.name}"
        emit = self.deliver("emit", target, variant, model, convert)
        self.compare(name, emit, convert, variant, target)
        evaluation = self.recipe.data.evaluation
        if evaluation:
            self.steps.add(
                f"evaluate {name}",
                "evaluate",
                target.name,
                self.evaluation(evaluation, target, variant),
                inputs={"model": emit, "source": convert},
                files=_evaluation_files(evaluation),
                requires=light.requires,
                runs=True,
                optional=target.optional,
            )
        return emit

    def compare(
        self,
        subject: str,
        model: Step,
        convert: Step,
        variant: Variant | None = None,
        target: TargetEntry | None = None,
    ) -> None:
        precision = variant.precision if variant else "fp32"
        gate = self.recipe.tolerance(variant) if variant else None
        bounds = (gate or DEFAULT_TOLERANCE[precision]).bounds()
        self.steps.add(
            f"compare {subject}",
            "compare",
            target.name if target else ONNX,
            told.CompareOptions(
                subject=subject,
                target=target.name if target else None,
                variant=variant.name if variant else "fp32",
                precision=precision,
                tolerance=bounds,
                by_default=gate is None,
                threads=self.invocation.threads,
            ),
            inputs={"model": model, "source": convert},
            requires=catalog.target(target.name).requires if target else (),
            runs=True,
            optional=bool(target and target.optional),
        )

    def evaluate_source(self, convert: Step) -> None:
        evaluation = self.recipe.data.evaluation
        assert evaluation
        source, files = self.source
        self.steps.add(
            "evaluate source",
            "evaluate",
            source.frontend,
            self.evaluation(evaluation, None, None, source),
            inputs={"source": convert},
            files={**files, **_evaluation_files(evaluation)},
            runs=True,
            **self.framework(source.frontend),
        )

    def evaluation(
        self,
        evaluation: Evaluation,
        target: TargetEntry | None,
        variant: Variant | None,
        source: told.SourceOptions | None = None,
    ) -> told.EvaluateOptions:
        return told.EvaluateOptions(
            target=target.name if target else None,
            variant=variant.name if variant else None,
            precision=variant.precision if variant else "fp32",
            source=source,
            data=self.data(evaluation, "samples"),
            labels=evaluation.labels,
            metric=_metric(evaluation),
            threads=self.invocation.threads,
        )

    def data(self, given: Samples | Evaluation, origin: DataOrigin, classes: Classes | None = None) -> told.DataOptions:
        """How to read a set; ``classes`` of one that is labelled as the evaluation data are.

        Raises ``RetargetError`` for a folder of images or sound that nothing says how to read.
        """
        if given.path is None:
            return told.DataOptions(origin="synthetic", limit=given.samples or SYNTHETIC_SAMPLES)
        digest = self.steps.digest(given.path.file)
        block = self.recipe.data.preprocess
        media = check_folder(given.path.file, block) if given.path.file.is_dir() else None
        if media:
            require(f"a folder of {media}", READERS[media], media)
        if isinstance(given, Evaluation):
            classes = given.classes
        if classes is not None and not media:
            raise RetargetError(
                "data.evaluation.classes is for a folder of images or sound", "labels in an array are numbers already"
            )
        readers = {name: version(name) for name in READERS[media]} if media else {}
        self.steps.versions.update(readers)
        return told.DataOptions(
            origin=origin,
            function=given.path.function,
            limit=given.samples,
            digest=digest,
            preprocess=block if media else None,
            classes=classes,
            readers=readers,
        )


def _io(variant: Variant) -> str:
    """Type of the variant's float inputs and outputs."""
    io: str = getattr(variant.options, "io", "float32")
    return io


def _data_files(given: Samples | Evaluation, role: str = "data") -> dict[str, Path]:
    return {} if given.path is None else {role: given.path.file}


def _metric(evaluation: Evaluation) -> str:
    return evaluation.metric if isinstance(evaluation.metric, str) else evaluation.metric.function


def _evaluation_files(evaluation: Evaluation) -> dict[str, Path]:
    files = _data_files(evaluation)
    if not isinstance(evaluation.metric, str):
        files["metric"] = evaluation.metric.file
    return files

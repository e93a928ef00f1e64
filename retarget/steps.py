"""The step functions: each does one step in a worker and returns its facts.

They only join pieces together: a frontend with the parity cases, a preset with its check, a model with a target.
Files go to ``request.out``; a step that fails raises ``RetargetError``, and what it wrote is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

import msgspec

from retarget import catalog, graph, int8, reference
from retarget import options as told
from retarget.bench import Timing, interleave
from retarget.budget import Batch
from retarget.calibration.cases import MAX_DATA_CASES, parity_cases
from retarget.calibration.data import Samples, open_samples
from retarget.calibration.observers import observe
from retarget.calibration.plot import plot
from retarget.calibration.ranges import Ranges
from retarget.calibration.statistics import Statistics
from retarget.calibration.synthetic import SyntheticSamples
from retarget.dimensions import name_output_dimensions
from retarget.equalization import equalize
from retarget.errors import NotExecutable, RetargetError
from retarget.facts import (
    BenchEntry,
    BenchFacts,
    CalibrateFacts,
    Case,
    CheckFacts,
    CompareFacts,
    ConvertFacts,
    DataFacts,
    EmitFacts,
    EvaluateFacts,
    Fact,
    Latency,
    OptimizeFacts,
    QuantizeFacts,
    Refusal,
)
from retarget.figures import sizes_text
from retarget.interface import IMAGE_AXES, Interface
from retarget.interface_graph import apply, source_layouts
from retarget.interface_runner import source_feeds, wrap
from retarget.metrics import open_metric
from retarget.passes import presets
from retarget.passes.check import run_checked
from retarget.passes.fp16 import CastFloat16
from retarget.passes.quantize_weights import QuantizeWeights
from retarget.progress import progress
from retarget.protocols import EmitJob, FrontendExport, Runner, StepRequest
from retarget.remote import RemoteFrontend
from retarget.repeats import check_repeats
from retarget.rows import InRows
from retarget.session import Session
from retarget.source import Exported, Source
from retarget.spec import DEFAULT_RANGE, DimRange, TensorSpec, batch_symbol, batched_inputs, symbols
from retarget.store import read_manifest
from retarget.tolerance import DEFAULT_TOLERANCE, Tolerance
from retarget.verification import Recorded, batch_case, parity, rows_depend, verify

if TYPE_CHECKING:
    import onnx_ir as ir

    from retarget.protocols import Array, Feeds

F = TypeVar("F", bound=Fact)
MODEL = "model.onnx"
_HELD_AS: Mapping[str, str] = {"float16": "fp16", "bfloat16": "fp16", "int8": "int8"}
"""Type of a narrow source → the precision whose default bounds its fp32 variant can hold."""
MAX_JUDGED = 32
"""At most so many batches are kept in memory to judge int8 on."""
TOGETHER_BYTES = 1 << 30
"""Up to so many bytes of files `bench` opens all artifacts at once; runtimes keep about twice as much."""


def convert(request: StepRequest) -> ConvertFacts:
    """Source → ``model.onnx`` in the normal form's opset, and the source framework's own outputs."""
    options = told.read(request.options, told.ConvertOptions)
    interface = _interface(options.source, request.files)
    source = _source(options.source, request.files, interface)
    example = _example(options, request.files, interface)

    # Beside the result: the export is as large, and the system's own folder for such things may be memory.
    with (
        TemporaryDirectory(prefix="export-", dir=request.out.parent) as folder,
        _framework(options.source, request) as frontend,
    ):
        progress(0, 0, "exporting")
        exported = frontend.export(source, example, Path(folder))
        progress(0, 0, "to the normal form")
        model = catalog.frontend_load(options.source.frontend).load(Path(folder), source, exported)
        own = catalog.frontend(options.source.frontend).layout or source_layouts(model)
        shown = interface if interface.changes else Interface(own)
        apply(model, interface)
        inputs = interface.user_inputs(exported.inputs)
        if unknown := sorted(source.shapes.keys() - set(symbols(inputs))):
            raise RetargetError(
                f"{', '.join(unknown)}: no input has this dimension",
                f"the inputs are {' '.join(str(spec) for spec in inputs)}",
            )
        shapes = {symbol: source.shapes.get(symbol, DEFAULT_RANGE) for symbol in symbols(inputs)}
        defaulted = [symbol for symbol in shapes if symbol not in source.shapes]
        samples = _samples(options.data, request.files, inputs) if options.data else None
        origin = options.data.origin if options.data else "generated"
        cases = parity_cases(model, inputs, shapes, samples, origin)
        with wrap(frontend.reference(source, exported), interface, exported.inputs) as runner:
            made = _record(request.out, cases, runner, defaulted)
            name_output_dimensions(model, inputs, [case.sizes for case, _ in cases], made)
            outputs = tuple(graph.value_spec(value) for value in model.graph.outputs)
            batch, _ = batch_case((case for case, _ in cases), inputs, outputs, shapes)
            depend = None
            if batch is not None:
                largest = next(feeds for case, feeds in cases if case.name == batch.case)
                precision = "fp32" if exported.narrow is None else _HELD_AS[exported.narrow]
                depend = rows_depend(runner, largest, batch.inputs, DEFAULT_TOLERANCE[precision])
            reference_settings = runner.settings
        graph.save(model, request.out / MODEL)

    notes = [*exported.notes, *(samples.notes if samples else ())]
    taken = sum(case.origin != "generated" for case, _ in cases)
    if samples and samples.count and taken == MAX_DATA_CASES:
        notes.append(f"parity takes the first {MAX_DATA_CASES} batches of the {samples.count} samples")
    notes += [f"{symbol}: no shape was given, so {DEFAULT_RANGE} is assumed (min:opt:max)" for symbol in defaulted]
    return ConvertFacts(
        frontend=options.source.frontend,
        form=options.source.form,
        rung=exported.rung,
        inputs=inputs,
        outputs=outputs,
        shapes=shapes,
        nodes=graph.node_count(model),
        bytes=graph.initializer_bytes(model),
        parameters=sum(value.const_value.size for value in graph.initializers(model) if value.const_value is not None),
        cases=tuple(case for case, _ in cases),
        origin=origin,
        rows_depend=depend,
        layouts={
            spec.name: shown.layout_of(spec.name, len(spec.shape))
            for spec in (*inputs, *outputs)
            if len(spec.shape) == IMAGE_AXES
        },
        narrow=exported.narrow,
        reference=reference_settings,
        notes=tuple(notes),
    )


def optimize(request: StepRequest) -> OptimizeFacts:
    """Run the preset on ``model``, checked against the model before it on the recorded feeds."""
    options = told.read(request.options, told.OptimizeOptions)
    source = facts_of(request.inputs["source"], ConvertFacts)
    model = graph.load(request.inputs["model"] / MODEL)
    feeds = {recorded.case: recorded.feeds for recorded in reference.read(request.inputs["source"])}
    if options.data is not None:
        samples = _samples(options.data, request.files, source.inputs, model=model, shapes=source.shapes)
        batches = list(islice(samples.batches(_batch(source)), MAX_JUDGED))
        optimized, facts = equalize(model, batches, feeds, strict=options.strict)
        graph.save(optimized, request.out / MODEL)
        return facts
    passes = presets.build(options.preset, source.shapes)
    name = options.preset if isinstance(options.preset, str) else "custom"
    optimized, facts = run_checked(model, passes, feeds, preset=name, strict=options.strict)
    graph.save(optimized, request.out / MODEL)
    return facts


def calibrate(request: StepRequest) -> CalibrateFacts:
    """Statistics of every float tensor of ``model`` over the calibration data, or over the parity cases."""
    options = told.read(request.options, told.CalibrateOptions)
    source = facts_of(request.inputs["source"], ConvertFacts)
    model = graph.load(request.inputs["model"] / MODEL)
    samples = (
        _samples(options.data, request.files, source.inputs, model=model, shapes=source.shapes)
        if options.data
        else None
    )
    statistics = Statistics(source.inputs)
    feeds: Iterable[Feeds]
    if samples:
        feeds = _watched(samples, _batch(source), statistics)
        if options.hold_out:
            feeds = (batch for index, batch in enumerate(feeds) if not int8.is_held_out(index))
    else:
        feeds = (recorded.feeds for recorded in reference.read(request.inputs["source"]))
    checkpoint = request.scratch and request.scratch / "counted.npz"
    ranges = observe(model, feeds, memory_bytes=request.memory_bytes, checkpoint=checkpoint)
    ranges.save(request.out)
    if options.plot:
        # Entropy is left out: its search would take longer than all the rest of the page.
        page = plot(ranges, methods=("minmax", "percentile", "mse"))
        (request.out / "ranges.html").write_text(page, encoding="utf-8")
    return CalibrateFacts(
        origin=options.data.origin if options.data else source.origin,
        samples=ranges.samples,
        tensors=len(ranges),
        data=_data_facts(options.data, statistics) if options.data else None,
        notes=samples.notes if samples else (),
    )


def quantize(request: StepRequest) -> QuantizeFacts:
    """The model in a lower precision: float16, int8, or with its weights alone in fewer bits."""
    options = told.read(request.options, told.QuantizeOptions)
    model = graph.load(request.inputs["model"] / MODEL)
    if options.int8 is not None:
        model, facts = int8.quantize(model, options.int8, _int8_data(model, options.int8, request))
    elif options.weights is not None:
        kept = int8.named(model, options.weights.keep)
        narrow = QuantizeWeights(options.weights.bits, options.weights.block, kept)
        model = narrow(model).model
        facts = QuantizeFacts(precision=options.precision, nodes=len(narrow.quantized), kept=narrow.kept)
    else:
        cast = CastFloat16(Ranges.load(request.inputs["ranges"]), io=options.io)
        model = cast(model).model
        facts = QuantizeFacts(precision=options.precision, nodes=cast.converted, kept=cast.kept)
    graph.save(model, request.out / MODEL)
    return facts


def _int8_data(model: ir.Model, options: told.Int8Options, request: StepRequest) -> int8.Data:
    """Ranges, the batches that gave them, and those to judge on: the selection, or what calibration held out."""
    source = facts_of(request.inputs["source"], ConvertFacts)
    size = _batch(source)

    def calibration(*, held_out: bool) -> Iterator[Feeds]:
        samples = _samples(options.data, request.files, source.inputs, model=model, shapes=source.shapes)
        for index, batch in enumerate(samples.batches(size)):
            if (options.selection is None and int8.is_held_out(index)) == held_out:
                yield batch

    metric = None
    if options.selection is not None:
        labels = options.selection.labels
        extra = () if labels is None else (labels,)
        chosen = _samples(options.selection.data, request.files, source.inputs, extra, role="selection")
        judged = [Batch(batch, None if labels is None else batch.pop(labels)) for batch in chosen.batches(size)]
        words = "rows of the selection data"
        if labels is not None:
            metric = partial(open_metric, options.selection.metric, request.files.get("metric"))
    else:
        judged = [Batch(batch) for batch in islice(calibration(held_out=True), MAX_JUDGED)]
        words = "rows held out of the calibration data"
        if not judged:
            judged = [Batch(batch) for batch in calibration(held_out=False)]
            words = "rows of calibration data, those that gave the ranges: there are too few to hold some out"
    return int8.Data(
        ranges=Ranges.load(request.inputs["ranges"]),
        calibration=partial(calibration, held_out=False),
        judged_on=judged,
        words=words,
        metric=metric,
    )


def emit(request: StepRequest) -> EmitFacts:
    """Lower the model for the target and write its files."""
    options = told.read(request.options, told.EmitOptions)
    model, job = _lowered(options, request)
    return catalog.target_emit(options.target).emit(model, job, request.out)


def check(request: StepRequest) -> CheckFacts:
    """Lower the model for the target as `emit` does, and ask which nodes it cannot take."""
    options = told.read(request.options, told.EmitOptions)
    model, job = _lowered(options, request)
    nodes = graph.node_count(model)
    refusals = catalog.target_emit(options.target).check(model, job)
    refused = tuple(Refusal(node=node, operator=operator, reason=reason) for node, operator, reason in refusals)
    return CheckFacts(nodes=nodes, refused=refused)


def _lowered(options: told.EmitOptions, request: StepRequest) -> tuple[ir.Model, EmitJob]:
    """The model after the passes that its target names, and what the target is told beside it."""
    source = facts_of(request.inputs["source"], ConvertFacts)
    target = catalog.target(options.target)
    model = graph.load(request.inputs["model"] / MODEL)
    for _, lowering in presets.build([(name, {}) for name in target.lower], source.shapes):
        model = lowering(model).model
    job = EmitJob(
        precision=options.precision,
        inputs=source.inputs,
        outputs=source.outputs,
        shapes=source.shapes,
        options=msgspec.convert(options.options, target.Options),
        io=options.io,
        layouts=source.layouts,
        block=options.block,
        keep=options.keep,
    )
    return model, job


def compare(request: StepRequest) -> CompareFacts:
    """Hold a model or an artifact against the recorded outputs of the source framework."""
    options = told.read(request.options, told.CompareOptions)
    source = Recorded(request.inputs["source"], facts_of(request.inputs["source"], ConvertFacts))
    tolerance = _tolerance(options, source.facts)
    folder = request.inputs["model"]
    if options.target is None:
        with Session(graph.load(folder / MODEL), threads=options.threads) as runner:
            return verify(runner, source, tolerance)

    emitted = facts_of(folder, EmitFacts)
    if reason := _not_executed(emitted):
        return CompareFacts(verified="not verified", reason=reason, settings="", parity=())
    target, interpreted = catalog.target_run(options.target), catalog.target(options.target).interpreted
    try:
        with target.open(folder, emitted, parity=True, threads=options.threads) as runner:
            facts = verify(runner, source, tolerance, emitted.sizes, interpreted=interpreted)
    except NotExecutable as error:
        return CompareFacts(verified="not verified", reason=error.message, settings="", parity=())
    if facts.verified != "executed":
        return facts
    with target.open(folder, emitted, parity=False, threads=options.threads) as runner:
        if runner.settings == facts.settings:
            return facts
        return msgspec.structs.replace(facts, parity_default=parity(runner, source, tolerance, emitted.sizes))


def evaluate(request: StepRequest) -> EvaluateFacts:
    """The metric over the evaluation data, of the source framework or of an artifact at its runtime's default."""
    options = told.read(request.options, told.EvaluateOptions)
    source = facts_of(request.inputs["source"], ConvertFacts)
    if options.target is not None and (reason := _not_executed(facts_of(request.inputs["model"], EmitFacts))):
        return EvaluateFacts(metric=options.metric, value=None, samples=0, settings="", reason=reason)
    metric = open_metric(options.metric, request.files.get("metric"))
    samples = _samples(options.data, request.files, source.inputs, extra=(options.labels,))
    statistics = Statistics(source.inputs)
    try:
        with _evaluated(options, source, request) as runner:
            rows = runner.rows if isinstance(runner, InRows) else _batch(source)
            for batch in _watched(samples, rows, statistics):
                labels = batch.pop(options.labels)
                metric.add(runner.run(batch), labels)
    except NotExecutable as error:
        return EvaluateFacts(metric=options.metric, value=None, samples=0, settings="", reason=error.message)
    return EvaluateFacts(
        metric=options.metric,
        value=metric.value(),
        samples=metric.samples,
        settings=runner.settings,
        data=_data_facts(options.data, statistics),
        notes=(
            *samples.notes,
            *_fewer_classes(samples, source.outputs[0]),
            *(runner.notes if isinstance(runner, InRows) else ()),
        ),
    )


@contextmanager
def _evaluated(options: told.EvaluateOptions, source: ConvertFacts, request: StepRequest) -> Iterator[Runner]:
    """What is evaluated, opened: an artifact, or the source framework itself."""
    if options.source is None:
        assert options.target is not None
        folder = request.inputs["model"]
        emitted = facts_of(folder, EmitFacts)
        symbol = batch_symbol(source.inputs, source.outputs)
        run = catalog.target_run(options.target)
        with run.open(folder, emitted, parity=False, threads=options.threads) as runner:
            if symbol is not None and symbol in emitted.sizes:
                batched = batched_inputs(source.inputs, symbol)
                yield InRows(runner, batched, emitted.sizes[symbol], name=f"{options.target}/{options.variant}")
            else:
                yield runner
        return
    interface = _interface(options.source, request.files)
    outputs = tuple(spec.name for spec in source.outputs)
    exported = Exported(rung=source.rung, inputs=interface.source_specs(source.inputs), outputs=outputs)
    given = _source(options.source, request.files, interface)
    with (
        _framework(options.source, request) as frontend,
        wrap(frontend.reference(given, exported), interface, exported.inputs) as runner,
    ):
        yield runner


def bench(request: StepRequest) -> BenchFacts:
    """Latency of every artifact, taking turns with each other and with ONNX Runtime on the fp32 model.

    Where all of them would take too much memory at once, each takes turns with the reference alone, closed before the
    next is opened: a ratio is always of two that took turns.
    """
    options = told.read(request.options, told.BenchOptions)
    source = facts_of(request.inputs["source"], ConvertFacts)
    sizes = {symbol: extent.opt for symbol, extent in source.shapes.items()}
    case = next(case.name for case in source.cases if case.sizes == sizes)
    feeds = next(recorded.feeds for recorded in reference.read(request.inputs["source"]) if recorded.case == case)
    artifacts = {role: path for role, path in request.inputs.items() if role not in ("source", "reference")}
    emitted = {role: facts_of(path, EmitFacts) for role, path in artifacts.items()}
    reasons = {role: _not_timed(facts, sizes) for role, facts in emitted.items()}
    able = [role for role, reason in reasons.items() if reason is None]
    size = sum(read_manifest(path).bytes for path in (request.inputs["reference"], *(artifacts[role] for role in able)))
    together = size <= TOGETHER_BYTES
    batch = _batch(source)

    entries: dict[str, BenchEntry] = {}
    with Session(graph.load(request.inputs["reference"] / MODEL), optimize=True, threads=options.threads) as base:
        for turn in [able] if together or not able else [[role] for role in able]:
            with ExitStack() as stack:
                runners: dict[str, Runner] = {"reference": base}
                for role in turn:
                    run = catalog.target_run(emitted[role].target)
                    try:
                        opened = run.open(artifacts[role], emitted[role], parity=False, threads=options.threads)
                        runner = stack.enter_context(opened)
                        runner.run(feeds)
                    except NotExecutable as error:
                        reasons[role] = error.message
                    else:
                        runners[role] = runner
                calls = {role: partial(runner.run, feeds) for role, runner in runners.items()}
                timings = interleave(calls, options.seconds)
            for role, timing in timings.items():
                latency = _latency(timing, timings["reference"], batch or 1, runners[role].settings)
                # The reference is timed in every turn: what the report says of it alone is of the first.
                entries.setdefault(role, BenchEntry(subject=role, latency=latency))
    left_out = [BenchEntry(subject=role, latency=None, reason=reason) for role, reason in reasons.items() if reason]
    return BenchFacts(batch=batch, sizes=sizes, entries=(*entries.values(), *left_out), together=together)


# ---- the pieces that several steps share


def facts_of(artifact: Path, kind: type[F]) -> F:
    """The facts in an artifact's manifest."""
    return read_manifest(artifact).facts_as(kind)


def _interface(options: told.SourceOptions, files: Mapping[str, Path]) -> Interface:
    if options.layout is None and options.normalize is None:
        return Interface()
    layout = catalog.frontend(options.frontend).layout or source_layouts(graph.load(files["model"]))
    return Interface(layout, options.layout, options.normalize)


def _source(options: told.SourceOptions, files: Mapping[str, Path], interface: Interface) -> Source:
    """What the frontend is given: inputs in its own view."""
    return Source(
        path=files["model"],
        inputs=interface.source_specs(_specs(options)),
        shapes={symbol: DimRange.parse(text) for symbol, text in options.shapes.items()},
        outputs=options.outputs,
        factory=(files["factory"], options.factory) if options.factory else None,
        trust=options.trust,
        signature=options.signature,
        parts={role: files[f"model.{role}"] for role in options.parts},
        options=msgspec.to_builtins(msgspec.convert(options.options, catalog.frontend(options.frontend).Options)),
    )


@contextmanager
def _framework(options: told.SourceOptions, request: StepRequest) -> Iterator[FrontendExport]:
    """The source framework, here or where the user has it."""
    if request.python is None:
        yield catalog.frontend_export(options.frontend)
    else:
        with RemoteFrontend(request.python, options.frontend) as frontend:
            yield frontend


def _specs(options: told.SourceOptions) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec.parse(text) for text in options.inputs)


def _example(options: told.ConvertOptions, files: Mapping[str, Path], interface: Interface) -> Feeds | None:
    """A real sample in the source's view, where one can be read before the export: data and inputs are known."""
    specs = _specs(options.source)
    if options.data is None or not specs:
        return None
    sample = next(_samples(options.data, files, specs).batches(None))
    return source_feeds(sample, interface, interface.normalized(specs))


def _samples(
    options: told.DataOptions | None,
    files: Mapping[str, Path],
    inputs: tuple[TensorSpec, ...],
    extra: tuple[str, ...] = (),
    *,
    role: str = "data",
    model: ir.Model | None = None,
    shapes: Mapping[str, DimRange] | None = None,
) -> Samples:
    """The samples in file ``role``. ``model`` and its ``shapes`` are what synthetic ones are drawn for."""
    assert options is not None
    if options.origin == "synthetic":
        assert model is not None
        assert shapes is not None
        assert options.limit is not None
        return SyntheticSamples(model, inputs, shapes, options.limit)
    return open_samples(
        files[role],
        inputs,
        function=options.function,
        limit=options.limit,
        extra=extra,
        preprocess=options.preprocess,
        classes=options.classes,
    )


def _watched(samples: Samples, size: int | None, statistics: Statistics | None = None) -> Iterator[dict[str, Array]]:
    """The batches of ``samples``, of ``size`` each, as they are taken one by one; ``statistics`` sees them too."""
    for index, batch in enumerate(samples.batches(size)):
        progress(index * (size or 1), samples.count or 0, "samples")
        if statistics is not None:
            statistics.add(batch)
        yield batch


def _fewer_classes(samples: Samples, scores: TensorSpec) -> Iterator[str]:
    """What is wrong where labels were counted from the names of fewer, or more, classes than the model knows."""
    known = scores.shape[-1] if scores.shape else None
    if samples.classes is not None and isinstance(known, int) and known != samples.classes:
        yield (
            f"the data has {samples.classes} classes, numbered in the order of their names, and '{scores.name}' has "
            f"{known}: give `classes`, or labels mean other classes than the model's"
        )


def _data_facts(options: told.DataOptions, statistics: Statistics) -> DataFacts:
    return DataFacts(digest=options.digest, samples=statistics.samples, inputs=statistics.result())


def _record(
    out: Path, cases: list[tuple[Case, Feeds]], runner: Runner, defaulted: Sequence[str]
) -> dict[str, list[tuple[int, ...]]]:
    """Run the reference twice on each case: outputs that differ cannot be held against anything. Gives their shapes.

    ``defaulted`` are the dimensions whose sizes nobody gave: what most often is wrong when the reference fails.
    """
    writer = reference.ReferenceWriter(out)
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for index, (case, feeds) in enumerate(cases):
        progress(index, len(cases), "reference outputs")
        try:
            outputs, again = runner.run(feeds), runner.run(feeds)
        except RetargetError as error:
            sizes = sizes_text(case.sizes)
            raise RetargetError(
                f"the source fails at {sizes or 'the sizes of its inputs'}: {error.message}",
                f"say which sizes it takes, as in --shape {defaulted[0]}=1:8:32; none were given for "
                f"{', '.join(defaulted)}"
                if defaulted
                else error.hint,
            ) from error
        check_repeats(outputs, again)
        writer.add(case.name, feeds, outputs)
        for name, array in outputs.items():
            shapes.setdefault(name, []).append(array.shape)
    writer.close()
    return shapes


def _tolerance(options: told.CompareOptions, source: ConvertFacts) -> Tolerance:
    """What the plan says; but by default nothing is asked of float32 that a narrow source cannot hold."""
    if options.by_default and options.precision == "fp32" and source.narrow is not None:
        return DEFAULT_TOLERANCE[_HELD_AS[source.narrow]]
    return msgspec.convert(options.tolerance, Tolerance)


def _batch(source: ConvertFacts) -> int | None:
    """The opt size of the batch; None where there is none."""
    symbol = batch_symbol(source.inputs, source.outputs)
    return None if symbol is None else source.shapes[symbol].opt


def _not_timed(emitted: EmitFacts, sizes: Mapping[str, int]) -> str | None:
    """Why there is no latency of an artifact at ``sizes``; None if there is."""
    if (interpreted := catalog.target(emitted.target).interpreted) is not None:
        return f"interpreted, not executed: {interpreted}"
    if any(sizes.get(symbol, size) != size for symbol, size in emitted.sizes.items()):
        return f"the artifact takes {sizes_text(emitted.sizes)} alone, and latency is measured at {sizes_text(sizes)}"
    return _not_executed(emitted)


def _not_executed(emitted: EmitFacts) -> str | None:
    """Why this machine cannot execute an artifact; None if it can."""
    return emitted.not_executable or catalog.target(emitted.target).not_executable()


def _latency(timing: Timing, base: Timing, batch: int, settings: str) -> Latency:
    return Latency(
        p50_ms=timing.p50,
        p90_ms=timing.p90,
        p99_ms=timing.p99,
        throughput_per_s=batch * 1e3 / timing.p50,
        ratio_to_reference=timing.p50 / base.p50,
        stable=timing.stable,
        calls=timing.calls,
        settings=settings,
    )

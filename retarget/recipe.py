"""The recipe: YAML to frozen Structs; `recipe_write` is the way back.

The Structs below are what a person may write; ``recipe_yaml`` walks the YAML against them and collects all errors.
Their descriptions are those of the JSON Schema (``recipe_schema``). After ``load`` every path is absolute.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeAlias, get_args

import msgspec
from msgspec import Meta

from retarget import catalog
from retarget.errors import RecipeError, RetargetError, did_you_mean
from retarget.interface import Layout, Normalize
from retarget.preprocess import Classes, Preprocess
from retarget.recipe_nodes import Map, open_tree, parse_path, write_path
from retarget.recipe_yaml import KeyPath, Reader, Settings, Written, struct_type
from retarget.schemes import Choice
from retarget.spec import DEFAULT_RANGE, SPEC_PATTERN, DimRange, TensorSpec, symbols
from retarget.tolerance import Tolerance

PrecisionName: TypeAlias = Literal[
    "fp32", "fp16", "int8", "int16x8", "int8_dynamic", "int8_weights", "int4_weights", "palette6"
]
PresetName: TypeAlias = Literal["none", "default", "aggressive"]
PRECISIONS: tuple[str, ...] = get_args(PrecisionName)
PRESETS: tuple[str, ...] = get_args(PresetName)
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""It becomes the name of a folder."""
Count: TypeAlias = Annotated[int, Meta(ge=1)]

PLACES = ".npz, a folder of .npy, images or .wav, or FILE.py:FUNCTION that yields dicts."

NO_CALIBRATION = (
    "give `data.calibration` (--calibration): some hundred inputs as the model will meet them; "
    "`synthetic: normal` stands in for them to try it out"
)

_CODE = re.compile(r"(?P<file>.*\.py):(?P<function>[^\W\d]\w*)", re.DOTALL)


# ---- model


class Code(Written, frozen=True):
    """A function in a Python file."""

    form: ClassVar[str] = "FILE.py:FUNCTION"
    pattern: ClassVar[str] = r"\.py:[A-Za-z_]\w*$"

    file: Path
    function: str

    @classmethod
    def parse(cls, text: str, folder: Path) -> Self:
        match = _CODE.fullmatch(text)
        if match is None:
            raise RetargetError(f"'{text}' does not name a function", "write FILE.py:FUNCTION, as in model.py:build")
        return cls(parse_path(match["file"], folder), match["function"])

    def written(self, folder: Path | None) -> str:
        return f"{write_path(self.file, folder)}:{self.function}"


class Source(Written, frozen=True):
    """Where data comes from: a file or folder, or a function in a Python file that yields it."""

    form: ClassVar[str] = "a path or FILE.py:FUNCTION"
    pattern: ClassVar[str] = "."

    file: Path
    function: str | None = None

    @classmethod
    def parse(cls, text: str, folder: Path) -> Self:
        match = _CODE.fullmatch(text)
        if match is None:
            return cls(parse_path(text, folder))
        return cls(parse_path(match["file"], folder), match["function"])

    def written(self, folder: Path | None) -> str:
        path = write_path(self.file, folder)
        return path if self.function is None else f"{path}:{self.function}"


class Shape(Settings, frozen=True, kw_only=True):
    """Sizes of a symbolic dimension."""

    min: Annotated[int, Meta(ge=1, description="Smallest size that the artifacts must take.")]
    opt: Annotated[int, Meta(ge=1, description="Size that the artifacts are tuned for.")]
    max: Annotated[int, Meta(ge=1, description="Largest size that the artifacts must take.")]

    def __post_init__(self) -> None:
        if not self.min <= self.opt <= self.max:
            raise RetargetError(f"sizes must be min <= opt <= max, got {self.min}, {self.opt}, {self.max}")


class Model(Settings, frozen=True, kw_only=True):
    """The trained model."""

    bare: ClassVar[str | None] = "path"
    path: Annotated[Path, Meta(description="The model: a file, or a folder such as a Hugging Face checkpoint.")]
    weights: Annotated[
        Path | None,
        Meta(description="Its second file, where it has two: the caffemodel of a prototxt; found beside it if absent."),
    ] = None
    format: Annotated[
        str | None, Meta(description="Frontend that reads it; found from the file's content if absent.")
    ] = None
    factory: Annotated[
        Code | None, Meta(description="Code that builds the module a state dict belongs to, or a Keras file's classes.")
    ] = None
    io_layout: Annotated[
        Layout | dict[str, Layout] | None,
        Meta(description="Axes of inputs and outputs, of all that have 4 or by name; the source's own if absent."),
    ] = None
    normalize: Annotated[
        Normalize | None,
        Meta(description="What the model itself is to do to raw pixels, which artifacts then take."),
    ] = None
    signature: Annotated[str | None, Meta(description="Which function of a SavedModel; its default one if absent.")] = (
        None
    )
    inputs: Annotated[
        dict[str, Annotated[str, Meta(extra_json_schema={"pattern": SPEC_PATTERN})]],
        Meta(description="Each input as DTYPE[SHAPE]; a name in the shape is a symbolic dimension."),
    ] = msgspec.field(default_factory=dict)
    shapes: Annotated[
        dict[str, Shape | Count],
        Meta(description="Sizes of each symbolic dimension, or one fixed size; 1, 1, 8 if absent."),
    ] = msgspec.field(default_factory=dict)
    sha256: Annotated[
        Annotated[str, Meta(pattern="^[0-9a-f]{64}$")] | None, Meta(description="Refuse any other file.")
    ] = None
    trust: Annotated[bool, Meta(description="Allow code inside the model file to run.")] = False
    options: Annotated[dict[str, object], Meta(description="The frontend's own options.")] = msgspec.field(
        default_factory=dict
    )


# ---- data


class Samples(Settings, frozen=True, kw_only=True):
    """A set of samples: .npz, a folder of .npy, of images or of sound, or file.py:function; or drawn ones."""

    bare: ClassVar[str | None] = "path"

    path: Annotated[Source | None, Meta(description=PLACES)] = None
    synthetic: Annotated[
        Literal["normal"] | None,
        Meta(description="No data: floats are drawn from a normal distribution. The report warns of it."),
    ] = None
    samples: Annotated[Count | None, Meta(description="Use only so many, from the start; 64 of drawn ones.")] = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.synthetic is None):
            found = "no data is" if self.path is None else "path and synthetic are both"
            raise RetargetError(f"{found} given", "give path, or `synthetic: normal` where there is no data at all")


class Evaluation(Settings, frozen=True, kw_only=True):
    """Samples with labels, for accuracy."""

    bare: ClassVar[str | None] = "path"

    path: Annotated[Source, Meta(description=PLACES)]
    labels: Annotated[
        str,
        Meta(
            description="Name of the array that holds the labels. For a folder of images or sound: `folder`, where "
            "there is one folder a class, or the name of a .csv in it with the columns file and label."
        ),
    ] = "label"
    classes: Annotated[
        Classes | None,
        Meta(
            description="For a folder of images or sound, how classes are numbered: a list of their names, `sorted` "
            "names, or `numbers`, where names are numbers."
        ),
    ] = None
    metric: Annotated[Literal["top1", "top5"] | Code, Meta(description="top1, top5 or FILE.py:FUNCTION.")] = "top1"
    samples: Annotated[Count | None, Meta(description="Use only so many, from the start.")] = None


class Data(Settings, frozen=True, kw_only=True):
    """Data of the user's, each set optional."""

    samples: Annotated[Samples | None, Meta(description="For parity.")] = None
    calibration: Annotated[Samples | None, Meta(description="For the ranges that fp16 and int8 stand on.")] = None
    selection: Annotated[
        Samples | None,
        Meta(description="For the search for nodes that stay float; a part of the calibration data if absent."),
    ] = None
    evaluation: Annotated[Evaluation | None, Meta(description="For accuracy.")] = None
    preprocess: Annotated[
        Preprocess | None, Meta(description="How images or sound become inputs, in every set that is a folder of them.")
    ] = None


# ---- what to build


class PassEntry(Settings, frozen=True, kw_only=True):
    """A pass of a list that replaces the presets."""

    keyed: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    name: str
    options: dict[str, object] = msgspec.field(default_factory=dict)

    @classmethod
    def options_type(cls, name: str, values: dict[str, object]) -> type[msgspec.Struct] | None:  # noqa: ARG003
        if name not in catalog.PASSES:
            raise RetargetError(f"unknown pass '{name}'", did_you_mean(name, catalog.PASSES))
        return None


class Fp32(Settings, frozen=True, kw_only=True):
    """float32 throughout."""


class Fp16(Settings, frozen=True, kw_only=True):
    """float16 where the recorded ranges allow it."""

    io: Annotated[Literal["float32", "float16"], Meta(description="Type of inputs and outputs.")] = "float32"


HowClipped: TypeAlias = Annotated[
    Choice, Meta(description="How clipping ranges are found; auto: by mse or minmax, whichever measures better.")
]


class Calibrated(Settings, frozen=True, kw_only=True):
    """What the precisions have in common whose activations are integers, on ranges that calibration data gave."""

    percentile: Annotated[
        float, Meta(gt=50, le=100, description="For `method: percentile`: share of the values that are kept.")
    ] = 99.99
    max_drop: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="Return nodes to float until the metric loses no more on the selection data."),
    ] = None
    min_snr_db: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Return nodes to float until every output has this SNR on the selection data."),
    ] = None
    rest: Annotated[
        Literal["fp32", "fp16"], Meta(description="What nodes that are not int8 compute in, as far as they can.")
    ] = "fp32"
    equalize: Annotated[
        bool, Meta(description="Even out channels between layers, and outliers, before the ranges are taken.")
    ] = True
    correct_bias: Annotated[bool, Meta(description="Correct biases where that measures better.")] = True
    keep: Annotated[
        tuple[str, ...], Meta(description="Nodes that stay float, by name or operator, such as `Softmax`.")
    ] = ()

    def __post_init__(self) -> None:
        if self.max_drop is not None and self.min_snr_db is not None:
            raise RetargetError("max_drop and min_snr_db are two budgets", "set one of them")


class Int8(Calibrated, frozen=True, kw_only=True):
    """int8 weights and activations, on ranges that calibration data gave."""

    method: HowClipped = "auto"
    io: Annotated[
        Literal["float32", "int8"],
        Meta(description="Type of the float inputs and outputs in the artifact, where the format has int8 ones."),
    ] = "float32"


class Int16x8(Calibrated, frozen=True, kw_only=True):
    """int16 activations and int8 weights, on ranges that calibration data gave."""

    method: HowClipped = "minmax"
    io: Annotated[
        Literal["float32", "int16"],
        Meta(description="Type of the float inputs and outputs in the artifact, where the format has int16 ones."),
    ] = "float32"


class Int8Dynamic(Settings, frozen=True, kw_only=True):
    """int8 weights, a scale for each output channel; the runtime rounds activations as it meets them."""

    keep: Annotated[tuple[str, ...], Meta(description="Nodes whose weights stay float, by name or operator.")] = ()


class WeightsOnly(Settings, frozen=True, kw_only=True):
    """Weights in blocks that share a scale, activations in float32; no calibration."""

    block: Annotated[
        Literal[16, 32, 64, 128, 256] | None,
        Meta(description="How many weights of a column share a scale; 32 of 8 bits and 128 of 4 bits if absent."),
    ] = None
    keep: Annotated[tuple[str, ...], Meta(description="Nodes whose weights stay float, by name or operator.")] = ()


class Palette(Settings, frozen=True, kw_only=True):
    """Weights as places in a table of 64 values for each tensor, activations in float32; no calibration."""

    keep: Annotated[tuple[str, ...], Meta(description="Nodes whose weights stay float, by name or operator.")] = ()


SETTINGS: dict[str, type[Settings]] = {
    "fp32": Fp32,
    "fp16": Fp16,
    "int8": Int8,
    "int16x8": Int16x8,
    "int8_dynamic": Int8Dynamic,
    "int8_weights": WeightsOnly,
    "int4_weights": WeightsOnly,
    "palette6": Palette,
}
"""Each precision with the settings that it takes."""


class Variant(Settings, frozen=True, kw_only=True):
    """One precision of the model."""

    keyed: ClassVar[bool] = True

    name: Name
    precision: Annotated[PrecisionName, Meta(description="The variant's name if absent.")] = "fp32"
    options: Settings = Fp32()

    @property
    def block(self) -> int | None:
        """How many weights share a scale, where that was asked for."""
        return self.options.block if isinstance(self.options, WeightsOnly) else None

    @classmethod
    def options_type(cls, name: str, values: dict[str, object]) -> type[msgspec.Struct] | None:
        precision = str(values.setdefault("precision", name))
        if precision not in PRECISIONS:
            hint = did_you_mean(name, PRECISIONS)
            if not hint.startswith("did you mean"):
                hint = f"write `{name}: {{precision: fp16}}`"
            raise RetargetError(f"'{name}' is no precision, so it must be told one", hint)
        if name in PRECISIONS and precision != name:
            raise RetargetError(f"a variant called '{name}' cannot be {precision}", "give it another name")
        return SETTINGS[precision]


class TargetEntry(Settings, frozen=True, kw_only=True):
    """A target to build for. ``options`` is an instance of that target's own ``Options``."""

    keyed: ClassVar[bool] = True

    name: str
    variants: Annotated[
        Annotated[tuple[str, ...], Meta(min_length=1)] | None, Meta(description="All variants if absent.")
    ] = None
    optional: Annotated[bool, Meta(description="Skip it, with the reason, where its toolchain cannot be had.")] = False
    options: msgspec.Struct

    @classmethod
    def options_type(cls, name: str, values: dict[str, object]) -> type[msgspec.Struct] | None:  # noqa: ARG003
        return catalog.target(name).Options


class Toolchain(Settings, frozen=True, kw_only=True):
    """An environment of the user's own, in which retarget need not be installed."""

    bare: ClassVar[str | None] = "python"

    python: Annotated[Path, Meta(description="Its interpreter, such as /envs/train/bin/python.")]


# ---- gates


class AccuracyGate(Settings, frozen=True, kw_only=True):
    """Bound on accuracy against the source's own."""

    max_drop: Annotated[float, Meta(ge=0, le=1, description="Largest loss of the metric: 0.01 is one point in 100.")]


class LatencyGate(Settings, frozen=True, kw_only=True):
    """Bound on latency against the baseline report's."""

    max_ratio: Annotated[float, Meta(gt=0, description="Largest ratio to the baseline: 1.10 is 10 % slower.")]


class Gates(Settings, frozen=True, kw_only=True):
    """Bounds that fail the build."""

    parity: Annotated[dict[str, Tolerance], Meta(description="By variant or precision.")] = msgspec.field(
        default_factory=dict
    )
    accuracy: Annotated[AccuracyGate | None, Meta(description="Needs data.evaluation.")] = None
    latency: Annotated[LatencyGate | None, Meta(description="Needs a baseline report.")] = None
    verified: Annotated[
        tuple[str, ...],
        Meta(description="Targets whose artifacts must have been executed, not only built or interpreted."),
    ] = ()


class Waiver(Settings, frozen=True, kw_only=True):
    """A broken gate that is accepted until a date."""

    gate: Annotated[Literal["parity", "accuracy", "latency", "verified"], Meta(description="The gate.")]
    target: Annotated[str, Meta(description="The target.")]
    variant: Annotated[str | None, Meta(description="The variant; all of them if absent.")] = None
    reason: Annotated[str, Meta(min_length=1, description="Why it is accepted; the report shows it.")]
    expires: Annotated[datetime.date, Meta(description="The last day on which it holds.")]


# ---- the recipe


class Recipe(Settings, frozen=True, kw_only=True):
    """What to build from which model, and what must hold. Every path is absolute."""

    version: Annotated[Literal[1], Meta(description="Version of the recipe's language.")]
    name: Annotated[Name, Meta(description="Names the report and the build folder.")]
    model: Model
    outputs: Annotated[
        tuple[str, ...], Meta(description="Names for the model's outputs, in order; the model's own if absent.")
    ] = ()
    data: Data = Data()
    optimize: Annotated[
        PresetName | tuple[PassEntry, ...],
        Meta(description="A preset, or a list of passes, each a name or {name: options}."),
    ] = "default"
    variants: Annotated[
        tuple[Variant, ...], Meta(min_length=1, description="Each a precision, or {name: settings}; fp32 if absent.")
    ] = (Variant(name="fp32"),)
    targets: Annotated[tuple[TargetEntry, ...], Meta(min_length=1, description="Each a name, or {name: settings}.")]
    gates: Gates = Gates()
    waivers: Annotated[tuple[Waiver, ...], Meta(description="Broken gates that are accepted until a date.")] = ()
    toolchains: Annotated[
        dict[str, Toolchain], Meta(description="By frontend: where its framework is, if not in retarget's environment.")
    ] = msgspec.field(default_factory=dict)

    def input_specs(self) -> tuple[TensorSpec, ...]:
        """``model.inputs``; empty when the model file is to say them. Raises ``RetargetError``."""
        return tuple(TensorSpec.of(name, text) for name, text in self.model.inputs.items())

    def dim_ranges(self, specs: Sequence[TensorSpec] | None = None) -> dict[str, DimRange]:
        """The range of each symbolic dimension of ``specs`` (default: ``input_specs()``) and of ``model.shapes``."""
        ranges = dict.fromkeys(symbols(self.input_specs() if specs is None else specs), DEFAULT_RANGE)
        for symbol, shape in self.model.shapes.items():
            if isinstance(shape, int):
                ranges[symbol] = DimRange(shape, shape, shape)
            else:
                ranges[symbol] = DimRange(shape.min, shape.opt, shape.max)
        return ranges

    def requested(self) -> Iterator[tuple[TargetEntry, Variant]]:
        """Every artifact that the recipe asks for, in its order."""
        for target in self.targets:
            for variant in self.variants:
                if target.variants is None or variant.name in target.variants:
                    yield target, variant

    def tolerance(self, variant: Variant) -> Tolerance | None:
        """The parity gate of ``variant``: the one under its own name before the one under its precision."""
        return self.gates.parity.get(variant.name) or self.gates.parity.get(variant.precision)


# ---- reading


def load(path: Path) -> Recipe:
    """The recipe at ``path`` with what it extends. Raises ``RecipeError`` with all problems, in the files' order."""
    root, problems = open_tree(path)
    reader = Reader(problems, {(): root.place}, whole="extends" not in root.entries)
    values = reader.fields(root, struct_type(Recipe).fields, (), known=("extends",))
    # a recipe with holes is still checked for the rest, so that one run shows all problems
    holes = {"version": 1, "name": "unnamed", "model": _model_with_holes(root), "targets": ()}
    if "variants" in root.entries:
        holes["variants"] = ()
    build: Callable[..., Recipe] = Recipe
    recipe = build(**(holes | values))
    _read_frontend_options(reader, root, recipe.model)
    for where, message, hint in check(recipe, reader.names):
        reader.say(reader.place(where), where, message, hint)
    if reader.problems:
        raise RecipeError([problem for _, problem in sorted(reader.problems, key=lambda item: item[0].order)])
    return recipe


def _model_with_holes(root: Map) -> Model:
    """What can be read of ``model``, with a path that stands for nothing where there is none."""
    node = root.entries["model"][1] if "model" in root.entries else None
    values = Reader().fields(node, struct_type(Model).fields, ()) if isinstance(node, Map) else {}
    build: Callable[..., Model] = Model
    return build(**({"path": Path()} | values))


Finding: TypeAlias = tuple[KeyPath, str, str | None]
"""(where, message, hint)."""


def check(recipe: Recipe, names: Mapping[KeyPath, set[str]] | None = None) -> Iterator[Finding]:
    """What the types cannot say: every name must be known where it is used.

    ``names``: names of variants and targets that stand in the file though their entries could not be read.
    """
    names = names or {}
    targets = {target.name for target in recipe.targets} | names.get(("targets",), set())
    variants = {variant.name for variant in recipe.variants} | names.get(("variants",), set())
    yield from _check_model(recipe)
    for name in recipe.toolchains:
        if name not in catalog.FRONTENDS:
            hint = did_you_mean(name, catalog.FRONTENDS)
            yield ("toolchains", name), f"'{name}' is no frontend, and only frontends run elsewhere", hint
        elif not catalog.frontend(name).requires:
            yield ("toolchains", name), f"'{name}' needs no framework, and so no environment of its own", "remove it"
    if recipe.data.samples is not None and recipe.data.samples.synthetic is not None:
        hint = "leave data.samples out: parity is then held on drawn inputs, and the report says so"
        yield ("data", "samples"), "synthetic data is for calibration", hint
    yield from _check_variants(recipe)
    yield from _check_targets(recipe, variants)
    yield from _check_gates(recipe, targets, variants)
    for i, waiver in enumerate(recipe.waivers):
        yield from _known("target", waiver.target, targets, ("waivers", i, "target"))
        if waiver.variant is not None:
            yield from _known("variant", waiver.variant, variants, ("waivers", i, "variant"))


def _check_model(recipe: Recipe) -> Iterator[Finding]:
    model = recipe.model
    if model.format is not None and model.format not in catalog.FRONTENDS:
        hint = did_you_mean(model.format, catalog.FRONTENDS)
        yield ("model", "format"), f"unknown frontend '{model.format}'", hint
    known: set[str] = set()
    readable = True
    for name, text in model.inputs.items():
        try:
            known.update(TensorSpec.of(name, text).symbols)
        except RetargetError as error:
            readable = False
            yield ("model", "inputs", name), error.message, error.hint
    if model.inputs and readable:
        for symbol in model.shapes:
            if symbol not in known:
                hint = did_you_mean(symbol, known) if known else "the inputs have no symbolic dimension"
                yield ("model", "shapes", symbol), f"no input has a dimension '{symbol}'", hint
    if len(set(recipe.outputs)) < len(recipe.outputs):
        yield ("outputs",), "two outputs have the same name", None


def _check_variants(recipe: Recipe) -> Iterator[Finding]:
    for i, variant in enumerate(recipe.variants):
        if isinstance(variant.options, Calibrated) and recipe.data.calibration is None:
            yield (
                ("variants", i),
                f"'{variant.name}' needs data to be calibrated with, and there is none",
                NO_CALIBRATION,
            )


def _check_targets(recipe: Recipe, variants: set[str]) -> Iterator[Finding]:
    for i, target in enumerate(recipe.targets):
        for j, name in enumerate(target.variants or ()):
            yield from _known("variant", name, variants, ("targets", i, "variants", j))
    for target, variant in recipe.requested():
        light = catalog.target(target.name)
        place: KeyPath = ("targets", recipe.targets.index(target))
        precisions = light.precisions
        if variant.precision not in precisions:
            able = [other.name for other in recipe.variants if other.precision in precisions]
            hint = (
                f"name those that it takes: `{target.name}: {{variants: [{', '.join(able)}]}}`"
                if able
                else f"{target.name} takes {', '.join(sorted(precisions))}"
            )
            yield place, f"{target.name} cannot take variant '{variant.name}' ({variant.precision})", hint
        elif isinstance(variant.options, Int8 | Int16x8) and variant.options.io != "float32" and not light.integer_io:
            message = f"{target.name} has no {variant.options.io} inputs and outputs, which '{variant.name}' asks for"
            yield place, message, f"leave '{variant.name}' out of its `variants`, or set `io: float32`"
        elif found := light.objection(variant.precision, variant.block, target.options):
            reason, hint = found
            yield place, f"{target.name} cannot take variant '{variant.name}' ({variant.precision}): {reason}", hint


def _check_gates(recipe: Recipe, targets: set[str], variants: set[str]) -> Iterator[Finding]:
    gates = recipe.gates
    for name in gates.parity:
        if name not in PRECISIONS:
            yield from _known("variant", name, variants, ("gates", "parity", name))
    for i, name in enumerate(gates.verified):
        yield from _known("target", name, targets, ("gates", "verified", i))
    if gates.accuracy is not None and recipe.data.evaluation is None:
        yield ("gates", "accuracy"), "there is no data to measure accuracy on", "give `data.evaluation`"


def _known(what: str, name: str, names: set[str], where: KeyPath) -> Iterator[Finding]:
    if names and name not in names:  # without any names the list itself could not be read
        yield where, f"the recipe has no {what} '{name}'", did_you_mean(name, names)


def _read_frontend_options(reader: Reader, root: Map, model: Model) -> None:
    """Problems of ``model.options``, where the recipe itself says whose they are."""
    entry = root.entries.get("model")
    if model.format not in catalog.FRONTENDS or entry is None or not isinstance(entry[1], Map):
        return
    options = entry[1].entries.get("options")
    if options is not None:
        reader.struct(options[1], catalog.frontend(model.format).Options, ("model", "options"))

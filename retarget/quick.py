"""Recipes without a file: what ``retarget convert`` stands for, and the starter of ``retarget init``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast, get_args

from retarget import catalog
from retarget import recipe as recipes
from retarget.errors import MissingToolchain, RecipeError, RetargetError, did_you_mean
from retarget.interface import Layout, Normalize
from retarget.preprocess import Preprocess
from retarget.recipe import (
    PRESETS,
    SETTINGS,
    Code,
    Data,
    Model,
    Recipe,
    Samples,
    Shape,
    TargetEntry,
    Toolchain,
    Variant,
)
from retarget.recipe_nodes import File, compose, parse_path
from retarget.recipe_yaml import Bad, Reader, render
from retarget.recognise import recognise
from retarget.spec import DimRange, TensorSpec

if TYPE_CHECKING:
    from retarget.recipe import PrecisionName


B = TypeVar("B", Preprocess, Normalize)
LAYOUTS: tuple[str, ...] = get_args(Layout)


def recipe_for(
    model: Path,
    *,
    targets: Sequence[str],
    precisions: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    shapes: Sequence[str],
    factory: str | None,
    signature: str | None,
    io_layout: str | None,
    normalize: str | None,
    python: Path | None,
    data: str | None,
    calibration: str | None,
    preprocess: str | None,
    optimize: str | None,
    trust: bool,
) -> Recipe:
    """The recipe that a ``convert`` command stands for. Raises ``RetargetError`` for what it cannot mean."""
    here = Path.cwd()
    model, weights = files_of(model)
    recipe = Recipe(
        version=1,
        name=name_of(model),
        model=Model(
            path=model.absolute(),
            weights=weights and weights.absolute(),
            signature=signature,
            io_layout=_layout(io_layout) if io_layout else None,
            normalize=_block(normalize, "--normalize", Normalize, here) if normalize else None,
            factory=Code.parse(factory, here) if factory else None,
            inputs={spec.name: spec.type for spec in map(TensorSpec.parse, inputs)},
            shapes=dict(_shape(text) for text in shapes),
            trust=trust,
        ),
        outputs=tuple(outputs),
        data=Data(
            samples=_samples(data, here),
            calibration=_samples(calibration, here),
            preprocess=_block(preprocess, "--preprocess", Preprocess, here) if preprocess else None,
        ),
        optimize=preset(optimize) if optimize else "default",
        variants=tuple(_variant(name) for name in dict.fromkeys(precisions)),
        targets=tuple(
            TargetEntry(name=name, options=catalog.target(name).Options()) for name in dict.fromkeys(targets)
        ),
        toolchains={recognise(model)[0]: Toolchain(python=parse_path(str(python), here))} if python else {},
    )
    for place, message, hint in recipes.check(recipe):
        raise RetargetError(f"{render(place)}: {message}", hint)
    return recipe


def starter_for(model: Path, inputs: Sequence[str], folder: Path) -> str:
    """A commented recipe for ``model`` that stands in ``folder``."""
    from retarget.recipe_starter import starter

    model, weights = files_of(model)
    frontend, _ = recognise(model)
    beside = catalog.frontend(frontend).parts(model)
    if "net" in beside and weights is None:
        model, weights = beside["net"], model
    weights = weights or beside.get("weights")
    specs = tuple(TensorSpec.parse(text) for text in inputs)
    shapes: Mapping[str, DimRange] = {}
    if not specs:
        specs, shapes = _inputs_of(model, weights)
    usable = [name for name in catalog.TARGETS if catalog.target(name).unavailable() is None]
    return starter(
        model.absolute(),
        weights=weights and weights.absolute(),
        frontend=frontend,
        inputs=specs,
        shapes=shapes,
        targets=usable,
        folder=folder,
    )


def files_of(model: Path) -> tuple[Path, Path | None]:
    """The file or folder that ``model`` names, or both of ``a.prototxt,a.caffemodel``. Raises ``RetargetError``."""
    if model.exists():
        return model, None
    first, comma, second = str(model).partition(",")
    files = [Path(first), Path(second.strip()).expanduser()] if comma else [model]
    for file in files:
        if not file.exists():
            raise RetargetError(
                f"{file}: no such file or folder",
                "give a model: a file, a folder, or two files that belong together as a.prototxt,a.caffemodel",
            )
    return files[0], files[1] if comma else None


def name_of(model: Path) -> str:
    """A name for the build, from the model's file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", model.absolute().stem).strip("-_.") or "model"


def preset(name: str) -> Literal["none", "default", "aggressive"]:
    """The preset called ``name``."""
    if name not in PRESETS:
        raise RetargetError(f"unknown preset '{name}'", did_you_mean(name, PRESETS))
    return cast("Literal['none', 'default', 'aggressive']", name)


def _inputs_of(model: Path, weights: Path | None) -> tuple[tuple[TensorSpec, ...], Mapping[str, DimRange]]:
    """The inputs as the frontend would call them, and sizes; none where the file does not say them all."""
    from retarget import inspection

    try:
        found = inspection.inspect_model(model, weights)
    except MissingToolchain:
        return (), {}
    return found.inputs, found.shapes


def _samples(text: str | None, folder: Path) -> Samples | None:
    return Samples(path=recipes.Source.parse(text, folder)) if text else None


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise RetargetError(f"--io-layout {name}: no such layout", did_you_mean(name, LAYOUTS))
    return cast("Layout", name)


def _block(text: str, option: str, kind: type[B], folder: Path) -> B:
    """A block of a recipe, written as the value of an option."""
    node, problems = compose(text, File(folder / option, option))
    reader = Reader(problems)
    block = reader.struct(node, kind)
    if reader.problems or isinstance(block, Bad):
        raise RecipeError([problem for _, problem in reader.problems])
    return block


def _shape(text: str) -> tuple[str, Shape | int]:
    symbol, equals, sizes = text.partition("=")
    if not equals or not symbol:
        raise RetargetError(f"--shape {text}: no dimension is named", "write N=MIN:OPT:MAX, as in N=1:8:32")
    extent = DimRange.parse(sizes)
    return symbol, Shape(min=extent.min, opt=extent.opt, max=extent.max)


def _variant(name: str) -> Variant:
    if name not in SETTINGS:
        raise RetargetError(f"precision '{name}' is unknown", did_you_mean(name, SETTINGS))
    return Variant(name=name, precision=cast("PrecisionName", name), options=SETTINGS[name]())

"""Core ML packages: what their program says. Of coremltools the message classes are needed, and not its reader."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from retarget.errors import MissingToolchain, RetargetError
from retarget.inspection.result import SHOWN, Inspection, most_first
from retarget.spec import DimRange, TensorSpec, symbols
from retarget.targets import coreml

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from retarget.targets.coreml.executed import Held

SUFFIX = ".mlpackage"
_NO_WEIGHTS = frozenset({"bool", "int32", "int64", "string"})
"""Types of constants that say how something is computed."""
_FIRST = 9
"""A specification of version 6 is for iOS15: so many are between them."""


def matches(path: Path) -> bool:
    """A package, or a model of one file, which is refused."""
    return (path.is_dir() and (path.suffix == SUFFIX or _is_package(path))) or path.suffix == ".mlmodel"


def inspect(path: Path) -> Inspection:
    """Everything that the package says. Raises ``RetargetError`` for a damaged one, or one that is no ML Program."""
    if path.suffix == ".mlmodel":
        raise RetargetError(
            f"{path}: a Core ML model of one file holds no ML Program",
            "only packages are read: convert what it was made of anew, with `--to coreml`",
        )
    if (lack := coreml.unavailable()) is not None:
        raise MissingToolchain(f"{path}: a Core ML package is read with the help of coremltools: {lack[0]}", lack[1])
    from retarget.targets.coreml.executed import Executed
    from retarget.targets.coreml.interpreter.files import Package
    from retarget.targets.coreml.interpreter.program import read

    program, spec = read(path), Package(path).spec
    name = spec.description.defaultFunctionName or "main"
    if name not in program.functions:
        raise RetargetError(f"{path}: it has no function '{name}'", f"it has {', '.join(program.functions)}")
    done = Executed(program.functions[name])
    described = next((each for each in spec.description.functions if each.name == name), spec.description)
    shapes: dict[str, DimRange] = {}
    inputs = tuple(_input(feature, done.values, shapes) for feature in described.input)
    outputs = tuple(_output(feature, done.values) for feature in described.output)
    stored = {dtype: count for dtype, count in done.stored(1).items() if dtype not in _NO_WEIGHTS}
    notes = list(_notes(spec, described.input))
    notes += [f"it has another function: '{other}'" for other in program.functions if other != name]
    return Inspection(
        path=str(path),
        what="Core ML package",
        version=f"ML Program for iOS{spec.specificationVersion + _FIRST}, specification {spec.specificationVersion}",
        bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        inputs=inputs,
        outputs=outputs,
        shapes=shapes,
        nodes=done.operators.total(),
        ops=most_first(done.operators),
        parameters=sum(stored.values()),
        weights=most_first({dtype: _bytes(dtype, count) for dtype, count in stored.items()}),
        macs=done.computed.total() or None,
        macs_at=dict.fromkeys(symbols(inputs), 1) if done.computed.total() else {},
        compute=most_first(done.computed),
        notes=tuple(notes),
    )


def _is_package(path: Path) -> bool:
    manifest = path / "Manifest.json"
    return manifest.is_file() and b"rootModelIdentifier" in manifest.read_bytes()


def _input(feature: Message, values: Mapping[str, Held], shapes: dict[str, DimRange]) -> TensorSpec:
    """An input as the program has it; the sizes that are open, and bounded by the file, go to ``shapes``."""
    held = values[feature.name]
    bounds = _bounds(feature.type)
    dims: list[int | str] = []
    for axis, size in enumerate(held.shape):
        symbol = f"dim{axis}"
        if size < 0 and axis in bounds:
            if shapes.get(symbol, bounds[axis]) != bounds[axis]:
                symbol = f"{feature.name}_{axis}"
            shapes[symbol] = bounds[axis]
        dims.append(size if size >= 0 else symbol)
    return TensorSpec(feature.name, held.dtype, tuple(dims))


def _output(feature: Message, values: Mapping[str, Held]) -> TensorSpec:
    if feature.name not in values:
        return TensorSpec(feature.name, "dictionary", ())
    held = values[feature.name]
    return TensorSpec(
        feature.name, held.dtype, tuple(size if size >= 0 else f"dim{axis}" for axis, size in enumerate(held.shape))
    )


def _bounds(kind: Message) -> dict[int, DimRange]:
    """Axis to its sizes, of an input whose sizes are ranges; the default is the one that Core ML is tuned for."""
    if kind.WhichOneof("Type") == "imageType":
        image = kind.imageType
        if image.WhichOneof("SizeFlexibility") != "imageSizeRange":
            return {}
        ranges = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
        sized = zip((2, 3), ranges, (image.height, image.width), strict=True)
    else:
        array = kind.multiArrayType
        if array.WhichOneof("ShapeFlexibility") != "shapeRange":
            return {}
        sized = zip(range(len(array.shape)), array.shapeRange.sizeRanges, array.shape, strict=True)
    # An upper bound of -1 is none.
    return {
        axis: DimRange(each.lowerBound, size, each.upperBound)
        for axis, each, size in sized
        if each.lowerBound <= size <= each.upperBound
    }


def _notes(spec: Message, inputs: Iterable[Message]) -> Iterable[str]:
    metadata = spec.description.metadata
    for field, what in (("shortDescription", "says"), ("author", "author"), ("license", "license")):
        if getattr(metadata, field):
            yield f"{what}: {getattr(metadata, field)}"
    for feature in inputs:
        if feature.type.WhichOneof("Type") == "imageType":
            image = feature.type.imageType
            yield f"'{feature.name}' is an image, {image.ColorSpace.Name(image.colorSpace)}"
        kind = feature.type.multiArrayType
        if kind.WhichOneof("ShapeFlexibility") == "enumeratedShapes":
            listed = [str(list(each.shape)) for each in kind.enumeratedShapes.shapes]
            more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
            yield f"'{feature.name}' takes the shapes {', '.join(listed[:SHOWN])}{more} alone"
    if spec.description.predictedFeatureName:
        yield f"a classifier: '{spec.description.predictedFeatureName}' is the label"


def _bytes(dtype: str, count: int) -> int:
    """Of ``count`` elements; indices into a palette have as many bits as its name says."""
    bits = re.search(r"\d+$", dtype)
    return -(-count * int(bits[0]) // 8) if bits else count

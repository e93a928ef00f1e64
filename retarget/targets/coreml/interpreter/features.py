"""What a package tells of its inputs and outputs beside the program: Core ML loads none where the two differ.

The shapes that an input can have are told here alone: the program has unknown sizes in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from retarget.errors import ToolchainFailure
from retarget.targets.coreml.interpreter.declared import TensorType, ValueType

if TYPE_CHECKING:
    from google.protobuf.message import Message

_ELEMENTS = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8"}
"""``ArrayFeatureType.ArrayDataType`` by number."""

_CHANNELS = {10: 1, 20: 3, 30: 3, 40: 1}
"""``ImageFeatureType.ColorSpace`` to how many there are."""

_NO_TENSORS = {"int64Type", "doubleType", "stringType", "dictionaryType", "sequenceType", "stateType"}


@dataclass(frozen=True)
class Sizes:
    """The shapes that a tensor can have: some, or all within bounds."""

    shapes: tuple[tuple[int, ...], ...] = ()
    bounds: tuple[tuple[int, int | None], ...] | None = None
    """The least and most of each axis; None: no bound. Instead of ``shapes``."""

    def take(self, shape: tuple[int, ...]) -> bool:
        """Whether ``shape`` is one of them."""
        if self.bounds is None:
            return shape in self.shapes
        return len(shape) == len(self.bounds) and all(
            least <= size and (most is None or size <= most)
            for size, (least, most) in zip(shape, self.bounds, strict=True)
        )

    def of(self, declared: TensorType) -> bool:
        """Whether all of them are of what the program declares."""
        if self.bounds is None or declared.shape is None:
            return all(declared.fits(shape) for shape in self.shapes)
        return len(self.bounds) == len(declared.shape) and all(
            size is None or (least, most) == (size, size)
            for size, (least, most) in zip(declared.shape, self.bounds, strict=True)
        )

    def __str__(self) -> str:
        if self.bounds is None:
            return " or ".join(str(list(shape)) for shape in self.shapes)
        bounds = (f"{least}…{'' if most is None else most}" for least, most in self.bounds)
        return f"[{', '.join(bounds)}]"


def sizes(features: Iterable[Message], declared: Mapping[str, ValueType]) -> Mapping[str, Sizes]:
    """The shapes of the inputs or outputs that ``features`` describe, of those that have any.

    Raises ``ToolchainFailure`` where they are not the ``declared`` ones.
    """
    told = {each.name: each for each in features}
    if told.keys() != declared.keys():
        raise ToolchainFailure(f"{_names(told)} are described, and {_names(declared)} are declared")
    found = {name: _sizes(name, told[name].type, kind) for name, kind in declared.items()}
    return MappingProxyType({name: each for name, each in found.items() if each is not None})


def _names(named: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(named)) or "no values"


def _sizes(name: str, feature: Message, declared: ValueType) -> Sizes | None:
    kind = feature.WhichOneof("Type")
    if kind in _NO_TENSORS:
        return None
    if kind == "multiArrayType":
        element, found = _ELEMENTS.get(feature.multiArrayType.dataType), _array(feature.multiArrayType)
    elif kind == "imageType":
        element, found = None, _image(feature.imageType)
    else:
        raise ToolchainFailure(f"'{name}' is described as {kind}")
    if (
        not isinstance(declared, TensorType)
        or element not in (None, declared.element)
        or not found.of(_whole(declared))
    ):
        of = "an image" if element is None else element
        raise ToolchainFailure(f"'{name}' is described as {of} of {found}, and declared {declared}")
    return found if found != Sizes() else None


def _whole(declared: TensorType) -> TensorType:
    """A scalar is described as a vector of one."""
    return TensorType(declared.element, (1,)) if declared.shape == () else declared


def _array(array: Message) -> Sizes:
    match array.WhichOneof("ShapeFlexibility"):
        case "enumeratedShapes":
            return Sizes(tuple(tuple(each.shape) for each in array.enumeratedShapes.shapes))
        case "shapeRange":
            return Sizes(bounds=tuple(_bounds(each) for each in array.shapeRange.sizeRanges))
        case _:
            return Sizes((tuple(array.shape),)) if array.shape else Sizes()


def _image(image: Message) -> Sizes:
    channels = _CHANNELS.get(image.colorSpace, 0)
    match image.WhichOneof("SizeFlexibility"):
        case "enumeratedSizes":
            return Sizes(tuple((1, channels, each.height, each.width) for each in image.enumeratedSizes.sizes))
        case "imageSizeRange":
            ranges = (image.imageSizeRange.heightRange, image.imageSizeRange.widthRange)
            return Sizes(bounds=((1, 1), (channels, channels), *(_bounds(each) for each in ranges)))
        case _:
            return Sizes(((1, channels, image.height, image.width),))


def _bounds(spec: Message) -> tuple[int, int | None]:
    return spec.lowerBound, None if spec.upperBound < 0 else spec.upperBound

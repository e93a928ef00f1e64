"""An ML Program as its file has it, in plain classes: nothing is inferred, and nothing is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from retarget.errors import DAMAGED, ToolchainFailure
from retarget.targets.coreml.interpreter.call import Dictionary, Value
from retarget.targets.coreml.interpreter.declared import (
    BITS,
    HELD,
    DictionaryType,
    ListType,
    StateType,
    TensorType,
    TupleType,
    ValueType,
)
from retarget.targets.coreml.interpreter.features import Sizes, sizes
from retarget.targets.coreml.interpreter.files import Package, restored

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from retarget.protocols import Array

_ELEMENTS = {
    1: "bool",
    2: "string",
    10: "float16",
    11: "float32",
    12: "float64",
    13: "bfloat16",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    34: "uint64",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
"""``MIL.DataType`` by number."""

_OPSETS = {"CoreML5": 15, "CoreML6": 16, "CoreML7": 17, "CoreML8": 18}

_MOST_NESTED = 32
"""Blocks and types that are nested deeper are damaged files."""

Argument: TypeAlias = "tuple[str | Constant, ...]"
"""What a parameter is given: one value, or several where it takes those. A string is the name of a value."""


@dataclass(frozen=True)
class Constant:
    """A value that the package holds."""

    type: ValueType
    read: Callable[[], Value]
    """Takes it from where it is; what lies in a weight file is a view of it, unless it is packed."""


@dataclass(frozen=True)
class Operation:
    type: str
    name: str
    inputs: Mapping[str, Argument]
    """By parameter. Attributes other than the name are among them: which parameters are attributes is a matter of the
    operation's version."""
    outputs: Mapping[str, ValueType]
    blocks: tuple[Block, ...]

    @property
    def place(self) -> str:
        return f"{self.type} '{self.name or next(iter(self.outputs), '')}'"

    @property
    def reads(self) -> Iterator[str]:
        """The names of the values that it is given."""
        return (each for given in self.inputs.values() for each in given if isinstance(each, str))

    @cached_property
    def value(self) -> Constant:
        """What a ``const`` stands for."""
        given = [each for each in self.inputs.get("val", ()) if isinstance(each, Constant)]
        if len(given) != 1 or len(self.outputs) != 1:
            raise ToolchainFailure(f"{self.place} has no value")
        (constant,), (declared,) = given, self.outputs.values()
        if isinstance(declared, TensorType) and declared != constant.type:
            raise ToolchainFailure(f"{self.place} is declared {declared}, it holds {constant.type}")
        return constant


@dataclass(frozen=True)
class Block:
    inputs: Mapping[str, ValueType]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    inputs: Mapping[str, ValueType]
    opset: int
    """15 for iOS15 to 18 for iOS18."""
    block: Block
    sizes: Mapping[str, Sizes]
    """The shapes that each input can have, as the package tells them."""


@dataclass(frozen=True)
class Program:
    functions: Mapping[str, Function]


def read(path: Path) -> Program:
    """The ML Program of a ``.mlpackage``.

    Raises ``ToolchainFailure`` for a package that is damaged, or that is none.
    """
    return _Reader(Package(path)).program()


@dataclass(frozen=True)
class _Reader:
    package: Package

    def program(self) -> Program:
        spec = self.package.spec
        if spec.WhichOneof("Type") != "mlProgram":
            raise self.wrong(f"it holds a {spec.WhichOneof('Type')}, only ML Programs are known")
        described = {each.name: each for each in spec.description.functions} or {"main": spec.description}
        functions = {
            name: self.function(name, spec.mlProgram.functions[name], described.get(name))
            for name in spec.mlProgram.functions
        }
        return Program(MappingProxyType(functions))

    def wrong(self, what: str) -> ToolchainFailure:
        return ToolchainFailure(f"{self.package.model_path}: {what}", DAMAGED)

    def function(self, name: str, spec: Message, described: Message | None) -> Function:
        if spec.opset not in _OPSETS:
            raise self.wrong(f"function '{name}' is of opset '{spec.opset}', known: {', '.join(_OPSETS)}")
        if spec.opset not in spec.block_specializations:
            raise self.wrong(f"function '{name}' has no operations for its opset {spec.opset}")
        if described is None:
            raise self.wrong(f"function '{name}' is not described")
        inputs, block = self.named(spec.inputs), self.block(spec.block_specializations[spec.opset], 0)
        made = {name: kind for each in block.operations for name, kind in each.outputs.items()}
        outputs = {name: kind for name, kind in {**inputs, **made}.items() if name in block.outputs}
        try:
            found = sizes([*described.input, *described.state], inputs)
            sizes(described.output, outputs)
        except ToolchainFailure as error:
            raise ToolchainFailure(f"{self.package.model_path}: function '{name}': {error.message}") from error
        return Function(inputs, _OPSETS[spec.opset], block, found)

    def block(self, spec: Message, depth: int) -> Block:
        if depth > _MOST_NESTED:
            raise self.wrong(f"blocks are nested {depth} deep")
        operations = tuple(self.operation(each, depth) for each in spec.operations)
        return Block(self.named(spec.inputs), operations, tuple(spec.outputs))

    def operation(self, spec: Message, depth: int) -> Operation:
        attributes = {key: self.constant(spec.attributes[key]) for key in spec.attributes}
        name = attributes.pop("name", None)
        inputs: dict[str, Argument] = {key: (value,) for key, value in attributes.items()}
        for key in spec.inputs:
            inputs[key] = tuple(self.binding(each) for each in spec.inputs[key].arguments)
        return Operation(
            spec.type,
            "" if name is None else str(name.read()),
            MappingProxyType(inputs),
            self.named(spec.outputs),
            tuple(self.block(each, depth + 1) for each in spec.blocks),
        )

    def binding(self, spec: Message) -> str | Constant:
        kind = spec.WhichOneof("binding")
        if kind is None:
            raise self.wrong("an argument is neither a name nor a value")
        return str(spec.name) if kind == "name" else self.constant(spec.value)

    def named(self, specs: Iterable[Message]) -> Mapping[str, ValueType]:
        found: dict[str, ValueType] = {}
        for each in specs:
            if each.name in found:
                raise self.wrong(f"two values side by side are called '{each.name}'")
            found[each.name] = self.type(each.type)
        return MappingProxyType(found)

    # ---- types

    def type(self, spec: Message, depth: int = 0) -> ValueType:
        if depth > _MOST_NESTED:
            raise self.wrong(f"types are nested {depth} deep")
        match spec.WhichOneof("type"):
            case "tensorType":
                return self.tensor_type(spec.tensorType)
            case "listType":
                return ListType(self.type(spec.listType.type, depth + 1), self.size(spec.listType.length))
            case "tupleType":
                return TupleType(tuple(self.type(each, depth + 1) for each in spec.tupleType.types))
            case "dictionaryType":
                key, value = spec.dictionaryType.keyType, spec.dictionaryType.valueType
                return DictionaryType(self.type(key, depth + 1), self.type(value, depth + 1))
            case "stateType":
                return StateType(self.type(spec.stateType.wrappedType, depth + 1))
            case _:
                raise self.wrong("a value has no type")

    def tensor_type(self, spec: Message) -> TensorType:
        if spec.dataType not in _ELEMENTS:
            raise self.wrong(f"a tensor is of type {spec.dataType}")
        if any(each.WhichOneof("dimension") == "unknown" and each.unknown.variadic for each in spec.dimensions):
            return TensorType(_ELEMENTS[spec.dataType], None)
        if spec.rank != len(spec.dimensions):
            raise self.wrong(f"a tensor of {spec.rank} axes has {len(spec.dimensions)} sizes")
        return TensorType(_ELEMENTS[spec.dataType], tuple(self.size(each) for each in spec.dimensions))

    @staticmethod
    def size(spec: Message) -> int | None:
        return int(spec.constant.size) if spec.WhichOneof("dimension") == "constant" else None

    # ---- values

    def constant(self, spec: Message) -> Constant:
        declared = self.type(spec.type)
        if spec.WhichOneof("value") == "blobFileValue":
            shape, element = self.fixed(declared), declared.element if isinstance(declared, TensorType) else ""
            file_name, offset = spec.blobFileValue.fileName, spec.blobFileValue.offset
            return Constant(declared, lambda: self.package.blob(file_name, offset, element, shape))
        value = self.immediate(spec.immediateValue, declared)
        return Constant(declared, lambda: value)

    def fixed(self, declared: ValueType) -> tuple[int, ...]:
        """The sizes of a tensor, all of which a constant has."""
        if not isinstance(declared, TensorType) or declared.shape is None:
            raise self.wrong(f"a constant tensor is declared {declared}")
        shape = tuple(size for size in declared.shape if size is not None)
        if len(shape) != len(declared.shape):
            raise self.wrong(f"a constant is declared {declared}")
        return shape

    def immediate(self, spec: Message, declared: ValueType) -> Value:
        kind = spec.WhichOneof("value")
        if kind == "tensor" and isinstance(declared, TensorType):
            return self.tensor(spec.tensor, declared)
        if kind == "list" and isinstance(declared, ListType):
            return [self.plain(each) for each in spec.list.values]
        if kind == "dictionary" and isinstance(declared, DictionaryType):
            pairs = spec.dictionary.values
            return Dictionary(
                np.array([self.plain(each.key) for each in pairs]), np.array([self.plain(each.value) for each in pairs])
            )
        raise self.wrong(f"a value declared {declared} is a {kind}")

    def plain(self, spec: Message) -> Array:
        value = self.constant(spec).read()
        if not isinstance(value, np.ndarray):
            raise self.wrong("a list or dictionary holds another one")
        return value

    def tensor(self, spec: Message, declared: TensorType) -> Array:
        shape, kind = self.fixed(declared), spec.WhichOneof("value")
        count = math.prod(shape)
        if kind is None and count:
            raise self.wrong(f"a constant declared {declared} has no value")
        if kind == "bytes":
            data = np.frombuffer(spec.bytes.values, np.uint8)
            bits = BITS.get(declared.element, HELD[declared.element].itemsize * 8)
            if bits == 0 or len(data) != -(-count * bits // 8):
                raise self.wrong(f"a constant declared {declared} has {len(data)} bytes")
            return restored(data, declared.element, shape)
        values = [] if kind is None else getattr(spec, kind).values
        if len(values) != count:
            raise self.wrong(f"a constant declared {declared} has {len(values)} elements")
        return np.array(values, dtype=declared.dtype).reshape(shape)

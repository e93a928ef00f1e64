"""Computes what a program declares, in numpy: in the program's own precision, or in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from retarget.errors import ToolchainFailure, did_you_mean
from retarget.targets.coreml.interpreter.call import Call, Dictionary, NotInterpreted, Value
from retarget.targets.coreml.interpreter.declared import DictionaryType, ListType, TensorType, ValueType
from retarget.targets.coreml.interpreter.ops import OPS
from retarget.targets.coreml.interpreter.program import Block, Constant, Function, Operation, Program

if TYPE_CHECKING:
    from retarget.protocols import Array, Feeds


class Interpreter:
    """Evaluates one function of a program.

    ``mode`` ``fp16``: every value is what its declared type holds, as where Core ML computes in float16 and adds up in
    float32: an operation on float16 is computed in float32, and its outputs are rounded. ``fp32``: what is declared
    float16 is float32, and nothing is rounded.

    Raises ``NotInterpreted`` at once for all the operations that have no op function, and ``ToolchainFailure`` for a
    program that refers to what does not exist.
    """

    def __init__(self, program: Program, mode: Literal["fp16", "fp32"] = "fp16", function: str = "main") -> None:
        if function not in program.functions:
            raise ToolchainFailure(f"no function '{function}'", did_you_mean(function, program.functions))
        self.mode = mode
        self.function: Function = program.functions[function]
        unknown = sorted({each.type for each in _walk(self.function.block) if each.type not in OPS} - {"const"})
        if unknown:
            raise NotInterpreted(f"no interpretation of {', '.join(unknown)}")
        self._plans: dict[int, _Plan] = {}
        self._plan(self.function.block, frozenset(self.function.inputs))

    def run(self, feeds: Feeds, trace: dict[str, Array] | None = None) -> dict[str, Array]:
        """The outputs by name, of their declared types (float16 as float32 in mode ``fp32``).

        ``feeds`` has an array for each input; floats of another width are rounded to the declared one. Of a dictionary
        there are the values, in the order of its keys. ``trace`` is given the tensors that each operation computes; of
        those in a loop the last ones.

        Raises ``ToolchainFailure`` for feeds or results that are not what is declared.
        """
        for name in feeds:
            if name not in self.function.inputs:
                raise ToolchainFailure(f"the program has no input '{name}'", did_you_mean(name, self.function.inputs))
        scope = _Scope()
        for name, declared in self.function.inputs.items():
            if name not in feeds:
                raise ToolchainFailure(f"input '{name}' is not fed")
            scope.values[name] = self._fed(name, feeds[name], declared)
        with np.errstate(all="ignore"):  # infinities and NaNs are results like others, as they are on the device
            results = self._block(self.function.block, scope, trace)
        outputs: dict[str, Array] = {}
        for name, value in zip(self.function.block.outputs, results, strict=True):
            if isinstance(value, list):
                raise NotInterpreted(f"output '{name}' is a list")
            # Copied: it may be what was fed, or a view of a file.
            outputs[name] = np.array(value.values if isinstance(value, Dictionary) else value)
        return outputs

    # ---- before running

    def _plan(self, block: Block, known: frozenset[str]) -> frozenset[str]:
        """Check that every name means something, and note when each is read last. Returns what is read from outside."""
        own = set(block.inputs)
        outside: set[str] = set()
        last: dict[str, int] = {}
        for index, operation in enumerate(block.operations):
            read = set(operation.reads)
            for name in sorted(read):
                if name not in own and name not in known:
                    raise ToolchainFailure(f"{operation.place} reads '{name}', which nothing in front of it computes")
            for nested in operation.blocks:
                read |= self._plan(nested, known | own)
            outside |= read - own
            last.update(dict.fromkeys(read & own, index))
            for name in operation.outputs:
                if name in own or name in known:
                    raise ToolchainFailure(f"{operation.place} computes '{name}', which exists already")
                own.add(name)
                last.setdefault(name, index)
        for name in block.outputs:
            if name not in own and name not in known:
                raise ToolchainFailure(f"block output '{name}' is computed by nothing")
        outside |= set(block.outputs) - own
        dead: dict[int, list[str]] = {}
        for name, index in last.items():
            if name not in block.outputs:
                dead.setdefault(index, []).append(name)
        self._plans[id(block)] = _Plan(dead)
        return frozenset(outside)

    # ---- running

    def _fed(self, name: str, array: Array, declared: ValueType) -> Array:
        if not isinstance(declared, TensorType):
            raise NotInterpreted(f"input '{name}' is declared {declared}")
        array = np.asarray(array)
        if array.dtype.kind == declared.dtype.kind == "f":
            array = array.astype(self._held(declared), copy=False)
        if array.dtype != self._held(declared) or not declared.fits(array.shape):
            raise ToolchainFailure(f"input '{name}' is declared {declared}, it is fed {_described(array)}")
        sizes = self.function.sizes.get(name)
        if sizes is not None and not sizes.take(array.shape or (1,)):
            raise ToolchainFailure(f"input '{name}' can be of {sizes}, it is fed {_described(array)}")
        return array

    def _held(self, declared: TensorType) -> np.dtype[np.generic]:
        """In what a tensor of the declared type is held."""
        return np.dtype(np.float32) if self.mode == "fp32" and declared.dtype == np.float16 else declared.dtype

    def _block(self, block: Block, scope: _Scope, trace: dict[str, Array] | None) -> tuple[Value, ...]:
        dead = self._plans[id(block)].dead
        for index, operation in enumerate(block.operations):
            if operation.type == "const":
                (name,) = operation.outputs
                scope.values[name] = operation.value
            else:
                self._operation(operation, scope, trace)
            for name in dead.get(index, ()):
                del scope.values[name]
        return tuple(self._given(name, scope.read(name)) for name in block.outputs)

    def _operation(self, operation: Operation, scope: _Scope, trace: dict[str, Array] | None) -> None:
        """Compute the outputs, into ``scope`` and ``trace``."""
        call = Call(
            operation.type,
            {
                name: tuple(each.read() if isinstance(each, Constant) else _plain(scope.read(each)) for each in given)
                for name, given in operation.inputs.items()
            },
            tuple(operation.outputs.values()),
            self.function.opset,
            operation.blocks,
            lambda block, operands: self._nested(block, operands, scope, trace),
        )
        try:
            result = OPS[operation.type](call)
            results = self._results(operation, result if isinstance(result, tuple) else (result,))
        except (NotInterpreted, ToolchainFailure) as error:
            raise type(error)(f"{operation.place}: {error.message}", error.hint) from error
        except (ArithmeticError, IndexError, MemoryError, TypeError, ValueError) as error:
            # Op functions leave it to numpy to say that shapes or types do not fit together.
            raise ToolchainFailure(f"{operation.place}: {error}") from error
        scope.values.update(results)
        if trace is not None:
            trace.update({name: value for name, value in results.items() if isinstance(value, np.ndarray)})

    def _results(self, operation: Operation, results: tuple[Value, ...]) -> dict[str, Value]:
        """The outputs by name, each as declared."""
        if len(results) != len(operation.outputs):
            raise ToolchainFailure(f"{len(operation.outputs)} outputs are declared, {len(results)} are computed")
        return {
            name: self._settled(name, value, declared)
            for (name, declared), value in zip(operation.outputs.items(), results, strict=True)
        }

    def _nested(
        self, block: Block, operands: Sequence[Value], scope: _Scope, trace: dict[str, Array] | None
    ) -> tuple[Value, ...]:
        if len(operands) != len(block.inputs):
            raise ToolchainFailure(f"a block of {len(block.inputs)} inputs is given {len(operands)}")
        inner = _Scope(around=scope)
        for (name, declared), value in zip(block.inputs.items(), operands, strict=True):
            inner.values[name] = self._settled(name, value, declared)
        return self._block(block, inner, trace)

    def _given(self, name: str, value: Value | Constant) -> Value:
        """A block's output, which may be a constant."""
        return self._settled(name, value.read(), value.type) if isinstance(value, Constant) else value

    def _settled(self, name: str, value: Value, declared: ValueType) -> Value:
        """``value`` as one of the declared type is held; raise ``ToolchainFailure`` where it is none."""
        match declared:
            case TensorType():
                if isinstance(value, np.ndarray | np.generic):
                    array = np.asarray(value)
                    if declared.dtype == np.float16 and array.dtype in (np.float16, np.float32):
                        array = array.astype(self._held(declared), copy=False)
                    same = array.dtype == self._held(declared) or array.dtype.kind == declared.dtype.kind == "U"
                    if same and declared.fits(array.shape):
                        return array
                    raise ToolchainFailure(f"output '{name}' is declared {declared}, got {_described(array)}")
            case ListType():
                if isinstance(value, list):
                    return [self._element(name, each, declared.element) for each in value]
            case DictionaryType():
                if isinstance(value, Dictionary):
                    return Dictionary(
                        self._element(name, value.keys, _vector(declared.key)),
                        self._element(name, value.values, _vector(declared.value)),
                    )
            case _:
                pass
        raise ToolchainFailure(f"output '{name}' is declared {declared}, got a {type(value).__name__.lower()}")

    def _element(self, name: str, value: Array, declared: ValueType) -> Array:
        settled = self._settled(name, value, declared)
        if not isinstance(settled, np.ndarray):
            raise ToolchainFailure(f"output '{name}' holds {declared}, which is no tensor")
        return settled


@dataclass(frozen=True)
class _Plan:
    dead: Mapping[int, Sequence[str]]
    """Position of an operation to the names that nothing reads behind it."""


@dataclass(frozen=True)
class _Scope:
    """What names stand for in a block. Constants are read where they are used: what is in a file stays there."""

    values: dict[str, Value | Constant] = field(default_factory=dict)
    around: _Scope | None = None

    def read(self, name: str) -> Value | Constant:
        if name in self.values:
            return self.values[name]
        if self.around is None:
            raise ToolchainFailure(f"nothing computes '{name}'")
        return self.around.read(name)


def _vector(declared: ValueType) -> ValueType:
    """The type of many scalars side by side."""
    return TensorType(declared.element, (None,)) if isinstance(declared, TensorType) else declared


def _plain(value: Value | Constant) -> Value:
    return value.read() if isinstance(value, Constant) else value


def _walk(block: Block) -> Iterator[Operation]:
    for operation in block.operations:
        yield operation
        for nested in operation.blocks:
            yield from _walk(nested)


def _described(array: Array) -> str:
    return f"{array.dtype.name}{list(array.shape)}"

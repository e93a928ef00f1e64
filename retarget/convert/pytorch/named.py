"""A module with the user's view of it: tensors in by name, a flat tuple of named tensors out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from retarget.errors import MissingToolchain, RetargetError, Unsupported, did_you_mean
from retarget.source import Source
from retarget.spec import TensorSpec

if TYPE_CHECKING:
    from typing import Self

    from torch.export import ExportedProgram

    from retarget.protocols import Array, Feeds, Outputs

THREADS = 2
"""The reference is computed with a fixed number: sums depend on how they are split."""


class Named(nn.Module):
    """Calls ``module`` with tensors in the order of ``names``; returns its tensors, nested ones flattened.

    ``places`` says for each tensor where it goes: a position among the arguments, or a keyword.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], places: Sequence[int | str]) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)
        self.places = tuple(places)
        # A program of torch.export refuses to change its mode: it is what it was exported as.
        self.training = False

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor for _, tensor in leaves(self._call(tensors)))

    def leaves(self, tensors: Sequence[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The outputs with the path name of each, such as ``logits``, ``hidden_states_0`` or ``output``."""
        return leaves(self._call(tensors))

    def _call(self, tensors: Sequence[torch.Tensor]) -> object:
        placed = dict(zip(self.places, tensors))
        keywords = {place: tensor for place, tensor in placed.items() if isinstance(place, str)}
        return self.module(*(placed[index] for index in range(len(placed) - len(keywords))), **keywords)


def leaves(value: object, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in a nest of mappings, dataclasses, tuples and lists, each with its path; absent ones are skipped."""
    if isinstance(value, torch.Tensor):
        yield path or "output", value
    elif value is None or isinstance(value, (bool, int, float, str)):
        return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, _join(path, str(key)))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), _join(path, field.name))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for name in value._fields:
            yield from leaves(getattr(value, name), _join(path, name))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from leaves(item, path if len(value) == 1 else _join(path or "output", str(index)))
    else:
        raise Unsupported(
            f"output '{path or 'output'}' is a {type(value).__name__}, not a tensor",
            "return tensors from forward; for a cache of transformers set config.use_cache to False",
        )


def _join(path: str, name: str) -> str:
    return f"{path}_{name}" if path else name


def wrap(module: nn.Module, program: ExportedProgram | None, specs: Sequence[TensorSpec], notes: list[str]) -> Named:
    """``module`` called by name where the inputs bear the names of its parameters, else in their order.

    Raises ``RetargetError`` listing the parameters of its forward where neither can be.
    """
    parameters = forward_parameters(module) if program is None else dict.fromkeys(program_places(program), True)
    names = [spec.name for spec in specs]
    known = [name for name in names if name in parameters]
    required = [name for name, needed in parameters.items() if needed]
    hint = "its forward takes: " + ", ".join(name if needed else f"{name}?" for name, needed in parameters.items())
    if not parameters:
        return Named(module, names, range(len(names)))
    if known and len(known) < len(names):
        wrong = next(name for name in names if name not in parameters)
        raise RetargetError(f"the model has no input '{wrong}'", did_you_mean(wrong, parameters))
    if known and (left := [name for name in required if name not in names]):
        raise RetargetError(f"input '{left[0]}' of the model is not given", hint)
    if not len(required) <= len(names) <= len(parameters):
        raise RetargetError(f"{len(names)} inputs were given, the model takes {_count(parameters, required)}", hint)
    pairs = dict(zip(names, names if known else parameters))
    if not known:
        listing = ", ".join(f"{name} is {parameter}" for name, parameter in pairs.items())
        notes.append(f"inputs were matched with the parameters of forward by their order: {listing}")
    if program is not None:
        places = program_places(program)
        return Named(module, names, [places[parameter] for parameter in pairs.values()])
    return Named(module, names, list(pairs.values()) if known else range(len(names)))


def _count(parameters: Mapping[str, bool], required: Sequence[str]) -> str:
    return str(len(required)) if len(required) == len(parameters) else f"{len(required)} to {len(parameters)}"


def program_places(program: ExportedProgram) -> dict[str, int | str]:
    """The inputs of a program of ``torch.export`` and where each goes, as it was exported: position or keyword."""
    names = [str(name) for name in program.graph_signature.user_inputs]
    positional, keywords = program.call_spec.in_spec.children()
    if positional.num_leaves + keywords.num_leaves != positional.num_children + keywords.num_children:
        raise Unsupported("the exported program takes nested inputs", "export it with tensors as its only inputs")
    places = [*range(positional.num_children), *keywords.context]
    return dict(zip(names, places))


def forward_parameters(module: nn.Module) -> dict[str, bool]:
    """The parameters of ``forward`` and whether each is required; empty where it takes anything."""
    if isinstance(module, torch.jit.ScriptModule):
        schema = module._c._get_method("forward").schema
        return {argument.name: not argument.has_default_value() for argument in schema.arguments[1:]}
    parameters = inspect.signature(module.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return {}
    return {
        parameter.name: parameter.default is parameter.empty
        for parameter in parameters
        if parameter.kind is not parameter.VAR_KEYWORD
    }


def choose_outputs(found: Sequence[str], source: Source) -> tuple[str, ...]:
    """The user's names for the outputs, or their path names. Raises ``RetargetError`` when the counts differ."""
    if not found:
        raise Unsupported(f"{source.path}: the model returns no tensors", "return tensors from forward")
    names = source.outputs or tuple(found)
    if len(names) != len(found):
        raise RetargetError(
            f"{len(names)} outputs are named ({', '.join(names)}), the model returns {len(found)}: {', '.join(found)}",
            "name all of them, in this order",
        )
    taken = {spec.name for spec in source.inputs}
    # A module may return what it was given under the same name; one graph cannot hold both.
    names = tuple(f"{name}_out" if name in taken and not source.outputs else name for name in names)
    if len(set(names)) != len(names) or taken & set(names):
        raise RetargetError(
            f"outputs {', '.join(names)}: two tensors have one name", "name the outputs with `outputs:`"
        )
    return names


# ---- tensors and arrays


def to_tensor(array: Array) -> torch.Tensor:
    """A tensor with a copy of ``array``; ml_dtypes' bfloat16 becomes torch's."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_array(tensor: torch.Tensor) -> Array:
    """An array with a copy of ``tensor``."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype == torch.bfloat16:
        try:
            import ml_dtypes
        except ImportError as error:
            raise MissingToolchain("arrays of bfloat16 need ml_dtypes", "pip install ml_dtypes") from error
        return np.array(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.array(tensor.numpy())


def said(error: Exception) -> str:
    """What went wrong, in one line: TorchScript says it in the last, after its own traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if isinstance(error, torch.jit.Error) else 0]


class TorchRunner:
    """The module itself, without gradients; a ``Runner``."""

    def __init__(self, named: Named, outputs: Sequence[str]) -> None:
        self._named = named
        self._outputs = tuple(outputs)
        self._threads = torch.get_num_threads()
        self.settings = f"PyTorch {torch.__version__}, CPU, {THREADS} threads"

    def run(self, feeds: Feeds) -> Outputs:
        missing = [name for name in self._named.names if name not in feeds]
        if missing:
            raise RetargetError(f"input '{missing[0]}' is not fed", f"feed {', '.join(self._named.names)}")
        tensors = [to_tensor(np.asarray(feeds[name])) for name in self._named.names]
        shapes = ", ".join(f"{name}{list(t.shape)}" for name, t in zip(self._named.names, tensors))
        try:
            with torch.no_grad():
                results = self._named(*tensors)
        except Exception as error:
            line = said(error)
            raise RetargetError(
                f"PyTorch itself fails on {shapes}: {line}",
                "check the inputs and shapes of the recipe against what the model takes",
            ) from error
        return dict(zip(self._outputs, map(to_array, results)))

    def __enter__(self) -> Self:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._threads)

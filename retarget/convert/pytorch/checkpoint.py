"""From a checkpoint in any of its forms to a module in eval mode, without running code from the file.

A pickled module is the exception: it *is* code, and is only loaded with ``trust``.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from zipfile import ZipFile

import torch
from torch import nn

from retarget.convert.pytorch import archive, factory
from retarget.convert.pytorch.forms import (
    EXPORTED,
    HUGGING_FACE,
    PICKLED,
    SAFETENSORS,
    STATE_DICT,
    SUFFIXES,
    TORCHSCRIPT,
    form_of,
    holds_a_script,
    pickled_classes,
)
from retarget.errors import DAMAGED, RetargetError, Unsupported
from retarget.source import Source
from retarget.zips import ZIP_ERRORS

if TYPE_CHECKING:
    from typing import TypeAlias

    from torch.export import ExportedProgram

    Weights: TypeAlias = dict[str, torch.Tensor]

logger = logging.getLogger(__name__)
T = TypeVar("T")

_NESTS = ("state_dict", "model_state_dict", "model", "module")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass
class Loaded:
    """A module in eval mode on the CPU, or a program of ``torch.export``, and what a user must know of it."""

    module: nn.Module
    form: str
    program: ExportedProgram | None = None
    notes: list[str] = field(default_factory=list)


def load(source: Source) -> Loaded:
    """Read ``source`` in whatever form it has. Raises ``RetargetError``."""
    form = form_of(source.path) or SUFFIXES.get(source.path.suffix.lower())
    if not source.path.exists():
        raise RetargetError(f"{source.path}: no such file or folder")
    if form is None:
        raise RetargetError(
            f"{source.path}: not a PyTorch checkpoint",
            "known: state dicts (.pt, .pth, .safetensors), TorchScript, torch.export (.pt2), Hugging Face folders",
        )
    if form in (TORCHSCRIPT, EXPORTED, HUGGING_FACE) and source.factory is not None:
        raise RetargetError(f"{source.path}: {form} holds its own code, a factory is not used", "remove `factory`")
    with quiet():
        if form == TORCHSCRIPT:
            loaded = Loaded(_torchscript(source.path), form)
        elif form == EXPORTED:
            loaded = _exported(source)
        elif form == HUGGING_FACE:
            from retarget.convert.pytorch import huggingface

            module, notes = huggingface.load(source.path)
            loaded = Loaded(module, form, notes=notes)
        else:
            loaded = _checkpoint(source, form)
        if loaded.program is None:
            for parameter in loaded.module.eval().parameters():
                parameter.requires_grad_(False)
            _to_float32(loaded)
    return loaded


@contextlib.contextmanager
def quiet() -> Iterator[Sequence[warnings.WarningMessage]]:
    """Warnings and prints of the libraries go to the log: they are about their code, not about the user's model.

    Gives the warnings, which come in one by one, for the few that are.
    """
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        try:
            yield caught
        finally:
            for warning in caught:
                logger.info("%s: %s", warning.category.__name__, warning.message)
            if printed.getvalue():
                logger.info("%s", printed.getvalue())


def _checkpoint(source: Source, form: str) -> Loaded:
    """A state dict in its module, or a pickled module."""
    if form == SAFETENSORS:
        content: object = _safetensors(source.path)
    else:
        _check_sums(source.path)
        content = _unpickle(source, form)
    if isinstance(content, Mapping):
        for key in _NESTS:
            if isinstance(content.get(key), nn.Module):
                content = content[key]
                break
    if isinstance(content, nn.Module):
        if source.factory is not None:
            raise RetargetError(f"{source.path}: holds a whole module, a factory is not used", "remove `factory`")
        return Loaded(content, PICKLED)

    notes: list[str] = []
    weights = _weights(content, source.path, notes)
    if source.factory is None:
        raise RetargetError(
            f"{source.path}: holds weights but not the module that they belong to",
            "name the function that builds it: --factory model.py:build",
        )
    with torch.random.fork_rng():
        # What the checkpoint may leave out (`strict: false`) is the same each time that the module is built.
        torch.manual_seed(0)
        arguments = source.options["factory_args"]
        assert isinstance(arguments, dict)
        module = factory.build(*source.factory, arguments)
    _fill(module, weights, source, notes)
    return Loaded(module, form if form == SAFETENSORS else STATE_DICT, notes=notes)


def _unpickle(source: Source, form: str) -> object:
    path = source.path
    if not source.trust:
        _check_readable(path)
    if _reads_weights_only():
        try:
            return torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:
            classes = _foreign_classes(path)
            if not classes and form != PICKLED:
                line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise RetargetError(f"{path}: not a readable PyTorch checkpoint ({line})", DAMAGED) from error
            if not source.trust:
                raise RetargetError(
                    f"{path}: holds pickled {', '.join(classes) or 'objects of unknown classes'}, "
                    "and loading it runs code",
                    "save `model.state_dict()` and name a factory; "
                    "or, if you know where the file comes from, add --trust",
                ) from error
    try:
        # Before 1.13 there is only this, and no word for it.
        return torch.load(path, map_location="cpu", **({"weights_only": False} if _reads_weights_only() else {}))
    except Exception as error:
        raise RetargetError(
            f"{path}: cannot be unpickled ({type(error).__name__}: {error})",
            "the modules of its classes must be importable: install them, or set PYTHONPATH",
        ) from error


def _check_readable(path: Path) -> None:
    """Refuse what this version of PyTorch cannot read without running code from it. Raises ``RetargetError``."""
    hint = "save the weights as safetensors; or, if you know where the file comes from, add --trust"
    if not _reads_weights_only():
        raise RetargetError(f"{path}: PyTorch {torch.__version__} runs code from the file while it reads it", hint)
    if hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        return
    # CVE-2025-32434: before 2.6 these two ways of reading ignore `weights_only`.
    what = None
    if tarfile.is_tarfile(str(path)):
        what = "tar archive"
    elif holds_a_script(path):
        what = "TorchScript in a checkpoint"
    if what is not None:
        raise RetargetError(f"{path}: a {what}, which PyTorch {torch.__version__} cannot read safely", hint)


def _reads_weights_only() -> bool:
    return "weights_only" in inspect.signature(torch.load).parameters


def _foreign_classes(path: Path) -> list[str]:
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        return pickled_classes(path)
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:
        # It reads archives alone.
        logger.info("%s: PyTorch cannot list its classes", path, exc_info=True)
        return pickled_classes(path)


def _check_sums(path: Path) -> None:
    """Hold the members against their check sums, which ``torch.load`` does not do: a flipped bit is a wrong weight."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    try:
        with ZipFile(path) as zipped:
            if all(member.CRC == 0 for member in zipped.infolist()):
                return  # written with `torch.serialization.set_crc32_options(False)`
            bad = zipped.testzip()
    except ZIP_ERRORS as error:
        raise RetargetError(f"{path}: not a readable PyTorch checkpoint ({error})", DAMAGED) from error
    if bad is not None:
        raise RetargetError(f"{path}: the check sum of its member {bad} is wrong", DAMAGED)


def _safetensors(path: Path) -> Weights:
    from safetensors.torch import load_file

    return _read(path, "safetensors file", lambda: load_file(path))


def _torchscript(path: Path) -> nn.Module:
    _check_sums(path)
    module: nn.Module = _read(path, "TorchScript archive", lambda: torch.jit.load(str(path), map_location="cpu"))  # type: ignore[no-untyped-call]
    return module


def _exported(source: Source) -> Loaded:
    if not hasattr(getattr(torch, "export", None), "load"):
        raise Unsupported(
            f"{source.path}: PyTorch {torch.__version__} has no torch.export",
            "read it with the version that wrote it, or a newer one",
        )
    _check_sums(source.path)
    if not source.trust:
        archive.scan(source.path)
    program = _read(source.path, "torch.export archive", lambda: torch.export.load(source.path))
    unguarded = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
    module = _read(source.path, "torch.export archive", lambda: program.module(**unguarded))
    return Loaded(module, EXPORTED, program)


def _read(path: Path, what: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RetargetError(f"{path}: not a readable {what} ({line})", DAMAGED) from error


# ---- state dicts


def _weights(content: object, path: Path, notes: list[str]) -> Weights:
    """The state dict in ``content``: itself, or what training loops nest it in."""
    where = ""
    while isinstance(content, Mapping) and not _is_state_dict(content):
        key = next((key for key in _NESTS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        content, where = content[key], key
    if not isinstance(content, Mapping) or not _is_state_dict(content):
        held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise RetargetError(
            f"{path}: holds no state dict but {held or 'nothing'}",
            f"save `model.state_dict()`, alone or under one of the keys {', '.join(_NESTS)}",
        )
    if where:
        notes.append(f"the weights are those under the key '{where}' of the checkpoint")
    return dict(content)


def _is_state_dict(content: Mapping[object, object]) -> bool:
    return bool(content) and all(isinstance(value, torch.Tensor) for value in content.values())


def _fill(module: nn.Module, weights: Weights, source: Source, notes: list[str]) -> None:
    """Load ``weights`` into ``module``. Raises ``RetargetError`` listing the keys and shapes that differ."""
    wanted = module.state_dict()
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in weights) and not any(key.startswith(prefix) for key in wanted):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
            notes.append(f"the prefix '{prefix}' was taken off all keys of the checkpoint")
    missing = [key for key in wanted if key not in weights]
    unexpected = [key for key in weights if key not in wanted]
    differing = [
        f"{key} {list(weights[key].shape)} for {list(value.shape)}"
        for key, value in wanted.items()
        if key in weights and isinstance(value, torch.Tensor) and weights[key].shape != value.shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected)]
    if differing or (source.options["strict"] and (missing or unexpected)):
        listing = "; ".join(
            f"{what}: {_few(keys)}" for what, keys in (*problems, ("of another shape", differing)) if keys
        )
        raise RetargetError(
            f"{source.path}: does not fit the module that the factory builds: {listing}",
            "check the factory's arguments; `strict: false` of the model's options allows missing and unexpected keys",
        )
    notes += [f"{what} in the checkpoint: {_few(keys)}" for what, keys in problems if keys]
    narrow = sorted({str(value.dtype).rpartition(".")[2] for value in weights.values() if _is_narrow(value)})
    if narrow:
        notes.append(f"weights were widened from {', '.join(narrow)} to float32")
    module.load_state_dict(weights, strict=False)


def _few(keys: list[str], limit: int = 6) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more


def _is_narrow(value: torch.Tensor) -> bool:
    return value.dtype in (torch.float16, torch.bfloat16)


def _to_float32(loaded: Loaded) -> None:
    """The plan asks for precisions: a half-precision source is widened, so that fp32 is really that."""
    module = loaded.module
    if any(_is_narrow(value) for value in (*module.parameters(), *module.buffers())):
        module.float()
        note = "the module was widened from half precision to float32"
        if not any("widened" in known for known in loaded.notes):
            loaded.notes.append(note)

"""Load a folder that ``save_pretrained`` wrote: only local files, only safetensors, no code from the folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from retarget.errors import MissingToolchain, RetargetError, Unsupported


def load(folder: Path) -> tuple[nn.Module, list[str]]:
    """The module of the folder's first architecture, in float32, and notes. Raises ``RetargetError``."""
    try:
        import transformers
    except ImportError as error:
        raise MissingToolchain(
            f"{folder}: a Hugging Face folder needs transformers", 'pip install "retarget[huggingface]"'
        ) from error

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise RetargetError(f"{folder}: its config.json cannot be read ({_line(error)})") from error
    architecture = (getattr(config, "architectures", None) or ["(none is named)"])[0]
    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise Unsupported(
            f"{folder}: transformers {transformers.__version__} has no architecture {architecture}",
            "code from the folder is never run: write a factory around the model and save its state dict",
        )
    dtype = "dtype" if hasattr(config, "dtype") else "torch_dtype"  # as it was called before 4.56
    stored = str(getattr(config, dtype, None) or "float32").rpartition(".")[2]
    if hasattr(config, "use_cache"):
        config.use_cache = False
    try:
        module, info = kind.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **{dtype: torch.float32},
        )
    except Exception as error:
        raise RetargetError(
            f"{folder}: its weights cannot be loaded ({_line(error)})",
            "the folder must hold model.safetensors: write it again with `save_pretrained`",
        ) from error
    problems = {
        "missing": sorted(info.get("missing_keys") or ()),
        "of another shape": sorted(map(str, info.get("mismatched_keys") or ())),
    }
    if any(problems.values()):
        listing = "; ".join(
            f"{what.replace('_', ' ')}: {', '.join(keys[:6])}" for what, keys in problems.items() if keys
        )
        raise RetargetError(
            f"{folder}: its weights do not fit {architecture}: {listing}", "check `architectures` in config.json"
        )
    notes = []
    if unused := sorted(info.get("unexpected_keys") or ()):
        notes.append(f"weights that {architecture} does not use: {', '.join(unused[:6])}")
    if stored != "float32":
        notes.append(f"weights were widened from {stored} to float32")
    return module, notes


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

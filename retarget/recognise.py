"""Whose a file or folder is: each frontend is asked about its content, and what nobody knows is told apart in words."""

from __future__ import annotations

from pathlib import Path

from retarget import catalog
from retarget.errors import RetargetError

_ARTIFACT = "what a conversion ends in is not read: give the model that it was made of"
_UNPACK = "unpack it, and give what is in it"
_HEADS = {
    b"version https://git-lfs": "it is a pointer of Git LFS and not the file itself: run `git lfs pull`",
    b"<!DOCTYPE": "it is a web page, as a download that failed leaves: download it again",
    b"<html": "it is a web page, as a download that failed leaves: download it again",
    b"vtrt": f"it is an engine of TensorRT-RTX: {_ARTIFACT}",
    b"7767517": f"it is a network of ncnn: {_ARTIFACT}",
    b"GGUF": f"it is a file of llama.cpp: {_ARTIFACT}",
    b"PK\x03\x04": f"it is a zip that neither PyTorch nor Keras wrote: {_UNPACK}",
    b"\x1f\x8b": f"it is an archive: {_UNPACK}",
    b"\x80": "it looks like a pickle, which runs code when it is read: save the weights alone, as safetensors",
}
"""How files start, and what such a file is and what to do."""
_SUFFIXES = {
    **dict.fromkeys((".engine", ".plan", ".trt"), f"it looks like an engine of TensorRT: {_ARTIFACT}"),
    **dict.fromkeys((".mlmodel", ".mlpackage", ".mlmodelc"), f"it looks like a Core ML model: {_ARTIFACT}"),
    ".mnn": f"it looks like a model of MNN: {_ARTIFACT}",
    **dict.fromkeys(
        (".pdmodel", ".pdiparams", ".pdparams"),
        "PaddlePaddle is not read: export the model to ONNX with paddle2onnx",
    ),
    ".params": "MXNet is not read: export the network to ONNX with MXNet itself",
    **dict.fromkeys((".weights", ".cfg"), "Darknet is not read: bring the network to PyTorch or ONNX first"),
    ".msgpack": "JAX is not read: save the model as a SavedModel with jax2tf",
    **dict.fromkeys((".tar", ".7z", ".bz2", ".xz"), f"it looks like an archive: {_UNPACK}"),
    **dict.fromkeys((".yaml", ".yml"), "it looks like a recipe: `retarget build` builds one"),
    ".py": "it looks like code: give the weights as the model, and the code with --factory FILE.py:FUNCTION",
}
"""The same by suffix."""
_SHOWN = 5
"""Names that a hint lists."""


def recognise(path: Path, format: str | None = None) -> tuple[str, str]:  # noqa: A002 - the recipe's own key
    """The frontend that reads ``path`` and the form that it recognised, from the content and else from the suffix.

    Raises ``RetargetError`` where no frontend knows it, or more than one.
    """
    names = [format] if format else list(catalog.FRONTENDS)
    found = {name: form for name in names if (form := catalog.frontend(name).matches(path))}
    if not found and path.is_file():
        # Damaged: the reader's own error says more than "unknown format".
        suffix = path.suffix.lower()
        found = {name: form for name in names if (form := catalog.frontend(name).suffixes.get(suffix))}
    if len(found) > 1:
        all_of = " and ".join(f"{form} ({name})" for name, form in sorted(found.items()))
        raise RetargetError(f"{path}: is {all_of} at once", "say in a recipe which is meant: `model: {format: …}`")
    for name, form in found.items():
        return name, form
    if format:
        raise RetargetError(
            f"{path}: not a model that '{format}' reads", "leave `format` out to have it found from the content"
        )
    raise RetargetError(
        f"{path}: no frontend knows this {'folder' if path.is_dir() else 'file'} ({', '.join(names)} were tried)",
        (_about_folder(path) if path.is_dir() else _about_file(path))
        or "`retarget list frontends` shows what can be read",
    )


def _about_file(path: Path) -> str | None:
    """What a file that no frontend knows may be, and what to do; None: no idea."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        return "it is empty: copy it again"
    if path.parent.name == "variables" and path.name.startswith("variables."):
        return f"it is a part of a SavedModel: give the folder of the whole, {path.absolute().parent.parent}"
    if path.name == "config.json":
        return "it describes a model: give the folder that it lies in, with the weights"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<") and b"<net " in text:
        return f"it is a model of OpenVINO: {_ARTIFACT}"
    if text.startswith(b"{") and b'"op"' in text and b'"nodes"' in text:
        return _SUFFIXES[".params"]
    if text.startswith(b"{") and b'"class_name"' in text:
        return "it is the configuration of a Keras model: save it with its weights, model.save('model.keras')"
    if path.suffix == ".prototxt" and b"base_lr" in text:
        return "it is a solver, which says how a net of Caffe is trained: give the prototxt of the net"
    return next((said for start, said in _HEADS.items() if text.startswith(start)), _SUFFIXES.get(path.suffix.lower()))


def _about_folder(path: Path) -> str | None:
    """As `_about_file`."""
    names = sorted(each.name for each in path.iterdir())
    if not names:
        return "it is empty"
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    if "variables.index" in names:
        return f"it holds the weights of a SavedModel: give the folder of the whole, {path.absolute().parent}"
    if "variables" in names:
        return "it looks like a SavedModel without saved_model.pb: copy that too"
    if "report.json" in names:
        return f"it is what a build left: {_ARTIFACT}"
    if "config.json" in names:
        return "its config.json names neither `architectures` nor `model_type`, as one of Hugging Face does"
    inside = [name for name in names if any(catalog.frontend(each).matches(path / name) for each in catalog.FRONTENDS)]
    shown = ", ".join(inside[:_SHOWN]) + (f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else "")
    if inside:
        return f"give one of the models in it: {shown}"
    if any(name.endswith((".safetensors", ".index", ".bin")) for name in names):
        return "it has weights and no description of the model: copy config.json, or the graph, too"
    return None

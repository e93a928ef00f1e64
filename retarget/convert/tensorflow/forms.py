"""The forms in which TensorFlow stores a model, told from their content, and the files that each consists of."""

from __future__ import annotations

import re
from pathlib import Path

from retarget.protobuf import LENGTH, VARINT, Buffer, Field, WireError, fields, mapped

SAVED_MODEL, FROZEN_GRAPH, CHECKPOINT = "SavedModel", "frozen graph", "TensorFlow 1 checkpoint"

SUFFIXES = {".pb": FROZEN_GRAPH, ".pbtxt": FROZEN_GRAPH, ".meta": CHECKPOINT, ".index": CHECKPOINT}
"""The form of a file of which no more can be told, such as a damaged one."""

SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")

_STATE = "checkpoint"
"""The file in which TensorFlow writes down the checkpoints of a folder, the newest first."""

_INDEX_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
"""The end of an index file, which is a LevelDB table."""

_DATA = re.compile(r"\.data-\d{5}-of-\d{5}$")
_NEWEST = re.compile(r'^\s*model_checkpoint_path:\s*"((?:[^"\\]|\\.)*)"', re.MULTILINE)
_SAVED_MODEL_TEXT = re.compile(r"(?:\s|#[^\n]*\n)*(?:saved_model_schema_version\s*:|meta_graphs\s*:?\s*\{)")
_GRAPH_TEXT = re.compile(r"(?:\s|#[^\n]*\n)*(?:node|library|versions)\s*:?\s*\{")
_OPERATOR = re.compile(rb"[A-Za-z_][\w>.]*")
_NODE, _LIBRARY, _VERSION, _VERSIONS, _DEBUG = 1, 2, 3, 4, 5
_WIRE = {_NODE: LENGTH, _LIBRARY: LENGTH, _VERSION: VARINT, _VERSIONS: LENGTH, _DEBUG: LENGTH}
"""The fields of a ``GraphDef`` and how each is written."""


def form_of(path: Path) -> str | None:
    """The form of model that ``path`` holds; None where it is none of TensorFlow's."""
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED_MODEL_FILES):
            return SAVED_MODEL
        return CHECKPOINT if _newest(path) is not None else None
    if checkpoint_prefix(path) is not None:
        return CHECKPOINT
    if not path.is_file():
        return None
    if is_text(path):
        text = _head(path, 1 << 16).decode("utf-8", "replace")
        return SAVED_MODEL if _SAVED_MODEL_TEXT.match(text) else FROZEN_GRAPH if _GRAPH_TEXT.match(text) else None
    with mapped(path) as content:
        return SAVED_MODEL if _is_saved_model(content) else FROZEN_GRAPH if _is_graph(content) else None


def is_text(path: Path) -> bool:
    """Whether a message is written as text, not in the wire format, which has bytes that no text has."""
    return not any(byte < 32 and byte not in b"\t\n\r\f" for byte in _head(path, 64))


def checkpoint_prefix(path: Path) -> Path | None:
    """The name that the files of a checkpoint share, without their suffixes; None where ``path`` is no checkpoint."""
    if path.is_dir():
        return _newest(path)
    if path.suffix == ".index" and path.is_file() and _ends_as_index(path):
        return path.with_suffix("")
    if path.suffix == ".meta":
        return path.with_suffix("") if path.is_file() and _index(path.with_suffix("")).is_file() else None
    if _DATA.search(path.name):
        prefix = path.with_name(_DATA.sub("", path.name))
        return prefix if _index(prefix).is_file() else None
    return path if not path.exists() and _index(path).is_file() else None


def checkpoint_files(prefix: Path) -> dict[str, Path]:
    """Role to each file of the checkpoint ``prefix`` that exists."""
    files = {"graph": prefix.with_name(f"{prefix.name}.meta"), "index": _index(prefix)}
    for path in sorted(prefix.parent.glob("*.data-*")):
        if _DATA.sub("", path.name) == prefix.name:
            files[path.name[len(prefix.name) + 1 :]] = path
    return {role: path for role, path in files.items() if path.is_file()}


def _index(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def _newest(folder: Path) -> Path | None:
    """The newest checkpoint that the folder's own list names."""
    state = folder / _STATE
    found = _NEWEST.search(_head(state, 1 << 16).decode("utf-8", "replace")) if state.is_file() else None
    # The list keeps names relative to the folder, or absolute ones from before it was moved.
    return None if found is None else folder / Path(found[1]).name


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _ends_as_index(path: Path) -> bool:
    # A damaged index is one still where the other files of the checkpoint lie beside it.
    return path.read_bytes()[-8:] == _INDEX_MAGIC or bool(checkpoint_files(path.with_suffix("")).keys() - {"index"})


def _is_saved_model(content: Buffer) -> bool:
    """A version, then graphs, the first of which begins with what is said of it."""
    try:
        for at, field in enumerate(fields(content, 0, len(content), cut=True)):
            if (field.number, field.wire) != ((1, VARINT) if at == 0 else (2, LENGTH)):
                return False
            if at == 1:
                inner = next(fields(content, field.start, field.end, cut=True), None)
                return inner is not None and (inner.number, inner.wire) == (1, LENGTH) and inner.end <= field.end
    except WireError:
        return False
    return False


def _is_graph(content: Buffer) -> bool:
    """Whether the top-level fields are those of a ``GraphDef``, the first of its nodes with a name and an operator."""
    nodes = 0
    try:
        for field in fields(content, 0, len(content)):
            if _WIRE.get(field.number) != field.wire or (
                field.number == _NODE and not nodes and not _is_node(content, field)
            ):
                return False
            nodes += field.number == _NODE
    except WireError:
        return False
    return nodes > 0


def _is_node(content: Buffer, node: Field) -> bool:
    """``name`` and ``op`` come first and are strings; ``op`` is an identifier."""
    texts = []
    for number, field in zip((1, 2), fields(content, node.start, node.end)):
        if (field.number, field.wire) != (number, LENGTH):
            return False
        texts.append(content[field.start : field.end])
    return len(texts) == 2 and bool(texts[0]) and _OPERATOR.fullmatch(texts[1]) is not None

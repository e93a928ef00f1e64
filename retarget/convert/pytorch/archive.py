"""Refuse a ``.pt2`` archive that could run code while it is loaded, before ``torch.export.load`` sees it.

Reading one does much with text that anybody may have written. It unpickles members, at times with
``weights_only=False``; it restores script objects; it evaluates symbolic sizes with ``sympify``, which is ``eval``;
it executes guards as Python source; and node names and call targets end in generated source too. Each is held
against the little that an honest archive needs.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

import torch

from retarget.errors import RetargetError
from retarget.zips import ZIP_ERRORS

if TYPE_CHECKING:
    from retarget.protocols import JSON

_HINT = "if you know where the file comes from, --trust loads it"
_OBJECTS = ("custom_obj", "opaque_obj")
_TARGET = re.compile(r"torch\.ops(\.\w+)+|torch\._?sym_\w+|_operator\.\w+|math\.\w+")
_NAME = re.compile(r"[\w.]*")
_WORD = re.compile(r"\w+")
_SIZES = frozenset({"size", "shape", "stride", "dim", "storage_offset"})
_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Subscript, ast.keyword),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)


def scan(path: Path) -> None:
    """Raise ``RetargetError`` for the first thing in the archive that an honest one would not have."""
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise _refusal(path, twice[0], "is in it twice, so that two readers may see two files")
            documents = {name: _document(path, name, archive.read(name)) for name in names if name.endswith(".json")}
            raw = _raw_tensors(documents)
            for name, document in documents.items():
                for key, text in _strings(document):
                    _scan_text(path, name, key, text)
            for name in names:
                if name not in documents and name not in raw:
                    _scan_binary(path, name, archive.read(name))
    except ZIP_ERRORS as error:
        raise RetargetError(
            f"{path}: not a readable archive ({error})", "the file may be cut short or damaged: copy it again"
        ) from error


def _document(path: Path, name: str, content: bytes) -> JSON:
    try:
        document: JSON = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RetargetError(f"{path}: {name} is not JSON ({error})", "the file is damaged: copy it again") from error
    return document


def _raw_tensors(documents: dict[str, JSON]) -> set[str]:
    """Members that are read as bytes of a tensor, never unpickled: their bytes may look like anything."""
    raw: set[str] = set()
    pickled: set[str] = set()
    for name, document in documents.items():
        entries = document.get("config") if isinstance(document, dict) else None
        if not isinstance(entries, dict):
            continue
        for entry in entries.values():
            if isinstance(entry, dict):
                member = f"{name.rpartition('/')[0]}/{entry.get('path_name')}"
                (pickled if entry.get("use_pickle", True) else raw).add(member)
    return {member for member in raw - pickled if not Path(member).name.startswith(_OBJECTS)}


def _scan_binary(path: Path, name: str, content: bytes) -> None:
    if Path(name).name.startswith(_OBJECTS):
        raise _refusal(path, name, "is a script object, which is restored by running code")
    if not (content.startswith((b"PK\x03\x04", b"\x80")) or name.endswith(".pt")):
        return
    try:
        torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:
        raise _refusal(path, name, "holds pickled objects other than tensors, which run code when loaded") from error


def _scan_text(path: Path, name: str, key: str, text: str) -> None:
    if key in ("expr_str", "guards_code", "range_constraints"):
        if not _is_arithmetic(text):
            raise _refusal(path, name, f"holds '{text[:80]}', which would be evaluated and is not arithmetic")
    elif key in ("target", "as_operator"):
        if not _TARGET.fullmatch(text):
            raise _refusal(path, name, f"calls '{text[:80]}', which is no operator of PyTorch")
    elif key in ("name", "forward_arg_names") and not _NAME.fullmatch(text):
        raise _refusal(path, name, f"has a node called '{text[:80]}', which is not a name")


def _is_arithmetic(text: str) -> bool:
    """Whether ``text`` only computes with sizes, as ``2*s77``, ``Max(1, s0)`` or ``L['x'].size()[0] >= 2`` do."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    return all(_is_size(node) for node in nodes)


def _is_size(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        text = node.value
        return _WORD.fullmatch(text) is not None if isinstance(text, str) else text is None or _is_number(text)
    if isinstance(node, ast.Name):
        return not node.id.startswith("_")
    if isinstance(node, ast.Attribute):
        return node.attr in _SIZES
    if isinstance(node, ast.Call):
        # The functions of SymPy begin with a capital, those of Python that do harm do not.
        called = node.func
        return called.id[0].isupper() if isinstance(called, ast.Name) else isinstance(called, ast.Attribute)
    return isinstance(node, _ARITHMETIC)


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float))


def _strings(document: JSON, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string with the key that it, or the list around it, stands under; keys of a map of symbols too."""
    if isinstance(document, str):
        yield key, document
    elif isinstance(document, list):
        for item in document:
            yield from _strings(item, key)
    elif isinstance(document, dict):
        for name, item in document.items():
            if key == "range_constraints":
                yield key, name
            yield from _strings(item, name)


def _refusal(path: Path, member: str, reason: str) -> RetargetError:
    return RetargetError(f"{path}: its member {member} {reason}", _HINT)

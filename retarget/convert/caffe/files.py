"""Which files are Caffe's, and which belong together: no numpy.

A net is a prototxt and a caffemodel. Each is told from its content, and the one finds the other in its folder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from retarget.convert.caffe.tokens import Token, tokens
from retarget.errors import RetargetError
from retarget.hdf5 import root_names
from retarget.protobuf import LENGTH, VARINT, Buffer, Field, WireError, fields, mapped

NET, WEIGHTS, FOLDER = "Caffe prototxt", "caffemodel", "folder of a Caffe net"
SUFFIXES: Mapping[str, str] = {".prototxt": NET, ".caffemodel": WEIGHTS}

_HEAD = 64 << 10
"""Bytes of a text in which a layer must begin."""
_FIELDS_SEEN = 100
_OPENING, _CLOSING = ("{", "<", "["), ("}", ">", "]")
_LAYER_FIELDS = frozenset({"name", "type", "bottom", "top", "layer", "include", "exclude", "phase", "param", "engine"})


def form(path: Path) -> str | None:
    """``NET``, ``WEIGHTS`` or ``FOLDER``, from the content of ``path``; None if it is none of Caffe's."""
    if path.is_dir():
        return FOLDER if caffemodels(path) and _nets(path) else None
    if not path.is_file():
        return None
    if _is_net(path):
        return NET
    return WEIGHTS if is_hdf5(path) or _is_weights(path) else None


def _kind(path: Path) -> str | None:
    """``form``, or what the suffix says of a damaged file."""
    return form(path) or SUFFIXES.get(path.suffix.lower())


# ---- pairs


def others(path: Path) -> Mapping[str, Path]:
    """The ``weights`` of a prototxt, or the ``net`` of a caffemodel, where one is beside it."""
    kind = _kind(path)
    if kind == NET:
        weights = weights_beside(path)
        return {} if weights is None else {"weights": weights}
    net = net_beside(path) if kind == WEIGHTS else None
    return {} if net is None else {"net": net}


def weights_beside(prototxt: Path) -> Path | None:
    """The caffemodel of ``prototxt`` in its folder: of the same name, else the only one."""
    found = caffemodels(prototxt.parent)
    same = [each for each in found if each.stem == prototxt.stem]
    return same[0] if same else found[0] if len(found) == 1 else None


def net_beside(caffemodel: Path) -> Path | None:
    """The prototxt of ``caffemodel`` in its folder: by its name, else by "deploy" in it, else the only one."""
    found = _nets(caffemodel.parent)
    choices = (
        [each for each in found if each.stem == caffemodel.stem],
        [each for each in found if "deploy" in each.stem],
        found,
    )
    return next((choice[0] for choice in choices if len(choice) == 1), None)


def pair(path: Path, given: Path | None) -> tuple[Path, Path | None]:
    """The prototxt and the caffemodel that are meant by ``path``, which may be either or their folder, and ``given``.

    Raises ``RetargetError`` where there is no prototxt, or more than one to choose from.
    """
    kind = _kind(path)
    if kind == FOLDER:
        found = caffemodels(path)
        if len(found) > 1:
            raise RetargetError(
                f"{path}: several caffemodels: {listed(found)}", "give two files: `NET.prototxt,NET.caffemodel`"
            )
        path = found[0]
    elif kind != WEIGHTS:
        return path, given
    elif given is not None:
        if _kind(given) == NET:
            return given, path  # the two the other way round
        raise RetargetError(
            f"'{path.name}' and '{given.name}' are both no prototxt", f"give `NET.prototxt,{path.name}`"
        )
    net = net_beside(path)
    if net is None:
        choice = _nets(path.parent)
        why = f"there are several beside it: {listed(choice)}" if choice else "there is none beside it"
        raise RetargetError(
            f"{path.name}: these are weights; the layers stand in a prototxt, and {why}",
            f"give both: `NET.prototxt,{path.name}`",
        )
    return net, path


def caffemodels(folder: Path) -> list[Path]:
    """All in ``folder``."""
    return _beside(folder, "*.caffemodel")


def _nets(folder: Path) -> list[Path]:
    """The prototxts in ``folder`` that may be nets; a solver says how one is trained."""
    return [each for each in _beside(folder, "*.prototxt") if "solver" not in each.stem]


def _beside(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(each for each in folder.glob(pattern) if each.is_file())
    except OSError:  # a folder that may not be read has nothing to find
        return []


def listed(paths: Sequence[Path]) -> str:
    """The names of ``paths``, for a message."""
    return ", ".join(each.name for each in paths[:8]) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")


# ---- content


def is_hdf5(path: Path) -> bool:
    """Whether a file is weights in HDF5 as Caffe writes them: all in one group, or in two."""
    names = root_names(path)
    return "data" in names and names <= {"data", "diff"}


def _is_net(path: Path) -> bool:
    """Whether a text begins with fields of any name and comes to a layer: forks of Caffe have their own."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if b"\0" in head:
        return False
    stream = tokens(head.removeprefix(b"\xef\xbb\xbf").decode("latin-1"))
    depth = 0
    for token in stream:
        if token.kind in ("end", "wrong"):
            return False
        if depth:
            depth += (token.text in _OPENING) - (token.text in _CLOSING) if token.kind == "mark" else 0
            continue
        if token.kind != "word":
            return False
        opens = _value(stream)
        if opens is None:
            return False
        if token.text in ("layer", "layers"):
            return opens and _begins_layer(stream)
        depth = int(opens)
    return False


def _value(stream: Iterator[Token]) -> bool | None:
    """Pass ``: value`` or the brace that opens a message, which gives True; None for neither."""
    token = next(stream)
    colon = token.text == ":"
    if colon:
        token = next(stream)
    if token.kind == "mark":
        return True if token.text in _OPENING else None
    return False if colon and token.kind in ("word", "number", "string") else None


def _begins_layer(stream: Iterator[Token]) -> bool:
    name = next(stream)
    return (
        name.kind == "word"
        and (name.text in _LAYER_FIELDS or name.text.endswith("_param"))
        and next(stream).text in (":", "{", "<")
    )


def _is_weights(path: Path) -> bool:
    """Whether the first fields of a file are those of a net, up to a layer."""
    with mapped(path) as content:
        try:
            for field in itertools.islice(fields(content, 0, len(content)), _FIELDS_SEEN):
                if field.number in (2, 100):
                    return field.wire == LENGTH and _is_layer(content, field)
                if field.number not in (1, 3, 4, 5, 6, 7, 8):
                    return False
                if field.number == 1 and not _is_name(content, field):
                    return False
        except WireError:
            return False
    return False


def _is_layer(content: Buffer, outer: Field) -> bool:
    """Of V2 with a name and a type, of V1 with the number of a type, of V0 with a layer within."""
    seen: dict[int, Field] = {}
    for field in itertools.islice(fields(content, outer.start, outer.end), _FIELDS_SEEN):
        seen.setdefault(field.number, field)
    if outer.number == 100:
        return all(number in seen and _is_name(content, seen[number]) for number in (1, 2))
    if 1 in seen and seen[1].wire == LENGTH:
        within = itertools.islice(fields(content, seen[1].start, seen[1].end), _FIELDS_SEEN)
        inner = {field.number: field for field in within}
        return 2 in inner and _is_name(content, inner[2])
    return 4 in seen and _is_name(content, seen[4]) and 5 in seen and seen[5].wire == VARINT and seen[5].value < 100


def _is_name(content: Buffer, field: Field) -> bool:
    if field.wire != LENGTH or field.end - field.start > 1000:
        return False
    return bytes(content[field.start : field.end]).decode("latin-1").isprintable()

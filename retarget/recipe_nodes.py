"""Recipe text as a tree of nodes that know where they stand: the YAML half of reading a recipe.

``compose`` builds the tree from PyYAML's events, ``open_tree`` merges files that extend each other into one.
Scalars are those of YAML 1.2's core schema: ``1e-4`` is a number, ``on`` and ``no`` are text, ``1:8:32`` and
``2027-01-31`` are text. Tags, merge keys and anything that could run code are refused, aliases are bounded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

from retarget.errors import Problem, RecipeError, RetargetError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 20_000
"""After aliases are expanded: a few lines of nested aliases can stand for billions of nodes."""


# ---- nodes


@dataclass(frozen=True)
class File:
    """A recipe file. ``order`` is 0 for the recipe itself and grows with each file that it extends."""

    path: Path
    shown: str
    order: int = 0


@dataclass(frozen=True)
class Place:
    """Where a node stands: line and column count from 1."""

    file: File
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file.shown}:{self.line}:{self.column}"

    @property
    def folder(self) -> Path:
        """What a relative path written here is relative to."""
        return self.file.path.parent

    @property
    def order(self) -> tuple[int, int, int]:
        return self.file.order, self.line, self.column


@dataclass(frozen=True, eq=False)
class Scalar:
    """``value`` is the text of a quoted scalar, and what YAML 1.2 makes of a plain one."""

    place: Place
    text: str
    value: bool | int | float | str | None

    def __str__(self) -> str:
        if self.value is None:
            return "nothing"
        if isinstance(self.value, str):
            return f"'{short(self.value)}'"
        return f"the {'truth value' if isinstance(self.value, bool) else 'number'} {short(self.text)}"


@dataclass(frozen=True, eq=False)
class List:
    place: Place
    items: tuple[Node, ...]

    def __str__(self) -> str:
        return "a list"


@dataclass(frozen=True, eq=False)
class Map:
    """Key to (place of the key, value)."""

    place: Place
    entries: Mapping[str, tuple[Place, Node]]

    def __str__(self) -> str:
        return "a map"


Node: TypeAlias = Scalar | List | Map


def short(text: str, limit: int = 80) -> str:
    """``text`` as a part of one line."""
    text = text if text.isprintable() else text.encode("unicode_escape").decode()
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


# ---- text → nodes

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,1000}")
_OTHER_BASE = re.compile(r"0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def resolve(text: str) -> bool | int | float | str | None:
    """What a plain scalar stands for in YAML 1.2's core schema."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    if _OTHER_BASE.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def compose(text: str, file: File) -> tuple[Node, list[tuple[Place, Problem]]]:
    """The tree of the one document in ``text``, with the problems that do not stop the reading.

    Raises ``RecipeError`` for text that is no single YAML document.
    """
    composer = _Composer(text, file)
    return composer.document(), composer.problems


class _Composer:
    """Builds nodes from PyYAML's events: its parser is iterative, so depth and size are bounded before they hurt."""

    def __init__(self, text: str, file: File) -> None:
        self.text, self.file = text, file
        self.problems: list[tuple[Place, Problem]] = []
        self._events = self._parse()
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._nodes = 0

    def document(self) -> Node:
        next(self._events)  # the stream's start
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            raise self._stop(Place(self.file, 1, 1), "the file is empty", "`retarget init MODEL` writes a recipe")
        root = self._node(next(self._events), 0)
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._stop(self._place(event), "a second document starts here", "one file holds one recipe")
        return root

    def _parse(self) -> Iterator[yaml.Event]:
        try:
            yield from yaml.parse(self.text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = Place(self.file, mark.line + 1, mark.column + 1) if mark else Place(self.file, 1, 1)
            message = error.problem or error.context or "cannot be read as YAML"
            hint = "YAML does not take tabs there: indent with spaces" if "'\\t'" in message else None
            raise self._stop(place, message, hint) from error
        except yaml.reader.ReaderError as error:
            before = self.text[: error.position]
            place = Place(self.file, before.count("\n") + 1, len(before) - before.rfind("\n"))
            raise self._stop(place, f"character U+{ord(self.text[error.position]):04X} is not allowed") from error
        except (ValueError, OverflowError) as error:  # PyYAML's own int() and chr() of escapes and directives
            raise self._stop(Place(self.file, 1, 1), f"cannot be read as YAML: {error}") from error

    def _stop(self, place: Place, message: str, hint: str | None = None) -> RecipeError:
        return RecipeError([*(problem for _, problem in self.problems), Problem(str(place), message, hint)])

    def _place(self, event: yaml.Event) -> Place:
        mark = event.start_mark
        assert mark is not None
        return Place(self.file, mark.line + 1, mark.column + 1)

    def _say(self, place: Place, message: str, hint: str | None = None) -> None:
        self.problems.append((place, Problem(str(place), message, hint)))

    def _node(self, event: yaml.Event, depth: int) -> Node:
        place, before = self._place(event), self._nodes
        self._count(1, place)
        if depth > MAX_DEPTH:
            raise self._stop(place, f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._stop(place, f"alias '*{event.anchor}' stands for nothing that ends before it")
            node, size = self._anchors[event.anchor]
            self._count(size, place)
            return node
        node = self._collection_or_scalar(event, place, depth)
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            self._anchors[event.anchor] = node, self._nodes - before
        return node

    def _collection_or_scalar(self, event: yaml.Event, place: Place, depth: int) -> Node:
        tag: str | None = getattr(event, "tag", None)
        if tag is not None:
            self._say(place, f"tag '{short(tag)}' is not allowed", "recipes have no tags: remove it")
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(child := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(child, depth + 1))
            return List(place, tuple(items))
        if isinstance(event, yaml.MappingStartEvent):
            entries: dict[str, tuple[Place, Node]] = {}
            while not isinstance(child := next(self._events), yaml.MappingEndEvent):
                key = self._node(child, depth + 1)
                value = self._node(next(self._events), depth + 1)
                self._enter(entries, key, value)
            return Map(place, entries)
        assert isinstance(event, yaml.ScalarEvent)
        plain = event.style is None or event.style == ""
        return Scalar(place, event.value, resolve(event.value) if plain else event.value)

    def _enter(self, entries: dict[str, tuple[Place, Node]], key: Node, value: Node) -> None:
        if not isinstance(key, Scalar) or key.text == "":
            self._say(key.place, "a key must be a name" + ("" if isinstance(key, Scalar) else f", not {key}"))
        elif key.text == "<<":
            self._say(
                key.place, "merge keys are not part of YAML 1.2", "use `extends`, or an alias for the whole value"
            )
        elif key.text in entries:
            first = entries[key.text][0]
            self._say(key.place, f"duplicate key '{short(key.text)}'", f"it stands in line {first.line} already")
        else:
            entries[key.text] = key.place, value

    def _count(self, nodes: int, place: Place) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise self._stop(place, f"more than {MAX_NODES:,} values, aliases counted each time")


# ---- files


def parse_path(text: str, folder: Path) -> Path:
    """The absolute path that ``text`` means in a file in ``folder``. Raises ``RetargetError``.

    A leading ``~`` or ``~user`` is that home; what no user is called is the name of a file. Symbolic links are kept:
    the name that the user gave may carry the suffix that says what the file is.
    """
    if not text or "\0" in text:
        raise RetargetError("a path is empty" if not text else "a path contains a NUL character")
    return Path(os.path.abspath(folder / _expanded(text)))  # noqa: PTH100 - Path.resolve would follow links


def _expanded(text: str) -> str:
    return os.path.expanduser(text)  # noqa: PTH111 - Path's raises for the name of no user


def write_path(path: Path, folder: Path | None) -> str:
    """The inverse of ``parse_path``."""
    if folder is None:
        return str(path)
    text = os.path.relpath(path, os.path.abspath(folder))  # noqa: PTH100 - as parse_path reads it
    return f"./{text}" if text.startswith("~") else text


def open_tree(path: Path) -> tuple[Map, list[tuple[Place, Problem]]]:
    """The tree of the recipe at ``path`` with the files that it ``extends`` merged in, and problems so far.

    Maps merge deeply; lists and scalars of the file that extends replace those of the file that it extends. The key
    ``extends`` is in the tree only where what it names could not be read.
    Raises ``RecipeError`` when there is no tree at all.
    """
    problems: list[tuple[Place, Problem]] = []
    return _open(File(Path(os.path.abspath(path)), str(path)), (), problems), problems  # noqa: PTH100 - keep links


def _open(file: File, above: tuple[File, ...], problems: list[tuple[Place, Problem]]) -> Map:
    root, found = compose(_text(file), file)
    problems += found
    if not isinstance(root, Map):
        hint = "a recipe starts with `version: 1`; `retarget init MODEL` writes one"
        raise RecipeError([Problem(str(root.place), f"expected a map of keys, got {root}", hint)])
    if "extends" not in root.entries:
        return root
    own = {key: entry for key, entry in root.entries.items() if key != "extends"}
    node = root.entries["extends"][1]
    base = _base(node, file, (*above, file), problems)
    return root if base is None else Map(root.place, _merge(base.entries, own))


def _base(node: Node, file: File, chain: tuple[File, ...], problems: list[tuple[Place, Problem]]) -> Map | None:
    """The tree that ``extends`` names; a problem with it stands at the place of ``extends``."""

    def say(message: str, hint: str | None = None) -> None:
        problems.append((node.place, Problem(str(node.place), f"extends: {message}", hint)))

    if not isinstance(node, Scalar) or not isinstance(node.value, str):
        say(f"expected the path of a recipe, got {node}")
        return None
    try:
        path = parse_path(node.value, node.place.folder)
    except RetargetError as error:
        say(error.message, error.hint)
        return None
    if any(path == link.path for link in chain):
        say(f"'{short(node.value)}' extends this file in turn", "a chain of recipes must end")
        return None
    if len(chain) > MAX_DEPTH:
        say(f"more than {MAX_DEPTH} files extend each other")
        return None
    shown = os.path.normpath(Path(file.shown).parent / _expanded(node.value))
    try:
        return _open(File(path, shown, len(chain)), chain, problems)
    except _Unreadable as error:
        say(error.message, error.hint)
    except RecipeError as error:
        problems += [(node.place, problem) for problem in error.problems]
    return None


def _merge(
    base: Mapping[str, tuple[Place, Node]], own: Mapping[str, tuple[Place, Node]]
) -> dict[str, tuple[Place, Node]]:
    merged = dict(base)
    for key, (place, value) in own.items():
        below = merged[key][1] if key in merged else None
        if isinstance(value, Map) and isinstance(below, Map):
            value = Map(value.place, _merge(below.entries, value.entries))
        merged[key] = place, value
    return merged


class _Unreadable(RecipeError):
    """A file that cannot be opened or is no text."""

    def __init__(self, file: File, message: str, hint: str | None = None) -> None:
        super().__init__([Problem(file.shown, message, hint)])
        self.message, self.hint = message, hint

    def __reduce__(self) -> tuple[object, ...]:
        return RecipeError, (self.problems,)


def _text(file: File) -> str:
    try:
        with file.path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _Unreadable(
            file, f"there is no file '{file.shown}'", "`retarget init MODEL` writes a recipe to begin with"
        ) from None
    except IsADirectoryError:
        raise _Unreadable(file, f"'{file.shown}' is a folder", "name the recipe file in it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _Unreadable(file, f"cannot read '{short(file.shown)}': {reason}") from None
    if len(data) > MAX_BYTES:
        raise _Unreadable(file, f"'{file.shown}' is larger than {MAX_BYTES // 1024} KiB: that is no recipe")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _Unreadable(
            file,
            f"'{file.shown}' is not UTF-8 text: byte 0x{data[error.start]:02x} in line {line}",
            "a recipe is a YAML text; `retarget convert` takes a model without one",
        ) from None

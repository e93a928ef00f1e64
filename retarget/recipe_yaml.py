"""Recipe nodes read against msgspec Structs: one walk that collects every problem with its place.

msgspec itself stops at the first error and knows neither lines nor dict keys, so the walk is ours: ``Reader`` goes
through the nodes of ``recipe_nodes`` beside the type information that ``msgspec.inspect`` gives of the Structs.
"""

from __future__ import annotations

import datetime
import enum
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar, Final, Self, TypeAlias, TypeVar

import msgspec
from msgspec import inspect

from retarget.errors import Problem, RetargetError, did_you_mean
from retarget.recipe_nodes import List, Map, Node, Place, Scalar, parse_path, short, write_path

KeyPath: TypeAlias = tuple[str | int, ...]
T = TypeVar("T", bound=msgspec.Struct)


# ---- what a Struct says of how it is written


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything in a recipe that is written as a map."""

    bare: ClassVar[str | None] = None
    """The field that a bare scalar stands for: ``samples: a.npz`` is ``samples: {path: a.npz}``."""
    keyed: ClassVar[bool] = False
    """Written as ``name`` or ``{name: {...}}``: the key is the field ``name``, what is no field goes to ``options``."""
    repeats: ClassVar[bool] = False
    """For a keyed Struct: whether a list may hold a name twice."""

    @classmethod
    def options_type(cls, name: str, values: dict[str, object]) -> type[msgspec.Struct] | None:
        """For a keyed Struct: the type of ``options``, None for any JSON. May complete ``values``.

        Raises ``RetargetError`` when there is no such name.
        """
        raise NotImplementedError(cls.__name__)


class Written(msgspec.Struct, frozen=True):
    """Base of what is written as one text."""

    form: ClassVar[str]
    """The text's form in words, for messages."""
    pattern: ClassVar[str]
    """The text's form as a regular expression, for the schema."""

    @classmethod
    def parse(cls, text: str, folder: Path) -> Self:
        """The value that ``text`` stands for in a file in ``folder``. Raises ``RetargetError``."""
        raise NotImplementedError(cls.__name__)

    def written(self, folder: Path | None) -> str:
        """The inverse of ``parse``; paths stay absolute when ``folder`` is None."""
        raise NotImplementedError(type(self).__name__)


class TextFile(Written, frozen=True):
    """A text file that stands for its lines. Whoever is told of a step's options is given these."""

    form: ClassVar[str] = "a path"
    pattern: ClassVar[str] = "."

    file: Path

    @classmethod
    def parse(cls, text: str, folder: Path) -> Self:
        return cls(parse_path(text, folder))

    def written(self, folder: Path | None) -> str:
        return write_path(self.file, folder)

    def lines(self) -> tuple[str, ...]:
        """Its lines, but for empty ones at the end. Raises ``RetargetError`` for what is no text in UTF-8."""
        try:
            return tuple(line.strip() for line in self.file.read_text(encoding="utf-8").rstrip().splitlines())
        except UnicodeDecodeError as error:
            raise RetargetError(f"{self.file}: is not text in UTF-8", "save it in that encoding") from error


# ---- nodes → Structs


class Bad(enum.Enum):
    """Stands for a value that could not be read: its problem has been said."""

    BAD = "bad"


BAD: Final = Bad.BAD


@cache
def struct_type(cls: type[msgspec.Struct]) -> inspect.StructType:
    """The type information of a Struct."""
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return info


def render(path: KeyPath) -> str:
    """``targets[2].variants``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


@dataclass
class Reader:
    """Walks nodes beside types. Problems are collected, a bad value falls back to its field's default."""

    problems: list[tuple[Place, Problem]] = field(default_factory=list)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    names: dict[KeyPath, set[str]] = field(default_factory=dict)
    """For each list of keyed Structs, all names that stand in it, those of unreadable entries too."""
    whole: bool = True
    """False where keys that are missing may stand in a file that could not be read."""

    def say(self, place: Place, path: KeyPath, message: str, hint: str | None = None) -> None:
        where = short(render(path))
        message = short(message, 300)  # it may quote what the file says at any length
        self.problems.append((place, Problem(str(place), f"{where}: {message}" if where else message, hint)))

    def struct(self, node: Node, cls: type[T], path: KeyPath = ()) -> T | Bad:
        """``node`` as a ``cls``."""
        value = self.read(node, struct_type(cls), path)
        assert isinstance(value, (cls, Bad))
        return value

    def read(self, node: Node, kind: inspect.Type, path: KeyPath) -> object:
        """The value of ``node`` as type ``kind``, or ``BAD``."""
        self.places.setdefault(path, node.place)
        match kind:
            case inspect.Metadata():
                return self.read(node, kind.type, path)
            case inspect.UnionType():
                return self._union(node, kind, path)
            case inspect.StructType():
                return self._struct(node, kind, path)
            case inspect.DictType():
                return self._dict(node, kind, path)
            case inspect.ListType() | inspect.VarTupleType():
                return self._list(node, kind, path)
            case inspect.CustomType(cls=cls) if cls is object:
                return self._json(node, path)
        return self._scalar(node, kind, path)

    # ---- scalars

    def _scalar(self, node: Node, kind: inspect.Type, path: KeyPath) -> object:
        if not isinstance(node, Scalar):
            return self._expected(node, kind, path)
        value = node.value
        match kind:
            case inspect.NoneType():
                return None if value is None else self._expected(node, kind, path)
            case inspect.BoolType():
                if isinstance(value, bool):
                    return value
                hint = "write true or false" if str(value).lower() in {"yes", "no", "on", "off"} else None
                return self._expected(node, kind, path, hint)
            case inspect.IntType():
                if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
                    return self._expected(node, kind, path)
                return self._bounded(node, value, kind, path)
            case inspect.FloatType():
                number = _finite(value)
                return self._expected(node, kind, path) if number is None else self._bounded(node, number, kind, path)
            case inspect.LiteralType():
                if value in kind.values:
                    return value
                return self._expected(node, kind, path, _near(node.text, map(str, kind.values)))
        return self._text(node, kind, path)

    def _text(self, node: Scalar, kind: inspect.Type, path: KeyPath) -> object:
        value = node.value
        if not isinstance(value, str):
            numeric = value is not None and short(node.text) == node.text
            return self._expected(node, kind, path, f'write "{node.text}" in quotes' if numeric else None)
        match kind:
            case inspect.StrType():
                if kind.pattern is not None and not re.search(kind.pattern, value):
                    self.say(node.place, path, f"{node} does not have the form {kind.pattern}")
                elif kind.min_length is not None and len(value) < kind.min_length:
                    self.say(node.place, path, "the text is empty")
                else:
                    return value
                return BAD
            case inspect.DateType():
                try:
                    return datetime.date.fromisoformat(value)
                except ValueError:
                    return self._expected(node, kind, path, "write YEAR-MONTH-DAY, as in 2027-01-31")
            case inspect.CustomType(cls=cls) if cls is Path:
                return self._try(node, path, lambda: parse_path(value, node.place.folder))
            case inspect.StructType(cls=cls) if issubclass(cls, Written):
                return self._try(node, path, lambda: cls.parse(value, node.place.folder))
        raise TypeError(f"a recipe cannot hold {kind}")

    def _try(self, node: Node, path: KeyPath, make: Callable[[], object]) -> object:
        """What ``make`` gives; a refusal of it is said."""
        try:
            return make()
        except RetargetError as error:
            self.say(node.place, path, error.message, error.hint)
        except ValueError as error:
            self.say(node.place, path, str(error))
        return BAD

    def _bounded(
        self, node: Scalar, value: float, kind: inspect.IntType | inspect.FloatType, path: KeyPath
    ) -> float | Bad:
        bounds = (
            (kind.ge, "at least", operator.ge),
            (kind.gt, "more than", operator.gt),
            (kind.le, "at most", operator.le),
            (kind.lt, "less than", operator.lt),
        )
        for bound, relation, holds in bounds:
            if bound is not None and not holds(value, bound):
                self.say(node.place, path, f"must be {relation} {bound:g}, got {node.text}")
                return BAD
        return value

    def _expected(self, node: Node, kind: inspect.Type, path: KeyPath, hint: str | None = None) -> Bad:
        self.say(node.place, path, f"expected {words(kind)}, got {node}", hint)
        return BAD

    def _json(self, node: Node, path: KeyPath) -> object:
        """Any value without types of its own: options that are checked by whoever takes them."""
        if isinstance(node, Map):
            return {key: self._json(value, (*path, key)) for key, (_, value) in node.entries.items()}
        if isinstance(node, List):
            return [self._json(item, (*path, i)) for i, item in enumerate(node.items)]
        value = node.value
        if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
            return self._expected(node, inspect.IntType(), path)
        if isinstance(value, float) and not math.isfinite(value):
            return self._expected(node, inspect.FloatType(), path)
        return value

    # ---- collections

    def _union(self, node: Node, kind: inspect.UnionType, path: KeyPath) -> object:
        types = [plain(option) for option in kind.types]
        structs = [option for option in types if isinstance(option, inspect.StructType) and not _is_text(option)]
        if isinstance(node, Scalar) and node.value is None:
            optional = any(isinstance(option, inspect.NoneType) for option in types)
            # `accuracy:` with nothing behind it is an unfinished map, `accuracy: null` says that there is none
            if optional and (node.text != "" or not structs):
                return None
            if structs:
                return self.read(node, structs[0], path)
        candidates = [option for option in types if _takes(node, option)]
        for option in candidates:
            trial = Reader()
            trial.read(node, option, path)
            if len(candidates) == 1 or not trial.problems:
                return self.read(node, option, path)
        return self._expected(node, kind, path)

    def _dict(self, node: Node, kind: inspect.DictType, path: KeyPath) -> object:
        if isinstance(node, Scalar) and node.value is None:
            return {}
        if not isinstance(node, Map):
            return self._expected(node, kind, path)
        values = {}
        for key, (place, child) in node.entries.items():
            self.places[*path, key] = place  # what is wrong with an entry is most often its name
            value = self.read(child, kind.value_type, (*path, key))
            if value is not BAD:
                values[key] = value
        return values

    def _list(self, node: Node, kind: inspect.ListType | inspect.VarTupleType, path: KeyPath) -> object:
        if not isinstance(node, List):
            return self._expected(node, kind, path, "write [..]" if isinstance(node, Scalar) else None)
        if kind.min_length is not None and len(node.items) < kind.min_length:
            self.say(node.place, path, "the list is empty")
            return BAD
        item_type = plain(kind.item_type)
        if isinstance(item_type, inspect.StructType) and issubclass(item_type.cls, Settings) and item_type.cls.keyed:
            items = self._keyed_list(node, item_type, path)
        else:
            items = [self.read(item, kind.item_type, (*path, i)) for i, item in enumerate(node.items)]
        good = [item for item in items if item is not BAD]
        return tuple(good) if isinstance(kind, inspect.VarTupleType) else good

    def _keyed_list(self, node: List, kind: inspect.StructType, path: KeyPath) -> list[object]:
        cls = kind.cls
        assert issubclass(cls, Settings)
        seen: dict[str, Place] = {}
        items: list[object] = []
        for i, item in enumerate(node.items):
            here = (*path, i)
            self.places[here] = item.place
            entry = _entry(item)
            if entry is None:
                hint = "settings stand one level deeper than the name: `- name: {key: value}`"
                self.say(
                    item.place, here, f"expected a name or exactly one `name: settings`, got {_counted(item)}", hint
                )
                continue
            place, name, body = entry
            # on a case-insensitive file system two names that differ in case are one folder
            first = seen.setdefault(name.casefold(), place)
            if first is not place and not cls.repeats:
                self.say(place, here, f"duplicate '{short(name)}'", f"it stands in line {first.line} already")
                continue
            self.names.setdefault(path, set()).add(name)
            items.append(self._keyed(place, name, body, kind, here))
        return items

    def _keyed(self, place: Place, name: str, body: Node, kind: inspect.StructType, path: KeyPath) -> object:
        cls = kind.cls
        assert issubclass(cls, Settings)
        if isinstance(body, Scalar) and body.value is None:
            body = Map(place, {})
        if not isinstance(body, Map):
            return self._expected(body, kind, path, "write `- name: {key: value}`")
        own = [item for item in kind.fields if item.name not in {"name", "options"}]
        keys = {item.encode_name for item in own}
        values = self.fields(Map(body.place, {k: v for k, v in body.entries.items() if k in keys}), own, path)
        name_type = next(item.type for item in kind.fields if item.name == "name")
        if (name_value := self.read(Scalar(place, name, name), name_type, path)) is BAD:
            return BAD
        whole = _whole(body, own, values)
        try:
            options_type = cls.options_type(name, values)
        except RetargetError as error:
            if whole:
                self.say(place, path, error.message, error.hint)
            return BAD
        rest = Map(body.place, {key: entry for key, entry in body.entries.items() if key not in keys})
        options: object
        if options_type is None:
            options = self._json(rest, path)
        else:
            options = self._struct(rest, struct_type(options_type), path, known=keys)
        return (
            BAD if options is BAD else self._build(body, kind, {**values, "name": name_value, "options": options}, path)
        )

    def _struct(self, node: Node, kind: inspect.StructType, path: KeyPath, known: Iterable[str] = ()) -> object:
        """``known``: keys beside the fields that may stand in the same map, for hints."""
        if _is_text(kind):
            return self._scalar(node, kind, path)
        cls: type[msgspec.Struct] = kind.cls
        bare = cls.bare if issubclass(cls, Settings) else None
        if isinstance(node, Scalar) and node.value is None:
            node = Map(node.place, {})
        elif isinstance(node, Scalar) and bare is not None:
            node = Map(node.place, {bare: (node.place, node)})
        if not isinstance(node, Map):
            return self._expected(node, kind, path)
        return self._build(node, kind, self.fields(node, kind.fields, path, known=known), path)

    def fields(
        self,
        node: Map,
        fields: Sequence[inspect.Field],
        path: KeyPath,
        *,
        known: Iterable[str] = (),
    ) -> dict[str, object]:
        """Values of those fields that stand in ``node`` and could be read.

        ``known``: keys that may stand beside the fields, for hints.
        """
        by_key = {item.encode_name: item for item in fields}
        values: dict[str, object] = {}
        for key, (place, child) in node.entries.items():
            here = (*path, key)
            if key in by_key:
                value = self.read(child, by_key[key].type, here)
                if value is not BAD:
                    values[by_key[key].name] = value
            elif key not in known:
                names = {*by_key, *known}
                hint = did_you_mean(key, names) if names else "there are no keys here"
                self.say(place, here, "unknown key", hint)
        for key, item in by_key.items():
            if item.required and key not in node.entries and self.whole:
                self.say(node.place, (*path, key), "this key is missing")
        return values

    def place(self, path: KeyPath) -> Place:
        """Where ``path`` stands, or the innermost thing around it that the file holds."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def _build(self, node: Map, kind: inspect.StructType, values: Mapping[str, object], path: KeyPath) -> object:
        if any(item.required and item.name not in values for item in kind.fields):
            return BAD
        cls: Callable[..., msgspec.Struct] = kind.cls
        try:
            return cls(**values)
        except RetargetError as error:
            if _whole(node, kind.fields, values):
                self.say(node.place, path, error.message, error.hint)
        except ValueError as error:
            if _whole(node, kind.fields, values):
                self.say(node.place, path, str(error))
        return BAD


def plain(kind: inspect.Type) -> inspect.Type:
    """``kind`` without its description."""
    return plain(kind.type) if isinstance(kind, inspect.Metadata) else kind


def words(kind: inspect.Type) -> str:
    """A type as a user knows it."""
    match kind:
        case inspect.Metadata():
            return words(kind.type)
        case inspect.UnionType():
            parts = list(dict.fromkeys(words(option) for option in kind.types if option != inspect.NoneType()))
            return " or ".join(parts)
        case inspect.LiteralType():
            values = [str(value) for value in kind.values]
            return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
        case inspect.StructType(cls=cls) if issubclass(cls, Written):
            return str(cls.form)
        case inspect.StructType() | inspect.DictType():
            return "a map"
        case inspect.ListType() | inspect.VarTupleType():
            return "a list"
        case inspect.CustomType(cls=cls) if cls is Path:
            return "a path"
    return _WORDS[type(kind)]


_WORDS: dict[type[inspect.Type], str] = {
    inspect.NoneType: "nothing",
    inspect.BoolType: "true or false",
    inspect.IntType: "a whole number",
    inspect.FloatType: "a number",
    inspect.StrType: "text",
    inspect.DateType: "a date",
}


def _whole(node: Map, fields: Sequence[inspect.Field], values: Mapping[str, object]) -> bool:
    """Whether all that ``node`` gives could be read: if not, a later problem may be the echo of one that was said."""
    return all(item.name in values for item in fields if item.encode_name in node.entries)


def _is_text(kind: inspect.StructType) -> bool:
    return issubclass(kind.cls, Written)


def _takes(node: Node, kind: inspect.Type) -> bool:
    """Whether a node of this shape can stand for ``kind`` at all."""
    struct = isinstance(kind, inspect.StructType)
    text = isinstance(kind, inspect.StructType) and _is_text(kind)
    if isinstance(node, Map):
        return isinstance(kind, inspect.DictType) or (struct and not text)
    if isinstance(node, List):
        return isinstance(kind, inspect.ListType | inspect.VarTupleType)
    if isinstance(kind, inspect.StructType) and not text:
        return issubclass(kind.cls, Settings) and kind.cls.bare is not None
    return not isinstance(kind, inspect.DictType | inspect.ListType | inspect.VarTupleType | inspect.NoneType)


def _entry(item: Node) -> tuple[Place, str, Node] | None:
    """(place, name, settings) of an item of a keyed list."""
    if isinstance(item, Scalar) and item.value is not None:
        return item.place, item.text, Map(item.place, {})
    if isinstance(item, Map) and len(item.entries) == 1:
        ((name, (place, body)),) = item.entries.items()
        return place, name, body
    return None


def _counted(item: Node) -> str:
    return f"{len(item.entries)} keys" if isinstance(item, Map) else str(item)


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return None
    return float(value) if math.isfinite(value) else None


def _near(text: str, names: Iterable[str]) -> str | None:
    hint = did_you_mean(text, names)
    return hint if hint.startswith("did you mean") else None

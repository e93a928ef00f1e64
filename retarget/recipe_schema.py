"""The recipe's JSON Schema, out of the same Structs that ``recipe`` reads: what an editor completes and checks.

``msgspec.json.schema`` knows neither the lists of one-key maps nor that a target's options depend on its name,
so the schema is made by a walk over the same type information as the reader's. Keys that are not there yet are left
out. ``docs/recipe.schema.json`` is ``text()``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from msgspec import inspect

from retarget import catalog
from retarget.protocols import JSON
from retarget.recipe import SETTINGS, Model, PassEntry, Recipe, TargetEntry, Variant
from retarget.recipe_yaml import Settings, Written, plain, struct_type

Schema: TypeAlias = "dict[str, JSON]"


def schema() -> Schema:
    """JSON Schema 2020-12 of a recipe. Imports the light half of every frontend and target."""
    walk = _Walk()
    recipe = walk.object(struct_type(Recipe).fields)
    properties = recipe["properties"]
    assert isinstance(properties, dict)
    extends: Schema = {
        "type": "string",
        "minLength": 1,
        "description": "A recipe whose keys hold where this one says nothing: maps merge deeply, lists replace.",
    }
    required = recipe.pop("required")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "retarget recipe",
        **recipe,
        "properties": {"extends": extends, **properties},
        # what a recipe extends may bring what is required
        "anyOf": [{"required": ["extends"]}, {"required": required}],
        "$defs": dict(sorted(walk.definitions.items())),
    }


def text() -> str:
    """The schema as the file in docs holds it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


class _Walk:
    """Types to schemas; each Struct becomes a definition, once."""

    def __init__(self) -> None:
        self.definitions: Schema = {}

    def of(self, kind: inspect.Type) -> Schema:
        match kind:
            case inspect.Metadata():
                return {**self.of(kind.type), **(kind.extra_json_schema or {})}
            case inspect.UnionType():
                return {"anyOf": [self.of(option) for option in kind.types]}
            case inspect.StructType(cls=cls) if issubclass(cls, Written):
                return {"type": "string", "pattern": cls.pattern}
            case inspect.StructType():
                return self._struct(kind)
            case inspect.DictType():
                return {"type": ["object", "null"], "additionalProperties": self.of(kind.value_type)}
            case inspect.ListType() | inspect.VarTupleType():
                items: Schema = {"type": "array", "items": self.of(kind.item_type)}
                return items if kind.min_length is None else {**items, "minItems": kind.min_length}
        return _scalar(kind)

    def object(self, fields: Iterable[inspect.Field], extra: Iterable[inspect.Field] = ()) -> Schema:
        """A map of ``fields``; null stands for an empty one where nothing is required."""
        both = [*fields, *extra]
        result: Schema = {
            "type": "object",
            "properties": {field.encode_name: self._field(field) for field in both},
            "additionalProperties": False,
        }
        required: list[JSON] = [field.encode_name for field in both if field.required]
        return {**result, "required": required} if required else {**result, "type": ["object", "null"]}

    def _field(self, field: inspect.Field) -> Schema:
        default = field.default
        simple = isinstance(default, bool | int | float | str)
        return {**self.of(field.type), "default": default} if simple else self.of(field.type)

    def _struct(self, kind: inspect.StructType) -> Schema:
        name = kind.cls.__name__
        if not issubclass(kind.cls, Settings):  # a part of some target's options, whose name another may also use
            return self.object(kind.fields)
        if name not in self.definitions:
            self.definitions[name] = {}  # holds the place of a Struct that holds itself
            self.definitions[name] = self._definition(kind)
        return {"$ref": f"#/$defs/{name}"}

    def _definition(self, kind: inspect.StructType) -> Schema:
        if kind.cls is TargetEntry:
            return self._targets(kind)
        if kind.cls is PassEntry:
            return _one_key({name: {"type": ["object", "null"]} for name in catalog.PASSES})
        if kind.cls is Variant:
            return self._variants(kind)
        written = self.object(kind.fields)
        doc = (kind.cls.__doc__ or "").strip()
        if kind.cls is Model:
            written = {**written, "allOf": [self._frontend(name) for name in catalog.FRONTENDS]}
            properties = written["properties"]
            assert isinstance(properties, dict)
            properties["format"] = {"enum": list(catalog.FRONTENDS), "description": "The frontend that reads it."}
        assert issubclass(kind.cls, Settings)
        name = kind.cls.bare
        if name is None:
            return {"description": doc, **written}
        bare = next(field for field in kind.fields if field.name == name)
        return {"description": doc, "anyOf": [self.of(plain(bare.type)), written]}

    def _frontend(self, name: str) -> Schema:
        """``options`` are those of the frontend that ``format`` names."""
        options = self.object(struct_type(catalog.frontend(name).Options).fields)
        named: Schema = {"properties": {"format": {"const": name}}, "required": ["format"]}
        return {"if": named, "then": {"properties": {"options": options}}}

    def _targets(self, kind: inspect.StructType) -> Schema:
        own = _settings(kind)
        return _one_key(
            {name: self.object(own, struct_type(catalog.target(name).Options).fields) for name in catalog.TARGETS}
        )

    def _variants(self, kind: inspect.StructType) -> Schema:
        """A name that is a precision has it and need not say so; any other name must."""
        own = _settings(kind)
        by_name: Schema = {}
        named: list[JSON] = []
        for precision, settings in SETTINGS.items():
            fields = self.object(own, struct_type(settings).fields)
            properties = fields["properties"]
            assert isinstance(properties, dict)
            fixed: Schema = {**fields, "properties": {**properties, "precision": {"const": precision}}}
            by_name[precision] = fixed
            named.append({**fixed, "type": "object", "required": ["precision"]})
        result = _one_key(by_name)
        options = result["anyOf"]
        assert isinstance(options, list)
        maps = options[1]
        assert isinstance(maps, dict)
        name_type = next(field.type for field in kind.fields if field.name == "name")
        maps |= {"propertyNames": self.of(name_type), "additionalProperties": {"anyOf": named}}
        return result


def _settings(kind: inspect.StructType) -> list[inspect.Field]:
    """The fields of a keyed Struct that are written inside its settings."""
    return [field for field in kind.fields if field.name not in {"name", "options"}]


def _one_key(settings: Mapping[str, JSON]) -> Schema:
    """``name``, or a map of exactly one name to its settings."""
    names: list[JSON] = list(settings)
    one: Schema = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": dict(settings),
        "additionalProperties": False,
    }
    return {"anyOf": [{"enum": names}, one]}


def _scalar(kind: inspect.Type) -> Schema:
    match kind:
        case inspect.IntType() | inspect.FloatType():
            number: Schema = {"type": "integer" if isinstance(kind, inspect.IntType) else "number"}
            bounds = {
                "minimum": kind.ge,
                "exclusiveMinimum": kind.gt,
                "maximum": kind.le,
                "exclusiveMaximum": kind.lt,
            }
            return {**number, **{name: bound for name, bound in bounds.items() if bound is not None}}
        case inspect.StrType():
            limits = {"pattern": kind.pattern, "minLength": kind.min_length}
            return {"type": "string", **{name: limit for name, limit in limits.items() if limit is not None}}
        case inspect.LiteralType():
            return {"enum": list(kind.values)}
        case inspect.CustomType(cls=cls) if cls is Path:
            return {"type": "string", "minLength": 1}
        case inspect.CustomType(cls=cls) if cls is object:
            return {}
    return dict(_SCALARS[type(kind)])


_SCALARS: dict[type[inspect.Type], Schema] = {
    inspect.NoneType: {"type": "null"},
    inspect.BoolType: {"type": "boolean"},
    inspect.DateType: {"type": "string", "format": "date"},
}

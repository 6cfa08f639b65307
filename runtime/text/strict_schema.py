"""`strict` of OpenAI's interface: objects of a JSON schema hold nothing but what it names."""

from collections.abc import Iterator, Mapping
from typing import Any

_STATED = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_ALTERNATIVES = ("anyOf", "oneOf")
# Keywords that say what properties there are.
_SOURCES = ("properties", "allOf", *_ALTERNATIVES, "$ref", *_STATED)
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
MAX_VISITS = 20_000  # of schemas and names, about 1 µs each; references may ask for any number


def closed(schema: Mapping[str, Any], keeps_unnamed: bool = False) -> dict[str, Any]:
    """A copy of a schema in which every object that does not say so itself takes no properties but
    those it names: inside arrays, alternatives and definitions too.

    An object says so itself by "additionalProperties", "patternProperties" or
    "unevaluatedProperties". A schema that names no properties and no type stays any JSON. Where
    several schemas hold for one object (allOf, or properties beside anyOf or $ref), it takes what
    any of them names. keeps_unnamed: objects of which no property is named stay open. Raises
    ValueError where that takes too long, RecursionError where nesting is too deep.
    """
    return _Closing(schema, keeps_unnamed).run()


class _Closing:
    def __init__(self, root: Mapping[str, Any], keeps_unnamed: bool) -> None:
        self._root = root
        self._keeps_unnamed = keeps_unnamed
        self._open_names: dict[str, str] = {}  # of definitions, by the $ref to what they copy
        self._open_schemas: dict[str, Any] = {}
        self._num_visits = 0

    def run(self) -> dict[str, Any]:
        result: dict[str, Any] = self._whole(self._root)
        if self._open_schemas:
            result["$defs"] = {**result.get("$defs", {}), **self._open_schemas}
        return result

    def _whole(self, schema: Any) -> Any:
        """What is all that a value has to match."""
        if not isinstance(schema, Mapping):
            return schema
        sources = [key for key in _SOURCES if key in schema]
        if sources == ["$ref"]:  # the target is closed where it stands
            return self._with_inner_closed(schema)
        if sources in (["anyOf"], ["oneOf"]):
            alternatives = _each(schema[sources[0]], self._whole)
            return {**self._with_inner_closed(schema), sources[0]: alternatives}
        result = self._part(schema)
        parts = [*self._parts(schema, set())]
        if not any(map(_is_object, parts)) or any(key in part for part in parts for key in _STATED):
            return result
        names = {name: True for part in parts for name in _properties(part)}
        self._count(sum(len(_properties(part)) for part in parts))
        if not names and self._keeps_unnamed and not any("properties" in each for each in parts):
            return result
        if names:
            result["properties"] = {**names, **_properties(result)}
        return {**result, "additionalProperties": False}

    def _part(self, schema: Any) -> Any:
        """What is one of several schemas for an object, which stays open."""
        if not isinstance(schema, Mapping):
            return schema
        result = self._with_inner_closed(schema)
        for key in ("allOf", *_ALTERNATIVES):
            if key in schema:
                result[key] = _each(schema[key], self._part)
        if "$ref" in schema:
            result["$ref"] = self._open_reference(schema["$ref"])
        return result

    def _with_inner_closed(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """A copy in which what lies inside the value is closed."""
        result = dict(schema)
        for key in _NAMED_SCHEMAS:
            if isinstance(schema.get(key), Mapping):
                result[key] = {name: self._whole(each) for name, each in schema[key].items()}
        for key in ("items", "prefixItems", "additionalProperties"):
            if key in schema:
                result[key] = _each(schema[key], self._whole)
        return result

    def _parts(self, schema: Any, seen: set[str]) -> Iterator[Mapping[str, Any]]:
        """A schema, and those that hold, or may hold, for the same value."""
        if not isinstance(schema, Mapping):
            return
        self._count(1)
        yield schema
        for key in ("allOf", *_ALTERNATIVES):
            if isinstance(schema.get(key), list):
                for each in schema[key]:
                    yield from self._parts(each, seen)
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen.add(reference)
            yield from self._parts(self._target(reference), seen)

    def _count(self, num_visits: int) -> None:
        self._num_visits += num_visits
        if self._num_visits > MAX_VISITS:
            raise ValueError(
                "its references, allOf, anyOf and oneOf lead to more than "
                f"{MAX_VISITS} schemas and names; use fewer"
            )

    def _open_reference(self, reference: Any) -> Any:
        """A $ref to a copy of the target that stays open; unchanged if there is no target."""
        target = self._target(reference)
        if not isinstance(target, Mapping):
            return reference
        if reference not in self._open_names:
            name = f"open-{len(self._open_names)}"
            while name in self._root.get("$defs", {}):
                name += "-"
            self._open_names[reference] = name
            self._open_schemas[name] = self._part(target)
        return f"#/$defs/{self._open_names[reference]}"

    def _target(self, reference: Any) -> Any:
        """What a $ref into this schema points at; None if there is nothing."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        place: Any = self._root
        for step in reference[1:].split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, Mapping):
                place = place.get(name)
            elif isinstance(place, list) and name.isdecimal() and int(name) < len(place):
                place = place[int(name)]
            else:
                return None
        return place


def _each(value: Any, change: Any) -> Any:
    return [change(each) for each in value] if isinstance(value, list) else change(value)


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _is_object(schema: Mapping[str, Any]) -> bool:
    types = schema.get("type")
    return "properties" in schema or types == "object" or "object" in _listed(types)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

"""The option `strict` of OpenAI's interface: objects may only have properties that are named."""

from collections.abc import Iterator, Mapping
from typing import Any

_STATED = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_ALTERNATIVES = ("anyOf", "oneOf")
# Keywords that determine the properties of an object.
_SOURCES = ("properties", "allOf", *_ALTERNATIVES, "$ref", *_STATED)
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
MAX_VISITS = 20_000  # of schemas and names, about 1 µs each; references may multiply them


def close_objects(schema: Mapping[str, Any], keeps_unnamed: bool = False) -> dict[str, Any]:
    """Return a copy of a schema in which objects only have the properties that it names.

    That includes objects in arrays, alternatives and definitions. Objects with
    "additionalProperties", "patternProperties" or "unevaluatedProperties" stay unchanged. A schema
    that names neither properties nor a type still allows any JSON. If several schemas apply to one
    object (allOf, or properties together with anyOf or $ref), it may have the properties that any
    of them names.

    Args:
        schema: A JSON schema.
        keeps_unnamed: Whether objects without any named property stay open.

    Raises:
        ValueError: If references lead to more than `MAX_VISITS` schemas and names.
        RecursionError: If the schema is nested too deeply.
    """
    return _Closing(schema, keeps_unnamed).run()


class _Closing:
    def __init__(self, root: Mapping[str, Any], keeps_unnamed: bool) -> None:
        self._root = root
        self._keeps_unnamed = keeps_unnamed
        self._open_names: dict[str, str] = {}  # names of definitions, by the $ref to the original
        self._open_schemas: dict[str, Any] = {}
        self._num_visits = 0

    def run(self) -> dict[str, Any]:
        result: dict[str, Any] = self._close_whole(self._root)
        if self._open_schemas:
            result["$defs"] = {**result.get("$defs", {}), **self._open_schemas}
        return result

    def _close_whole(self, schema: Any) -> Any:
        """Close a schema that alone determines a value."""
        if not isinstance(schema, Mapping):
            return schema
        sources = [key for key in _SOURCES if key in schema]
        if sources == ["$ref"]:  # the target is closed where it is defined
            return self._close_inner(schema)
        if sources in (["anyOf"], ["oneOf"]):
            alternatives = _map_schemas(schema[sources[0]], self._close_whole)
            return {**self._close_inner(schema), sources[0]: alternatives}
        result = self._close_part(schema)
        parts = [*self._related_schemas(schema, set())]
        if not any(map(_is_object, parts)) or any(key in part for part in parts for key in _STATED):
            return result
        names = {name: True for part in parts for name in _properties(part)}
        self._count(sum(len(_properties(part)) for part in parts))
        if not names and self._keeps_unnamed and not any("properties" in each for each in parts):
            return result
        if names:
            result["properties"] = {**names, **_properties(result)}
        return {**result, "additionalProperties": False}

    def _close_part(self, schema: Any) -> Any:
        """Close the inside of a schema that is one of several for an object, but not itself."""
        if not isinstance(schema, Mapping):
            return schema
        result = self._close_inner(schema)
        for key in ("allOf", *_ALTERNATIVES):
            if key in schema:
                result[key] = _map_schemas(schema[key], self._close_part)
        if "$ref" in schema:
            result["$ref"] = self._open_reference(schema["$ref"])
        return result

    def _close_inner(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy in which the schemas of inner values are closed."""
        result = dict(schema)
        for key in _NAMED_SCHEMAS:
            if isinstance(schema.get(key), Mapping):
                result[key] = {name: self._close_whole(each) for name, each in schema[key].items()}
        for key in ("items", "prefixItems", "additionalProperties"):
            if key in schema:
                result[key] = _map_schemas(schema[key], self._close_whole)
        return result

    def _related_schemas(self, schema: Any, seen: set[str]) -> Iterator[Mapping[str, Any]]:
        """Yield a schema and all others that apply, or may apply, to the same value."""
        if not isinstance(schema, Mapping):
            return
        self._count(1)
        yield schema
        for key in ("allOf", *_ALTERNATIVES):
            if isinstance(schema.get(key), list):
                for each in schema[key]:
                    yield from self._related_schemas(each, seen)
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen.add(reference)
            yield from self._related_schemas(self._target(reference), seen)

    def _count(self, num_visits: int) -> None:
        self._num_visits += num_visits
        if self._num_visits > MAX_VISITS:
            raise ValueError(
                "its references, allOf, anyOf and oneOf lead to more than "
                f"{MAX_VISITS} schemas and names; use fewer"
            )

    def _open_reference(self, reference: Any) -> Any:
        """Return a $ref to an open copy of the target; unchanged if there is no target."""
        target = self._target(reference)
        if not isinstance(target, Mapping):
            return reference
        if reference not in self._open_names:
            name = f"open-{len(self._open_names)}"
            while name in self._root.get("$defs", {}):
                name += "-"
            self._open_names[reference] = name
            self._open_schemas[name] = self._close_part(target)
        return f"#/$defs/{self._open_names[reference]}"

    def _target(self, reference: Any) -> Any:
        """Return the target of a $ref into this schema, or None."""
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


def _map_schemas(value: Any, change: Any) -> Any:
    return [change(each) for each in value] if isinstance(value, list) else change(value)


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _is_object(schema: Mapping[str, Any]) -> bool:
    types = schema.get("type")
    return "properties" in schema or types == "object" or "object" in _as_list(types)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

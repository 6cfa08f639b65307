"""Limits for grammars, and the test for grammars that are known to be cheap."""

import json
from collections.abc import Mapping
from typing import Any

MAX_CHARACTERS = 1 << 16  # per grammar
# Limits of llguidance. With 49152 tokens the grammars in use (tests/support/usual_grammars.py) also
# work at a third of each limit. "step_max_items" grows with the number of tokens: with 200000 they
# need half of it.
LIMITS: Mapping[str, Any] = {
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 100_000,
    "max_lexer_states": 250_000,  # of about 0.5 kB each; a long bounded string has many
    "max_grammar_size": 100_000,
    "max_items_in_row": 2_000,
    "verbose_errors": False,
}
# Below these limits no known grammar takes more than 0.1 s and 20 MB to compile.
_SIMPLE_REGEX_CHARACTERS = 512
_SIMPLE_SCHEMA_CHARACTERS = 1 << 14
_SIMPLE_SCHEMA_DEPTH = 32
_SIMPLE_DEFINITIONS = 64

_SIMPLE_SPACES: list[Any] = [{}, {"whitespace_flexible": False}, {"whitespace_flexible": True}]

_NOTES = frozenset(
    ("title", "description", "default", "examples", "deprecated", "$schema", "$comment")
)
_PLACES = frozenset(("$defs", "definitions", "x-guidance"))
_PLAIN = frozenset(
    (
        *("type", "properties", "required", "additionalProperties", "items", "prefixItems"),
        *("enum", "const", "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum"),
        *("exclusiveMinimum", "exclusiveMaximum", "format"),
    )
)


def is_simple(kind: str, text: str) -> bool:
    """Return whether a grammar certainly compiles in little time and memory.

    kind and text are those of a Grammar. A grammar is not simple if it intersects expressions or
    may nest without bound: with pattern, with allOf, or in Lark's notation.
    """
    if kind == "regex":
        return len(text) <= _SIMPLE_REGEX_CHARACTERS
    if kind == "choice":
        return True
    if kind == "calls":
        return len(text) <= _SIMPLE_SCHEMA_CHARACTERS and _are_simple_calls(json.loads(text))
    if kind != "json_schema" or len(text) > _SIMPLE_SCHEMA_CHARACTERS:
        return False
    return _is_simple_schema(json.loads(text), _SIMPLE_SCHEMA_DEPTH)


def _are_simple_calls(spec: dict[str, Any]) -> bool:
    """Return whether the schemas of a grammar of calls are simple."""
    schemas = [{**schema, "x-guidance": {}} for _, schema in spec["tools"]]
    if spec["otherwise"] is not None:
        schemas.append(spec["otherwise"])
    return all(_is_simple_schema(each, _SIMPLE_SCHEMA_DEPTH) for each in schemas)


def _is_simple_schema(schema: Any, depth: int) -> bool:
    if not isinstance(schema, dict):
        return isinstance(schema, bool)
    if depth == 0 or not _has_simple_keys(schema):
        return False
    inner = [schema[key] for key in ("items", "additionalProperties") if key in schema]
    for key in ("anyOf", "prefixItems"):
        inner += schema.get(key, ())
    for key in ("properties", "$defs", "definitions"):
        inner += schema.get(key, {}).values()
    return all(_is_simple_schema(each, depth - 1) for each in inner)


def _has_simple_keys(schema: dict[str, Any]) -> bool:
    """Return whether a schema uses only simple keywords, with values of the right types."""
    keys = schema.keys() - _NOTES - _PLACES
    kinds: dict[str, type] = {"anyOf": list, "prefixItems": list}
    kinds |= dict.fromkeys(("properties", "$defs", "definitions"), dict)
    if not all(isinstance(schema[key], kind) for key, kind in kinds.items() if key in schema):
        return False
    if len(schema.get("$defs", {})) + len(schema.get("definitions", {})) > _SIMPLE_DEFINITIONS:
        return False
    if schema.get("x-guidance", {}) not in _SIMPLE_SPACES:
        return False
    if keys & {"$ref", "anyOf"}:
        return len(keys) == 1
    if "format" in keys and keys & {"minLength", "maxLength", "enum", "const"}:
        return False
    return keys <= _PLAIN

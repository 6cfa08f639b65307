"""Typical grammars, which must work: schemas of clients, and other notations."""

from typing import Any

from bita.runtime.text.grammar import Grammar

_EVENT = {  # OpenAI's guide to structured outputs
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "date": {"type": "string"},
        "participants": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "date", "participants"],
    "additionalProperties": False,
}
_MATH = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"explanation": {"type": "string"}, "output": {"type": "string"}},
                "required": ["explanation", "output"],
                "additionalProperties": False,
            },
        },
        "final_answer": {"type": "string"},
    },
    "required": ["steps", "final_answer"],
    "additionalProperties": False,
}
_INTERFACE = {  # recursion through the root
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": ["div", "button", "header", "section", "field", "form"]},
        "label": {"type": "string"},
        "children": {"type": "array", "items": {"$ref": "#"}},
        "attributes": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
                "required": ["name", "value"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["type", "label", "children", "attributes"],
    "additionalProperties": False,
}
_LIST = {  # recursion through a definition
    "type": "object",
    "properties": {"linked_list": {"$ref": "#/$defs/node"}},
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "required": ["linked_list"],
    "additionalProperties": False,
}
_MODERATION = {
    "type": "object",
    "properties": {
        "is_violating": {"type": "boolean"},
        "category": {
            "type": ["string", "null"],
            "enum": ["violence", "sexual", "self_harm", None],
        },
        "explanation_if_violating": {"type": ["string", "null"]},
    },
    "required": ["is_violating", "category", "explanation_if_violating"],
    "additionalProperties": False,
}
_WEATHER_CALL = {  # a call to one of two tools
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "name": {"const": "get_weather"},
                "arguments": {
                    "type": "object",
                    "properties": {
                        "location": {"type": "string", "description": "City and country"},
                        "units": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                        "days": {"type": "integer", "minimum": 1, "maximum": 14},
                    },
                    "required": ["location", "units"],
                    "additionalProperties": False,
                },
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "name": {"const": "search"},
                "arguments": {
                    "type": "object",
                    "properties": {
                        "query": {"type": "string", "minLength": 1, "maxLength": 200},
                        "limit": {"type": "integer", "default": 10},
                    },
                    "required": ["query"],
                },
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        },
    ]
}
_PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "title": "Name", "maxLength": 80},
        "email": {"type": "string", "format": "email"},
        "born": {"type": "string", "format": "date"},
        "seen": {"type": "string", "format": "date-time"},
        "id": {"type": "string", "format": "uuid"},
        "page": {"anyOf": [{"type": "string", "format": "uri"}, {"type": "null"}]},
        "address": {"type": "string", "format": "ipv4"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "height": {"type": "number", "exclusiveMinimum": 0, "maximum": 3.5},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 5},
    },
    "required": ["name", "email", "id"],
}
_PATTERNS = {
    "type": "object",
    "properties": {
        "date": {"type": "string", "pattern": r"^\d{4}-(0[1-9]|1[0-2])-([0-2]\d|3[01])$"},
        "mail": {"type": "string", "pattern": r"^[\w.+-]{1,64}@[\w-]{1,63}(\.[\w-]{1,63}){1,3}$"},
        "uuid": {
            "type": "string",
            "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
        },
        "phone": {"type": "string", "pattern": r"^\+?[0-9]{1,3}([ -]?[0-9]{2,4}){2,5}$"},
        "color": {"type": "string", "pattern": "^#[0-9A-Fa-f]{6}$"},
        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$"},
    },
    "required": ["date", "mail", "uuid", "phone", "color", "version"],
    "additionalProperties": False,
}
_COUNTRIES = {
    "type": "object",
    "properties": {
        "country": {"type": "string", "enum": [f"Country of number {i * 37}" for i in range(200)]},
        "code": {"enum": [f"C{i:03d}" for i in range(200)]},
    },
    "required": ["country", "code"],
    "additionalProperties": False,
}
_ORDER = {  # as generated by pydantic
    "$defs": {
        "Item": {
            "properties": {
                "sku": {"pattern": "^[A-Z]{3}-[0-9]{4}$", "title": "Sku", "type": "string"},
                "count": {"exclusiveMinimum": 0, "title": "Count", "type": "integer"},
                "price": {"title": "Price", "type": "number", "minimum": 0},
            },
            "required": ["sku", "count", "price"],
            "title": "Item",
            "type": "object",
        },
        "State": {"enum": ["open", "paid", "sent"], "title": "State", "type": "string"},
    },
    "properties": {
        "items": {"items": {"$ref": "#/$defs/Item"}, "title": "Items", "type": "array"},
        "state": {"allOf": [{"$ref": "#/$defs/State"}], "default": "open"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    },
    "required": ["items"],
    "title": "Order",
    "type": "object",
}
_TREE = {
    "$ref": "#/definitions/expression",
    "definitions": {
        "expression": {
            "anyOf": [
                {"type": "number"},
                {
                    "type": "object",
                    "properties": {
                        "op": {"enum": ["+", "-", "*", "/"]},
                        "left": {"$ref": "#/definitions/expression"},
                        "right": {"$ref": "#/definitions/expression"},
                    },
                    "required": ["op", "left", "right"],
                    "additionalProperties": False,
                },
            ]
        }
    },
}
_MANY = {
    "type": "object",
    "properties": {f"field_{i}": {"type": ["string", "null"]} for i in range(100)},
    "required": [f"field_{i}" for i in range(0, 100, 2)],
    "additionalProperties": False,
}
_NESTED: dict[str, Any] = {"type": "object", "properties": {"value": {"type": "integer"}}}
for _ in range(5):
    _NESTED = {
        "type": "object",
        "properties": {"inner": _NESTED, "list": {"type": "array", "items": _NESTED}},
        "required": ["inner"],
    }
_POINT = {
    "type": "array",
    "prefixItems": [{"type": "number"}, {"type": "number"}, {"enum": ["m", "km"]}],
    "items": False,
    "minItems": 3,
}
_COMPACT = {**_EVENT, "x-guidance": {"whitespace_flexible": False}}
_MERGED = {"allOf": [_EVENT | {"additionalProperties": True}, {"properties": {"id": {"const": 1}}}]}
_MAPPING = {
    "type": "object",
    "properties": {"scores": {"type": "object", "additionalProperties": {"type": "number"}}},
    "patternProperties": {"^x-": {"type": "string"}},
    "required": ["scores"],
    "additionalProperties": False,
}

SCHEMAS: dict[str, dict[str, Any]] = {
    "event": _EVENT,
    "math": _MATH,
    "interface": _INTERFACE,
    "linked list": _LIST,
    "moderation": _MODERATION,
    "tool call": _WEATHER_CALL,
    "person": _PERSON,
    "patterns": _PATTERNS,
    "enums of 200": _COUNTRIES,
    "pydantic": _ORDER,
    "expression": _TREE,
    "100 fields": _MANY,
    "nested": _NESTED,
    "point": _POINT,
    "compact": _COMPACT,
    "merged": _MERGED,
    "mapping": _MAPPING,
    "any object": {"type": "object"},
}
_ARITHMETIC = r"""
start: expr
expr: expr ("+" | "-") term | term
term: term ("*" | "/") factor | factor
factor: NUMBER | NAME | "(" expr ")"
NUMBER: /[0-9]+(\.[0-9]+)?/
NAME: /[a-z_][a-z0-9_]*/
%ignore / /
"""
_QUERY = """
start: "SELECT " columns " FROM " NAME [" WHERE " condition] ";"
columns: "*" | NAME (", " NAME)*
condition: NAME (" = " | " < " | " > ") VALUE (" AND " condition)?
NAME: /[a-z][a-z_]{0,30}/
VALUE: /[0-9]{1,9}/ | /'[^'\\n]{0,40}'/
"""
OTHERS = {
    "yes or no": Grammar.regex("(yes|no), because [a-z ]{5,40}"),
    "date": Grammar.regex(r"(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"),
    "sentence": Grammar.regex(r"[A-Z][^.!?\n]{10,300}[.!?]"),
    "words": Grammar.regex("|".join(f"word{i * 7919}" for i in range(200))),
    "markdown": Grammar.regex(r"(?s)# [^\n]{1,80}\n(- [^\n]{1,120}\n){1,10}"),
    "arithmetic": Grammar.lark(_ARITHMETIC),
    "query": Grammar.lark(_QUERY),
    "choice": Grammar.choice(["positive", "negative", "neutral", "très 😀", 'a "quoted" one']),
    "2000 choices": Grammar.choice([f"Product of number {i}" for i in range(2000)]),
}
GRAMMARS = {name: Grammar.json_schema(schema) for name, schema in SCHEMAS.items()} | OTHERS

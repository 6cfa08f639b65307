"""`strict` closes objects everywhere, and options control whitespace, as answers show."""

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from deadlines import stopped_if_it_hangs
from make_tiny_engine import TINY_ENGINE
from tiny_codecs import CODECS
from tokenizers import Tokenizer

from bita.errors import PromptError
from bita.runtime.session import Session
from bita.runtime.text.grammar import Grammar, GrammarCompiler
from bita.runtime.text.grammar_size import MAX_CHARACTERS
from bita.runtime.text.strict_schema import close_objects

A = {"type": "object", "properties": {"a": {"type": "integer"}}}
B = {"type": "object", "properties": {"b": {"type": "null"}}}
OPEN = {**A, "additionalProperties": True}
NAMED = {"$defs": {"A": A, "B": B}}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    file = tmp_path_factory.mktemp("strict") / "tokenizer.json"
    codec = CODECS["byte_level"]
    file.write_text(codec.tokenizer.to_str(), encoding="utf-8")
    return GrammarCompiler(Tokenizer.from_file(str(file)), codec.num_tokens, [1])


def takes(compiler: GrammarCompiler, schema: Any, value: Any, strict: bool = True) -> bool:
    """Return whether a JSON value without whitespace is a valid answer under a schema."""
    matcher = compiler.compile(Grammar.json_schema(schema, strict))
    for byte in json.dumps(value, separators=(",", ":")).encode():
        (token,) = CODECS["byte_level"].encode(chr(byte), add_special_tokens=False)
        if matcher.is_complete:
            return False
        allowed = matcher.allowed()
        if token not in allowed and len(allowed) > 1:
            return False
        if token not in allowed:  # a longer token is forced: ask the grammar without tokens
            return _takes_bytes(schema, value, strict)
        matcher.take(token)
    return matcher.is_complete or 1 in matcher.allowed()


def _takes_bytes(schema: Any, value: Any, strict: bool) -> bool:
    from llguidance import LLMatcher, LLTokenizer

    text = Grammar.json_schema(schema, strict).text
    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_json_schema(text), log_level=0)
    data = json.dumps(value, separators=(",", ":")).encode()
    return matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting()


# a schema, values that strict accepts, and values that only the unmodified schema accepts
CASES: list[tuple[dict[str, Any], Sequence[Any], Sequence[Any]]] = [
    (A, [{"a": 1}, {}], [{"a": 1, "z": 2}, {"z": []}]),
    ({"properties": {"a": {}}}, [{"a": {"z": 1}}, 7], [{"z": 1}]),
    ({"type": "object"}, [{}], [{"z": 1}]),
    ({"type": ["object", "null"], "properties": {"a": {}}}, [None, {"a": 1}], [{"z": 1}]),
    (OPEN, [{"a": 1, "z": 2}], []),
    ({**A, "additionalProperties": {"type": "null"}}, [{"a": 1, "z": None}], []),
    ({**A, "patternProperties": {"^x": A}}, [{"a": 1, "xy": {"a": 2}}], []),
    ({"type": "object", "properties": {"o": A}}, [{"o": {"a": 1}}], [{"o": {"z": 1}}]),
    ({"type": "object", "properties": {"o": OPEN}}, [{"o": {"z": 1}}], [{"z": {}}]),
    ({"type": "array", "items": A}, [[{"a": 1}, {}]], [[{"a": 1}, {"z": 1}]]),
    (
        {"type": "array", "prefixItems": [A, {"type": "null"}], "items": B},
        [[{"a": 1}, None, {"b": None}]],
        [[{"z": 1}], [{}, None, {"z": 1}]],
    ),
    ({"anyOf": [A, {"type": "null"}]}, [{"a": 1}, None], [{"z": 1}]),
    ({"anyOf": [A, OPEN]}, [{"z": 1}], []),
    ({"type": "object", "anyOf": [A, B]}, [{"a": 1}, {"b": None}], [{"z": 1}]),
    ({**NAMED, "$ref": "#/$defs/A"}, [{"a": 1}], [{"z": 1}]),
    (
        {"$ref": "#/definitions/A", "definitions": {"A": {"type": "array", "items": A}}},
        [[{"a": 1}]],
        [[{"z": 1}]],
    ),
    (
        {"type": "object", "properties": {"a": {"type": "integer"}, "next": {"$ref": "#"}}},
        [{"a": 1, "next": {"next": {}}}],
        [{"next": {"z": 1}}],
    ),
    # several schemas describe one object
    ({"allOf": [A, B]}, [{"a": 1, "b": None}, {}], [{"a": 1, "z": 1}]),
    ({"allOf": [A]}, [{"a": 1}], [{"z": 1}]),
    ({"allOf": [OPEN, B]}, [{"z": 1}], []),
    ({**A, "anyOf": [B, {"required": ["a"]}]}, [{"a": 1, "b": None}], [{"a": 1, "z": 1}]),
    ({**NAMED, "allOf": [{"$ref": "#/$defs/A"}, B]}, [{"a": 1, "b": None}], [{"z": 1}]),
    ({**NAMED, **A, "$ref": "#/$defs/B"}, [{"a": 1, "b": None}], [{"a": 1, "z": 1}]),
    (
        {
            **NAMED,
            "type": "object",
            "properties": {
                "one": {"$ref": "#/$defs/A"},
                "both": {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]},
            },
        },
        [{"one": {"a": 1}, "both": {"a": 1, "b": None}}],
        [{"one": {"a": 1, "b": None}}, {"both": {"z": 1}}],
    ),
    ({"allOf": [{"type": "string"}, {"maxLength": 3}]}, ["abc"], []),
    ({"enum": [{"properties": 1}, {"type": "object"}]}, [{"type": "object"}], []),
    ({"const": {"properties": {"a": {}}}}, [{"properties": {"a": {}}}], []),
    ({}, [{"z": 1}, [], 1], []),
]


@pytest.mark.parametrize("index", range(len(CASES)))
def test_strict_closes_objects(index: int, compiler: GrammarCompiler) -> None:
    schema, kept, lost = CASES[index]
    before = json.dumps(schema)
    for value in kept:
        assert takes(compiler, schema, value), value
        assert takes(compiler, schema, value, strict=False), value
    for value in lost:
        assert not takes(compiler, schema, value), value
        assert takes(compiler, schema, value, strict=False), value
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/none", "properties": {}},
        {"$ref": 7, "properties": {}},
        {"$ref": "other.json", "allOf": [A]},
        {"properties": []},
        {"allOf": {}},
        {"anyOf": [1, A]},
        {"$defs": [], "allOf": [{"$ref": "#/$defs/0"}]},
    ],
)
def test_invalid_schemas_are_refused(schema: Any, compiler: GrammarCompiler) -> None:
    with pytest.raises(PromptError, match="the json_schema grammar is not usable"):
        compiler.compile(Grammar.json_schema(schema, strict=True))


def test_objects_inside_all_of_are_closed(compiler: GrammarCompiler) -> None:
    schema = {"allOf": [{**OPEN, "properties": {"o": A}}, B]}
    assert takes(compiler, schema, {"o": {"a": 1}, "z": 1})
    assert not takes(compiler, schema, {"o": {"z": 1}})


def test_the_time_for_deep_schemas_grows_linearly() -> None:
    schema: dict[str, Any] = {}
    for _ in range(60):
        schema = {"type": "object", "properties": {"a": schema}, "allOf": [{"minProperties": 0}]}
    with stopped_if_it_hangs(20):
        assert close_objects(schema)["additionalProperties"] is False


def test_cycles_of_references_terminate() -> None:
    schema = {"$ref": "#/$defs/a", "properties": {}, "$defs": {"a": {"$ref": "#"}}}
    assert close_objects(schema)["additionalProperties"] is False


SPACED = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9}, "l": {"type": "array", "items": {}}},
    "required": ["n", "l"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.open(TINY_ENGINE, num_threads=1)


def answers(session: Session, guidance: dict[str, Any] | None) -> list[str]:
    """Return answers to several prompts under SPACED, with spaces made likely."""
    schema = SPACED if guidance is None else {**SPACED, "x-guidance": guidance}
    bias = {token: 6.0 for text in " \n" for token in session.encode(text)}
    options: dict[str, Any] = {"grammar": Grammar.json_schema(schema), "logit_bias": bias}
    texts = []
    for seed in range(6):
        answer = session.generate([5, 9, seed], 300, temperature=1.0, seed=seed, **options)
        if answer.finish_reason in ("grammar", "eos"):
            texts.append(answer.text)
    assert texts
    return texts


def test_flexible_whitespace_allows_up_to_20_characters(session: Session) -> None:
    texts = answers(session, {"whitespace_flexible": True})
    assert any(" " in text or "\n" in text for text in texts)
    for text in texts:
        assert all(len(run) <= 20 for run in _spaces(text))


@pytest.mark.parametrize("guidance", [None, {}, {"whitespace_flexible": False}])
def test_whitespace_is_not_allowed_by_default(
    session: Session, guidance: dict[str, Any] | None
) -> None:
    for text in answers(session, guidance):
        assert not any(_spaces(text))
        assert text.startswith('{"n":')


def test_a_whitespace_pattern_can_be_given(session: Session) -> None:
    runs = [run for text in answers(session, {"whitespace_pattern": " ?"}) for run in _spaces(text)]
    assert set(runs) <= {"", " "}
    assert " " in runs


def _spaces(text: str) -> list[str]:
    """Return the runs of whitespace outside strings."""
    outside, is_inside, is_escaped = [""], False, False
    for character in text:
        if character == '"' and not is_escaped:
            is_inside = not is_inside
        is_escaped = character == "\\" and not is_escaped
        if not is_inside and character in " \t\n\r":
            outside[-1] += character
        elif outside[-1]:
            outside.append("")
    return outside


def test_errors_name_an_unknown_field_of_guidance(compiler: GrammarCompiler) -> None:
    grammar = Grammar.json_schema({**SPACED, "x-guidance": {"spaces": 1}})
    with pytest.raises(PromptError, match="unknown field `spaces`"):
        compiler.compile(grammar)


@pytest.mark.parametrize(("num_references", "num_parts"), [(300, 4000), (1200, 100), (4, 9000)])
def test_references_to_the_same_parts_are_bounded(num_references: int, num_parts: int) -> None:
    """Each reference next to properties requires all parts of its target again."""
    reference = {"$ref": "#/x", "properties": {}}
    schema = {
        "type": "object",
        "properties": {f"p{n}": reference for n in range(num_references)},
        "x": {"allOf": [{}] * num_parts},
    }
    assert len(json.dumps(schema)) < MAX_CHARACTERS
    start = time.process_time()
    with pytest.raises(PromptError, match="lead to more than 20000 schemas and names; use fewer"):
        Grammar.json_schema(schema, strict=True)
    assert time.process_time() - start < 1.5

"""Structured output: it is always valid, and the same with and without a tree."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from speed import thorough_but
from tiny_codecs import CODECS

from bita.adapter import random_adapter
from bita.errors import MissingExtraError, PromptError
from bita.extras import install_command
from bita.runtime.session import Session
from bita.runtime.text.grammar import Grammar, GrammarCompiler
from bita.tree import Tree
from bita.tree_table import Trees, TreeTable

AR = Tree.root_only()
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["tree", "draft"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
LARK = 'start: item ("," item)*\nitem: /[a-c]{1,4}/ "=" /[0-9]{1,3}/'
TREES: list[Trees] = [
    Tree.triangle((6, 4, 2), 3),
    Tree.chain(4, 2),
    TreeTable(
        (Tree.root_only(2), Tree.chain(3), Tree.chain(6, 0).with_guesses(1)),
        (0, 2),
        ((0, 2), (1, 2)),
    ),
]


@pytest.fixture(scope="module")
def session(tiny_engine: Path) -> Session:
    return Session.open(tiny_engine, num_threads=1)


def prompt_ids(seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(4, 320, 10).tolist()


def is_valid(text: str) -> bool:
    data = json.loads(text)
    return (
        set(data) == set(SCHEMA["required"])
        and isinstance(data["name"], str)
        and len(data["name"]) <= 8
        and type(data["age"]) is int
        and 0 <= data["age"] <= 150
        and data["kind"] in ("tree", "draft")
        and len(data["tags"]) <= 3
        and all(isinstance(tag, bool) for tag in data["tags"])
    )


@pytest.mark.parametrize("tree_index", thorough_but(range(len(TREES)), 1))
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.5, "top_p": 0.9}])
def test_answers_are_valid_and_equal_plain_decoding(
    session: Session, tree_index: int, options: Mapping[str, Any]
) -> None:
    """A random model answers 12 prompts under a schema."""
    num_drafted = 0
    for seed in range(12):
        adapter = random_adapter(session.adapter.identity, 3, 2, scale=0.4, seed=seed)
        plain = session.using(tree=AR, adapter=adapter)
        tree = session.using(tree=TREES[tree_index], adapter=adapter, mode="tree")
        given = {**options, "seed": seed, "grammar": Grammar.json_schema(SCHEMA)}
        expected = plain.generate(prompt_ids(seed), 250, **given)
        found = tree.generate(prompt_ids(seed), 250, **given)
        assert found.token_ids == expected.token_ids
        assert found.text == expected.text
        assert found.finish_reason in ("grammar", "eos")
        assert is_valid(found.text)
        num_drafted += tree.stats.num_tokens - tree.stats.num_steps
    assert num_drafted > 100  # tokens that the grammar forces are drafted


def test_answers_match_grammars_of_all_kinds(session: Session) -> None:
    for seed in range(8):
        options: dict[str, Any] = {"temperature": 1.0, "seed": seed}
        text = session.generate(
            prompt_ids(seed), 60, grammar=Grammar.regex("[A-F]{3}-[0-9]{2,4}"), **options
        ).text
        assert re.fullmatch("[A-F]{3}-[0-9]{2,4}", text)
        text = session.generate(
            prompt_ids(seed), 60, grammar=Grammar.choice(['yes "sir"', "no", "não"]), **options
        ).text
        assert text in ('yes "sir"', "no", "não")
        answer = session.generate(prompt_ids(seed), 300, grammar=Grammar.lark(LARK), **options)
        if answer.finish_reason != "length":
            assert re.fullmatch(r"[a-c]{1,4}=\d{1,3}(,[a-c]{1,4}=\d{1,3})*", answer.text)
        text = session.generate(prompt_ids(seed), 350, grammar=Grammar.json_object()).text
        assert text.startswith("{")


def test_an_answer_cut_by_the_limit_reports_the_length(session: Session) -> None:
    answer = session.generate(prompt_ids(1), 5, grammar=Grammar.json_schema(SCHEMA))
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == 5


def test_eos_occurs_only_where_the_grammar_may_end(session: Session) -> None:
    answers = [
        session.generate(
            prompt_ids(seed), 60, temperature=2.0, seed=seed, grammar=Grammar.regex("(ab)+")
        )
        for seed in range(20)
    ]
    assert {"eos"} <= {answer.finish_reason for answer in answers} <= {"eos", "length"}
    for answer in answers:
        assert re.fullmatch("(ab)+" if answer.finish_reason == "eos" else "(ab)+a?", answer.text)


def test_a_bias_cannot_overcome_the_grammar(session: Session) -> None:
    (letter,) = session.encode("z")
    answer = session.generate(
        prompt_ids(1), 20, grammar=Grammar.regex("[ab]{4}"), logit_bias={letter: 1e9}
    )
    assert re.fullmatch("[ab]{4}", answer.text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grammar.json_schema("{"), "the JSON schema is not valid JSON"),
        (lambda: Grammar.json_schema("[1]"), r"the JSON schema is \[1\]; pass an object"),
        (lambda: Grammar.json_schema({"type": "objekt"}), "json_schema grammar is not usable"),
        (lambda: Grammar.json_schema({"$ref": "http://x/y"}), "json_schema grammar is not usable"),
        (
            lambda: Grammar.json_schema({"type": {1}}),
            "the JSON schema is not usable: Object of type set",
        ),
        (lambda: Grammar.json_schema('{"not":' * 500 + "{}" + "}" * 500), "json_schema grammar is"),
        (lambda: Grammar.regex("[a-"), "the regex grammar is not usable"),
        (lambda: Grammar.lark("start: nothing"), "the lark grammar is not usable"),
        (lambda: Grammar.choice([]), r"choices are \[\]"),
        (lambda: Grammar.choice(["a", ""]), "non-empty texts"),
        (lambda: Grammar.regex("a" * 70_000), "has 70000 characters; use at most 65536"),
    ],
)
def test_invalid_grammars_are_refused(session: Session, make: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        session.stream(prompt_ids(1), 5, grammar=make())


def test_ignore_eos_is_refused_with_a_grammar(session: Session) -> None:
    with pytest.raises(PromptError, match="ignore_eos cannot be combined with a grammar"):
        session.stream(prompt_ids(1), 5, ignore_eos=True, grammar=Grammar.regex("a"))


def test_a_missing_extra_is_named(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("structured"))):
        session.stream(prompt_ids(1), 5, grammar=Grammar.regex("a"))


@pytest.mark.parametrize("kind", CODECS)
def test_grammars_and_the_codec_agree_on_tokens_of_every_kind(kind: str) -> None:
    """The codec's text of random walks through a grammar matches the grammar."""
    codec = CODECS[kind]
    (eos,) = (codec.token_id(token) for token in ("<eos>",))
    assert eos is not None
    compiler = GrammarCompiler(codec.tokenizer, codec.num_tokens, [eos])
    rng = np.random.default_rng(0)
    for _ in range(30):
        matcher = compiler.compile(Grammar.regex("[a-ch-u]{2,6}( the é)?(, 日本)*"))
        ids: list[int] = []
        while not matcher.is_complete and len(ids) < 60:
            allowed = matcher.allowed()
            ids.append(int(rng.choice(allowed)))
            matcher.take(ids[-1])
        if ids[-1] == eos:
            text = b"".join(codec.token_bytes[token] for token in ids).decode()
            assert re.fullmatch("[a-ch-u]{2,6}( the é)?(, 日本)*", text), text

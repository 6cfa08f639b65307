"""Tokenizers that do not match the model's rows: more or fewer ids, holes, unusual EOS tokens."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_engine import TINY_ENGINE
from other_tokenizer import engine_with
from tiny_codecs import CODECS
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bita.adapter import random_adapter
from bita.errors import PromptError
from bita.runtime.session import Session
from bita.runtime.text.codec import TextCodec
from bita.runtime.text.grammar import Grammar, GrammarCompiler
from bita.runtime.text.grammar_tokens import GrammarTokens
from bita.tree import Tree

WORDS = ("ab", "abc", "abcab", "b", "ca", "cab", "a b", "bb<e>")
PIECES = ("a", "b", "c", "Ġ", "<", "e", ">", "ab", "bc", "abc", "ca", "Ġb", "cab", "x", "bb<")
LETTERS = {name: index for index, name in enumerate(PIECES)}


def small_tokenizer(vocab: dict[str, int], added: Sequence[AddedToken] = ()) -> Tokenizer:
    """Make a byte-level BPE tokenizer without merges, with `vocab` as its tokens."""
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(added))
    return tokenizer


def make_compiler(
    tokenizer: Tokenizer, tmp_path: Path, num_rows: int, eos_ids: Sequence[int]
) -> GrammarCompiler:
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    return GrammarCompiler(Tokenizer.from_file(str(file)), num_rows, eos_ids)


def unforced_choice(words: Sequence[str]) -> Grammar:
    """Return a grammar of one of some words in any tokenization."""
    texts = " | ".join(json.dumps(word) for word in words)
    return Grammar.lark(f'%llguidance {{"no_forcing": true}}\nstart: WORD\nWORD: {texts}')


def spread_ids(vocab: dict[str, int], step: int) -> dict[str, int]:
    """Return the same tokens with holes between their ids."""
    return {name: index * step for name, index in vocab.items()}


EOS, SPECIAL = AddedToken("<e>", special=True), AddedToken("<s>", special=True)
# vocabulary, added tokens, rows, EOS ids
SITUATIONS: dict[str, tuple[dict[str, int], list[AddedToken], int, list[int]]] = {
    "equal": (LETTERS, [EOS], 16, [15]),
    "fewer rows": (LETTERS, [EOS], 11, [3]),
    "one row less": (LETTERS, [SPECIAL, EOS], 16, [16, 2]),
    "only EOS outside": (LETTERS, [SPECIAL, EOS], 16, [16, 99]),
    "padding": (LETTERS, [EOS], 64, [15]),
    "EOS in the padding": (LETTERS, [SPECIAL], 64, [50, 60]),
    "holes": (spread_ids(LETTERS, 3), [EOS], 64, [15, 43]),
    "holes, fewer rows": (spread_ids(LETTERS, 5), [EOS], 50, [45]),
    "specials beyond the rows": (LETTERS, [AddedToken(f"<x{i}>") for i in range(40)], 20, [19]),
    "two EOS": (LETTERS, [SPECIAL, EOS], 40, [15, 16, 15]),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_masks_equal_those_of_brute_force(name: str, tmp_path: Path) -> None:
    """Check each state of a language of eight words: a token is allowed if a word continues so."""
    vocab, added, num_rows, eos_ids = SITUATIONS[name]
    tokenizer = small_tokenizer(vocab, added)
    text_bytes = TextCodec(tokenizer).token_bytes
    controls = {*eos_ids, *(tokenizer.token_to_id(token.content) for token in added)}
    texts = {
        token: text_bytes[token].decode()
        for token in range(num_rows)
        if token not in controls and text_bytes[token]
    }
    ends = {token for token in eos_ids if token < num_rows}
    grammars = make_compiler(tokenizer, tmp_path, num_rows, eos_ids)
    for grammar in (Grammar.choice(WORDS), unforced_choice(WORDS)):
        for ids, allowed in states(grammars, grammar, ends):
            prefix = "".join(texts[token] for token in ids)
            expected = {
                token
                for token, text in texts.items()
                if any(word.startswith(prefix + text) for word in WORDS)
            } | (ends if prefix in WORDS else set())
            assert allowed == expected


def states(
    grammars: GrammarCompiler, grammar: Grammar, ends: set[int]
) -> Iterator[tuple[list[int], set[int]]]:
    """Yield the path to each state and the tokens that may follow."""
    waiting: list[list[int]] = [[]]
    while waiting:
        ids = waiting.pop()
        matcher = grammars.compile(grammar)
        for token in ids:
            matcher.take(token)
        if matcher.is_complete:
            continue
        try:
            allowed = set(matcher.allowed().tolist())
        except PromptError:  # the words need a token that has no row
            allowed = set()
        yield ids, allowed
        waiting += [[*ids, token] for token in allowed - ends]


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY_ENGINE / "tokenizer.json"))


def add_ids() -> Tokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(f"<x{i}>", normalized=False) for i in range(21)])
    tokenizer.add_tokens([AddedToken("yes"), AddedToken("true"), AddedToken("no")])  # no row
    return tokenizer


def remove_ids() -> Tokenizer:
    """Return the tiny tokenizer without some of its tokens; the others keep their ids."""
    data = json.loads(tiny_tokenizer().to_str())
    vocab = data["model"]["vocab"]
    lost = [token for token, index in vocab.items() if index > 260 and index % 3 == 0]
    vocab = {token: index for token, index in vocab.items() if token not in lost}
    whole = ("".join(pair) for pair in data["model"]["merges"])
    kept = [
        pair
        for pair, text in zip(data["model"]["merges"], whole, strict=True)
        if {*pair, text} <= vocab.keys()
    ]
    data["model"] |= {"vocab": vocab, "merges": kept}
    return Tokenizer.from_str(json.dumps(data))


ENGINES: dict[str, tuple[Any, list[int]]] = {
    "more ids than rows": (add_ids, [1]),
    "fewer ids than rows": (tiny_tokenizer, [1]),
    "holes": (remove_ids, [1]),
    "EOS in the padding": (tiny_tokenizer, [310, 1]),
    "no EOS": (tiny_tokenizer, []),
}
SHAPE = {
    "type": "object",
    "properties": {"yes": {"enum": [True, "no", None]}, "n": {"type": "integer", "maximum": 99}},
    "required": ["yes", "n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", ENGINES)
def test_answers_are_valid_and_equal_plain_decoding(name: str, tmp_path: Path) -> None:
    make, eos_ids = ENGINES[name]
    session = Session.open(engine_with(make(), tmp_path / "engine", eos_ids), num_threads=1)
    num_drafted = 0
    for seed in range(4):
        adapter = random_adapter(session.adapter.identity, 3, 2, scale=0.4, seed=seed)
        plain = session.using(tree=Tree.root_only(), adapter=adapter)
        tree = session.using(tree=Tree.triangle((6, 4, 2), 3), adapter=adapter, mode="tree")
        prompt = np.random.default_rng(seed).integers(4, 300, 10).tolist()
        for temperature in (0.0, 1.2):
            options: dict[str, Any] = {"temperature": temperature, "seed": seed}
            grammar = Grammar.json_schema(SHAPE)
            expected = plain.generate(prompt, 200, grammar=grammar, **options)
            found = tree.generate(prompt, 200, grammar=grammar, **options)
            assert found.token_ids == expected.token_ids
            assert found.finish_reason in ("grammar", "eos")
            assert set(json.loads(found.text)) == {"yes", "n"}
            assert max(found.token_ids) < 320
        text = tree.generate(prompt, 8, grammar=Grammar.choice(["yes", "no"])).text
        assert text in ("yes", "no")
        num_drafted += tree.stats.num_tokens - tree.stats.num_steps
    assert num_drafted > 20


@pytest.mark.parametrize("name", ["equal", "padding", "holes"])
def test_masks_may_force_a_single_token_if_each_byte_has_one(name: str, tmp_path: Path) -> None:
    """Forced text allows a single token; all other masks equal those of brute force."""
    alphabet = sorted({*pre_tokenizers.ByteLevel.alphabet()} - {*LETTERS})
    vocab = {name: index for index, name in enumerate((*PIECES, *alphabet))}
    step = 2 if name == "holes" else 1
    tokenizer = small_tokenizer(spread_ids(vocab, step), [SPECIAL])
    num_rows = 2 * len(vocab) if name != "equal" else len(vocab) + 1
    eos = num_rows - 1
    grammars = make_compiler(tokenizer, tmp_path, num_rows, [eos])
    text_bytes = TextCodec(tokenizer).token_bytes
    num_forced = 0
    for ids, allowed in states(grammars, Grammar.choice(WORDS), {eos}):
        prefix = "".join(text_bytes[token].decode() for token in ids)
        starts = [word.encode() for word in WORDS if word.startswith(prefix)]
        place = len(prefix)
        expected = {
            token
            for token in range(num_rows)
            if text_bytes[token]
            and any(word.startswith(text_bytes[token], place) for word in starts)
        } | ({eos} if prefix in WORDS else set())
        is_forced = len({word[place : place + 1] for word in starts}) == 1
        num_forced += is_forced
        assert allowed <= expected
        assert allowed == expected or (is_forced and len(allowed) == 1)
    assert num_forced > 5


@pytest.mark.parametrize("expression", ["z+", "az", "z", "[az]z"])
def test_text_that_no_token_can_write_is_refused(expression: str, tmp_path: Path) -> None:
    grammars = make_compiler(small_tokenizer(LETTERS), tmp_path, 15, [2])
    matcher = grammars.compile(Grammar.regex(expression))
    if "a" in expression:
        matcher.take(int(matcher.allowed()[0]))
    with pytest.raises(PromptError, match="no token of the model continues it"):
        matcher.allowed()


def test_an_eos_token_is_never_text(tmp_path: Path) -> None:
    """A plain token that ends answers is not allowed inside a string."""
    vocab = {**LETTERS, '"': 15, "end": 16}
    grammars = make_compiler(small_tokenizer(vocab), tmp_path, 17, [16])
    matcher = grammars.compile(Grammar.regex('"[a-z]*"'))
    matcher.take(15)
    assert 16 not in matcher.allowed()
    matcher.take(15)
    assert matcher.is_complete


def test_without_eos_an_answer_ends_where_nothing_can_follow(tmp_path: Path) -> None:
    grammars = make_compiler(small_tokenizer(LETTERS), tmp_path, 15, [])
    matcher = grammars.compile(Grammar.regex("ab?z?"))
    matcher.take(0)
    assert not matcher.is_complete
    assert matcher.allowed().tolist() == [1]  # z has no token
    matcher.take(1)
    assert matcher.is_complete


def test_rows_without_a_token_cannot_be_named(tmp_path: Path) -> None:
    grammars = make_compiler(small_tokenizer(spread_ids(LETTERS, 2)), tmp_path, 40, [39])
    matcher = grammars.compile(Grammar.lark("start: <[0-38]>"))
    assert matcher.allowed().tolist() == [2 * index for index in range(15)]


def test_tokens_in_angle_brackets_match_only_by_name(tmp_path: Path) -> None:
    tokenizer = small_tokenizer(LETTERS, [AddedToken("<think>"), AddedToken("cc")])
    grammars = make_compiler(tokenizer, tmp_path, 17, [2])  # c alone ends an answer
    assert grammars.compile(Grammar.lark('start: <think> "a"')).allowed().tolist() == [15]
    assert 15 not in grammars.compile(Grammar.lark("start: /[^x]*/")).allowed()
    assert 16 in grammars.compile(Grammar.lark("start: /c+x/")).allowed()


@pytest.mark.parametrize("kind", CODECS)
def test_forced_text_is_split_into_tokens_that_spell_it(kind: str) -> None:
    """This holds even if the tokenizer itself changes the text."""
    tokenizer = Tokenizer.from_str(CODECS[kind].tokenizer.to_str())
    if kind == "gemma":
        tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, normalizers.Lowercase()])
    num_rows = 290  # the last tokens have no row
    tokens = GrammarTokens(tokenizer, num_rows, [1])
    for text in (
        "the quick",
        " the",
        "THE",
        "é日本",
        "<eos>",
        "<think>two words é",
        "\n\n",
        "a" * 999,
    ):
        ids = tokens(text)
        assert max(ids) < num_rows
        assert b"".join(tokens.tokens[token] for token in ids) == text.encode()


def test_common_text_is_split_as_the_tokenizer_splits_it() -> None:
    codec = CODECS["byte_level"]
    tokens = GrammarTokens(Tokenizer.from_str(codec.tokenizer.to_str()), codec.num_tokens, [1])
    for text in ("The quick brown fox", " jumps over", "two words é"):
        assert tokens(text) == codec.encode(text, add_special_tokens=False)


def test_the_text_equals_the_text_that_the_grammar_matched(tmp_path: Path) -> None:
    """SentencePiece strips a space at the start of a text, which the grammar may require."""
    tokenizer = Tokenizer.from_str(CODECS["llama2"].tokenizer.to_str())
    session = Session.open(engine_with(tokenizer, tmp_path / "engine", [2]), num_threads=1)
    for seed in range(4):
        options: dict[str, Any] = {"temperature": 1.5, "seed": seed}
        answer = session.generate([5, 9, 77], 40, grammar=Grammar.regex(" ?[a-z]{3}"), **options)
        assert re.fullmatch(" ?[a-z]{3}", answer.text)
        answer = session.generate([5, 9, 77], 40, grammar=Grammar.regex(" {2}[a-z]{3}"), **options)
        assert re.fullmatch(" {2}[a-z]{3}", answer.text)

"""Broken and hostile tokenizers are refused with a reason, without a panic, hang or huge text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deadlines import stopped_if_it_hangs
from tiny_codecs import CODECS

from bita.errors import EngineError, PromptError
from bita.runtime.text.codec import TextCodec

Edit = Callable[[dict[str, Any]], object]
LONG = "x" * 5000


def source(edit: Edit = lambda data: None, name: str = "byte_level") -> str:
    data = json.loads(CODECS[name].tokenizer.to_str())
    edit(data)
    return json.dumps(data)


def replace_part(name: str, part: Any) -> Edit:
    return lambda data: data.update({name: part})


def replace_step(old: dict[str, str], new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": old, "content": new}


def split(expression: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
    }


def sequence_of(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [*steps]}


GROWING = sequence_of(*[replace_step({"String": "a"}, "aaaaaaaa")] * 3)
NESTED = sequence_of(sequence_of(replace_step({"String": "a"}, LONG)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a tokenizer"),
        ("[]", r"is not a tokenizer: it holds \[\], not an object"),
        ("{}", "is not a tokenizer"),
        ('{"model": 3}', "is not a tokenizer"),
        ("[" * 100_000, "is not a tokenizer: it is nested too deeply"),
        ('{"added_tokens": ' + "[" * 100_000, "is not a tokenizer: it is nested too deeply"),
        (source(lambda data: data["model"].update(vocab={"a": "b"})), "is not a tokenizer"),
        (source(lambda data: data["model"].update(vocab={"a": -1})), "is not a tokenizer"),
        (source(lambda data: data["model"].update(vocab={"a": 2**40})), "is not a tokenizer"),
        (
            source(
                lambda data: data.update(
                    model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]
                )
            ),
            "cannot be used: it has no tokens",
        ),
        (
            source(lambda data: data["model"].update(continuing_subword_prefix="9" * 5000)),
            r"the tokenizers library fails \(range end index",
        ),
        (
            source(replace_part("normalizer", replace_step({"String": "a"}, LONG))),
            "5e\\+03 times longer",
        ),
        (
            source(replace_part("normalizer", replace_step({"Regex": "a*"}, LONG))),
            "times longer; at most",
        ),
        (source(replace_part("normalizer", {"type": "Prepend", "prepend": LONG})), "times longer"),
        (source(replace_part("normalizer", GROWING)), "512 times longer; at most 64"),
        (source(replace_part("normalizer", NESTED)), "times longer; at most 64"),
        (
            source(replace_part("pre_tokenizer", split("a*a*a*a*[bc]d"))),
            "takes too long",
        ),
        (source(replace_part("pre_tokenizer", split("(?:a|a)*[bc]d"))), "tokenizers library fails"),
        (source(replace_part("pre_tokenizer", split("("))), "is not a tokenizer"),
    ],
)
def test_an_invalid_file_is_refused_with_the_reason(text: str, reason: str) -> None:
    with stopped_if_it_hangs(30), pytest.raises(EngineError, match=reason):
        TextCodec.of_json(text, "tokenizer.json")


def test_a_normalizer_after_the_vocabulary_is_found_in_any_spelling() -> None:
    """A vocabulary at the end is not read, so a rule after it must not be missed."""
    text = source().removesuffix("}")
    rule = json.dumps(replace_step({"String": "a"}, LONG))
    for key in ("normalizer", r"n\u006frmalizer", r"\u006eormalize\u0072"):
        with pytest.raises(EngineError, match="times longer"):
            TextCodec.of_json(f'{text}, "{key}": {rule}}}')
    named = source(lambda data: data["model"]["vocab"].update({"normalizer": 400}))
    assert TextCodec.of_json(named).encode("a", False)


def test_a_text_that_an_expression_cannot_match_is_an_error_of_the_prompt() -> None:
    """The library panics when an expression backtracks too often."""
    codec = TextCodec.of_json(source(replace_part("pre_tokenizer", split("(?:zq|zq)*[bc]d"))))
    assert codec.encode("abcd", add_special_tokens=False)
    with pytest.raises(PromptError, match="cannot be turned into tokens: the tokenizers library"):
        codec.encode("zq" * 40 + "bcd", add_special_tokens=False)


def test_ids_beyond_the_rows_of_the_model_are_refused() -> None:
    num_rows = CODECS["byte_level"].num_tokens - 1
    codec = TextCodec.of_json(source(), num_rows=num_rows)
    assert codec.encode("a<think>", False)[-1] == num_rows - 1
    message = rf"token 'two words é' with id {num_rows}, .* below {num_rows} only"
    with pytest.raises(PromptError, match=message):
        codec.encode("a two words é", False)


def test_unknown_ids_decode_to_empty_text() -> None:
    for codec in CODECS.values():
        assert codec.decode([-1, 2**31, 2**32, 2**70, codec.num_tokens]) == ""


def test_a_path_that_is_not_a_readable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(EngineError, match=r"tokenizer.json cannot be read \(it is not a regular"):
        TextCodec.open(tmp_path)
    (tmp_path / "tokenizer.json").rmdir()
    (tmp_path / "tokenizer.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(EngineError, match="cannot be read"):
        TextCodec.open(tmp_path)

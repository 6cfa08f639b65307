"""libbita's text layer compared with the `tokenizers` package and with Python's own."""

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cpp_programs import cpp_program
from text_decoders import DECODERS, B, F, R, codec_of
from text_lines import text_lines
from tiny_codecs import CODECS, SENTENCES
from tokenizer_equality import answers, differences, kinds, lines, mixture
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from bita.errors import PromptError
from bita.runtime.text.codec import IncrementalText, TextCodec
from bita.runtime.text.stopping import StopRule

KINDS = kinds()
TEXTS = [*text_lines(150), *SENTENCES, *lines(250, seed=11)]
# the package panics where both ends of a token are the same letter; the runtimes do not
BOTH_SIDES = {"strip both sides of each": [R, decoders.Strip(" ", 1, 1)]}
STEPS = {**DECODERS, **BOTH_SIDES}
STOP_LETTERS = "ab\né▁ <|end|>"


@pytest.fixture(scope="module")
def program() -> Path:
    return cpp_program("text_tool")


def ask(program: Path, tokenizer: Tokenizer, *questions: dict[str, Any]) -> list[Any]:
    found = answers(program, tokenizer.to_str(), questions)
    assert len(found) == len(questions), found
    return found


def fault(program: Path, tokenizer: Tokenizer | str) -> str:
    """Return the reason why a tokenizer is refused."""
    text = tokenizer if isinstance(tokenizer, str) else tokenizer.to_str()
    (found,) = answers(program, text, [{"encode": "abc"}])
    return str(found.get("fault"))


# --- encoding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_tokenizer_gives_the_same_ids(program: Path, name: str) -> None:
    differing, about = differences(program, KINDS[name], TEXTS)
    assert not differing
    assert about["num_tokens"] == TextCodec(KINDS[name]).num_tokens
    assert about["num_compared"] == len(TEXTS)


@pytest.mark.parametrize("seed", range(30))
def test_any_combination_of_parts_gives_the_same_ids(program: Path, seed: int) -> None:
    """Added tokens with all options, normalizers, splits and post-processors are combined."""
    differing, about = differences(program, mixture(seed), lines(80, seed=seed))
    assert not differing
    assert about["num_compared"] > 40


@pytest.mark.parametrize("name", CODECS)
def test_long_words_give_the_same_ids(program: Path, name: str) -> None:
    rng = random.Random(3)
    words = ["".join(rng.choices("the qu🙂é", k=length)) for length in (31, 32, 33, 300, 5000)]
    differing, _ = differences(program, CODECS[name].tokenizer, [*words, "th" * 20_000])
    assert not differing


@pytest.mark.model
def test_the_default_model_gives_the_same_ids(program: Path) -> None:
    from bita.export.sources import open_checkpoint

    assets = open_checkpoint("smollm2-135m-instruct").text_assets()
    differing, _ = differences(program, Tokenizer.from_str(assets.tokenizer_json), TEXTS * 2)
    assert not differing


def test_merges_may_be_strings_or_pairs(program: Path) -> None:
    data = json.loads(KINDS["gpt-2"].to_str())
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    expected = KINDS["gpt-2"].encode(SENTENCES[1]).ids
    model = dict(reversed(data["model"].items()))  # merges before the vocabulary
    for written in (data, {**data, "model": model}):
        (found,) = answers(program, json.dumps(written), [{"encode": SENTENCES[1]}])
        assert found["ids"] == expected


def test_added_tokens_get_the_ids_of_the_package(program: Path) -> None:
    """An id in the file is ignored: a token missing from the vocabulary follows all others."""
    data = json.loads(KINDS["gpt-2"].to_str())
    for index, content in enumerate(("new", "newer")):
        token = {**data["added_tokens"][0], "content": content, "id": 5000 + index}
        data["added_tokens"].append(token)
    tokenizer = Tokenizer.from_str(json.dumps(data))
    found = answers(program, json.dumps(data), [{"encode": "newer new"}, {"id": "newer"}])
    assert found[0]["ids"] == tokenizer.encode("newer new").ids
    assert found[1] == tokenizer.token_to_id("newer")


@pytest.mark.parametrize(
    ("text", "place"),
    [(b"a\xff", 1), (b"\xc3", 0), (b"\xed\xa0\x80", 0), (b"\xc0\x80", 0), (b"\xf5\x80\x80\x80", 0)],
)
def test_text_that_is_not_utf8_is_refused(program: Path, text: bytes, place: int) -> None:
    (found,) = ask(program, KINDS["gpt-2"], {"bytes": list(text)})
    assert found["is_prompt"]
    assert found["fault"].startswith(f"the prompt is not UTF-8 at byte {place}; pass valid Unicode")


def test_token_strings_and_ids_equal_those_of_python(program: Path) -> None:
    tokenizer = CODECS["byte_level"].tokenizer
    ids = [*range(0, 405, 7), -1, 2**31, 2**40]
    texts = ["<eos>", "two words é", "Ġt", "none", ""]
    codec = CODECS["byte_level"]
    questions = [{"token": i} for i in ids] + [{"id": text} for text in texts]
    expected = [tokenizer.id_to_token(i) if 0 <= i < 2**32 else None for i in ids]
    assert ask(program, tokenizer, *questions) == [*expected, *map(codec.token_id, texts)]
    starts = ["<eos> a", "<bos>", "a<eos>", "", "<think>"]
    found = ask(program, tokenizer, *[{"starts_special": text} for text in starts])
    assert found == [codec.starts_special(text) for text in starts]


# --- refused tokenizers --------------------------------------------------------------------------


def replace_part(name: str, part: Any) -> str:
    return json.dumps({**json.loads(KINDS["gpt-2"].to_str()), name: part})


def test_all_unsupported_parts_are_named_at_once(program: Path) -> None:
    data = json.loads(KINDS["gpt-2"].to_str())
    data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": ""}
    data["pre_tokenizer"] = {"type": "UnicodeScripts"}
    data["model"]["dropout"] = 0.1
    found = fault(program, json.dumps(data))
    assert found.startswith("tokenizer.json cannot be used: 3 faults:\n  - its normalizer Precomp")
    assert "choose another model" in found
    assert "UnicodeScripts" in found
    assert found.endswith("dropout 0.1, which gives random tokens; use another one")


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel", "Unigram"])
def test_models_other_than_bpe_are_refused(program: Path, kind: str) -> None:
    data = json.loads(Tokenizer(getattr(models, kind)()).to_str())
    assert f"its model is of type '{kind}', not BPE" in fault(program, json.dumps(data))


@pytest.mark.parametrize(
    "expression", [r"(?i:ß)", r"[a&&b]", r"\R", r"(a)\1", "(", r"\p{Cn}", "(?:a|a)*[bc]d"]
)
def test_expressions_that_might_differ_or_hang_are_refused(program: Path, expression: str) -> None:
    split = pre_tokenizers.Split(Regex(r"a"), "isolated").__getstate__()
    part = {**json.loads(split), "pattern": {"Regex": expression}}
    assert "regular expression" in fault(program, replace_part("pre_tokenizer", part))


def test_a_text_that_makes_an_expression_slow_is_an_error_of_the_prompt(program: Path) -> None:
    tokenizer = Tokenizer.from_str(KINDS["gpt-2"].to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?:zq|zq)*[bc]d"), "isolated")
    quick, slow = ask(program, tokenizer, {"encode": "abcd"}, {"encode": "zq" * 400 + "bcd"})
    assert quick["ids"] == tokenizer.encode("abcd").ids
    assert slow["is_prompt"]
    assert "cannot be turned into tokens: the tokenizer's rules fail on it (" in slow["fault"]


def test_ids_beyond_the_rows_of_a_model_are_refused(program: Path, tmp_path: Path) -> None:
    codec = CODECS["byte_level"]
    path = tmp_path / "tokenizer.json"
    codec.tokenizer.save(str(path))
    num_rows = codec.num_tokens - 1
    narrow = TextCodec.of_json(path.read_text("utf-8"), num_rows=num_rows)
    with pytest.raises(PromptError) as expected:
        narrow.encode("a two words é", False)
    done = subprocess.run(
        [str(program), str(path), str(num_rows)],
        input=json.dumps({"encode": "a two words é"}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["fault"] == str(expected.value)


# --- decoding -----------------------------------------------------------------------------------


def check_decoding(program: Path, codec: TextCodec, seed: int, num_cases: int = 200) -> None:
    rng = random.Random(seed)
    questions, expected = [], []
    for case in range(num_cases):
        ids = [rng.randrange(codec.num_tokens + 3) for _ in range(rng.randint(0, 40))]
        splits = [rng.randint(0, 4) for _ in range(60)]
        splits.append(40)
        text, start, pieces = IncrementalText(codec, continues=case % 3 == 0), 0, []
        for count in splits:
            pieces.append(text.push(ids[start : start + count]))
            start += count
        questions.append({"decode": ids, "splits": splits, "continues": case % 3 == 0})
        expected.append({"pieces": [*pieces, text.flush()], "whole": codec.decode(ids)})
    assert ask(program, codec.tokenizer, *questions) == expected


@pytest.mark.parametrize("name", STEPS)
def test_every_decoder_gives_the_same_pieces(program: Path, name: str) -> None:
    check_decoding(program, codec_of(STEPS[name]), seed=1)


@pytest.mark.parametrize("name", CODECS)
def test_any_ids_give_the_same_pieces(program: Path, name: str) -> None:
    check_decoding(program, CODECS[name], seed=2)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([decoders.WordPiece()], "decodes by WordPiece, which is not supported; supported: Byte"),
        ([decoders.CTC()], "decodes by CTC"),
        ([F, R], "decodes by Fuse + Replace"),
        ([F, decoders.Strip(" ", 0, 1)], "strips the end of the text"),
        ([decoders.Replace("", "x")], "which is not a text; such a decoder is not supported"),
        ([decoders.Replace("a", "b" * 50), decoders.Replace("b", "cc")], "100 times longer"),
    ],
)
def test_decoders_that_cannot_be_streamed_are_refused(
    program: Path, steps: list[Any], reason: str
) -> None:
    tokenizer = Tokenizer(models.BPE({"abc": 0}, []))
    tokenizer.decoder = decoders.Sequence(steps)
    found = fault(program, tokenizer)
    assert found.startswith("tokenizer.json: the tokenizer")
    assert reason in found


# --- stopping -----------------------------------------------------------------------------------


def stop_codec() -> TextCodec:
    words = [
        "<eos>",
        "<|end|>",
        *"ab\né▁",
        "ab",
        "ba",
        "aab",
        "<0xF0>",
        "<0x9F>",
        "<0x9A>",
        "<0x80>",
    ]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.add_special_tokens(["<eos>", AddedToken("<|end|>")])
    tokenizer.decoder = decoders.Sequence([R, B, F])
    return TextCodec(tokenizer)


def random_stops(rng: random.Random) -> list[str]:
    parts = ["a", "b", "\n", "é", " ", "🚀", "<eos>", "<|end|>"]
    return ["".join(rng.choices(parts, k=rng.randint(1, 4))) for _ in range(rng.randint(0, 4))]


def test_answers_end_as_in_python(program: Path) -> None:
    codec, rng = stop_codec(), random.Random(5)
    questions, expected = [], []
    for _ in range(1500):
        ids = [rng.randrange(codec.num_tokens + 1) for _ in range(rng.randint(0, 30))]
        stops, limit = random_stops(rng), rng.randint(1, 25)
        eos, stop_ids = rng.choice(([0], [0, 1], [])), rng.choice(([], [1], [3]))
        rule = StopRule(IncrementalText(codec), eos, limit, stops, stop_ids)
        pieces = []
        for token_id in ids:
            rule.feed(token_id)
            pieces.append(rule.take_text())
        pieces.append(rule.close())
        options = {"eos": eos, "limit": limit, "stops": stops, "stop_ids": stop_ids}
        questions.append({"stop": ids, **options})
        found = {"kept": rule.token_ids, "reason": rule.finish_reason or ""}
        expected.append({**found, "at_token": rule.ended_at_token, "pieces": pieces})
    assert ask(program, codec.tokenizer, *questions) == expected
    assert {"", "eos", "stop", "length"} == {answer["reason"] for answer in expected}


@pytest.mark.parametrize(
    ("stops", "limit"),
    [([""], 1), (["x"] * 17, 1), (["é" * 257], 1), (["", "é" * 300], 1), ([], 0), ([], -3)],
)
def test_invalid_options_get_the_same_message_as_in_python(
    program: Path, stops: list[str], limit: int
) -> None:
    codec = stop_codec()
    with pytest.raises(PromptError) as expected:
        StopRule(IncrementalText(codec), (), limit, stops)
    question = {"stop": [], "eos": [], "limit": limit, "stops": stops, "stop_ids": []}
    (found,) = ask(program, codec.tokenizer, question)
    assert found == {"fault": str(expected.value), "is_prompt": True}


def test_the_post_processor_template_applies_only_to_raw_text(program: Path) -> None:
    tokenizer = Tokenizer.from_str(KINDS["llama 2"].to_str())
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    raw, rendered = ask(
        program, tokenizer, {"encode": "the", "special": True}, {"encode": "the", "special": False}
    )
    assert raw["ids"] == [0, *rendered["ids"]]

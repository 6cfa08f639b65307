"""Supported decoders give the same text as tokenizers, also streamed; others are refused."""

import json
import random
from typing import Any

import pytest
from text_decoders import DECODERS, WORDS, F, M, R, codec_of
from tokenizers import decoders

from bita.errors import EngineError
from bita.runtime.text.codec import IncrementalText, TextCodec


@pytest.mark.parametrize("name", DECODERS)
def test_streamed_text_equals_that_of_tokenizers(name: str) -> None:
    codec, rng = codec_of(DECODERS[name]), random.Random(1)
    no_bytes = [index for index, word in enumerate(WORDS) if not word.startswith("<0x")]
    e_acute = [WORDS.index("<0xC3>"), WORDS.index("<0xA9>")]
    for _ in range(500):
        choices = [[rng.choice(no_bytes)], e_acute, [WORDS.index("<0x41>")], [99]]
        weights = [6, 1, 1, 1] if "B" in str(codec.tokenizer.decoder) else [8, 0, 0, 1]
        ids = [i for part in rng.choices(choices, weights, k=rng.randint(0, 8)) for i in part]
        text = IncrementalText(codec)
        pieces = [text.push([token_id]) for token_id in ids]
        expected = codec.tokenizer.decode(ids)
        assert "".join([*pieces, text.flush()]) == codec.decode(ids) == expected, ids


def test_the_first_token_keeps_its_space_after_other_text() -> None:
    codec = codec_of([M])
    ids = [WORDS.index("▁a"), WORDS.index("▁a")]
    assert IncrementalText(codec).push(ids) == codec.decode(ids) == "a a"
    assert IncrementalText(codec, continues=True).push(ids) == " a a"


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([decoders.WordPiece()], r"decodes by WordPiece, which is not supported; supported: Byte"),
        ([decoders.CTC()], r"decodes by CTC"),
        ([decoders.BPEDecoder()], r"decodes by BPEDecoder"),
        ([F, R], r"decodes by Fuse \+ Replace"),
        ([F, decoders.Strip(" ", 0, 1)], r"strips the end of the text"),
        ([decoders.Replace("", "x")], r"replaces \{'String': ''\}, which is not a text"),
        ([decoders.Replace("a", "b" * 50), decoders.Replace("b", "cc")], r"100 times longer"),
    ],
)
def test_decoders_that_cannot_be_streamed_are_refused(steps: list[Any], reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        codec_of(steps)


def test_a_regular_expression_in_a_decoder_is_refused() -> None:
    data = json.loads(codec_of([R]).tokenizer.to_str())
    data["decoder"]["pattern"] = {"Regex": "a+"}
    with pytest.raises(EngineError, match=r"replaces \{'Regex': 'a\+'\}, which is not a text"):
        TextCodec.of_json(json.dumps(data))

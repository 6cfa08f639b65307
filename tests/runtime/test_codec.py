"""Text decoding compared with tokenizers and with brute force on bytes, and broken input."""

import random
import re
from pathlib import Path

import pytest
from deadlines import stopped_if_it_hangs
from tiny_codecs import CODECS, SENTENCES, byte_level
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    processors,
)

from bita.errors import EngineError, PromptError
from bita.runtime.text.codec import IncrementalText, TextCodec


def decode_in_pieces(codec: TextCodec, ids: list[int], rng: random.Random) -> list[str]:
    text, pieces = IncrementalText(codec), []
    while ids:
        count = rng.randint(0, 4)
        pieces.append(text.push(ids[:count]))
        ids = ids[count:]
    return [*pieces, text.flush()]


@pytest.mark.parametrize("name", CODECS)
def test_pieces_of_any_tokens_join_to_the_whole_text(name: str) -> None:
    codec, rng = CODECS[name], random.Random(1)
    for _ in range(500):
        ids = [rng.randrange(codec.num_tokens + 3) for _ in range(rng.randint(0, 40))]
        assert "".join(decode_in_pieces(codec, ids, rng)) == codec.decode(ids)


def test_byte_level_decoding_of_any_tokens_equals_tokenizers() -> None:
    codec, rng = CODECS["byte_level"], random.Random(2)
    for _ in range(1000):
        ids = [rng.randrange(codec.num_tokens + 3) for _ in range(rng.randint(0, 40))]
        assert codec.decode(ids) == codec.tokenizer.decode(ids)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("sentence", SENTENCES)
def test_valid_text_survives_encoding_and_equals_tokenizers(name: str, sentence: str) -> None:
    codec = CODECS[name]
    ids = codec.encode(sentence, add_special_tokens=False)
    assert codec.decode(ids) == codec.tokenizer.decode(ids) == sentence
    assert all("\ufffd" not in piece for piece in decode_in_pieces(codec, ids, random.Random(3)))


def token_of(codec: TextCodec, token_id: int) -> str:
    token = codec.tokenizer.id_to_token(token_id)
    assert token is not None
    return token


@pytest.mark.parametrize("name", ["llama2", "gemma"])
def test_byte_fallback_decodes_the_bytes_as_utf8(name: str) -> None:
    codec, rng = CODECS[name], random.Random(4)
    for _ in range(500):
        ids = [rng.randrange(3, codec.num_tokens) for _ in range(rng.randint(0, 20))]
        tokens = [token_of(codec, token_id) for token_id in ids]
        whole = b"".join(
            bytes.fromhex(token[3:5]) if token.startswith("<0x") else token.encode()
            for token in tokens
        )
        expected = whole.decode("utf-8", "replace").replace("▁", " ")
        assert codec.decode(ids) == (expected.removeprefix(" ") if name == "llama2" else expected)


@pytest.mark.parametrize("name", CODECS)
def test_a_character_is_shown_as_soon_as_it_is_complete(name: str) -> None:
    text = IncrementalText(CODECS[name])
    *first, last = CODECS[name].encode("x🛰", add_special_tokens=False)
    assert text.push(first).strip() == "x"
    assert text.push([last]) == "🛰"
    text.push(first)
    assert text.flush() == "\ufffd"


def test_a_leading_space_is_kept_only_after_other_text() -> None:
    codec = CODECS["llama2"]
    ids = codec.encode("the quick the", add_special_tokens=False)
    assert codec.tokenizer.id_to_token(ids[0]) == "▁the"
    bos_id = codec.token_id("<bos>")
    assert bos_id is not None
    assert IncrementalText(codec).push([bos_id, *ids]) == "the quick the"
    assert IncrementalText(codec, continues=True).push(ids) == " the quick the"
    assert CODECS["gemma"].decode([codec.token_id("▁the") or 0]) == " the"


def test_added_tokens_are_shown_but_special_and_unknown_ones_are_not() -> None:
    codec = CODECS["byte_level"]
    ids = codec.encode("<bos>a<think>two words é<eos>", add_special_tokens=False)
    assert codec.token_id("<eos>") == ids[-1]
    assert codec.token_id("<none>") is None
    assert codec.decode([*ids, codec.num_tokens + 7]) == "a<think>two words é"


def test_special_tokens_are_added_on_request_and_text_is_never_truncated() -> None:
    tokenizer = byte_level().tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A", special_tokens=[("<bos>", 0)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    codec = TextCodec(tokenizer)
    ids = codec.encode(SENTENCES[0], add_special_tokens=False)
    assert codec.encode(SENTENCES[0], add_special_tokens=True) == [0, *ids]
    assert codec.decode(ids) == SENTENCES[0]


def test_decoding_garbage_takes_no_longer_than_text() -> None:
    """DecodeStream, which is not used here, takes minutes: n² steps for n bytes."""
    text = IncrementalText(CODECS["llama2"])
    with stopped_if_it_hangs():
        shown = "".join(text.push([3 + 0x80]) for _ in range(100_000))
    assert shown == "\ufffd" * 100_000


def test_tokens_without_a_decoder_are_joined_by_spaces() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    ids = [0, 1, 1]
    assert TextCodec(tokenizer).decode(ids) == tokenizer.decode(ids) == "a b b"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [(None, "of type NoneType; pass a string"), ("a\ud800", r"'\ud800' at character 1")],
)
def test_prompts_that_are_not_text_are_refused(prompt: str, message: str) -> None:
    with pytest.raises(PromptError, match=re.escape(message)):
        CODECS["byte_level"].encode(prompt, add_special_tokens=False)


def test_the_tokenizer_of_an_engine_is_read_and_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"tokenizer.json is missing. .*make engine"):
        TextCodec.open(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(EngineError, match=r"tokenizer.json is not a tokenizer: .*make engine"):
        TextCodec.open(tmp_path)
    CODECS["llama2"].tokenizer.save(str(path))
    assert TextCodec.open(tmp_path).decode([3 + 0x43]) == "C"
    wordpiece = byte_level().tokenizer
    wordpiece.decoder = decoders.WordPiece()
    wordpiece.save(str(path))
    with pytest.raises(EngineError, match=r"tokenizer.json: .* by WordPiece, .* not supported"):
        TextCodec.open(tmp_path)


def metaspace() -> TextCodec:
    """Make a codec that decodes the first token differently."""
    tokenizer = Tokenizer.from_str(CODECS["llama2"].tokenizer.to_str())
    tokenizer.decoder = decoders.Metaspace()
    return TextCodec(tokenizer)


@pytest.mark.parametrize("name", [*CODECS, "metaspace"])
def test_special_tokens_can_be_shown_as_text(name: str) -> None:
    """They are shown verbatim, and a space after them is kept."""
    codec = metaspace() if name == "metaspace" else CODECS[name]
    special = next(iter(codec.hidden_tokens))
    mark = codec.hidden_tokens[special]
    words = codec.encode("two spaces", add_special_tokens=False)
    inner = b"".join(codec.token_bytes[token] for token in words).decode()
    for ids, text in (
        ([special, *words], mark + inner),
        ([special, special, *words], mark + mark + inner),
        ([*words, special], codec.decode(words) + mark),
    ):
        shown = IncrementalText(codec, shown_ids=(special,))
        pieces = [shown.push((token,)) for token in ids]
        assert "".join([*pieces, shown.flush()]) == text
        at_once = IncrementalText(codec, shown_ids=(special,))
        assert at_once.push(ids) + at_once.flush() == text
        assert mark not in codec.decode(ids)

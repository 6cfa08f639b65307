"""Tokenizers give the same ids as llama.cpp and transformers; EOS ids and templates are found."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import DATA
from text_lines import text_lines
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from bita.errors import ModelError
from bita.export.checkpoint import TextAssets
from bita.export.gguf.pretokenizers import PRE_TOKENIZERS
from bita.export.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    USER_DEFINED,
    read_gguf_text_assets,
)
from bita.export.huggingface.tokenizer import read_text_assets
from bita.export.sources import open_checkpoint

GOLDEN = DATA / "smollm2_llama_cpp_ids.json"
PIECES = ("a", "b", "c", "ab", "bc", "abc", "ca", SPACE, f"{SPACE}a", f"{SPACE}ab", "cab", "aa")


# --- the default model against other programs ---------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> TextAssets:
    return open_checkpoint("smollm2-135m-instruct").text_assets()


@pytest.mark.model
def test_ids_equal_those_of_llama_cpp(smollm2: TextAssets) -> None:
    tokenizer = Tokenizer.from_str(smollm2.tokenizer_json)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["ids"]
    assert len(golden) > 90
    for line, ids in golden.items():
        assert tokenizer.encode(line).ids == ids, line


@pytest.mark.model
def test_ids_equal_those_of_transformers_with_the_models_digit_rule(smollm2: TextAssets) -> None:
    """transformers 5.23 ignores `tokenizer.ggml.pre = smollm`, so the test sets the rule.

    Without it, digits (`½`, `\\r\\n3`) are joined differently from llama.cpp and from SmolLM2's own
    tokenizer.json.
    """
    transformers = pytest.importorskip("transformers")
    path = open_checkpoint("smollm2-135m-instruct").path
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    ours = Tokenizer.from_str(smollm2.tokenizer_json)
    for line in text_lines(300):
        assert ours.encode(line).ids == theirs(line).input_ids, line


@pytest.mark.model
def test_decoding_restores_the_text(smollm2: TextAssets) -> None:
    tokenizer = Tokenizer.from_str(smollm2.tokenizer_json)
    for line in text_lines(300):
        assert tokenizer.decode(tokenizer.encode(line).ids, skip_special_tokens=False) == line


@pytest.mark.model
def test_the_default_model_has_the_expected_text_assets(smollm2: TextAssets) -> None:
    assert smollm2.eos_ids == (2,)
    assert smollm2.special_tokens["eos_token"] == "<|im_end|>"
    assert smollm2.chat_template is not None
    assert "<|im_start|>" in smollm2.chat_template
    tokenizer = Tokenizer.from_str(smollm2.tokenizer_json)
    assert tokenizer.get_vocab_size() == 49152
    assert tokenizer.decode([1, 9906, 2]) == tokenizer.decode([9906])


# --- byte-level vocabularies --------------------------------------------------------------------


def byte_level(**fields: Any) -> dict[str, Any]:
    """Return metadata with every byte, digit pairs and triples, and a few words as tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    digits = [f"{i}{j}" for i in "123" for j in "123"] + ["123", "112"]
    words = ["ab", "abc", "Ġab", "Ġ123", "ĊĊ", "'s", "AB"]
    merges = [f"{d[:-1]} {d[-1]}" for d in digits] + ["a b", "ab c", "Ġ ab", "Ċ Ċ", "' s", "A B"]
    tokens = [*alphabet, *digits, *words, "<|im_end|>", "<tool>", "whole"]
    types = [NORMAL] * (len(tokens) - 3) + [CONTROL, USER_DEFINED, NORMAL]
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": types,
        "merges": merges,
        "bos_token_id": tokens.index("<|im_end|>"),
        "eos_token_id": tokens.index("<|im_end|>"),
        **fields,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in metadata.items() if v is not None}


def pieces(metadata: dict[str, Any], text: str) -> list[str | None]:
    tokenizer = Tokenizer.from_str(read_gguf_text_assets("m", metadata).tokenizer_json)
    return [tokenizer.id_to_token(index) for index in tokenizer.encode(text).ids]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "123123", ["123", "123"]),
        ("smollm", "123", ["1", "2", "3"]),
        ("qwen2", "123", ["1", "2", "3"]),
        ("tekken", "123", ["<|im_end|>", "1", "2", "3"]),
        ("llama-bpe", "1231", ["<|im_end|>", "123", "1"]),
        ("dbrx", "1231", ["123", "1"]),
        ("gpt-4o", "1231", ["123", "1"]),
        ("default", "1231", ["123", "1"]),
        ("gpt-2", "ab\n\nab", ["ab", "Ċ", "Ċ", "ab"]),
        ("qwen2", "ab\n\nab", ["ab", "ĊĊ", "ab"]),
        ("gpt-2", "ab's", ["ab", "'s"]),
        ("gpt-2", "AB'S", ["AB", "'", "S"]),
        ("qwen2", "whole", ["w", "h", "o", "l", "e"]),
        ("dbrx", "whole", ["w", "h", "o", "l", "e"]),
        ("llama-bpe", "whole", ["<|im_end|>", "whole"]),
        ("gpt-2", "ab<|im_end|>ab<tool> ab", ["ab", "<|im_end|>", "ab", "<tool>", "Ġab"]),
    ],
)
def test_words_are_split_by_the_rule_of_the_file(pre: str, text: str, expected: list[str]) -> None:
    assert pieces(byte_level(pre=pre), text) == expected


def test_camel_case_splits_only_in_tekken_and_gpt4o() -> None:
    for pre, expected in (("tekken", ["ab", "AB"]), ("gpt-4o", ["ab", "AB"])):
        words = PRE_TOKENIZERS[pre].build().pre_tokenize_str("abAB")
        assert [word for word, _ in words] == expected
    assert len(PRE_TOKENIZERS["qwen2"].build().pre_tokenize_str("abAB")) == 1


def test_a_file_without_pre_is_read_as_default() -> None:
    assert pieces(byte_level(pre=None), "1231") == pieces(byte_level(pre="default"), "1231")


def test_bos_and_eos_are_added_as_the_file_says() -> None:
    assert pieces(byte_level(), "ab") == ["ab"]
    added = byte_level(add_bos_token=True, add_eos_token=True)
    assert pieces(added, "ab") == ["<|im_end|>", "ab", "<|im_end|>"]
    assert pieces(byte_level(pre="llama-bpe", add_bos_token=False), "ab") == ["ab"]


def test_merges_of_missing_tokens_are_left_out() -> None:
    metadata = byte_level()
    metadata["tokenizer.ggml.merges"] = ["x y", *metadata["tokenizer.ggml.merges"]]
    assert pieces(metadata, "xy ab") == ["x", "y", "Ġab"]


def test_turn_ends_of_the_template_come_first() -> None:
    metadata = byte_level(eos_token_id=5, eot_token_id=7)
    assert read_gguf_text_assets("m", metadata).eos_ids == (5, 7)
    metadata["tokenizer.chat_template"] = "{{ x }}<|im_end|>"
    end = metadata["tokenizer.ggml.tokens"].index("<|im_end|>")
    assets = read_gguf_text_assets("m", metadata)
    assert assets.eos_ids == (end, 5, 7)
    assert assets.chat_template == "{{ x }}<|im_end|>"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pre": "tokenizer-of-tomorrow"}, r"pre is 'tokenizer-of-tomorrow'; known: .*qwen2"),
        ({"model": "bert"}, r"model is 'bert'; supported: gpt2, llama"),
        ({"merges": None}, r"merges is missing"),
        ({"tokens": ["a", "a"], "token_type": None}, r"1 tokens are in the vocabulary twice"),
        ({"tokens": None, "token_type": [1]}, r"(?s)2 faults.*no vocabulary.*1 token types"),
        ({"eos_token_id": None}, r"names no token that ends an answer"),
    ],
)
def test_broken_vocabularies_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_gguf_text_assets("m.gguf", byte_level(**fields))


# --- SentencePiece vocabularies -----------------------------------------------------------------


def sentencepiece(seed: int, **fields: Any) -> dict[str, Any]:
    """Return metadata of PIECES with random scores, all bytes, and two added tokens."""
    generator = np.random.default_rng(seed)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *PIECES, "<end>", "  "]
    types = [2, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(PIECES), CONTROL, USER_DEFINED]
    scores = [0.0] * 259 + (-generator.permutation(len(PIECES)).astype(float)).tolist() + [0.0, 0.0]
    metadata = {
        **{"model": "llama", "tokens": tokens, "token_type": types, "scores": scores},
        **{"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_bos_token": False},
        **fields,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in metadata.items() if v is not None}


def merge_by_hand(text: str, scores: dict[str, float]) -> list[str]:
    """Apply SentencePiece's rule: join the neighbours with the best union, leftmost first."""
    symbols = list(text)
    while True:
        unions = [
            (-scores[left + right], i)
            for i, (left, right) in enumerate(pairwise(symbols))
            if left + right in scores
        ]
        if not unions:
            break
        i = min(unions)[1]
        symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
    in_bytes = [[f"<0x{b:02X}>" for b in s.encode()] for s in symbols]
    return [
        piece
        for symbol, spelled in zip(symbols, in_bytes, strict=True)
        for piece in ([symbol] if symbol in scores else spelled)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_merging_by_score_equals_brute_force(seed: int) -> None:
    metadata = sentencepiece(seed)
    scores = dict(
        zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True)
    )
    known = {piece: scores[piece] for piece in PIECES}
    tokenizer = Tokenizer.from_str(read_gguf_text_assets("m", metadata).tokenizer_json)
    generator = np.random.default_rng(seed)
    for length in range(1, 40):
        text = "".join(generator.choice(["a", "b", "c", "é", "🙂", "\n"], length))
        text = text.replace("bb", "b b")
        expected = merge_by_hand(SPACE + text.replace(" ", SPACE), known)
        assert tokenizer.encode(text).tokens == expected, text
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_space_prefix_follows_added_tokens() -> None:
    with_prefix = sentencepiece(0)
    assert pieces(with_prefix, "b")[0] == SPACE
    assert pieces(with_prefix, "<end>b") == ["<end>", SPACE, "b"]
    assert pieces(with_prefix, "b  b") == [SPACE, "b", "  ", SPACE, "b"]
    gemma = sentencepiece(0, add_space_prefix=False, add_bos_token=None)
    assert pieces(gemma, "b<end>b  b") == ["<s>", "b", "<end>", "b", "  ", "b"]
    tokenizer = Tokenizer.from_str(read_gguf_text_assets("m", gemma).tokenizer_json)
    assert tokenizer.decode(tokenizer.encode(" b").ids) == " b"


def test_special_tokens_of_phi3_remove_the_space_after_them() -> None:
    metadata = sentencepiece(0, add_space_prefix=False)
    assert pieces(metadata, "<end>\nb") == ["<end>", "<0x0A>", "b"]
    metadata["general.name"] = "Phi-3 Mini"
    assert pieces(metadata, "<end>\nb") == ["<end>", "b"]
    assert pieces(metadata, "<s>\nb") == ["<s>", "<0x0A>", "b"]


# --- Hugging Face directories -------------------------------------------------------------------


def write_tokenizer(directory: Path, **files: Any) -> Path:
    """Write tokenizer.json with `a`, `</s>` (1), `<|im_end|>` (2), and `files` by stem."""
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.add_special_tokens([AddedToken("</s>", special=True), "<|im_end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    for stem, content in files.items():
        (directory / f"{stem}.json").write_text(json.dumps(content))
    return directory


def test_the_generation_config_decides_the_eos_ids(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, generation_config={"eos_token_id": [7, 1]})
    assert read_text_assets(tmp_path, {"eos_token_id": 5}).eos_ids == (7, 1)
    write_tokenizer(tmp_path, generation_config={"eos_token_id": 0})
    assert read_text_assets(tmp_path, {"eos_token_id": 5}).eos_ids == (0,)


def test_without_a_generation_config_eos_ids_come_from_other_files(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, tokenizer_config={"eos_token": {"content": "</s>"}})
    assert read_text_assets(tmp_path, {"eos_token_id": [5, 6]}).eos_ids == (5, 6)
    assert read_text_assets(tmp_path, {}).eos_ids == (1,)
    assert read_text_assets(tmp_path, {}).special_tokens == {"eos_token": "</s>"}
    (tmp_path / "chat_template.jinja").write_text("{{ x }}<|im_end|>")
    assert read_text_assets(tmp_path, {"eos_token_id": 5}).eos_ids == (2, 5)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"which token ends an answer.*generation_config\.json"):
        read_text_assets(tmp_path, {})


def test_special_tokens_map_is_the_second_choice(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, special_tokens_map={"eos_token": "</s>", "bos_token": "a"})
    assert read_text_assets(tmp_path, {}).special_tokens == {"bos_token": "a", "eos_token": "</s>"}


def test_chat_templates_are_found_in_order(tmp_path: Path) -> None:
    config: dict[str, Any] = {"eos_token": "</s>"}
    write_tokenizer(tmp_path, tokenizer_config=config)
    assert read_text_assets(tmp_path, {}).chat_template is None
    write_tokenizer(tmp_path, tokenizer_config=config | {"chat_template": "one"})
    assert read_text_assets(tmp_path, {}).chat_template == "one"
    named = [{"name": "tools", "template": "two"}, {"name": "default", "template": "three"}]
    write_tokenizer(tmp_path, tokenizer_config=config | {"chat_template": named})
    assert read_text_assets(tmp_path, {}).chat_template == "three"
    write_tokenizer(tmp_path, tokenizer_config=config | {"chat_template": named[:1]})
    with pytest.raises(ModelError, match=r"chat templates tools but no 'default'"):
        read_text_assets(tmp_path, {})
    (tmp_path / "chat_template.jinja").write_text("four")
    assert read_text_assets(tmp_path, {}).chat_template == "four"


def test_a_missing_or_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing.*save_pretrained"):
        read_text_assets(tmp_path, {})
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        read_text_assets(tmp_path, {})

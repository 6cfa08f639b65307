"""Tokens defined outside tokenizer.json have the ids, text and roles of transformers."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_tokenizer

from bita.errors import ModelError
from bita.export.huggingface.tokenizer import read_text_assets
from bita.runtime.text.codec import TextCodec

TEXTS = ("ab<|new|> c", "the <|user|>quick<|end|> fox", "x [X]y  <|new|>  z", "<|two|><|new|>")
CONFIG = {"model_type": "llama", "eos_token_id": 1, "vocab_size": 320}
Edit = Callable[[dict[str, Any]], object]


def token(content: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": content, **plain, "special": True, **flags}


def typed(content: str, **flags: bool) -> dict[str, Any]:
    return {"__type": "AddedToken", **token(content, **flags)}


def write(
    directory: Path, edit: Edit = lambda data: None, *, config: Any = None, **files: Any
) -> Path:
    """Write a tiny tokenizer, edited by `edit`, and a JSON file for each keyword."""
    write_tokenizer(directory)
    path = directory / "tokenizer.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    base: dict[str, Any] = {
        "config": CONFIG,
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    for stem, content in {"tokenizer_config": config or {}, "config": {}, **files}.items():
        given = {**base.get(stem, {}), **content}
        (directory / f"{stem}.json").write_text(json.dumps(given))
    return directory


def ordinary(*names: str) -> Edit:
    """Return an edit after which these tokens of tokenizer.json are not special."""

    def edit(data: dict[str, Any]) -> None:
        for each in data["added_tokens"]:
            each["special"] = each["content"] not in names

    return edit


def without_added(data: dict[str, Any]) -> None:
    data["added_tokens"] = []


AS_IT_IS: Edit = lambda data: None  # noqa: E731
CASES: dict[str, tuple[Edit, dict[str, Any]]] = {
    "decoder, next id": (
        AS_IT_IS,
        {"config": {"added_tokens_decoder": {"300": token("<|new|>")}}},
    ),
    "decoder, later id": (
        AS_IT_IS,
        {"config": {"added_tokens_decoder": {"310": token("<|new|>"), "305": token("<|two|>")}}},
    ),
    "decoder, id of another": (
        AS_IT_IS,
        {"config": {"added_tokens_decoder": {"5": token("<|new|>")}}},
    ),
    "decoder, an ordinary token": (
        AS_IT_IS,
        {"config": {"added_tokens_decoder": {"68": token("a", special=False)}}},
    ),
    "decoder, flags": (
        AS_IT_IS,
        {
            "config": {
                "added_tokens_decoder": {
                    "2": token("<|user|>", lstrip=True),
                    "300": token("<|new|>", rstrip=True, lstrip=True, special=False),
                    "301": token("[X]", single_word=True),
                }
            }
        },
    ),
    "decoder, special only there": (
        ordinary("<|user|>", "<|end|>"),
        {"config": {"added_tokens_decoder": {"2": token("<|user|>")}, "eos_token": "<|end|>"}},
    ),
    "decoder, named there too": (
        ordinary("<|end|>"),
        {
            "config": {
                "added_tokens_decoder": {"1": token("<|end|>", special=False)},
                "eos_token": "<|end|>",
            }
        },
    ),
    "decoder, not special only there": (
        AS_IT_IS,
        {"config": {"added_tokens_decoder": {"2": token("<|user|>", special=False)}}},
    ),
    "roles as texts": (
        without_added,
        {"config": {"bos_token": "<|new|>", "eos_token": "<|end|>", "image_token": "[X]"}},
    ),
    "roles as objects": (
        without_added,
        {"config": {"pad_token": typed("<|new|>", lstrip=True), "unk_token": typed("<|two|>")}},
    ),
    "additional tokens": (
        AS_IT_IS,
        {"config": {"additional_special_tokens": ["<|new|>", typed("<|two|>", rstrip=True)]}},
    ),
    "extra tokens by name": (
        AS_IT_IS,
        {"config": {"extra_special_tokens": {"video_token": "<|new|>"}}},
    ),
    "added_tokens.json": (
        AS_IT_IS,
        {"added_tokens": {"<|two|>": 301, "<|new|>": 300}, "config": {"bos_token": "<|two|>"}},
    ),
    "added_tokens.json with a decoder": (
        AS_IT_IS,
        {
            "added_tokens": {"<|two|>": 301},
            "config": {"added_tokens_decoder": {"300": token("<|new|>")}},
        },
    ),
    "special_tokens_map.json": (
        ordinary("<|end|>"),
        {
            "config": {"eos_token": "<|pad|>", "bos_token": "<|new|>"},
            "special_tokens_map": {
                "eos_token": token("<|end|>"),
                "additional_special_tokens": ["<|two|>"],
            },
        },
    ),
    "special_tokens_map.json with a decoder": (
        AS_IT_IS,
        {
            "config": {"added_tokens_decoder": {}, "eos_token": "<|pad|>"},
            "special_tokens_map": {"eos_token": "<|new|>"},
        },
    ),
    "settings that mean nothing": (
        AS_IT_IS,
        {
            "config": {
                **{"add_bos_token": True, "add_eos_token": True, "bos_token": "<|user|>"},
                **{"add_prefix_space": True, "legacy": True, "model_max_length": 3},
                **{"clean_up_tokenization_spaces": True, "eos_token": "<|end|>"},
            }
        },
    ),
    "ids of tokenizer.json with a gap": (
        lambda data: data["added_tokens"].append({"id": 310, **token("<|new|>")}),
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_ids_text_and_roles_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    edit, files = CASES[name]
    path = write(tmp_path, edit, **files)
    assets = read_text_assets(path, CONFIG)
    ours = TextCodec.of_json(assets.tokenizer_json)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoTokenizer.from_pretrained(path)
    assert assets.special_tokens == theirs.special_tokens_map
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert ours.encode(text, add_special_tokens=True) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_without_additions_is_unchanged(tmp_path: Path) -> None:
    path = write(tmp_path, config={"eos_token": "<|end|>", "pad_token": "<|pad|>"})
    assets = read_text_assets(path, CONFIG)
    assert assets.tokenizer_json == (path / "tokenizer.json").read_text()


def test_default_tokens_of_a_class_count_if_they_exist(tmp_path: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["model"]["vocab"]["<s>"] = 300

    config = {"tokenizer_class": "LlamaTokenizerFast", "eos_token": "<|end|>"}
    assets = read_text_assets(write(tmp_path, edit, config=config), CONFIG)
    assert assets.special_tokens == {"eos_token": "<|end|>", "bos_token": "<s>"}
    codec = TextCodec.of_json(assets.tokenizer_json)
    assert codec.encode("<s>", False) == [300]
    assert codec.decode([300]) == ""


@pytest.mark.parametrize(
    ("stem", "content", "message"),
    [
        ("tokenizer_config", {"eos_token": 3}, "tokenizer_config.json.*: eos_token is 3, not a to"),
        ("tokenizer_config", {"eos_token": {"content": None}}, "eos_token.content is None, not a"),
        ("tokenizer_config", {"eos_token": ["a"]}, r"eos_token is \['a'\], not a token"),
        ("tokenizer_config", {"added_tokens_decoder": []}, r"added_tokens_decoder is \[\], not an"),
        ("tokenizer_config", {"added_tokens_decoder": {"a": token("b")}}, "'a'. is not a token id"),
        ("tokenizer_config", {"added_tokens_decoder": {"9" * 30: token("b")}}, "is not a token id"),
        ("tokenizer_config", {"added_tokens_decoder": {"1": "b"}}, "'1'. is 'b', not a token"),
        (
            "tokenizer_config",
            {"added_tokens_decoder": {"1": {**token("b"), "lstrip": "yes"}}},
            "lstrip is 'yes', not true or false",
        ),
        ("tokenizer_config", {"additional_special_tokens": "a"}, "'a', not a list of tokens"),
        ("tokenizer_config", {"additional_special_tokens": [1]}, "extra_special_tokens is 1, not"),
        (
            "tokenizer_config",
            {"split_special_tokens": True},
            "split_special_tokens changes the results",
        ),
        ("special_tokens_map", {"bos_token": 1.5}, "special_tokens_map.json: bos_token is 1.5"),
        ("added_tokens", {"<|new|>": "300"}, "added_tokens.json: <|new|> is '300', not a whole"),
        ("added_tokens", {"<|new|>": True}, "added_tokens.json: <|new|> is True, not a whole"),
    ],
)
def test_values_of_other_types_are_refused_by_key(
    stem: str, content: Any, message: str, tmp_path: Path
) -> None:
    files = {"config": content} if stem == "tokenizer_config" else {stem: content}
    with pytest.raises(ModelError, match=message.replace("|", r"\|")):
        read_text_assets(write(tmp_path, **files), CONFIG)


@pytest.mark.parametrize(
    "name", ["tokenizer_config", "special_tokens_map", "added_tokens", "generation_config"]
)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not readable JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[]", "not a JSON object"),
    ],
)
def test_files_that_are_not_json_objects_are_refused(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    write(tmp_path)
    (tmp_path / f"{name}.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name}\.json .*{reason}"):
        read_text_assets(tmp_path, CONFIG)

"""Tokenizer and chat template of a Hugging Face model directory."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bita.errors import ModelError
from bita.export.checkpoint import TextAssets
from bita.generation import sampling_numbers

SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token")
# Tokens with which chat models end their turn; a config often names only the end of the document.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eom_id|>")


def read_text_assets(directory: Path, config: Mapping[str, Any]) -> TextAssets:
    """The TextAssets of a model directory. Raises ModelError if it has no fast tokenizer."""
    tokenizer_json = _read_tokenizer(directory)
    tokenizer_config = _optional_json(directory / "tokenizer_config.json")
    special_tokens = _special_tokens(tokenizer_config) or _special_tokens(
        _optional_json(directory / "special_tokens_map.json")
    )
    template = _chat_template(directory, tokenizer_config)
    token_id = Tokenizer.from_str(tokenizer_json).token_to_id
    eos_ids = _eos_ids(directory, config, special_tokens, template, token_id)
    if not eos_ids:
        raise ModelError(
            f"{directory} does not say which token ends an answer; add "
            '{"eos_token_id": ID} as generation_config.json'
        )
    generation = _optional_json(directory / "generation_config.json")
    samples = generation.get("do_sample")
    sampling = sampling_numbers({"temperature": 1.0, **generation}) if samples else {}
    return TextAssets(tokenizer_json, template, eos_ids, special_tokens, sampling)


def turn_ends(template: str | None, token_id: Callable[[str], int | None]) -> tuple[int, ...]:
    """Ids of the tokens with which this chat template ends a turn."""
    ids = [token_id(token) for token in TURN_ENDS if template and token in template]
    return tuple(token for token in ids if token is not None)


def _read_tokenizer(directory: Path) -> str:
    path = directory / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
        Tokenizer.from_str(text)
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing. Download it, or write it from the slow tokenizer: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        ) from None
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ModelError(f"{path} cannot be read ({error}); download it again") from error
    return text


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON ({error}); download it again") from error
    return content if isinstance(content, dict) else {}


def _special_tokens(content: Mapping[str, Any]) -> dict[str, str]:
    """`{"eos_token": "</s>", ...}`; tokens are given as text or as an object with `content`."""
    found = {}
    for key in SPECIAL_KEYS:
        token = content.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[key] = text
    return found


def _chat_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        if template and "default" not in named:
            raise ModelError(
                f"{directory}/tokenizer_config.json has the chat templates {', '.join(named)} but "
                "no 'default'; save the one to use as chat_template.jinja"
            )
        return named.get("default")
    return template


def _eos_ids(
    directory: Path,
    config: Mapping[str, Any],
    special_tokens: Mapping[str, str],
    template: str | None,
    token_id: Callable[[str], int | None],
) -> tuple[int, ...]:
    """generation_config.json decides; without it the template's turn ends come first."""
    given = _as_ids(_optional_json(directory / "generation_config.json").get("eos_token_id"))
    if given:
        return given
    from_config = _as_ids(config.get("eos_token_id"))
    if not from_config and "eos_token" in special_tokens:
        from_config = _as_ids(token_id(special_tokens["eos_token"]))
    return tuple(dict.fromkeys((*turn_ends(template, token_id), *from_config)))


def _as_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(item) for item in value) if isinstance(value, list) else (int(value),)

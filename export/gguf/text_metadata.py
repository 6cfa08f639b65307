"""The text metadata of a GGUF file, checked by type."""

from collections.abc import Mapping
from typing import Any

from bita.errors import ModelError
from bita.json_values import Fields

PREFIX = "tokenizer.ggml."
# Written by converters if there is no such token: -1, which is also the largest unsigned number.
NO_TOKENS = (2**32 - 1, -1)
MAX_TOKEN_TYPE = 6
SAMPLING = "general.sampling."


def read_text_metadata(owner: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata with the types that a tokenizer needs; ids that mean "none" are omitted.

    Lists contain Python numbers and texts.

    Raises:
        ModelError: if values have other types; the error lists all of them.
    """
    fields = Fields(metadata)
    typed = {key: value for key, value in metadata.items() if not key.startswith(PREFIX)}
    for key in ("general.name", "tokenizer.chat_template"):
        if key in fields:
            typed[key] = fields.text(key)
    for key in (key for key in metadata if key.startswith(SAMPLING)):
        typed[key] = fields.number(key)
    tokens = list(fields.texts(f"{PREFIX}tokens", ()))
    for key in (key for key in metadata if key.startswith(PREFIX)):
        value = tokens if key == f"{PREFIX}tokens" else _read_typed(fields, key)
        if value is not None:
            typed[key] = value
    fields.check(ModelError, owner)
    return typed


def token_id_faults(metadata: Mapping[str, Any], num_tokens: int) -> list[str]:
    """Return faults of ids of special tokens that are outside the vocabulary."""
    return [
        f"{key} is {index}, but there are {num_tokens} tokens"
        for key, index in metadata.items()
        if _is_token_id(key) and index >= num_tokens
    ]


def _is_token_id(key: str) -> bool:
    return key.startswith(PREFIX) and key.endswith("_token_id")


def _read_typed(fields: Fields, key: str) -> Any:
    """Return the checked value of a key of the tokenizer, or None for a missing token."""
    name = key.removeprefix(PREFIX)
    if name in ("model", "pre"):
        return fields.text(key)
    if name == "merges":
        return list(fields.texts(key))
    if name == "scores":
        return list(fields.numbers(key))
    if name == "token_type":
        return list(fields.wholes(key, most=MAX_TOKEN_TYPE))
    if _is_token_id(key):
        index = fields.whole(key, least=min(NO_TOKENS), most=max(NO_TOKENS))
        return None if index in NO_TOKENS else index
    if name.startswith(("add_", "remove_", "escape_", "treat_")):
        return fields.flag(key)
    return fields.values[key]  # not read anywhere

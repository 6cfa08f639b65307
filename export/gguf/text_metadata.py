"""The metadata of a GGUF file that is about text, by type."""

from collections.abc import Mapping
from typing import Any

from bita.errors import ModelError
from bita.json_values import Fields

PREFIX = "tokenizer.ggml."
# How converters write that there is no such token: -1, which is the largest number without a sign.
NO_TOKENS = (2**32 - 1, -1)
MAX_TOKEN_TYPE = 6
SAMPLING = "general.sampling."


def read_text_metadata(owner: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with the types that a tokenizer relies on; ids that say "none" are left out.

    Lists are lists of Python's own numbers and texts. Raises ModelError that lists every value of
    another type.
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
        value = tokens if key == f"{PREFIX}tokens" else _typed(fields, key)
        if value is not None:
            typed[key] = value
    fields.check(ModelError, owner)
    return typed


def token_id_faults(metadata: Mapping[str, Any], num_tokens: int) -> list[str]:
    """Ids of special tokens that no token has."""
    return [
        f"{key} is {index}, but there are {num_tokens} tokens"
        for key, index in metadata.items()
        if _is_token_id(key) and index >= num_tokens
    ]


def _is_token_id(key: str) -> bool:
    return key.startswith(PREFIX) and key.endswith("_token_id")


def _typed(fields: Fields, key: str) -> Any:
    """The value of one key of the tokenizer, or None for a token that is not there."""
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
    return fields.values[key]  # nothing reads it

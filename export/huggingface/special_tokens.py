"""Tokens that are named outside tokenizer.json, added to the tokenizer as in transformers.

transformers 5 loads tokenizer.json and then adds, in this order:

- the tokens of `added_tokens_decoder` in tokenizer_config.json, by their ids; without that key,
  those of added_tokens.json, overridden by those of tokenizer.json;
- the tokens named by role (`bos_token`, ..., `image_token`), and then the extra tokens, unless they
  have been added already; these are special.

A token that has an id keeps it, whatever id a file gives; a new token gets the next free id. The
flags (`lstrip`, ...) of the last source count, but a special token stays special. Without
`added_tokens_decoder`, special_tokens_map.json overrides tokenizer_config.json; with it, that file
is not read. `add_bos_token`, `add_eos_token`, `add_prefix_space`, `legacy` and `model_max_length`
have no effect if there is a tokenizer.json.

Some classes (LlamaTokenizer, GPT2Tokenizer, Qwen2Tokenizer, GemmaTokenizer) replace the normalizer
and the pre-tokenizer of tokenizer.json by their own. This is not done here: the file holds the
rules that the model was trained with, and many models name a class that has other rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from bita.errors import ModelError, raise_faults
from bita.json_values import Fields, read_json_object, shown

FIX = "download it again"
ROLES = (
    *("bos_token", "eos_token", "unk_token", "sep_token"),
    *("pad_token", "cls_token", "mask_token"),
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_NAMED_EXTRA = "extra tokens by name"  # not a key of any file
_END_OF_TEXT = "<|endoftext|>"
# Tokens by role of classes of transformers, for roles that no file names.
_CLASS_ROLES: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GPT2Tokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END_OF_TEXT),
    "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), _END_OF_TEXT),
    "GemmaTokenizer": {
        **{"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"},
        **{"pad_token": "<pad>", "mask_token": "<mask>"},
    },
}
Named = str | AddedToken  # as given in a file
Listed = tuple[int, AddedToken]  # with the id given in a file


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that files other than tokenizer.json name."""

    listed: tuple[AddedToken, ...]  # tokens with an id, in ascending order
    roles: dict[str, Named]  # by name, such as "eos_token"
    extra: tuple[Named, ...]  # special tokens without a role
    class_roles: Mapping[str, str]  # roles of the tokenizer's class, for tokens that exist

    def texts(self, tokenizer: Tokenizer) -> dict[str, str]:
        """Return the tokens with a role, by name, for chat templates."""
        return {name: _content(token) for name, token in self._all_roles(tokenizer).items()}

    def add_to(self, tokenizer: Tokenizer) -> bool:
        """Add all tokens to a tokenizer; return whether that changed it."""
        before = tokenizer.get_added_tokens_decoder()
        roles = [*self._all_roles(tokenizer).values()]
        known = {token.content for token in (*before.values(), *self.listed)}
        # A token may be given as text and as an object; the object comes later, so it counts.
        new = {
            _state(token): token for token in (*roles, *self.extra) if _content(token) not in known
        }
        tokens = [*self.listed, *map(_added, new.values())]
        special = {token.content for token in (*before.values(), *tokens) if token.special}
        special |= set(map(_content, roles))
        for token in tokens:
            token.special = token.content in special
        tokenizer.add_tokens(tokens)
        after = tokenizer.get_added_tokens_decoder()
        return {i: _state(token) for i, token in before.items()} != {
            i: _state(token) for i, token in after.items()
        }

    def _all_roles(self, tokenizer: Tokenizer) -> dict[str, Named]:
        """Return the roles that files name, and those of the class whose tokens exist."""
        exist = {
            role: text
            for role, text in self.class_roles.items()
            if tokenizer.token_to_id(text) is not None
        }
        return {**self.roles, **exist}


def read_special_tokens(
    directory: Path, tokenizer_config: Mapping[str, Any], config: Mapping[str, Any], own: Any
) -> SpecialTokens:
    """Read the tokens that the files of a model directory name.

    Args:
        directory: The model directory.
        tokenizer_config: tokenizer_config.json.
        config: config.json.
        own: `added_tokens` of tokenizer.json.

    Raises:
        ModelError: if a file is malformed; the error lists its faults.
    """
    subject = f"{directory}/tokenizer_config.json"
    values = dict(tokenizer_config)
    if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    _move_named_extra(values)
    if values.get("added_tokens_decoder") is not None:
        listed = _decoder_tokens(subject, values["added_tokens_decoder"])
    else:
        _merge_map(values, optional_json(directory / "special_tokens_map.json"))
        subject = f"{directory}: tokenizer_config.json or special_tokens_map.json"
        listed = [*_encoder_tokens(directory, values), *_own_tokens(own)]
    faults: list[str] = []
    roles, extra = _roles(values, faults), _extra(values, faults)
    raise_faults(ModelError, subject, faults)
    name = _class_name(values, config)
    class_roles = {
        role: text for role, text in _CLASS_ROLES.get(name, {}).items() if role not in values
    }
    by_text = {token.content: token for _, token in listed}
    for role in ROLES:
        if role in roles:
            roles[role] = by_text.get(_content(roles[role]), roles[role])
    by_id = dict(listed)
    ordered = tuple(by_id[token_id] for token_id in sorted(by_id))
    return SpecialTokens(ordered, roles, tuple(extra), class_roles)


def optional_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or {} without the file. Raises ModelError if malformed."""
    return read_json_object(path, ModelError, FIX) if path.exists() else {}


def _decoder_tokens(subject: str, decoder: Any) -> list[Listed]:
    """Return the tokens of `added_tokens_decoder`."""
    faults: list[str] = []
    tokens = []
    for key, value in (decoder if isinstance(decoder, dict) else {}).items():
        prefix = f"added_tokens_decoder[{shown(key)}]"
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            faults.append(f"{prefix} is not a token id")
        elif (token := _object_token(value, prefix, faults)) is not None:
            tokens.append((int(key), token))
    if not isinstance(decoder, dict):
        faults.append(f"added_tokens_decoder is {shown(decoder)}, not an object")
    raise_faults(ModelError, subject, faults)
    return tokens


def _merge_map(values: dict[str, Any], special_tokens_map: Mapping[str, Any]) -> None:
    """Override values by special_tokens_map.json, and extend the extra tokens."""
    for key, value in special_tokens_map.items():
        if key == "extra_special_tokens" and isinstance(value, list):
            before = values.get(key) or []
            value = [*before, *value] if isinstance(before, list) else value
        elif isinstance(value, dict) and key != "extra_special_tokens":
            value = {**value, "special": True}
        values[key] = value
    _move_named_extra(values)
    if "additional_special_tokens" in values and "extra_special_tokens" not in values:
        values["extra_special_tokens"] = values.pop("additional_special_tokens")


def _move_named_extra(values: dict[str, Any]) -> None:
    """Turn extra tokens that are given by name into roles."""
    if isinstance(values.get("extra_special_tokens"), dict):
        values[_NAMED_EXTRA] = values.get(_NAMED_EXTRA, {}) | values.pop("extra_special_tokens")


def _encoder_tokens(directory: Path, values: Mapping[str, Any]) -> list[Listed]:
    """Return the tokens of added_tokens.json; tokens with a role and extra tokens are special."""
    fields = Fields(optional_json(directory / "added_tokens.json"))
    ids = {text: fields.whole(text, most=2**31) for text in fields.values}
    fields.check(ModelError, f"{directory}/added_tokens.json")
    extra = values.get("extra_special_tokens")
    named = [*map(values.get, ROLES), *(extra if isinstance(extra, list) else ())]
    # transformers has not yet read tokens of tokenizer_config.json that are objects
    special = {_text(token) for token in named if not _is_unread(token)}
    return [
        (token_id, AddedToken(text, normalized=text not in special, special=text in special))
        for text, token_id in ids.items()
    ]


def _own_tokens(own: Any) -> list[Listed]:
    """Return the added tokens of tokenizer.json and their ids; the library has validated them."""
    return [
        (entry["id"], token)
        for entry in own or ()
        if (token := _object_token(entry, "added_tokens", [])) is not None
    ]


def _roles(values: Mapping[str, Any], faults: list[str]) -> dict[str, Named]:
    """Return tokens by role: the usual roles first, then others of the model."""
    others = [
        key
        for key, value in values.items()
        if key.endswith("_token") and key not in ROLES and _text(value) is not None
    ]
    named = {key: values.get(key) for key in (*ROLES, *others)} | values.get(_NAMED_EXTRA, {})
    tokens = {key: _token(value, key, faults) for key, value in named.items() if value is not None}
    return {key: token for key, token in tokens.items() if token is not None}


def _extra(values: Mapping[str, Any], faults: list[str]) -> list[Named]:
    extra = values.get("extra_special_tokens")
    if extra is None:
        return []
    if not isinstance(extra, list):
        faults.append(f"extra_special_tokens is {shown(extra)}, not a list of tokens")
        return []
    tokens = (_token(value, "extra_special_tokens", faults) for value in extra)
    return [token for token in tokens if token is not None]


def _token(value: Any, name: str, faults: list[str]) -> Named | None:
    """Read a token given as text or as an object; add a fault and return None if malformed."""
    return value if isinstance(value, str) else _object_token(value, name, faults)


def _object_token(value: Any, name: str, faults: list[str]) -> AddedToken | None:
    """Read a token given as an object with `content` and flags."""
    if not isinstance(value, dict):
        faults.append(f"{name} is {shown(value)}, not a token")
        return None
    fields = Fields(value, f"{name}.")
    content = fields.text("content")
    flags = {flag: fields.flag(flag) for flag in _FLAGS if flag in value}
    faults += fields.faults
    return None if fields.faults else AddedToken(content, **flags)


def _text(value: Any) -> str | None:
    """Return the string of a token in any of its forms; None for other values."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _is_unread(value: Any) -> bool:
    return isinstance(value, dict) and "__type" in value


def _class_name(values: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the class of transformers that would load this tokenizer."""
    if config.get("model_type") == "qwen2":
        return "Qwen2Tokenizer"
    name = values.get("tokenizer_class") or config.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else ""


def _content(token: Named) -> str:
    return token if isinstance(token, str) else token.content


def _added(token: Named) -> AddedToken:
    return AddedToken(token, special=True) if isinstance(token, str) else token


def _state(token: Named) -> Any:
    """Return a key that distinguishes tokens; a text differs from the object it would become."""
    return token if isinstance(token, str) else tuple(sorted(token.__getstate__().items()))

"""Tokens that are named outside tokenizer.json, added to it as transformers adds them.

transformers 5 loads tokenizer.json and then adds, in this order:

- the tokens of `added_tokens_decoder` in tokenizer_config.json, by their ids; where that key is
  absent, those of added_tokens.json, with those of tokenizer.json in their place;
- the tokens named by role (`bos_token`, ..., `image_token`), and then the extra ones, that are
  not among the added tokens yet; these are special.

A token that has an id keeps it, whatever id a file gives; a new one gets the next free id. What a
later source says of a token (`lstrip`, ...) counts, but once special it stays special. Without
`added_tokens_decoder`, special_tokens_map.json overrides tokenizer_config.json; with it that file
is not read. `add_bos_token`, `add_eos_token`, `add_prefix_space`, `legacy` and `model_max_length`
change nothing where there is a tokenizer.json.

Some classes (LlamaTokenizer, GPT2Tokenizer, Qwen2Tokenizer, GemmaTokenizer) replace the normalizer
and the pre-tokenizer of tokenizer.json by their own. That is not followed: the file holds the rules
that the model was trained with, and many models name a class that has others.
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
_NAMED_EXTRA = "extra tokens by name"  # no key of a file
_END_OF_TEXT = "<|endoftext|>"
# What these classes of transformers name where no file does.
_CLASS_ROLES: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GPT2Tokenizer": dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END_OF_TEXT),
    "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), _END_OF_TEXT),
    "GemmaTokenizer": {
        **{"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"},
        **{"pad_token": "<pad>", "mask_token": "<mask>"},
    },
}
Named = str | AddedToken  # as a file gives it
Listed = tuple[int, AddedToken]  # with the id that a file gives it


@dataclass(frozen=True)
class SpecialTokens:
    """What the files beside tokenizer.json say of tokens.

    listed: with an id, ascending. roles: by name, such as "eos_token". extra: special ones without
    a role. class_roles: what the tokenizer's class names; it counts for tokens that exist.
    """

    listed: tuple[AddedToken, ...]
    roles: dict[str, Named]
    extra: tuple[Named, ...]
    class_roles: Mapping[str, str]

    def texts(self, tokenizer: Tokenizer) -> dict[str, str]:
        """The tokens with a role, by name, for chat templates."""
        return {name: _content(token) for name, token in self._all_roles(tokenizer).items()}

    def add_to(self, tokenizer: Tokenizer) -> bool:
        """Add all to a tokenizer; return whether that changed it."""
        before = tokenizer.get_added_tokens_decoder()
        roles = [*self._all_roles(tokenizer).values()]
        known = {token.content for token in (*before.values(), *self.listed)}
        # A token may come as text and as an object; then the object, which comes later, counts.
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
        """The roles that files name, and those of the class whose tokens exist."""
        exist = {
            role: text
            for role, text in self.class_roles.items()
            if tokenizer.token_to_id(text) is not None
        }
        return {**self.roles, **exist}


def read_special_tokens(
    directory: Path, tokenizer_config: Mapping[str, Any], config: Mapping[str, Any], own: Any
) -> SpecialTokens:
    """The tokens that the files of a model directory name.

    own: `added_tokens` of tokenizer.json. Raises ModelError that lists the faults of a file.
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
    """The object in a file of a model directory, {} if there is none. Raises ModelError."""
    return read_json_object(path, ModelError, FIX) if path.exists() else {}


def _decoder_tokens(subject: str, decoder: Any) -> list[Listed]:
    """The tokens of `added_tokens_decoder`."""
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
    """Let special_tokens_map.json override, and extend the extra tokens."""
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
    """Make roles of extra tokens that are given by name."""
    if isinstance(values.get("extra_special_tokens"), dict):
        values[_NAMED_EXTRA] = values.get(_NAMED_EXTRA, {}) | values.pop("extra_special_tokens")


def _encoder_tokens(directory: Path, values: Mapping[str, Any]) -> list[Listed]:
    """The tokens of added_tokens.json; special if they have a role or are extra ones."""
    fields = Fields(optional_json(directory / "added_tokens.json"))
    ids = {text: fields.whole(text, most=2**31) for text in fields.values}
    fields.check(ModelError, f"{directory}/added_tokens.json")
    extra = values.get("extra_special_tokens")
    named = [*map(values.get, ROLES), *(extra if isinstance(extra, list) else ())]
    # transformers has not yet read those of tokenizer_config.json that are objects
    special = {_text(token) for token in named if not _is_unread(token)}
    return [
        (token_id, AddedToken(text, normalized=text not in special, special=text in special))
        for text, token_id in ids.items()
    ]


def _own_tokens(own: Any) -> list[Listed]:
    """The added tokens of tokenizer.json, with the ids that it gives; the library has read them."""
    return [
        (entry["id"], token)
        for entry in own or ()
        if (token := _object_token(entry, "added_tokens", [])) is not None
    ]


def _roles(values: Mapping[str, Any], faults: list[str]) -> dict[str, Named]:
    """Tokens by role: the usual roles first, then others of the model."""
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
    """A token given as text, or as an object."""
    return value if isinstance(value, str) else _object_token(value, name, faults)


def _object_token(value: Any, name: str, faults: list[str]) -> AddedToken | None:
    """A token given as an object with `content` and flags."""
    if not isinstance(value, dict):
        faults.append(f"{name} is {shown(value)}, not a token")
        return None
    fields = Fields(value, f"{name}.")
    content = fields.text("content")
    flags = {flag: fields.flag(flag) for flag in _FLAGS if flag in value}
    faults += fields.faults
    return None if fields.faults else AddedToken(content, **flags)


def _text(value: Any) -> str | None:
    """The string of a token, in any of its forms; None for other values."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _is_unread(value: Any) -> bool:
    return isinstance(value, dict) and "__type" in value


def _class_name(values: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The class of transformers that would load this tokenizer."""
    if config.get("model_type") == "qwen2":
        return "Qwen2Tokenizer"
    name = values.get("tokenizer_class") or config.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else ""


def _content(token: Named) -> str:
    return token if isinstance(token, str) else token.content


def _added(token: Named) -> AddedToken:
    return AddedToken(token, special=True) if isinstance(token, str) else token


def _state(token: Named) -> Any:
    """What tells tokens apart; a text is not the object that it would become."""
    return token if isinstance(token, str) else tuple(sorted(token.__getstate__().items()))

"""Conversion of token strings to text, according to a tokenizer's decoder.

Text is shown while it grows, so a token's bytes must not depend on what follows it. That holds for
the decoders of byte-level and SentencePiece vocabularies; others are refused.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from bita.errors import EngineError
from bita.json_values import shown

MAX_GROWTH = 64.0  # of a token by replacements; real decoders replace "\u2581" by " "
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_EACH_TOKEN = ("Replace", "ByteFallback", "Metaspace", "Strip")
_SUPPORTED = (
    "ByteLevel; Replace, ByteFallback, Metaspace and Strip of each token, then Fuse and Strip "
    "(SentencePiece); or none"
)

ToBytes = Callable[[str], bytes]
_Step = Callable[[str], str]


@dataclass(frozen=True)
class DecodingRule:
    """Converts the strings of tokens to text."""

    to_bytes: ToBytes  # converts a token anywhere in a text
    first_to_bytes: ToBytes | None = None  # converts the first token; None: like the others
    strip_text: str = ""  # stripped from the start of a text
    strip_count: int = 0  # number of times, at most

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "DecodingRule":
        """Read the tokenizer's decoder. Raises EngineError if it is not supported."""
        if tokenizer.decoder is None:  # the tokenizers library then joins tokens with spaces
            return cls(lambda token: b" " + token.encode(), None, " ", 1)
        steps = _flatten(json.loads(tokenizer.decoder.__getstate__()))
        kinds = [step["type"] for step in steps]
        if kinds in (["ByteLevel"], ["ByteLevel", "Fuse"]):
            return cls(_byte_level_bytes)
        num_each = next((i for i, kind in enumerate(kinds) if kind == "Fuse"), len(kinds))
        fits = all(kind in _EACH_TOKEN for kind in kinds[:num_each])
        if not fits or kinds[num_each:] not in ([], ["Fuse"], ["Fuse", "Strip"]):
            raise EngineError(
                f"the tokenizer decodes by {' + '.join(kinds)}, which is not supported; "
                f"supported: {_SUPPORTED}. Choose a model with such a tokenizer"
            )
        return _sentencepiece_rule(steps[:num_each], steps[num_each + 1 :])


def _flatten(decoder: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of a decoder with nested sequences flattened."""
    if decoder["type"] != "Sequence":
        return [dict(decoder)]
    return [step for inner in decoder["decoders"] for step in _flatten(inner)]


def _sentencepiece_rule(
    each: Sequence[Mapping[str, Any]], at_end: Sequence[Mapping[str, Any]]
) -> DecodingRule:
    """Return the rule for steps applied to each token, then to the whole text (a Strip or none)."""
    if any(strip["stop"] for strip in at_end):
        raise EngineError(
            "the tokenizer's decoder strips the end of the text, which cannot be shown while the "
            "text grows; choose another model"
        )
    _check_replacements(each)
    to_bytes = _compose([_convert_step(step, is_first=False) for step in each])
    first = None
    if any(step["type"] == "Metaspace" for step in each):
        first = _compose([_convert_step(step, is_first=True) for step in each])
    if not at_end:
        return DecodingRule(to_bytes, first)
    return DecodingRule(to_bytes, first, at_end[0]["content"], at_end[0]["start"])


def _check_replacements(steps: Sequence[Mapping[str, Any]]) -> None:
    growth = 1.0
    for step in steps:
        if step["type"] != "Replace":
            continue
        old = step["pattern"].get("String")
        if not old:
            raise EngineError(
                f"the tokenizer's decoder replaces {shown(step['pattern'])}, which is not a text; "
                "such a decoder is not supported: choose another model"
            )
        growth *= max(1.0, len(step["content"]) / len(old))
    if growth > MAX_GROWTH:
        raise EngineError(
            f"the tokenizer's decoder makes tokens up to {growth:.0f} times longer; at most "
            f"{MAX_GROWTH:.0f} times is supported: choose another model"
        )


def _compose(steps: Sequence[_Step | None]) -> ToBytes:
    """Compose steps. None is byte fallback, which ends the conversion of a byte token."""

    def to_bytes(token: str) -> bytes:
        for step in steps:
            if step is not None:
                token = step(token)
            elif byte := _BYTE_TOKEN.fullmatch(token):
                return bytes.fromhex(byte[1])
        return token.encode()

    return to_bytes


def _convert_step(step: Mapping[str, Any], is_first: bool) -> _Step | None:
    """Return a decoder step as a function of a token, or None for byte fallback."""
    kind = step["type"]
    if kind == "ByteFallback":
        return None
    if kind == "Strip":
        mark, max_start, max_stop = step["content"], step["start"], step["stop"]
        return lambda token: _strip_token(token, mark, max_start, max_stop)
    if kind == "Replace":
        old, new = step["pattern"]["String"], step["content"]
    else:  # Metaspace: all marks in the first token are dropped
        takes_off = is_first and step.get("prepend_scheme") != "never"
        old, new = step["replacement"], "" if takes_off else " "
    return lambda token: token.replace(old, new)


def _strip_token(token: str, mark: str, max_start: int, max_stop: int) -> str:
    rest = token.lstrip(mark)
    token = token[min(len(token) - len(rest), max_start) :]
    rest = token.rstrip(mark)
    return token[: len(token) - min(len(token) - len(rest), max_stop)]


def _byte_level_bytes(token: str) -> bytes:
    """Return the bytes that byte-level BPE represents by these printable characters."""
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:  # an added token, which is literal text
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's table: printable Latin-1 bytes map to themselves, the others from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


_BYTE_OF_CHARACTER = _byte_alphabet()

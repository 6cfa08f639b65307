"""Text in and out: prompts to token ids, and committed token ids to text, a few at a time.

Decoding is done on bytes: every token stands for some bytes, and an incremental UTF-8 decoder
joins them. `tokenizers.decoders.DecodeStream` was tried and left: on invalid UTF-8 it decodes its
whole window again for every token, holds text back without bound, and with byte fallback it
raises ("Invalid prefix encountered") as soon as a run of byte tokens turns out to be invalid.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bita.engine import TOKENIZER_FILE
from bita.errors import EngineError, PromptError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE = re.compile(r"(Replace )*(ByteFallback )?(Fuse (Strip )?)?")
_SUPPORTED = "ByteLevel, Replace + ByteFallback + Fuse + Strip (SentencePiece), or none"


@dataclass(frozen=True)
class _DecodingRule:
    """How token strings become text, read from the tokenizer's decoder."""

    to_bytes: Callable[[str], bytes]  # of one token, wherever it stands
    strip_text: str = ""  # taken off the start of a text, at most `strip_count` times
    strip_count: int = 0


class TextCodec:
    """Turns text into token ids and back, as the engine's tokenizer.json says.

    Special tokens and ids outside the vocabulary (a padded embedding table has some) decode to
    nothing. `decode` equals `Tokenizer.decode` on every valid text; bytes that are not UTF-8 become
    U+FFFD each on its own, whereas Tokenizer.decode with byte fallback gives up the valid
    characters beside them too, which no text that is shown while it grows could follow.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take over `tokenizer`; raise EngineError if its decoder is of an unsupported kind."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.rule = _decoding_rule(tokenizer)
        self.token_bytes = _TokenBytes(tokenizer, self.rule.to_bytes)
        added = tokenizer.get_added_tokens_decoder().values()
        self._special_texts = tuple(token.content for token in added if token.special)

    @classmethod
    def open(cls, engine_dir: Path) -> "TextCodec":
        """Read tokenizer.json of an engine directory; raise EngineError if that is not possible."""
        path = Path(engine_dir) / TOKENIZER_FILE
        if not path.is_file():
            raise EngineError(f"{path} is missing. Build the engine again: make engine")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except EngineError as error:
            raise EngineError(f"{path}: {error}") from error
        except Exception as error:  # tokenizers raises bare Exception
            raise EngineError(
                f"{path} is not a tokenizer: {error}. Build the engine again: make engine"
            ) from error

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, added tokens included."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int | None:
        """Id of a token given by its exact string, such as "<|im_end|>"; None if there is none."""
        found = self.tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def starts_special(self, text: str) -> bool:
        """Whether `text` starts with a special token."""
        return text.startswith(self._special_texts)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`. Special tokens written out in it count as such.

        add_special_tokens: put in front (or behind) what the tokenizer adds by itself, such as
        BOS: True for raw text, False for a rendered chat template, which writes them itself.
        Raises PromptError if `text` is not a string that UTF-8 can hold.
        """
        if not isinstance(text, str):
            raise PromptError(f"the prompt is of type {type(text).__name__}; pass a string")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the prompt holds half a surrogate pair ({text[error.start]!r} at character "
                f"{error.start}); pass valid Unicode, read with errors='replace' for instance"
            ) from error
        # the call for batches lets other threads run meanwhile, and computes no offsets
        (found,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = found.ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`: the pieces of an IncrementalText joined."""
        text = IncrementalText(self)
        return text.push(ids) + text.flush()


class IncrementalText:
    """The text of a growing list of token ids, given out piece by piece.

    However the ids are split, the pieces and `flush()` joined are `codec.decode(all ids)`; a piece
    never holds a part of a character, and at most 3 bytes are held back. Cost per token: below
    1 µs, however long the text is.
    """

    def __init__(self, codec: TextCodec, continues: bool = False) -> None:
        """continues: the ids go on after other text, so a space at their start stays.

        SentencePiece writes one space before a text and takes it off when decoding; after a raw
        prompt that space separates the last word of the prompt from the first new one.
        """
        self._token_bytes = codec.token_bytes
        self._strip_text = codec.rule.strip_text
        self._strip_count = 0 if continues else codec.rule.strip_count
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Add token ids; return the text that they complete, "" if there is none yet."""
        table = self._token_bytes
        text = self._utf8.decode(b"".join([table[token_id] for token_id in ids]))
        return self._strip(text) if self._strip_count and text else text

    def flush(self) -> str:
        """End the text: what is left of an unfinished character comes out as U+FFFD."""
        text = self._utf8.decode(b"", final=True)
        return self._strip(text) if self._strip_count else text

    def _strip(self, text: str) -> str:
        while self._strip_count and text.startswith(self._strip_text):
            text = text.removeprefix(self._strip_text)
            self._strip_count -= 1
        if text:
            self._strip_count = 0
        return text


class _TokenBytes(dict[int, bytes]):
    """Bytes of each token id, worked out when first asked for; b"" for special and unknown ids."""

    def __init__(self, tokenizer: Tokenizer, to_bytes: Callable[[str], bytes]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._to_bytes = to_bytes
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}

    def __missing__(self, token_id: int) -> bytes:
        token = None if token_id in self._special else self._tokenizer.id_to_token(int(token_id))
        self[token_id] = b"" if token is None else self._to_bytes(token)
        return self[token_id]


def _decoding_rule(tokenizer: Tokenizer) -> _DecodingRule:
    """Read the tokenizer's decoder; raise EngineError if it is not one of the supported kinds."""
    if tokenizer.decoder is None:  # tokenizers then joins the tokens with spaces
        return _DecodingRule(lambda token: b" " + token.encode(), " ", 1)
    decoder = json.loads(tokenizer.decoder.__getstate__())
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _DecodingRule(_byte_level_bytes)
    if _SENTENCEPIECE.fullmatch("".join(f"{kind} " for kind in kinds)):
        return _sentencepiece_rule({step["type"]: step for step in steps}, steps)
    raise EngineError(
        f"the tokenizer decodes by {' + '.join(kinds)}, which is not supported; "
        f"supported: {_SUPPORTED}. Choose a model with such a tokenizer"
    )


def _sentencepiece_rule(by_kind: dict[str, Any], steps: list[dict[str, Any]]) -> _DecodingRule:
    replacements = [
        (step["pattern"].get("String"), step["content"])
        for step in steps
        if step["type"] == "Replace"
    ]
    strip = by_kind.get("Strip", {"content": "", "start": 0, "stop": 0})
    if strip["stop"] or any(old is None for old, _ in replacements):
        raise EngineError(
            "the tokenizer's decoder strips the end of the text or replaces by a regular "
            "expression, which cannot be shown while the text grows; choose another model"
        )
    has_byte_fallback = "ByteFallback" in by_kind

    def to_bytes(token: str) -> bytes:
        for old, new in replacements:
            token = token.replace(old, new)
        byte = _BYTE_TOKEN.fullmatch(token) if has_byte_fallback else None
        return bytes.fromhex(byte[1]) if byte else token.encode()

    return _DecodingRule(to_bytes, strip["content"], strip["start"])


def _byte_level_bytes(token: str) -> bytes:
    """Bytes behind the printable characters that byte-level BPE writes them with."""
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:  # an added token, written as it is
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 bytes stand for themselves, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


_BYTE_OF_CHARACTER = _byte_alphabet()

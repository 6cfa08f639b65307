"""Encoding of prompts to token ids, and incremental decoding of committed token ids to text.

Decoding works on bytes: every token has some bytes, and an incremental UTF-8 decoder joins them.
`tokenizers.decoders.DecodeStream` was tried and rejected. On invalid UTF-8 it decodes its whole
window again for every token and holds text back without bound. With byte fallback it raises
("Invalid prefix encountered") as soon as a run of byte tokens turns out to be invalid.
"""

import codecs
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from bita.engine import TOKENIZER_FILE
from bita.errors import EngineError, PromptError
from bita.json_values import MAX_JSON_BYTES, read_regular_file
from bita.runtime.text.token_decoder import DecodingRule
from bita.runtime.text.tokenizer_file import checked_call, read_tokenizer

_REBUILD = "build the engine again: make engine"
_MAX_ID = 2**32 - 1  # of the tokenizers library


class TextCodec:
    """Converts text to token ids and back, according to the engine's tokenizer.json.

    Special tokens and ids outside the vocabulary (a padded embedding table has some) decode to
    nothing. `decode` equals `Tokenizer.decode` on every valid text. Each byte that is not UTF-8
    becomes a U+FFFD, whereas Tokenizer.decode with byte fallback also replaces adjacent valid
    characters, which is impossible in text that is shown while it grows.
    """

    def __init__(self, tokenizer: Tokenizer, num_rows: int | None = None) -> None:
        """Take ownership of `tokenizer`.

        Args:
            tokenizer: The tokenizer; its truncation and padding are switched off.
            num_rows: Rows of the model's embedding table, which may be fewer than the ids of the
                tokenizer. None if unknown.

        Raises:
            EngineError: If the tokenizer's decoder is not supported.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.num_rows = num_rows
        self.rule = DecodingRule.of(tokenizer)
        added = tokenizer.get_added_tokens_decoder()
        # strings of the special tokens by id
        self.special_tokens = {i: token.content for i, token in added.items() if token.special}
        # the ones that decode to nothing; the others have a string that was normalized
        self.hidden_tokens = {
            i: text for i, text in self.special_tokens.items() if tokenizer.id_to_token(i) == text
        }
        self.token_bytes = _TokenBytes(self)
        self._special_texts = tuple(self.special_tokens.values())

    @classmethod
    def open(cls, engine_dir: Path, num_rows: int | None = None) -> "TextCodec":
        """Read an engine's tokenizer.json. Raises EngineError if that is not possible."""
        path = Path(engine_dir) / TOKENIZER_FILE
        if not path.exists():
            raise EngineError(f"{path} is missing. {_REBUILD.capitalize()}")
        try:
            text = read_regular_file(path, MAX_JSON_BYTES).decode("utf-8")
        except (OSError, ValueError) as error:
            raise EngineError(f"{path} cannot be read ({error}); {_REBUILD}") from error
        return cls.of_json(text, str(path), num_rows, _REBUILD)

    @classmethod
    def of_json(
        cls,
        text: str,
        subject: str = "tokenizer.json",
        num_rows: int | None = None,
        fix: str = "use another one",
    ) -> "TextCodec":
        """Read the text of a tokenizer.json. EngineError names `subject` and ends with `fix`."""
        tokenizer = read_tokenizer(text, EngineError, subject, fix)
        try:
            return cls(tokenizer, num_rows)
        except EngineError as error:
            raise EngineError(f"{subject}: {error}") from error

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, including added tokens."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its exact string, such as "<|im_end|>"; None if unknown."""
        found = self.tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def starts_special(self, text: str) -> bool:
        """Return whether `text` starts with a special token."""
        return text.startswith(self._special_texts)

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Pattern that matches the longest special token at a position."""
        longest_first = sorted(filter(None, self._special_texts), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def shown_token(self, token_id: int) -> str | None:
        """Return the string of a token that is text; None for hidden tokens and unknown ids."""
        if token_id in self.hidden_tokens or not 0 <= token_id <= _MAX_ID:
            return None
        found: str | None = self.tokenizer.id_to_token(int(token_id))
        return found

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Encode `text` as token ids. Special tokens written out in it are encoded as such.

        Args:
            text: The text, which must be valid Unicode.
            add_special_tokens: Whether to add the tokens that the tokenizer puts around a text,
                such as BOS. Pass True for raw text, False for a rendered chat template.

        Raises:
            PromptError: If `text` is not a string, cannot be encoded as UTF-8, or has a token that
                the model lacks.
        """
        if not isinstance(text, str):
            raise PromptError(f"the prompt is of type {type(text).__name__}; pass a string")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the prompt holds half a surrogate pair ({text[error.start]!r} at character "
                f"{error.start}); pass valid Unicode, for instance read with errors='replace'"
            ) from error
        ids: list[int] = checked_call(
            lambda: self._encode(text, add_special_tokens),
            PromptError,
            "the prompt cannot be turned into tokens",
            "change the prompt, or use another model",
        )
        if self.num_rows is not None and ids and (largest := max(ids)) >= self.num_rows:
            raise PromptError(
                f"the prompt holds the token {self.tokenizer.id_to_token(largest)!r} with id "
                f"{largest}, but the model has ids below {self.num_rows} only; leave it out"
            )
        return ids

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # the batch call releases the GIL and computes no offsets
        (found,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = found.ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Decode `ids`. The result equals the joined pieces of an IncrementalText."""
        text = IncrementalText(self)
        return text.push(ids) + text.flush()


class IncrementalText:
    """Decodes a growing list of token ids piece by piece.

    However the ids are split, the pieces and `flush()` add up to `codec.decode(all ids)`. A piece
    has only whole characters, and at most 3 bytes are held back. A token costs less than 1 µs,
    however long the text is.
    """

    def __init__(
        self, codec: TextCodec, continues: bool = False, shown_ids: Collection[int] = ()
    ) -> None:
        """Start an empty text.

        Args:
            codec: Provides the tokens and their decoding.
            continues: Whether the ids follow other text, so that a space at their start is kept.
                SentencePiece puts a space before a text and strips it when decoding; after a raw
                prompt that space separates the last word of the prompt from the first new one.
            shown_ids: Special tokens whose strings are part of the text.
        """
        self.codec = codec
        self._shown_ids = shown_ids
        self._token_bytes: Mapping[int, bytes] = codec.token_bytes
        if shown_ids:
            self._token_bytes = _WithShown(codec, shown_ids)
        self._first_to_bytes = None if continues else codec.rule.first_to_bytes
        self._strip_text = codec.rule.strip_text
        self._strip_count = 0 if continues else codec.rule.strip_count
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Add token ids and return the text that they complete, which may be ""."""
        if self._first_to_bytes is not None:
            return self._push_first(ids)
        table = self._token_bytes
        text = self._utf8.decode(b"".join([table[token_id] for token_id in ids]))
        return self._strip(text) if self._strip_count and text else text

    def flush(self) -> str:
        """End the text and return its rest. An unfinished character becomes U+FFFD."""
        text = self._utf8.decode(b"", final=True)
        return self._strip(text) if self._strip_count else text

    def _push_first(self, ids: Iterable[int]) -> str:
        """Push ids while no token has been shown yet. The first one is converted differently."""
        waiting = iter(ids)
        for token_id in waiting:
            if token_id in self._shown_ids:  # what follows it is not the first
                self._first_to_bytes = None
                return self.push((token_id, *waiting))
            token = self.codec.shown_token(token_id)
            if token is not None and self._first_to_bytes is not None:
                text = self._utf8.decode(self._first_to_bytes(token))
                self._first_to_bytes = None
                return (self._strip(text) if self._strip_count else text) + self.push(waiting)
        return ""

    def _strip(self, text: str) -> str:
        while self._strip_count and text.startswith(self._strip_text):
            text = text.removeprefix(self._strip_text)
            self._strip_count -= 1
        if text:
            self._strip_count = 0
        return text


class _TokenBytes(dict[int, bytes]):
    """Bytes of each token id, computed on first access; b"" for special and unknown ids."""

    def __init__(self, codec: TextCodec) -> None:
        super().__init__()
        self._shown_token, self._to_bytes = codec.shown_token, codec.rule.to_bytes

    def __missing__(self, token_id: int) -> bytes:
        token = self._shown_token(token_id)
        self[token_id] = b"" if token is None else self._to_bytes(token)
        return self[token_id]


class _WithShown(dict[int, bytes]):
    """Bytes of each token id, including some special tokens."""

    def __init__(self, codec: TextCodec, shown_ids: Collection[int]) -> None:
        super().__init__()
        self._codec = codec
        for token_id in shown_ids:
            self[token_id] = codec.special_tokens.get(token_id, "").encode()

    def __missing__(self, token_id: int) -> bytes:
        return self._codec.token_bytes[token_id]

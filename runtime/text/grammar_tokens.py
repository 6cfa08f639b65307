"""Token bytes for llguidance: the text of each row of the model's logits.

The rows are those of the model, whatever its tokenizer has: an id without a row is never used, and
a row without a token (padding, a hole in the vocabulary) has no text. The text of a token is what
the codec decodes it to, so a grammar matches exactly the text that is shown.
"""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bita.errors import PromptError
from bita.runtime.text.codec import TextCodec

CONTROL = b"\xff"  # llguidance's prefix of tokens that are not text; never occurs in UTF-8
NO_TOKEN = "the model has no token for byte"
_NEAR_BYTES = 256  # of forced text that are split into long tokens; drafts are shorter
_PREFIXING = {"Metaspace": ("prepend_scheme", "never"), "ByteLevel": ("add_prefix_space", False)}


class GrammarTokens:
    """The tokenizer interface of llguidance (its `TokenizerWrapper`).

    Attributes:
        tokens: The bytes of each row. b"" for a row without text. CONTROL and the name for a token
            that is not text: special tokens, added tokens <like this>, and those of `eos_ids`.
        eos_ids: Tokens that end an answer and have a row.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()  # they are marked by CONTROL

    def __init__(self, tokenizer: Tokenizer, num_rows: int, eos_ids: Sequence[int]) -> None:
        """Read the tokens. num_rows: number of rows of the model's logits."""
        self.eos_ids = [token for token in dict.fromkeys(eos_ids) if 0 <= token < num_rows]
        self.eos_token_id = self.eos_ids[0] if self.eos_ids else None
        self.tokens = list(_row_bytes(tokenizer, num_rows, frozenset(self.eos_ids)))
        self._encoder = _disable_prefix(Tokenizer.from_str(tokenizer.to_str()))

    @cached_property
    def usable(self) -> npt.NDArray[np.uint8]:
        """Bit mask of the rows that may ever be chosen; the first row is the lowest bit."""
        is_usable = np.fromiter(map(bool, self.tokens), bool, len(self.tokens))
        is_usable[self.eos_ids] = True
        return np.packbits(is_usable, bitorder="little")

    @cached_property
    def spells_all(self) -> bool:
        """Whether every byte of UTF-8 has its own token, so that any text can be written."""
        single = {data[0] for data in self.tokens if len(data) == 1}
        return single >= {*range(0xC0), *range(0xC2, 0xF5)}

    def __call__(self, text: str) -> list[int]:
        """Return tokens that decode to exactly `text`, split as the model is used to if possible.

        Raises PromptError if there are none.
        """
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        data = text.encode()
        if ids and max(ids) < len(self.tokens) and self._bytes_of(ids) == data:
            return ids
        return list(self._split(data))

    def _bytes_of(self, ids: Sequence[int]) -> bytes:
        return b"".join([self.tokens[token] for token in ids])

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        """The first token with each text."""
        backwards = range(len(self.tokens) - 1, -1, -1)
        texts = ((self.tokens[token], token) for token in backwards)
        return {data: token for data, token in texts if data and not data.startswith(CONTROL)}

    @cached_property
    def _max_bytes(self) -> int:
        return max(map(len, self._by_bytes), default=1)

    def _split(self, data: bytes) -> Iterator[int]:
        """Yield the longest token at each position, but single bytes beyond `_NEAR_BYTES`."""
        place = 0
        while place < len(data):
            is_far = place >= _NEAR_BYTES and data[place : place + 1] in self._by_bytes
            longest = 1 if is_far else min(self._max_bytes, len(data) - place)
            for size in range(longest, 0, -1):
                token = self._by_bytes.get(data[place : place + size])
                if token is not None:
                    yield token
                    place += size
                    break
            else:
                raise PromptError(f"{NO_TOKEN} 0x{data[place]:02X}")


def _row_bytes(tokenizer: Tokenizer, num_rows: int, eos_ids: frozenset[int]) -> Iterator[bytes]:
    text_bytes = TextCodec(tokenizer).token_bytes
    controls = {
        token_id
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special or (token.content.startswith("<") and token.content.endswith(">"))
    }
    for token_id in range(num_rows):
        name = tokenizer.id_to_token(token_id)
        if name is None:
            yield b""
        elif token_id in eos_ids or token_id in controls:
            yield CONTROL + name.encode()
        else:
            data = text_bytes[token_id]
            yield b"" if data.startswith(CONTROL) else data


def _disable_prefix(tokenizer: Tokenizer) -> Tokenizer:
    """Change a tokenizer in place so that it puts nothing before a text, and return it.

    SentencePiece and some byte-level tokenizers put a space there; a part of an answer has none.
    """
    empty: dict[str, Any] = {"version": "1.0", "added_tokens": [], "post_processor": None}
    model = {"type": "BPE", "vocab": {}, "merges": []}
    parts = {
        "normalizer": _remove_prefix(_read_state(tokenizer.normalizer)),
        "pre_tokenizer": _remove_prefix(_read_state(tokenizer.pre_tokenizer)),
    }
    like = Tokenizer.from_str(json.dumps({**empty, **parts, "decoder": None, "model": model}))
    tokenizer.normalizer = like.normalizer
    tokenizer.pre_tokenizer = like.pre_tokenizer
    return tokenizer


def _read_state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _remove_prefix(part: Any) -> Any:
    """Return a normalizer or pre-tokenizer that adds no prefix; None if nothing remains."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        steps = [_remove_prefix(step) for step in part[name]]
        return {**part, name: [step for step in steps if step is not None]}
    if part["type"] in _PREFIXING:
        name, value = _PREFIXING[part["type"]]
        return {**part, name: value}
    return part

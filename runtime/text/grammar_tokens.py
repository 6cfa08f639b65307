"""The tokens of a model as llguidance takes them: what each row of its logits stands for.

The rows are those of the model, whatever its tokenizer holds: an id without a row is never used,
and a row without a token (padding, a hole in the vocabulary) stands for nothing. What a token
stands for is what the codec writes for it, so the text that a grammar has matched is the text that
is given out.
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

CONTROL = b"\xff"  # begins a token that is not text: llguidance's mark, and no byte of UTF-8
NO_TOKEN = "no token of the model stands for byte"
_NEAR_BYTES = 256  # of forced text, which are split into long tokens; drafts reach no further
_PREFIXING = {"Metaspace": ("prepend_scheme", "never"), "ByteLevel": ("add_prefix_space", False)}


class GrammarTokens:
    """What llguidance asks of a tokenizer (its `TokenizerWrapper`).

    tokens: the bytes of each row; b"" for a row that stands for nothing, and CONTROL with the name
    of a token that is not text: special ones, added ones written <like this>, and those of
    `eos_ids`.
    eos_ids: tokens that end an answer, without those that have no row.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()  # they have their mark already

    def __init__(self, tokenizer: Tokenizer, num_rows: int, eos_ids: Sequence[int]) -> None:
        """num_rows: of the model's logits."""
        self.eos_ids = [token for token in dict.fromkeys(eos_ids) if 0 <= token < num_rows]
        self.eos_token_id = self.eos_ids[0] if self.eos_ids else None
        self.tokens = list(_row_bytes(tokenizer, num_rows, frozenset(self.eos_ids)))
        self._encoder = _without_prefix(Tokenizer.from_str(tokenizer.to_str()))

    @cached_property
    def usable(self) -> npt.NDArray[np.uint8]:
        """Which rows may ever be chosen, a bit each, the first row in the lowest bit."""
        is_usable = np.fromiter(map(bool, self.tokens), bool, len(self.tokens))
        is_usable[self.eos_ids] = True
        return np.packbits(is_usable, bitorder="little")

    @cached_property
    def spells_all(self) -> bool:
        """Whether each byte of UTF-8 has a token of its own, so that any text can be written."""
        single = {data[0] for data in self.tokens if len(data) == 1}
        return single >= {*range(0xC0), *range(0xC2, 0xF5)}

    def __call__(self, text: str) -> list[int]:
        """Tokens that stand for `text` exactly, as the model is used to see it if possible.

        Raises PromptError if there are none.
        """
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        data = text.encode()
        if ids and max(ids) < len(self.tokens) and self._bytes_of(ids) == data:
            return ids
        return list(self._longest(data))

    def _bytes_of(self, ids: Sequence[int]) -> bytes:
        return b"".join([self.tokens[token] for token in ids])

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        """The first of the tokens that stand for some text."""
        backwards = range(len(self.tokens) - 1, -1, -1)
        texts = ((self.tokens[token], token) for token in backwards)
        return {data: token for data, token in texts if data and not data.startswith(CONTROL)}

    @cached_property
    def _max_bytes(self) -> int:
        return max(map(len, self._by_bytes), default=1)

    def _longest(self, data: bytes) -> Iterator[int]:
        """The longest token at each place; single bytes far on, where it does not matter yet."""
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


def _without_prefix(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, which from now on puts nothing in front of a text.

    SentencePiece's puts a space there, and some byte-level ones do; a piece of an answer has none.
    """
    empty: dict[str, Any] = {"version": "1.0", "added_tokens": [], "post_processor": None}
    model = {"type": "BPE", "vocab": {}, "merges": []}
    parts = {
        "normalizer": _unprefixed(_state(tokenizer.normalizer)),
        "pre_tokenizer": _unprefixed(_state(tokenizer.pre_tokenizer)),
    }
    like = Tokenizer.from_str(json.dumps({**empty, **parts, "decoder": None, "model": model}))
    tokenizer.normalizer = like.normalizer
    tokenizer.pre_tokenizer = like.pre_tokenizer
    return tokenizer


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _unprefixed(part: Any) -> Any:
    """A normalizer or pre-tokenizer without what puts something in front; None for nothing."""
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        steps = [_unprefixed(step) for step in part[name]]
        return {**part, name: [step for step in steps if step is not None]}
    if part["type"] in _PREFIXING:
        name, value = _PREFIXING[part["type"]]
        return {**part, name: value}
    return part

"""The supported decoders of tokenizers, each with the same few words."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models

from bita.runtime.text.codec import TextCodec

WORDS = ["<s>", "▁", "▁▁", "a", "▁a", "a▁b", "b▁", "##c", "é", "<0xC3>", "<0xA9>", "<0x41>", "c"]
R, F, B = decoders.Replace("▁", " "), decoders.Fuse(), decoders.ByteFallback()
M, NEVER = decoders.Metaspace(), decoders.Metaspace(prepend_scheme="never")
DECODERS: dict[str, list[Any]] = {
    "llama 2": [R, B, F, decoders.Strip(" ", 1, 0)],
    "gemma": [R, B, F],
    "metaspace": [M],
    "metaspace fused": [M, F],
    "metaspace never": [NEVER],
    "bytes, metaspace": [B, M, F],
    "metaspace, bytes": [M, B, F],
    "strip each": [R, decoders.Strip(" ", 1, 0)],
    "strip each, fused": [R, decoders.Strip(" ", 2, 0), F, decoders.Strip("a", 3, 0)],
    "replace longer": [decoders.Replace("a▁b", "ab"), R, F],
    "nested": [decoders.Sequence([R, decoders.Sequence([B])]), F],
    "none": [],
}


def codec_of(steps: Sequence[Any]) -> TextCodec:
    vocab = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.add_special_tokens(["<s>"])
    if steps:
        tokenizer.decoder = decoders.Sequence([*steps]) if len(steps) > 1 else steps[0]
    return TextCodec(tokenizer)

"""A small tokenizer of each kind."""

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from bita.runtime.text.codec import TextCodec

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "Größe, café, naïve: 日本語のテキスト and emoji 👩‍👩‍👧 🚀!",
    "  two spaces,\ttab\n\nnew lines and `code = {1: 'x'}`  ",
]


def byte_level() -> TextCodec:
    """Train byte-level BPE as in GPT-2, Llama 3, Qwen and SmolLM."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("two words é")])
    return TextCodec(tokenizer)


def byte_fallback(strip: bool = True) -> TextCodec:
    """Build SentencePiece BPE with byte fallback: Llama 2, Mistral (strip) or Gemma (no strip)."""
    words = ["<unk>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", *"abcdefghijklmnopqrstuvwxyz.,é", "th", "▁th", "▁the", "qu"]
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("q", "u")]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "<bos>", "<eos>"])
    prepend = [normalizers.Prepend("▁")] if strip else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] * strip)])
    return TextCodec(tokenizer)


CODECS = {
    "byte_level": byte_level(),
    "llama2": byte_fallback(),
    "gemma": byte_fallback(strip=False),
}

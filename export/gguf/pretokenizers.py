"""The rules by which byte-level vocabularies of GGUF files cut text into words before merging.

A file names its rule in `tokenizer.ggml.pre`. The expressions are those of the models' own
`tokenizer.json`; each further expression splits the pieces that the previous ones left.
"""

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

from bita.errors import ModelError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENGLISH_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES_AND_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3, _QWEN2 = (
    rf"{_ENGLISH_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES_AND_SPACES}"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN, _GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{ending}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{ending}"
    rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES_AND_SPACES}"
    for ending, digits in (("", r"\p{N}"), (f"{_ENGLISH_ENDINGS}?", r"\p{N}{1,3}"))
)


@dataclass(frozen=True)
class PreTokenizer:
    """A rule that cuts text into words."""

    patterns: tuple[str, ...]  # applied in order
    whole_words: bool = False  # whether a word that is a token stays whole, whatever the merges
    adds_bos: bool = False  # default for files without `add_bos_token`

    def build(self) -> pre_tokenizers.PreTokenizer:
        splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in self.patterns]
        return pre_tokenizers.Sequence(
            [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )


_BY_RULE = {
    PreTokenizer((_GPT2,)): ("gpt-2", "phi-2", "olmo", "mpt", "jais", "mellum", "exaone4"),
    PreTokenizer((r"\p{N}", _GPT2)): (
        *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    ),
    PreTokenizer((_LLAMA3,), whole_words=True, adds_bos=True): (
        *("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"),
    ),
    PreTokenizer((_LLAMA3,)): ("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"),
    PreTokenizer((_QWEN2,)): ("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "kormo"),
    PreTokenizer((_TEKKEN,), whole_words=True, adds_bos=True): ("tekken",),
    PreTokenizer((_GPT4O,)): ("gpt-4o", "llama4", "kanana2"),
    # llama.cpp's rule for files that name none.
    PreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ): ("default",),
}
PRE_TOKENIZERS = {name: rule for rule, names in _BY_RULE.items() for name in names}


def pre_tokenizer_of(owner: str, name: str | None) -> PreTokenizer:
    """Return the rule that a file names.

    Raises:
        ModelError: if the rule is unknown, since ids would be wrong.
    """
    if (name or "default") not in PRE_TOKENIZERS:
        raise ModelError(
            f"{owner}: tokenizer.ggml.pre is {name!r}; known: {', '.join(sorted(PRE_TOKENIZERS))}. "
            "Use the model's Hugging Face directory, which has a tokenizer.json"
        )
    return PRE_TOKENIZERS[name or "default"]

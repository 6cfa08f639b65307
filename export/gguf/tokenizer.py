"""The tokenizer of a GGUF file as a `tokenizer.json`; its ids are those of llama.cpp."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from bita.errors import ModelError, raise_faults
from bita.export.checkpoint import TextAssets
from bita.export.gguf.pretokenizers import pre_tokenizer_of
from bita.export.gguf.text_metadata import read_text_metadata, token_id_faults
from bita.export.turn_ends import TURN_ENDS, named_turn_ends, written_turn_ends
from bita.generation import sampling_numbers
from bita.runtime.text.codec import TextCodec
from bita.runtime.text.tokenizer_file import checked_call

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type
SPACE = "\u2581"  # SentencePiece's mark of a space
SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
SAMPLING_KEYS = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
END_IDS = ("eos_token_id", "eot_token_id", "eom_token_id")
# Phi-3's special tokens, except these, absorb the white space after them; files do not record it.
PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")


class Vocabulary:
    """The `tokenizer.ggml.*` part of the metadata."""

    def __init__(self, owner: str, metadata: Mapping[str, Any]) -> None:
        """Read and check the vocabulary. Raises ModelError that lists every fault."""
        self.owner = owner
        self.metadata = read_text_metadata(owner, metadata)
        self.model = str(self.get("model"))
        self.tokens: list[str] = list(self.get("tokens", ()))
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.types: Sequence[int] = self.get("token_type", [NORMAL] * len(self.tokens))
        raise_faults(ModelError, owner, self._faults())

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}", default)

    def token(self, key: str) -> str | None:
        """Return the text of the token whose id is `tokenizer.ggml.<key>`."""
        index = self.get(key)
        return self.tokens[index] if index is not None and index < len(self.tokens) else None

    def _faults(self) -> list[str]:
        faults = []
        if self.model not in ("gpt2", "llama"):
            faults.append(f"tokenizer.ggml.model is {self.model!r}; supported: gpt2, llama")
        if not self.tokens:
            faults.append("there is no vocabulary (tokenizer.ggml.tokens)")
        if len(self.types) != len(self.tokens):
            faults.append(f"{len(self.tokens)} tokens, but {len(self.types)} token types")
        if len(self.ids) != len(self.tokens):
            faults.append(f"{len(self.tokens) - len(self.ids)} tokens are in the vocabulary twice")
        if self.tokens:
            faults += token_id_faults(self.metadata, len(self.tokens))
        needed = {"gpt2": "merges", "llama": "scores"}.get(self.model)
        if needed and self.get(needed) is None:
            faults.append(f"tokenizer.ggml.{needed} is missing; convert the model again")
        elif needed == "scores" and len(self.get("scores")) != len(self.tokens):
            faults.append(f"{len(self.tokens)} tokens, but {len(self.get('scores'))} scores")
        return faults


def read_gguf_text_assets(owner: str, metadata: Mapping[str, Any]) -> TextAssets:
    """Return the TextAssets of a GGUF file.

    Raises:
        ModelError: if its tokenizer cannot be rebuilt.
    """
    vocabulary = Vocabulary(owner, metadata)
    metadata = vocabulary.metadata
    template = metadata.get("tokenizer.chat_template")
    what = f"{owner}: its tokenizer cannot be built"
    tokenizer: Tokenizer = checked_call(
        lambda: build_tokenizer(vocabulary), ModelError, what, "convert the model again"
    )
    codec = TextCodec(tokenizer)
    ends = [vocabulary.get(key) for key in END_IDS]
    eos_ids = dict.fromkeys(
        (*named_turn_ends(template, codec), *(int(end) for end in ends if end is not None))
    )
    if not eos_ids:
        raise ModelError(
            f"{owner} names no token that ends an answer (tokenizer.ggml.eos_token_id); "
            "set it with gguf-set-metadata"
        )
    named = {name: vocabulary.token(key) for name, key in SPECIAL_IDS.items()}
    special_tokens = {name: token for name, token in named.items() if token is not None}
    written = written_turn_ends(template, special_tokens, codec)
    return TextAssets(
        tokenizer_json=tokenizer.to_str(),
        chat_template=template,
        eos_ids=tuple(eos_ids),
        special_tokens=special_tokens,
        sampling=sampling_numbers(
            {name: metadata.get(f"general.sampling.{key}") for name, key in SAMPLING_KEYS.items()}
        ),
        turn_end_ids=tuple(token_id for token_id in written if token_id not in eos_ids),
    )


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Build a tokenizer with llama.cpp's ids for text in which special tokens are recognised."""
    build = _byte_level if vocabulary.model == "gpt2" else _sentencepiece
    tokenizer, adds_bos = build(vocabulary)
    added = _added_tokens(vocabulary)
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    _add_ends(tokenizer, vocabulary, adds_bos)
    return tokenizer


def _byte_level(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    rule = pre_tokenizer_of(vocabulary.owner, vocabulary.get("pre"))
    merges = []
    for merge in vocabulary.get("merges"):
        cut = merge.find(" ", 1)  # the first part may itself be a space
        merges.append((merge[:cut], merge[cut + 1 :]))
    merges = _known_merges(vocabulary, merges)
    model = models.BPE(vocabulary.ids, merges, ignore_merges=rule.whole_words)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = rule.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rule.adds_bos


def _known_merges(vocabulary: Vocabulary, merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return merges of existing tokens; llama.cpp never uses others, tokenizers refuses them."""
    ids = vocabulary.ids
    return [(a, b) for a, b in merges if a in ids and b in ids and a + b in ids]


def _sentencepiece(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    model = models.BPE(
        vocabulary.ids,
        _merges_by_score(vocabulary),
        unk_token=vocabulary.token("unknown_token_id"),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    escape = normalizers.Replace(" ", SPACE)
    unescape = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.get("add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), escape])
        tokenizer.decoder = decoders.Sequence([*unescape, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = escape
        tokenizer.decoder = decoders.Sequence(unescape)
    return tokenizer, True


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return every pair of tokens whose union is a token, best score first.

    SentencePiece joins the neighbours whose union has the best score, whatever the two are.
    """
    ids, scores, ranked = vocabulary.ids, vocabulary.get("scores"), []
    for index, token in enumerate(vocabulary.tokens):
        if vocabulary.types[index] in (UNKNOWN, CONTROL, BYTE):
            continue
        score = -float(scores[index])
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((score, index, left, right))
    ranked.sort()
    tokens = vocabulary.tokens
    return [(tokens[left], tokens[right]) for _, _, left, right in ranked]


def _added_tokens(vocabulary: Vocabulary) -> list[AddedToken]:
    """Return the tokens that are matched in the text before it is cut, in the order of ids."""
    name = str(vocabulary.metadata.get("general.name", "")).lower()
    is_phi3 = "phi-3" in name or "phi3" in name
    added = []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        special = kind in (CONTROL, UNKNOWN) or token in TURN_ENDS
        if special or kind == USER_DEFINED:
            rstrip = is_phi3 and token not in PHI3_PLAIN
            added.append(AddedToken(token, special=special, normalized=False, rstrip=rstrip))
    return added


def _add_ends(tokenizer: Tokenizer, vocabulary: Vocabulary, adds_bos: bool) -> None:
    """Make encode() add the tokens that the file requires before and after a text."""
    bos, eos = vocabulary.token("bos_token_id"), vocabulary.token("eos_token_id")
    first = bos if vocabulary.get("add_bos_token", adds_bos) else None
    last = eos if vocabulary.get("add_eos_token", False) else None
    if first is None and last is None:
        return
    single = [*([first] if first else []), "$A", *([last] if last else [])]
    pair = [*single, *([f"{first}:1"] if first else []), "$B:1", *([f"{last}:1"] if last else [])]
    used = {token: vocabulary.ids[token] for token in (first, last) if token}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(single), pair=" ".join(pair), special_tokens=list(used.items())
    )

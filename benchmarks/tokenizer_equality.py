"""Compare libbita's tokenizer with the `tokenizers` package, id by id.

    python benchmarks/tokenizer_equality.py --program build/cpp/text_tool \\
        --model smollm2-135m-instruct --model gemma.gguf --texts questions.jsonl --count 5000

Both encode the same lines with every tokenizer; a line counts as equal if all its ids are. The
result is written to benchmarks/results/tokenizer_equality.json: lines, differences, and for each
model the time to read its tokenizer.json (the best of 7) and the peak memory of the whole process,
including that file.
"""

import argparse
import json
import random
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from bita.export.gguf.pretokenizers import PRE_TOKENIZERS

RESULT = Path(__file__).parent / "results" / "tokenizer_equality.json"
BEHAVIORS = ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous")
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
EXPRESSIONS = (
    *(
        CL100K,
        DEEPSEEK,
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"\w+",
        r"[^\s\w]+",
        r"\b",
        r"b*",
        r"^.|.$",
    ),
    *(r"[^\S\r\n]+", r"[\P{L}\d]{2,3}?", r"(?<=\d)(?=\p{Lu})", r"(?i:[sk]t?x)|(?i:'re)", r"\h\H?"),
    *(r"\p{Han}|\p{Hiragana}|\p{Katakana}", r"[\x{300}-\x{36f}]|\u00e9", r"(?>a|ab)c|(?!x)\p{^L}"),
    *(r"[\D\S]\Z", r"\Aa*+|\p{Sc}|\p{Mn}", r"[^\p{L}\P{M}x]", r"\p{Thai}+?\p{Cf}{,2}"),
)
# Characters of every kind of script, and those that tokenizers treat specially.
SCRIPTS = (
    *((0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F), (0x591, 0x5F4)),
    *((0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FE), (0xB80, 0xBFF), (0xE00, 0xE5B)),
    *((0xF00, 0xFDA), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F), (0x1E00, 0x1FFE)),
    *((0x2000, 0x206F), (0x2070, 0x209C), (0x20A0, 0x20C0), (0x20D0, 0x20F0), (0x2100, 0x218B)),
    *((0x2190, 0x23FF), (0x2460, 0x24FF), (0x2600, 0x27BF), (0x3000, 0x303F), (0x3041, 0x30FF)),
    *((0x3130, 0x318E), (0x3200, 0x33FF), (0x4E00, 0x9FFF), (0xA640, 0xA69F), (0xAC00, 0xD7A3)),
    *((0xF900, 0xFAD9), (0xFB00, 0xFDFF), (0xFE00, 0xFE6F), (0xFF00, 0xFFEF), (0x10300, 0x1034A)),
    *((0x11000, 0x113E2), (0x11900, 0x11AFF), (0x16100, 0x16D79), (0x1D400, 0x1D7FF)),
    *((0x1E000, 0x1E95F), (0x1F000, 0x1FAFF), (0x1F3FB, 0x1F3FF), (0x20000, 0x2A6DF)),
    *((0x31350, 0x323AF), (0xE0000, 0xE007F), (0x300, 0x36F), (0, 0x1F), (0x7F, 0x9F)),
)
SPACES = "".join(chr(c) for c in (*range(9, 14), 32, 32, 32, 0x85, 0xA0, 0x1680, 0x180E, 0x2003))
SPACES += "\u200b\u2028\u2029\u202f\u205f\u3000\ufeff▁"
WORDS = (
    *("the", "of", "Token", "izer", "RUN", "x1", "42", "007", "3.5", "I'm", "WE'LL", "they'd"),
    *(
        "don't",
        "'S",
        "\u017f't",
        "é",
        "e\u0301",
        "ß",
        "İ",
        "Σ",
        "ΑΣ",
        "中文",
        "の",
        "한국",
        "ب",
        "я",
    ),
    *(
        "🙂",
        "👍🏽",
        "👩\u200d👩\u200d👧",
        "🇩🇪",
        "❤️",
        "½",
        "²",
        "٣",
        "Ⅷ",
        "()",
        "...",
        "--",
        "$9",
        "<|",
        "|>",
    ),
    *(
        "<s>",
        "</s>",
        "<|end|>",
        "<mask>",
        "word",
        "Two Words É",
        "\n\n",
        "\r\n",
        "http://a.b/c?d=1",
    ),
)


def lines(count: int, seed: int, texts: Sequence[str] = ()) -> list[str]:
    """Return `count` lines of words, characters of all scripts, spaces, and pieces of `texts`."""
    rng = random.Random(seed)
    return ["".join(_parts(rng, texts)) for _ in range(count)]


def _parts(rng: random.Random, texts: Sequence[str]) -> Iterator[str]:
    if texts and rng.random() < 0.5:
        text = rng.choice(texts)
        start = rng.randrange(len(text) + 1)
        yield text[start : start + rng.randint(1, 300)]
    low, high = rng.choice(SCRIPTS)
    for _ in range(rng.randint(0, 12)):
        kind = rng.random()
        if kind < 0.4:
            yield rng.choice(WORDS) + " " * rng.randint(0, 1)
        elif kind < 0.6:
            yield "".join(rng.choices(SPACES, k=rng.randint(1, 4)))
        elif kind < 0.9:
            yield "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6)))
        elif kind < 0.95:
            yield rng.choice("ab \n中1") * rng.randint(2, 70)
        else:
            code_point = rng.choice((rng.randrange(0x11000), rng.randrange(0x110000)))
            yield "" if 0xD800 <= code_point < 0xE000 else chr(code_point)  # no lone surrogates


def kinds() -> dict[str, Tokenizer]:
    """Build a small tokenizer of every supported kind, by name."""
    found: dict[str, Tokenizer] = {}
    for name in ("gpt-2", "smollm", "llama3", "qwen2", "tekken", "gpt-4o", "default"):
        rule = PRE_TOKENIZERS[name]
        found[name] = byte_level(rule.build(), ignore_merges=rule.whole_words)
    found["qwen2 NFC"] = byte_level(PRE_TOKENIZERS["qwen2"].build(), normalizers.NFC())
    for name, expression in (("cl100k", CL100K), ("deepseek", DEEPSEEK)):
        split = pre_tokenizers.Split(Regex(expression), "isolated")
        byte_characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        found[name] = byte_level(pre_tokenizers.Sequence([split, byte_characters]))
    found["prefix space"] = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    prepend, replace = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    found["llama 2"] = sentencepiece(normalizers.Sequence([prepend, replace]))
    found["gemma"] = sentencepiece(replace)
    found["no byte fallback"] = sentencepiece(replace, byte_fallback=False)
    found["fused"] = sentencepiece(replace, byte_fallback=False, fuse_unk=True)
    for scheme in ("always", "first", "never"):
        metaspace = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "first")
        found[f"mistral {scheme}"] = sentencepiece(None, metaspace)
    return found


def mixture(seed: int) -> Tokenizer:
    """Build a small tokenizer of randomly chosen parts."""
    rng = random.Random(seed)
    steps = rng.choices(_normalizers(rng), k=rng.randint(0, 2))
    words = rng.choices(_pre_tokenizers(rng), k=rng.randint(0, 2))
    normalizer = normalizers.Sequence(steps) if steps else None
    if rng.random() < 0.5:
        byte_characters = pre_tokenizers.ByteLevel(add_prefix_space=rng.random() < 0.3)
        tokenizer = byte_level(pre_tokenizers.Sequence([*words, byte_characters]), normalizer)
    else:
        options = {name: rng.random() < 0.5 for name in ("byte_fallback", "fuse_unk")}
        pre_tokenizer = pre_tokenizers.Sequence(words) if words else None
        tokenizer = sentencepiece(normalizer, pre_tokenizer, **options)
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    for content in ("<mask>", "word", "Two Words É", " ", "ab", "\n\n", "中"):
        token = AddedToken(content, **{flag: rng.random() < 0.4 for flag in flags})
        if normalizer is not None and not normalizer.normalize_str(content):
            continue  # the package would match an empty string everywhere, and fail
        if rng.random() < 0.5:
            tokenizer.add_special_tokens([token])
        elif rng.random() < 0.7:
            tokenizer.add_tokens([token])
    tokenizer.post_processor = rng.choice(_post_processors())
    return tokenizer


def _normalizers(rng: random.Random) -> list[Any]:
    expression = rng.choice((r"\s+", r"\p{M}", r"a|b+", r"[^\w\s]"))
    return [
        *(normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD()),
        *(normalizers.Lowercase(), normalizers.StripAccents(), normalizers.ByteLevel()),
        normalizers.Strip(left=rng.random() < 0.5, right=rng.random() < 0.5),
        normalizers.Prepend(rng.choice(("▁", "ab"))),
        normalizers.Replace(rng.choice((" ", "the", "\n\n", "é")), rng.choice(("", "▁", "$1"))),
        normalizers.Replace(Regex(expression), rng.choice(("", " ", "<>"))),
    ]


def _pre_tokenizers(rng: random.Random) -> list[Any]:
    behavior = rng.choice(BEHAVIORS)
    pattern: Any = rng.choice((*map(Regex, EXPRESSIONS), " ", "the", "", "\n\n"))
    return [
        pre_tokenizers.Whitespace(),
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Punctuation(behavior),
        pre_tokenizers.Digits(individual_digits=rng.random() < 0.5),
        *[pre_tokenizers.Split(pattern, behavior, invert=rng.random() < 0.3)] * 4,
        pre_tokenizers.Metaspace(prepend_scheme=rng.choice(("always", "never"))),
    ]


def _post_processors() -> list[Any]:
    return [
        processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]),
        processors.TemplateProcessing("$A $A <s>", special_tokens=[("<s>", 0)]),
        processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
        processors.BertProcessing(("</s>", 1), ("<s>", 0)),
        processors.ByteLevel(),
    ]


def byte_level(
    pre_tokenizer: Any, normalizer: Any = None, ignore_merges: bool = False
) -> Tokenizer:
    """Train a byte-level vocabulary of 600 tokens on lines of all kinds."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _train(tokenizer, 600, alphabet, ["<s>", "</s>", "<|end|>"])


def sentencepiece(
    normalizer: Any, pre_tokenizer: Any = None, byte_fallback: bool = True, fuse_unk: bool = False
) -> Tokenizer:
    """Train a vocabulary of characters and their merges; rare ones are bytes or unknown."""
    model = models.BPE(unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=fuse_unk)
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    some_bytes = [f"<0x{byte:02X}>" for byte in range(256) if byte_fallback or byte < 0xE5]
    tokens = ["<s>", "</s>", "<unk>", "<|end|>", *some_bytes]
    tokenizer = _train(tokenizer, 900, [], tokens, limit_alphabet=300)
    data = json.loads(tokenizer.to_str())
    hidden = [token for token in data["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps({**data, "added_tokens": hidden}))


def _train(
    tokenizer: Tokenizer, size: int, alphabet: list[str], tokens: list[str], **options: Any
) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=tokens,
        initial_alphabet=alphabet,
        show_progress=False,
        max_token_length=12,
        **options,
    )
    tokenizer.train_from_iterator(lines(300, seed=1), trainer)
    return tokenizer


def answers(program: Path, tokenizer_json: str, questions: Iterable[Any]) -> list[Any]:
    """Ask the program about a tokenizer; it answers with one line only if it rejects that."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tokenizer.json"
        path.write_text(tokenizer_json, encoding="utf-8")
        done = subprocess.run(
            [str(program), str(path)],
            input="".join(json.dumps(question) + "\n" for question in questions),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{program} ended with {done.returncode}: {done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def differences(
    program: Path, tokenizer: Tokenizer, texts: Sequence[str]
) -> tuple[list[str], Mapping[str, Any]]:
    """Return the texts whose ids differ, and the program's information about itself."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    specials = [index % 2 == 1 for index in range(len(texts))]
    asked = [{"encode": t, "special": s} for t, s in zip(texts, specials, strict=True)]
    *found, about = answers(program, tokenizer.to_str(), [*asked, {"info": None}])
    if "fault" in about:
        raise RuntimeError(about["fault"])
    expected = [_ids(tokenizer, t, s) for t, s in zip(texts, specials, strict=True)]
    differing = [
        text
        for text, ours, theirs in zip(texts, found, expected, strict=True)
        if theirs is not None and ours.get("ids") != theirs
    ]
    return differing, {**about, "num_compared": len(texts) - expected.count(None)}


def _ids(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[int] | None:
    """Return the ids of a text, or None if the package panics.

    It does so if two tokens take the same white space.
    """
    try:
        (found,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # cannot be imported
            raise
        return None
    ids: list[int] = found.ids
    return ids


def _model_tokenizer(model: str) -> Tokenizer:
    from bita.export.sources import open_checkpoint

    return Tokenizer.from_str(open_checkpoint(model).text_assets().tokenizer_json)


def _texts(paths: Iterable[Path]) -> list[str]:
    """Return every string in some files of JSON lines."""

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str) and value:
            yield value
        for inner in value.values() if isinstance(value, dict) else []:
            yield from strings(inner)
        for inner in value if isinstance(value, list) else []:
            yield from strings(inner)

    found = [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]
    return [text for value in found for text in strings(value)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, required=True, help="text_tool, built for tests")
    parser.add_argument("--model", action="append", default=[], help="a model or a .gguf file")
    parser.add_argument("--texts", type=Path, action="append", default=[], help="JSON lines")
    parser.add_argument("--count", type=int, default=5000, help="lines for each tokenizer")
    parser.add_argument("--mixtures", type=int, default=20, help="randomly built tokenizers")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    tested = {Path(model).name: _model_tokenizer(model) for model in args.model}
    models_tested = {*tested}
    tested |= kinds() | {f"mixture {seed}": mixture(seed) for seed in range(args.mixtures)}
    texts = lines(args.count, seed=2, texts=_texts(args.texts))
    report: dict[str, Any] = {"lines": len(texts), "unicode": unicodedata.unidata_version}
    report["tokenizers"] = {}
    for name, tokenizer in tested.items():
        differing, about = differences(args.program, tokenizer, texts)
        row = {"tokens": about["num_tokens"], "lines": about["num_compared"]}
        row["differences"] = len(differing)
        if name in models_tested:
            asked = (answers(args.program, tokenizer.to_str(), [{"info": None}]) for _ in range(7))
            row |= {
                "read_ms": round(min(found["load_us"] for (found,) in asked) / 1000, 1),
                "peak_memory_mb": round(about["peak_kib"] / 1024, 1),
            }
        report["tokenizers"][name] = row
        print(name, row, [repr(text[:60]) for text in differing[:2]], flush=True)
    args.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

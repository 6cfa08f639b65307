"""Grammars that take minutes, gigabytes or the whole stack if nothing limits them.

As a script it compiles each of them with little memory, and prints the costs as JSON.
"""

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

MAX_BYTES = 500 << 20  # limit for all of them together


def _chain(names: str, step: str, length: int) -> str:
    """Return rules that each refer to the next one."""
    rules = [f"{names}{i}: {step.format(f'{names}{i + 1}')}" for i in range(length)]
    return "\n".join([f"start: {names}0", *rules, f'{names}{length}: "a"'])


def _schema(**schema: Any) -> tuple[str, str]:
    return "json_schema", json.dumps(schema)


def _lark(text: str) -> tuple[str, str]:
    return "lark", text


def _definitions(step: Any, length: int) -> tuple[str, str]:
    chain = {f"d{i}": step({"$ref": f"#/$defs/d{i + 1}"}) for i in range(length)}
    return _schema(**{"$ref": "#/$defs/d0", "$defs": {**chain, f"d{length}": {"type": "null"}}})


_PATTERNS = [f".*a.{{{i}}}b.*" for i in range(5, 25)]
_ALL = " & ".join(f"/({each})/" for each in _PATTERNS)
_PRIMES = (9973, 9967, 9949, 9941)
_LOST = "|".join(f".*{c}.{{{30 + i}}}{chr(107 + i)}.*" for i, c in enumerate("abcdefghij"))

HOSTILE: dict[str, tuple[str, str]] = {
    # regular expressions
    "many optional letters": ("regex", "a?" * 30_000 + "b"),
    "many optional anythings": ("regex", ".?" * 20_000),
    "repetitions of repetitions": ("regex", "((x{1000}){1000}){1000}"),
    "the n-th letter from the end": ("regex", ".*a.{1000}"),
    "several of them": ("regex", _LOST),
    "deep parentheses": ("regex", "(a" * 10_000 + ")?" * 10_000),
    "a large repetition": ("regex", "(a{4294967295}b?){4294967295}"),
    # JSON schemas
    "intersected patterns": _schema(allOf=[{"type": "string", "pattern": p} for p in _PATTERNS]),
    "intersected multiples": _schema(allOf=[{"type": "integer", "multipleOf": p} for p in _PRIMES]),
    "intersected alternatives": _schema(
        allOf=[
            {"anyOf": [{"properties": {f"p{i}_{j}": {"type": "string"}}} for j in range(4)]}
            for i in range(14)
        ]
    ),
    "a pattern of many optional letters": _schema(type="string", pattern="a?" * 30_000 + "b"),
    "patterns of names": _schema(
        type="object", patternProperties={f".*{c}.{{20}}$": {} for c in "abcdefghij"}
    ),
    "a pattern and a length": _schema(
        type="string", pattern="^(a|b)*a(a|b){30}$", minLength=40, maxLength=4000
    ),
    "a tiny multiple": _schema(type="number", multipleOf=1e-300),
    "a long string": _schema(type="string", minLength=10**9, maxLength=10**9),
    "a long list": _schema(
        type="array", minItems=10**9, items={"type": "array", "minItems": 10**9}
    ),
    "a cycle of references": _definitions(lambda _: {"$ref": "#/$defs/d0"}, 3),
    "references that double": _definitions(lambda next_: {"allOf": [next_, next_]}, 40),
    "a deep chain of definitions": _definitions(lambda next_: {"items": next_}, 1300),
    "many optional properties": _schema(
        type="object", properties={f"k{i}": {"type": "integer"} for i in range(1500)}
    ),
    "white space": _schema(type="object", **{"x-guidance": {"whitespace_pattern": f"({_LOST})"}}),
    # Lark's notation
    "intersected terminals": _lark(f"start: A\nA: {_ALL}"),
    "a negated terminal": _lark("start: A\nA: ~/(.*a.{20}b.*)/ & /(.*c.{20}d.*)/"),
    "a deep chain of rules": _lark(_chain("r", "{}", 5000)),
    "a deep chain of terminals": _lark(_chain("R", "{}", 5000)),
    "terminals that double": _lark(_chain("R", "{0} {0}", 40)),
    "ambiguous rules": _lark('start: s\ns: s s | s s s | s s s s | "a" | "b" |'),
    "rules of all lengths": _lark(
        "start: s\ns: " + " | ".join(" ".join("s" * i) for i in range(1, 30)) + ' | "a" | "b"'
    ),
    "intersected patterns inside": _lark(
        "start: %json "
        + json.dumps({"allOf": [{"type": "string", "pattern": p} for p in _PATTERNS]})
    ),
    "many schemas inside": _lark("start: " + " | ".join(['%json {"type": "object"}'] * 2000)),
    "a panic": _lark('start: a "x"\na[lazy]: /.*/'),
}


def write_large_tokenizer(path: Path, num_tokens: int = 30_000) -> None:
    """Write a byte-level tokenizer: bytes, and random words of up to 8 characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    random = Random(0)
    vocab = {"<eos>": 0}
    for name in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[name] = len(vocab)
    while len(vocab) < num_tokens:
        vocab.setdefault(
            "".join(random.choices('abcdexĠ,"{}:019', k=random.randint(2, 8))), len(vocab)
        )
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def _costs() -> Iterator[dict[str, Any]]:
    from tokenizers import Tokenizer

    from bita.errors import PromptError
    from bita.runtime.text.grammar import Grammar, GrammarCompiler

    with TemporaryDirectory() as directory:
        file = Path(directory) / "tokenizer.json"
        write_large_tokenizer(file)
        compiler = GrammarCompiler(Tokenizer.from_file(str(file)), 30_000, [0])
        compiler.load()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_BYTES, resource.RLIM_INFINITY))
    for name, (kind, text) in HOSTILE.items():
        began, end = _seconds(), "compiled"
        try:
            matcher = compiler.compile(Grammar(kind, text))
            compiled = _seconds()
            end = _walk(matcher)
        except PromptError as refusal:
            compiled, end = _seconds(), str(refusal)
        yield {"name": name, "seconds": compiled - began, "end": end}


def _walk(matcher: Any) -> str:
    """Follow a grammar for some tokens; return the time of the slowest step, or the refusal."""
    from bita.errors import PromptError

    random, slowest = Random(0), 0.0
    for _ in range(25):
        began = _seconds()
        try:
            token = random.choice(matcher.allowed()[-50:].tolist())
            matcher.take(token)
            if not matcher.is_complete and token:
                matcher.forced()
        except PromptError as refusal:
            return f"at a step: {refusal}"
        slowest = max(slowest, _seconds() - began)
        if matcher.is_complete:
            break
    return f"slowest step {slowest:.2f}"


def _seconds() -> float:
    """Return the CPU seconds of this process and its children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime for each in used)


if __name__ == "__main__":
    for cost in _costs():
        print(json.dumps(cost), flush=True)

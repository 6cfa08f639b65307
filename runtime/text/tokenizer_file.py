"""Reading of tokenizer.json: broken and hostile files are refused, and none hangs or panics.

The tokenizers library is native code. On some files it panics, which raises something that is not
an Exception, and it follows every rule of a file, such as one that replaces one character by 5000.
So the rules are checked before the library sees them, and every call into it with untrusted data
goes through `checked_call`.
"""

import base64
import binascii
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from tokenizers import Tokenizer

from bita.errors import BitaError, raise_faults
from bita.json_values import parse_json, shown
from bita.runtime.spare_memory import give_back

MAX_GROWTH = 64.0  # of a text by the normalizer; real normalizers replace one character by another
MAX_ADDED_IDS = 256  # added around a text by a post-processor
MAX_PROBES = 32  # letters tried
MAX_PROBE_SECONDS = 0.1  # a fast probe of PROBE_CHARACTERS takes less than 1 ms
PROBE_CHARACTERS = 256
_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")
# The key "normalizer", possibly with escaped letters, before a value that is not a token's id.
_LATER_NORMALIZER = re.compile(
    '"' + "".join(rf"(?:{c}|\\u00{ord(c):02x})" for c in "normalizer") + r'"\s*:\s*[^\d\s]',
    re.IGNORECASE,
)
_SPACE = re.compile(r"[ \t\r\n]*")

T = TypeVar("T")


def read_tokenizer(text: str, error: type[BitaError], subject: str, fix: str) -> Tokenizer:
    """Read a tokenizer.json. Raises `error`: "SUBJECT is not a tokenizer: ...; FIX"."""
    try:
        parts = _read_parts(text)
    except ValueError as cause:
        raise error(f"{subject} is not a tokenizer: {cause}; {fix}") from cause
    raise_faults(error, f"{subject} cannot be used", [*_faults(parts)])
    tokenizer: Tokenizer = checked_call(
        lambda: Tokenizer.from_str(text), error, f"{subject} is not a tokenizer", fix
    )
    checked_call(lambda: _check_loaded(tokenizer, parts), error, f"{subject} cannot be used", fix)
    give_back()
    return tokenizer


def checked_call(call: Callable[[], T], error: type[BitaError], what: str, fix: str) -> T:
    """Call into the tokenizers library. Everything it raises, including panics, becomes `error`."""
    try:
        return call()
    except BitaError:
        raise
    except Exception as cause:
        raise error(f"{what}: {_one_line(cause)}; {fix}") from cause
    except BaseException as cause:
        if type(cause).__name__ != "PanicException":  # the class cannot be imported
            raise
        raise error(f"{what}: the tokenizers library fails ({_one_line(cause)}); {fix}") from cause


def _read_parts(text: str) -> dict[str, Any]:
    """Return the parts of the file with rules, by name. Raises ValueError if it is not JSON.

    The vocabulary is most of a file and usually its last part, so only the parts before it are
    parsed: parsing the whole file takes as long as loading the tokenizer.
    """
    head = _before_model(text)
    if head is None:
        head = parse_json(text)
        if not isinstance(head, dict):
            raise ValueError(f"it holds {shown(head)}, not an object")
    return {name: head.get(name) for name in _PARTS}


def _before_model(text: str) -> dict[str, Any] | None:
    """Return the values before the key "model", or None if that is not the last key."""
    decoder = json.JSONDecoder()
    parts: dict[str, Any] = {}
    try:
        at = _skip_mark(text, 0, "{")
        while True:
            key, at = decoder.raw_decode(text, _skip_mark(text, at))
            at = _skip_mark(text, at, ":")
            if key == "model":
                return None if _LATER_NORMALIZER.search(text, at) else parts
            parts[key], at = decoder.raw_decode(text, _skip_mark(text, at))
            at = _skip_mark(text, at, ",")
    except (ValueError, TypeError, RecursionError):  # parsing the whole file reports the fault
        return None


def _skip_mark(text: str, at: int, mark: str = "") -> int:
    """Return the position after white space, the `mark`, and white space."""
    at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
    if not text.startswith(mark, at):
        raise ValueError(f"no {mark} at character {at}")
    return _SPACE.match(text, at + len(mark)).end()  # type: ignore[union-attr]


def _faults(parts: Mapping[str, Any]) -> Iterator[str]:
    growth = 1.0
    for step in _steps(parts["normalizer"], "normalizers"):
        growth *= _growth(step)
    if growth > MAX_GROWTH:
        yield (
            f"its normalizer makes a text up to {growth:.3g} times longer; at most "
            f"{MAX_GROWTH:.0f} times is supported: choose another model"
        )


def _steps(part: Any, children: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rules of a part of the file, with nested sequences flattened."""
    waiting = [part]
    while waiting:
        step = waiting.pop()
        if isinstance(step, Mapping):
            inner = step.get(children)
            if isinstance(inner, list):
                waiting += reversed(inner)
            else:
                yield step


def _growth(step: Mapping[str, Any]) -> float:
    """Return the factor by which a rule can lengthen a text; the library checks its types."""
    kind, content = step.get("type"), step.get("content")
    if kind == "Replace" and isinstance(content, str):
        pattern = step.get("pattern")
        old = pattern.get("String") if isinstance(pattern, Mapping) else None
        if isinstance(old, str) and old:
            return max(1.0, len(content) / len(old))
        return 1.0 + len(content)  # an expression may match between all characters
    if kind == "Prepend" and isinstance(step.get("prepend"), str):
        return max(1.0, float(len(step["prepend"])))
    if kind == "Precompiled":
        return _charsmap_growth(step.get("precompiled_charsmap"))
    return 1.0


def _charsmap_growth(charsmap: Any) -> float:
    """Return the longest replacement of a SentencePiece table (size of a trie, trie, texts)."""
    try:
        data = base64.b64decode(charsmap)
    except (binascii.Error, TypeError, ValueError):
        return 1.0  # the library reports the fault
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(1.0, float(max((len(text) for text in texts.split(b"\0")), default=1)))


def _check_loaded(tokenizer: Tokenizer, parts: Mapping[str, Any]) -> None:
    """Raise ValueError for faults that are only visible in the loaded tokenizer."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.get_vocab_size(with_added_tokens=True) == 0:
        raise ValueError("it has no tokens")
    if (num_added := tokenizer.num_special_tokens_to_add(False)) > MAX_ADDED_IDS:
        raise ValueError(f"it puts {num_added} tokens around a text, more than {MAX_ADDED_IDS}")
    expressions = [*_expressions(parts)]
    if not expressions:
        return
    letters = "".join(dict.fromkeys([*" a1\n!\u00e9", *"".join(expressions)]))[:MAX_PROBES]
    for letter in letters:
        _probe(tokenizer, letter, letters)


def _expressions(parts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the regular expressions with which the tokenizer splits or changes a text."""
    for part, children in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        for step in _steps(parts[part], children):
            pattern = step.get("pattern")
            if isinstance(pattern, Mapping) and isinstance(pattern.get("Regex"), str):
                yield pattern["Regex"]


def _probe(tokenizer: Tokenizer, letter: str, end: str) -> None:
    """Encode ever longer runs of a letter; raise ValueError if that takes long.

    An expression with excessive backtracking takes minutes for a page of text, and cannot be
    interrupted. `end` follows the run, since some expressions only backtrack if a certain letter
    occurs. A second try distinguishes slow expressions from a busy machine.
    """
    length = 16
    while length <= PROBE_CHARACTERS:
        if min(_seconds(tokenizer, letter * length + end, tries=2)) > MAX_PROBE_SECONDS:
            raise ValueError(
                f"its regular expression takes too long for {length} repetitions of {letter!r}; "
                "simplify it"
            )
        length *= 2


def _seconds(tokenizer: Tokenizer, text: str, tries: int) -> Iterator[float]:
    for _ in range(tries):
        start = time.monotonic()
        tokenizer.encode(text, add_special_tokens=False)
        took = time.monotonic() - start
        yield took
        if not MAX_PROBE_SECONDS < took < 5 * MAX_PROBE_SECONDS:
            return


def _one_line(cause: BaseException) -> str:
    return " ".join(f"{cause}".split())[:300]

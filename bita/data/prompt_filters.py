"""Filters of self-written prompts: these must be text, of a suitable length, and new."""

import math
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass

# Each letter of a script without spaces between words counts as a word. Combining marks, which \w
# does not match, are part of words.
_UNSPACED = r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]"
_MARKED = r"[\u0300-\u036f\u0900-\u0dff\u1000-\u109f]"
_WORD = re.compile(rf"{_UNSPACED}|(?:(?!{_UNSPACED})(?:[^\W_]|{_MARKED}))+")
NGRAM = 3


@dataclass(frozen=True)
class FilterOptions:
    """Limits of a user's turn."""

    min_words: int = 3
    max_words: int = 150
    min_distinct: float = 0.6  # share of distinct word 3-grams; prose has more than 0.9
    min_letters: float = 0.5  # share of letters and digits among characters other than spaces
    max_similarity: float = 0.6  # Jaccard similarity of word 3-grams to an earlier prompt


class PromptFilter:
    """Judges prompts one after the other, and remembers those that were kept."""

    def __init__(self, options: FilterOptions) -> None:
        self.options = options
        self.rejected: Counter[str] = Counter()  # number of rejected prompts by reason
        self._seen = NearDuplicates(options.max_similarity)

    def keep(self, text: str) -> bool:
        """Return whether the prompt passes; if so, remember it as an earlier prompt."""
        grams = word_ngrams(text)
        reason = text_fault(text, self.options)
        if reason is None and self._seen.has_similar(grams):
            reason = "duplicate"
        if reason is None:
            self._seen.add(grams)
            return True
        self.rejected[reason] += 1
        return False

    def remember(self, text: str) -> None:
        """Count a prompt as kept without judging it."""
        self._seen.add(word_ngrams(text))


class NearDuplicates:
    """Index of sets of n-gram hashes that finds near-duplicates exactly.

    Two sets of Jaccard similarity s or more share at least a fraction s of the larger one.
    Therefore they also share an element among the first (1 - s) of each, in a common order. Only
    these elements are indexed, in the order of the hashes, and only sets found there are compared.
    """

    def __init__(self, max_similarity: float) -> None:
        """Regard sets as near-duplicates above `max_similarity`, which is in [0, 1)."""
        self._max_similarity = max_similarity
        self._sets: list[frozenset[int]] = []
        self._places: defaultdict[int, list[int]] = defaultdict(list)

    def has_similar(self, grams: frozenset[int]) -> bool:
        """Return whether an earlier set has a Jaccard similarity above the limit."""
        found = {place for gram in self._first(grams) for place in self._places.get(gram, ())}
        return any(jaccard(grams, self._sets[place]) > self._max_similarity for place in found)

    def add(self, grams: frozenset[int]) -> None:
        for gram in self._first(grams):
            self._places[gram].append(len(self._sets))
        self._sets.append(grams)

    def _first(self, grams: frozenset[int]) -> list[int]:
        shared = math.ceil(self._max_similarity * len(grams) - 1e-9)  # rounding must not drop one
        return sorted(grams)[: len(grams) - shared + 1]


def jaccard(left: frozenset[int], right: frozenset[int]) -> float:
    """Return the size of the intersection over that of the union; 0 for two empty sets."""
    union = len(left | right)
    return len(left & right) / union if union else 0.0


def word_ngrams(text: str) -> frozenset[int]:
    """Return hashes of a text's word 3-grams, in lower case; one hash for fewer than 3 words."""
    return frozenset(zlib.crc32(" ".join(gram).encode()) for gram in _ngrams(_words(text)))


def text_fault(text: str, options: FilterOptions) -> str | None:
    """Return why a text is rejected: "not text", "short", "long", "repetitive", or None."""
    if not _is_text(text, options.min_letters):
        return "not text"
    words = _words(text)
    if len(words) < options.min_words:
        return "short"
    if len(words) > options.max_words:
        return "long"
    grams = _ngrams(words)
    return "repetitive" if len(set(grams)) < options.min_distinct * len(grams) else None


def _is_text(text: str, min_letters: float) -> bool:
    if "\ufffd" in text or any(
        unicodedata.category(character) in ("Cc", "Co", "Cn") and character not in "\n\t\r"
        for character in text
    ):
        return False
    shown = [character for character in text if not character.isspace()]
    # Marks belong to the letters before them in many scripts.
    letters = sum(unicodedata.category(character)[0] in "LNM" for character in shown)
    return letters > 0 and letters >= min_letters * len(shown)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(words: list[str]) -> list[tuple[str, ...]]:
    if len(words) < NGRAM:
        return [tuple(words)] if words else []
    return [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]

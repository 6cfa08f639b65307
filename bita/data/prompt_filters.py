"""Which self-written prompts are worth an answer: real text, not too short or long, new."""

import math
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass

# Letters of scripts without spaces between words count as words of their own; marks, which Python
# takes for the ends of words, belong to them.
_UNSPACED = r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]"
_MARKED = r"[\u0300-\u036f\u0900-\u0dff\u1000-\u109f]"
_WORD = re.compile(rf"{_UNSPACED}|(?:(?!{_UNSPACED})(?:[^\W_]|{_MARKED}))+")
NGRAM = 3


@dataclass(frozen=True)
class FilterOptions:
    """Limits of one user's turn; lengths in words."""

    min_words: int = 3
    max_words: int = 150
    min_distinct: float = 0.6  # distinct of all word 3-grams; running text has above 0.9
    min_letters: float = 0.5  # letters and digits among the characters that are not spaces
    max_similarity: float = 0.6  # Jaccard similarity of word 3-grams to an earlier prompt


class PromptFilter:
    """Judges prompts one after the other, and remembers those that were kept.

    rejected: how often which reason was given.
    """

    def __init__(self, options: FilterOptions) -> None:
        self.options = options
        self.rejected: Counter[str] = Counter()
        self._seen = NearDuplicates(options.max_similarity)

    def keep(self, text: str) -> bool:
        """Whether the prompt passes; one that does is remembered as earlier prompt."""
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
    """Sets of n-gram hashes, and whether a new one is too similar to any of them; exact.

    Two sets of Jaccard similarity s or more share at least s of the larger one, so they also share
    one of the first (1 - s) of each in a common order. Only these are indexed, in the order of the
    hashes, and only the sets found there are compared.
    """

    def __init__(self, max_similarity: float) -> None:
        """max_similarity: above it two sets are near-duplicates; in [0, 1)."""
        self._max_similarity = max_similarity
        self._sets: list[frozenset[int]] = []
        self._places: defaultdict[int, list[int]] = defaultdict(list)

    def has_similar(self, grams: frozenset[int]) -> bool:
        """Whether a set added before has a Jaccard similarity above the limit."""
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
    """Size of the intersection over size of the union; 0 for two empty sets."""
    union = len(left | right)
    return len(left & right) / union if union else 0.0


def word_ngrams(text: str) -> frozenset[int]:
    """Hashes of the word 3-grams of a text, lower case; of all words if there are fewer than 3."""
    return frozenset(zlib.crc32(" ".join(gram).encode()) for gram in _ngrams(_words(text)))


def text_fault(text: str, options: FilterOptions) -> str | None:
    """Why a text is no prompt: "not text", "short", "long", "repetitive"; None if it is one."""
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

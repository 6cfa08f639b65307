"""The store returns the rows that it was given, shares beginnings, and respects its limit."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from cache_rows import HEADS, LAYERS, WIDTH, adapter_of, rows_of, shape_of

from bita.runtime.backends.cache import COPIED_TOKENS, CopiedRows, HostCache
from bita.runtime.backends.page_store import common_length

ROW_BYTES = 4 * 2 * LAYERS * HEADS * WIDTH


class RecordingCache(HostCache):
    """Records which tokens were copied."""

    def __init__(self) -> None:
        super().__init__(shape_of(2000))
        self.copied: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> np.ndarray:
        self.copied.append((start, stop))
        return super().read(start, stop)


class SavedTexts:
    """A cache and its store."""

    def __init__(self, max_bytes: int) -> None:
        self.cache = RecordingCache()
        self.store = self.cache.new_store(max_bytes)

    def save(self, ids: list[int]) -> list[tuple[int, int]]:
        """Save a text as the one in the cache and return the ranges of rows copied."""
        self.cache.start(adapter_of(5))
        self.cache.append(rows_of(ids))
        self.cache.copied.clear()
        self.store.save(ids, self.cache)
        return [*self.cache.copied]

    def restore(self, ids: list[int]) -> int:
        """Restore a text, check its rows, and return the number of tokens found."""
        self.cache.start(adapter_of(5))
        assert self.cache.length == 0
        self.store.restore(ids, self.cache)
        length = self.cache.length
        np.testing.assert_array_equal(self.cache.read(0, length), rows_of(ids[:length]))
        assert self.store.match_length(ids) == length
        return length

    def pages(self) -> Iterator[CopiedRows]:
        for page in self.store._used:
            assert page.parent is not None
            assert page.parent.children[page.tokens] is page
            assert isinstance(page.kept, CopiedRows)
            yield page.kept


def test_only_the_new_rows_of_a_growing_text_are_copied() -> None:
    kept = SavedTexts(1 << 24)
    ids = list(range(200))
    assert kept.save(ids[:70]) == [(0, 32), (32, 64), (64, 70)]
    assert kept.save(ids[:70]) == []
    assert kept.save(ids[:66]) == []
    assert kept.save(ids[:100]) == [(64, 96), (96, 100)]
    assert kept.store.num_bytes == 100 * ROW_BYTES  # the page of 64 to 70 was dropped
    assert kept.restore(ids) == 100
    assert kept.restore([*ids[:50], 7, 8]) == 50
    assert kept.restore([*ids[:64], 999]) == 64
    assert kept.restore([999]) == 0
    assert kept.restore([]) == 0
    assert kept.save([*ids[:64], 7, 8, 9]) == [(64, 67)]
    assert kept.restore([*ids[:64], 7, 8, 9, 10]) == 67
    kept.store.clear()
    assert (kept.store.num_bytes, kept.restore(ids)) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_tokens", [0, 40, 200, 600])
def test_random_texts_are_restored_within_the_limit(seed: int, max_tokens: int) -> None:
    """Texts share beginnings: rows are right, the limit holds, and the newest text is found."""
    rng = random.Random(seed)
    kept = SavedTexts(max_tokens * ROW_BYTES)
    texts: list[list[int]] = [[]]
    for _ in range(150):
        base = rng.choice(texts)
        ids = [
            *base[: rng.randint(0, len(base))],
            *(rng.randrange(3) for _ in range(rng.randint(1, 80))),
        ]
        texts.append(ids)
        kept.save(ids)
        assert kept.store.num_bytes <= kept.store.max_bytes
        length = kept.restore(ids)
        assert length >= min(len(ids), max(0, max_tokens - COPIED_TOKENS))
        kept.restore(rng.choice(texts))
    assert kept.store.num_bytes == sum(rows.num_bytes for rows in kept.pages())


def test_the_least_recently_used_text_is_evicted_first() -> None:
    kept = SavedTexts(3 * 64 * ROW_BYTES)
    texts = [[number, *range(63)] for number in range(3)]
    for text in texts:
        kept.save(text)
    kept.restore(texts[0])
    kept.save([9, *range(63)])
    assert [kept.restore(text) for text in texts] == [64, 0, 64]


def test_a_negative_limit_keeps_nothing() -> None:
    kept = SavedTexts(-1)
    kept.save([1, 2, 3])
    assert (kept.store.num_bytes, kept.restore([1, 2, 3])) == (0, 0)


def test_common_length_counts_equal_leading_tokens() -> None:
    assert common_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_length([1, 2], [1, 2, 4]) == 2
    assert common_length([], [1]) == 0
    assert common_length((5,), [6]) == 0

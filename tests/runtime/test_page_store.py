"""The store gives back the rows it was given, shares beginnings, and stays within its bound."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from cache_rows import HEADS, LAYERS, WIDTH, adapter_of, rows_of, shape_of

from bita.runtime.backends.cache import COPIED_TOKENS, CopiedRows, HostCache
from bita.runtime.backends.page_store import common_length

ROW_BYTES = 4 * 2 * LAYERS * HEADS * WIDTH


class RecordingCache(HostCache):
    """Notes which tokens were copied."""

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
        """Save a text as the one in the cache; returns which of its rows were copied."""
        self.cache.start(adapter_of(5))
        self.cache.append(rows_of(ids))
        self.cache.copied.clear()
        self.store.save(ids, self.cache)
        return [*self.cache.copied]

    def found(self, ids: list[int]) -> int:
        """How many tokens of a text are known; their rows are the right ones."""
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


def test_a_text_that_grows_is_read_from_where_it_grew() -> None:
    kept = SavedTexts(1 << 24)
    ids = list(range(200))
    assert kept.save(ids[:70]) == [(0, 32), (32, 64), (64, 70)]
    assert kept.save(ids[:70]) == []
    assert kept.save(ids[:66]) == []
    assert kept.save(ids[:100]) == [(64, 96), (96, 100)]
    assert kept.store.num_bytes == 100 * ROW_BYTES  # the page of 64 to 70 has gone
    assert kept.found(ids) == 100
    assert kept.found([*ids[:50], 7, 8]) == 50
    assert kept.found([*ids[:64], 999]) == 64
    assert kept.found([999]) == 0
    assert kept.found([]) == 0
    assert kept.save([*ids[:64], 7, 8, 9]) == [(64, 67)]
    assert kept.found([*ids[:64], 7, 8, 9, 10]) == 67
    kept.store.clear()
    assert (kept.store.num_bytes, kept.found(ids)) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_tokens", [0, 40, 200, 600])
def test_whatever_is_saved_and_asked_for(seed: int, max_tokens: int) -> None:
    """Random texts that share beginnings: rows are right, the bound holds, the newest is there."""
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
        length = kept.found(ids)
        assert length >= min(len(ids), max(0, max_tokens - COPIED_TOKENS))
        kept.found(rng.choice(texts))
    assert kept.store.num_bytes == sum(rows.num_bytes for rows in kept.pages())


def test_what_is_used_least_goes_first() -> None:
    kept = SavedTexts(3 * 64 * ROW_BYTES)
    texts = [[number, *range(63)] for number in range(3)]
    for text in texts:
        kept.save(text)
    kept.found(texts[0])
    kept.save([9, *range(63)])
    assert [kept.found(text) for text in texts] == [64, 0, 64]


def test_a_negative_bound_keeps_nothing() -> None:
    kept = SavedTexts(-1)
    kept.save([1, 2, 3])
    assert (kept.store.num_bytes, kept.found([1, 2, 3])) == (0, 0)


def test_common_length() -> None:
    assert common_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_length([1, 2], [1, 2, 4]) == 2
    assert common_length([], [1]) == 0
    assert common_length((5,), [6]) == 0

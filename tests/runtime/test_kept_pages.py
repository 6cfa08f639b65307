"""Texts that alternate in a paged cache share the pages of common beginnings without copies."""

import gc
import mmap
import random
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from cache_rows import (
    HEADS,
    LAYERS,
    WIDTH,
    adapter_of,
    prefix_by_pages,
    rows_of,
    shape_of,
    text_by_pages,
    write_step,
)
from speed import thorough_but

from bita.adapter import Adapter
from bita.engine import PAGE_SLOTS
from bita.runtime.backends.page_store import Page, common_length
from bita.runtime.backends.paged_cache import PagedCache
from bita.runtime.backends.pages import KeptPage
from bita.runtime.decoding.drafting import Drafts
from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.decoding.shared_cache import SharedCache

PAGE_BYTES = 4 * LAYERS * HEADS * 2 * PAGE_SLOTS * WIDTH
ADAPTERS = [adapter_of(length, length) for length in (0, 5, 16, 17)]
STATM = Path("/proc/self/statm")
GARBAGE = 123_456.0  # value of rows that a step leaves after the text


def text_of(ids: Sequence[int]) -> TokenSequence:
    return TokenSequence(ids, Drafts(3, 4))


class Turns:
    """Texts that alternate in one cache; the rows of a text are determined by its tokens.

    Args:
        capacity: Slots of one text with its prefix.
        kept_pages: Pages of the cache in addition to those of one text.
        max_pages: Pages that the store may keep.
    """

    def __init__(self, capacity: int, kept_pages: int, max_pages: int) -> None:
        self.cache = PagedCache(shape_of(capacity), np.float32, kept_pages * PAGE_BYTES)
        self.shared = SharedCache(self.cache, max_pages * PAGE_BYTES)
        self.store = self.shared.store
        self.pool = self.cache._pool

    def take(self, text: TokenSequence, adapter: Adapter = ADAPTERS[1]) -> int:
        """Give the cache to a text and return how many of its tokens are in it."""
        self.shared.take(text, adapter)
        assert self.cache.length <= len(text.token_ids) - 1
        self.check(text, adapter)
        return self.cache.length

    def read(self, text: TokenSequence, rng: random.Random) -> None:
        """Write the missing rows of the text except for its last token, in steps that leave other
        rows too.
        """
        cache, ids = self.cache, text.token_ids[:-1]
        while cache.length < len(ids):
            room = cache.capacity - cache.num_slots_used
            count = rng.randint(1, min(room, 24))
            path = [0, *(row for row in range(1, count) if rng.random() < 0.7)]
            path = path[: len(ids) - cache.length]
            rows = np.full((2 * LAYERS, HEADS, count, WIDTH), GARBAGE, np.float32)
            stop = cache.length + len(path)
            rows[:, :, path] = rows_of(ids[:stop])[:, :, cache.length :]
            write_step(cache, rows)
            cache.commit(path)

    def check(self, text: TokenSequence, adapter: Adapter) -> None:
        """Assert that the cache has the right rows and that every used page has an owner."""
        cache = self.cache
        expected = rows_of(text.token_ids[: cache.length])
        np.testing.assert_array_equal(text_by_pages(cache, cache.length), expected)
        prefix = prefix_by_pages(cache, adapter.prefix_length)[0::2]
        np.testing.assert_array_equal(
            prefix, adapter.bounded["prefix_keys"][:, :, : adapter.prefix_length]
        )
        kept = dict(self.kept())
        assert self.store.num_bytes == len(kept) * PAGE_BYTES <= self.store.max_bytes
        used = {*cache._text.pages, *cache.pages.prefix.pages, *kept}
        assert self.pool.num_free == cache.slab.shape[1] - len(used)
        assert not np.delete(cache.slab, [*used], axis=1).any()
        for page, ids in kept.items():
            first = (len(ids) - 1) // PAGE_SLOTS * PAGE_SLOTS
            keys = cache.slab[0, page, :, 0].reshape(HEADS, WIDTH, PAGE_SLOTS)
            np.testing.assert_array_equal(
                keys[:, :, : len(ids) - first], rows_of(ids)[0, :, first:].transpose(0, 2, 1)
            )

    def kept(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each kept page with its tokens and all tokens before them."""
        for page in self.store._used:
            assert isinstance(page.kept, KeptPage)
            yield page.kept.page, ids_of(page)

    @property
    def num_used(self) -> int:
        return self.cache.slab.shape[1] - self.pool.num_free


def ids_of(page: Page) -> list[int]:
    return [] if page.parent is None else [*ids_of(page.parent), *page.tokens]


@pytest.mark.parametrize("seed", thorough_but(range(6), 0, 1))
@pytest.mark.parametrize(("kept_pages", "max_pages"), [(0, 0), (0, 100), (3, 3), (12, 12), (2, 9)])
def test_any_alternation_of_texts_keeps_the_right_rows(
    seed: int, kept_pages: int, max_pages: int
) -> None:
    """Random texts share beginnings, adapters have prefixes of any size, some texts are not wanted
    again, and prefix or text may fill the cache.
    """
    rng = random.Random(seed)
    turns = Turns(capacity=70, kept_pages=kept_pages, max_pages=max_pages)
    texts = [text_of([rng.randrange(3) for _ in range(20)])]
    for _ in range(150):
        text, adapter = rng.choice(texts), rng.choice(ADAPTERS)
        if rng.random() < 0.3:  # a fork
            begin = text.token_ids[: rng.randint(1, len(text.token_ids))]
            text = text_of([*begin, *(rng.randrange(3) for _ in range(rng.randint(1, 20)))])
            texts.append(text)
        elif rng.random() < 0.5:
            text.extend([rng.randrange(3) for _ in range(rng.randint(1, 20))])
        del text.token_ids[turns.cache.capacity - adapter.prefix_length :]
        text.is_wanted = rng.random() < 0.8
        if rng.random() < 0.05:
            turns.shared.invalidate()
        turns.take(text, adapter)
        turns.read(text, rng)
        if rng.random() < 0.1:
            turns.cache.clear_around_text()
            garbage = turns.cache.slab == GARBAGE
            assert not garbage[:, turns.cache._text.pages].any()
            turns.shared.invalidate()
        else:
            turns.check(text, adapter)
    turns.shared.forget()
    assert turns.num_used == len(turns.cache._text.pages) + len(turns.cache.pages.prefix.pages)


def test_a_returning_text_finds_its_rows() -> None:
    """All rows are found where there is room, whichever texts had the cache since."""
    rng, turns = random.Random(0), Turns(capacity=200, kept_pages=40, max_pages=40)
    texts = [text_of([number, *range(100 + number)]) for number in range(5)]
    for text in texts:
        assert turns.take(text) == 0
        turns.read(text, rng)
    for text in texts:
        assert turns.take(text) == len(text.token_ids) - 1
    fork = text_of([*texts[1].token_ids[:98], 7, 8, 9])
    assert turns.take(fork) == 98
    turns.read(fork, rng)
    assert turns.take(texts[1]) == 101
    assert turns.take(fork) == 100  # although it only has two tokens more than they share
    assert turns.take(text_of([*texts[3].token_ids, 7])) == len(texts[3].token_ids) - 1
    turns.shared.forget()
    assert turns.take(texts[1]) == 0


def test_the_least_recently_used_pages_are_evicted_first() -> None:
    """There is room for two and a half of three four-page texts."""
    rng, turns = random.Random(0), Turns(capacity=100, kept_pages=10, max_pages=10)
    texts = [text_of([number, *range(64)]) for number in range(3)]
    for text in texts:
        turns.take(text)
        turns.read(text, rng)
    assert turns.take(texts[0]) == 32  # its end was evicted
    other = text_of([9, *range(64)])
    turns.take(other)
    turns.read(other, rng)
    assert [turns.store.match_length(text.token_ids[:-1]) for text in texts] == [32, 64, 64]
    assert turns.take(texts[2]) == 64
    known = [turns.store.match_length(text.token_ids[:-1]) for text in (*texts, other)]
    assert known == [32, 0, 64, 64]


def test_kept_pages_never_reduce_the_capacity() -> None:
    """The cache has only the pages that the capacity needs, and all of them are kept."""
    rng, turns = random.Random(0), Turns(capacity=70, kept_pages=0, max_pages=100)
    for number in range(4):
        text = text_of([number, *range(64)])
        turns.take(text)
        turns.read(text, rng)
        turns.check(text, ADAPTERS[1])
        write_step(turns.cache, rows_of([1]))  # fills the last slot
        assert turns.pool.num_free == 0
    assert turns.take(text_of([9])) == 0
    assert turns.take(text) == 64


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_text_stays_in_place_when_the_prefix_changes(adapter: Adapter) -> None:
    rng, turns = random.Random(0), Turns(capacity=100, kept_pages=0, max_pages=0)
    text = text_of(range(40))
    turns.take(text, adapter)
    turns.read(text, rng)
    pages = [*turns.cache._text.pages]
    for other in ADAPTERS:
        assert turns.take(text, other) == 39
        assert turns.cache._text.pages == pages[:3]


def test_forks_take_only_the_pages_that_they_write() -> None:
    """Eight forks of 500 tokens alternately write to the 32nd page, in which the text ends."""
    rng, turns = random.Random(0), Turns(capacity=1000, kept_pages=200, max_pages=200)
    base = list(range(500))
    texts = [text_of([*base, 600 + number]) for number in range(8)]
    turns.take(texts[0])
    turns.read(texts[0], rng)
    for step in range(10):
        for number, text in enumerate(texts):
            turns.take(text)
            turns.read(text, rng)
            text.extend([700 + number + step])
    turns.take(text_of([9]))
    assert all(len(text.token_ids) == 511 for text in texts)
    assert turns.num_used == 31 + 8 + 1  # shared pages, the last page of each, and the prefix


def test_a_switch_copies_no_rows() -> None:
    """It only writes zeros to pages that it frees; the next step copies the page in which the text
    ends, up to that end.
    """
    rng, turns = random.Random(0), Turns(capacity=1000, kept_pages=200, max_pages=200)
    texts = [text_of([number, *range(600)]) for number in range(2)]
    pages: list[list[int]] = []
    for text in texts:
        turns.take(text)
        turns.read(text, rng)
        pages.append(turns.cache._text.pages[:38])
    for number, text in [*enumerate(texts)] * 2:
        before = turns.cache.slab.copy()
        assert turns.take(text) == 600
        changed = (before != turns.cache.slab).any(axis=(0, 2, 3, 4))
        assert not turns.cache.slab[:, changed].any()
        assert turns.cache._text.pages == pages[number]
        before = turns.cache.slab.copy()
        turns.cache.reserve(1, 1)
        changed = (before != turns.cache.slab).any(axis=(0, 2, 3, 4))
        assert np.flatnonzero(changed).tolist() == turns.cache._text.pages[37:]
        assert turns.cache._text.pages[:37] == pages[number][:37]
        turns.check(text, ADAPTERS[1])


def test_an_interrupted_switch_leaves_no_partial_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng, turns = random.Random(0), Turns(capacity=100, kept_pages=0, max_pages=0)
    text, other = text_of(range(40)), text_of([9])
    turns.take(text)
    turns.read(text, rng)

    def interrupt(page: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(turns.pool, "release", interrupt)
    with pytest.raises(KeyboardInterrupt):
        turns.shared.take(other, ADAPTERS[1])
    monkeypatch.undo()
    turns.shared.take(text, ADAPTERS[1])
    assert turns.cache.length == 0
    turns.read(text, rng)
    np.testing.assert_array_equal(text_by_pages(turns.cache, 39), rows_of(range(39)))


def test_an_interrupted_copy_is_repeated_before_the_text_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng, turns = random.Random(0), Turns(capacity=100, kept_pages=9, max_pages=9)
    text = text_of(range(40))
    turns.take(text)
    turns.read(text, rng)
    turns.take(text_of([9]))
    turns.take(text)
    with monkeypatch.context() as patches:
        patches.setattr(turns.cache.pages, "keys", None)
        with pytest.raises(TypeError):
            turns.cache.reserve(1, 1)
    turns.cache.reserve(1, 1)
    np.testing.assert_array_equal(text_by_pages(turns.cache, 39), rows_of(range(39)))
    assert not {*turns.cache._text.pages[2:]} & {*dict(turns.kept())}


def test_a_cache_is_freed_with_its_store() -> None:
    """It does not wait for the cycle collector: it may be most of a machine's memory."""
    turns = Turns(capacity=100, kept_pages=9, max_pages=9)
    for ids in (range(40), range(60), [9]):
        turns.take(text_of(ids))
        turns.read(text_of(ids), random.Random(0))
    assert turns.store.num_bytes
    cache = weakref.ref(turns.cache)
    gc.disable()
    del turns
    freed = cache() is None
    gc.enable()
    assert freed


def test_extra_pages_take_no_memory_until_written() -> None:
    before = resident_bytes()
    cache = PagedCache(shape_of(70), np.float32, 1 << 30)
    assert cache.slab.nbytes > 1 << 30
    cache.start(ADAPTERS[1])
    cache.append(rows_of(range(40)))
    assert resident_bytes() - before < 64 << 20


def resident_bytes() -> int:
    """Return the physical memory of this process."""
    if not STATM.exists():
        pytest.skip("the system does not report the memory of a process")
    return int(STATM.read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


def test_the_cache_has_fewer_extra_pages_if_memory_is_refused() -> None:
    cache = PagedCache(shape_of(70), np.float32, 1 << 70)
    assert cache.slab.shape[1] > 6
    assert cache.slab.nbytes < 1 << 62
    cache.start(ADAPTERS[1])
    cache.append(rows_of(range(65)))
    np.testing.assert_array_equal(text_by_pages(cache, 65), rows_of(range(65)))


def test_the_beginning_of_the_cached_text_is_reused_without_a_store() -> None:
    rng, turns = random.Random(0), Turns(capacity=100, kept_pages=0, max_pages=0)
    first, second = text_of(range(60)), text_of([*range(37), 9, 9])
    turns.take(first)
    turns.read(first, rng)
    assert turns.take(second) == common_length(first.token_ids, second.token_ids) == 37
    assert turns.take(first) == 37

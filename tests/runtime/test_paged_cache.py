"""A paged cache behaves like a slab; texts share pages until one of them writes."""

import numpy as np
import pytest
from cache_rows import adapter_of, prefix_by_pages, text_by_pages, write_step

from bita.errors import EngineError
from bita.runtime.backends.cache import HostCache
from bita.runtime.backends.page_pool import PageList, PagePool, num_pages
from bita.runtime.backends.paged_cache import PagedCache

SHAPE = (8, 2, 50, 16)  # 4 layers; 50 slots take three pages and a bit


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("seed", range(20))
def test_a_paged_cache_behaves_like_a_slab(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    host, paged = HostCache(SHAPE, dtype), PagedCache(SHAPE, dtype)
    adapters = [adapter_of(length, length) for length in (0, 1, 5, 16, 17, 33)]
    adapter = adapters[0]
    rows: np.ndarray
    for cache in (host, paged):
        cache.start(adapter)
    for _ in range(60):
        room = host.capacity - host.num_slots_used
        match rng.integers(7):
            case 0:
                adapter = adapters[rng.integers(len(adapters))]
                for cache in (host, paged):
                    cache.start(adapter)
            case 1 if host.length:  # the same text, continued from an earlier token
                kept = int(rng.integers(host.length + 1))
                for cache in (host, paged):
                    cache.start(adapter, kept)
            case 2:
                for cache in (host, paged):
                    cache.clear_around_text()
            case 3 if room:
                count = int(rng.integers(1, room + 1))
                rows = rng.normal(0, 1, (8, 2, count, 16)).astype(dtype)
                for cache in (host, paged):
                    cache.append(rows)
            case _ if room:
                count = int(rng.integers(1, min(room, 20) + 1))
                rows = rng.normal(0, 1, (8, 2, count, 16)).astype(dtype)
                later = np.flatnonzero(rng.integers(0, 2, count - 1)) + 1
                for cache in (host, paged):
                    write_step(cache, rows)
                    cache.commit([0, *later.tolist()])
        assert_same(host, paged)


def assert_same(host: HostCache, paged: PagedCache) -> None:
    assert host.length == paged.length
    assert host.num_slots_used == paged.num_slots_used
    prefix, length = host.prefix_length, host.length
    start = int(np.random.default_rng(length).integers(length + 1))
    np.testing.assert_array_equal(host.read(start, length), paged.read(start, length))
    np.testing.assert_array_equal(host.read(0, length), text_by_pages(paged, length))
    np.testing.assert_array_equal(host.slab[:, :, :prefix], prefix_by_pages(paged, prefix))


@pytest.mark.parametrize("capacity", [1, 2, 15, 16, 17, 18, 32, 33, 34])
def test_prefix_and_text_fit_in_any_proportion(capacity: int) -> None:
    """There is no spare page: some proportion needs all of them."""
    cache = PagedCache((8, 2, capacity, 16), np.float16)
    num_free = []
    for prefix in [*range(capacity), *range(capacity)[::-1]]:
        cache.start(adapter_of(prefix))
        cache.reserve(capacity - prefix, capacity - prefix)
        num_free.append(cache._pool.num_free)
    assert min(num_free) == 0
    with pytest.raises(EngineError, match=f"does not fit after 0 of {capacity} cache slots"):
        cache.reserve(capacity + 1, capacity + 1)


def test_the_placement_of_the_text_stays_in_the_same_arrays() -> None:
    cache = PagedCache(SHAPE, np.float16)
    arrays = dict(cache.placement)
    cache.start(adapter_of(5))
    cache.reserve(20, 20)
    assert cache.placement["text_lengths"].tolist() == [0]
    cache.length = 17
    cache.reserve(16, 16)
    assert arrays["text_lengths"].tolist() == [17]
    used = [*arrays["text_pages"][0, :3].tolist(), int(arrays["prefix_pages"][0])]
    assert len({*used}) == 4
    assert all(arrays[name] is array for name, array in cache.placement.items())


def test_pages_are_contiguous_views_of_one_slab() -> None:
    cache = PagedCache(SHAPE, np.float16)
    cache.start(adapter_of(0))
    for view in cache.views().values():
        assert np.shares_memory(view, cache.slab)
        assert view.shape == (5, 2, 2, 256)
        assert view.flags.c_contiguous
    cache.append(np.ones((8, 2, 17, 16), np.float16))
    assert cache.slab[:, :1].all()  # the first page is full, the second has one slot
    assert not cache.slab[:, 2:].any()


def test_reused_pages_keep_no_values_of_an_earlier_text() -> None:
    """Values that are not finite would spread when a whole page is read."""
    cache = PagedCache(SHAPE, np.float32)
    cache.start(adapter_of(17))
    cache.append(np.full((8, 2, 33, 16), np.nan, np.float32))
    cache.start(adapter_of(0))
    assert np.isfinite(cache.slab).all()


def test_clearing_zeros_the_prefix_and_rejected_rows() -> None:
    cache = PagedCache(SHAPE, np.float32)
    cache.start(adapter_of(5))
    write_step(cache, np.full((8, 2, 20, 16), 1, np.float32))
    cache.commit([0, 1, 2])
    cache.clear_around_text()
    assert not prefix_by_pages(cache, 5).any()
    np.testing.assert_array_equal(text_by_pages(cache, 20)[0, 0, :, 0], [1] * 3 + [0] * 17)
    cache.start(adapter_of(5))
    assert prefix_by_pages(cache, 5).any()


def fork_of(text: PageList, length: int) -> PageList:
    """Make a list that starts with the same slots in the same pages."""
    fork = PageList(text.pool)
    for page in text.pages[: num_pages(length)]:
        fork.append(page)
    return fork


def reach(text: PageList, start: int, stop: int) -> list[tuple[int, int]]:
    """Extend a text and return pairs of copied pages and their copies."""
    copied: list[tuple[int, int]] = []
    text.reach(start, stop, lambda page, own: copied.append((page, own)))
    return copied


def release(text: PageList) -> None:
    for page in text.cut(0):
        text.pool.release(page)


def test_released_pages_are_reused() -> None:
    pool = PagePool(3)
    texts = [PageList(pool), PageList(pool)]
    reach(texts[0], 0, 16)
    reach(texts[1], 0, 17)
    assert [text.pages for text in texts] == [[0], [1, 2]]
    with pytest.raises(EngineError, match="all 3 pages of the cache are in use"):
        reach(texts[0], 16, 17)
    release(texts[1])
    assert pool.num_free == 2
    reach(texts[0], 16, 48)
    assert sorted(texts[0].pages) == [0, 1, 2]


def test_a_fork_shares_pages_until_one_of_the_two_writes() -> None:
    pool = PagePool(8)
    text = PageList(pool)
    reach(text, 0, 40)
    fork = fork_of(text, 20)  # includes four slots of the second page
    assert fork.pages == text.pages[:2]
    assert pool.num_free == 5
    assert reach(fork, 20, 24) == [(1, 3)]  # its content is copied before the fork writes
    assert fork.pages == [0, 3]
    assert text.pages == [0, 1, 2]
    assert reach(text, 20, 24) == []  # the page is no longer shared
    assert reach(fork, 0, 1) == [(0, 4)]
    release(text)
    assert pool.num_free == 6
    release(fork)
    assert pool.num_free == 8


@pytest.mark.parametrize("seed", range(10))
def test_no_page_is_lost_or_written_by_two_texts(seed: int) -> None:
    rng, pool = np.random.default_rng(seed), PagePool(40)
    texts = [PageList(pool)]
    lengths = [0]
    for _ in range(300):
        at = int(rng.integers(len(texts)))
        match rng.integers(3):
            case 0 if len(texts) < 6:
                lengths.append(int(rng.integers(lengths[at] + 1)))
                texts.append(fork_of(texts[at], lengths[-1]))
            case 1 if len(texts) > 1:
                release(texts.pop(at))
                lengths.pop(at)
            case _ if pool.num_free > 4:
                stop = min(lengths[at] + int(rng.integers(1, 40)), 100)
                num_free, missing = pool.num_free, texts[at].num_missing(lengths[at], stop)
                reach(texts[at], lengths[at], stop)
                assert pool.num_free == num_free - missing
                written = texts[at].pages[lengths[at] // 16 :]
                others = {page for text in texts if text is not texts[at] for page in text.pages}
                assert not others & {*written}
                lengths[at] = stop
        used = {page for text in texts for page in text.pages}
        assert pool.num_free == 40 - len(used)

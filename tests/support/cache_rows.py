"""Rows that encode their tokens, written to and read from caches as operators do."""

from collections.abc import Sequence

import numpy as np
from tiny_models import random_checkpoint

from bita.adapter import Adapter, random_adapter
from bita.identity import identify
from bita.runtime.backends.cache import Cache, HostCache
from bita.runtime.backends.paged_cache import PagedCache

IDENTITY = identify(random_checkpoint())
Places = Sequence[tuple[int, int]]  # page and slot
LAYERS, HEADS, WIDTH = 4, 2, 16  # the shape of this model's prefixes


def shape_of(capacity: int) -> tuple[int, int, int, int]:
    return (2 * LAYERS, HEADS, capacity, WIDTH)


def adapter_of(prefix_length: int, seed: int = 0) -> Adapter:
    return random_adapter(IDENTITY, 3, prefix_length, seed=seed)


def rows_of(ids: Sequence[int]) -> np.ndarray:
    """Return rows [2L, H, n, D] that encode their token and all tokens before it."""
    number, numbers = 1, []
    for token in ids:
        number = (number * 31 + token + 1) % 10_007
        numbers.append(number)
    sides = np.arange(2 * LAYERS, dtype=np.float32)[:, None, None, None]
    widths = np.arange(WIDTH, dtype=np.float32) / 64
    rows = np.array(numbers, np.float32)[None, None, :, None] + 16_384 * sides + widths
    return np.broadcast_to(rows, (2 * LAYERS, HEADS, len(numbers), WIDTH)).copy()


def write_step(cache: Cache, rows: np.ndarray) -> None:
    """Write rows [2L, H, n, D] after the text, as a step does, without changing its length."""
    count = rows.shape[2]
    cache.reserve(count, count)
    if isinstance(cache, PagedCache):
        first = int(cache.placement["text_lengths"][0])
        write_slots(cache, text_places(cache, first, first + count), rows)
    else:
        assert isinstance(cache, HostCache)
        cache.write(rows)


def text_places(cache: PagedCache, start: int, stop: int) -> Places:
    """Return the places of the text's slots, found by the placement as in an operator."""
    pages = cache.placement["text_pages"][0]
    return [(int(pages[slot // 16]), slot % 16) for slot in range(start, stop)]


def text_by_pages(cache: PagedCache, num_slots: int) -> np.ndarray:
    """Return the rows [2L, H, n, D] of the text's first slots."""
    return slots_of(cache, text_places(cache, 0, num_slots))


def prefix_by_pages(cache: PagedCache, num_slots: int) -> np.ndarray:
    pages = cache.placement["prefix_pages"]
    return slots_of(cache, [(int(pages[slot // 16]), slot % 16) for slot in range(num_slots)])


def write_slots(cache: PagedCache, places: Places, rows: np.ndarray) -> None:
    """Write rows [2L, H, n, D] to slots."""
    _, heads, _, width = cache.shape
    for name, pages in cache.views().items():
        layer = int(name.removesuffix(".pages"))
        for at, (page, slot) in enumerate(places):
            pages[page, :, 0].reshape(heads, width, 16)[:, :, slot] = rows[2 * layer, :, at]
            pages[page, :, 1].reshape(heads, 16, width)[:, slot] = rows[2 * layer + 1, :, at]


def slots_of(cache: PagedCache, places: Places) -> np.ndarray:
    """Return the rows [2L, H, n, D] of slots."""
    layers, heads, _, width = cache.shape
    rows = np.zeros((layers, heads, len(places), width), cache.dtype)
    for name, pages in cache.views().items():
        layer = int(name.removesuffix(".pages"))
        for at, (page, slot) in enumerate(places):
            rows[2 * layer, :, at] = pages[page, :, 0].reshape(heads, width, 16)[:, :, slot]
            rows[2 * layer + 1, :, at] = pages[page, :, 1].reshape(heads, 16, width)[:, slot]
    return rows

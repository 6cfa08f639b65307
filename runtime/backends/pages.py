"""Pages of keys and values of all layers in one slab, which its texts share."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np

from bita.engine import PAGE_SLOTS
from bita.runtime.backends.cache import PrefixSlots, Shape, lazy_zeros
from bita.runtime.backends.page_pool import Copy, PageList, PagePool, num_pages
from bita.runtime.backends.page_store import PageStore
from bita.tensors import FloatArray, Int64Array

Places = tuple[Int64Array, Int64Array]  # for each of n slots, its page and its index in the page


class Pages:
    """A slab of pages, `[L, pages, H, 2, 16 * D]`, their allocation, and the prefix's pages.

    For each head a page holds keys `[D, 16]`, then values `[16, D]`. A page takes memory on the
    first write to it, and contains zeros while it is free.

    shape: [2L, H, C, D], where C slots hold the prefix and one text together.
    kept_bytes: memory for further pages; there are fewer if the system limits the address space.
    """

    def __init__(self, shape: Shape, dtype: np.dtype[Any], kept_bytes: int = 0) -> None:
        self.slab = _lazy_pages(shape, dtype, kept_bytes)
        whole, width = self.slab.shape[:-1], shape[3]
        self.keys = self.slab.reshape(*whole, width, PAGE_SLOTS)[:, :, :, 0]
        self.values = self.slab.reshape(*whole, PAGE_SLOTS, width)[:, :, :, 1]
        self.pool = PagePool(self.slab.shape[1])
        self.stores: WeakSet[PageStore] = WeakSet()
        self.prefix = PageList(self.pool)
        self.prefix_slots = PrefixSlots()
        self.prefix_pages = np.zeros(num_pages(shape[2]), np.int64)

    def assign(self, places: Places, keys: FloatArray, values: FloatArray) -> None:
        """Write keys and values, [L, H, n, D] or broadcastable to it, to n slots."""
        pages, slots = places
        self.keys[:, pages, :, :, slots] = keys.transpose(2, 0, 1, 3)
        self.values[:, pages, :, slots] = values.transpose(2, 0, 1, 3)

    def give_back(self, pages: Sequence[int]) -> None:
        """Release pages, and zero those that become free."""
        self.slab[:, [page for page in pages if not self.pool.is_shared(page)]] = 0
        for page in pages:
            self.pool.release(page)

    def reach(self, pages: PageList, start: int, stop: int, copy: Copy) -> None:
        """Call `PageList.reach`, after stores have given up pages if there are too few."""
        self.make_room(pages.num_missing(start, stop))
        pages.reach(start, stop, copy)

    def make_room(self, count: int) -> bool:
        """Let stores give up pages until `count` are free; return whether that succeeded."""
        while count > self.pool.num_free:
            if not any(store.drop_oldest() for store in self.stores):
                return False
        return True

    def write_prefix(self, length: int, keys: FloatArray, values: FloatArray) -> None:
        """Write the keys and values of the prefix of all texts, [L, H, P, D]."""
        if num_pages(length) != len(self.prefix.pages):
            self.give_back(self.prefix.cut(0))
            self.reach(self.prefix, 0, length, lambda page, own: None)
            self.prefix_pages[: len(self.prefix.pages)] = self.prefix.pages
        self.assign(self.in_prefix(np.arange(length)), keys, values)

    def in_prefix(self, slots: Int64Array) -> Places:
        """Return the page and the slot in it of each of the prefix's slots, [n]."""
        return self.prefix_pages[slots // PAGE_SLOTS], slots % PAGE_SLOTS


@dataclass(frozen=True, eq=False)
class KeptPage:
    """A page of a text that has left; other texts may share its first tokens."""

    pages: Pages
    page: int
    num_bytes: int

    def restore(self, cache: Any, num_tokens: int) -> None:
        """Append the first `num_tokens` tokens to the text in a cache, which shares the page."""
        cache.append_page(self.page, num_tokens)

    def release(self) -> None:
        """Release the page."""
        self.pages.give_back([self.page])


def _lazy_pages(shape: Shape, dtype: np.dtype[Any], kept_bytes: int) -> FloatArray:
    """Return pages `[L, pages, H, 2, 16 * D]` for the capacity, and for `kept_bytes` more."""
    sides, heads, capacity, width = shape
    page = (heads, 2, PAGE_SLOTS * width)
    # One page more than C slots need, since text and prefix may each leave their last page partly
    # empty.
    needed = num_pages(capacity - 1) + 1
    further = max(kept_bytes, 0) // (sides // 2 * math.prod(page) * dtype.itemsize)
    while further:
        with contextlib.suppress(OSError, MemoryError, OverflowError, ValueError):
            return lazy_zeros((sides // 2, needed + further, *page), dtype)
        further //= 2
    return lazy_zeros((sides // 2, needed, *page), dtype)

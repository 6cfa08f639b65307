"""The key-value cache of native operators: pages of 16 slots, which a page list puts in order."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from bita.adapter import Adapter
from bita.engine import PAGE_SLOTS
from bita.runtime.backends.cache import Cache, Shape, lazy_zeros
from bita.runtime.backends.page_pool import PageList, PagePool, num_pages
from bita.runtime.backends.page_store import PageStore
from bita.tensors import FloatArray, Int64Array

Places = tuple[Int64Array, Int64Array]  # page, and slot in it, of each of n slots


class PagedCache(Cache):
    """Keys and values of all layers in one slab, `[L, pages, H, 2, 16 * D]`.

    Of each head a page holds keys `[D, 16]`, then values `[16, D]`. The prefix has pages of its
    own, apart from the text's; what is left of its last page stays empty. Slots are numbered as in
    other caches here: the prefix's first, then the text's. A page takes memory when something is
    written to it, and holds zeros while nobody uses it.

    A text that leaves gives up no page that a store keeps, and one that begins alike shares these
    pages. Before anything is written to a shared page, the text gets its own with the same slots.

    shape: [2L, H, C, D], C slots of prefix and text together.
    kept_bytes: of further pages, for texts that have left; there are fewer where the system does
    not give as much address space.
    placement: inputs of a step that say where text and prefix are, kept up to date in place:
    text_lengths [1], text_pages [1, W], prefix_pages [W]; W pages hold C slots.
    """

    def __init__(self, shape: Shape, dtype: npt.DTypeLike, kept_bytes: int = 0) -> None:
        super().__init__(shape, dtype)
        capacity, width = shape[2:]
        self.slab = _lazy_pages(shape, self.dtype, kept_bytes)
        whole = self.slab.shape[:-1]
        self._keys = self.slab.reshape(*whole, width, PAGE_SLOTS)[:, :, :, 0]
        self._values = self.slab.reshape(*whole, PAGE_SLOTS, width)[:, :, :, 1]
        self._pool = PagePool(self.slab.shape[1])
        self._stores: WeakSet[PageStore] = WeakSet()
        self._text, self._prefix = PageList(self._pool), PageList(self._pool)
        self._writable = range(0)  # slots of the text whose pages nobody shares
        size = num_pages(capacity)
        self._text_lengths = np.zeros(1, np.int64)
        self._text_pages = np.zeros((1, size), np.int64)
        self._prefix_pages = np.zeros(size, np.int64)
        self.placement: dict[str, Int64Array] = {
            "text_lengths": self._text_lengths,
            "text_pages": self._text_pages,
            "prefix_pages": self._prefix_pages,
        }

    def views(self) -> dict[str, FloatArray]:
        """The pages of each layer, [pages, H, 2, 16 * D], by their names in a graph."""
        return {f"{index}.pages": pages for index, pages in enumerate(self.slab)}

    def start(self, adapter: Adapter, num_kept: int = 0) -> None:
        self._writable = range(0)
        self._give_back(self._text.cut(num_kept))
        super().start(adapter, num_kept)
        self._num_written = self._num_held

    def clear_around_text(self) -> None:
        super().clear_around_text()
        self._writable = range(0)

    def can_keep_text(self, adapter: Adapter) -> bool:
        """It always may, since the prefix lies apart."""
        return True

    def new_store(self, max_bytes: int) -> PageStore:
        """What keeps the pages of texts that leave, `max_bytes` of them at the most; nothing is
        copied. It gives up pages where the text in the cache lacks them.
        """
        store = PageStore(max_bytes, self._keep, PAGE_SLOTS)
        self._stores.add(store)
        return store

    def append_page(self, page: int, num_tokens: int) -> None:
        """Append the first tokens of a page that is kept to the text, whose pages are full."""
        self._writable = range(0)
        self._text.append(page)
        self._text_pages[0, len(self._text.pages) - 1] = page
        self.length += num_tokens
        self._note_written(self._num_held)

    def release_page(self, page: int) -> None:
        """Give up a page that was kept."""
        self._give_back([page])

    def reserve(self, num_rows: int, num_slots: int) -> None:
        start = self.length
        stop = start + num_slots
        self._text_lengths[0] = start
        # a step after the other finds its pages ready, but for one in a few
        if start < self._writable.start or stop > self._writable.stop:
            super().reserve(num_rows, num_slots)
            self._reach_text(start, stop)

    def write(self, rows: FloatArray) -> None:
        """Put rows, [2L, H, n, D], after the text."""
        stop = self.length + rows.shape[2]
        self._reach_text(self.length, stop)
        self._assign(self._in_text(np.arange(self.length, stop)), rows[0::2], rows[1::2])

    def read(self, start: int, stop: int) -> FloatArray:
        layers, heads, _, width = self.shape
        rows: FloatArray = np.empty((layers, heads, stop - start, width), self.dtype)
        pages, slots = self._in_text(np.arange(start, stop))
        # advanced indices with slices between them: the axis of slots comes first
        rows[0::2] = self._keys[:, pages, :, :, slots].transpose(1, 2, 0, 3)
        rows[1::2] = self._values[:, pages, :, slots].transpose(1, 2, 0, 3)
        return rows

    _put = write

    @property
    def _num_held(self) -> int:
        """Slots of the prefix, and of the pages that the text has."""
        return self.prefix_length + PAGE_SLOTS * len(self._text.pages)

    def _keep(self, start: int, stop: int) -> "KeptPage":
        """Hold the page of tokens [start, stop) of the text."""
        self._writable = range(0)
        page = self._pool.share(self._text.pages[start // PAGE_SLOTS])
        return KeptPage(self, page, self.slab[:, page].nbytes)

    def _write_prefix(self, adapter: Adapter) -> None:
        length = adapter.prefix_length
        if num_pages(length) != len(self._prefix.pages):
            self._give_back(self._prefix.cut(0))
            self._reach(self._prefix, 0, length)
            self._prefix_pages[: len(self._prefix.pages)] = self._prefix.pages
        values = adapter.bounded
        places = self._in_prefix(np.arange(length))
        self._assign(places, values["prefix_keys"], values["prefix_values"])

    def _give_back(self, pages: Sequence[int]) -> None:
        """Release pages; those that nobody else holds become zeros before they are free."""
        self.slab[:, [page for page in pages if not self._pool.is_shared(page)]] = 0
        for page in pages:
            self._pool.release(page)

    def _zero(self, start: int, stop: int) -> None:
        zero, prefix = np.zeros((1, 1, 1, 1), self.dtype), self.prefix_length
        self._assign(self._in_prefix(np.arange(start, min(stop, prefix))), zero, zero)
        slots = np.arange(max(start, prefix), stop) - prefix
        if len(slots):
            self._reach_text(int(slots[0]), int(slots[-1]) + 1)
            self._assign(self._in_text(slots), zero, zero)

    def _move(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        to, to_slots = self._in_text(np.array(targets) - self.prefix_length)
        pages, slots = self._in_text(np.array(sources) - self.prefix_length)
        self._keys[:, to, :, :, to_slots] = self._keys[:, pages, :, :, slots]
        self._values[:, to, :, to_slots] = self._values[:, pages, :, slots]

    def _assign(self, places: Places, keys: FloatArray, values: FloatArray) -> None:
        """keys, values: [L, H, n, D], or what broadcasts to it."""
        pages, slots = places
        self._keys[:, pages, :, :, slots] = keys.transpose(2, 0, 1, 3)
        self._values[:, pages, :, slots] = values.transpose(2, 0, 1, 3)

    def _in_prefix(self, slots: Int64Array) -> Places:
        """Where slots of the prefix are, [n]."""
        return self._prefix_pages[slots // PAGE_SLOTS], slots % PAGE_SLOTS

    def _in_text(self, slots: Int64Array) -> Places:
        """Where slots of the text are, [n]."""
        return self._text_pages[0][slots // PAGE_SLOTS], slots % PAGE_SLOTS

    def _reach_text(self, start: int, stop: int) -> None:
        """Give the text pages that it shares with nobody, for its slots [start, stop), which come
        after its tokens.
        """
        self._reach(self._text, start, stop)
        self._note_written(self._num_held)
        first = start // PAGE_SLOTS
        self._writable = range(start, min(self._num_held, self.capacity) - self.prefix_length)
        self._text_pages[0, first : len(self._text.pages)] = self._text.pages[first:]

    def _reach(self, pages: PageList, start: int, stop: int) -> None:
        """PageList.reach, for which stores give up pages if there are too few."""
        while pages.num_missing(start, stop) > self._pool.num_free:
            if not any(store.drop_oldest() for store in self._stores):
                break
        pages.reach(start, stop, self._copy_page)

    def _copy_page(self, page: int, own: int) -> None:
        """Copy the page in which the text ends, as far as the text goes."""
        filled = self.length % PAGE_SLOTS
        self._keys[:, own, :, :, :filled] = self._keys[:, page, :, :, :filled]
        self._values[:, own, :, :filled] = self._values[:, page, :, :filled]


@dataclass(frozen=True, eq=False)
class KeptPage:
    """A page of a cache that was a text's, of which others may take the first tokens."""

    cache: PagedCache
    page: int
    num_bytes: int

    def restore(self, num_tokens: int) -> None:
        """Append the first of them to the text in the cache, which shares the page."""
        self.cache.append_page(self.page, num_tokens)

    def release(self) -> None:
        """Give the page up."""
        self.cache.release_page(self.page)


def _lazy_pages(shape: Shape, dtype: np.dtype[Any], kept_bytes: int) -> FloatArray:
    """Pages `[L, pages, H, 2, 16 * D]`: those that the capacity needs, and of `kept_bytes` more."""
    sides, heads, capacity, width = shape
    page = (heads, 2, PAGE_SLOTS * width)
    # One more than C slots need, since neither text nor prefix may fill its last page.
    needed = num_pages(capacity - 1) + 1
    further = max(kept_bytes, 0) // (sides // 2 * math.prod(page) * dtype.itemsize)
    while further:
        with contextlib.suppress(OSError, MemoryError, OverflowError, ValueError):
            return lazy_zeros((sides // 2, needed + further, *page), dtype)
        further //= 2
    return lazy_zeros((sides // 2, needed, *page), dtype)

"""The key-value cache of native operators: pages of 16 slots, ordered by a page list."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bita.adapter import Adapter
from bita.engine import PAGE_SLOTS
from bita.runtime.backends.cache import Cache, Shape
from bita.runtime.backends.page_pool import PageList, num_pages
from bita.runtime.backends.page_store import PageStore
from bita.runtime.backends.pages import KeptPage, Pages, Places
from bita.tensors import FloatArray, Int64Array


class PagedCache(Cache):
    """Keys and values of one text, in pages of a slab that several texts may share.

    The prefix has its own pages; the rest of its last page stays empty. Slots are numbered as in
    other caches: first the prefix's, then the text's.

    When a text leaves, the pages that a store keeps remain, and a text with the same beginning
    shares them. Before a write to a shared page, the text gets its own copy of the page.

    shape: [2L, H, C, D], where C slots hold prefix and text together.
    kept_bytes: memory for pages beyond those of one text, for other texts and texts that have left.
    pages: pages to use. None: new ones.
    placement: inputs of a step with the placement of text and prefix, updated in place:
    text_lengths [1], text_pages [1, W], prefix_pages [W]; W pages hold C slots.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: npt.DTypeLike,
        kept_bytes: int = 0,
        pages: Pages | None = None,
    ) -> None:
        super().__init__(shape, dtype)
        self.pages = Pages(shape, self.dtype, kept_bytes) if pages is None else pages
        self._prefix_slots = self.pages.prefix_slots
        self._pool = self.pages.pool
        self._text = PageList(self._pool)
        self._writable = range(0)  # slots of the text whose pages are exclusive
        self._text_lengths = np.zeros(1, np.int64)
        self._text_pages = np.zeros((1, num_pages(shape[2])), np.int64)
        self.placement: dict[str, Int64Array] = {
            "text_lengths": self._text_lengths,
            "text_pages": self._text_pages,
            "prefix_pages": self.pages.prefix_pages,
        }

    def new_sibling(self) -> "PagedCache":
        """Return a cache for another text in the same pages, with the same prefix."""
        return PagedCache(self.shape, self.dtype, pages=self.pages)

    def exchange(self, other: "PagedCache") -> None:
        """Exchange the texts of two caches in the same pages, without copying rows."""
        for name in ("length", "text_number", "_num_written", "_text", "_writable"):
            mine, others = getattr(self, name), getattr(other, name)
            setattr(self, name, others)
            setattr(other, name, mine)
        mine = self._text_pages.copy()
        self._text_pages[:], other._text_pages[:] = other._text_pages, mine

    @property
    def slab(self) -> FloatArray:
        """The slab of pages, `[L, pages, H, 2, 16 * D]`; see `Pages`."""
        return self.pages.slab

    @property
    def text_pages(self) -> Int64Array:
        """The page of every 16 slots of the text, [W]; entries after its last page are invalid."""
        row: Int64Array = self._text_pages[0]
        return row

    def release(self) -> None:
        """Drop the text and release its pages."""
        self._writable = range(0)
        self.pages.give_back(self._text.cut(0))
        self.length = 0
        self.text_number += 1
        self._num_written = self._num_held

    def views(self) -> dict[str, FloatArray]:
        """Return the pages of each layer, [pages, H, 2, 16 * D], by their names in a graph."""
        return {f"{index}.pages": pages for index, pages in enumerate(self.slab)}

    def start(self, adapter: Adapter, num_kept: int = 0) -> None:
        self._writable = range(0)
        self.pages.give_back(self._text.cut(num_kept))
        super().start(adapter, num_kept)
        self._num_written = self._num_held

    def clear_around_text(self) -> None:
        super().clear_around_text()
        self._writable = range(0)

    def can_keep_text(self, adapter: Adapter) -> bool:
        """Return True: the prefix has its own pages."""
        return True

    def new_store(self, max_bytes: int) -> PageStore:
        """Return a store for at most `max_bytes` of pages of texts that leave.

        It keeps pages in place, without copying, and gives them up when a text needs them.
        """
        store = PageStore(max_bytes, PAGE_SLOTS)
        self.pages.stores.add(store)
        return store

    def append_page(self, page: int, num_tokens: int) -> None:
        """Append the first tokens of a kept page to the text, whose pages must be full."""
        self._writable = range(0)
        self._text.append(page)
        self._text_pages[0, len(self._text.pages) - 1] = page
        self.length += num_tokens
        self._note_written(self._num_held)

    def reserve(self, num_rows: int, num_slots: int) -> None:
        start = self.length
        stop = start + num_slots
        self._text_lengths[0] = start
        # most steps find their pages already reserved
        if start < self._writable.start or stop > self._writable.stop:
            super().reserve(num_rows, num_slots)
            self._reach_text(start, stop)

    def write(self, rows: FloatArray) -> None:
        """Write rows, [2L, H, n, D], to the slots after the text."""
        stop = self.length + rows.shape[2]
        self._reach_text(self.length, stop)
        self.pages.assign(self._in_text(np.arange(self.length, stop)), rows[0::2], rows[1::2])

    def read(self, start: int, stop: int) -> FloatArray:
        layers, heads, _, width = self.shape
        rows: FloatArray = np.empty((layers, heads, stop - start, width), self.dtype)
        pages, slots = self._in_text(np.arange(start, stop))
        # with slices between advanced indices, numpy puts the axis of slots first
        rows[0::2] = self.pages.keys[:, pages, :, :, slots].transpose(1, 2, 0, 3)
        rows[1::2] = self.pages.values[:, pages, :, slots].transpose(1, 2, 0, 3)
        return rows

    _put = write

    @property
    def _num_held(self) -> int:
        """Slots of the prefix and of the text's pages."""
        return self.prefix_length + PAGE_SLOTS * len(self._text.pages)

    def keep(self, start: int, stop: int) -> KeptPage:
        """Hold the page of tokens [start, stop) of the text."""
        self._writable = range(0)
        page = self._pool.share(self._text.pages[start // PAGE_SLOTS])
        return KeptPage(self.pages, page, self.slab[:, page].nbytes)

    def _write_prefix(self, adapter: Adapter) -> None:
        values = adapter.bounded
        self.pages.write_prefix(
            adapter.prefix_length, values["prefix_keys"], values["prefix_values"]
        )

    def _zero(self, start: int, stop: int) -> None:
        zero, prefix = np.zeros((1, 1, 1, 1), self.dtype), self.prefix_length
        of_prefix = self.pages.in_prefix(np.arange(start, min(stop, prefix)))
        self.pages.assign(of_prefix, zero, zero)
        slots = np.arange(max(start, prefix), stop) - prefix
        if len(slots):
            self._reach_text(int(slots[0]), int(slots[-1]) + 1)
            self.pages.assign(self._in_text(slots), zero, zero)

    def _move(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        to, to_slots = self._in_text(np.array(targets) - self.prefix_length)
        pages, slots = self._in_text(np.array(sources) - self.prefix_length)
        self.pages.keys[:, to, :, :, to_slots] = self.pages.keys[:, pages, :, :, slots]
        self.pages.values[:, to, :, to_slots] = self.pages.values[:, pages, :, slots]

    def _in_text(self, slots: Int64Array) -> Places:
        """Return the page and the slot in it of each of the text's slots, [n]."""
        return self._text_pages[0][slots // PAGE_SLOTS], slots % PAGE_SLOTS

    def _reach_text(self, start: int, stop: int) -> None:
        """Make the pages of slots [start, stop) exclusive to the text; they follow its tokens."""
        self.pages.reach(self._text, start, stop, self._copy_page)
        self._note_written(self._num_held)
        first = start // PAGE_SLOTS
        self._writable = range(start, min(self._num_held, self.capacity) - self.prefix_length)
        self._text_pages[0, first : len(self._text.pages)] = self._text.pages[first:]

    def _copy_page(self, page: int, own: int) -> None:
        """Copy the filled part of the page in which the text ends."""
        filled = self.length % PAGE_SLOTS
        self.pages.keys[:, own, :, :, :filled] = self.pages.keys[:, page, :, :, :filled]
        self.pages.values[:, own, :, :filled] = self.pages.values[:, page, :, :filled]

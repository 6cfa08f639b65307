"""The key-value cache of native operators: pages of 16 slots, which a page list puts in order."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bita.adapter import Adapter
from bita.engine import PAGE_SLOTS
from bita.runtime.backends.cache import Cache, Shape, lazy_zeros
from bita.runtime.backends.page_pool import PageList, PagePool, num_pages
from bita.tensors import FloatArray, Int64Array

Places = tuple[Int64Array, Int64Array]  # page, and slot in it, of each of n slots


class PagedCache(Cache):
    """Keys and values of all layers in one slab, `[L, pages, H, 2, 16 * D]`.

    Of each head a page holds keys `[D, 16]`, then values `[16, D]`. The prefix has pages of its
    own, apart from the text's; what is left of its last page stays empty. Slots are numbered as in
    other caches here: the prefix's first, then the text's. A page takes memory when something is
    written to it.

    shape: [2L, H, C, D], C slots of prefix and text together.
    placement: inputs of a step that say where text and prefix are, kept up to date in place:
    text_lengths [1], text_pages [1, W], prefix_pages [W]; W pages hold C slots.
    """

    def __init__(self, shape: Shape, dtype: npt.DTypeLike) -> None:
        super().__init__(shape, dtype)
        layers, heads, capacity, width = shape[0] // 2, *shape[1:]
        # One more than C slots need, since neither text nor prefix may fill its last page.
        pages = num_pages(capacity - 1) + 1
        self.slab = lazy_zeros((layers, pages, heads, 2, PAGE_SLOTS * width), self.dtype)
        whole = (layers, pages, heads, 2)
        self._keys = self.slab.reshape(*whole, width, PAGE_SLOTS)[:, :, :, 0]
        self._values = self.slab.reshape(*whole, PAGE_SLOTS, width)[:, :, :, 1]
        self._pool = PagePool(pages)
        self._text, self._prefix = PageList(self._pool), PageList(self._pool)
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

    def reserve(self, num_rows: int, num_slots: int) -> None:
        super().reserve(num_rows, num_slots)
        self._text_lengths[0] = self.length
        self._reach(self.length, self.length + num_slots)

    def write(self, rows: FloatArray) -> None:
        """Put rows, [2L, H, n, D], after the text."""
        places = self._in_text(np.arange(self.length, self.length + rows.shape[2]))
        self._assign(places, rows[0::2], rows[1::2])

    def read(self, start: int, stop: int) -> FloatArray:
        layers, heads, _, width = self.shape
        rows: FloatArray = np.empty((layers, heads, stop - start, width), self.dtype)
        pages, slots = self._in_text(np.arange(start, stop))
        # advanced indices with slices between them: the axis of slots comes first
        rows[0::2] = self._keys[:, pages, :, :, slots].transpose(1, 2, 0, 3)
        rows[1::2] = self._values[:, pages, :, slots].transpose(1, 2, 0, 3)
        return rows

    _put = write

    def _write_prefix(self, adapter: Adapter) -> None:
        length = adapter.prefix_length
        if num_pages(length) != len(self._prefix.pages):
            self._give_back()
            self._prefix.reach(0, length)
            self._prefix_pages[: len(self._prefix.pages)] = self._prefix.pages
        values = adapter.bounded
        places = self._in_prefix(np.arange(length))
        self._assign(places, values["prefix_keys"], values["prefix_values"])

    def _give_back(self) -> None:
        """Give all pages back, as zeros; a text is lost with the prefix that it was begun with."""
        self.slab[:, [*self._text.pages, *self._prefix.pages]] = 0
        self._text.release()
        self._prefix.release()
        self._num_written = 0

    def _zero(self, start: int, stop: int) -> None:
        zero, prefix = np.zeros((1, 1, 1, 1), self.dtype), self.prefix_length
        self._assign(self._in_prefix(np.arange(start, min(stop, prefix))), zero, zero)
        self._assign(self._in_text(np.arange(max(start, prefix), stop) - prefix), zero, zero)

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
        """Where slots of the text are, [n], in ascending order; it has pages for them then."""
        if len(slots):
            self._reach(int(slots[0]), int(slots[-1]) + 1)
        return self._text_pages[0][slots // PAGE_SLOTS], slots % PAGE_SLOTS

    def _reach(self, start: int, stop: int) -> None:
        """Give the text pages that it shares with nobody, for its slots [start, stop)."""
        known = len(self._text.pages)
        copied = self._text.reach(start, stop)
        for page, own in copied:
            self.slab[:, own] = self.slab[:, page]
        if copied or known != len(self._text.pages):
            self._text_pages[0, : len(self._text.pages)] = self._text.pages

"""The key-value cache: one slab, allocated once, whose slots are written in place."""

import contextlib
import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bita.adapter import Adapter
from bita.errors import EngineError
from bita.runtime.backends.page_store import Kept, PageStore
from bita.tensors import FloatArray, Int64Array

COPIED_TOKENS = 32  # tokens whose rows are copied together when a text leaves
MIN_COPIED = 8  # minimum number of tokens to copy; recomputing fewer is as fast
Shape = tuple[int, int, int, int]


@dataclass
class PrefixSlots:
    """The content of a cache's first slots."""

    adapter: Adapter | None = None  # the adapter whose prefix they are for
    is_there: bool = False  # whether they hold the prefix; if not, they hold zeros


class Cache(ABC):
    """Keys and values of all layers, `[2L, H, C, D]`: layer l's keys at 2l, its values at 2l + 1.

    Slots [0, P) hold the adapter's prefix, then comes the text. A step writes its rows after the
    text; `commit` keeps the accepted ones. This class tracks the lengths; subclasses own the slab.
    """

    def __init__(self, shape: Shape, dtype: npt.DTypeLike) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.length = 0  # tokens of text
        self.text_number = 0  # incremented when a text is started
        self._prefix_slots = PrefixSlots()
        self._num_written = 0  # slots that may hold values; all after them are zeros

    @property
    def adapter(self) -> Adapter | None:
        """The adapter whose prefix is in the first slots."""
        return self._prefix_slots.adapter

    @property
    def capacity(self) -> int:
        return self.shape[2]

    @property
    def num_slots_used(self) -> int:
        return self.prefix_length + self.length

    @property
    def prefix_length(self) -> int:
        adapter = self._prefix_slots.adapter
        return adapter.prefix_length if adapter else 0

    def start(self, adapter: Adapter, num_kept: int = 0) -> None:
        """Begin a new text, with this adapter's prefix in the first slots.

        num_kept: leading tokens that the new text has in common with the last one, whose rows
        stay. It must be 0 unless `can_keep_text` returns True.
        """
        self.length = num_kept
        self.text_number += 1
        prefix = self._prefix_slots
        if adapter is not prefix.adapter or not prefix.is_there:
            self._write_prefix(adapter)
            prefix.adapter, prefix.is_there = adapter, True
            self._note_written(adapter.prefix_length)

    def can_keep_text(self, adapter: Adapter) -> bool:
        """Return whether the text's rows may stay when this adapter's prefix is written.

        They may if they need not move: text rows do not depend on an adapter.
        """
        return self.prefix_length == adapter.prefix_length

    def new_store(self, max_bytes: int) -> PageStore:
        """Return a store for texts that leave; it keeps copies in at most `max_bytes` of memory."""
        return PageStore(max_bytes, COPIED_TOKENS, MIN_COPIED)

    def keep(self, start: int, stop: int) -> Kept:
        """Return the rows of tokens [start, stop) of the text in the form that a store keeps."""
        return CopiedRows(self.read(start, stop))

    def reserve(self, num_rows: int, num_slots: int) -> None:
        """Reserve `num_slots` slots after the text for a step of `num_rows`.

        Raises EngineError if there are fewer.
        """
        if self.num_slots_used + num_slots > self.capacity:
            raise EngineError(
                f"a step of {num_rows} rows does not fit after {self.num_slots_used} of "
                f"{self.capacity} cache slots"
            )
        self._note_written(self.num_slots_used + num_slots)

    def clear_around_text(self) -> None:
        """Zero the prefix, and whatever steps have left after the text.

        Rows that must not see a slot weight it with zero; if its value is not finite, the product
        is NaN. The prefix is written again when the next text starts.
        """
        self._zero(0, self.prefix_length)
        self._prefix_slots.is_there = False
        if self._num_written > self.num_slots_used:
            self._zero(self.num_slots_used, self._num_written)
            self._num_written = self.num_slots_used

    def commit(self, path: Sequence[int]) -> None:
        """Keep the cache rows of the accepted path, and drop the step's other rows.

        Rows on the spine are already in place; others move left, at a cost of 2 * L * H * D values
        per row.

        path: row indices from the root, increasing.
        """
        if path[-1] != len(path) - 1:  # otherwise no row moves, because the indices increase
            start = self.num_slots_used
            moved = [(start + to, start + row) for to, row in enumerate(path) if to != row]
            targets, sources = map(list, zip(*moved, strict=True))
            self._move(targets, sources)
        self.length += len(path)

    def append(self, rows: FloatArray) -> None:
        """Append rows that `read` returned, [2L, H, n, D], to the text."""
        self._put(rows)
        self.length += rows.shape[2]
        self._note_written(self.num_slots_used)

    def _note_written(self, num_slots: int) -> None:
        self._num_written = max(self._num_written, num_slots)

    @abstractmethod
    def read(self, start: int, stop: int) -> FloatArray:
        """Return a copy in host memory of the rows of tokens [start, stop) of the text."""

    @abstractmethod
    def _put(self, rows: FloatArray) -> None:
        """Copy rows from host memory to the slots after the text."""

    @abstractmethod
    def _write_prefix(self, adapter: Adapter) -> None: ...

    @abstractmethod
    def _zero(self, start: int, stop: int) -> None:
        """Zero the slots [start, stop)."""

    @abstractmethod
    def _move(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy slots; each target is left of its source, and both ascend."""


@dataclass(frozen=True, eq=False)
class CopiedRows:
    """A copy of a cache's rows in host memory, [2L, H, n, D]."""

    rows: FloatArray

    @property
    def num_bytes(self) -> int:
        return self.rows.nbytes

    def restore(self, cache: Cache, num_tokens: int) -> None:
        """Append the rows of the first `num_tokens` tokens to the text in the cache."""
        cache.append(self.rows[:, :, :num_tokens])

    def release(self) -> None:
        """Do nothing; the memory is freed with this object."""


class HostCache(Cache):
    """A cache whose slab is a numpy array."""

    def __init__(self, shape: Shape, dtype: npt.DTypeLike = np.float32) -> None:
        super().__init__(shape, dtype)
        self.slab: FloatArray = lazy_zeros(shape, self.dtype)
        self.placement: dict[str, Int64Array] = {}  # step inputs that the cache determines

    def layer(self, index: int) -> tuple[FloatArray, FloatArray]:
        """Return views [1, H, C, D] of one layer's keys and values."""
        return self.slab[2 * index][None], self.slab[2 * index + 1][None]

    def views(self) -> dict[str, FloatArray]:
        """Return the keys and values of each layer, [1, H, C, D], by their names in a graph."""
        return {
            f"{index}.{side}": view
            for index in range(self.shape[0] // 2)
            for side, view in zip(("key", "value"), self.layer(index), strict=True)
        }

    def write(self, rows: FloatArray) -> None:
        """Write the rows of a step, [2L, H, Q, D], to the slots after the text."""
        start = self.num_slots_used
        self.slab[:, :, start : start + rows.shape[2]] = rows

    def read(self, start: int, stop: int) -> FloatArray:
        first = self.prefix_length
        return self.slab[:, :, first + start : first + stop].copy()

    _put = write

    def _write_prefix(self, adapter: Adapter) -> None:
        values = adapter.bounded
        self.slab[0::2, :, : adapter.prefix_length] = values["prefix_keys"]
        self.slab[1::2, :, : adapter.prefix_length] = values["prefix_values"]

    def _zero(self, start: int, stop: int) -> None:
        self.slab[:, :, start:stop] = 0

    def _move(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        self.slab[:, :, targets] = self.slab[:, :, sources]


def lazy_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> FloatArray:
    """Return zeros whose memory is allocated page by page, when they are written.

    numpy requests huge pages for large arrays; the first slot of each head would then take 2 MB.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows, whose pages are small
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)

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

COPIED_TOKENS = 32  # whose rows are copied together when a text leaves
MIN_COPIED = 8  # tokens; fewer are computed again as fast
Shape = tuple[int, int, int, int]


@dataclass
class PrefixSlots:
    """What the first slots of a cache hold.

    adapter: whose prefix they are for. is_there: whether they hold it; they hold zeros otherwise.
    """

    adapter: Adapter | None = None
    is_there: bool = False


class Cache(ABC):
    """Keys and values of all layers, `[2L, H, C, D]`: layer l's keys at 2l, its values at 2l + 1.

    Slots [0, P) hold the adapter's prefix, the text follows. A step writes its rows behind the
    text; `commit` keeps the accepted ones. This part knows the length; where the slab lies is up to
    the backend.
    """

    def __init__(self, shape: Shape, dtype: npt.DTypeLike) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.length = 0  # tokens of text
        self.text_number = 0  # grows with every text that is started
        self._prefix_slots = PrefixSlots()
        self._num_written = 0  # slots that hold anything: all after them are zeros

    @property
    def adapter(self) -> Adapter | None:
        """Whose prefix is in the first slots."""
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
        """Begin another text, and have this adapter's prefix in the first slots.

        num_kept: tokens of the text before that the new one begins with, whose rows stay; 0 unless
        `can_keep_text` says that they may.
        """
        self.length = num_kept
        self.text_number += 1
        prefix = self._prefix_slots
        if adapter is not prefix.adapter or not prefix.is_there:
            self._write_prefix(adapter)
            prefix.adapter, prefix.is_there = adapter, True
            self._note_written(adapter.prefix_length)

    def can_keep_text(self, adapter: Adapter) -> bool:
        """Whether rows of the text may stay when this adapter's prefix comes; here they may if they
        need not move. No row of a text depends on an adapter.
        """
        return self.prefix_length == adapter.prefix_length

    def new_store(self, max_bytes: int) -> PageStore:
        """What keeps the rows of texts that leave: copies in host memory, of `max_bytes` at the
        most.
        """
        return PageStore(max_bytes, COPIED_TOKENS, MIN_COPIED)

    def keep(self, start: int, stop: int) -> Kept:
        """Tokens [start, stop) of the text as a store keeps them."""
        return CopiedRows(self.read(start, stop))

    def reserve(self, num_rows: int, num_slots: int) -> None:
        """Take the slots after the text that a step of `num_rows` is to write.

        Raises EngineError if there are fewer than `num_slots`.
        """
        if self.num_slots_used + num_slots > self.capacity:
            raise EngineError(
                f"a step of {num_rows} rows does not fit behind {self.num_slots_used} of "
                f"{self.capacity} cache slots"
            )
        self._note_written(self.num_slots_used + num_slots)

    def clear_around_text(self) -> None:
        """Make zeros of the prefix, and of what steps left after the text.

        Rows that may not see a slot weigh it with zero, which no value stands but a finite one.
        The prefix is back when the next text is started.
        """
        self._zero(0, self.prefix_length)
        self._prefix_slots.is_there = False
        if self._num_written > self.num_slots_used:
            self._zero(self.num_slots_used, self._num_written)
            self._num_written = self.num_slots_used

    def commit(self, path: Sequence[int]) -> None:
        """Keep the cache rows of the accepted path and forget the step's other rows.

        path: row indices from the root, increasing. Rows on the spine are in place already;
        others move left. Cost: 2 * L * H * D values for each row that moves.
        """
        if path[-1] != len(path) - 1:  # else no row moves, since they increase
            start = self.num_slots_used
            moved = [(start + to, start + row) for to, row in enumerate(path) if to != row]
            targets, sources = map(list, zip(*moved, strict=True))
            self._move(targets, sources)
        self.length += len(path)

    def append(self, rows: FloatArray) -> None:
        """Go on with rows that `read` gave, [2L, H, n, D]."""
        self._put(rows)
        self.length += rows.shape[2]
        self._note_written(self.num_slots_used)

    def _note_written(self, num_slots: int) -> None:
        self._num_written = max(self._num_written, num_slots)

    @abstractmethod
    def read(self, start: int, stop: int) -> FloatArray:
        """A copy, in host memory, of the rows of tokens [start, stop) of the text."""

    @abstractmethod
    def _put(self, rows: FloatArray) -> None:
        """Copy rows from host memory behind the text."""

    @abstractmethod
    def _write_prefix(self, adapter: Adapter) -> None: ...

    @abstractmethod
    def _zero(self, start: int, stop: int) -> None:
        """Make zeros of the slots [start, stop)."""

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
        """Copy the first of them back, after the text in the cache."""
        cache.append(self.rows[:, :, :num_tokens])

    def release(self) -> None:
        """Nothing: the memory is freed with this object."""


class HostCache(Cache):
    """A slab of numpy's."""

    def __init__(self, shape: Shape, dtype: npt.DTypeLike = np.float32) -> None:
        super().__init__(shape, dtype)
        self.slab: FloatArray = lazy_zeros(shape, self.dtype)
        self.placement: dict[str, Int64Array] = {}  # inputs of a step that the cache decides

    def layer(self, index: int) -> tuple[FloatArray, FloatArray]:
        """Views [1, H, C, D] of one layer's keys and values."""
        return self.slab[2 * index][None], self.slab[2 * index + 1][None]

    def views(self) -> dict[str, FloatArray]:
        """The keys and values of each layer, [1, H, C, D], by their names in a graph."""
        return {
            f"{index}.{side}": view
            for index in range(self.shape[0] // 2)
            for side, view in zip(("key", "value"), self.layer(index), strict=True)
        }

    def write(self, rows: FloatArray) -> None:
        """Put the rows of a step, [2L, H, Q, D], behind the text."""
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
    """Zeros that take memory page by page, when they are written.

    numpy's own large arrays ask for huge pages, and then the first slot of each head takes 2 MB.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows, whose pages are small
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)

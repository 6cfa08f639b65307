"""Guesses made by the library of native operators: `runtime/native/decoding/guesses.h`."""

import ctypes
from collections.abc import Sequence
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt

from bita.bonuses import Bonuses
from bita.continuations import Continuations
from bita.runtime.decoding.drafting import Drafts

MAX_DRAFTS = 256  # per mask
_FIRST_PLACES = 16  # initial capacity in positions; grows on demand
_SHORT = 64  # maximum number of tokens that a step adds, except for prompts


class _Sources(ctypes.Structure):
    """`GuessSources`."""

    _fields_ = (
        ("marks", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("num_slots", ctypes.c_int64),
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("ids", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("max_masks", ctypes.c_int64),
        ("num_ranks", ctypes.c_int64),
        ("bonuses", ctypes.c_void_p),
    )


class _Found(ctypes.Structure):
    """`GuessesFound`."""

    _fields_ = (
        ("max_places", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("lengths", ctypes.c_void_p),
        ("tokens", ctypes.c_void_p),
        ("num_places", ctypes.c_int64),
        ("level", ctypes.c_int64),
        ("from_masks", ctypes.c_int64),
        ("share", ctypes.c_double),
    )


class NativeGuesses:
    """Native implementation of `bita.runtime.decoding.guesses.Guesses`.

    Pair scores must be contiguous float16; a mask may draft at most MAX_DRAFTS tokens.
    """

    def __init__(
        self, table: Continuations | None, bonuses: Bonuses, drafts: Drafts, library: ctypes.CDLL
    ) -> None:
        sources, numbers = _Sources(), np.ascontiguousarray(bonuses.array(), np.float32)
        held: list[npt.NDArray[Any]] = [numbers]
        sources.bonuses = numbers.ctypes.data
        if table is not None:
            marks = np.ascontiguousarray(table.marks, np.uint16)
            values = np.ascontiguousarray(table.values, np.uint32)
            sources.marks, sources.values = marks.ctypes.data, values.ctypes.data
            sources.num_slots = len(values)
            held += [marks, values]
        if drafts.pairs is not None:
            left, right = drafts.pairs.left, drafts.pairs.right
            sources.left, sources.right = left.ctypes.data, right.ctypes.data
            sources.rank = left.shape[1]
            held += [left, right]
        sources.ids, sources.logits = drafts.ids.ctypes.data, drafts.logits.ctypes.data
        sources.max_masks, sources.num_ranks = drafts.ids.shape
        self._handle = library.bita_operators_make_guesses(ctypes.byref(sources))
        if not self._handle:
            raise MemoryError("out of memory for guesses")
        finalize(self, library.bita_operators_drop_guesses, self._handle)
        self._held = held  # the library reads their memory
        self._library = library
        self._drafts = drafts
        self._short = (ctypes.c_int64 * _SHORT)()
        self._num_looked = -1  # positions looked at since the text was extended; -1: not at all
        self._make_room(_FIRST_PLACES)

    @property
    def from_masks(self) -> bool:
        """Whether only a mask token supports the best first token."""
        return bool(self._look(0).from_masks)

    @property
    def share(self) -> float:
        """Estimated probability that the best first token is right; 0 without any guess."""
        share: float = self._look(0).share
        return share

    def start(self, token_ids: Sequence[int]) -> None:
        """Replace the text."""
        self._extend(token_ids, forget=1)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Add tokens to the end of the text; the masks' drafts may have changed."""
        self._extend(token_ids, forget=0)

    def level(self) -> int:
        """Return the confidence in the first tokens, 0 (no guess) to MAX_LEVEL."""
        level: int = self._look(0).level
        return level

    def candidates(self, count: int, min_level: int = 1) -> list[list[int]]:
        """Return the candidates for each of the next `count` positions, best first.

        Each position assumes that the best candidates precede it. The list is shorter where the
        guesses end, and empty if the level is below `min_level`.
        """
        if self.level() < max(min_level, 1):
            return []
        num_places = min(self._look(count).num_places, count)
        lengths = self._lengths[:num_places].tolist()
        return [
            row[:length]
            for row, length in zip(self._tokens[:num_places].tolist(), lengths, strict=True)
        ]

    def _look(self, count: int) -> _Found:
        """Return the guesses for at least `count` positions."""
        if self._num_looked < count:
            if count > self._found.max_places:
                self._make_room(2 * count)
            done = self._library.bita_operators_look_guesses(
                self._handle, self._drafts.num_masks, count, self._pointer
            )
            if done != 0:
                raise MemoryError("out of memory for guesses")
            self._num_looked = count
        return self._found

    def _extend(self, token_ids: Sequence[int], forget: int) -> None:
        count = len(token_ids)
        held = self._short if count <= _SHORT else (ctypes.c_int64 * count)()
        held[:count] = [*token_ids]
        if self._library.bita_operators_extend_guesses(self._handle, forget, held, count) != 0:
            raise MemoryError("out of memory for guesses")
        self._num_looked = -1

    def _make_room(self, max_places: int) -> None:
        width = max(self._drafts.ids.shape[1], 2)
        self._lengths = np.zeros(max_places, np.int64)
        self._tokens = np.zeros((max_places, width), np.int64)
        found = self._found = _Found()
        found.max_places, found.width = self._tokens.shape
        found.lengths, found.tokens = self._lengths.ctypes.data, self._tokens.ctypes.data
        self._pointer = ctypes.byref(found)

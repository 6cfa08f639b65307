"""The order of what may come after a token: a mask's drafts, and guesses from elsewhere.

A candidate scores what the mask says of it, times a scale, and the bonuses of the sources that
guess it (`bita.bonuses`). The library of native operators orders a step's drafts in about 2 µs;
without it numpy does, in about 60.
"""

import ctypes
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from bita.bonuses import ABSENT
from bita.errors import LibraryMissingError
from bita.pairs import PairTables
from bita.runtime.native.library import find_draft_orderer
from bita.tensors import Float32Array, Int64Array

MAX_GUESSES = 4
MAX_DRAFTS = 256  # that the library orders


class DraftOrder(Protocol):
    """Orders the drafts of some masks, which are read when they are asked for."""

    def order(
        self, mask: int, before: int, guesses: Sequence[tuple[int, float]]
    ) -> tuple[list[int], float]:
        """What may come after a token, best first, as many as the mask drafts, and the share of the
        best among them (softmax).

        guesses: other tokens with their bonuses, MAX_GUESSES at most, none of them twice.
        """
        ...


class PlainOrder:
    """Orders with numpy. ids, logits: [M, k]. scale: of logits and pair scores."""

    def __init__(
        self, ids: Int64Array, logits: Float32Array, pairs: PairTables | None, scale: float
    ) -> None:
        self._ids, self._logits, self._pairs, self._scale = ids, logits, pairs, scale

    def order(
        self, mask: int, before: int, guesses: Sequence[tuple[int, float]]
    ) -> tuple[list[int], float]:
        """As `DraftOrder` has it."""
        ids, scores = self._ids[mask].tolist(), self._logits[mask]
        if self._pairs is not None:
            scores = scores + self._pairs.scores(before, ids)
        found = (np.float32(self._scale) * scores).tolist()
        lowest, num_drafts = min(found), len(ids)
        for token, bonus in guesses:
            if token not in ids:
                ids.append(token)
                found.append(lowest - self._scale * ABSENT)
            found[ids.index(token)] += bonus
        scores = np.array(found, np.float32)
        best = np.argsort(-scores, kind="stable")
        share = 1 / float(np.exp(scores - scores[best[0]]).sum())
        return [ids[place] for place in best[:num_drafts]], share


class _Task(ctypes.Structure):
    """`DraftOrder` of runtime/native/decoding/draft_order.h."""

    _fields_ = (
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("ids", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("before", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("share", ctypes.c_float),
        ("num_guesses", ctypes.c_int64),
        ("guesses", ctypes.c_int64 * MAX_GUESSES),
        ("bonuses", ctypes.c_float * MAX_GUESSES),
        ("ordered", ctypes.c_void_p),
    )


class NativeOrder:
    """Orders in the library of native operators. ids [M, k], logits [M, k]: contiguous."""

    def __init__(
        self,
        ids: Int64Array,
        logits: Float32Array,
        pairs: PairTables | None,
        scale: float,
        orderer: "ctypes._NamedFuncPointer",
    ) -> None:
        num_drafts = ids.shape[1]
        self._held = ids, logits, pairs  # the library reads their memory
        self._ordered = np.zeros(num_drafts, np.int64)
        self._orderer = orderer
        task = self._task = _Task()
        if pairs is not None:
            task.left, task.right = pairs.left.ctypes.data, pairs.right.ctypes.data
            task.rank = pairs.left.shape[1]
        task.count, task.scale, task.ordered = num_drafts, scale, self._ordered.ctypes.data
        self._pointer = ctypes.byref(task)
        self._places = [
            (ids[mask].ctypes.data, logits[mask].ctypes.data) for mask in range(len(ids))
        ]

    def order(
        self, mask: int, before: int, guesses: Sequence[tuple[int, float]]
    ) -> tuple[list[int], float]:
        """As `DraftOrder` has it."""
        task = self._task
        task.ids, task.logits = self._places[mask]
        task.before, task.num_guesses = before, len(guesses)
        for place, (token, bonus) in enumerate(guesses):
            task.guesses[place], task.bonuses[place] = token, bonus
        self._orderer(self._pointer)
        return self._ordered.tolist(), task.share


def draft_order(
    ids: Int64Array, logits: Float32Array, pairs: PairTables | None, scale: float
) -> DraftOrder:
    """For drafts that stay where they are. ids, logits: [M, k], contiguous. scale: of logits and
    pair scores.
    """
    tables = () if pairs is None else (pairs.left, pairs.right)
    fits = all(table.dtype == np.float16 and table.flags.c_contiguous for table in tables)
    if fits and 0 < ids.shape[1] <= MAX_DRAFTS:
        try:
            return NativeOrder(ids, logits, pairs, scale, find_draft_orderer())
        except LibraryMissingError:
            pass
    return PlainOrder(ids, logits, pairs, scale)

"""Table of the tokens that usually follow a few others: drafts that take no row of a step.

The table is counted in conversations that the model wrote. For runs of one, two or three tokens it
holds the token that followed most often, and how often it did. A lookup uses the longest run that
the table knows. It needs no mask row and no work of the model, so it is the cheapest draft where a
text repeats what the model often writes; elsewhere its low percentage marks the guess as a poor
one.

The table is a hash table in two arrays. A run of tokens a, b, c has the key
(a + 1) << 42 | (b + 1) << 21 | (c + 1), with 0 for each token that a shorter run lacks. The key's
hash selects a slot; the run is stored there, or in the next slot that was empty, with 16 other bits
of the hash as its mark. A run that is missing from the table is mistaken for another one with a
probability of about 1 in 10,000, which costs a wrong guess. Empty slots have the value 0.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

CONTINUATION_TENSORS = ("continuation_marks", "continuation_values")
KEYED_TENSORS = ("continuation_keys", "continuation_values")  # in files with keys instead of marks
LONGEST_RUN = 3
MAX_TOKEN = (1 << 21) - 2
SURE_BITS = 7  # low bits of a value, which hold the percentage; the others hold the token
MIN_SURE = 15  # percent; entries below are left out
MIN_GAIN = 8  # percent: least difference from the shorter run that is worth an entry of its own
DISCOUNT = 0.5  # subtracted from each count, since one sighting does not make a rule
MAX_LOAD = 0.7  # largest share of the slots in use
_MIX, _MIX_AGAIN, _MASK = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, (1 << 64) - 1
_MARK_SHIFT, _MARK_MASK = 24, (1 << 16) - 1
_LONGEST_FIRST = tuple((1 << 21 * length) - 1 for length in range(LONGEST_RUN, 0, -1))
_PERCENT = (1 << SURE_BITS) - 1

Marks: TypeAlias = npt.NDArray[np.uint16]
Values: TypeAlias = npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Continuations:
    """A table of likely continuations."""

    marks: Marks  # [S], S a power of two
    values: Values  # [S]: token << SURE_BITS | percent; 0 for an empty slot

    def find(self, before: Sequence[int]) -> tuple[int, int]:
        """Return the token likely to follow `before`, and its percentage; (0, 0) if unknown."""
        marks, values, bits = self._views
        key = 0
        for token in before[-LONGEST_RUN:]:
            key = key << 21 | token + 1
        for mask in _LONGEST_FIRST:
            if key > mask >> 21:  # `before` has that many tokens
                slot, own = _place(key & mask, bits)
                while (found := values[slot]) and marks[slot] != own:
                    slot = slot + 1 if slot + 1 < len(values) else 0
                if found:
                    return found >> SURE_BITS, found & _PERCENT
        return 0, 0

    @property
    def num_entries(self) -> int:
        return int(np.count_nonzero(self.values))

    def arrays(self) -> dict[str, npt.NDArray[np.unsignedinteger]]:
        """Return the two arrays, by the names in CONTINUATION_TENSORS."""
        return dict(zip(CONTINUATION_TENSORS, (self.marks, self.values), strict=True))

    @cached_property
    def _views(self) -> tuple[memoryview, memoryview, int]:
        """Memory views of marks and values, and the shift that turns a hash into a slot.

        Python reads single numbers faster from a memory view than from an array.
        """
        return self.marks.data, self.values.data, 64 - (len(self.values).bit_length() - 1)


def count_continuations(
    texts: Iterable[tuple[Sequence[int], int]], max_entries: int
) -> Continuations | None:
    """Count the continuations in `texts`; None if there are none. Takes about 200 bytes a token.

    Args:
        texts: Token ids of each text, and how many at its start belong to the prompt. The prompt's
            tokens are not counted as continuations.
        max_entries: Size of the table, which keeps the entries seen most often; 0 for no table.
    """
    if not max_entries:
        return None
    counts: list[dict[tuple[int, ...], Counter[int]]] = [
        defaultdict(Counter) for _ in range(LONGEST_RUN)
    ]
    for token_ids, num_prompt in texts:
        for place in range(max(num_prompt, 1), len(token_ids)):
            for length in range(1, min(LONGEST_RUN, place) + 1):
                counts[length - 1][tuple(token_ids[place - length : place])][token_ids[place]] += 1
    entries: dict[tuple[int, ...], tuple[int, int, int]] = {}  # token, percent, times seen
    for by_run in counts:
        for run, following in by_run.items():
            entry = _entry(run, following, counts, entries)
            if entry is not None and max(*run, entry[0]) <= MAX_TOKEN:
                entries[run] = entry
    kept = sorted(entries, key=lambda run: (-entries[run][2], len(run), run))[:max_entries]
    if not kept:
        return None
    found = ((_key(run), entries[run][0] << SURE_BITS | entries[run][1]) for run in kept)
    return _table(found, len(kept))


def best_continuations(
    tables: Iterable[Continuations | None], texts: Sequence[tuple[Sequence[int], int]]
) -> Continuations | None:
    """Return the table that guesses the most tokens of `texts`, the first in a tie; None if none.

    The texts are as for `count_continuations`. No table may have been counted in them.
    """
    found = [table for table in tables if table is not None]
    return max(found, key=lambda table: _num_right(table, texts), default=None)


def _num_right(table: Continuations, texts: Sequence[tuple[Sequence[int], int]]) -> int:
    right = 0
    for token_ids, num_prompt in texts:
        for place in range(max(num_prompt, 1), len(token_ids)):
            token, percent = table.find(token_ids[max(place - LONGEST_RUN, 0) : place])
            right += percent > 0 and token == token_ids[place]
    return right


def _entry(
    run: tuple[int, ...],
    following: Counter[int],
    counts: Sequence[Mapping[tuple[int, ...], Counter[int]]],
    entries: Mapping[tuple[int, ...], tuple[int, int, int]],
) -> tuple[int, int, int] | None:
    """Return the entry of a run, or None if shorter runs in the table say as much.

    A run seen n times has a weight of n - DISCOUNT, and the run without its first token a weight
    of one.
    """
    token, times = max(following.items(), key=lambda item: (item[1], -item[0]))
    total = sum(following.values())
    shorter, share = run[1:], 0.0
    if shorter:
        others = counts[len(shorter) - 1][shorter]
        share = (others[token] - times) / max(sum(others.values()) - total, 1)
    percent = round(100 * (times - DISCOUNT + share) / (total - DISCOUNT + 1))
    while shorter and shorter not in entries:
        shorter = shorter[1:]
    known = entries.get(shorter)
    if known is None:
        return (token, percent, total) if percent >= MIN_SURE else None
    says_the_same = known[0] == token or percent < MIN_SURE
    return None if says_the_same and abs(known[1] - percent) < MIN_GAIN else (token, percent, total)


def keyed_continuations(
    keys: npt.NDArray[np.uint64], values: npt.NDArray[np.uint32]
) -> Continuations:
    """Return the table of a file that has keys instead of marks; key 0 marks an empty slot."""
    used = keys != 0
    return _table(zip(keys[used].tolist(), values[used].tolist(), strict=True), int(used.sum()))


def _place(key: int, bits: int) -> tuple[int, int]:
    """Return the slot that a key's hash selects, and its mark; `bits` is the shift of `_views`."""
    mixed = key * _MIX & _MASK
    mixed = (mixed ^ mixed >> 32) * _MIX_AGAIN & _MASK
    return mixed >> bits, mixed >> _MARK_SHIFT & _MARK_MASK


def _key(run: Sequence[int]) -> int:
    key = 0
    for token in run:
        key = key << 21 | token + 1
    return key


def _table(entries: Iterable[tuple[int, int]], count: int) -> Continuations:
    """Build a table of at most `count` keys and values.

    Of two entries that would be mistaken for each other, the first is kept.
    """
    size = max(int(count / MAX_LOAD).bit_length(), 1)
    marks, values = [0] * (1 << size), [0] * (1 << size)
    for key, value in entries:
        slot, own = _place(key, 64 - size)
        while values[slot] and marks[slot] != own:
            slot = (slot + 1) % len(values)
        if not values[slot]:
            marks[slot], values[slot] = own, value
    return Continuations(np.array(marks, np.uint16), np.array(values, np.uint32))


def continuation_faults(
    marks: npt.NDArray[Any], values: npt.NDArray[Any], vocab_size: int
) -> list[str]:
    """Return why two arrays are not a table for this vocabulary; empty if they are."""
    size = marks.size
    if marks.dtype != np.uint16 or values.dtype != np.uint32:
        return [
            f"the table of continuations is {marks.dtype} and {values.dtype}, not uint16, uint32"
        ]
    if marks.ndim != 1 or marks.shape != values.shape or size < 2 or size & (size - 1):
        shapes = f"{list(marks.shape)} and {list(values.shape)}"
        return [f"the table of continuations is {shapes}, not twice one power of two"]
    faults = []
    if values.all():
        faults.append("the table of continuations has no empty slot")
    tokens, sure = values >> np.uint32(SURE_BITS), values & np.uint32((1 << SURE_BITS) - 1)
    if int(tokens.max()) >= vocab_size or int(sure.max()) > 100:
        faults.append(
            f"the table of continuations holds token {int(tokens.max())} and {int(sure.max())} "
            f"percent, not tokens below {vocab_size} and at most 100"
        )
    return faults

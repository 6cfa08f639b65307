"""What usually follows a few tokens in a model's own answers: drafts that take no row of a step.

A table counts, in conversations that the model wrote, which token came after each run of one, two
or three tokens, and how surely. It finds the longest run that it knows. Looking up costs no mask
row and no time of the model, so it is the cheapest draft where a text says what the model often
says; where it does not, the table says that too, by how sure it is.

The table lies in two arrays as it is looked up. A run of tokens a, b, c is the key
(a + 1) << 42 | (b + 1) << 21 | (c + 1), with 0 for what a shorter run lacks. The key's hash names a
slot, and the run lies in it or in the next one that was empty, with 16 other bits of the hash as
its mark. A run that is not in the table is taken for another one with a probability of about 1 in
10,000, which costs a wrong guess. Empty slots have the value 0.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

CONTINUATION_TENSORS = ("continuation_marks", "continuation_values")
KEYED_TENSORS = ("continuation_keys", "continuation_values")  # of files that have keys, not marks
LONGEST_RUN = 3
MAX_TOKEN = (1 << 21) - 2
SURE_BITS = 7  # of a value; the others are the token
MIN_SURE = 15  # percent; entries below are left out
MIN_GAIN = 8  # percent by which a longer run has to be more or less sure to say the same
DISCOUNT = 0.5  # of what was seen: once is not always
MAX_LOAD = 0.7  # of the slots
_MIX, _MIX_AGAIN, _MASK = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, (1 << 64) - 1
_MARK_SHIFT, _MARK_MASK = 24, (1 << 16) - 1
_LONGEST_FIRST = tuple((1 << 21 * length) - 1 for length in range(LONGEST_RUN, 0, -1))
_PERCENT = (1 << SURE_BITS) - 1

Marks: TypeAlias = npt.NDArray[np.uint16]
Values: TypeAlias = npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Continuations:
    """marks, values: [S] each, S a power of two; a value is token << SURE_BITS | percent."""

    marks: Marks
    values: Values

    def find(self, before: Sequence[int]) -> tuple[int, int]:
        """What follows the last of these tokens, and how surely in percent; (0, 0) if not known."""
        marks, values, bits = self._views
        key = 0
        for token in before[-LONGEST_RUN:]:
            key = key << 21 | token + 1
        for mask in _LONGEST_FIRST:
            if key > mask >> 21:  # the run is as long
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
        """By CONTINUATION_TENSORS."""
        return dict(zip(CONTINUATION_TENSORS, (self.marks, self.values), strict=True))

    @cached_property
    def _views(self) -> tuple[memoryview, memoryview, int]:
        """Marks and values for Python, which reads single numbers faster so, and by how many bits a
        hash is shifted to name a slot.
        """
        return self.marks.data, self.values.data, 64 - (len(self.values).bit_length() - 1)


def count_continuations(
    texts: Iterable[tuple[Sequence[int], int]], max_entries: int
) -> Continuations | None:
    """The table of some texts; None without an entry. Memory: about 200 bytes a token.

    texts: token ids of each, and how many of them are the prompt's, which are no continuations.
    max_entries: those that were seen most are kept.
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
    """The table that guesses the most tokens of some texts, the first of equal ones; None if there
    is none.

    texts: as for `count_continuations`, and not among those that a table was counted in.
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
    """What to say of a run, or None if the table says as much without it.

    A run seen n times is believed n - DISCOUNT times, and what the run without its first token says
    once.
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
    """The table of a file that has keys instead of marks. keys, values: as many; key 0 for none."""
    used = keys != 0
    return _table(zip(keys[used].tolist(), values[used].tolist(), strict=True), int(used.sum()))


def _place(key: int, bits: int) -> tuple[int, int]:
    """The slot that a key's hash names, and its mark. bits: as `Continuations._views` has them."""
    mixed = key * _MIX & _MASK
    mixed = (mixed ^ mixed >> 32) * _MIX_AGAIN & _MASK
    return mixed >> bits, mixed >> _MARK_SHIFT & _MARK_MASK


def _key(run: Sequence[int]) -> int:
    key = 0
    for token in run:
        key = key << 21 | token + 1
    return key


def _table(entries: Iterable[tuple[int, int]], count: int) -> Continuations:
    """entries: keys and values; where two of them would be taken for each other, the first stays.

    count: of the entries, at most.
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
    """Why two arrays are no table for a vocabulary; empty if they are one."""
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

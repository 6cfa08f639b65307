"""What usually follows a few tokens in a model's own answers: drafts that take no row of a step.

A table counts, in conversations that the model wrote, which token came after each run of one, two
or three tokens, and how surely. It finds the longest run that it knows. Looking up costs no mask
row and no time of the model, so it is the cheapest draft where a text says what the model often
says; where it does not, the table says that too, by how sure it is.

The table lies in two arrays as it is looked up: a run of tokens a, b, c is the key
(a + 1) << 42 | (b + 1) << 21 | (c + 1), with 0 for what a shorter run lacks. It lies in the slot
that its hash names, or in the next one that was empty. Empty slots have the key 0.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

CONTINUATION_TENSORS = ("continuation_keys", "continuation_values")
LONGEST_RUN = 3
MAX_TOKEN = (1 << 21) - 2
SURE_BITS = 7  # of a value; the others are the token
MIN_SURE = 15  # percent; entries below are left out
MIN_GAIN = 8  # percent by which a longer run has to be more or less sure to say the same
DISCOUNT = 0.5  # of what was seen: once is not always
MAX_LOAD = 0.7  # of the slots
_MIX, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1
_LONGEST_FIRST = tuple((1 << 21 * length) - 1 for length in range(LONGEST_RUN, 0, -1))
_PERCENT = (1 << SURE_BITS) - 1

Keys: TypeAlias = npt.NDArray[np.uint64]
Values: TypeAlias = npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Continuations:
    """keys, values: [S] each, S a power of two; a value is token << SURE_BITS | percent."""

    keys: Keys
    values: Values

    def find(self, before: Sequence[int]) -> tuple[int, int]:
        """What follows the last of these tokens, and how surely in percent; (0, 0) if not known."""
        keys, values, bits = self._views
        key = 0
        for token in before[-LONGEST_RUN:]:
            key = key << 21 | token + 1
        for mask in _LONGEST_FIRST:
            if key > mask >> 21:  # the run is as long
                own = key & mask
                slot = (own * _MIX & _MASK) >> bits
                while (there := keys[slot]) != own and there:
                    slot = slot + 1 if slot + 1 < len(keys) else 0
                if there:
                    found = values[slot]
                    return found >> SURE_BITS, found & _PERCENT
        return 0, 0

    @property
    def num_entries(self) -> int:
        return int(np.count_nonzero(self.keys))

    def arrays(self) -> dict[str, npt.NDArray[np.unsignedinteger]]:
        """By CONTINUATION_TENSORS."""
        return dict(zip(CONTINUATION_TENSORS, (self.keys, self.values), strict=True))

    @cached_property
    def _views(self) -> tuple[memoryview, memoryview, int]:
        """Keys and values for Python, which reads single numbers faster so, and by how many bits a
        hash is shifted to name a slot.
        """
        return self.keys.data, self.values.data, 64 - (len(self.keys).bit_length() - 1)


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
    return _table({run: entries[run][:2] for run in kept}) if kept else None


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


def _table(entries: Mapping[tuple[int, ...], tuple[int, int]]) -> Continuations:
    bits = max(int(len(entries) / MAX_LOAD).bit_length(), 1)
    keys, values = [0] * (1 << bits), [0] * (1 << bits)
    for run, (token, percent) in entries.items():
        key = sum((each + 1) << 21 * place for place, each in enumerate(reversed(run)))
        slot = (key * _MIX & _MASK) >> 64 - bits
        while keys[slot]:
            slot = (slot + 1) % len(keys)
        keys[slot], values[slot] = key, token << SURE_BITS | percent
    return Continuations(np.array(keys, np.uint64), np.array(values, np.uint32))


def continuation_faults(
    keys: npt.NDArray[Any], values: npt.NDArray[Any], vocab_size: int
) -> list[str]:
    """Why two arrays are no table for a vocabulary; empty if they are one."""
    size = keys.size
    if keys.dtype != np.uint64 or values.dtype != np.uint32:
        return [
            f"the table of continuations is {keys.dtype} and {values.dtype}, not uint64, uint32"
        ]
    if keys.ndim != 1 or keys.shape != values.shape or size < 2 or size & (size - 1):
        shapes = f"{list(keys.shape)} and {list(values.shape)}"
        return [f"the table of continuations is {shapes}, not twice one power of two"]
    faults = []
    if keys.all():
        faults.append("the table of continuations has no empty slot")
    tokens, sure = values >> np.uint32(SURE_BITS), values & np.uint32((1 << SURE_BITS) - 1)
    if int(tokens.max()) >= vocab_size or int(sure.max()) > 100:
        faults.append(
            f"the table of continuations holds token {int(tokens.max())} and {int(sure.max())} "
            f"percent, not tokens below {vocab_size} and at most 100"
        )
    return faults

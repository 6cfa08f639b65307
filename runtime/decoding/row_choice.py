"""How many rows each text gets of a step that several texts share.

Where rows are dear, a text's drafts take time from the others: a draft is worth its row only if it
is right more often than a row of the step is worth on average. What is maximized is the expected
number of tokens over the time of the step, which the tuner has measured by rows. How often drafts
are right is learned while texts are decoded; none of it changes a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WEIGHT = 4.0  # steps that a first estimate counts as
FIRST_MASK_GAIN, MASK_WEIGHT = 0.2, 20.0  # of masks before anything is known, and steps it counts
FORGETTING = 0.98  # of what a step said, with each further one
SLOPE_ROWS = 4  # last rows of the measured times, by which they are continued


@dataclass(frozen=True)
class Wish:
    """What a text may take. number: of the tree. gain: tokens beyond one that are expected."""

    number: int
    num_rows: int
    gain: float


class StepTimes:
    """Times of steps by their rows, in times of a step of one row.

    costs: of 1, 2, ... rows. Beyond them each row takes what the last ones took on average, and at
    least its share of the longest.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self._costs = [costs[0], *costs]
        last = costs[-SLOPE_ROWS:]
        rises = [right - left for left, right in pairwise(last)]
        self._slope = max(sum(rises) / len(rises) if rises else 0.0, 0.0)

    def least_share(self, num_texts: int) -> float:
        """How often a draft has to be right to be worth a row beside those of so many texts."""
        now = self(num_texts)
        return (self(num_texts + 1) - now) * num_texts / now

    def __call__(self, num_rows: int) -> float:
        known = len(self._costs) - 1
        if num_rows <= known:
            return self._costs[num_rows]
        return self._costs[known] + (num_rows - known) * self._slope


def shared_rows(wishes: Sequence[Sequence[Wish]], times: StepTimes) -> list[Wish | None]:
    """What each text takes: one of its wishes, or None for one row without drafts.

    Texts that expect most choose first; each takes what gives all together the most tokens a time.
    """
    num_rows, tokens = len(wishes), float(len(wishes))
    taken: list[Wish | None] = [None] * num_rows
    most = [max((wish.gain for wish in own), default=0.0) for own in wishes]
    for index in sorted(range(num_rows), key=most.__getitem__, reverse=True):
        best = tokens / times(num_rows)
        for wish in wishes[index]:
            speed = (tokens + wish.gain) / times(num_rows + wish.num_rows - 1)
            if speed > best:
                best, taken[index] = speed, wish
        chosen = taken[index]
        if chosen is not None:
            num_rows += chosen.num_rows - 1
            tokens += chosen.gain
    return taken


class MaskGain:
    """What the drafts of masks give the step after theirs, in tokens: how much more the steps give
    that have them than those that have none.
    """

    def __init__(self) -> None:
        self._sums = {True: MASK_WEIGHT * FIRST_MASK_GAIN, False: 0.0}
        self._counts = {True: MASK_WEIGHT, False: MASK_WEIGHT}

    @property
    def expected(self) -> float:
        means = {key: total / self._counts[key] for key, total in self._sums.items()}
        return max(means[True] - means[False], 0.0)

    def enter(self, had_masks: bool, gain: int) -> None:
        """Add what a step gave."""
        self._sums[had_masks] = FORGETTING * self._sums[had_masks] + gain
        self._counts[had_masks] = FORGETTING * self._counts[had_masks] + 1


@dataclass
class Gains:
    """What trees gave in the states that they were taken in, in tokens beyond one a step."""

    _sums: dict[tuple[int, int], float] = field(default_factory=dict)
    _counts: dict[tuple[int, int], float] = field(default_factory=dict)

    def expected(self, number: int, level: int, first: float) -> float:
        """Of tree `number` at a sureness `level`. first: what it is before anything is known."""
        key = number, level
        known = self._counts.get(key, 0.0)
        return (WEIGHT * first + self._sums.get(key, 0.0)) / (WEIGHT + known)

    def enter(self, number: int, level: int, gain: int) -> None:
        """Add what a step gave."""
        key = number, level
        self._sums[key] = FORGETTING * self._sums.get(key, 0.0) + gain
        self._counts[key] = FORGETTING * self._counts.get(key, 0.0) + 1

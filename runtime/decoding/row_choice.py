"""How many rows each text gets of a step that several texts share.

Where rows are dear, a text's drafts take time from the others: a draft is worth its row only if it
is right more often than a row of the step is worth on average. What is maximized is the expected
number of tokens over the time of the step. What rows take and how often drafts are right is learned
while texts are decoded; none of it changes a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

SURPLUS = 0.85  # of an expected gain, which has to make up for the rows: where both are equal, rows
# bring nothing but more of what may go wrong
WEIGHT = 4.0  # steps that a first estimate counts as
FIRST_MASK_GAIN, MASK_WEIGHT = 0.2, 20.0  # of masks before anything is known, and steps it counts
FORGETTING = 0.98  # of what a step said, with each further one
SLOPE_ROWS = 4  # last rows of the tuner's times, by which they are continued
MEASURED_STEPS, MEMORY_STEPS = 50, 400  # that measurement needs, and that it remembers
MIN_VARIANCE = 0.2  # of the rows of these steps


@dataclass(frozen=True)
class Wish:
    """What a text may take. number: of the tree. gain: tokens beyond one that are expected."""

    number: int
    num_rows: int
    gain: float


class StepTimes:
    """Times of steps by their rows, up to a factor: by measurement, and before there is enough of
    it by what the tuner measured.

    costs: times of steps of 1, 2, ... rows. Beyond them each row takes what the last ones took on
    average. Measured times are taken to rise by the same for each row, as they do from a few rows
    on: a line by least squares, in which each step counts less with every further one.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self._costs = [costs[0], *costs]
        last = costs[-SLOPE_ROWS:]
        rises = [right - left for left, right in pairwise(last)]
        self._slope = max(sum(rises) / len(rises) if rises else 0.0, 0.0)
        self._num_steps = 0
        self._mean_rows = self._mean_ms = self._of_rows = self._of_both = 0.0  # mean, (co)variance
        self._rise: float | None = None  # of a row, when steps of different sizes were timed last

    def __call__(self, num_rows: int) -> float:
        if self._rise is not None:
            found = self._mean_ms + self._rise * (num_rows - self._mean_rows)
            return max(found, 0.1 * self._mean_ms)
        known = len(self._costs) - 1
        if num_rows <= known:
            return self._costs[num_rows]
        return self._costs[known] + (num_rows - known) * self._slope

    @property
    def is_measured(self) -> bool:
        """Whether enough steps of different sizes were timed."""
        return self._rise is not None

    def enter(self, num_rows: int, step_ms: float) -> None:
        """Add the time of a step; one that something else held up counts as twice the mean."""
        self._num_steps += 1
        if self._num_steps > MEASURED_STEPS:
            step_ms = min(step_ms, 2 * self._mean_ms)
        weight = max(1 / self._num_steps, 1 / MEMORY_STEPS)
        rows, ms = num_rows - self._mean_rows, step_ms - self._mean_ms
        self._mean_rows += weight * rows
        self._mean_ms += weight * ms
        self._of_rows += weight * (rows * rows * (1 - weight) - self._of_rows)
        self._of_both += weight * (rows * ms * (1 - weight) - self._of_both)
        if self._num_steps >= MEASURED_STEPS and self._of_rows > MIN_VARIANCE:
            self._rise = max(self._of_both / self._of_rows, 0.0)

    def min_share(self, num_texts: int) -> float:
        """The share of right drafts that makes a draft worth its row beside `num_texts` texts."""
        now = self(num_texts)
        return (self(num_texts + 1) - now) * num_texts / now / SURPLUS


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
            speed = (tokens + SURPLUS * wish.gain) / times(num_rows + wish.num_rows - 1)
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
        """The gain of tree `number` at a sureness `level`. first: the estimate before any step."""
        key = number, level
        known = self._counts.get(key, 0.0)
        return (WEIGHT * first + self._sums.get(key, 0.0)) / (WEIGHT + known)

    def enter(self, number: int, level: int, gain: int) -> None:
        """Add what a step gave."""
        key = number, level
        self._sums[key] = FORGETTING * self._sums.get(key, 0.0) + gain
        self._counts[key] = FORGETTING * self._counts.get(key, 0.0) + 1

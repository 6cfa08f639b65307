"""Divide the rows of a step among the texts that share it.

Where rows are expensive, a text's drafts slow down the others: a draft is worth its row only if it
is right more often than an average row of the step pays. The choice maximizes the expected number
of tokens per time of the step. The cost of rows and the share of right drafts are learned while
decoding; they never change a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

# Factor of an expected gain, which must then outweigh the rows' cost: if both were equal, more rows
# would only add risk.
SURPLUS = 0.85
WEIGHT = 4.0  # number of steps that an initial estimate counts as
FIRST_MASK_GAIN, MASK_WEIGHT = 0.2, 20.0  # initial estimate for masks, and the steps it counts as
FORGETTING = 0.98  # factor of a step's weight with each further step
SLOPE_ROWS = 4  # last rows of the tuner's times, from which larger steps are extrapolated
MEASURED_STEPS = 50  # steps that a measurement needs
MEMORY_STEPS = 400  # steps that it remembers
MIN_VARIANCE = 0.2  # minimum variance of the rows of these steps


@dataclass(frozen=True)
class Wish:
    """A tree that a text may use."""

    number: int  # number of the tree
    num_rows: int
    gain: float  # expected tokens beyond one


class StepTimes:
    """Relative times of steps by number of rows.

    They are measured; until there are enough measurements, they are the tuner's.

    costs: the tuner's times of steps of 1, 2, ... rows, extrapolated by the average slope of the
    last rows. Measured times are fitted with a line by least squares, in which older steps count
    less, because beyond a few rows every row adds about the same time.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self._costs = [costs[0], *costs]
        last = costs[-SLOPE_ROWS:]
        rises = [right - left for left, right in pairwise(last)]
        self._slope = max(sum(rises) / len(rises) if rises else 0.0, 0.0)
        self._num_steps = 0
        self._mean_rows = self._mean_ms = 0.0
        self._of_rows = self._of_both = 0.0  # variance of the rows, covariance with the times
        self._rise: float | None = None  # time per row, once steps of different sizes were timed

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
        """Whether enough steps of different sizes have been timed."""
        return self._rise is not None

    def enter(self, num_rows: int, step_ms: float) -> None:
        """Add the time of a step; an outlier counts as twice the mean."""
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
        """Return the share of right drafts that a draft needs to pay for its row."""
        now = self(num_texts)
        return (self(num_texts + 1) - now) * num_texts / now / SURPLUS


def shared_rows(wishes: Sequence[Sequence[Wish]], times: StepTimes) -> list[Wish | None]:
    """Return one of each text's wishes, or None for one row without drafts.

    Texts with the largest expected gain choose first; each choice maximizes the total tokens per
    time.
    """
    num_rows, tokens = len(wishes), float(len(wishes))
    taken: list[Wish | None] = [None] * num_rows
    max_gains = [max((wish.gain for wish in own), default=0.0) for own in wishes]
    for index in sorted(range(num_rows), key=max_gains.__getitem__, reverse=True):
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
    """The gain of mask drafts in tokens: mean of the steps that have them, minus the others'."""

    def __init__(self) -> None:
        self._sums = {True: MASK_WEIGHT * FIRST_MASK_GAIN, False: 0.0}
        self._counts = {True: MASK_WEIGHT, False: MASK_WEIGHT}

    @property
    def expected(self) -> float:
        """The estimated gain, at least 0."""
        means = {key: total / self._counts[key] for key, total in self._sums.items()}
        return max(means[True] - means[False], 0.0)

    def enter(self, had_masks: bool, gain: int) -> None:
        """Add a step's gain."""
        self._sums[had_masks] = FORGETTING * self._sums[had_masks] + gain
        self._counts[had_masks] = FORGETTING * self._counts[had_masks] + 1


@dataclass
class Gains:
    """The gains of trees by state, in tokens beyond one per step."""

    _sums: dict[tuple[int, int], float] = field(default_factory=dict)
    _counts: dict[tuple[int, int], float] = field(default_factory=dict)

    def expected(self, number: int, level: int, first: float) -> float:
        """Return the expected gain of a tree at a confidence level.

        first: the estimate before any step.
        """
        key = number, level
        known = self._counts.get(key, 0.0)
        return (WEIGHT * first + self._sums.get(key, 0.0)) / (WEIGHT + known)

    def enter(self, number: int, level: int, gain: int) -> None:
        """Add a step's gain."""
        key = number, level
        self._sums[key] = FORGETTING * self._sums.get(key, 0.0) + gain
        self._counts[key] = FORGETTING * self._counts.get(key, 0.0) + 1

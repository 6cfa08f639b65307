"""Time single steps of many sizes within a time limit that includes warm-up."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np

from bita.progress import OnCount, ignore_count

WARM_UP, RUNS = 4, 20  # runs of a step in its turn: uncounted first, then counted
WARM_UP_SHARE = 0.2  # of a turn's time, if it is too short for all runs


class Runnable(Protocol):
    """A bound step."""

    def run(self) -> object: ...


@dataclass(frozen=True)
class StepTimes:
    """Samples of step times by size and length of the text, both as indices."""

    sizes: list[int]  # measured sizes, increasing
    samples: dict[tuple[int, int], list[float]]  # ms, by (length, size)

    @property
    def runs(self) -> int:
        """Smallest number of samples of any size and length."""
        return min(map(len, self.samples.values()))

    def percentiles(self, which: Sequence[float]) -> list[list[list[float]]]:
        """Return percentiles in ms, by [percentile][length][size]."""
        lengths = sorted({length for length, _ in self.samples})
        cells = [[self.samples[length, size] for size in self.sizes] for length in lengths]
        return [
            [[round(float(np.percentile(ms, each)), 4) for ms in row] for row in cells]
            for each in which
        ]


class BoundedTimer:
    """Times steps until a time limit."""

    def __init__(
        self,
        num_lengths: int,
        num_sizes: int,
        bind: Callable[[int, int], Runnable],
        seconds: float,
        on_progress: OnCount = ignore_count,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Start the clock.

        Args:
            num_lengths: Number of text lengths.
            num_sizes: Number of step sizes.
            bind: Returns a step that is ready to run, given the indices of a length and a size.
            seconds: Time limit; 0 for one whole turn of each size at each length without a limit.
            on_progress: Called with the seconds (passed, in all).
            clock: Returns the time in seconds.
        """
        self._num_lengths = num_lengths
        self._num_sizes = num_sizes
        self._bind = bind
        self._seconds = seconds
        self._on_progress = on_progress
        self._clock = clock
        self._ends_at = clock() + seconds if seconds else math.inf
        self._samples: dict[tuple[int, int], list[float]] = {}

    def measure(self) -> StepTimes:
        """Time every size, the smallest first and the others in random order.

        Each gets as many runs as fit. Then whole turns of all sizes are added in random order as
        long as another one is expected to fit. A size whose turn comes too late is left out; the
        smallest one is always measured.
        """
        rng = np.random.default_rng(0)
        order = [0, *(1 + rng.permutation(self._num_sizes - 1)).tolist()]
        for place, size in enumerate(order):
            if place and self._clock() >= self._ends_at:
                break
            for length in range(self._num_lengths):
                num_left = (self._num_sizes - place) * self._num_lengths - length
                until = self._clock() + (self._ends_at - self._clock()) / num_left
                self._samples[length, size] = self._turn(length, size, until)
        if self._seconds:
            self._fill(rng)
        return StepTimes(sorted({size for _, size in self._samples}), self._samples)

    def _fill(self, rng: np.random.Generator) -> None:
        """Add whole turns until the next one is not expected to fit."""
        cells = [*self._samples]
        while True:
            for place in rng.permutation(len(cells)):
                cell = cells[int(place)]
                expected_s = (WARM_UP + RUNS) * float(np.mean(self._samples[cell])) / 1000
                if self._clock() + expected_s > self._ends_at:
                    return
                self._samples[cell] += self._turn(*cell, self._ends_at)

    def _turn(self, length: int, size: int, until: float) -> list[float]:
        """Return the ms of single runs, at least one, after a few warm-up runs."""
        began = self._clock()
        step = self._bind(length, size)
        warm_until = began + WARM_UP_SHARE * (until - began)
        for _ in range(WARM_UP):
            if self._clock() >= warm_until:
                break
            step.run()
        found = [self._time(step)]
        while len(found) < RUNS and self._clock() < until:
            found.append(self._time(step))
        passed = self._seconds - max(self._ends_at - self._clock(), 0) if self._seconds else 0
        self._on_progress(int(passed), int(self._seconds))
        return found

    def _time(self, step: Runnable) -> float:
        """Return the ms of one run."""
        began = self._clock()
        step.run()
        return 1000 * (self._clock() - began)

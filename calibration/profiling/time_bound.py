"""The time that a profile may take, and its division among the stages."""

import math
from collections.abc import Callable
from time import perf_counter

from bita.errors import BitaError

# Shares of the whole time, from its start, at which stages end; operators and memory get the rest.
STEPS_END, PREFILL_END, ANSWERS_END = 0.4, 0.55, 0.85


class TimeBound:
    """A bound on the time of a profile.

    A stage stops before the first measurement that starts after its end, so that a profile exceeds
    its time by at most the one measurement that is running then. The longest of them is usually the
    answers of all sessions to one prompt, or an answer in a new process to measure its memory.
    """

    def __init__(
        self, seconds: float | None = None, clock: Callable[[], float] = perf_counter
    ) -> None:
        """Start the clock.

        Args:
            seconds: Time for the whole profile, opening included. None for no bound.
            clock: Returns the time in seconds.
        """
        self._seconds = seconds
        self._clock = clock
        self._began = clock()

    def left(self, share: float = 1.0) -> float:
        """Return the seconds until `share` of the time is over; infinite without a bound."""
        if self._seconds is None:
            return math.inf
        return self._began + share * self._seconds - self._clock()

    @property
    def is_over(self) -> bool:
        return self.left() <= 0

    def require(self, stage: str) -> None:
        """Raise BitaError if no time is left for a stage that every profile needs."""
        if self.is_over:
            assert self._seconds is not None  # else it is never over
            elapsed = self._clock() - self._began
            raise BitaError(
                f"--max-seconds {self._seconds:g} was over before the {stage}, after "
                f"{elapsed:.1f} s; give at least {math.ceil(2 * elapsed) + 1}"
            )

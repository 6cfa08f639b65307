"""Steps are measured within their time limit, by a clock that only steps advance."""

import pytest
from speed import thorough_but

from bita.calibration.profiling.bounded_steps import RUNS, WARM_UP, BoundedTimer, StepTimes

SIZES, LENGTHS = 7, 3
COMPLETE_ROUND = WARM_UP + RUNS


class Bench:
    """A bench of steps in multiples of `step_s`; the first run of a size takes `first_s` more."""

    def __init__(self, step_s: float, first_s: float = 0.0) -> None:
        self.now = 100.0
        self.num_runs = 0
        self.reported: list[tuple[int, int]] = []
        self._step_s = step_s
        self._first_s = first_s
        self._seen: set[int] = set()

    def clock(self) -> float:
        return self.now

    def bind(self, length: int, size: int) -> "Bench.Step":
        return Bench.Step(self, length, size)

    def cost(self, length: int, size: int) -> float:
        return self._step_s * (1 + size) * (1 + length)

    class Step:
        def __init__(self, bench: "Bench", length: int, size: int) -> None:
            self._bench, self._length, self._size = bench, length, size

        def run(self) -> None:
            bench, is_first = self._bench, self._size not in self._bench._seen
            bench._seen.add(self._size)
            bench.num_runs += 1
            bench.now += bench.cost(self._length, self._size) + is_first * bench._first_s

    def measure(self, seconds: float) -> StepTimes:
        timer = BoundedTimer(
            LENGTHS,
            SIZES,
            self.bind,
            seconds,
            lambda *reported: self.reported.append(reported),
            self.clock,
        )
        return timer.measure()


@pytest.mark.parametrize("step_s", [1e-5, 1e-3, 5e-3, 0.02, 0.1])
@pytest.mark.parametrize("first_s", [0.0, 0.3])
@pytest.mark.parametrize("seconds", thorough_but([1, 5, 20], 1, 5))
def test_measuring_stays_within_the_time_limit(
    seconds: float, step_s: float, first_s: float
) -> None:
    """The limit is exceeded at most by a run of the last step begun, or of the smallest size."""
    bench = Bench(step_s, first_s)
    times = bench.measure(seconds)
    longest = LENGTHS * (bench.cost(LENGTHS - 1, SIZES - 1) + first_s)
    assert bench.now - 100 <= seconds + longest
    assert 0 in times.sizes
    for size in times.sizes:
        for length in range(LENGTHS):
            assert len(times.samples[length, size]) >= 1
    if not first_s:
        assert bench.now - 100 >= 0.5 * min(seconds, COMPLETE_ROUND * step_s * 168)
    assert all(total == seconds and 0 <= done <= total for done, total in bench.reported)


def test_ample_time_gives_complete_rounds() -> None:
    times = Bench(1e-4).measure(20)
    assert times.sizes == list(range(SIZES))
    assert times.runs >= 4 * RUNS
    assert all(len(samples) % RUNS == 0 for samples in times.samples.values())


def test_limited_time_gives_fewer_runs_of_all_sizes() -> None:
    times = Bench(1e-3).measure(1)  # a complete round of all sizes would take four times as long
    assert times.sizes == list(range(SIZES))
    assert 1 <= times.runs < RUNS


def test_too_little_time_leaves_sizes_out() -> None:
    times = Bench(0.1).measure(3)
    assert times.sizes[0] == 0
    assert 1 < len(times.sizes) < SIZES


def test_without_a_limit_each_size_has_one_complete_round() -> None:
    bench = Bench(0.1, 0.5)
    times = bench.measure(0)
    assert times.sizes == list(range(SIZES))
    assert {len(samples) for samples in times.samples.values()} == {RUNS}
    assert bench.num_runs == SIZES * LENGTHS * COMPLETE_ROUND


def test_percentiles_are_taken_for_each_step() -> None:
    times = StepTimes(
        [0, 2], {(0, 0): [1.0, 3.0], (0, 2): [5.0], (1, 0): [2.0], (1, 2): [4.0, 8.0]}
    )
    assert times.percentiles((50, 100)) == [[[2, 5], [2, 6]], [[3, 5], [2, 8]]]
    assert times.runs == 1

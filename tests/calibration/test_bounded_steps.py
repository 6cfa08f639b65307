"""Steps are measured within their time, by a clock that only steps advance."""

import pytest
from speed import slow_but

from bita.calibration.profiling.bounded_steps import RUNS, WARM_UP, BoundedTimer, StepTimes

SIZES, LENGTHS = 7, 3
WHOLE_TURN = WARM_UP + RUNS


class Bench:
    """Steps of `step_s(length, size)` seconds; the first run of each takes `first_s` more."""

    def __init__(self, step_s: float, first_s: float = 0.0) -> None:
        self.now = 100.0
        self.num_runs = 0
        self.told: list[tuple[int, int]] = []
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
            LENGTHS, SIZES, self.bind, seconds, lambda *told: self.told.append(told), self.clock
        )
        return timer.measure()


@pytest.mark.parametrize("step_s", [1e-5, 1e-3, 5e-3, 0.02, 0.1])
@pytest.mark.parametrize("first_s", [0.0, 0.3])
@pytest.mark.parametrize("seconds", slow_but([1, 5, 20], 1, 5))
def test_the_bound_holds(seconds: float, step_s: float, first_s: float) -> None:
    """Beyond it there is at most what cannot be left out: a run of the step that was begun last,
    or of the smallest size at each length.
    """
    bench = Bench(step_s, first_s)
    times = bench.measure(seconds)
    longest = LENGTHS * (bench.cost(LENGTHS - 1, SIZES - 1) + first_s)
    assert bench.now - 100 <= seconds + longest
    assert 0 in times.sizes
    for size in times.sizes:
        for length in range(LENGTHS):
            assert len(times.samples[length, size]) >= 1
    if not first_s:
        assert bench.now - 100 >= 0.5 * min(seconds, WHOLE_TURN * step_s * 168)
    assert all(total == seconds and 0 <= done <= total for done, total in bench.told)


def test_ample_time_gives_whole_turns() -> None:
    times = Bench(1e-4).measure(20)
    assert times.sizes == list(range(SIZES))
    assert times.runs >= 4 * RUNS
    assert all(len(samples) % RUNS == 0 for samples in times.samples.values())


def test_little_time_gives_some_runs_of_all_sizes() -> None:
    times = Bench(1e-3).measure(1)  # a whole turn of all would take four times as long
    assert times.sizes == list(range(SIZES))
    assert 1 <= times.runs < RUNS


def test_less_time_than_a_run_of_all_leaves_sizes_out() -> None:
    times = Bench(0.1).measure(3)
    assert times.sizes[0] == 0
    assert 1 < len(times.sizes) < SIZES


def test_without_a_bound_each_has_one_whole_turn() -> None:
    bench = Bench(0.1, 0.5)
    times = bench.measure(0)
    assert times.sizes == list(range(SIZES))
    assert {len(samples) for samples in times.samples.values()} == {RUNS}
    assert bench.num_runs == SIZES * LENGTHS * WHOLE_TURN


def test_percentiles_are_those_of_each_step() -> None:
    times = StepTimes(
        [0, 2], {(0, 0): [1.0, 3.0], (0, 2): [5.0], (1, 0): [2.0], (1, 2): [4.0, 8.0]}
    )
    assert times.percentiles((50, 100)) == [[[2, 5], [2, 6]], [[3, 5], [2, 8]]]
    assert times.runs == 1

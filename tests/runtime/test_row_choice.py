"""Rows go to the texts where they give the most tokens per time."""

import itertools
import random
from collections.abc import Sequence

import pytest

from bita.runtime.decoding.row_choice import (
    MEASURED_STEPS,
    SURPLUS,
    Gains,
    MaskGain,
    StepTimes,
    Wish,
    shared_rows,
)


def speed(taken: Sequence[Wish | None], times: StepTimes) -> float:
    """Return the expected tokens in the time of a step of one row."""
    rows = sum(1 if wish is None else wish.num_rows for wish in taken)
    gains = sum(0.0 if wish is None else SURPLUS * wish.gain for wish in taken)
    return (len(taken) + gains) / times(rows)


def test_times_beyond_the_last_row_are_extrapolated() -> None:
    times = StepTimes([1.0, 1.0, 1.1, 1.3, 1.5])
    assert [times(rows) for rows in (1, 2, 5)] == [1.0, 1.0, 1.5]
    assert times(8) == pytest.approx(1.5 + 3 * 0.5 / 3)
    assert StepTimes([1.0])(7) == 1.0


def test_the_minimal_share_makes_a_draft_worth_its_row() -> None:
    """Four texts of one row take 1.3. A fifth row takes 0.2: the time of 0.2 * 4 / 1.3 tokens."""
    times = StepTimes([1.0, 1.0, 1.1, 1.3, 1.5])
    assert times.min_share(4) == pytest.approx(0.2 * 4 / 1.3 / SURPLUS)
    assert times.min_share(1) == 0


def test_free_rows_are_all_taken_but_expensive_ones_only_by_sure_drafts() -> None:
    wishes = [[Wish(1, 2, 0.5), Wish(2, 4, 0.8)], [Wish(1, 2, 0.95)], []]
    assert shared_rows(wishes, StepTimes([1.0])) == [Wish(2, 4, 0.8), Wish(1, 2, 0.95), None]
    expensive = StepTimes([1.0, 1.5, 2.0, 2.4, 2.8])
    assert shared_rows(wishes, expensive) == [None, Wish(1, 2, 0.95), None]
    assert shared_rows([], expensive) == []


@pytest.mark.parametrize("seed", range(40))
def test_the_choice_is_close_to_the_best_possible(seed: int) -> None:
    """It is never slower than without drafts, and within 4 % of the best of all choices if gains
    are as expected.
    """
    rng = random.Random(seed)
    costs = [1.0]
    for _ in range(rng.randint(0, 12)):
        costs.append(costs[-1] + rng.choice((0.0, 0.05, 0.2, 0.5)) * rng.random())
    times = StepTimes(costs)
    wishes = [
        [
            Wish(number, rows, rng.random() * (rows - 1) / SURPLUS)
            for number, rows in enumerate(rng.sample(range(2, 9), rng.randint(0, 3)))
        ]
        for _ in range(rng.randint(1, 5))
    ]
    found = speed(shared_rows(wishes, times), times)
    best = max(
        speed(choice, times) for choice in itertools.product(*([None, *own] for own in wishes))
    )
    assert speed([None] * len(wishes), times) <= found + 1e-12
    assert found >= 0.96 * best


def test_measured_times_replace_those_of_the_tuner() -> None:
    """Measure a device where a step of 4 to 12 rows takes 2 ms and 0.7 ms for each row, and one
    step in twenty is delayed.
    """
    rng, times = random.Random(1), StepTimes([1.0, 1.1, 1.2])
    for count in range(MEASURED_STEPS + 200):
        rows = rng.randint(4, 12)
        delay = 40 if rng.random() < 0.05 else 0
        times.enter(rows, 2 + 0.7 * rows + rng.random() * 0.2 + delay)
        assert times.is_measured == (count + 1 >= MEASURED_STEPS)
    for _ in range(2000):  # steps of one size add nothing about the cost of a row
        times.enter(8, 7.6)
    assert (times(12) - times(4)) / 8 == pytest.approx(0.7, rel=0.3)
    assert times.min_share(8) == pytest.approx(0.7 * 8 / 7.6 / SURPLUS, rel=0.35)


def test_steps_of_one_size_do_not_measure_rows() -> None:
    times = StepTimes([1.0, 1.1, 1.2])
    for _ in range(3 * MEASURED_STEPS):
        times.enter(8, 6.0)
    assert not times.is_measured
    assert times(3) == 1.2


def test_expected_gains_follow_measured_ones() -> None:
    gains = Gains()
    assert gains.expected(1, 5, 0.8) == 0.8
    for _ in range(200):
        gains.enter(1, 5, 0)
        gains.enter(2, 5, 3)
    assert gains.expected(1, 5, 0.8) < 0.1
    assert gains.expected(2, 5, 0.8) > 2.7
    assert gains.expected(1, 4, 0.8) == 0.8


def test_the_gain_of_masks_is_measured_against_steps_without_them() -> None:
    masks = MaskGain()
    assert masks.expected == pytest.approx(0.2)
    for _ in range(500):
        masks.enter(True, 1)
        masks.enter(False, 0)
    assert masks.expected == pytest.approx(1.0, abs=0.01)
    for _ in range(500):
        masks.enter(True, 0)
        masks.enter(False, 1)
    assert masks.expected == 0

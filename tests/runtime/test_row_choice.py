"""Rows go to the texts where they give the most tokens a time."""

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
    """Expected tokens in the time of a step of one row."""
    rows = sum(1 if wish is None else wish.num_rows for wish in taken)
    gains = sum(0.0 if wish is None else SURPLUS * wish.gain for wish in taken)
    return (len(taken) + gains) / times(rows)


def test_times_continue_as_the_last_rows_rose() -> None:
    times = StepTimes([1.0, 1.0, 1.1, 1.3, 1.5])
    assert [times(rows) for rows in (1, 2, 5)] == [1.0, 1.0, 1.5]
    assert times(8) == pytest.approx(1.5 + 3 * 0.5 / 3)
    assert StepTimes([1.0])(7) == 1.0


def test_the_share_that_makes_a_draft_worth_its_row() -> None:
    """Four texts of one row take 1.3; a fifth row 0.2, in which they give 0.2 * 4 / 1.3 tokens."""
    times = StepTimes([1.0, 1.0, 1.1, 1.3, 1.5])
    assert times.min_share(4) == pytest.approx(0.2 * 4 / 1.3 / SURPLUS)
    assert times.min_share(1) == 0


def test_free_rows_are_all_taken_and_dear_ones_by_sure_drafts_only() -> None:
    wishes = [[Wish(1, 2, 0.5), Wish(2, 4, 0.8)], [Wish(1, 2, 0.95)], []]
    assert shared_rows(wishes, StepTimes([1.0])) == [Wish(2, 4, 0.8), Wish(1, 2, 0.95), None]
    dear = StepTimes([1.0, 1.5, 2.0, 2.4, 2.8])
    assert shared_rows(wishes, dear) == [None, Wish(1, 2, 0.95), None]
    assert shared_rows([], dear) == []


@pytest.mark.parametrize("seed", range(40))
def test_the_choice_is_close_to_the_best_of_all(seed: int) -> None:
    """Never slower than without drafts, and within 4 % of what trying every choice finds, where
    gains count for what they are taken for.
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


def test_measured_times_take_the_place_of_the_tuners() -> None:
    """Steps of 4 to 12 rows on a device where a row takes 0.7 ms, 2 ms of a step apart; one step in
    twenty is held up.
    """
    rng, times = random.Random(1), StepTimes([1.0, 1.1, 1.2])
    for count in range(MEASURED_STEPS + 200):
        rows = rng.randint(4, 12)
        held_up = 40 if rng.random() < 0.05 else 0
        times.enter(rows, 2 + 0.7 * rows + rng.random() * 0.2 + held_up)
        assert times.is_measured == (count + 1 >= MEASURED_STEPS)
    for _ in range(2000):  # of one size, which say nothing new of a row
        times.enter(8, 7.6)
    assert (times(12) - times(4)) / 8 == pytest.approx(0.7, rel=0.3)
    assert times.min_share(8) == pytest.approx(0.7 * 8 / 7.6 / SURPLUS, rel=0.35)


def test_steps_of_one_size_say_nothing_of_rows() -> None:
    times = StepTimes([1.0, 1.1, 1.2])
    for _ in range(3 * MEASURED_STEPS):
        times.enter(8, 6.0)
    assert not times.is_measured
    assert times(3) == 1.2


def test_gains_follow_what_steps_gave() -> None:
    gains = Gains()
    assert gains.expected(1, 5, 0.8) == 0.8
    for _ in range(200):
        gains.enter(1, 5, 0)
        gains.enter(2, 5, 3)
    assert gains.expected(1, 5, 0.8) < 0.1
    assert gains.expected(2, 5, 0.8) > 2.7
    assert gains.expected(1, 4, 0.8) == 0.8


def test_masks_are_worth_what_steps_give_more_with_them() -> None:
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

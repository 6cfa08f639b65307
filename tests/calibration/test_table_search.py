"""The search for trees by state is compared with brute force, and checked on unseen texts."""

import itertools

import numpy as np
import pytest
from acceptances import all_trees, in_texts, random_acceptance, repeating, replay_speed
from deadlines import stopped_if_it_hangs
from speed import thorough_but

from bita.calibration.acceptance import Acceptance, Guess, Position
from bita.calibration.knapsack import Knapsack
from bita.calibration.table_search import best_table
from bita.tree import Path, Tree
from bita.tree_table import TreeTable

TIMES = [10.0, 10.0, 11.0, 12.5, 13.0, 17.0, 17.0, 18.0]


@pytest.mark.parametrize("seed", range(20))
def test_the_knapsack_is_the_best_of_all_trees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_masks, max_rows = 2, 7
    paths: list[Path] = [(), (1,), (2,), (1, 1), (1, 2), (2, 1), (2, 2)]
    parents = [-1, 0, 0, 1, 1, 2, 2]
    accepted = rng.random(7)
    ends, instead = rng.normal(size=(2, 7, num_masks + 1))
    instead[0] = 0
    best = [-np.inf] * (max_rows + 1)
    for masks in all_trees(num_masks, 2, max_rows):
        worth = 0.0
        for path, count in masks.items():
            n = paths.index(path)
            worth += accepted[n] + ends[n, count]
            worth -= instead[n, masks[path[:-1]]] if path else 0
        rows = len(masks) + sum(masks.values())
        best[rows] = max(best[rows], worth)
    sack = Knapsack(parents, accepted, ends, instead, max_rows)
    np.testing.assert_allclose(sack.values, np.maximum.accumulate(best[1:]))
    for rows in range(1, max_rows + 1):
        masks = {paths[n]: count for n, count in sack.choose_masks(rows).items()}
        assert len(masks) + sum(masks.values()) <= rows
        worth = sum(
            accepted[n] + ends[n, count] - (instead[n, masks[paths[parents[n]]]] if n else 0)
            for n, count in sack.choose_masks(rows).items()
        )
        assert worth == pytest.approx(sack.values[rows - 1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", thorough_but(range(3), 0))
@pytest.mark.parametrize("mode", ["exact", "tree"])
def test_small_tables_are_as_good_as_all_tables(seed: int, mode: str) -> None:
    acceptance = in_texts(random_acceptance(1, 2, seed, length=3000), 100)
    times = TIMES[:4]
    found = best_table(acceptance, times, 1, mode, Tree.chain(1, 1), uses_text=False)
    trees = [Tree.from_paths(masks, masks) for masks in all_trees(1, 2, 4)]
    by_hand = max(
        replay_speed(acceptance, TreeTable((first, second), (0,), ((0,), (1,))), times, mode)
        for first, second in itertools.product(trees, trees)
    )
    assert replay_speed(acceptance, found, times, mode) > 0.995 * by_hand


def test_trees_by_state_of_the_text_are_faster() -> None:
    acceptance, unseen = repeating(1), repeating(2)
    single = Tree.chain(1, 0).with_guesses(1)
    for mode in ("exact", "tree"):
        found = best_table(acceptance, TIMES, 3, mode, single)
        assert isinstance(found, TreeTable)
        assert replay_speed(unseen, found, TIMES, mode) > 1.2 * replay_speed(
            unseen, single, TIMES, mode
        )
        deep = found.trees[found.number(0, 12)]
        assert deep.min_level == 1
        assert deep.spine_length > 3
        assert found.trees[found.number(0, 0)].spine_length < 3


def test_noise_is_not_mistaken_for_states() -> None:
    """Trees by text without information must not be slower on other texts."""
    rng = np.random.default_rng(5)

    def noise() -> Acceptance:
        whole = random_acceptance(3, 8, int(rng.integers(1000)), length=3000)
        return in_texts(whole, 75)

    times = [10 + rows / 4 for rows in range(32)]
    acceptance, unseen = noise(), noise()
    start = Tree.from_paths([(1,), (2,), (1, 1), (1, 2), (2, 1)], 2)
    base = best_table(acceptance, times, 3, "tree", start, uses_text=False)
    found = best_table(acceptance, times, 3, "tree", start)
    assert replay_speed(unseen, found, times) > 0.98 * replay_speed(unseen, base, times)


def test_a_start_that_cannot_be_improved_is_returned() -> None:
    nothing = Acceptance((tuple(Position((0, 0), (Guess(),)) for _ in range(200)),), (9,), "x", 2)
    root = Tree.root_only()
    assert best_table(nothing, TIMES, 2, "exact", root) is root


@pytest.mark.slow
def test_a_search_up_to_128_rows_ends_in_time() -> None:
    acceptance = in_texts(random_acceptance(3, 16, 1, length=3600), 90)
    times = [10 + rows / 40 for rows in range(128)]
    with stopped_if_it_hangs():
        found = best_table(acceptance, times, 3, "tree", Tree.triangle())
    assert replay_speed(acceptance, found, times) > 1.1 * replay_speed(
        acceptance, Tree.triangle(), times
    )

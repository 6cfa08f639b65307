"""Replays on arrays equal plain replays, and state values satisfy their equations."""

import numpy as np
import pytest
from acceptances import all_trees, in_texts, random_acceptance, replay_speed

from bita.calibration.acceptance import Acceptance
from bita.calibration.positions import Positions
from bita.calibration.replay import replay
from bita.calibration.table_replay import Replay, Stepper
from bita.calibration.table_search import best_tree
from bita.tree import Tree
from bita.tree_table import TreeTable

TIMES = [10.0, 10.0, 11.0, 12.5, 13.0, 17.0]
TABLE = TreeTable(
    (Tree.root_only(1), Tree.from_paths([(1,), (2,)], 1), Tree.chain(2, 0).with_guesses(2)),
    (0, 2),
    ((0, 2), (1, 2)),
)


def replay_of(acceptance: Acceptance, table: TreeTable, mode: str) -> Replay:
    positions = Positions.of(acceptance, 1, mode, uses_text=True)
    return Stepper(positions, np.array(TIMES), mode).replay_table(table)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", ["exact", "tree"])
def test_a_replay_on_arrays_takes_the_same_steps(seed: int, mode: str) -> None:
    acceptance = in_texts(random_acceptance(1, 2, seed, length=1000), 90)
    ours = replay_of(acceptance, TABLE, mode)
    assert ours.positions.min_levels[:3] == (0, 1, 2)
    starts = np.cumsum([0, *map(len, acceptance.texts)])
    visits = [
        (start + visit.place, visit.num_drafted)
        for start, text in zip(starts, replay(acceptance, TABLE, mode), strict=False)
        for visit in text
    ]
    assert [*zip(ours.places, ours.drafted, strict=True)] == visits
    assert ours.speed == pytest.approx(replay_speed(acceptance, TABLE, TIMES, mode))


def test_values_satisfy_their_equations() -> None:
    ours = replay_of(in_texts(random_acceptance(1, 2, 4, length=1000), 90), TABLE, "tree")
    positions, values = ours.positions, ours.values
    for state, steps in ours.steps.items():
        places = np.flatnonzero(positions.groups[state[0]] == state[1])
        own = values.to_come[places, state[0]].sum()
        assert values.sum_steps(steps, state[0], places) == pytest.approx(own)
    # all tokens, minus those that the mean speed gives in the time of all steps
    starts = np.flatnonzero(np.diff(positions.texts, prepend=-1))
    assert len(starts) == 12
    assert values.to_come[starts, 1].sum() == pytest.approx(0, abs=1e-9)
    assert np.abs(values.to_come).max() > 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("num_drafted", "group"), [(0, 0), (1, 0), (1, 2)])
def test_the_tree_of_a_state_is_the_best_of_all_trees(
    seed: int, num_drafted: int, group: int
) -> None:
    acceptance = in_texts(random_acceptance(1, 2, seed, length=1000), 30)
    ours = replay_of(acceptance, TABLE, "tree")
    places = ours.places[ours.groups == group]

    def worth(tree: Tree) -> float:
        return ours.values.sum_steps(ours.stepper.steps(tree), num_drafted, places)

    found = best_tree(ours, (num_drafted, group), False, places, everywhere=places)
    trees = [Tree.from_paths(masks, masks) for masks in all_trees(1, 2, len(TIMES))]
    assert worth(found) == pytest.approx(max(map(worth, trees)))
    assert min(map(worth, trees)) < worth(found) - 1

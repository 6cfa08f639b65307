"""Replay measured texts with trees by state: their steps, their speed, and the value of a state.

The steps are those of `replay`, computed on arrays, since a search replays thousands of tables that
differ in one tree. The equations are in `table_search`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from bita.calibration.positions import Positions, State
from bita.calibration.replay import cut_to_node, find_end_nodes
from bita.tensors import Float64Array, Int64Array
from bita.tree import Tree
from bita.tree_table import TreeTable


@dataclass(frozen=True, eq=False)
class TreeSteps:
    """Steps of one tree: their cost, and where they lead from each place, by the masks drafted."""

    step_ms: float  # T(rows of the tree)
    # [M + 1, P]: the place after the step's last token, or the text's end
    next_place: Int64Array
    next_drafted: Int64Array  # [M + 1, P]: masks of the node that the step ends on

    @cached_property
    def lists(self) -> tuple[list[list[int]], list[list[int]]]:
        """next_place and next_drafted, faster to walk through one by one."""
        return self.next_place.tolist(), self.next_drafted.tolist()


class Stepper:
    """Computes the steps of any tree at all positions, once per tree.

    Args:
        positions: Measured positions.
        step_ms: [R], T(1) to T(R) in milliseconds, never decreasing.
        mode: "exact" accepts along the spine only.
    """

    def __init__(self, positions: Positions, step_ms: Float64Array, mode: str) -> None:
        self.positions = positions
        self.step_ms = step_ms
        self._mode = mode
        self._known: dict[Tree, TreeSteps] = {}

    def steps(self, tree: Tree) -> TreeSteps:
        """Return the steps of a tree; one with more than R rows costs T(R)."""
        if tree not in self._known:
            self._known[tree] = self._compute_steps(tree)
        return self._known[tree]

    def replay(self, trees: Mapping[State, Tree]) -> "Replay":
        """Take the steps of all texts with these trees by state."""
        steps = {state: self.steps(tree) for state, tree in trees.items()}
        visits, total_ms = _walk(self.positions, trees, steps)
        places, drafted = np.array(visits, np.int64).reshape(-1, 2).T
        return Replay(self, trees, steps, places, drafted, len(self.positions) / total_ms)

    def replay_table(self, table: TreeTable) -> "Replay":
        """Replay a table that may group levels differently.

        Each group of the positions uses the tree of its least level.
        """
        least = self.positions.min_levels
        return self.replay(
            {(d, m): table.trees[table.number(d, least[m])] for d, m in self.positions.states}
        )

    def _compute_steps(self, tree: Tree) -> TreeSteps:
        positions, end_nodes = self.positions, find_end_nodes(tree, self._mode)
        next_place, next_drafted = [], []
        for num_drafted in range(positions.num_masks + 1):
            free = positions.free_paths[num_drafted, tree.min_level > 0]
            nodes = [cut_to_node(path, end_nodes) for path in free.paths]
            depths = np.array([len(node) for node in nodes])[free.index]
            masks = np.array([end_nodes[node] for node in nodes])[free.index]
            next_place.append(np.minimum(np.arange(len(positions)) + depths + 1, positions.ends))
            next_drafted.append(np.minimum(masks, positions.num_masks))
        num_rows = min(tree.num_rows, len(self.step_ms))
        return TreeSteps(
            float(self.step_ms[num_rows - 1]), np.array(next_place), np.array(next_drafted)
        )


@dataclass(frozen=True, eq=False)
class Values:
    """Value of the rest of a text: its tokens, minus those that its time is worth elsewhere."""

    speed: float  # g, tokens per millisecond
    ends: Int64Array  # [P]: of `Positions`
    # [P, M + 1]: V(p, d) in tokens, by the masks drafted for the step at a place
    to_come: Float64Array

    def sum_steps(self, steps: TreeSteps, num_drafted: int, places: Int64Array) -> float:
        """Sum the value of a tree's step at each of these places and of the text after it.

        With a state's own tree this is the sum of `to_come`.
        """
        next_place = steps.next_place[num_drafted, places]
        next_drafted = steps.next_drafted[num_drafted, places]
        continues = next_place < self.ends[places]
        later = self.to_come[next_place[continues], next_drafted[continues]].sum()
        tokens = (next_place - places).sum()
        return float(tokens + later - len(places) * self.speed * steps.step_ms)


@dataclass(frozen=True, eq=False)
class Replay:
    """Steps that trees by state take through all texts."""

    stepper: Stepper
    trees: Mapping[State, Tree]
    steps: Mapping[State, TreeSteps]
    places: Int64Array  # [S]: roots of the steps, ascending
    drafted: Int64Array  # [S]: masks drafted for each step
    speed: float  # tokens per millisecond

    @property
    def positions(self) -> Positions:
        return self.stepper.positions

    def with_tree(self, state: State, tree: Tree) -> "Replay":
        """Replay with another tree in one state."""
        return self.stepper.replay({**self.trees, state: tree})

    @property
    def groups(self) -> Int64Array:
        """[S]: group of the level at each step."""
        return self.positions.groups[self.drafted, self.places]

    @cached_property
    def values(self) -> Values:
        """Value of the rest of a text after each place, with these trees."""
        positions = self.positions
        step_cost = {state: self.speed * steps.step_ms for state, steps in self.steps.items()}
        groups, ends = positions.groups.tolist(), positions.ends.tolist()
        to_come: list[list[float]] = [[] for _ in ends]
        for place in reversed(range(len(ends))):
            for num_drafted in range(positions.num_masks + 1):
                state = num_drafted, groups[num_drafted][place]
                next_place, next_drafted = self.steps[state].lists
                there = next_place[num_drafted][place]
                value = there - place - step_cost[state]
                if there < ends[place]:
                    value += to_come[there][next_drafted[num_drafted][place]]
                to_come[place].append(value)
        return Values(self.speed, positions.ends, np.array(to_come))

    def to_table(self) -> TreeTable:
        """Return a table of the trees in the states that occur.

        Any other state has the tree of its neighbour with less certain guesses or fewer masks.
        """
        num_groups = len(self.positions.min_levels)
        num_counts = 1 + int(self.drafted.max())
        used = {*zip(self.drafted.tolist(), self.groups.tolist(), strict=True)}
        filled: dict[State, Tree] = {}
        for d, group in product(range(num_counts), range(num_groups)):
            if (d, group) in used or (d, group) == (0, 0):
                filled[d, group] = self.trees[d, group]
            else:
                filled[d, group] = filled[d, group - 1] if group else filled[d - 1, group]
        numbers = {tree: n for n, tree in enumerate(dict.fromkeys(filled.values()))}
        by_state = tuple(
            tuple(numbers[filled[d, group]] for group in range(num_groups))
            for d in range(num_counts)
        )
        return TreeTable(tuple(numbers), self.positions.min_levels, by_state)


def _walk(
    positions: Positions, trees: Mapping[State, Tree], steps: Mapping[State, TreeSteps]
) -> tuple[list[tuple[int, int]], float]:
    """Return the place and the drafted masks of each step, and the total milliseconds.

    Each text begins with as many drafted masks as a prefill leaves: the largest number of any tree.
    """
    first = min(max(tree.max_masks for tree in trees.values()), positions.num_masks)
    groups, ends = positions.groups.tolist(), positions.ends.tolist()
    visits: list[tuple[int, int]] = []
    total_ms, place = 0.0, 0
    while place < len(ends):
        num_drafted, end = first, ends[place]
        while place < end:
            visits.append((place, num_drafted))
            step = steps[num_drafted, groups[num_drafted][place]]
            total_ms += step.step_ms
            next_place, next_drafted = step.lists
            there = next_place[num_drafted][place]
            num_drafted, place = next_drafted[num_drafted][place], there
    return visits, total_ms

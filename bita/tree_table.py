"""A tree for each state of the decoder: what a step knows of its drafts before it runs.

Drafts come from the masks of the node that the last step ended on, or from what followed the text's
last tokens when they occurred before. How many masks there were, and how long the text's match is,
say how good the drafts are: where they are poor a small tree is faster, where they are good a large
one. All trees are static; the state only picks one. Trees by the masks at hand: PPD (arXiv
2405.18628), dynamic sparse tree.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any, TypeAlias

from bita.errors import TreeError, raise_faults
from bita.json_values import Fields, parse_json, read_json_object, shown
from bita.tree import MAX_LEVEL, Tree

MAX_TREES, MAX_STATES = 256, 1024  # far beyond what pays; they guard against a broken file
MAX_COST = 1e6  # of a step, likewise
MAX_FILE_BYTES = 4 << 20  # of tree.json, which has 1 to 50 kB
FORM = '{"trees": [...], "levels": [0, ...], "by_state": [[number of a tree, ...], ...]}'


@dataclass(frozen=True)
class TreeTable:
    """by_state[d][m]: number of the tree for a step with the drafts of d masks.

    levels: the least of each m, ascending from 0: how sure the step's guess is, 0 to MAX_LEVEL
    (`bita.runtime.decoding.sureness`). After the last d the rows go on.
    costs: the time of steps of 1, 2, ... rows, up to the largest tree's, in times of a step of one
    row. With them each text takes smaller trees where its drafts do not pay (`Guard`); empty: every
    text takes the trees of its states.
    """

    trees: tuple[Tree, ...]
    levels: tuple[int, ...]
    by_state: tuple[tuple[int, ...], ...]
    costs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        raise_faults(TreeError, "table of trees", [*self._faults()])

    def _faults(self) -> Iterator[str]:
        starts = self.levels[:1] == (0,) and self.levels[-1] <= MAX_LEVEL
        if not starts or any(less >= more for less, more in pairwise(self.levels)):
            yield f"levels {list(self.levels)} do not ascend from 0 to {MAX_LEVEL} at most"
        if not self.by_state:
            yield "by_state is empty"
        for d, row in enumerate(self.by_state):
            if len(row) != len(self.levels):
                yield f"by_state[{d}] has {len(row)} numbers, not {len(self.levels)} as levels"
        for number in {number for row in self.by_state for number in row}:
            if type(number) is not int or not 0 <= number < len(self.trees):
                yield f"there is no tree {number!r}; they are numbered 0 to {len(self.trees) - 1}"
        if self.costs and self.trees:
            yield from _cost_faults(self.costs, self.num_rows)

    @classmethod
    def of(cls, trees: "Tree | TreeTable") -> "TreeTable":
        """A table that takes the same tree in every state, or the table itself."""
        return trees if isinstance(trees, TreeTable) else cls((trees,), (0,), ((0,),))

    def with_costs(self, step_ms: Sequence[float]) -> "TreeTable":
        """The same trees with `costs` by what steps take.

        step_ms: T(1), T(2), ... up to the rows of the largest tree at least, in milliseconds. A
        time that is shorter than one before it counts as that.
        """
        longest = list(accumulate(step_ms[: self.num_rows], max))
        return replace(self, costs=tuple(round(each / longest[0], 4) for each in longest))

    def number(self, num_drafted: int, level: int) -> int:
        """Of the tree for a step with the drafts of so many masks."""
        row = self.by_state[min(num_drafted, len(self.by_state) - 1)]
        return row[bisect_right(self.levels, level) - 1]

    def to_json(self) -> str:
        """JSON text; `trees_from_json` reads it."""
        trees = ",\n".join(tree.to_json().rstrip() for tree in self.trees)
        rows = ",\n  ".join(json.dumps(rows) for rows in self.by_state)
        costs = f',\n"costs": {json.dumps(self.costs)}' if self.costs else ""
        return (
            f'{{"trees": [\n{trees}\n],\n"levels": {json.dumps(self.levels)},\n'
            f'"by_state": [\n  {rows}\n]{costs}}}\n'
        )

    @property
    def is_ar(self) -> bool:
        """Whether it drafts nothing."""
        return all(tree.is_ar for tree in self.trees)

    @property
    def num_rows(self) -> int:
        """Of the largest step."""
        return max(tree.num_rows for tree in self.trees)

    @property
    def max_masks(self) -> int:
        """Masks on the node that has most, over all trees."""
        return max(tree.max_masks for tree in self.trees)

    @property
    def uses_text(self) -> bool:
        """Whether a step depends on what the text had before."""
        return len(self.levels) > 1 or any(tree.min_level for tree in self.trees)

    def misfits(self, num_masks: int, num_ranks: int, num_slots: int) -> list[str]:
        """Why an engine cannot run these trees, as `Tree.misfits`; empty if it can."""
        faults = [tree.misfits(num_masks, num_ranks, num_slots) for tree in self.trees]
        if len(faults) == 1:
            return faults[0]
        return [f"tree {n}: {fault}" for n, found in enumerate(faults) for fault in found]

    def states(self) -> list[tuple[str, Tree]]:
        """For a reader: each state, neighbours with the same tree together, and its tree."""
        described = []
        for d, row in enumerate(self.by_state):
            for number, run in groupby(range(len(row)), row.__getitem__):
                inside = [*run]
                first, behind = self.levels[inside[0]], [*self.levels, 0][inside[-1] + 1] - 1
                span = f"{first}+" if behind < 0 else f"{first}-{behind}"
                where = f"{first}" if behind == first else span
                described.append((f"masks {d}, level {where}", self.trees[number]))
        return described

    def __str__(self) -> str:
        guarded = ", guarded" if self.costs else ""
        if len(self.trees) == 1:
            return f"{self.trees[0]}{guarded}"
        sizes = sorted(tree.num_rows for tree in self.trees)
        return f"{len(self.trees)} trees by state, of {sizes[0]} to {sizes[-1]} rows{guarded}"


Trees: TypeAlias = Tree | TreeTable


def read_trees(path: Path, fix: str) -> Trees:
    """The tree or the table in a file. Raises TreeError that names it and ends with `fix`."""
    data = read_json_object(path, TreeError, fix, MAX_FILE_BYTES)
    try:
        return trees_from_data(data)
    except TreeError as error:
        raise TreeError(f"{path}: {error}; {fix}") from error


def trees_from_json(text: str) -> Trees:
    """What `to_json` of a tree or of a table wrote. Raises TreeError."""
    try:
        return trees_from_data(parse_json(text))
    except ValueError as error:
        raise TreeError(f"not JSON: {error}") from error


def trees_from_data(data: Any) -> Trees:
    """Read a tree or a table from parsed JSON. Raises TreeError."""
    if not isinstance(data, dict) or "trees" not in data:
        return Tree.from_data(data)
    values = Fields(data)
    if "matches" in data:
        values.faults.append("matches is of an older bita-edge; calibrate the tree again")
    levels = values.wholes("levels", most=MAX_LEVEL)
    trees = _listed(values, "trees", MAX_TREES)
    rows = _listed(values, "by_state", MAX_STATES)
    states = Fields({f"by_state[{d}]": row for d, row in enumerate(rows)})
    states.faults = values.faults
    by_state = tuple(states.wholes(name) for name in states.values)
    costs = values.numbers("costs", (), least=0, most=MAX_COST)
    values.check(TreeError, f"not a table of trees, which is {FORM}")
    return TreeTable(tuple(map(Tree.from_data, trees)), levels, by_state, costs)


def _cost_faults(costs: Sequence[float], num_rows: int) -> Iterator[str]:
    fix = "calibrate the tree again, or remove costs"
    if len(costs) != num_rows:
        yield f"costs has {len(costs)} numbers, not {num_rows} as the largest tree has rows; {fix}"
    if costs[0] != 1 or not all(less <= more <= MAX_COST for less, more in pairwise(costs)):
        yield f"costs {shown(list(costs))} do not rise from 1, the cost of one row; {fix}"


def _listed(values: Fields, name: str, most: int) -> list[Any]:
    items = values.values.get(name)
    if isinstance(items, list) and len(items) <= most:
        return items
    found = f"a list of {len(items)}" if isinstance(items, list) else shown(items)
    values.faults.append(f"{name} is {found}, not a list of {most} at most")
    return []

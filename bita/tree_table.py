"""A tree for each state of the decoder, which describes a step's drafts before the step runs.

Drafts come from the masks of the node that the last step ended on, or from guesses by the text or
the table of continuations. The number of these masks, and the confidence in the guess, indicate how
good the drafts are: a small tree is faster if they are poor, a large one if they are good. All
trees are static; the state only selects one. Source of trees by the number of masks: PPD (arXiv
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

MAX_TREES, MAX_STATES = 256, 1024  # far beyond what pays off; they guard against a broken file
MAX_COST = 1e6  # largest cost of a step, likewise
MAX_FILE_BYTES = 4 << 20  # for tree.json, which has 1 to 50 kB
FORM = '{"trees": [...], "levels": [0, ...], "by_state": [[number of a tree, ...], ...]}'


@dataclass(frozen=True)
class TreeTable:
    """Trees, and the number of the tree that each state of the decoder selects.

    A state consists of d, the number of masks whose drafts the step has, and m, the confidence in
    the step's guess: m is the index of the largest of `levels` that the guess reaches. Larger d
    than `by_state` has select its last row.

    With `costs`, each text takes smaller trees while its drafts do not pay off. Without them, every
    text takes the trees of its states.

    Raises:
        TreeError: if the values do not fit each other; it lists every fault.
    """

    trees: tuple[Tree, ...]  # numbered from 0
    levels: tuple[int, ...]  # minimum level of each m, ascending from 0 to at most 12
    by_state: tuple[tuple[int, ...], ...]  # number of the tree for by_state[d][m]
    costs: tuple[float, ...] = ()  # time of steps of 1, 2, ... rows, relative to one row

    def __post_init__(self) -> None:
        raise_faults(TreeError, "table of trees", [*self._faults()])

    def _faults(self) -> Iterator[str]:
        starts = self.levels[:1] == (0,) and self.levels[-1] <= MAX_LEVEL
        if not starts or any(less >= more for less, more in pairwise(self.levels)):
            yield f"levels {list(self.levels)} do not ascend from 0 to at most {MAX_LEVEL}"
        if not self.by_state:
            yield "by_state is empty"
        for d, row in enumerate(self.by_state):
            if len(row) != len(self.levels):
                yield f"by_state[{d}] has {len(row)} numbers, but levels has {len(self.levels)}"
        for number in {number for row in self.by_state for number in row}:
            if type(number) is not int or not 0 <= number < len(self.trees):
                yield f"there is no tree {number!r}; they are numbered 0 to {len(self.trees) - 1}"
        if self.costs and self.trees:
            yield from _cost_faults(self.costs, self.num_rows)

    @classmethod
    def of(cls, trees: "Tree | TreeTable") -> "TreeTable":
        """Return a table that selects one tree in every state; a table is returned unchanged."""
        return trees if isinstance(trees, TreeTable) else cls((trees,), (0,), ((0,),))

    def with_costs(self, step_ms: Sequence[float]) -> "TreeTable":
        """Return a table of the same trees, with `costs` from measured times.

        Args:
            step_ms: Milliseconds of steps of 1, 2, ... rows, at least up to the rows of the largest
                tree. A time shorter than that of fewer rows is raised to it.
        """
        longest = list(accumulate(step_ms[: self.num_rows], max))
        return replace(self, costs=tuple(round(each / longest[0], 4) for each in longest))

    def number(self, num_drafted: int, level: int) -> int:
        """Return the number of the tree for a step.

        Args:
            num_drafted: Number of masks whose drafts the step has.
            level: Confidence in the step's guess, from 0 to 12.
        """
        row = self.by_state[min(num_drafted, len(self.by_state) - 1)]
        return row[bisect_right(self.levels, level) - 1]

    def to_json(self) -> str:
        """Return the table as JSON, which `trees_from_json` reads."""
        trees = ",\n".join(tree.to_json().rstrip() for tree in self.trees)
        rows = ",\n  ".join(json.dumps(rows) for rows in self.by_state)
        costs = f',\n"costs": {json.dumps(self.costs)}' if self.costs else ""
        return (
            f'{{"trees": [\n{trees}\n],\n"levels": {json.dumps(self.levels)},\n'
            f'"by_state": [\n  {rows}\n]{costs}}}\n'
        )

    @property
    def is_ar(self) -> bool:
        """Whether no tree drafts anything, which is plain decoding."""
        return all(tree.is_ar for tree in self.trees)

    @property
    def num_rows(self) -> int:
        """Number of rows of the largest tree."""
        return max(tree.num_rows for tree in self.trees)

    @property
    def max_masks(self) -> int:
        """Largest number of masks on a node of any tree."""
        return max(tree.max_masks for tree in self.trees)

    @property
    def uses_text(self) -> bool:
        """Whether steps depend on guesses from the earlier text or the table of continuations."""
        return len(self.levels) > 1 or any(tree.min_level for tree in self.trees)

    def misfits(self, num_masks: int, num_ranks: int, num_slots: int) -> list[str]:
        """Return why an engine cannot run these trees, as `Tree.misfits`; empty if it can."""
        faults = [tree.misfits(num_masks, num_ranks, num_slots) for tree in self.trees]
        if len(faults) == 1:
            return faults[0]
        return [f"tree {n}: {fault}" for n, found in enumerate(faults) for fault in found]

    def states(self) -> list[tuple[str, Tree]]:
        """Return a description and the tree of each state; equal neighbours are merged."""
        described = []
        for d, row in enumerate(self.by_state):
            for number, run in groupby(range(len(row)), row.__getitem__):
                inside = [*run]
                first, last = self.levels[inside[0]], [*self.levels, 0][inside[-1] + 1] - 1
                span = f"{first}+" if last < 0 else f"{first}-{last}"
                where = f"{first}" if last == first else span
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
    """Read the tree or the table in a file. Raises TreeError that names it and ends with `fix`."""
    data = read_json_object(path, TreeError, fix, MAX_FILE_BYTES)
    try:
        return trees_from_data(data)
    except TreeError as error:
        raise TreeError(f"{path}: {error}; {fix}") from error


def trees_from_json(text: str) -> Trees:
    """Read what `to_json` of a tree or a table wrote. Raises TreeError."""
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
    trees = _read_list(values, "trees", MAX_TREES)
    rows = _read_list(values, "by_state", MAX_STATES)
    states = Fields({f"by_state[{d}]": row for d, row in enumerate(rows)})
    states.faults = values.faults
    by_state = tuple(states.wholes(name) for name in states.values)
    costs = values.numbers("costs", (), least=0, most=MAX_COST)
    values.check(TreeError, f"not a table of trees; expected {FORM}")
    return TreeTable(tuple(map(Tree.from_data, trees)), levels, by_state, costs)


def _cost_faults(costs: Sequence[float], num_rows: int) -> Iterator[str]:
    fix = "calibrate the tree again, or remove costs"
    if len(costs) != num_rows:
        yield f"costs has {len(costs)} numbers, but the largest tree has {num_rows} rows; {fix}"
    if costs[0] != 1 or not all(less <= more <= MAX_COST for less, more in pairwise(costs)):
        yield f"costs {shown(list(costs))} do not rise from 1, the cost of one row; {fix}"


def _read_list(values: Fields, name: str, most: int) -> list[Any]:
    items = values.values.get(name)
    if isinstance(items, list) and len(items) <= most:
        return items
    found = f"a list of {len(items)}" if isinstance(items, list) else shown(items)
    values.faults.append(f"{name} is {found}, not a list of at most {most}")
    return []

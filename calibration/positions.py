"""Measured positions as arrays, and the paths that steps accept there in a tree of all paths."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from bita.calibration.acceptance import Acceptance
from bita.calibration.replay import accept_freely, max_end_rank
from bita.tensors import Float64Array, Int64Array
from bita.tree import MAX_LEVEL, Path

State = tuple[int, int]  # masks drafted, index of a group of levels
MIN_LEVEL_POSITIONS = 80  # positions that levels need to form a group


class FreePaths:
    """The nodes that the steps at all positions end on in a tree of all paths."""

    paths: tuple[Path, ...]  # the F distinct ones
    index: Int64Array  # [P], index of a position's path
    nodes: list[Path]  # [N], every prefix of these paths, the root first
    depths: Int64Array  # [N], lengths of the nodes' paths
    passes: Float64Array  # [N, F], 1.0 where a path passes a node

    def __init__(self, ends: Sequence[Path]) -> None:
        index = {path: f for f, path in enumerate(dict.fromkeys(ends))}
        self.paths = tuple(index)
        self.index = np.array([index[path] for path in ends])
        beginnings = {path[:depth] for path in self.paths for depth in range(len(path) + 1)}
        self.nodes = sorted(beginnings, key=lambda path: (len(path), path))
        self.depths = np.array([len(path) for path in self.nodes])
        place = {path: n for n, path in enumerate(self.nodes)}
        self.passes = np.zeros((len(self.nodes), len(self.paths)))
        for f, path in enumerate(self.paths):
            self.passes[[place[path[:depth]] for depth in range(len(path) + 1)], f] = 1

    def sum_passing(self, places: Int64Array, values: Float64Array) -> Float64Array:
        """Sum the values of the places whose step passes a node, for each node [N]."""
        by_path = np.bincount(self.index[places], values, len(self.paths))
        return np.asarray(self.passes @ by_path, np.float64)


@dataclass(frozen=True, eq=False)
class Positions:
    """The P positions of all texts, one text after the other; a place is an index into them."""

    num_masks: int  # M, of the adapter
    uses_text: bool  # whether drafts may come from the text so far
    min_levels: tuple[int, ...]  # minimum level of each group, its confidence in a guess
    groups: Int64Array  # [M + 1, P], group of each position, by the masks drafted
    texts: Int64Array  # [P], number of the position's text
    ends: Int64Array  # [P], the first place after the position's text
    free_paths: Mapping[tuple[int, bool], FreePaths]  # by masks drafted and min_level > 0

    @classmethod
    def of(cls, acceptance: Acceptance, num_masks: int, mode: str, uses_text: bool) -> "Positions":
        """Convert measured positions. Without `uses_text` a single group has all levels."""
        positions, lengths = [*acceptance.positions()], [*map(len, acceptance.texts)]
        found = np.array([[p.guess(d).level for p in positions] for d in range(num_masks + 1)])
        least = tuple(_min_levels(found)) if uses_text else (0,)
        max_rank = max_end_rank(acceptance, mode)
        free_paths = {
            (num_drafted, guesses): FreePaths(
                [accept_freely(p, num_drafted, int(guesses), max_rank) for p in positions]
            )
            for num_drafted, guesses in product(range(num_masks + 1), (False, True))
        }
        return cls(
            num_masks=num_masks,
            uses_text=uses_text,
            min_levels=least,
            groups=np.searchsorted(least, found, "right") - 1,
            texts=np.repeat(np.arange(len(lengths)), lengths),
            ends=np.repeat(np.cumsum(lengths), lengths),
            free_paths=free_paths,
        )

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def states(self) -> list[State]:
        """Every number of masks drafted with every group of levels."""
        return [*product(range(self.num_masks + 1), range(len(self.min_levels)))]

    def may_guess(self, state: State) -> bool:
        """Whether the spine of a state's tree may contain a guess from the text.

        It may not if positions without a guess are a group of their own and the state is in it.
        """
        return self.uses_text and (state[1] > 0 or len(self.min_levels) == 1)


def _min_levels(found: Int64Array) -> Iterator[int]:
    """Yield the least level of each group; every group but the first has enough positions.

    `found` has the levels [M + 1, P] by the masks drafted, which all count equally.
    """
    last, shares = 0, np.bincount(found.ravel(), None, MAX_LEVEL + 1) / len(found)
    yield last
    for level in range(1, MAX_LEVEL + 1):
        num_above, num_below = shares[level:].sum(), shares[last:level].sum()
        if num_above >= MIN_LEVEL_POSITIONS and (num_below >= MIN_LEVEL_POSITIONS or last == 0):
            last = level
            yield last

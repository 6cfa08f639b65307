"""The trees with the most tokens per step for every number of rows, mask rows counted.

A step's drafts come from the masks of the node that the last step ended on, so the masks left on
that node are the state of a Markov chain, and a tree is worth the average reward of that chain.
Mask tokens where they pay: PPD (arXiv 2405.18628); nodes by their share: best-first.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bita.calibration.acceptance import GUESSES, Acceptance
from bita.calibration.replay import accept_freely, max_end_rank, replay
from bita.tree import Path, Tree

# By state (masks that the last node had): how often a step, unlimited, accepts a path.
Shares = tuple[Mapping[Path, float], ...]
SMALL = 8  # rows of a tree that is searched thoroughly
KEPT, KEPT_SMALL = 2, 12  # trees of each number of rows


def path_shares(acceptance: Acceptance, num_masks: int, min_match: int, mode: str) -> Shares:
    """For states 0 to num_masks; mode "exact" knows paths along the spine only.

    Of the roots that a long chain visits: where text repeats itself, trees that guess right pass it
    in few steps, and all its positions would count too much.
    """
    chain = Tree.chain(max(num_masks, GUESSES if min_match else 1), num_masks)
    steps = replay(acceptance, chain.with_ngrams(min_match), mode)
    positions = [
        text[visit.place]
        for text, visits in zip(acceptance.texts, steps, strict=True)
        for visit in visits
    ]
    states, max_rank = [], max_end_rank(acceptance, mode)
    for drafted in range(num_masks + 1):
        counts: Counter[Path] = Counter()
        for position in positions:
            path = accept_freely(position, drafted, min_match, max_rank)
            counts.update(path[:depth] for depth in range(len(path) + 1))
        total = max(counts[()], 1)
        states.append({path: count / total for path, count in counts.items()})
    return tuple(states)


@dataclass(frozen=True)
class Found:
    """A tree and the tokens per step that it is expected to give."""

    tree: Tree
    tokens_per_step: float


def best_trees(shares: Shares, max_rows: int, min_match: int = 0) -> dict[int, Found]:
    """By number of rows, up to max_rows: the best tree found with so many.

    A few trees of each size are kept. From smaller ones grow larger ones, then rows are taken away
    from larger ones. All ways to do so are tried on small trees, the most promising ones on others.
    """
    likely = _likeliest(shares, 2 * max_rows, 0)
    shares = tuple({path: state[path] for path in likely if path in state} for state in shares)
    pool = _Pool(max_rows)
    for num_masks in range(len(shares)):
        pool.add(_Grown(shares, _likeliest(shares, max_rows, num_masks)))
        pool.add(_Grown(shares, {(): num_masks}))
    for rows in range(1, max_rows + 1):
        for grown in pool.of(rows):
            for more in grown.additions(max_rows - rows)[: _tried(rows)]:
                pool.add(_Grown(shares, {**grown.masks, **more}))
    for rows in range(max_rows, 1, -1):
        for grown in pool.of(rows):
            for masks in grown.removals()[: _tried(rows)]:
                pool.add(_Grown(shares, masks))
    return {rows: Found(g.tree(min_match), g.value) for rows, g in pool.best().items()}


def _tried(rows: int) -> int:
    """How many ways to change a tree of so many rows are tried."""
    return 24 if rows <= SMALL else 3


class _Pool:
    """The best few trees of each number of rows."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._trees: dict[int, list[_Grown]] = {}
        self._seen: set[frozenset[tuple[Path, int]]] = set()

    def add(self, grown: "_Grown") -> None:
        key = frozenset(grown.masks.items())
        if grown.num_rows > self._max_rows or key in self._seen:
            return
        self._seen.add(key)
        trees = self._trees.setdefault(grown.num_rows, [])
        trees.append(grown)
        trees.sort(key=lambda tree: -tree.value)
        del trees[KEPT_SMALL if grown.num_rows <= SMALL else KEPT :]

    def of(self, rows: int) -> list["_Grown"]:
        return list(self._trees.get(rows, []))

    def best(self) -> dict[int, "_Grown"]:
        return {rows: trees[0] for rows, trees in sorted(self._trees.items())}


def _likeliest(shares: Shares, max_rows: int, num_masks: int) -> dict[Path, int]:
    """The likeliest paths with the same masks on each, as many as the rows allow."""
    count = max(max_rows // (num_masks + 1), 1)
    known = shares[-1]
    # length breaks ties: a parent comes before its children
    ordered = sorted(known, key=lambda path: (-known[path], len(path), path))
    return dict.fromkeys(ordered[:count], num_masks)


class _Grown:
    """A tree by its paths and their masks, with the value of the chain that it makes.

    value: tokens per step. ahead: what each state is worth beyond the mean, in tokens.
    """

    def __init__(self, shares: Shares, masks: dict[Path, int]) -> None:
        self._shares = shares
        self.masks = masks
        self.num_rows = len(masks) + sum(masks.values())
        self._paths = list(masks)
        number = {path: index for index, path in enumerate(self._paths)}
        self._accepted = np.array([[s.get(path, 0.0) for path in self._paths] for s in shares])
        self._ends = self._accepted.copy()
        for path, index in number.items():
            if path:
                self._ends[:, number[path[:-1]]] -= self._accepted[:, index]
        self.value, self.ahead, self._stays = self._solve()

    def _solve(self) -> tuple[float, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Average reward, relative values (the root's state is 0) and shares of the states."""
        num_states, start = len(self._shares), self.masks[()]
        moves = np.zeros((num_states, num_states))
        np.add.at(moves.T, list(self.masks.values()), self._ends.T)
        # value + ahead[s] = reward[s] + moves[s] . ahead; unknowns: ahead and the value
        system = np.ones((num_states + 1, num_states + 1))
        system[:num_states, :num_states] = np.eye(num_states) - moves
        system[num_states] = 0
        system[num_states, start] = 1
        reward = self._accepted.sum(1)
        solved = _solved(system, np.append(reward, 0.0))
        # the same system, transposed, gives the shares: its last row asks that they sum to 1
        shares = _solved(system.T, np.append(np.zeros(num_states), 1.0))[:num_states]
        return float(solved[num_states]), solved[:num_states], shares

    def additions(self, room: int) -> list[dict[Path, int]]:
        """One more mask, or one more node with masks, the best for its rows first."""
        gains: list[tuple[float, dict[Path, int]]] = []
        for index, path in enumerate(self._paths):
            masks = self.masks[path]
            if masks + 1 < len(self._shares) and room:
                ends = self._stays @ self._ends[:, index]
                gains.append((float(ends * self._worth(masks, masks + 1)), {path: masks + 1}))
        for path, share in self._open_paths().items():
            behind = self.masks[path[:-1]]
            for masks in range(min(room, len(self._shares))):
                gain = share * (1 + self._worth(behind, masks)) / (1 + masks)
                gains.append((float(gain), {path: masks}))
        return [more for _, more in sorted(gains, key=lambda item: -item[0])]

    def removals(self) -> list[dict[Path, int]]:
        """What is left without a mask, or without a leaf and its masks, the least lost first."""
        inner = {path[:-1] for path in self._paths if path}
        losses: list[tuple[float, dict[Path, int]]] = []
        for index, path in enumerate(self._paths):
            masks = self.masks[path]
            if masks:
                ends = self._stays @ self._ends[:, index]
                less = {**self.masks, path: masks - 1}
                losses.append((float(ends * self._worth(masks - 1, masks)), less))
            if path and path not in inner:
                accepted = self._stays @ self._accepted[:, index]
                loss = accepted * (1 + self._worth(self.masks[path[:-1]], masks)) / (1 + masks)
                others = {other: m for other, m in self.masks.items() if other != path}
                losses.append((float(loss), others))
        return [left for _, left in sorted(losses, key=lambda item: item[0])]

    def _worth(self, fewer: int, more: int) -> float:
        """Tokens gained later by one number of masks instead of another."""
        return float(self.ahead[more] - self.ahead[fewer])

    def tree(self, min_match: int) -> Tree:
        return Tree.from_paths(self.masks, self.masks).with_ngrams(min_match)

    def _open_paths(self) -> dict[Path, float]:
        """Paths that could be added, and how often steps would accept them."""
        found: dict[Path, float] = {}
        for state, shares in enumerate(self._shares):
            for path, share in shares.items():
                if path not in self.masks and path[:-1] in self.masks:
                    found[path] = found.get(path, 0.0) + self._stays[state] * share
        return found


def _solved(
    system: npt.NDArray[np.float64], right: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(np.linalg.solve(system, right), np.float64)
    except np.linalg.LinAlgError:  # a step that never ends at the root splits the chain
        return np.asarray(np.linalg.lstsq(system, right, rcond=None)[0], np.float64)

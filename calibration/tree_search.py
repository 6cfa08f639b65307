"""Find the trees with the most tokens per step for every number of rows, including mask rows.

A tree is worth the average reward of its chain (`draft_chain`). Trees grow by the node or mask that
gains most for its rows, and shrink by the one that loses least. Placing mask tokens where they pay
follows PPD (arXiv 2405.18628); adding nodes by their share is best-first search.
"""

from collections import Counter
from dataclasses import dataclass

from bita.calibration.acceptance import GUESSES, Acceptance
from bita.calibration.draft_chain import DraftChain, Shares
from bita.calibration.replay import accept_freely, max_end_rank, replay
from bita.tree import Path, Tree

Change = tuple[Path, int | None]  # a node and its new number of masks; None removes the node
MAX_SMALL = 8  # rows; trees up to this size are searched thoroughly
MAX_KEPT, MAX_KEPT_SMALL = 2, 12  # trees kept for each number of rows
MAX_TRIED, MAX_TRIED_SMALL = 3, 24  # changes tried on each tree


def path_shares(acceptance: Acceptance, num_masks: int, min_level: int, mode: str) -> Shares:
    """Compute how often steps pass each node, for states 0 to num_masks.

    Only the roots that a long chain visits count. Trees with right guesses pass text that repeats
    itself in few steps, so counting all its positions would give it too much weight.

    Args:
        acceptance: Measured texts.
        num_masks: Largest number of masks on a node.
        min_level: Least level at which the trees guess; 0 if they never guess.
        mode: "exact" has paths along the spine only.
    """
    chain = Tree.chain(max(num_masks, GUESSES if min_level else 1), num_masks)
    steps = replay(acceptance, chain.with_guesses(min_level), mode)
    positions = [
        text[visit.place]
        for text, visits in zip(acceptance.texts, steps, strict=True)
        for visit in visits
    ]
    states, max_rank = [], max_end_rank(acceptance, mode)
    for num_drafted in range(num_masks + 1):
        counts: Counter[Path] = Counter()
        for position in positions:
            path = accept_freely(position, num_drafted, min_level, max_rank)
            counts.update(path[:depth] for depth in range(len(path) + 1))
        total = max(counts[()], 1)
        states.append({path: count / total for path, count in counts.items()})
    return tuple(states)


@dataclass(frozen=True)
class RatedTree:
    """A tree and its expected tokens per step."""

    tree: Tree
    tokens_per_step: float


def best_trees(shares: Shares, max_rows: int, min_level: int = 0) -> dict[int, RatedTree]:
    """Find the best tree with each number of rows, up to max_rows.

    The search keeps a few trees of each size. It first adds rows to smaller ones, then removes rows
    from larger ones. On small trees it tries many changes, on others only the most promising ones.
    """
    likely = _likeliest(shares, 2 * max_rows, 0)
    shares = tuple({path: state[path] for path in likely if path in state} for state in shares)
    pool = _Pool(max_rows)
    for num_masks in range(len(shares)):
        pool.add(DraftChain(shares, _likeliest(shares, max_rows, num_masks)))
        pool.add(DraftChain(shares, {(): num_masks}))
    for rows in range(1, max_rows + 1):
        for chain in pool.of(rows):
            for change in list_additions(chain, max_rows - rows)[: _max_tried(rows)]:
                pool.add(_apply(chain, change))
    for rows in range(max_rows, 1, -1):
        for chain in pool.of(rows):
            for change in list_removals(chain)[: _max_tried(rows)]:
                pool.add(_apply(chain, change))
    return {rows: _rate(chain, min_level) for rows, chain in pool.best().items()}


def list_additions(chain: DraftChain, room: int) -> list[Change]:
    """List ways to add one mask to a node, or one node with masks; the best for its rows first.

    A change adds at most `room` rows.
    """
    gains: list[tuple[float, Change]] = []
    num_states = len(chain.shares)
    for path, masks in chain.masks.items():
        if masks + 1 < num_states and room:
            gain = chain.share_ending(path) * chain.gain(masks, masks + 1)
            gains.append((gain, (path, masks + 1)))
    for path, share in _open_paths(chain).items():
        parent_masks = chain.masks[path[:-1]]
        for masks in range(min(room, num_states)):
            gain = share * (1 + chain.gain(parent_masks, masks)) / (1 + masks)
            gains.append((gain, (path, masks)))
    return [change for _, change in sorted(gains, key=lambda item: -item[0])]


def list_removals(chain: DraftChain) -> list[Change]:
    """List ways to remove one mask or one leaf; the one that loses least for its rows first."""
    inner = {path[:-1] for path in chain.masks if path}
    losses: list[tuple[float, Change]] = []
    for path, masks in chain.masks.items():
        if masks:
            loss = chain.share_ending(path) * chain.gain(masks - 1, masks)
            losses.append((loss, (path, masks - 1)))
        if path and path not in inner:
            tokens = 1 + chain.gain(chain.masks[path[:-1]], masks)
            losses.append((chain.share_passing(path) * tokens / (1 + masks), (path, None)))
    return [change for _, change in sorted(losses, key=lambda item: item[0])]


def _apply(chain: DraftChain, change: Change) -> DraftChain:
    path, count = change
    masks = {**chain.masks}
    if count is None:
        del masks[path]
    else:
        masks[path] = count
    return DraftChain(chain.shares, masks)


def _rate(chain: DraftChain, min_level: int) -> RatedTree:
    tree = Tree.from_paths(chain.masks, chain.masks).with_guesses(min_level)
    return RatedTree(tree, chain.value)


def _max_tried(rows: int) -> int:
    return MAX_TRIED_SMALL if rows <= MAX_SMALL else MAX_TRIED


class _Pool:
    """Pool of the best few trees with each number of rows."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._chains: dict[int, list[DraftChain]] = {}
        self._seen: set[frozenset[tuple[Path, int]]] = set()

    def add(self, chain: DraftChain) -> None:
        """Keep a tree if it is new, not too large, and among the best of its size."""
        key = frozenset(chain.masks.items())
        if chain.num_rows > self._max_rows or key in self._seen:
            return
        self._seen.add(key)
        chains = self._chains.setdefault(chain.num_rows, [])
        chains.append(chain)
        chains.sort(key=lambda chain: -chain.value)
        del chains[MAX_KEPT_SMALL if chain.num_rows <= MAX_SMALL else MAX_KEPT :]

    def of(self, rows: int) -> list[DraftChain]:
        """Return the trees with this number of rows, the best first."""
        return list(self._chains.get(rows, []))

    def best(self) -> dict[int, DraftChain]:
        """Return the best tree with each number of rows."""
        return {rows: chains[0] for rows, chains in sorted(self._chains.items())}


def _likeliest(shares: Shares, max_rows: int, num_masks: int) -> dict[Path, int]:
    """Return the likeliest paths with `num_masks` on each, as many as fit `max_rows`."""
    count = max(max_rows // (num_masks + 1), 1)
    known = shares[-1]
    # length breaks ties: a parent comes before its children
    ordered = sorted(known, key=lambda path: (-known[path], len(path), path))
    return dict.fromkeys(ordered[:count], num_masks)


def _open_paths(chain: DraftChain) -> dict[Path, float]:
    """Return the paths that could be added, and how often steps would pass each."""
    found: dict[Path, float] = {}
    for state, shares in enumerate(chain.shares):
        for path, share in shares.items():
            if path not in chain.masks and path[:-1] in chain.masks:
                found[path] = found.get(path, 0.0) + float(chain.stays[state]) * share
    return found

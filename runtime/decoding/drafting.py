"""Both ends of a round: which nodes are accepted, and what the next tree holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bita.pairs import PairTables
from bita.tensors import Float32Array, Int64Array
from bita.tree import Tree


def accept(
    children: Sequence[Sequence[int]],
    tokens: Sequence[int],
    choose: Callable[[int], int],
    has_ended: Callable[[], bool] = lambda: False,
) -> tuple[list[int], int]:
    """Walk from the root to the child that holds each node's chosen token, as far as there is one.

    children: the nodes that may be accepted behind each node. tokens: that the nodes hold. choose:
    the token that follows a node; it is asked once for each node of the path, in its order.
    has_ended: whether nothing is to follow what was chosen last. Returns the nodes of the path, the
    root first, and the bonus token (chosen at the last node of the path). Source: BiTA, tree
    verification.
    """
    path = [0]
    while True:
        bonus = choose(path[-1])
        if has_ended():
            return path, bonus
        for child in children[path[-1]]:
            if tokens[child] == bonus:
                path.append(child)
                break
        else:
            return path, bonus


def spine_children(tree: Tree) -> tuple[tuple[int, ...], ...]:
    """The tree's children of each node as far as they are on the spine.

    Along the spine the accepted rows lie in the cache as AR would have put them, so the rows
    behind them are bit-identical to AR; behind a branch they are equal up to rounding only.
    """
    return tuple(
        tuple(child for child in children if child <= tree.spine_length)
        for children in tree.children
    )


class Drafts:
    """The top tokens and logits of a text's mask group that was accepted last.

    num_masks: of the group, at most max_masks.
    """

    def __init__(self, max_masks: int, num_ranks: int) -> None:
        self.ids = np.zeros((max_masks, num_ranks), np.int64)
        self.logits = np.zeros((max_masks, num_ranks), np.float32)
        self.num_masks = 0

    def read(self, top_ids: Int64Array, top_logits: Float32Array) -> None:
        """Take the drafts of one group, [M, k], and their logits."""
        self.num_masks = len(top_ids)
        self.ids[: self.num_masks] = top_ids
        self.logits[: self.num_masks] = top_logits


class Drafter:
    """Fills the nodes of a tree from drafts.

    A tree may be deeper than the group that was accepted; nodes without a draft keep an old one.
    That costs nothing: a node is accepted only where it holds what the model says. pairs: order the
    drafts behind each node by pair scores too.
    """

    def __init__(self, tree: Tree, pairs: PairTables | None = None) -> None:
        self._mask = np.array(tree.depths[1:], np.int64) - 1
        self._rank = np.array(tree.ranks[1:], np.int64) - 1
        self._pairs = pairs
        self._levels = _levels(tree)

    def fill(self, tokens: Int64Array, drafts: Drafts, guess: Sequence[int] = ()) -> None:
        """Write drafts, of as many masks as the tree is deep at least, into the token ids of the
        nodes, [N]; the root's is there.

        guess: what the spine holds instead of mask drafts, as far as it goes. Nodes beside it take
        the best drafts that differ from it.
        """
        if self._pairs is None and not len(guess):
            tokens[1:] = drafts.ids[self._mask, self._rank]
            return
        for level in self._levels:
            depth = level.mask + 1
            if depth <= len(guess) and len(level.nodes) == 1:  # nothing to order
                tokens[depth] = guess[level.mask]
                continue
            ordered = self._ordered(level, tokens, drafts)
            tokens[level.nodes] = ordered[level.places, level.ranks]
            if depth <= len(guess):
                tokens[depth] = guess[level.mask]
                others = ordered[0][ordered[0] != guess[level.mask]]
                known = level.beside_ranks < len(others)
                tokens[level.beside_spine[known]] = others[level.beside_ranks[known]]

    def _ordered(self, level: "_Level", tokens: Int64Array, drafts: Drafts) -> Int64Array:
        """[parents, k]: the drafts of a level's mask as children of each parent, best first."""
        ids, logits = drafts.ids[level.mask], drafts.logits[level.mask]
        if self._pairs is None:
            return np.broadcast_to(ids, (len(level.parents), len(ids)))
        return self._pairs.order(tokens[level.parents], ids, logits)


@dataclass(frozen=True, eq=False)
class _Level:
    """The nodes of one depth. parents: those that have children there, the spine's first; places:
    which of them; ranks from 0. beside_spine: the spine node's siblings, and their ranks among all
    drafts but the spine's.
    """

    mask: int
    nodes: Int64Array
    parents: Int64Array
    places: Int64Array
    ranks: Int64Array
    beside_spine: Int64Array
    beside_ranks: Int64Array


def _levels(tree: Tree) -> list[_Level]:
    depths, parents = np.array(tree.depths), np.array(tree.parents, np.int64)
    levels = []
    for depth in range(1, tree.max_depth + 1):
        nodes = np.flatnonzero(depths == depth)
        owners, places = np.unique(parents[nodes], return_inverse=True)
        ranks = np.array([tree.ranks[node] for node in nodes], np.int64) - 1
        beside = nodes[(parents[nodes] == depth - 1) & (nodes != depth)]
        beside_ranks = np.array([tree.ranks[node] for node in beside], np.int64) - 2
        levels.append(_Level(depth - 1, nodes, owners, places, ranks, beside, beside_ranks))
    return levels

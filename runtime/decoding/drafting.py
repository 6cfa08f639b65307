"""Both ends of a round: accept nodes of one tree, and fill the next."""

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
    """Walk from the root, at each node to the child that contains the chosen token.

    Source: BiTA, tree verification.

    children: acceptable children of each node.
    tokens: tokens of the nodes.
    choose: returns the token that follows a node; called once per node of the path, in order.
    has_ended: returns whether nothing may follow the last chosen token.

    Returns the nodes of the path from the root on, and the bonus token, which is chosen at the
    path's last node.
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
    """Return the children of each node that are on the spine.

    Along the spine the accepted rows occupy the same cache slots as in AR, so later rows are
    bit-identical to AR. After a branch they are only equal up to rounding.
    """
    return tuple(
        tuple(child for child in children if child <= tree.spine_length)
        for children in tree.children
    )


class Drafts:
    """The top tokens and logits of a text's last accepted mask group.

    ids, logits: [max_masks, num_ranks], never reallocated.
    num_masks: size of the group, at most max_masks.
    """

    def __init__(self, max_masks: int, num_ranks: int, pairs: PairTables | None = None) -> None:
        self.ids = np.zeros((max_masks, num_ranks), np.int64)
        self.logits = np.zeros((max_masks, num_ranks), np.float32)
        self.num_masks = 0
        self.pairs = pairs

    def read(self, top_ids: Int64Array, top_logits: Float32Array) -> None:
        """Copy the drafts of a group, [M, k], and their logits."""
        self.num_masks = len(top_ids)
        if self.num_masks:
            self.ids[: self.num_masks] = top_ids
            self.logits[: self.num_masks] = top_logits


class Drafter:
    """Fills the nodes of a tree from drafts.

    A tree may be deeper than the accepted group; nodes without a draft keep an old one. This is
    harmless, since a node is accepted only if its token is the model's choice.

    pairs: pair scores, with which the drafts after each node are ordered too.
    """

    def __init__(self, tree: Tree, pairs: PairTables | None = None) -> None:
        self._mask = np.array(tree.depths[1:], np.int64) - 1
        self._rank = np.array(tree.ranks[1:], np.int64) - 1
        self._pairs = pairs
        self._levels = [_Level.of(tree, depth) for depth in range(1, tree.max_depth + 1)]

    def fill(self, tokens: Int64Array, drafts: Drafts, guess: Sequence[Sequence[int]] = ()) -> None:
        """Write drafts into the token ids of the nodes, [N], except the root's.

        drafts: room for at least as many masks as the tree is deep.
        guess: candidates of each depth, best first, that replace the drafts of the spine's node
        and its siblings. It may end before the tree does.
        """
        if self._pairs is None and not len(guess):
            tokens[1:] = drafts.ids[self._mask, self._rank]
            return
        for level in self._levels:
            others = level.all
            if level.mask < len(guess):
                candidates, others = guess[level.mask], level.off_spine
                for node, rank in level.on_spine:
                    if rank < len(candidates):
                        tokens[node] = candidates[rank]
            if len(others.nodes):
                tokens[others.nodes] = self._order(level.mask, tokens[others.parents], drafts)[
                    others.places, others.ranks
                ]

    def _order(self, mask: int, parents: Int64Array, drafts: Drafts) -> Int64Array:
        """Return the drafts of a mask as children of each parent, best first, [parents, k]."""
        ids, logits = drafts.ids[mask], drafts.logits[mask]
        if self._pairs is None:
            return np.broadcast_to(ids, (len(parents), len(ids)))
        return self._pairs.order(parents, ids, logits)


@dataclass(frozen=True, eq=False)
class _Nodes:
    """Nodes of one depth, and their distinct parents."""

    nodes: Int64Array
    parents: Int64Array
    places: Int64Array  # each node's index into parents
    ranks: Int64Array  # from 0

    @classmethod
    def of(cls, tree: Tree, nodes: Sequence[int]) -> "_Nodes":
        found = [tree.parents[node] for node in nodes]
        parents, places = np.unique(np.array(found, np.int64), return_inverse=True)
        ranks = np.array([tree.ranks[node] for node in nodes], np.int64) - 1
        return cls(np.array(nodes, np.int64), parents, places, ranks)


@dataclass(frozen=True, eq=False)
class _Level:
    """The nodes of one depth."""

    mask: int
    all: _Nodes
    on_spine: tuple[tuple[int, int], ...]  # children of a spine's node, with their ranks from 0
    off_spine: _Nodes

    @classmethod
    def of(cls, tree: Tree, depth: int) -> "_Level":
        nodes = [node for node in range(tree.num_nodes) if tree.depths[node] == depth]
        after = depth - 1 if depth - 1 <= tree.spine_length else None  # the spine's node
        on_spine = [node for node in nodes if tree.parents[node] == after]
        off_spine = [node for node in nodes if tree.parents[node] != after]
        return cls(
            depth - 1,
            _Nodes.of(tree, nodes),
            tuple((node, tree.ranks[node] - 1) for node in on_spine),
            _Nodes.of(tree, off_spine),
        )

"""Both ends of a round: which nodes are accepted, and what the next tree holds."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bita.tree import Tree

Int64Array = npt.NDArray[np.int64]


def accept(
    children: Sequence[Sequence[int]], tokens: Sequence[int], chosen: Sequence[int]
) -> tuple[list[int], int]:
    """Walk from the root to the child that holds each node's chosen token, as far as there is one.

    children: the nodes that may be accepted behind each node. tokens, chosen: per node, the token
    it holds and the token the model puts behind it. Returns the nodes of the path, the root first,
    and the bonus token (chosen at the last node of the path). Source: BiTA, tree verification.
    """
    path = [0]
    while True:
        bonus = chosen[path[-1]]
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


class Drafter:
    """Fills the nodes of a tree from the top tokens of the accepted mask group.

    A tree may be deeper than the group that was accepted; nodes without a draft keep an old one.
    That costs nothing: a node is accepted only where it holds what the model says.
    """

    def __init__(self, tree: Tree) -> None:
        self._groups = [slice(group.start, group.stop) for group in tree.groups]
        self._mask = np.array(tree.depths[1:], np.int64) - 1
        self._rank = np.array(tree.ranks[1:], np.int64) - 1
        num_masks = max(*tree.num_masks, tree.max_depth, 1)
        self._drafts = np.zeros((num_masks, max(tree.max_rank, 1)), np.int64)

    def read_group(self, node: int, top_ids: Int64Array) -> None:
        """Take the drafts of the group behind `node`; top_ids [Q, k] of the whole step."""
        self.read(top_ids[self._groups[node]])

    def read(self, top_ids: Int64Array) -> None:
        """Take the drafts of one group, [M, k]."""
        num_ranks = self._drafts.shape[1]
        self._drafts[: len(top_ids)] = top_ids[:, :num_ranks]

    def fill(self, nodes: Int64Array) -> None:
        """Write the drafts into the token ids of the nodes behind the root, [N - 1]."""
        nodes[:] = self._drafts[self._mask, self._rank]

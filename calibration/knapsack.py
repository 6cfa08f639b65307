"""Find the best trees for every number of rows exactly, given the values of nodes and ends."""

from collections.abc import Sequence

import numpy as np

from bita.tensors import Float64Array, Int64Array


class Knapsack:
    """Solves for the best trees for every number of rows, with N nodes and 0 to M masks on each.

    A node with c masks takes 1 + c rows. A tree is worth the sum, over its nodes, of accepted[n] +
    ends[n, masks of n] - instead[n, masks of n's parent].

    Args:
        parents: [N], the index of each node's parent, which precedes it; -1 for the root, node 0.
        accepted: [N], tokens per step that a node gives.
        ends: [N, M + 1], tokens to come after the steps that pass a node, if they end on it, by its
            number of masks.
        instead: [N, M + 1], the same if these steps end on the node's parent, by the parent's
            number of masks.
        max_rows: Largest number of rows of a tree.
    """

    values: Float64Array  # [max_rows], of the best tree with at most 1, 2, ... rows

    def __init__(
        self,
        parents: Sequence[int],
        accepted: Float64Array,
        ends: Float64Array,
        instead: Float64Array,
        max_rows: int,
    ) -> None:
        num_nodes, num_counts = ends.shape
        # [M + 1, rows]: the best value below each node, by the masks on it
        below = [np.zeros((num_counts, 1)) for _ in range(num_nodes)]
        # for each node: its children, the value below it before each is joined, each one's gain
        self._children: list[list[tuple[int, Float64Array, Float64Array]]] = [
            [] for _ in range(num_nodes)
        ]
        self._choice: list[Int64Array] = [np.zeros(0, np.int64)] * num_nodes
        for n in range(num_nodes - 1, 0, -1):
            whole, self._choice[n] = _with_node(accepted[n] + ends[n], below[n], max_rows)
            gain = np.maximum(whole - instead[n][:, None], 0)
            gain = np.maximum.accumulate(gain, axis=1)
            parent = parents[n]
            self._children[parent].append((n, below[parent], gain))
            below[parent] = _join(below[parent], gain, max_rows - 1)
        self._whole, self._choice[0] = _with_node(accepted[0] + ends[0], below[0], max_rows)
        best = np.maximum.accumulate(self._whole[1:])
        self.values = np.append(best, np.full(max_rows - len(best), best[-1]))

    def choose_masks(self, rows: int) -> dict[int, int]:
        """Return the masks on each node of the best tree with at most `rows` rows."""
        rows = min(rows, len(self._whole) - 1)
        start = int(np.argmax(self._whole[1 : rows + 1])) + 1
        chosen, open_nodes = {}, [(0, start)]
        while open_nodes:
            n, budget = open_nodes.pop()
            count = int(self._choice[n][budget])
            chosen[n] = count
            left = budget - 1 - count
            for child, others, gain in reversed(self._children[n]):
                spent = _share_for_child(others[count], gain[count], left)
                if spent:
                    open_nodes.append((child, spent))
                    left -= spent
        return dict(sorted(chosen.items()))


def _with_node(
    value: Float64Array, below: Float64Array, max_rows: int
) -> tuple[Float64Array, Int64Array]:
    """Return the best value of a node and everything below it, and the node's masks, each [rows].

    Entry 0 stands for no node.
    """
    num_counts = len(value)
    size = min(num_counts + below.shape[1], max_rows + 1)
    options = np.full((num_counts, size), -np.inf)
    for masks in range(num_counts):
        start = 1 + masks
        part = below[masks, : max(size - start, 0)]
        options[masks, start : start + len(part)] = value[masks] + part
        if 0 < start + len(part) < size and len(part):
            options[masks, start + len(part) :] = value[masks] + part[-1]
    return options.max(0), options.argmax(0)


def _share_for_child(others: Float64Array, gain: Float64Array, left: int) -> int:
    """Return the fewest of the rows left that a child takes in the best tree; 0 if it has none.

    `others` and `gain`, each [rows], are the best values of the node's other children and of this
    child.
    """
    used = np.arange(min(left + 1, len(gain)))
    spent = int(np.argmax(gain[used] + others[np.minimum(left - used, len(others) - 1)]))
    if gain[spent] <= 0:
        return 0
    return int(np.argmax(gain[: spent + 1] >= gain[spent]))


def _join(some: Float64Array, more: Float64Array, max_rows: int) -> Float64Array:
    """Return the best sums [M + 1, rows] of both for each number of rows that they share."""
    if some.shape[1] < more.shape[1]:
        some, more = more, some
    size = min(some.shape[1] + more.shape[1] - 1, max_rows + 1)
    best = np.zeros((len(some), size))
    for rows in range(more.shape[1]):
        part = some[:, : size - rows] + more[:, rows : rows + 1]
        target = best[:, rows : rows + part.shape[1]]
        np.maximum(target, part, out=target)
    return best

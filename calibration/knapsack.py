"""The best trees for every number of rows, exactly, given what each path and each end is worth."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Knapsack:
    """The best trees for every number of rows.

    parents [N]: of the paths, -1 for the root; a parent stands before its children. accepted [N]:
    tokens per step that a path gives. ends, instead [N, M + 1]: tokens to come behind the steps
    that accept it, if they end there, with so many masks; and if they end on its parent. values
    [R]: of the best tree of at most 1, 2, ... R rows.
    """

    def __init__(
        self,
        parents: Sequence[int],
        accepted: Floats,
        ends: Floats,
        instead: Floats,
        max_rows: int,
    ) -> None:
        num, num_counts = ends.shape
        self._masks_range = range(num_counts)
        # below[n] [M + 1, rows]: of what stands behind n, by the masks on n
        below = [np.zeros((num_counts, 1)) for _ in range(num)]
        self._children: list[list[tuple[int, Floats, Floats]]] = [[] for _ in range(num)]
        self._choice: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)] * num
        for n in range(num - 1, -1, -1):
            whole, self._choice[n] = self._with_node(accepted[n] + ends[n], below[n], max_rows)
            if n == 0:
                self.values = np.maximum.accumulate(whole[1:])
                self.values = np.append(
                    self.values, np.full(max_rows - len(self.values), self.values[-1])
                )
                break
            gain = np.maximum(whole - instead[n][:, None], 0)
            gain = np.maximum.accumulate(gain, axis=1)
            parent = parents[n]
            self._children[parent].append((n, below[parent], gain))
            below[parent] = _together(below[parent], gain, max_rows - 1)
        self._whole = whole

    def _with_node(
        self, value: Floats, below: Floats, max_rows: int
    ) -> tuple[Floats, npt.NDArray[np.int64]]:
        """[rows]: the best of a node with what is behind it; and its masks. Row 0: no node."""
        size = min(len(self._masks_range) + below.shape[1], max_rows + 1)
        options = np.full((len(self._masks_range), size), -np.inf)
        for masks in self._masks_range:
            start = 1 + masks
            part = below[masks, : max(size - start, 0)]
            options[masks, start : start + len(part)] = value[masks] + part
            if 0 < start + len(part) < size and len(part):
                options[masks, start + len(part) :] = value[masks] + part[-1]
        return options.max(0), options.argmax(0)

    def masks(self, rows: int) -> dict[int, int]:
        """The best tree of at most so many rows: the masks of each of its paths, by number."""
        rows = min(rows, len(self._whole) - 1)
        start = int(np.argmax(self._whole[1 : rows + 1])) + 1
        found, open_nodes = {}, [(0, start)]
        while open_nodes:
            n, budget = open_nodes.pop()
            count = int(self._choice[n][budget])
            found[n] = count
            left = budget - 1 - count
            for child, others, gain in reversed(self._children[n]):
                part, rest = gain[count], others[count]
                used = np.arange(min(left + 1, len(part)))
                sums = part[used] + rest[np.minimum(left - used, len(rest) - 1)]
                spent = int(np.argmax(sums))
                if part[spent] > 0:
                    spent = int(np.argmax(part[: spent + 1] >= part[spent]))
                    open_nodes.append((child, spent))
                    left -= spent
        return dict(sorted(found.items()))


def _together(some: Floats, more: Floats, max_rows: int) -> Floats:
    """[M + 1, rows]: the best sums of both for each number of rows that they share."""
    if some.shape[1] < more.shape[1]:
        some, more = more, some
    size = min(some.shape[1] + more.shape[1] - 1, max_rows + 1)
    best = np.zeros((len(some), size))
    for rows in range(more.shape[1]):
        part = some[:, : size - rows] + more[:, rows : rows + 1]
        target = best[:, rows : rows + part.shape[1]]
        np.maximum(target, part, out=target)
    return best

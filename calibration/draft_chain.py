"""Model a tree as a Markov chain: the tokens its steps give, and the value of masks on its nodes.

A step's drafts come from the masks of the node that the last step ended on, so the number of these
masks is the state of a chain. Let r(s) be the mean tokens of a step in state s, and P(s, s') the
probability that it leaves s' masks. The average reward and the relative values of the states solve

    value + ahead(s) = r(s) + sum over s' of P(s, s') ahead(s'),   ahead(masks of the root) = 0
"""

from collections.abc import Mapping

import numpy as np

from bita.tensors import Float64Array
from bita.tree import Path

# For each state, 0 to M masks: how often a step in the tree of all paths passes a node.
Shares = tuple[Mapping[Path, float], ...]


class DraftChain:
    """The Markov chain with M + 1 states of a tree with N nodes."""

    shares: Shares
    masks: Mapping[Path, int]  # of each node
    num_rows: int  # nodes and mask rows
    value: float  # tokens per step
    ahead: Float64Array  # [M + 1], tokens gained later in a state, relative to the root's state
    stays: Float64Array  # [M + 1], share of the steps in each state

    def __init__(self, shares: Shares, masks: Mapping[Path, int]) -> None:
        self.shares, self.masks = shares, masks
        self.num_rows = len(masks) + sum(masks.values())
        self._index = {path: n for n, path in enumerate(masks)}
        # [M + 1, N]: how often a step in each state passes a node, and how often it ends on it
        self._passes = np.array([[state.get(path, 0.0) for path in masks] for state in shares])
        self._ends = self._passes.copy()
        for path, n in self._index.items():
            if path:
                self._ends[:, self._index[path[:-1]]] -= self._passes[:, n]
        self.value, self.ahead, self.stays = self._solve()

    def share_passing(self, path: Path) -> float:
        """Return how often a step passes a node, over all states."""
        return float(self.stays @ self._passes[:, self._index[path]])

    def share_ending(self, path: Path) -> float:
        """Return how often a step ends on a node, over all states."""
        return float(self.stays @ self._ends[:, self._index[path]])

    def gain(self, fewer: int, more: int) -> float:
        """Return the tokens gained later if a step leaves `more` masks instead of `fewer`."""
        return float(self.ahead[more] - self.ahead[fewer])

    def _solve(self) -> tuple[float, Float64Array, Float64Array]:
        """Return value, ahead and stays."""
        num_states, start = len(self.shares), self.masks[()]
        moves = np.zeros((num_states, num_states))
        np.add.at(moves.T, list(self.masks.values()), self._ends.T)
        # the unknowns are ahead and finally the value; the last equation sets the root's state to 0
        system = np.ones((num_states + 1, num_states + 1))
        system[:num_states, :num_states] = np.eye(num_states) - moves
        system[num_states] = 0
        system[num_states, start] = 1
        tokens = self._passes.sum(1)
        solution = _solve_system(system, np.append(tokens, 0.0))
        # the transposed system gives the shares; its last row makes them sum to 1
        stays = _solve_system(system.T, np.append(np.zeros(num_states), 1.0))[:num_states]
        return float(solution[num_states]), solution[:num_states], stays


def _solve_system(system: Float64Array, right: Float64Array) -> Float64Array:
    try:
        return np.asarray(np.linalg.solve(system, right), np.float64)
    except np.linalg.LinAlgError:  # a step that never ends at the root splits the chain
        return np.asarray(np.linalg.lstsq(system, right, rcond=None)[0], np.float64)

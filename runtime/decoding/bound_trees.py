"""Trees with all that a step of them needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bita.runtime.backends.backend import Step
from bita.runtime.decoding.drafting import Drafter
from bita.tree import Tree

ROOT_ONLY = Tree.root_only()


@dataclass(frozen=True, eq=False)
class BoundTree:
    """A tree with all that a step of it needs.

    children: of each node, those that may be accepted.
    groups: the mask rows of each node.
    """

    tree: Tree
    step: Step
    drafter: Drafter
    children: tuple[tuple[int, ...], ...]
    groups: tuple[slice, ...]


class BoundTrees:
    """Bound trees by their numbers; `narrow` is the root-only fallback for a full cache.

    The first `num_ready` are bound at once, the others when they are first asked for: most texts
    never need them.
    """

    def __init__(
        self, trees: Sequence[Tree], num_ready: int, bind: Callable[[Tree], BoundTree]
    ) -> None:
        self._trees = trees
        self._bind = bind
        self.ready = [bind(tree) for tree in trees[:num_ready]]
        self.narrow = bind(ROOT_ONLY)
        self._later: dict[int, BoundTree] = {}

    def __getitem__(self, number: int) -> BoundTree:
        """The tree of this number. Cost of its first use if it is not ready: that of `bind`."""
        if number < len(self.ready):
            return self.ready[number]
        if number not in self._later:
            tree = self._trees[number]
            self._later[number] = self.narrow if tree == ROOT_ONLY else self._bind(tree)
        return self._later[number]

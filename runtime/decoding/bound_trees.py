"""Trees together with everything that their steps need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bita.adapter import Adapter
from bita.pairs import PairTables
from bita.runtime.backends.backend import Backend, Step
from bita.runtime.backends.layout import Layout, tree_layout
from bita.runtime.decoding.drafting import Drafter, spine_children
from bita.tree import Tree

ROOT_ONLY = Tree.root_only()


@dataclass(frozen=True, eq=False)
class PlacedTree:
    """A tree with everything that a round needs, except a step."""

    tree: Tree
    layout: Layout  # placement of its rows
    drafter: Drafter
    children: tuple[tuple[int, ...], ...]  # acceptable children of each node
    groups: tuple[slice, ...]  # mask rows of each node


@dataclass(frozen=True, eq=False)
class BoundTree(PlacedTree):
    """A tree with a step of its own."""

    step: Step


@dataclass(frozen=True, eq=False)
class Binder:
    """Binds trees for a decoder without referring to it, so that the decoder can be freed."""

    backend: Backend
    adapter: Adapter
    pairs: PairTables | None
    min_rows: int
    with_logits: bool
    accepts_branches: bool

    def __call__(self, tree: Tree) -> BoundTree:
        placed = self.placed(tree)
        step = self.backend.bind(placed.layout, self.adapter, self.with_logits)
        return BoundTree(**vars(placed), step=step)

    def placed(self, tree: Tree) -> PlacedTree:
        """Return the tree without a step."""
        return PlacedTree(
            tree,
            tree_layout(tree, self.min_rows),
            Drafter(tree, self.pairs),
            tree.children if self.accepts_branches else spine_children(tree),
            tuple(slice(group.start, group.stop) for group in tree.groups),
        )


class BoundTrees:
    """Bound trees by number; `narrow` is the root-only fallback for a full cache.

    The first `num_ready` trees are bound immediately, the others on first use, since most texts
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
        """Return the tree with this number, binding it first if it is not ready."""
        if number < len(self.ready):
            return self.ready[number]
        if number not in self._later:
            tree = self._trees[number]
            self._later[number] = self.narrow if tree == ROOT_ONLY else self._bind(tree)
        return self._later[number]

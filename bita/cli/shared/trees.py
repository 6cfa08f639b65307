"""Trees as users name them on the command line."""

import re
from collections.abc import Callable
from pathlib import Path

from bita.cli.shared.flags import TREE_HELP
from bita.errors import TreeError
from bita.tree import Tree
from bita.tree_table import Trees, TreeTable, read_trees

_NAMED: dict[str, Callable[[int], Tree]] = {
    "ar": lambda num_masks: Tree.root_only(),
    "chain": Tree.chain,
    "triangle": lambda num_masks: Tree.triangle(tuple(range(num_masks + 2, 2, -1))),
}


def read_tree(text: str, num_masks: int) -> Trees:
    """The tree that `text` names, for an adapter of `num_masks` masks.

    Raises TreeError with the accepted forms.
    """
    if text in _NAMED:
        return _NAMED[text](num_masks)
    if match := re.fullmatch(r"ngrams:([1-9]\d?)", text):
        return Tree.chain(int(match[1]), 0).with_guesses(1)
    if re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text):
        return Tree.triangle([int(width) for width in text.split(",")], num_masks)
    path = Path(text)
    if not path.is_file():
        raise TreeError(f"no tree {text!r}; give {TREE_HELP}")
    return read_trees(path, f"give {TREE_HELP}")


def states_of(trees: Trees) -> list[tuple[str, Tree]]:
    """A line for each state of trees by state; nothing for a single tree."""
    return trees.states() if isinstance(trees, TreeTable) and len(trees.trees) > 1 else []

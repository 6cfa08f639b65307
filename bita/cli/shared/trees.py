"""Trees by the names that the command line accepts."""

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
    """Return the tree that `text` names, for an adapter of `num_masks` masks.

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
    """Return each state of a tree by state with its tree; nothing for a single tree."""
    return trees.states() if isinstance(trees, TreeTable) and len(trees.trees) > 1 else []


def state_facts(trees: Trees) -> list[dict[str, str]]:
    """Return `state` and `tree` for JSON, as `states_of` lists them."""
    return [{"state": state, "tree": str(tree)} for state, tree in states_of(trees)]
